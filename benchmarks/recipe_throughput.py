"""The steps of a real training beside their bare products: matrices and convolutions, forward and both gradients.

    OMP_NUM_THREADS=2 python benchmarks/recipe_throughput.py --repetitions 9 \\
        train generator --recipe avatars64 --data codes/ --tokenizer avatars64 --out runs/throughput

What follows the options is a command of `resgen`. It stops after the repetitions; its run folder can be removed. Only
products with parameters count, on random activations of the same shapes, types and layouts; attention, norms, losses
and the optimizer do not. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from floors import TrainingRecorder
from torch import Tensor

from resgen.cli.main import main as resgen
from resgen.evaluation.bench.products import record_products
from resgen.evaluation.bench.speed import EnoughError
from resgen.evaluation.bench.timing import ratio, timed
from resgen.training.trainer import Trainer

WARM_UP_STEPS = 3
CONVOLUTIONS = {name: 0 for name in ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d")}


class StepRecorder(TrainingRecorder):
    """Notes convolutions, too; their multiply-adds are not counted."""

    operands = TrainingRecorder.operands | CONVOLUTIONS

    def note(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        if function.__name__ not in CONVOLUTIONS:
            super().note(function, args, kwargs, result)
            return
        transposed = "transpose" in function.__name__
        names = (
            "stride",
            "padding",
            *(["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]),
        )
        settings = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
        settings |= dict(zip(names, args[3:], strict=False)) | {name: kwargs[name] for name in names if name in kwargs}
        if isinstance(settings["padding"], str):
            raise SystemExit(f"a convolution with padding '{settings['padding']}' cannot be counted; give numbers")
        given, weight = (_like(self._copy(value, result.dtype), value) for value in args[:2])
        slope = _like(self._copy(result, result.dtype), result)
        many = {name: _pair(settings[name], result.ndim - 2) for name in ("stride", "padding", "dilation")}
        forward = partial(function, given, weight, None, **{name: settings[name] for name in names})
        backward = partial(
            torch.ops.aten.convolution_backward,
            slope,
            given,
            weight,
            None,
            *many.values(),
            transposed,
            _pair(settings["output_padding"], result.ndim - 2),
            settings["groups"],
            [True, True, False],
        )
        self.products.calls += [forward, backward]


def _pair(value: Any, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value)


def _like(value: Tensor, layout: Tensor) -> Tensor:
    last = layout.ndim == 4 and layout.is_contiguous(memory_format=torch.channels_last)
    return value.contiguous(memory_format=torch.channels_last) if last else value


def watch(repetitions: int) -> dict[str, list[float]]:
    """Have every trainer of this process time its steps and their products in turns, then end; the seconds of both."""
    step_of, times = Trainer._train_step, {"step": [], "products": []}
    products: list[Callable[[], object]] = []

    def step(self: Trainer) -> float | None:
        if not products:
            for _ in range(WARM_UP_STEPS):
                step_of(self)
            with torch.compiler.set_stance("force_eager"):  # a compiler would not let the products be seen
                products.append(record_products(self.task.module, partial(step_of, self), recorder=StepRecorder))
            products[0]()
        if len(times["step"]) == repetitions:
            raise EnoughError
        times["step"].append(timed(partial(step_of, self)))
        times["products"].append(timed(products[0]))
        return None

    Trainer._train_step = step  # type: ignore[method-assign]
    return times


def main() -> int:
    """Run a training, and print its seconds for a step, its products' and the share that these are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9, help="pairs of timings")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="arguments of resgen")
    given = parser.parse_args()
    if given.repetitions < 1 or given.command[:1] != ["train"]:
        parser.error("give one repetition or more, and a command that begins with 'train'")
    times = watch(given.repetitions)
    try:
        code = resgen(given.command)
        done = len(times["products"])
        print(f"error: the training ended after {done} of {given.repetitions} repetitions", file=sys.stderr)
        return code or 1
    except EnoughError:
        of = ratio(times["products"], times["step"])
        seconds = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
        print(
            f"a step {seconds['step']:.3f} s, its products {seconds['products']:.3f} s: {of['median']:.0%} "
            f"({of['min']:.0%} to {of['max']:.0%}) of the products' throughput, {torch.get_num_threads()} threads"
        )
        return 0


if __name__ == "__main__":
    sys.exit(main())
