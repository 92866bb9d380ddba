"""Pipelines with int8 weights: every kind samples, batches change nothing, and what they cannot do they say."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from resgen import devices
from resgen.devices import choose_dtype
from resgen.errors import ConfigError
from resgen.evaluation.bench.cases import MEASURED, Case, random_network
from resgen.evaluation.bench.products import record_products
from resgen.nn.int8 import Int8Weight, has_int8
from resgen.nn.transformer import Block
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.speech.pipeline import SpeechPipeline
from speech_parts import save_parts

pytestmark = pytest.mark.skipif(not has_int8(), reason="this processor or build has no int8 products")
CPU = torch.device("cpu")


@pytest.fixture
def pipe(model: Path, monkeypatch: pytest.MonkeyPatch) -> ImagePipeline:
    """What is not int8 is float32."""
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    return ImagePipeline.from_pretrained(model, device="cpu", dtype="int8")


def test_batches_change_nothing(pipe: ImagePipeline) -> None:
    classes = [0, 1, 2, 1, 0]
    together = pipe(classes, seed=3).codes
    assert torch.equal(pipe(classes, seed=3, batch_size=1).codes, together)
    assert torch.equal(pipe(classes, seed=3, batch_size=2).codes, together)
    assert torch.equal(copy.deepcopy(pipe)(classes, seed=3).codes, together)


def test_it_says_what_it_is_and_what_it_cannot_do(pipe: ImagePipeline, tmp_path: Path) -> None:
    assert "int8 on cpu" in repr(pipe) and pipe.dtype == torch.int8
    before = pipe([0, 1], seed=1).codes
    assert pipe.to("cpu") is pipe.to(torch.int8) is pipe.to("cpu", "int8") is pipe.to("int8") is pipe
    assert torch.equal(pipe([0, 1], seed=1).codes, before)
    for refused in (
        partial(pipe.to, dtype="bfloat16"),
        partial(pipe.to, torch.float32),
        partial(pipe.to, "fp32"),
        pipe.compile,
    ):
        with pytest.raises(ConfigError, match="this model holds int8 weights; load it again with dtype="):
            refused()
    with pytest.raises(ConfigError, match="^save_pretrained: this model holds int8 weights"):
        pipe.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists() and pipe.dtype == torch.int8


def test_another_type_becomes_int8(model: Path, pipe: ImagePipeline) -> None:
    other = ImagePipeline.from_pretrained(model, device="cpu", dtype="float32")
    assert other.to("bfloat16").dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="unknown dtype 'float16'"):
        other.to("float16")
    assert repr(other.to(dtype="int8")) == repr(pipe)
    assert torch.equal(other([2, 0], seed=4).codes, pipe([2, 0], seed=4).codes)


def test_speech(tmp_path: Path) -> None:
    folder = save_parts(tmp_path / "model")
    pipe = SpeechPipeline.from_pretrained(folder, device="cpu", dtype="int8")
    matrices = [part.weight for part in pipe.generator.modules() if isinstance(part, nn.Linear)]
    assert any(isinstance(matrix, Int8Weight) for matrix in matrices)
    assert {parameter.dtype for parameter in pipe.text_model.parameters()} == {torch.float32}
    assert not any(isinstance(parameter, Int8Weight) for parameter in pipe.text_model.parameters())
    assert pipe("abc", seed=1).audio.isfinite().all()
    with pytest.raises(ConfigError, match="^save_pretrained: this model holds int8 weights"):
        pipe.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("kind", MEASURED)
def test_every_kind(kind: str) -> None:
    case = Case(
        shape="tiny",
        kind=kind,
        iterations=2 if kind == "ar_resgen" else None,
        depth=4,
        batch_size=2,
        num_steps=4,
        guidance=True,
        dtype="int8",
        seed=0,
    )
    network = random_network(case.config, case.spec, CPU, torch.int8)
    blocks = sum(isinstance(part, Block) for part in network.modules())
    quantized = [parameter for parameter in network.parameters() if isinstance(parameter, Int8Weight)]
    assert blocks and len(quantized) == 4 * blocks
    assert {parameter.dtype for parameter in network.parameters()} == {choose_dtype("auto", CPU)}
    products = record_products(network, partial(case.sample, network))
    same = random_network(case.config, case.spec, CPU, choose_dtype("auto", CPU))
    # How many rows the head is asked for depends on the codes; those of the transformer do not.
    expected = record_products(same, partial(case.sample, same)).multiply_adds
    assert products.multiply_adds == pytest.approx(expected, rel=1e-3)
    products()
