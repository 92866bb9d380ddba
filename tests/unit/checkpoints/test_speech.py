"""Speech folders: parts come back as they were, and parts that do not belong together are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from resgen.checkpoints.artefacts import load_pipeline, load_tokenizer, save_tokenizer
from resgen.checkpoints.format import load_folder
from resgen.checkpoints.locate import ASSETS
from resgen.checkpoints.speech import (
    VoiceConfig,
    load_sound_tokenizer,
    load_speech_pipeline,
    load_text_model,
    load_vocoder,
    save_text_model,
    save_vocoder,
)
from resgen.errors import CheckpointError, ConfigError, WriteError
from resgen.samplers.unmasking import SamplingConfig
from resgen.tokenizers.image import ImageTokenizer, ImageTokenizerConfig
from speech_parts import (
    ALPHABET,
    MEL,
    OTHER_MEL,
    make_generator,
    make_text_model,
    make_tokenizer,
    make_vocoder,
    make_waveform_tokenizer,
    save_parts,
)


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_parts(tmp_path_factory.mktemp("speech") / "model")


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "tokenizer"
    config = ImageTokenizerConfig(image_size=8, channels=1, width=8, multipliers=(1, 2), num_res_blocks=1, code_dim=4)
    save_tokenizer(path, ImageTokenizer(config))
    return path


@pytest.fixture
def edited(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the folder whose configuration was changed."""

    def edit(**changes: object) -> Path:
        copy = tmp_path / "copy"
        copy.mkdir(exist_ok=True)
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        document = json.loads((copy / "config.json").read_text())
        for name, value in changes.items():
            place = document if name in document else document["extra"]
            assert name in place
            if value is None:
                del place[name]
            else:
                place[name] = value
        (copy / "config.json").write_text(json.dumps(document))
        return copy

    return edit


def test_a_pipeline_comes_back(folder: Path) -> None:
    parts = load_speech_pipeline(folder)
    tokenizer = make_tokenizer()
    for loaded, expected in (
        (parts.tokenizer, tokenizer),
        (parts.vocoder, make_vocoder()),
        (parts.text_model, make_text_model()),
        (parts.generator, make_generator(tokenizer)),
    ):
        assert loaded is not None and same(loaded, expected) and loaded.config == expected.config
        assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert parts.alphabet == ALPHABET and parts.voice == VoiceConfig()
    assert parts.sampling == SamplingConfig(num_steps=4, guidance_scale=1.0, choice_temperature=1.0)
    assert parts.folder.extra["history"] == {"generator": {"steps": 0}}
    names = {"config.json", "tokenizer.safetensors", "text.safetensors", "generator.safetensors", "vocoder.safetensors"}
    assert {file.name for file in folder.iterdir()} == names


def test_parts_are_found_in_a_pipeline_as_well(folder: Path) -> None:
    assert same(load_sound_tokenizer(folder)[0], make_tokenizer())
    assert same(load_vocoder(folder)[0], make_vocoder())
    model, alphabet, _ = load_text_model(folder)
    assert same(model, make_text_model()) and alphabet == ALPHABET


def test_single_parts(tmp_path: Path) -> None:
    save_vocoder(tmp_path / "vocoder", make_vocoder(), history={"steps": 3})
    vocoder, folder = load_vocoder(tmp_path / "vocoder")
    assert same(vocoder, make_vocoder()) and vocoder.config == make_vocoder().config
    assert folder.extra["history"] == {"vocoder": {"steps": 3}}
    save_text_model(tmp_path / "text", make_text_model(), alphabet="xy", history={"steps": 4})
    model, alphabet, folder = load_text_model(tmp_path / "text")
    assert same(model, make_text_model()) and alphabet == "xy" and folder.extra["history"] == {"text": {"steps": 4}}
    for tokenizer in (make_tokenizer(), make_waveform_tokenizer()):
        save_tokenizer(tmp_path / "tokenizer", tokenizer)
        assert same(load_sound_tokenizer(tmp_path / "tokenizer")[0], tokenizer)
    for load in (load_vocoder, load_text_model, load_speech_pipeline):
        with pytest.raises(CheckpointError):
            load(tmp_path / "tokenizer")
        with pytest.raises(CheckpointError, match="nowhere"):
            load(tmp_path / "nowhere")


