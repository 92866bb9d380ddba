"""The generator: what its outputs may depend on, its sizes, its scaled codebooks, guidance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resgen.errors import ConfigError
from resgen.kinds.presets import RESGEN
from resgen.losses.mixture import mixture_loss
from resgen.models.resgen import ResGen, ResGenConfig
from resgen.ops.blocks import walk_levels
from resgen.ops.residual import residual_encode
from resgen.samplers.unmasking import SamplingConfig
from resgen.types import CodeSpec, ProposalNoise, SequenceCondition

GRID = CodeSpec(depth=3, codebook_size=7, code_dim=4, shape=(2, 3))
SEQUENCE = CodeSpec(depth=3, codebook_size=7, code_dim=4, shape=(6,))


def config(**changes) -> ResGenConfig:
    values = {
        "width": 16,
        "num_layers": 2,
        "num_heads": 2,
        "mlp_width": 32,
        "condition_width": 24,
        "num_components": 5,
        "num_classes": 4,
    }
    return ResGenConfig(**(values | changes))


def make(spec: CodeSpec = GRID, **changes) -> ResGen:
    """A model whose zero-initialised gates are open, so that everything reaches the output."""
    torch.manual_seed(0)
    model = ResGen(config(**changes), spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.set_codebooks(
        0.01 * torch.randn(spec.depth, spec.codebook_size, spec.code_dim),
        torch.rand(spec.depth),
        torch.randint(spec.codebook_size, (50, spec.num_positions, spec.depth)),
    )
    return model


def batch(spec: CodeSpec, size: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(1)
    codes = torch.randint(spec.codebook_size, (size, spec.num_positions, spec.depth), generator=stream)
    visible = torch.randint(spec.depth + 1, (size, spec.num_positions), generator=stream)
    return codes, visible, torch.arange(size) % 4


SPECS = pytest.mark.parametrize("spec", [GRID, SEQUENCE], ids=["grid", "sequence"])


@SPECS
def test_masked_codes_never_matter_and_visible_ones_always_do(spec: CodeSpec) -> None:
    model = make(spec)
    codes, visible, class_ids = batch(spec)
    hidden = model(codes, visible, class_ids)
    masked = torch.arange(spec.depth) >= visible[..., None]
    assert torch.equal(model(torch.where(masked, (codes + 3) % 7, codes), visible, class_ids), hidden)
    for position in range(spec.num_positions):
        for level in range(spec.depth):
            changed = codes.clone()
            changed[:, position, level] = (changed[:, position, level] + 1) % 7
            moved = (model(changed, visible, class_ids) - hidden).abs().amax((1, 2)) > 1e-6
            assert torch.equal(moved, visible[:, position] > level)


@SPECS
def test_every_position_sees_every_other_and_where_it_is(spec: CodeSpec) -> None:
    model = make(spec)
    codes, visible, class_ids = batch(spec, 1)
    visible[:] = 1
    hidden = model(codes, visible, class_ids)
    changed = codes.clone()
    changed[0, 0, 0] = (changed[0, 0, 0] + 1) % 7
    assert ((model(changed, visible, class_ids) - hidden).abs().amax(2) > 1e-6).all()
    order = torch.tensor([1, 0, *range(2, spec.num_positions)])
    swapped = model(codes[:, order], visible, class_ids)[:, order]
    assert not torch.allclose(swapped, hidden, atol=1e-4), "positions matter"


def test_how_much_is_visible_matters_beyond_the_sum() -> None:
    """A visible embedding of zero is not the same as a masked one."""
    model = make()
    model.codebooks[2] = 0
    codes, _, class_ids = batch(GRID, 1)
    two, three = (model(codes, torch.full((1, 6), v), class_ids) for v in (2, 3))
    assert not torch.allclose(two, three, atol=1e-3)


@SPECS
def test_a_sample_does_not_depend_on_its_batch(spec: CodeSpec) -> None:
    model = make(spec)
    codes, visible, class_ids = batch(spec)
    together = model(codes, visible, class_ids)
    for row in range(5):
        alone = model(*(value[row : row + 1] for value in (codes, visible, class_ids)))
        assert torch.allclose(alone[0], together[row], atol=1e-5)
    assert not torch.allclose(together[0], model(codes, visible, (class_ids + 1) % 4)[0], atol=1e-3), "classes matter"


def test_padding_of_a_sequence_does_not_leak() -> None:
    model = make(SEQUENCE)
    codes, visible, class_ids = batch(SEQUENCE)
    visible[:] = 2
    valid = torch.arange(6) < torch.tensor([6, 5, 4, 2, 1])[:, None]
    sequence = SequenceCondition(valid=valid, prompt=torch.zeros_like(valid))
    hidden = model(codes, visible, class_ids, sequence)
    changed = torch.where(valid[..., None], codes, (codes + 2) % 7)
    assert torch.allclose(model(changed, visible, class_ids, sequence)[valid], hidden[valid], atol=1e-6)
    for row, length in enumerate([6, 5, 4, 2, 1]):
        part = slice(row, row + 1)
        short = model(codes[part, :length], visible[part, :length], class_ids[part])
        assert torch.allclose(short[0], hidden[row, :length], atol=1e-5)
    assert not torch.allclose(model(changed, visible, class_ids)[valid], hidden[valid], atol=1e-3), "the mask does it"


def test_rotary_positions_see_distances_only() -> None:
    """All else equal, a sequence within a longer one gives the same outputs wherever it begins."""
    model = make(SEQUENCE)
    codes, visible, class_ids = batch(SEQUENCE, 1)
    visible[:] = 2
    moved = codes.roll(2, 1)
    first = torch.arange(6) < 4
    there = (torch.arange(6) >= 2).unsqueeze(0)
    nothing = torch.zeros_like(there)
    begin = model(codes, visible, class_ids, SequenceCondition(valid=first.unsqueeze(0), prompt=nothing))[0, :4]
    later = model(moved, visible, class_ids, SequenceCondition(valid=there, prompt=nothing))[0, 2:]
    assert torch.allclose(begin, later, atol=1e-5)


def test_gradient_reaches_every_parameter() -> None:
    for rank in (None, 2):
        model = make(mean_rank=rank)
        codes, visible, class_ids = batch(GRID, 8)
        class_ids[-1] = model.condition.null_id
        class_ids[:5] = torch.arange(5)
        visible[0] = 0
        rows = (visible.flatten() < 3).nonzero().squeeze(1)
        hidden = model(codes, visible, class_ids).flatten(0, 1)[rows]
        target = model.target(codes, visible).flatten(0, 1)[rows]
        mixture_loss(model.head, hidden, target, visible.flatten()[rows], torch.ones(len(rows)), 0.01).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        assert (model.condition.embedding.weight.grad.abs().sum(1) > 0).all()
        assert (model.visible_embedding.weight.grad.abs().sum(1) > 0).all()


def test_gates_start_closed() -> None:
    """Untrained blocks are the identity (adaptive layer norm zero), and the output norm's scale starts at 1."""
    model = ResGen(config(), GRID)
    codes, visible, class_ids = batch(GRID)
    x = model.embed(codes, visible)
    expected = torch.nn.functional.layer_norm(x, (16,), eps=1e-6)
    assert torch.allclose(model(codes, visible, class_ids), expected, atol=1e-5)


