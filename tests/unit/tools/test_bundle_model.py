"""What goes into a bundled model, and that parts which do not belong together are refused."""

from __future__ import annotations

from pathlib import Path

import bundle_model
import pytest
import torch
from bundle_model import Bundle

from resgen.checkpoints.artefacts import save_tokenizer
from resgen.checkpoints.format import load_folder
from resgen.checkpoints.speech import load_speech_pipeline, save_vocoder
from resgen.data.sound.decode import read_sound, write_sound
from resgen.errors import CheckpointError, ConfigError
from speech_parts import RATE, make_tokenizer, make_vocoder, save_parts, voice


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bundle_model, "ASSETS", tmp_path / "assets")
    (tmp_path / "assets").mkdir()
    (tmp_path / "card.md").write_text("# a card\n")
    return tmp_path / "assets"


def bundle(folder: Path, model: Path, *replace: str) -> None:
    Bundle(model=model, name="voice", description="A voice.", card=folder / "card.md", replace=replace).run()


def test_another_vocoder_comes_with_its_record(assets: Path, tmp_path: Path) -> None:
    model = save_parts(tmp_path / "model")
    history = {"steps": 7, "config": {"init": "/home/me/runs/first/model"}}
    save_vocoder(tmp_path / "vocoder", make_vocoder(seed=5), history=history)
    bundle(tmp_path, model, f"vocoder={tmp_path / 'vocoder'}")
    folder = load_folder(assets / "voice")
    assert folder.record("vocoder") == {"steps": 7, "config": {"init": "first"}}
    assert folder.extra["description"] == "A voice."
    hashes = [load_folder(path).component("vocoder").sha256 for path in (assets / "voice", tmp_path / "vocoder", model)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert load_speech_pipeline(assets / "voice").vocoder is not None
    assert (assets / "voice" / "README.md").read_text() == "# a card\n"


def test_parts_that_another_model_has_are_stored_once(assets: Path, tmp_path: Path) -> None:
    model = save_parts(tmp_path / "model")
    bundle(tmp_path, model)
    command = Bundle(model=model, name="other", description="Another.", card=tmp_path / "card.md", share="voice")
    command.run()
    assert [file.name for file in (assets / "other").glob("*.safetensors")] == []
    first, second = (load_folder(assets / name) for name in ("voice", "other"))
    assert {name: part.sha256 for name, part in first.components.items()} == {
        name: part.sha256 for name, part in second.components.items()
    }
    assert load_speech_pipeline(assets / "other").vocoder is not None
    (assets / "voice" / "vocoder.safetensors").unlink()
    with pytest.raises(CheckpointError, match="voice/vocoder.safetensors' is missing"):
        load_folder(assets / "other")


def test_a_tokenizer_with_other_codebooks_is_refused(assets: Path, tmp_path: Path) -> None:
    model = save_parts(tmp_path / "model")
    save_tokenizer(tmp_path / "same", make_tokenizer(), history={"steps": 2})
    other = make_tokenizer()
    other.quantizer.codebooks += 1
    save_tokenizer(tmp_path / "other", other)
    bundle(tmp_path, model, f"tokenizer={tmp_path / 'same'}")
    assert load_folder(assets / "voice").record("tokenizer") == {"steps": 2}
    with pytest.raises(ConfigError, match="other codebooks"):
        bundle(tmp_path, model, f"tokenizer={tmp_path / 'other'}")


def test_texts_of_the_page_and_of_the_demo_are_stored(assets: Path, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# Voice\n")
    texts = {"sentences": ("one two", "two one"), "demo_texts": ("two",)}
    Bundle(
        model=save_parts(tmp_path / "model"), name="voice", description="D", card=tmp_path / "card.md", **texts
    ).run()
    extra = load_folder(assets / "voice").extra
    assert extra["sentences"] == ["one two", "two one"] and extra["demo_texts"] == ["two"]


def test_bundled_models_tell_nothing_of_the_machine_that_trained_them() -> None:
    for config in bundle_model.ASSETS.glob("*/config.json"):
        assert '": "/' not in config.read_text(encoding="utf-8"), config


def test_voices_are_stored_as_they_are_used(assets: Path, tmp_path: Path) -> None:
    silence = torch.zeros(RATE)
    write_sound(torch.cat([silence, voice(1.0), silence]), RATE, tmp_path / "ann.wav")
    model = save_parts(tmp_path / "model")
    voices = (f"ann={tmp_path / 'ann.wav'}=a cab",)
    Bundle(model=model, name="voice", description="D", card=tmp_path / "card.md", voices=voices).run()
    (ann,) = load_speech_pipeline(assets / "voice").voices.values()
    assert ann.text == "a cab" and ann.prepared
    assert read_sound(assets / "voice" / "ann.flac", RATE).numel() < 1.5 * RATE  # its silence is gone
