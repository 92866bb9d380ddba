"""Peak memory and time of the chunked mixture loss against plain autograd, by number of positions.

python benchmarks/mixture_memory.py [--json] [--rows 1024 2048 4096]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import torch
import tyro
from times import medians

from resgen.cli.main import guard
from resgen.devices import choose_dtype, dtype_name
from resgen.errors import ConfigError
from resgen.evaluation.bench.memory import extra_peak_bytes
from resgen.evaluation.bench.timing import CPU, interleaved, machine_of
from resgen.losses.mixture import mixture_loss
from resgen.models.heads import MixtureHead
from resgen.ops.random import generator

VERSIONS = ("chunked", "plain")
WARM_UP_ROWS = 64


def main(
    rows: tuple[int, ...] = (1024, 2048, 4096),
    num_components: int = 1024,
    code_dim: int = 64,
    width: int = 768,
    repetitions: int = 3,
    dtype: str = "auto",
    seed: int = 0,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure forward and backward pass of `mixture_loss` and of autograd through `MixtureHead.bound`, on the CPU.

    The JSON document has by number of rows: `seconds` and `extra_memory_bytes` of `chunked` and `plain`,
    `memory_ratio`, `speedup`; and `bytes_per_row`, by which the memory of each grows between the fewest and the most
    rows; `settings`.

    Args:
        rows: numbers of positions, rising.
        num_components: K.
        code_dim: H.
        width: O.
        repetitions: of every timing.
        dtype: float32, bfloat16 or auto.
        seed: of weights and targets.
        as_json: write JSON.
    """
    if len(rows) < 2 or sorted(set(rows)) != list(rows):
        raise ConfigError(f"rows={rows} must be two or more rising numbers")
    data_type = choose_dtype(dtype, CPU)
    name = dtype_name(data_type)
    sizes: dict[str, Any] = {"num_components": num_components, "code_dim": code_dim, "width": width, "seed": seed}
    sizes["dtype"] = name
    seconds, memory = {}, {}
    for count in rows:
        works = {version: mixture_work(version=version, rows=count, **sizes) for version in VERSIONS}
        for warm_up, _ in works.values():
            warm_up()
        times = interleaved({version: work for version, (_, work) in works.items()}, repetitions)
        del works
        seconds[str(count)] = medians(times)
        memory[str(count)] = {v: extra_peak_bytes(mixture_work, version=v, rows=count, **sizes) for v in VERSIONS}
    least, most = str(rows[0]), str(rows[-1])
    result = {
        "seconds": seconds,
        "speedup": {n: s["plain"] / s["chunked"] for n, s in seconds.items()},
        "extra_memory_bytes": memory,
        "memory_ratio": {n: m["chunked"] / max(1, m["plain"]) for n, m in memory.items()},
        "bytes_per_row": {v: (memory[most][v] - memory[least][v]) / (rows[-1] - rows[0]) for v in VERSIONS},
        "settings": {**sizes, "repetitions": repetitions, **machine_of(CPU, data_type)},
    }
    print(json.dumps(result) if as_json else table(result))


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = ["| positions | chunked MiB | plain MiB | ratio | chunked s | plain s |", "|---|---|---|---|---|---|"]
    for count, seconds in result["seconds"].items():
        memory = result["extra_memory_bytes"][count]
        lines.append(
            f"| {count} | {memory['chunked'] / 2**20:.0f} | {memory['plain'] / 2**20:.0f} "
            f"| {result['memory_ratio'][count]:.2f} | {seconds['chunked']:.2f} | {seconds['plain']:.2f} |"
        )
    growth = {version: value / 1024 for version, value in result["bytes_per_row"].items()}
    lines += ["", f"per further position: {growth['chunked']:.1f} KiB chunked, {growth['plain']:.1f} KiB plain"]
    lines.append(", ".join(f"{name} {value}" for name, value in result["settings"].items()))
    return "\n".join(lines)


def mixture_work(
    version: str, rows: int, num_components: int, code_dim: int, width: int, dtype: str, seed: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """A small run that warms up, and the one to be measured."""
    stream = generator("bench", seed)
    head = MixtureHead(width=width, num_components=num_components, code_dim=code_dim)
    head.reset_parameters(stream)
    hidden = torch.randn(rows, width, generator=stream)
    target = torch.randn(rows, code_dim, generator=stream)
    visible = torch.zeros(rows, dtype=torch.int64)

    def run(count: int) -> float:
        head.zero_grad(set_to_none=True)
        inputs = hidden[:count].requires_grad_()
        weight = torch.full((count,), 1 / count)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            if version == "chunked":
                loss = mixture_loss(head, inputs, target[:count], visible[:count], weight, 0.01).loss
            else:
                loss = (head(inputs, target[:count], visible[:count], 0.01).total * weight).sum()
        loss.backward()
        return float(loss.detach())

    def warm_up() -> None:
        run(min(rows, WARM_UP_ROWS))
        head.zero_grad(set_to_none=True)

    return warm_up, lambda: run(rows)


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(main)))