# Codebooks.


def test_codebooks_are_scaled_to_unit_deviation() -> None:
    model = ResGen(config(), GRID)
    codebooks = 0.03 * torch.randn(3, 7, 4) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    variances = torch.tensor([0.4, 0.3, 0.1])
    codes = torch.randint(7, (500, 6, 3))
    model.set_codebooks(codebooks, variances, codes)
    assert model.target(codes, torch.zeros(500, 6, dtype=torch.int64)).std() == pytest.approx(1, rel=1e-4)
    scale = float(model.latent_scale)
    assert scale > 10
    assert torch.allclose(model.codebooks, codebooks * scale)
    assert torch.allclose(model.level_std, variances.sqrt() * scale)
    with pytest.raises(ConfigError, match=r"\(3, 8, 4\)"):
        model.set_codebooks(torch.zeros(3, 8, 4), variances, codes)


def test_targets_and_inputs_add_up() -> None:
    model = make()
    codes, visible, _ = batch(GRID)
    nothing, everything = torch.zeros_like(visible), torch.full_like(visible, 3)
    whole = model.target(codes, nothing)
    expected = sum(model.codebooks[d][codes[..., d]] for d in range(3))
    assert torch.allclose(whole, expected, atol=1e-6)
    assert (model.target(codes, everything) == 0).all()
    known = torch.zeros_like(whole)
    for d in range(3):
        known += model.codebooks[d][codes[..., d]] * (visible > d)[..., None]
    assert torch.allclose(known + model.target(codes, visible), whole, atol=1e-6)


