"""What every kind of generator keeps to on sequences of different lengths, with features, prompts and padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kind_parts import matched_config
from resgen.errors import ConfigError
from resgen.kinds import KINDS, GeneratorLossConfig, build, get_kind, make_objective, sample
from resgen.models.base import CodeModel
from resgen.models.maskgit import MaskGIT
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.samplers.records import StepCallback, StepRecord
from resgen.types import CodeSpec, SequenceCondition

SPEC = CodeSpec(depth=4, codebook_size=9, code_dim=6, shape=(12,))
BASE = ResGenConfig(
    width=16,
    num_layers=3,
    num_heads=2,
    mlp_width=32,
    condition_width=16,
    num_components=6,
    head="residual",
    feature_width=5,
    feature_stride=2,
)
LENGTHS, PROMPTS = [12, 7, 3, 9], [4, 0, 1, 3]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def make(kind: str, noise: float = 0.3) -> CodeModel:
    torch.manual_seed(0)
    model = build(matched_config(BASE, SPEC, kind), SPEC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    codes = torch.randint(SPEC.codebook_size, (40, 12, SPEC.depth))
    model.set_codebooks(torch.randn(SPEC.depth, SPEC.codebook_size, SPEC.code_dim), torch.ones(SPEC.depth), codes)
    return model.eval()


def batch(rows: list[int], seed: int = 0) -> tuple[torch.Tensor, SequenceCondition]:
    """Codes and conditions of some of four sequences, padded to the longest of them."""
    length = max(LENGTHS[row] for row in rows)
    codes = torch.zeros(len(rows), length, 4, dtype=torch.int64)
    features = torch.zeros(len(rows), 2 * length, 5)
    for place, row in enumerate(rows):
        stream = torch.Generator().manual_seed(100 * seed + row)
        codes[place, : LENGTHS[row]] = torch.randint(9, (LENGTHS[row], 4), generator=stream)
        features[place, : 2 * LENGTHS[row]] = torch.randn(2 * LENGTHS[row], 5, generator=stream)
    at = torch.arange(length)
    valid = at < torch.tensor([LENGTHS[row] for row in rows])[:, None]
    prompt = at < torch.tensor([PROMPTS[row] for row in rows])[:, None]
    return codes, SequenceCondition(valid=valid, prompt=prompt, features=features)


def draw(
    model: CodeModel,
    kind: str,
    rows: list[int],
    guidance_scale: float,
    callback: StepCallback | None = None,
    **changes,
) -> torch.Tensor:
    codes, sequence = batch(rows)
    sequence = dataclasses.replace(sequence, **changes)
    sampling = get_kind(kind).sampling(guidance_scale=guidance_scale, guidance_first=0.0)
    if hasattr(sampling, "num_steps"):
        sampling = dataclasses.replace(sampling, num_steps=2 if kind == "ar_resgen" else 5)
    visible = torch.where(sequence.targets, 0, 4)
    ids = torch.zeros(len(rows), dtype=torch.int64)
    given = {"sampling": sampling, "start": (codes, visible), "sequence": sequence, "callback": callback}
    return sample(model, ids, seed=3, indices=rows, **given).codes


@pytest.mark.parametrize("guidance_scale", [0.0, 1.5])
def test_padding_and_batching_change_nothing(kind: str, guidance_scale: float) -> None:
    model = make(kind)
    together = draw(model, kind, [0, 1, 2, 3], guidance_scale)
    for row in range(4):
        alone = draw(model, kind, [row], guidance_scale)
        assert torch.equal(alone[0], together[row, : LENGTHS[row]]), row


def test_records_count_real_tokens_and_the_passes_that_were_made(kind: str) -> None:
    records: list[StepRecord] = []
    draw(make(kind), kind, [1, 2], 1.5, lambda record, *_: records.append(record))
    assert records[-1].visible_tokens == SPEC.depth * (LENGTHS[1] + LENGTHS[2])
    if get_kind(kind).ordered_levels is None:  # both branches go through all positions, whatever the weight
        assert {record.passes for record in records} == {2} and records[0].guidance_scale == 0.0


def test_a_sample_with_nothing_to_predict_adds_nothing_to_the_loss(kind: str) -> None:
    codes, sequence = batch([1, 3])
    alone, condition = batch([1])
    both = torch.tensor([False, True])[:, None]
    sequence = dataclasses.replace(sequence, prompt=sequence.valid & both | sequence.prompt, keep=~both[:, 0])
    losses = []
    for data, given in ((codes, sequence), (alone, condition)):
        model = make(kind)
        objective = make_objective(model, GeneratorLossConfig())
        visible = objective.draw(given.targets, torch.Generator().manual_seed(0))
        visible[:1, : LENGTHS[1]] = torch.where(given.targets[:1, : LENGTHS[1]], 1, SPEC.depth)
        loss, _ = objective.loss((data, torch.zeros(len(data), dtype=torch.int64), given), visible)
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_prompt_comes_back_as_it_was(kind: str) -> None:
    codes, sequence = batch([0, 1, 2, 3])
    result = draw(make(kind), kind, [0, 1, 2, 3], 1.5)
    kept = sequence.prompt | ~sequence.valid
    assert torch.equal(result[kept], codes[kept]) and not torch.equal(result[~kept], codes[~kept])


def test_features_are_heard(kind: str) -> None:
    model = make(kind)
    _, sequence = batch([0, 1])
    plain = draw(model, kind, [0, 1], 0.0)
    assert not torch.equal(plain, draw(model, kind, [0, 1], 0.0, features=sequence.features + 1))


def loss_of(kind: str, codes: torch.Tensor, sequence: SequenceCondition) -> float:
    objective = make_objective(make(kind), GeneratorLossConfig(data_start=False))
    stream = torch.Generator().manual_seed(5)
    visible = objective.draw(sequence.targets, stream)
    class_ids = torch.zeros(len(codes), dtype=torch.int64)
    return float(objective.loss((codes, class_ids, sequence), visible)[0].detach())


def test_the_loss_does_not_know_the_padding_but_knows_what_is_wanted(kind: str) -> None:
    codes, sequence = batch([0, 1, 2, 3])
    reference = loss_of(kind, codes, sequence)
    changed = torch.where(sequence.valid[..., None], codes, 8)
    assert loss_of(kind, changed, sequence) == pytest.approx(reference, abs=1e-6)
    features = torch.where(sequence.valid.repeat_interleave(2, 1)[..., None], sequence.features, 50.0)
    assert loss_of(kind, codes, dataclasses.replace(sequence, features=features)) == pytest.approx(reference, abs=1e-6)
    expected = torch.where(sequence.targets[..., None], (codes + 1) % 9, codes)
    assert abs(loss_of(kind, expected, sequence) - reference) > 1e-5
    masked = torch.where(sequence.prompt[..., None], (codes + 1) % 9, codes)
    assert abs(loss_of(kind, masked, sequence) - reference) > 1e-5, "the prompt is seen"


def test_samples_that_are_not_kept_see_neither_features_nor_prompt(kind: str) -> None:
    codes, sequence = batch([0, 3])
    without = dataclasses.replace(sequence, keep=torch.tensor([False, False]))
    reference = loss_of(kind, codes, without)
    other = dataclasses.replace(without, features=without.features + 1)
    assert loss_of(kind, codes, other) == pytest.approx(reference, abs=1e-6)
    if get_kind(kind).name in ("resgen", "residual", "direct", "maskgit"):  # causal kinds always see what came before
        masked = torch.where(sequence.prompt[..., None], (codes + 1) % 9, codes)
        assert loss_of(kind, masked, without) == pytest.approx(reference, abs=1e-6)


def test_validation_counts_wanted_positions_only(kind: str) -> None:
    model = make(kind)
    objective = make_objective(model, GeneratorLossConfig(data_start=False))
    ids = torch.zeros(4, dtype=torch.int64)
    codes, sequence = batch([0, 1, 2, 3])
    with torch.no_grad():
        first = objective.validate([(codes, ids, sequence)])
        padded = objective.validate([(torch.where(sequence.valid[..., None], codes, 8), ids, sequence)])
    assert first["val_loss"] == pytest.approx(padded["val_loss"], abs=1e-6)
    assert all(value == value and abs(value) < 1e4 for value in first.values())


def test_a_prompt_needs_its_codes_and_a_model_features(kind: str) -> None:
    _, sequence = batch([0])
    ids = torch.zeros(1, dtype=torch.int64)
    sampling = get_kind(kind).sampling(guidance_scale=0.0)
    with pytest.raises(ConfigError, match="prompt's codes"):
        sample(make(kind), ids, seed=0, indices=[0], sampling=sampling, sequence=sequence)
    torch.manual_seed(0)
    plain = build(matched_config(dataclasses.replace(BASE, feature_width=0), SPEC, kind), SPEC).eval()
    nothing = dataclasses.replace(sequence, prompt=torch.zeros_like(sequence.prompt))
    if hasattr(sampling, "num_steps"):
        sampling = dataclasses.replace(sampling, num_steps=5)
    with pytest.raises(ConfigError, match="feature_width=0, but features are given"):
        sample(plain, ids, seed=0, indices=[0], sampling=sampling, sequence=nothing)
    wrong = dataclasses.replace(nothing, features=nothing.features[:, 1:])
    with pytest.raises(ConfigError, match="features of shape"):
        sample(make(kind), ids, seed=0, indices=[0], sampling=sampling, sequence=wrong)


def test_a_summary_of_the_prompt_reaches_the_whole_sequence() -> None:
    """With attention shut, only the summary can tell of the prompt; without a kept prompt there is none."""
    torch.manual_seed(0)
    model = build(dataclasses.replace(BASE, prompt_summary=True), SPEC)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
            if "attention" in name:
                parameter.zero_()
    codes, sequence = batch([0, 3])
    model.set_codebooks(torch.randn(SPEC.depth, SPEC.codebook_size, SPEC.code_dim), torch.ones(SPEC.depth), codes)
    model.eval()
    ids, visible = torch.zeros(2, dtype=torch.int64), torch.where(sequence.targets, 0, 4)
    other = torch.where(sequence.prompt[..., None], (codes + 1) % 9, codes)
    first, second = (model(start, visible, ids, sequence)[sequence.targets] for start in (codes, other))
    assert not torch.allclose(first, second, atol=1e-3)
    dropped = dataclasses.replace(sequence, keep=torch.tensor([False, False]))
    first, second = (model(start, visible, ids, dropped)[sequence.targets] for start in (codes, other))
    assert torch.allclose(first, second, atol=1e-6)
    sampling = get_kind("resgen").sampling(guidance_scale=1.5, num_steps=5)
    together = sample(model, ids, seed=3, indices=[0, 3], sampling=sampling, start=(codes, visible), sequence=sequence)
    codes, sequence = batch([3])
    start = (codes, torch.where(sequence.targets, 0, 4))
    alone = sample(model, ids[:1], seed=3, indices=[3], sampling=sampling, start=start, sequence=sequence)
    assert torch.equal(alone.codes[0], together.codes[1, : LENGTHS[3]])


@pytest.mark.parametrize("kind", ["resgen", "residual", "direct", "maskgit", "valle"])
def test_a_prompt_looks_in_sampling_as_in_training(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks that see all positions at once see all levels of a prompt, whichever level they draw."""
    codes, sequence = batch([0, 3])
    seen: dict[str, set[tuple[int, ...]]] = {"training": set(), "sampling": set()}
    for when, act in (
        ("training", lambda: loss_of(kind, codes, sequence)),
        ("sampling", lambda: draw(make(kind), kind, [0, 3], 1.5)),
    ):
        for network in (ResGen, MaskGIT):
            embed = network.embed

            def watched(model, codes, visible, when=when, embed=embed):
                seen[when].add(tuple(visible[sequence.prompt].tolist()))
                return embed(model, codes, visible)

            monkeypatch.setattr(network, "embed", watched)
        act()
        monkeypatch.undo()
    assert seen["training"] == seen["sampling"] == {(SPEC.depth,) * int(sequence.prompt.sum())}
