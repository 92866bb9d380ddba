"""RQ-Transformer: what it sees, its caches, its sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resgen.errors import ConfigError
from resgen.kinds.presets import RESGEN, RQ_TRANSFORMER
from resgen.models import resgen
from resgen.models.rq_transformer import RQTransformer, RQTransformerConfig
from resgen.types import CodeSpec

SPECS = {
    "grid": CodeSpec(depth=4, codebook_size=9, code_dim=6, shape=(3, 2)),
    "sequence": CodeSpec(depth=3, codebook_size=5, code_dim=4, shape=(7,)),
    "one code": CodeSpec(depth=1, codebook_size=3, code_dim=2, shape=(1, 1)),
}


def rq_transformer(spec: CodeSpec) -> RQTransformer:
    torch.manual_seed(0)
    config = RQTransformerConfig(
        width=16, num_layers=2, num_heads=2, mlp_width=32, condition_width=16, depth_layers=2, num_classes=3
    )
    model = RQTransformer(config, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    books = torch.randn(spec.depth, spec.codebook_size, spec.code_dim)
    codes = torch.randint(spec.codebook_size, (40, spec.num_positions, spec.depth))
    model.set_codebooks(books, torch.ones(spec.depth), codes)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=SPECS)
def model(request: pytest.FixtureRequest) -> RQTransformer:
    return rq_transformer(SPECS[request.param])


def batch(spec: CodeSpec) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(2)
    shape = (4, spec.num_positions, spec.depth)
    return torch.randint(spec.codebook_size, shape, generator=stream), torch.tensor([0, 1, 2, 3])


def decode(model: RQTransformer, codes: torch.Tensor, class_ids: torch.Tensor, scale: float):
    """Logits of all codes by a decoder that is fed the given ones."""
    decoder = model.decoder(class_ids)
    decoder.begin(scale > 0)
    logits = []
    for position in range(codes.shape[1]):
        decoder.next_position(codes[:, max(position - 1, 0) : position])
        for level in range(codes.shape[2]):
            above = codes[:, position, level - 1] if level else None
            logits.append(decoder.next_level(above, scale))
    return torch.stack(logits, 1).unflatten(1, codes.shape[1:])


def test_decoding_gives_the_logits_of_the_whole(model: RQTransformer) -> None:
    codes, class_ids = batch(model.spec)
    logits = model(codes, class_ids)
    assert logits.shape == (*codes.shape, model.spec.codebook_size)
    assert torch.allclose(decode(model, codes, class_ids, 0.0), logits, atol=1e-4)
    null = model(codes, torch.full_like(class_ids, 3))
    guided = logits + 1.5 * (logits - null)
    assert torch.allclose(decode(model, codes, class_ids, 1.5), guided, atol=1e-4)
    assert not torch.allclose(logits[:3], guided[:3], atol=1e-2)


def test_gradients_take_the_plain_attention_to_the_same_numbers(model: RQTransformer) -> None:
    codes, class_ids = batch(model.spec)
    expected = model(codes, class_ids)
    assert torch.allclose(model.requires_grad_()(codes, class_ids), expected, atol=1e-5)


def test_several_positions_may_be_read_at_once() -> None:
    model = rq_transformer(SPECS["grid"])
    codes, class_ids = batch(model.spec)
    decoder = model.decoder(class_ids)
    decoder.begin(False)
    expected = model(codes, class_ids)
    decoder.next_position(codes[:, :2])
    assert torch.allclose(decoder.next_level(None, 0.0), expected[:, 2, 0], atol=1e-4)
    decoder.next_position(codes[:, 2:5])
    assert torch.allclose(decoder.next_level(None, 0.0), expected[:, 5, 0], atol=1e-4)
    with pytest.raises(ConfigError, match="begun without guidance"):
        decoder.next_level(codes[:, 5, 0], 1.0)


def test_no_code_is_seen_before_its_turn() -> None:
    model = rq_transformer(SPECS["grid"])
    codes, class_ids = batch(model.spec)
    logits = model(codes, class_ids).flatten(1, 2)
    depth, size = model.spec.depth, model.spec.codebook_size
    for token in range(codes[0].numel()):
        other = codes.clone().flatten(1)
        other[:, token] = (other[:, token] + 1) % size
        changed = (model(other.view_as(codes), class_ids).flatten(1, 2) - logits).abs().amax((0, 2)) > 1e-6
        assert not changed[: token + 1].any()
        rest = list(range(token + 1, len(changed)))
        assert all(changed[rest]), f"code {token} (level {token % depth}) is seen by all after it"


def test_the_class_is_seen_everywhere(model: RQTransformer) -> None:
    codes, class_ids = batch(model.spec)
    changed = (model(codes, class_ids) - model(codes, class_ids.flip(0))).abs().amax((0, 3))
    assert (changed > 1e-4).all()
    for parameter in model.modulation.parameters():
        parameter.zero_()
    changed = (model(codes, class_ids) - model(codes, class_ids.flip(0))).abs().amax((0, 3))
    assert (changed > 1e-6).all(), "through the start vector, too"


def test_every_parameter_learns() -> None:
    model = rq_transformer(SPECS["grid"]).requires_grad_()
    codes, class_ids = batch(model.spec)
    logits = model(codes, class_ids)
    torch.nn.functional.cross_entropy(logits.flatten(0, 2), codes.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_bfloat16_is_near() -> None:
    model = rq_transformer(SPECS["grid"])
    codes, class_ids = batch(model.spec)
    expected = model(codes, class_ids)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    assert (model(codes, class_ids) - expected).abs().max() < 0.2 * expected.abs().max()
    assert (decode(model, codes, class_ids, 0.0) - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("name", RQ_TRANSFORMER)
def test_sizes(name: str) -> None:
    """The paper's 626M within 3 %, and the others within 10 % of ResGen's."""
    spec = CodeSpec(depth=16, codebook_size=1024, code_dim=64, shape=(8, 8))
    with torch.device("meta"):
        ours = RQTransformer(replace(RQ_TRANSFORMER[name], num_classes=1000), spec)
        other = resgen.ResGen(replace(RESGEN[name], num_classes=1000), spec)
    count, target = (sum(p.numel() for p in model.parameters()) for model in (ours, other))
    if name == "xl":
        assert abs(count / 626e6 - 1) < 0.03
    else:
        assert abs(count / target - 1) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth_layers": 0}, "depth_layers=0 must be at least 1"),
        ({"width": 10, "num_heads": 4}, "width=10 must be a multiple of num_heads=4"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"class_dropout": 1.0}, "class_dropout=1.0"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RQTransformerConfig(**changes)
