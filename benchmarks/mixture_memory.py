"""Peak memory and time of the chunked mixture loss against plain autograd, by number of positions.

python benchmarks/mixture_memory.py [--json] [--rows 1024 2048 4096]
"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import tyro

from resgen.errors import ResGenError
from resgen.evaluation.bench import bench_mixture


def main(
    rows: tuple[int, ...] = (1024, 2048, 4096),
    num_components: int = 1024,
    code_dim: int = 64,
    width: int = 768,
    repetitions: int = 3,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measure forward and backward pass; a table, or one JSON document, to standard output.

    Args:
        rows: numbers of positions, rising.
        num_components: K.
        code_dim: H.
        width: O.
        repetitions: of every timing.
        as_json: write JSON.
    """
    result = bench_mixture(
        rows=rows, num_components=num_components, code_dim=code_dim, width=width, repetitions=repetitions
    )
    if as_json:
        print(json.dumps(result))
        return
    print("| positions | chunked MiB | plain MiB | ratio | chunked s | plain s |\n|---|---|---|---|---|---|")
    for count in map(str, rows):
        memory, seconds = result["extra_memory_bytes"][count], result["seconds"][count]
        print(
            f"| {count} | {memory['chunked'] / 2**20:.0f} | {memory['plain'] / 2**20:.0f} "
            f"| {result['memory_ratio'][count]:.2f} | {seconds['chunked']:.2f} | {seconds['plain']:.2f} |"
        )
    growth = result["bytes_per_row"]
    print(f"\nper further position: {growth['chunked'] / 1024:.1f} KiB chunked, {growth['plain'] / 1024:.1f} KiB plain")
    print(", ".join(f"{name} {value}" for name, value in result["settings"].items()))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except ResGenError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