def test_codebooks_are_saved_and_positions_are_not() -> None:
    model = make()
    names = set(model.state_dict())
    assert {"codebooks", "level_std", "latent_scale"} <= names and "positions" not in names
    other = ResGen(config(), GRID)
    other.load_state_dict(model.state_dict())
    codes, visible, class_ids = batch(GRID)
    assert torch.equal(other(codes, visible, class_ids), model(codes, visible, class_ids))


# Guidance.


def test_guidance_combines_two_passes() -> None:
    model = make()
    codes, visible, class_ids = batch(GRID)
    predictor = model.predictor(class_ids)
    conditional = model(codes, visible, class_ids).flatten(0, 1)
    unconditional = model(codes, visible, torch.full_like(class_ids, model.condition.null_id)).flatten(0, 1)
    assert torch.allclose(predictor(codes, visible, 0.0).hidden, conditional, atol=1e-5)
    for scale in (0.5, 2.0):
        expected = conditional + scale * (conditional - unconditional)
        assert torch.allclose(predictor(codes, visible, scale).hidden, expected, atol=1e-4)
    assert not torch.allclose(conditional, unconditional, atol=1e-2)


def asked(spec: CodeSpec) -> SequenceCondition:
    """Five samples with features, the second of them without a prompt."""
    stream = torch.Generator().manual_seed(2)
    features = [torch.randn(spec.num_positions, 3, generator=stream) for _ in range(5)]
    return SequenceCondition.of([spec.num_positions] * 5, [2, 0, 1, 3, 1], features)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_guidance_by_the_prompt_is_away_from_the_same_without_it(share: float) -> None:
    model = make(SEQUENCE, feature_width=3, prompt_summary=True)
    codes, visible, class_ids = batch(SEQUENCE)
    sequence = asked(SEQUENCE)
    visible = torch.where(sequence.targets, visible, SEQUENCE.depth)
    # What is not there, in place of what is not attended to.
    unseen = replace(sequence, valid=sequence.targets, prompt=torch.zeros_like(sequence.prompt))
    without = model(codes, visible, class_ids, unseen)
    null_ids = torch.full_like(class_ids, model.condition.null_id)
    nothing = model(codes, visible, null_ids, replace(sequence, keep=torch.zeros(5, dtype=torch.bool)))
    without[1] = nothing[1]
    conditional = model(codes, visible, class_ids, sequence)
    predictor = model.predictor(class_ids, sequence, prompt_guidance=share)
    expected = conditional + 2 * (conditional - (1 - share) * nothing - share * without)
    result = predictor(codes, visible, 2.0).hidden.view_as(expected)
    assert torch.allclose(result[sequence.targets], expected[sequence.targets], atol=1e-4)
    assert not torch.allclose(without[0], nothing[0], atol=1e-2)
    assert torch.allclose(predictor(codes, visible, 0.0).hidden.view_as(expected), conditional, atol=1e-5)


def test_guidance_by_the_prompt_runs_the_branches_that_it_needs() -> None:
    model = make(SEQUENCE, feature_width=3).requires_grad_(False)
    codes, visible, class_ids = batch(SEQUENCE)
    rows: list[int] = []
    model.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    for share, branches in ((0.0, 2), (0.5, 3), (1.0, 2)):
        model.predictor(class_ids, asked(SEQUENCE), prompt_guidance=share)(codes, visible, 1.5)
        assert rows.pop() == 5 * branches == 5 * SamplingConfig(prompt_guidance=share).passes(1.5)
    assert SamplingConfig(prompt_guidance=0.5).passes(0.0) == 1


