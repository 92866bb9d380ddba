"""What every generator keeps to: the sampler sees it as a `Predictor` over codes of any shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from resgen.models.resgen import ResGen, ResGenConfig
from resgen.ops.blocks import walk_levels
from resgen.samplers.unmasking import SamplingConfig, draw_noise, sample_codes
from resgen.types import CodeSpec, Predictor, ProposalNoise

SPECS = {
    "grid": CodeSpec(depth=4, codebook_size=9, code_dim=6, shape=(3, 2)),
    "sequence": CodeSpec(depth=3, codebook_size=5, code_dim=4, shape=(7,)),
    "one position": CodeSpec(depth=1, codebook_size=3, code_dim=2, shape=(1, 1)),
}


def resgen(spec: CodeSpec, **changes) -> ResGen:
    torch.manual_seed(0)
    config = ResGenConfig(
        width=16,
        num_layers=2,
        num_heads=2,
        mlp_width=32,
        condition_width=16,
        num_components=6,
        num_classes=3,
        **changes,
    )
    model = ResGen(config, spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    books = torch.randn(spec.depth, spec.codebook_size, spec.code_dim)
    codes = torch.randint(spec.codebook_size, (40, spec.num_positions, spec.depth))
    model.set_codebooks(books, torch.ones(spec.depth), codes)
    return model.eval().requires_grad_(False)


MODELS: dict[str, Callable[[CodeSpec], ResGen]] = {
    "full rank": resgen,
    "low rank": lambda spec: resgen(spec, mean_rank=2),
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> CodeSpec:
    return SPECS[request.param]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, spec: CodeSpec) -> ResGen:
    return MODELS[request.param](spec)


def draw(predictor: Predictor, codes: torch.Tensor, visible: torch.Tensor, rows: torch.Tensor, scale: float = 0.0):
    """Codes and scores."""
    stream = torch.Generator().manual_seed(4)
    positions, depth = visible.numel(), codes.shape[2]
    noise = ProposalNoise(torch.rand(positions, 1, generator=stream), torch.randn(positions, 8, generator=stream))
    noise = ProposalNoise(noise.uniform[rows], noise.normal[rows, : predictor.model.spec.code_dim])
    walk = walk_levels(visible.flatten()[rows], torch.full_like(rows, depth))
    return predictor(codes, visible, scale).propose(rows, noise, walk, top_p=0.9, temperature=1.0)


def states(spec: CodeSpec) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(2)
    codes = torch.randint(spec.codebook_size, (4, spec.num_positions, spec.depth), generator=stream)
    visible = torch.randint(spec.depth + 1, (4, spec.num_positions), generator=stream)
    return codes, visible, torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_proposals_at_the_rows_asked_for(model: ResGen, spec: CodeSpec, scale: float) -> None:
    codes, visible, class_ids = states(spec)
    predictor = model.predictor(class_ids)
    everything = torch.arange(visible.numel())
    drawn, scores = draw(predictor, codes, visible, everything, scale)
    assert drawn.shape == scores.shape == (len(everything), spec.depth) and scores.dtype == torch.float32
    masked = torch.arange(spec.depth) >= visible.flatten()[:, None]
    assert (drawn[~masked] == 0).all() and (scores[~masked] == 0).all() and (scores[masked] < 0).all()
    rows = everything.flip(0)[::2]
    some, some_scores = draw(predictor, codes, visible, rows, scale)
    assert torch.equal(some, drawn[rows])
    torch.testing.assert_close(some_scores, scores[rows], atol=1e-4, rtol=1e-4)
    assert draw(predictor, codes, visible, everything[:0], scale)[0].shape == (0, spec.depth)


def test_masked_codes_are_not_seen(model: ResGen, spec: CodeSpec) -> None:
    codes, visible, class_ids = states(spec)
    predictor, rows = model.predictor(class_ids), torch.arange(visible.numel())
    other = torch.where(torch.arange(spec.depth) < visible[..., None], codes, (codes + 1) % spec.codebook_size)
    first, second = (draw(predictor, values, visible, rows) for values in (codes, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_samples_do_not_depend_on_their_batch(model: ResGen, spec: CodeSpec) -> None:
    config = SamplingConfig(num_steps=4, choice_temperature=1.0)
    class_ids = torch.tensor([0, 1, 2, 1, 0])

    def run(indices: list[int]) -> torch.Tensor:
        predictor = model.predictor(class_ids[indices])
        noise = draw_noise(7, indices, 4, spec, model.head.noise)
        return sample_codes(predictor, noise, config)

    whole = run([0, 1, 2, 3, 4])
    assert whole.min() >= 0 and whole.max() < spec.codebook_size
    assert torch.equal(run([3])[0], whole[3])
    assert torch.equal(run([4, 0]), whole[[4, 0]])


def test_a_saved_state_is_the_model(model: ResGen, spec: CodeSpec) -> None:
    codes, visible, class_ids = states(spec)
    other = ResGen(model.config, spec)
    other.requires_grad_(False).load_state_dict(model.state_dict())
    rows = torch.arange(visible.numel())
    first, second = (draw(m.predictor(class_ids), codes, visible, rows) for m in (model, other))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
