"""`resgen bench`: seconds, network passes and memory of every kind of generator at the same shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from resgen.cli.common import MOST, Json, check_out_file, flatten, option, plain, report, table
from resgen.errors import ConfigError
from resgen.progress import progress_bars


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure time, passes and memory of all kinds with random weights, relative to ResGen and to bare matrix products.

    For example:

        resgen bench --shape paper --depths 16 --out speed.json
        resgen bench --shape paper --kinds resgen rq_transformer --batch-sizes 1,4,16,64 --no-memory
        resgen bench --shape paper --kinds resgen rq_transformer --guidance-start 0.5 --no-memory
        resgen bench --shape base --kinds resgen --batch-sizes 1,16 --dtype bfloat16,int8 --no-memory
        resgen bench --shape small --depths 1,4,8,16 --kinds resgen,rq_transformer,ar_resgen --iterations 2

    Separate list items by spaces or commas. Measurements are interleaved in one process; seconds are medians, ratios
    are medians of ratios within a repetition. Nothing else should run on the machine.
    """

    shape: Annotated[str, option("NAME")] = "paper"
    """Networks and codes: paper (xl, 8 x 8 positions, 1024 codes), base, small or tiny."""
    kinds: Annotated[tuple[str, ...], option("NAME ...")] = ()
    """Kinds of generator; all by default."""
    depths: Annotated[tuple[str, ...], option("N ...")] = ("16",)
    """Numbers of residual levels."""
    batch_sizes: Annotated[tuple[str, ...], option("N ...")] = ("1",)
    """Images per batch; kinds with a cache gain most from large batches."""
    iterations: Annotated[tuple[str, ...], option("N ...")] = ("1", "2", "4", "8")
    """Unmasking iterations per position of ar_resgen; values above the depth are skipped."""
    steps: Annotated[int | None, option("N")] = None
    """Sampling steps of the kinds with a variable number, instead of the shape's (63 at paper, 16 at tiny)."""
    no_guidance: bool = False
    """Disable guidance: one network pass per step."""
    guidance_start: Annotated[float, option("SHARE")] = 0.0
    """Fraction of the steps after which guidance starts, for the kinds that unmask."""
    dtype: Annotated[tuple[str, ...], option("NAME ...")] = ("auto",)
    """float32, bfloat16, int8 (the transformer's weights, on CPUs) or auto: the machine's fastest. Several types are
    measured in alternation."""
    repetitions: Annotated[int, option("N")] = 3
    """Timed repetitions, after one warm-up run."""
    no_memory: bool = False
    """Do not measure peak memory; on a CPU each figure takes a separate process."""
    memory_gb: Annotated[float, option("GB")] = 8.0
    """Memory for the largest batch, in 10^9 bytes."""
    device: Annotated[str, option("NAME")] = "auto"
    """cpu, cuda, cuda:1 or auto: a GPU if there is one."""
    out: Annotated[Path | None, option("FILE.json")] = None
    """File for the full report."""
    as_json: Json = False

    def run(self) -> None:
        if self.out is not None:
            check_out_file(self.out, (".json",))
        from resgen.evaluation.bench.cases import MEASURED
        from resgen.evaluation.bench.speed import BenchConfig, bench

        config = BenchConfig(
            shape=self.shape,
            kinds=words(self.kinds) or MEASURED,
            depths=integers("--depths", self.depths),
            batch_sizes=integers("--batch-sizes", self.batch_sizes),
            iterations=integers("--iterations", self.iterations),
            num_steps=self.steps,
            guidance=not self.no_guidance,
            guidance_start=self.guidance_start,
            repetitions=self.repetitions,
            memory=not self.no_memory,
            memory_gb=self.memory_gb,
            dtypes=words(self.dtype),
            device=self.device,
        )
        with progress_bars() as advance:
            document = bench(config, advance)
        text = bench_text(document)
        if self.out is not None:
            from resgen.files import write_json

            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.out, plain(document))
            text += f"\n\nwritten to {self.out}"
        report(document, as_json=self.as_json, text=text)


def words(values: Sequence[str]) -> tuple[str, ...]:
    """Words given with blanks or commas between them."""
    return tuple(flatten(value.replace(",", " ").split() for value in values))


def integers(name: str, values: Sequence[str]) -> tuple[int, ...]:
    """Whole numbers given with blanks or commas between them.

    Raises:
        ConfigError: something else is among them, or a number beyond `MOST`.
    """
    numbers = words(values)
    if not all(re.fullmatch(r"[+-]?[0-9]{1,7}", number) and abs(int(number)) <= MOST for number in numbers):
        raise ConfigError(f"{name} {' '.join(values)} must be whole numbers up to {MOST:,}, as in {name} 1,4,16")
    return tuple(map(int, numbers))


def bench_text(document: Mapping[str, Any]) -> str:
    """The report for a reader: a table, what it was measured on, what is counted."""
    rows, settings = document["rows"], document["settings"]
    from resgen.kinds import KINDS

    others = list(dict.fromkeys(row["label"] for row in rows if KINDS[row["kind"]].is_yardstick))
    with_memory = any("memory" in row for row in rows)
    heading = ["kind", "depth", "batch", "M param.", "steps", "passes", "s/image", "images/s"]
    heading += [f"/{name}" for name in others] + ["/products", "/shallowest"]
    heading += ["MB work", "MB in all", f"batch in {settings['memory_gb']:g} GB"] if with_memory else []
    lines: list[list[object]] = [list(heading)]
    for row in rows:
        line = [row["label"], row["depth"], row["batch_size"], f"{row['parameters'] / 1e6:.1f}", row["steps"]]
        line.append(" + ".join(f"{count:g}" for count in row["passes"].values()))
        line += [f"{row['seconds_per_image']:.4g}", f"{row['images_per_second']:.4g}"]
        ratios = (row["over"].get(name) for name in (*others, "products", "shallowest"))
        line += ["-" if ratio is None else f"{ratio['median']:.3g}" for ratio in ratios]
        if with_memory:
            memory = row["memory"]
            most = memory["largest_batch"]
            line += [f"{memory[name] / 1e6:.0f}" for name in ("extra_bytes", "total_bytes")]
            line.append("?" if most is None else most)
        lines.append(line)
    machine = (
        f"{settings['device']}, {settings['threads']} threads, {settings['dtype']}, guidance "
        f"{'on' if settings['guidance_scale'] else 'off'}, {settings['repetitions']} repetitions, load "
        f"{settings['load']}, torch {settings['torch']}"
    )
    return "\n\n".join([table(lines), machine, document["counted"]])
