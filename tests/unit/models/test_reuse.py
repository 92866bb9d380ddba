"""Keys and values of finished positions used again: exact where nothing is stale, and never for what still changes."""

from __future__ import annotations

import pytest
import torch

from resgen.errors import ConfigError
from resgen.models.bidirectional import left_over
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.samplers.unmasking import SamplingConfig, draw_noise, sample_codes
from resgen.types import CodeSpec, SequenceCondition

GRID = CodeSpec(depth=2, codebook_size=8, code_dim=6, shape=(4, 3))
LINE = CodeSpec(depth=2, codebook_size=8, code_dim=6, shape=(12,))


def model_of(num_layers: int, spec: CodeSpec = GRID, head: str = "mixture", feature_width: int = 0) -> ResGen:
    torch.manual_seed(0)
    config = ResGenConfig(
        width=16,
        num_layers=num_layers,
        num_heads=2,
        mlp_width=32,
        condition_width=16,
        num_components=5,
        num_classes=3,
        head=head,
        feature_width=feature_width,
    )
    model = ResGen(config, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    books = torch.randn(spec.depth, spec.codebook_size, spec.code_dim) * 0.5 ** torch.arange(spec.depth)[:, None, None]
    codes = torch.randint(spec.codebook_size, (64, spec.num_positions, spec.depth))
    model.set_codebooks(books, torch.full((spec.depth,), 0.04), codes)
    return model.eval().requires_grad_(False)


def draw(
    model: ResGen, reuse_steps: int, *, tokens: bool = False, sequence: SequenceCondition | None = None, **settings
) -> tuple[torch.Tensor, list[int]]:
    """Codes of two samples, and how many positions each evaluation computed."""
    rows, transform = [], model.transformer.forward

    def watched(x: torch.Tensor, *rest, **options):
        rows.append(x.shape[1])
        return transform(x, *rest, **options)

    given = {name: settings.pop(name) for name in ("codes", "visible") if name in settings}
    base = {
        "num_steps": 8,
        "mask_schedule": "linear",
        "unmasking": "random",
        "guidance_first": 1.0,
        "guidance_scale": 2.0,
    }
    config = SamplingConfig(**{**base, **settings}, reuse_steps=reuse_steps)
    lengths = None if sequence is None else sequence.lengths
    noise = draw_noise(0, range(2), config.num_steps, model.spec, tokens=tokens, lengths=lengths)
    predict = model.predictor(torch.tensor([0, 2]), sequence, reuse_steps=reuse_steps)
    model.transformer.forward = watched  # type: ignore[method-assign]
    try:
        codes = sample_codes(predict, model.codebooks, model.level_std, noise, config, **given).codes
    finally:
        model.transformer.forward = transform  # type: ignore[method-assign]
    return codes, rows


@pytest.mark.parametrize("spec", [GRID, LINE], ids=["grid", "sequence"])
@pytest.mark.parametrize("head", ["mixture", "residual", "tokens"])
@pytest.mark.parametrize(
    "interval", [{}, {"guidance_scale": 0.0}, {"guidance_start": 0.4, "guidance_end": 0.7}], ids=["on", "off", "part"]
)
def test_one_layer_is_exact(spec: CodeSpec, head: str, interval: dict[str, float]) -> None:
    """Keys and values of a single layer depend on their own position only, so they are never stale."""
    model = model_of(1, spec, head)
    plain, every = draw(model, 0, tokens=head != "mixture", **interval)
    for steps in (1, 3, 50):
        codes, rows = draw(model, steps, tokens=head != "mixture", **interval)
        assert torch.equal(codes, plain)
        assert len(rows) == len(every) and min(rows) < max(rows) == 12


def test_what_is_stale_and_what_is_not() -> None:
    model = model_of(3)
    codes = torch.randint(8, (2, 12, 2), generator=torch.Generator().manual_seed(1))
    before = torch.zeros(2, 12, dtype=torch.int64)
    before[:, :6] = 2
    after = before.clone()
    after[:, 6:9] = 2
    evaluate = model.predictor(torch.tensor([0, 2]), reuse_steps=1).evaluate
    plain = model.predictor(torch.tensor([0, 2])).evaluate(codes, after, *modulations(model), 2.0)
    evaluate(codes, before, *modulations(model), 2.0)
    stale = evaluate(codes, after, *modulations(model), 2.0)
    fresh = evaluate(codes, after, *modulations(model), 2.0)
    assert not torch.allclose(stale[:, 6:], plain[:, 6:], atol=1e-3) and (stale[:, :6] == 0).all()
    assert torch.allclose(fresh, plain, atol=1e-5)


def test_all_are_computed_in_every_steps_plus_first_evaluation() -> None:
    given = {"codes": torch.zeros(2, 12, 2, dtype=torch.int64), "visible": torch.zeros(2, 12, dtype=torch.int64)}
    given["visible"][:, :5] = 2
    for steps in (1, 2, 3):
        _, rows = draw(model_of(2), steps, **given)
        assert len(rows) == 8 and rows[0] == 12
        assert [k for k, count in enumerate(rows) if count == 12] == list(range(0, 8, steps + 1))


@pytest.mark.parametrize("guidance_scale", [0.0, 2.0])
def test_given_codes_and_unequal_numbers_of_finished_positions(guidance_scale: float) -> None:
    codes = torch.randint(8, (2, 12, 2), generator=torch.Generator().manual_seed(1))
    visible = torch.zeros(2, 12, dtype=torch.int64)
    visible[0, :9], visible[1, 3:5] = 2, 2
    settings = {"codes": codes, "visible": visible, "guidance_scale": guidance_scale}
    model = model_of(1)
    plain = draw(model, 0, **settings)[0]
    found, rows = draw(model, 5, **settings)
    assert torch.equal(found, plain) and rows[1] == 10  # of the second sample
    assert torch.equal(found[0, :9], codes[0, :9])
    everything = {**settings, "visible": torch.stack([torch.full((12,), 2), visible[1]])}
    assert torch.equal(draw(model, 5, **everything)[0], draw(model, 0, **everything)[0])


def test_sequences_of_several_lengths_with_prompts_and_features() -> None:
    model = model_of(1, LINE, feature_width=4)
    features = [torch.randn(length, 4, generator=torch.Generator().manual_seed(length)) for length in (11, 7)]
    sequence = SequenceCondition.of([11, 7], [3, 0], features)
    codes = torch.randint(8, (2, 11, 2), generator=torch.Generator().manual_seed(1))
    visible = torch.where(sequence.wanted, 0, 2)
    settings = {"sequence": sequence, "codes": codes, "visible": visible}
    plain = draw(model, 0, **settings)[0]
    found, rows = draw(model, 3, **settings)
    assert torch.equal(found, plain) and rows[0] == 11 and rows[1] == 8


def test_two_layers_are_exact_while_nothing_changes() -> None:
    model = model_of(2)
    predict = model.predictor(torch.tensor([0, 2]), reuse_steps=1)
    codes = torch.randint(8, (2, 12, 2), generator=torch.Generator().manual_seed(1))
    visible = torch.zeros(2, 12, dtype=torch.int64)
    visible[:, ::2] = 2
    for weight in (2.0, 0.0):
        whole = predict.evaluate(codes, visible, *modulations(model), weight)
        again = predict.evaluate(codes, visible, *modulations(model), weight)
        assert torch.allclose(again[:, 1::2], whole[:, 1::2], atol=1e-5)
        assert (again[:, ::2] == 0).all() and (whole[:, ::2] != 0).any()
        predict.evaluate.reuse = type(predict.evaluate.reuse)(model, 1)


def modulations(model: ResGen) -> tuple[torch.Tensor, list[torch.Tensor]]:
    ids = torch.tensor([0, 2, model.condition.null_id])
    conditional, unconditional = model.modulation(model.condition(ids)).split([2, 1])
    return conditional, [unconditional]


def test_the_other_branch_is_computed_when_guidance_sets_in() -> None:
    codes = torch.zeros(2, 12, 2, dtype=torch.int64)
    visible = torch.zeros(2, 12, dtype=torch.int64)
    visible[:, 2:] = 2
    _, rows = draw(model_of(2), 50, codes=codes, visible=visible, num_steps=4, guidance_start=0.5)
    assert [count == 12 for count in rows] == [True, False, True, False]


def test_left_over() -> None:
    kept = torch.tensor([[True, False, True, False], [False, True, True, True], [True] * 4])
    assert left_over(kept).tolist() == [[1, 3], [0, 0], [0, 0]]
    assert left_over(torch.ones(2, 3, dtype=torch.bool)).tolist() == [[0], [0]]


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="reuse_steps=-1 must be at least 0"):
        SamplingConfig(reuse_steps=-1)


def test_all_are_computed_where_hardly_anything_would_be_saved() -> None:
    codes = torch.randint(8, (2, 12, 2), generator=torch.Generator().manual_seed(1))
    visible = torch.zeros(2, 12, dtype=torch.int64)
    for finished, computed in ((1, 12), (2, 10)):
        visible[:, :finished] = 2
        _, rows = draw(model_of(1), 5, codes=codes, visible=visible)
        assert rows[:2] == [12, computed]
