"""One training step (loss, gradients, clipping, AdamW) beside the bare products of the transformer's blocks.

OMP_NUM_THREADS=2 python benchmarks/training_step.py --head residual --batch-size 32 --repetitions 7

Another version of the package: PYTHONPATH=OTHER/src python benchmarks/training_step.py. The whole trainer beside all
products of a step is in `floors.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import tyro
from times import medians

from resgen.allocator import keep_freed_memory
from resgen.evaluation.bench.timing import interleaved, ratio
from resgen.kinds import GeneratorLossConfig, build, make_objective
from resgen.kinds.presets import RESGEN
from resgen.types import CodeSpec

WARM_UP = 2


def main(head: Literal["residual", "mixture"] = "residual", batch_size: int = 32, repetitions: int = 7) -> None:
    """Print seconds of both and the median of their ratios.

    Args:
        head: of the generator.
        batch_size: images of 8x8 positions, 8 levels of 1,024.
        repetitions: pairs of timings.
    """
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    spec = CodeSpec(depth=8, codebook_size=1024, code_dim=64, shape=(8, 8))
    config = dataclasses.replace(RESGEN["base"], num_classes=10, head=head)
    network = build(config, spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.02, generator=generator)
    network.codebooks.normal_(generator=generator)
    objective = make_objective(network, GeneratorLossConfig(data_start=False))
    codes = torch.randint(spec.codebook_size, (batch_size, *spec.shape, spec.depth), generator=generator).flatten(1, 2)
    classes = torch.randint(10, (batch_size,), generator=generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    width, hidden = config.width, config.mlp_width
    weights = [
        torch.randn(size).bfloat16() for size in ((hidden, width), (width, hidden), (3 * width, width), (width, width))
    ]
    rows = {size: torch.randn(codes.shape[0] * codes.shape[1], size).bfloat16() for size in (width, hidden, 3 * width)}

    def products() -> None:
        for _ in range(config.num_layers):
            for weight in weights:
                x, slope = rows[weight.shape[1]], rows[weight.shape[0]]
                for left, right in ((x, weight.T), (slope, weight), (slope.T, x)):
                    torch.mm(left, right)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            visible = objective.draw(torch.ones_like(codes[..., 0], dtype=torch.bool), torch.Generator().manual_seed(1))
            loss, _ = objective.loss((codes, classes, None), visible)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    runs = {"products": products, "step": step}
    interleaved(runs, WARM_UP)
    times = interleaved(runs, repetitions)
    print(
        f"{head}, batch {batch_size}: " + ", ".join(f"{name} {value:.3f} s" for name, value in medians(times).items())
    )
    print(f"step over products {ratio(times['step'], times['products'])['median']:.2f}")


if __name__ == "__main__":
    tyro.cli(main)
