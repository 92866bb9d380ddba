"""AR-ResGen: what it sees, its cache, its sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from resgen.errors import ConfigError
from resgen.kinds.presets import AR_RESGEN, RESGEN
from resgen.models import resgen
from resgen.models.ar_resgen import ARResGen, ARResGenConfig
from resgen.ops.blocks import walk_levels
from resgen.types import CodeSpec, ProposalNoise

SPECS = {
    "grid": CodeSpec(depth=4, codebook_size=9, code_dim=6, shape=(3, 2)),
    "sequence": CodeSpec(depth=3, codebook_size=5, code_dim=4, shape=(7,)),
    "one code": CodeSpec(depth=1, codebook_size=3, code_dim=2, shape=(1, 1)),
}


def ar_resgen(spec: CodeSpec, **changes) -> ARResGen:
    torch.manual_seed(0)
    config = ARResGenConfig(
        width=16,
        num_layers=2,
        num_heads=2,
        mlp_width=32,
        condition_width=16,
        head_layers=2,
        head_width=24,
        num_components=6,
        num_classes=3,
        **changes,
    )
    model = ARResGen(config, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    books = torch.randn(spec.depth, spec.codebook_size, spec.code_dim)
    codes = torch.randint(spec.codebook_size, (40, spec.num_positions, spec.depth))
    model.set_codebooks(books, torch.ones(spec.depth), codes)
    return model.eval().requires_grad_(False)


@pytest.fixture(params=SPECS)
def model(request: pytest.FixtureRequest) -> ARResGen:
    return ar_resgen(SPECS[request.param])


def batch(spec: CodeSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(2)
    codes = torch.randint(spec.codebook_size, (4, spec.num_positions, spec.depth), generator=stream)
    visible = torch.randint(spec.depth + 1, codes.shape[:2], generator=stream)
    return codes, visible, torch.tensor([0, 1, 2, 3])


def decode(model: ARResGen, codes: torch.Tensor, visible: torch.Tensor, class_ids, scale: float):
    """Inputs of the head at all positions, by a decoder that is fed the given codes."""
    decoder = model.decoder(class_ids)
    decoder.begin(scale > 0)
    hidden = []
    for position in range(codes.shape[1]):
        decoder.next_position(codes[:, max(position - 1, 0) : position])
        decoder.predict(codes[:, position], torch.zeros_like(visible[:, position]), scale)
        hidden.append(decoder.predict(codes[:, position], visible[:, position], scale).hidden)
    return torch.stack(hidden, 1)


def test_decoding_gives_the_hidden_states_of_the_whole(model: ARResGen) -> None:
    codes, visible, class_ids = batch(model.spec)
    hidden = model(codes, visible, class_ids)
    assert hidden.shape == (*visible.shape, 16)
    assert torch.allclose(decode(model, codes, visible, class_ids, 0.0), hidden, atol=1e-4)
    guided = hidden + 1.5 * (hidden - model(codes, visible, torch.full_like(class_ids, 3)))
    assert torch.allclose(decode(model, codes, visible, class_ids, 1.5), guided, atol=1e-4)
    assert not torch.allclose(hidden[:3], guided[:3], atol=1e-2)


def test_what_a_position_sees() -> None:
    """All levels of earlier positions, whatever is visible of them; its own visible levels; nothing else."""
    model = ar_resgen(SPECS["grid"])
    codes, _, class_ids = batch(model.spec)
    visible = torch.tensor([1, 0, 4, 2, 3, 2]).expand(4, 6)
    hidden = model(codes, visible, class_ids)
    for position in range(6):
        for level in range(4):
            other = codes.clone()
            other[:, position, level] = (other[:, position, level] + 1) % model.spec.codebook_size
            changed = (model(other, visible, class_ids) - hidden).abs().amax((0, 2)) > 1e-6
            assert not changed[:position].any() and changed[position + 1 :].all()
            assert changed[position] == (level < visible[0, position]), "masked levels are not seen"


def test_how_much_is_visible_is_seen_at_the_position_only() -> None:
    model = ar_resgen(SPECS["grid"])
    model.codebooks.zero_()
    codes, visible, class_ids = batch(model.spec)
    hidden = model(codes, visible, class_ids)
    visible[:, 2] = (visible[:, 2] + 1) % 5
    changed = (model(codes, visible, class_ids) - hidden).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False, False]


def test_the_class_is_seen_everywhere(model: ARResGen) -> None:
    codes, visible, class_ids = batch(model.spec)
    changed = (model(codes, visible, class_ids) - model(codes, visible, class_ids.flip(0))).abs().amax((0, 2))
    assert (changed > 1e-4).all()


def test_every_parameter_before_the_head_learns() -> None:
    model = ar_resgen(SPECS["grid"]).requires_grad_()
    codes, visible, class_ids = batch(model.spec)
    visible = torch.arange(24).view(4, 6) % 5
    model(codes, visible, class_ids).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("head."):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("rank", [None, 2])
def test_proposals_at_the_rows_asked_for(rank: int | None) -> None:
    model = ar_resgen(SPECS["grid"], mean_rank=rank)
    codes, visible, class_ids = batch(model.spec)
    decoder = model.decoder(class_ids)
    decoder.begin(False)
    decoder.next_position(codes[:, :3])
    distribution = decoder.predict(codes[:, 3], visible[:, 3], 0.0)
    noise = ProposalNoise(torch.rand(4, 1), torch.randn(4, 6))

    def draw(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        start = visible[rows, 3]
        walk = walk_levels(start, torch.full_like(start, model.spec.depth))
        some = ProposalNoise(noise.uniform[rows], noise.normal[rows])
        return distribution.propose(torch.tensor(rows), some, walk, top_p=0.9, temperature=1.0)

    drawn, scores = draw([0, 1, 2, 3])
    assert drawn.shape == scores.shape == (4, model.spec.depth) and scores.isfinite().all()
    some, some_scores = draw([3, 1])
    assert torch.equal(some, drawn[[3, 1]]) and torch.allclose(some_scores, scores[[3, 1]], rtol=1e-3, atol=1e-4)


def test_bfloat16_is_near() -> None:
    model = ar_resgen(SPECS["grid"])
    codes, visible, class_ids = batch(model.spec)
    expected = model(codes, visible, class_ids)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    for hidden in (
        model(codes, visible, class_ids),
        decode(model, codes, visible, class_ids, 0.0),
    ):
        assert (hidden - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("name", AR_RESGEN)
def test_sizes(name: str) -> None:
    """The paper's 625M within 3 %, and the others within 10 % of ResGen's."""
    spec = CodeSpec(depth=16, codebook_size=1024, code_dim=64, shape=(8, 8))
    with torch.device("meta"):
        ours = ARResGen(replace(AR_RESGEN[name], num_classes=1000), spec)
        other = resgen.ResGen(replace(RESGEN[name], num_classes=1000), spec)
    count, target = (sum(p.numel() for p in model.parameters()) for model in (ours, other))
    if name == "xl":
        assert abs(count / 625e6 - 1) < 0.03
    else:
        assert abs(count / target - 1) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_layers": 0}, "head_layers=0 must be at least 1"),
        ({"head_width": 0}, "head_width=0 must be at least 1"),
        ({"width": 10, "num_heads": 4}, "width=10 must be a multiple of num_heads=4"),
        ({"mean_rank": 0}, "mean_rank=0"),
        ({"num_classes": -1}, "num_classes=-1"),
        ({"class_dropout": 1.0}, "class_dropout=1.0"),
    ],
)
def test_bad_settings(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ARResGenConfig(**changes)
