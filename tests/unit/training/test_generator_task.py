"""What a generator's task takes of its data before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from resgen.kinds import GeneratorLossConfig, build
from resgen.models.resgen import ResGenConfig
from resgen.ops.random import generator
from resgen.quantizers import QuantizerConfig, make_quantizer
from resgen.samplers.unmasking import SamplingConfig
from resgen.training.generator_task import Batch, GeneratorTask, draw_kept
from resgen.types import CodeSpec, SequenceCondition

SPEC = CodeSpec(shape=(2, 2), depth=2, codebook_size=4, code_dim=4)
SEQUENCES = CodeSpec(shape=(5,), depth=2, codebook_size=4, code_dim=4)


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


def new_task(model: Any, examples: Any, quantizer: Any) -> GeneratorTask:
    loss, sampling = GeneratorLossConfig(), SamplingConfig()
    return GeneratorTask(model, loss, examples, examples, quantizer=quantizer, product=None, sampling=sampling)


@pytest.mark.parametrize("count", [1, 3, 20_000, (1 << 24) + 4])
def test_the_scale_is_taken_from_samples_of_all_the_data(count: int) -> None:
    """Of more than 2^24 samples, too, whose numbers float32 does not hold."""
    examples = _Many(count)
    model = build(ResGenConfig(width=16, num_layers=1, num_heads=2, mlp_width=16, condition_width=16), SPEC)
    quantizer = make_quantizer(QuantizerConfig(depth=SPEC.depth, codebook_size=SPEC.codebook_size), SPEC.code_dim)
    new_task(model, examples, quantizer)
    rows = examples.looked_at
    assert len(rows) == min(count, 16384)
    assert int(rows.min()) == 0 and int(rows.max()) == count - 1
    assert (rows.diff() > 0).all()


def test_a_trained_model_keeps_its_scale() -> None:
    model = build(ResGenConfig(width=16, num_layers=1, num_heads=2, mlp_width=16, condition_width=16), SPEC)
    quantizer = make_quantizer(QuantizerConfig(depth=SPEC.depth, codebook_size=SPEC.codebook_size), SPEC.code_dim)
    new_task(model, _Many(8), quantizer)
    known = {name: value.clone() for name, value in model.named_buffers()}
    new_task(model, _Many(3), quantizer)  # other data, whose sums have another scale
    assert all(torch.equal(value, known[name]) for name, value in model.named_buffers())


class _Second:
    """The second of two processes, whose sums are what the first one contributes: 7."""

    rank, world_size = 1, 2

    def sum(self, value: Tensor) -> Tensor:
        assert not value.any(), "this process contributes nothing"
        return value + 7

    max = sum


def test_processes_start_from_the_first_one_s_weights() -> None:
    model = build(ResGenConfig(width=16, num_layers=1, num_heads=2, mlp_width=16, condition_width=16), SPEC)
    quantizer = make_quantizer(QuantizerConfig(depth=SPEC.depth, codebook_size=SPEC.codebook_size), SPEC.code_dim)
    task = new_task(model, _Many(64), quantizer)
    task.before_start(generator("start"), _Second())
    assert all((value == 7).all() for value in (*model.parameters(), *model.buffers()))


class _Utterances:
    """Sequences of five positions, the first of which is the prompt, with a feature for each position."""

    def __len__(self) -> int:
        return 64

    def codes(self, indices: Tensor) -> Tensor:
        return (indices[:, None, None] % 4).expand(-1, 5, 2)

    def draw(self, indices: Tensor, stream: torch.Generator) -> tuple[Tensor, Tensor]:
        return indices, (torch.arange(5) > 0).expand(len(indices), -1)

    def batch(self, samples: Tensor) -> Batch:
        count = len(samples)
        sequence = SequenceCondition.of([5] * count, [1] * count, [torch.ones(5, 3)] * count)
        return self.codes(samples), torch.zeros(count, dtype=torch.int64), sequence


@pytest.mark.parametrize("parts", [[slice(0, 64)], [slice(0, 32), slice(32, 64)]])
def test_some_samples_go_without_features_and_prompt(parts: list[slice]) -> None:
    """For the unconditional branch of guidance: a share `class_dropout` of them, however a batch is divided."""
    shape = {"width": 16, "num_layers": 1, "num_heads": 2, "mlp_width": 16, "condition_width": 16}
    model = build(ResGenConfig(feature_width=3, class_dropout=0.5, **shape), SEQUENCES)
    quantizer = make_quantizer(QuantizerConfig(depth=2, codebook_size=4), 4)
    task = new_task(model, _Utterances(), quantizer)
    seen: list[SequenceCondition] = []
    task._loss = lambda batch, *_: seen.append(batch[2]) or (torch.zeros(()), {})  # type: ignore[func-returns-value]
    for _, compute in task.losses(torch.arange(64), parts, 0, generator("step")):
        compute()
    keep = torch.cat([sequence.keep for sequence in seen if sequence.keep is not None])
    assert torch.equal(keep[:, None], draw_kept(64, 1, 0.5, generator("step")))
    assert 20 < int(keep.sum()) < 44
    attended = torch.cat([sequence.attended for sequence in seen])
    assert torch.equal(attended[:, 0], keep) and attended[:, 1:].all()
