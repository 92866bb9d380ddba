"""The codes of every kind and of every bundled model for fixed seeds, recorded once: what a change must not alter.

A change that is meant to alter codes records them again and says so in CHANGELOG.md under Numerics:

    python tests/reference/test_recorded_codes.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resgen.checkpoints.artefacts import load_pipeline
from resgen.checkpoints.speech import load_speech_pipeline
from resgen.kinds import KINDS, GeneratorLossConfig, build, for_kind, sample
from resgen.models.base import CodeModel
from resgen.models.resgen import ResGenConfig
from resgen.ops.random import derive_seed
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.samplers.unmasking import SamplingConfig
from resgen.types import CodeSpec

RECORD = Path(__file__).with_name("recorded_codes.json")
ASSETS = Path(__file__).parents[2] / "src" / "resgen" / "assets"
SPEC = CodeSpec(depth=4, codebook_size=9, code_dim=6, shape=(3, 2))
SHAPE = ResGenConfig(
    width=16, num_layers=3, num_heads=2, mlp_width=32, condition_width=16, num_components=6, num_classes=3
)


def digest(codes: torch.Tensor) -> str:
    return hashlib.sha256(codes.to("cpu", torch.int64).contiguous().numpy().tobytes()).hexdigest()[:16]


def filled(kind: str) -> CodeModel:
    """A model whose weights are drawn by their names, so that no order of construction matters."""
    base, sampling = replace(SHAPE, head="residual"), SamplingConfig(num_steps=64)
    config, *_ = for_kind(KINDS[kind], base, GeneratorLossConfig(), sampling, SPEC)
    model = build(config, SPEC).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stream = torch.Generator().manual_seed(derive_seed("recorded codes", name))
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=stream))
    stream = torch.Generator().manual_seed(1)
    books = torch.randn(SPEC.depth, SPEC.codebook_size, SPEC.code_dim, generator=stream)
    sums = torch.randint(SPEC.codebook_size, (40, SPEC.num_positions, SPEC.depth), generator=stream)
    model.set_codebooks(books / torch.arange(1, 5).view(4, 1, 1), torch.tensor([0.8, 0.5, 0.3, 0.2]), sums)
    return model


def of_kind(kind: str, guidance_scale: float) -> str:
    settings = KINDS[kind].sampling(guidance_scale=guidance_scale)
    if hasattr(settings, "num_steps"):
        settings = replace(settings, num_steps=2 if kind == "ar_resgen" else 5)
    classes = torch.tensor([0, 1, 2, 1])
    return digest(sample(filled(kind), classes, seed=3, indices=range(4), sampling=settings).codes)


def of_pictures(name: str) -> str:
    pipe = ImagePipeline(load_pipeline(ASSETS / name), device="cpu", dtype="float32")
    return digest(pipe([0, 3, 7], seed=5).codes)


def of_speech(name: str) -> str:
    pipe = SpeechPipeline(load_speech_pipeline(ASSETS / name), device="cpu", dtype="float32")
    spoken = pipe(["three seven one", "nine zero"], seed=5)
    return digest(torch.cat([output.codes for output in spoken]))


CASES: dict[str, Callable[[], str]] = {
    **{f"{kind}, guidance {scale:g}": lambda k=kind, s=scale: of_kind(k, s) for kind in KINDS for scale in (0.0, 1.5)},
    **{name: lambda n=name: of_pictures(n) for name in ("fashion-mnist-small", "cifar10-8x8", "avatars64")},
    "spoken-digits-small": lambda: of_speech("spoken-digits-small"),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_are_those_recorded(case: str) -> None:
    assert CASES[case]() == json.loads(RECORD.read_text())[case]


if __name__ == "__main__":
    RECORD.write_text(json.dumps({case: make() for case, make in CASES.items()}, indent=1) + "\n")
