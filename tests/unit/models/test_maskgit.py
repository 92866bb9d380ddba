"""MaskGIT, depth by depth: what it looks at, what it multiplies, how large it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from resgen.errors import ConfigError
from resgen.kinds.maskgit import MASKGIT as MASKGIT_KIND
from resgen.kinds.maskgit import draw_level
from resgen.kinds.objective import VALIDATION_PROGRESS, GeneratorLossConfig
from resgen.kinds.presets import MASKGIT, RESGEN
from resgen.models import resgen
from resgen.models.level_head import LevelHead
from resgen.models.maskgit import MaskGIT, MaskGITConfig
from resgen.types import CodeSpec

SPECS = {
    "grid": CodeSpec(depth=4, codebook_size=9, code_dim=6, shape=(3, 2)),
    "sequence": CodeSpec(depth=3, codebook_size=5, code_dim=4, shape=(7,)),
    "one position": CodeSpec(depth=1, codebook_size=3, code_dim=2, shape=(1, 1)),
}
PAPER = CodeSpec(depth=16, codebook_size=1024, code_dim=64, shape=(8, 8))


def config(**changes) -> MaskGITConfig:
    return MaskGITConfig(
        **({"width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 32, "condition_width": 16} | changes)
    )


def tiny(spec: CodeSpec, num_classes: int = 3) -> MaskGIT:
    torch.manual_seed(0)
    model = MaskGIT(config(num_classes=num_classes), spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    books = torch.randn(spec.depth, spec.codebook_size, spec.code_dim)
    codes = torch.randint(spec.codebook_size, (40, spec.num_positions, spec.depth))
    model.set_codebooks(books, torch.ones(spec.depth), codes)
    return model.eval()


def batch(spec: CodeSpec, size: int = 5):
    stream = torch.Generator().manual_seed(3)
    codes = torch.randint(spec.codebook_size, (size, spec.num_positions, spec.depth), generator=stream)
    level, progress = torch.randint(spec.depth, (size,), generator=stream), torch.rand(size, generator=stream).double()
    targets = torch.ones(size, spec.num_positions, dtype=torch.bool)
    visible = draw_level(targets, level, spec.depth, "cosine", progress, stream)
    return codes, visible, level, torch.arange(size) % 3


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> CodeSpec:
    return SPECS[request.param]


def test_masked_codes_are_never_looked_at(spec: CodeSpec) -> None:
    model = tiny(spec)
    codes, visible, level, class_ids = batch(spec)
    masked = torch.arange(spec.depth) >= visible[..., None]
    other = torch.where(masked, (codes + 1) % spec.codebook_size, codes)
    logits = model(codes, visible, level, class_ids)
    assert logits.shape == (5, spec.num_positions, spec.codebook_size) and logits.dtype == torch.float32
    assert torch.equal(logits, model(other, visible, level, class_ids))
    predict = model.predictor(class_ids)
    assert torch.equal(predict(codes, visible, 0, 1.5), predict(other, visible, 0, 1.5))


def test_visible_codes_class_level_and_state_matter() -> None:
    spec = SPECS["grid"]
    model = tiny(spec)
    codes, _, _, class_ids = batch(spec)
    level, visible = torch.full((5,), 2), torch.full((5, 6), 2)
    visible[:, 0] = 3
    logits = model(codes, visible, level, class_ids)
    changed = codes.clone()
    changed[:, 0, 2] = (codes[:, 0, 2] + 1) % spec.codebook_size
    for inputs in (
        (changed, visible, level, class_ids),
        (codes, visible, level, (class_ids + 1) % 3),
        (codes, visible.clamp(max=2), level, class_ids),
    ):
        assert not torch.isclose(model(*inputs), logits, atol=1e-4).all(-1).any()
    with torch.no_grad():
        model.level_embedding.weight[2] += 1.0
    assert not torch.isclose(model(codes, visible, level, class_ids), logits, atol=1e-4).all(-1).any()


def test_each_sample_gets_its_own_levels_logits(spec: CodeSpec) -> None:
    """Mixed levels in one batch, as in training, against one level after the other, as in sampling."""
    model = tiny(spec)
    codes, visible, level, class_ids = batch(spec)
    logits = model(codes, visible, level, class_ids)
    predict = model.predictor(class_ids)
    for row, at in enumerate(level.tolist()):
        assert torch.allclose(predict(codes, visible, at, 0.0)[row], logits[row], atol=1e-5)


def test_head_gradients_reach_only_the_levels_at_hand() -> None:
    torch.manual_seed(0)
    head = LevelHead(width=4, depth=3, codebook_size=5)
    hidden, level = torch.randn(3, 2, 4), torch.tensor([2, 0, 2])
    logits = head(hidden, level)
    expected = torch.einsum("blo,bvo->blv", hidden, head.weight[level]) + head.bias[level][:, None]
    assert torch.allclose(logits, expected, atol=1e-6)
    probe = torch.randn(logits.shape)
    gradients = [torch.autograd.grad((out * probe).sum(), head.parameters()) for out in (logits, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6) and (ours[1] == 0).all() and ours[0].any()


@pytest.mark.parametrize("scale", [0.7, 2.0])
def test_guidance_extrapolates_the_heads_input(spec: CodeSpec, scale: float) -> None:
    model = tiny(spec)
    codes, visible, level, class_ids = batch(spec)
    level = level * 0 + spec.depth - 1
    null = torch.full_like(class_ids, model.condition.null_id)
    conditional, unconditional = (model(codes, visible, level, ids) for ids in (class_ids, null))
    guided = model.predictor(class_ids)(codes, visible, spec.depth - 1, scale)
    # The head is linear, so logits are extrapolated alike.
    assert torch.allclose(guided, conditional + scale * (conditional - unconditional), atol=1e-4)


def test_guidance_runs_one_batch_and_none_where_it_is_off() -> None:
    spec = SPECS["grid"]
    model = tiny(spec)
    codes, visible, _, class_ids = batch(spec)
    rows, conditions = [], []
    model.transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    model.modulation.register_forward_pre_hook(lambda _, inputs: conditions.append(len(inputs[0])))
    predict = model.predictor(class_ids)
    for level, scale in ((0, 0.0), (0, 1.0), (1, 2.0), (1, 0.0)):
        predict(codes, visible, level, scale)
    assert rows == [5, 10, 10, 5]
    assert conditions == [6, 6], "once per level: five classes and no class"


def test_training_states_mask_one_level_over_positions() -> None:
    stream = torch.Generator().manual_seed(0)
    level, progress = torch.randint(4, (4000,), generator=stream), torch.rand(4000, generator=stream).double()
    visible = draw_level(torch.ones(4000, 16, dtype=torch.bool), level, 4, "cosine", progress, stream)
    above = visible - level[:, None]
    assert above.min() == 0 and above.max() == 1
    masked = (above == 0).sum(1)
    assert masked.min() == 1 and masked.max() == 16, "always something to predict"
    # The mean of ceil(cos(pi r / 2) 16): the integral 2/pi plus about half a position.
    assert abs(float(masked.float().mean()) - (16 * 2 / torch.pi + 0.5)) < 0.3
    assert torch.allclose((above == 0).float().mean(0), masked.float().mean() / 16, atol=0.04), "no favoured position"


def test_every_parameter_learns() -> None:
    spec = SPECS["grid"]
    model = tiny(spec)
    codes, visible, _, class_ids = batch(spec)
    model(codes, visible, torch.tensor([0, 1, 2, 3, 0]), class_ids).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_saved_state_is_the_model(spec: CodeSpec) -> None:
    model = tiny(spec)
    other = MaskGIT(model.config, spec)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(*batch(spec)), other(*batch(spec)))


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MASKGIT)
def test_presets_are_as_large_as_resgens(name: str) -> None:
    with torch.device("meta"):
        ours = parameters(MaskGIT(replace(MASKGIT[name], num_classes=1000), PAPER))
        reference = parameters(resgen.ResGen(replace(RESGEN[name], num_classes=1000), PAPER))
    assert abs(ours / reference - 1) < 0.1
    if name == "xl":
        assert abs(ours / 580e6 - 1) < 0.03
        assert MASKGIT[name] == MaskGITConfig(), "the defaults"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width=0 must be at least 1"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"width": 10, "num_heads": 4}, "width=10 must be a multiple of num_heads=4"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"class_dropout": 1.0}, "class_dropout=1.0"),
    ],
)
def test_bad_shapes_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_likelihoods_by_level_and_by_progress_are_of_the_same_positions() -> None:
    """With every code equally likely both are log V everywhere."""
    model = tiny(SPECS["grid"])
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    codes = torch.randint(9, (8, 6, 4), generator=torch.Generator().manual_seed(1))
    metrics = MASKGIT_KIND.objective(model, GeneratorLossConfig()).validate([(codes, torch.zeros(8).long(), None)])
    assert len(metrics) == len(VALIDATION_PROGRESS) + 4 + 1
    assert metrics == pytest.approx(dict.fromkeys(metrics, math.log(9)), rel=1e-5)
