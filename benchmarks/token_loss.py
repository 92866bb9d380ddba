"""The loss of codes with its gradients, a level and a block of rows at a time, against plain autograd over all logits.

python benchmarks/token_loss.py --repetitions 10
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import tyro
from times import medians
from torch import Tensor
from torch.nn import functional

from resgen.allocator import keep_freed_memory
from resgen.evaluation.bench.timing import interleaved
from resgen.losses.tokens import masked_level_loss, residual_above
from resgen.models.token_head import TokenHead

WARM_UP = 2
WIDTH, DEPTH, CODES, CODE_DIM, DECAY = 768, 8, 1024, 64, 0.9


def main(rows: int = 2045, repetitions: int = 10) -> None:
    """Print the median seconds of both and of the three products that either needs.

    Args:
        rows: positions.
        repetitions: of each, in turn.
    """
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    head, codebooks = TokenHead(WIDTH, DEPTH, CODES, CODE_DIM), torch.randn(DEPTH, CODES, CODE_DIM, generator=generator)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.02, generator=generator)
    codes = torch.randint(CODES, (rows, DEPTH), generator=generator)
    visible = torch.randint(3, (rows,), generator=generator)
    features = torch.randn(rows, WIDTH, generator=generator)

    def plain(hidden: Tensor) -> Tensor:
        logits = head(hidden, residual_above(codes, codebooks, visible))
        beyond = torch.arange(DEPTH) - visible[:, None]
        masked = beyond >= 0
        nll = functional.cross_entropy(logits[masked], codes[masked], reduction="none")
        return (nll * DECAY ** beyond[masked]).sum()

    def blocks(hidden: Tensor) -> Tensor:
        above = residual_above(codes, codebooks, visible)
        return masked_level_loss(
            hidden, codes, visible, *head.levels, above=above, steering=head.steering, decay=DECAY
        ).total

    weight, x = head.logits.weight.detach().bfloat16(), features.bfloat16()
    slope = torch.randn(rows, DEPTH * CODES, generator=generator).bfloat16()

    def with_gradients(loss: Callable[[Tensor], Tensor]) -> None:
        head.zero_grad()
        hidden = features.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(hidden)
        value.backward()

    def products() -> None:
        for left, right in ((x, weight.T), (slope, weight), (slope.T, x)):
            torch.mm(left, right)

    runs = {"plain": partial(with_gradients, plain), "blocks": partial(with_gradients, blocks), "products": products}
    interleaved(runs, WARM_UP)
    times = interleaved(runs, repetitions)
    print(", ".join(f"{name} {value:.3f} s" for name, value in medians(times).items()))


if __name__ == "__main__":
    tyro.cli(main)