def test_a_pipeline_without_a_vocoder(tmp_path: Path) -> None:
    parts = load_speech_pipeline(save_parts(tmp_path / "model", vocoder=None))
    assert parts.vocoder is None and not (tmp_path / "model" / "vocoder.safetensors").exists()


def test_a_pipeline_of_waveforms(tmp_path: Path) -> None:
    voice = VoiceConfig(mel=MEL, loudness_db=None)
    parts = load_speech_pipeline(
        save_parts(tmp_path / "model", tokenizer=make_waveform_tokenizer(), vocoder=None, voice=voice)
    )
    assert same(parts.tokenizer, make_waveform_tokenizer()) and parts.voice == voice
    save_parts(tmp_path / "without", tokenizer=make_waveform_tokenizer(), vocoder=None)
    with pytest.raises(CheckpointError, match=r"voice\.mel is missing"):
        load_speech_pipeline(tmp_path / "without")


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do not belong together"):
        save_parts(tmp_path / "codes", generator=make_generator(make_tokenizer(max_positions=81)))
    assert not (tmp_path / "codes").exists()
    for name, changes, named in (
        ("vocoder", {"vocoder": make_vocoder(mel=OTHER_MEL)}, "max_hz=3000"),
        ("text", {"text_model": make_text_model(width=12)}, "width 8, but the text model gives 12"),
    ):
        with pytest.raises(CheckpointError, match=named):
            load_speech_pipeline(save_parts(tmp_path / name, **changes))
    quieter = make_vocoder(mel=replace(MEL, floor=1e-4))
    assert load_speech_pipeline(save_parts(tmp_path / "floor", vocoder=quieter)).vocoder is not None


def test_another_tokenizer_s_generator(folder: Path, edited: Callable[..., Path]) -> None:
    components = json.loads((folder / "config.json").read_text())["components"]
    components["generator"]["config"]["codebooks_sha256"] = "0" * 64
    with pytest.raises(CheckpointError, match=r"do not belong together.*000000000000"):
        load_speech_pipeline(edited(components=components))
    components["generator"]["config"]["spec"]["shape"] = [81]
    with pytest.raises(CheckpointError, match="81"):
        load_speech_pipeline(edited(components=components))


def test_pictures_are_not_speech(folder: Path, image_tokenizer: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot speak"):
        load_speech_pipeline(image_tokenizer)
    with pytest.raises(CheckpointError, match="image-tokenizer cannot be used here"):
        load_sound_tokenizer(image_tokenizer)
    with pytest.raises(CheckpointError, match="mel-tokenizer cannot be used here"):
        load_tokenizer(folder)
    with pytest.raises(CheckpointError, match="is a model of speech; open it with SpeechPipeline"):
        load_pipeline(folder)
    with pytest.raises(CheckpointError, match="is a model of images, .* open it with ImagePipeline"):
        load_speech_pipeline(ASSETS / "fashion-mnist-small")


@pytest.mark.parametrize("alphabet", [None, "", ["a"]])
def test_an_alphabet_that_is_none(edited: Callable[..., Path], alphabet: object) -> None:
    copy = edited(alphabet=alphabet)
    for load in (load_text_model, load_speech_pipeline):
        with pytest.raises(CheckpointError, match="alphabet must be text"):
            load(copy)


@pytest.mark.parametrize("voice", [{"max_prompt_seconds": 0}, {"max_prompt_second": 1}, {"loudness_db": "loud"}, 3])
def test_a_damaged_voice(edited: Callable[..., Path], voice: object) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=r"voice|max_prompt_second|loudness_db"):
        load_speech_pipeline(edited(voice=voice))


def test_a_prompt_has_a_length() -> None:
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="max_prompt_seconds"):
            VoiceConfig(max_prompt_seconds=seconds)


def test_saved_files_are_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError):
        save_parts(tmp_path / "file" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert load_folder(save_parts(tmp_path / "model")).kind == "speech-pipeline"
