"""`resgen bench quantizer|depth|sampler|all`: the measurements behind the README's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from resgen.cli.common import Json, check_out_file, option, phase_bars, plain, report


@dataclass(frozen=True, kw_only=True)
class BenchQuantizer:
    """Encode 65,536 vectors with this library and with vector-quantize-pytorch: time, memory, agreement.

    For example:

        resgen bench quantizer --json
    """

    as_json: Json = False

    def run(self) -> None:
        from resgen.evaluation.bench import bench_quantizer

        report(bench_quantizer(), as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class BenchDepth:
    """Network passes and seconds of sampling at depth 1, 4, 8 and 16, all else equal.

    For example:

        resgen bench depth --json
    """

    as_json: Json = False

    def run(self) -> None:
        from resgen.evaluation.bench import bench_depth

        report(bench_depth(), as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class BenchSampler:
    """Seconds of sampling over the seconds of its bare network passes.

    For example:

        resgen bench sampler --json
    """

    as_json: Json = False

    def run(self) -> None:
        from resgen.evaluation.bench import bench_sampler

        report(bench_sampler(), as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class BenchAll:
    """Sampling, mixture loss and training beside their bare matrix products, and memory: one table with all floors.

    For example:

        resgen bench all --out performance.json

    That takes some minutes on two cores, on which nothing else should run.
    """

    shape: Annotated[str, option("NAME")] = "base"
    """Networks and codes: paper (xl, 8 x 8 positions, 1024 codes), base, small or tiny."""
    batch_size: Annotated[int, option("N")] = 64
    """Samples at a time."""
    steps: Annotated[int, option("N")] = 4
    """Network evaluations of a sampling run, without guidance."""
    training_batch: Annotated[int, option("N")] = 64
    """Samples of a training step."""
    mixture_rows: Annotated[int, option("N")] = 4096
    """Positions of the mixture loss."""
    repetitions: Annotated[int, option("N")] = 3
    """Timed runs of everything, after a first one that is not counted."""
    compiled: bool = False
    """Measure training with compiled blocks, too; takes a C compiler."""
    memory: bool = True
    """Measure peak memory, too; every figure takes a process of its own."""
    dtype: Annotated[str, option("NAME")] = "auto"
    """float32, bfloat16 or auto: what the machine is fast in."""
    out: Annotated[Path | None, option("FILE.json")] = None
    """Where to write the full report; the tables go beside it as Markdown."""
    as_json: Json = False

    def run(self) -> None:
        if self.out is not None:
            check_out_file(self.out, (".json",))
        from resgen.experiments.floors import bench_all, report_markdown

        with phase_bars() as advance:
            found = bench_all(
                shape=self.shape,
                batch_size=self.batch_size,
                num_steps=self.steps,
                training_batch=self.training_batch,
                mixture_rows=self.mixture_rows,
                repetitions=self.repetitions,
                compiled=self.compiled,
                memory=self.memory,
                dtype=self.dtype,
                report_progress=advance,
            )
        text = report_markdown(found)
        if self.out is not None:
            from resgen.checkpoints.format import write_json_atomic, write_text_atomic

            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self.out, plain(found))
            write_text_atomic(self.out.with_suffix(".md"), text + "\n")
        report(found, as_json=self.as_json, text=text)
