"""A model with the decoder of another one, trained further alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from image_parts import save_model
from resgen.checkpoints.artefacts import load_tokenizer, save_tokenizer
from resgen.checkpoints.format import CONFIG_NAME, load_folder
from resgen.checkpoints.parts import save_with_parts
from resgen.cli.main import main
from resgen.errors import CheckpointError, ConfigError
from resgen.pipelines.image.pipeline import ImagePipeline


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that was measured."""
    path = save_model(tmp_path / "model")
    config = json.loads((path / CONFIG_NAME).read_text())
    config["history"] = {"tokenizer": {"steps": 1}, "generator": {"steps": 2}, "measured": [{"of": "these weights"}]}
    (path / CONFIG_NAME).write_text(json.dumps(config))
    return path


@pytest.fixture
def decoder(model: Path) -> Path:
    """A tokenizer with the same codes and another decoder."""
    tokenizer, _ = load_tokenizer(model)
    with torch.no_grad():
        tokenizer.decoder.out.bias += 0.5
    save_tokenizer(model.with_name("decoder"), tokenizer, history={"steps": 9})
    return model.with_name("decoder")


def test_another_decoder_shows_the_same_codes(model: Path, decoder: Path, tmp_path: Path) -> None:
    save_with_parts(model, {"tokenizer": decoder}, tmp_path / "out")
    old, new = (
        ImagePipeline.from_pretrained(path)(1, num_samples=2, num_steps=2).codes for path in (model, tmp_path / "out")
    )
    assert torch.equal(old, new)
    before, other, after = (load_tokenizer(path)[0].decode(old) for path in (model, decoder, tmp_path / "out"))
    assert torch.equal(after, other) and not torch.equal(after, before)
    history = load_folder(tmp_path / "out").extra["history"]
    assert history == {"tokenizer": {"steps": 9}, "generator": {"steps": 2}}, "what was measured is of other weights"


def test_a_decoder_of_other_codes_does_not_fit(model: Path, decoder: Path, tmp_path: Path) -> None:
    tokenizer, _ = load_tokenizer(decoder)
    tokenizer.quantizer.codebooks += 1.0
    save_tokenizer(tmp_path / "other", tokenizer)
    with pytest.raises(ConfigError, match="other codebooks than the tokenizer of"):
        save_with_parts(model, {"tokenizer": tmp_path / "other"}, tmp_path / "out")
    colours = save_model(tmp_path / "colours", channels=3)
    with pytest.raises(ConfigError, match=r"has channels=3, that of '.*model' 1"):
        save_with_parts(model, {"tokenizer": colours}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_are_named(model: Path, decoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown part 'generator'; allowed: tokenizer"):
        save_with_parts(model, {"generator": model}, tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown part 'vocoder'; allowed: tokenizer"):
        save_with_parts(model, {"vocoder": "spoken-digits-small"}, tmp_path / "out")
    with pytest.raises(CheckpointError, match="without a vocoder"):
        save_with_parts("spoken-digits-small", {"vocoder": model}, tmp_path / "out")


def test_voices_come_along(tmp_path: Path) -> None:
    save_with_parts("english-small", {"vocoder": "spoken-digits-small"}, tmp_path / "out")
    assert (tmp_path / "out" / "emma.flac").is_file() and "emma" in load_folder(tmp_path / "out").extra["voices"]


def test_on_the_command_line(model: Path, decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(model), "--replace", f"tokenizer={decoder}", "--out", str(out)]) == 0
    assert f"model: {out}" in capsys.readouterr().out and (out / CONFIG_NAME).is_file()
    for options, message in (
        (["--replace", "tokenizer"], "--replace 'tokenizer' must be PART=MODEL"),
        (["--replace", f"tokenizer={decoder}", "--checkpoint", "3"], "give --checkpoint or --replace"),
        (["--replace", "tokenizer=a", "tokenizer=b"], "--replace tokenizer=a tokenizer=b names a part twice"),
    ):
        assert main(["export", str(model), *options, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "no").exists()
