"""`resgen.load`: any model by its name."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

import resgen
from image_parts import save_model
from resgen import modalities
from resgen.checkpoints.format import Component, save_folder
from resgen.cli.common import bundled_models
from resgen.errors import CheckpointError, ConfigError
from resgen.modalities import Modality, register
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.speech.pipeline import SpeechPipeline
from speech_parts import save_parts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("pipeline") / "model")


def test_pictures_and_speech(model: Path, tmp_path: Path) -> None:
    pictures = resgen.load(model, device="cpu", dtype="bf16")
    assert type(pictures) is ImagePipeline and pictures.dtype == torch.bfloat16
    speech = resgen.load(str(save_parts(tmp_path / "speech")), device=torch.device("cpu"))
    assert type(speech) is SpeechPipeline and speech.device.type == "cpu"


def test_editors_know_what_a_bundled_name_gives() -> None:
    forms = re.findall(r"name_or_path: Literal\[(.*?)\].*?-> (\w+):", inspect.getsource(modalities), re.DOTALL)
    typed = {name: pipeline for names, pipeline in forms for name in re.findall(r'"(.+?)"', names)}
    kinds = {"pipeline": "ImagePipeline", "speech-pipeline": "SpeechPipeline"}
    assert typed == {row["name"]: kinds[row["kind"]] for row in bundled_models() if row["kind"] in kinds}


def test_what_is_no_whole_model(model: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a classifier, which is a part of a model"):
        resgen.load("fashion-mnist-classifier")
    with pytest.raises(CheckpointError, match="did you mean 'fashion-mnist-small'"):
        resgen.load("fashion-mnist-smal")
    with pytest.raises(ConfigError, match="unknown argument 'torch_dtype' .did you mean 'dtype'"):
        resgen.load(model, torch_dtype="bf16")


@pytest.mark.parametrize("pipeline", [None, lambda path, *, device, dtype: (path.name, device, dtype)])
def test_what_was_registered(pipeline: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modalities, "_registered", {})
    register(Modality(name="motion", noun="motion", recipes={}, components=frozenset({"joints"}), pipeline=pipeline))
    parts = {"tokenizer": Component(type="joints", config={}, tensors={})}
    parts["generator"] = Component(type="resgen", config={}, tensors={})
    save_folder(tmp_path / "walk", kind="pipeline", components=parts)
    if pipeline is None:
        with pytest.raises(ConfigError, match="no 'pipeline' for motion"):
            resgen.load(tmp_path / "walk")
    else:
        assert resgen.load(tmp_path / "walk", device="cpu") == ("walk", "cpu", "auto")