def test_guidance_by_a_prompt_is_for_sequences() -> None:
    with pytest.raises(ConfigError, match="set it to 0"):
        make().predictor(torch.zeros(1, dtype=torch.int64), prompt_guidance=0.5)


def test_a_prediction_draws_from_the_head_at_the_rows_asked_for() -> None:
    model = make().requires_grad_(False)
    codes, visible, class_ids = batch(GRID)
    prediction = model.predictor(class_ids)(codes, visible, 0.0)
    rows = torch.tensor([3, 29, 0])
    noise, start = ProposalNoise(torch.rand(3, 1), torch.randn(3, 4)), visible.flatten()[rows]
    walk, settings = walk_levels(start, torch.full_like(start, GRID.depth)), {"top_p": 0.9, "temperature": 0.5}
    drawn, scores = prediction.propose(rows, noise, walk, **settings)
    hidden = model(codes, visible, class_ids).flatten(0, 1)[rows]
    latents = model.head.sample(hidden, start, noise, **settings)[0]
    expected, errors = residual_encode(latents, model.codebooks, start)
    assert torch.equal(drawn, expected)
    assert torch.allclose(scores, -errors / (2 * model.level_std.square()), rtol=1e-3, atol=1e-4)
    again, scores = prediction.propose(rows, noise, walk, by_component=True, **settings)
    first = torch.arange(GRID.depth) == start[:, None]
    log_weights = model.head.sample(hidden, start, noise, **settings)[1]
    assert torch.equal(again, drawn) and torch.equal(scores, first * log_weights[:, None])
    assert (log_weights < 0).all()
    half = walk_levels(start, (start + 1).clamp(max=GRID.depth))
    _, scores = prediction.propose(rows, noise, half, by_component=True, **settings)
    assert (scores[torch.arange(GRID.depth) > start[:, None]] == -torch.inf).all(), "where nothing was drawn"


# Conditions.


def test_a_model_without_classes_has_only_the_null_condition() -> None:
    model = make(num_classes=0)
    assert model.condition.null_id == 0 and model.condition.embedding.num_embeddings == 1
    codes, visible, _ = batch(GRID)
    predictor = model.predictor(torch.zeros(5, dtype=torch.int64))
    plain, guided = (predictor(codes, visible, w).hidden for w in (0.0, 3.0))
    assert torch.allclose(plain, guided, atol=1e-4)


# Sizes.


def count(model: ResGen) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("depth", [8, 16])
def test_the_paper_s_image_model_has_its_576_million_parameters(depth: int) -> None:
    import dataclasses

    spec = CodeSpec(depth=depth, codebook_size=1024, code_dim=64, shape=(8, 8))
    with torch.device("meta"):
        model = ResGen(dataclasses.replace(RESGEN["xl"], num_classes=1000), spec)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert count(model) == pytest.approx(576e6, rel=0.01)


def test_presets_grow() -> None:
    sizes = []
    with torch.device("meta"):
        for preset in RESGEN.values():
            sizes.append(count(ResGen(preset, GRID)))
    assert list(RESGEN) == ["tiny", "small", "base", "xl"]
    assert sizes == sorted(sizes) and sizes[-1] > 100 * sizes[0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"width": 0}, "width=0"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"width": 18, "num_heads": 4}, "width=18.*num_heads=4"),
        ({"num_components": 0}, "num_components=0"),
        ({"mean_rank": 0}, "mean_rank=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"class_dropout": 1.0}, "class_dropout=1.0"),
    ],
)
def test_settings_out_of_range(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**changes)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="rank=5"):
        ResGen(config(mean_rank=5), GRID)
    with pytest.raises(ConfigError, match="width=18"):
        ResGen(config(width=18), GRID)
    with pytest.raises(ConfigError, match="even for rotary"):
        ResGen(config(width=18), SEQUENCE)
