"""What the operators of a tokenizer's training step take, by PyTorch's profiler.

python benchmarks/tokenizer_profile.py --recipe fashion_mnist --data PATH [--compile]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import tyro
from torch.profiler import ProfilerActivity, profile

from resgen.allocator import keep_freed_memory
from resgen.config import replace_nested
from resgen.modalities import load_recipe
from resgen.training import Run
from resgen.training.image.runs import train_tokenizer
from resgen.training.image.tokenizer_task import TokenizerTask

WARM_UP, TIMED, PROFILED = 6, 12, 6
PRODUCTS = ("convolution", "aten::mm", "addmm", "bmm", "mkldnn")


class _EnoughError(Exception):
    pass


def main(recipe: str, data: str, compile: bool = False) -> None:  # the option's name
    """Print the seconds of a step and the operators' shares.

    Args:
        recipe: whose tokenizer is trained.
        data: images.
        compile: compile its blocks.
    """
    keep_freed_memory()
    settings = {"num_steps": 100, "compile": compile, "sample_every": 0, "validate_every": 0, "checkpoint_every": 0}
    ready = replace_nested(
        load_recipe(recipe)[1], {f"tokenizer_training.{name}": value for name, value in settings.items()}
    )
    begins: list[float] = []
    profiler = profile(activities=[ProfilerActivity.CPU])
    losses, ended = TokenizerTask.losses, suppress(_EnoughError)

    def watched(self: TokenizerTask, *arguments: Any, **keywords: Any) -> Iterator[Any]:
        begins.append(time.perf_counter())
        if len(begins) == WARM_UP + TIMED + 1:
            profiler.start()
        if len(begins) == WARM_UP + TIMED + PROFILED + 1:
            profiler.stop()
            raise _EnoughError
        yield from losses(self, *arguments, **keywords)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(TokenizerTask, "losses", watched), ended:
        train_tokenizer(ready, Run(data=data, out=Path(folder) / "run"))
    timed = begins[WARM_UP : WARM_UP + TIMED + 1]
    print(f"step {median(b - a for a, b in zip(timed, timed[1:], strict=False)):.3f} s")
    rows = sorted(profiler.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
    total = sum(entry.self_cpu_time_total for entry in rows)
    products = sum(entry.self_cpu_time_total for entry in rows if any(name in entry.key for name in PRODUCTS))
    print(f"{products / total:.0%} convolutions and products")
    for entry in rows[:12]:
        print(f"{entry.self_cpu_time_total / total:6.1%} {entry.key}")


if __name__ == "__main__":
    tyro.cli(main)
