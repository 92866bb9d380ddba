"""What a generator's task takes of its data before training."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from resgen.kinds import GeneratorLossConfig, build
from resgen.models.resgen import ResGenConfig
from resgen.quantizers import QuantizerConfig, make_quantizer
from resgen.samplers.unmasking import SamplingConfig
from resgen.training.generator_task import GeneratorTask
from resgen.types import CodeSpec

SPEC = CodeSpec(shape=(2, 2), depth=2, codebook_size=4, code_dim=4)


class _Many:
    """As many samples as are asked for, of which only some are looked at."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.looked_at = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self.count

    def codes(self, indices: Tensor) -> Tensor:
        self.looked_at = indices
        return (indices[:, None, None] % SPEC.codebook_size).expand(-1, SPEC.num_positions, SPEC.depth)


@pytest.mark.parametrize("count", [1, 3, 20_000, (1 << 24) + 4])
def test_the_scale_is_taken_from_samples_of_all_the_data(count: int) -> None:
    """Of more than 2^24 samples, too, whose numbers float32 does not hold."""
    examples = _Many(count)
    model = build(ResGenConfig(width=16, num_layers=1, num_heads=2, mlp_width=16, condition_width=16), SPEC)
    quantizer = make_quantizer(QuantizerConfig(depth=SPEC.depth, codebook_size=SPEC.codebook_size), SPEC.code_dim)
    data = cast(Any, examples)
    GeneratorTask(
        model,
        GeneratorLossConfig(),
        data,
        data,
        quantizer=quantizer,
        product=cast(Any, None),
        sampling=SamplingConfig(),
    )
    rows = examples.looked_at
    assert len(rows) == min(count, 16384)
    assert int(rows.min()) == 0 and int(rows.max()) == count - 1
    assert (rows.diff() > 0).all()
