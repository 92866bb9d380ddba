"""The recogniser ignores padding and survives being saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.evaluation.speech.folders import load_judge, save_judge
from resgen.evaluation.speech.hearing import hear
from resgen.evaluation.speech.recognizer import (
    CHARACTERS,
    Recognizer,
    RecognizerConfig,
)
from resgen.nn.seeding import seeded
from resgen.ops.mel import MelConfig

_MEL = MelConfig(sample_rate_hz=8000, fft_size=256, window_size=200, hop_size=80, num_bands=20, max_hz=4000.0)
_SMALL = {"mel": _MEL, "front": 8, "width": 32, "num_blocks": 1}


@pytest.mark.parametrize("frames", [33, 40])
def test_padding_changes_nothing(frames: int) -> None:
    with seeded("padding"):
        model = Recognizer(RecognizerConfig(**_SMALL)).eval()
    stream = torch.Generator().manual_seed(0)
    features = torch.randn(2, 20, 64, generator=stream)
    valid = torch.ones(2, 64, dtype=torch.bool)
    valid[1, frames:] = False
    logits, kept = model(features, valid)
    alone, _ = model(features[1:, :, :frames], valid[1:, :frames])
    assert logits.shape == (2, 16, 11)
    assert kept.sum(1).tolist() == [16, -(-frames // 4)] and alone.shape[1] == -(-frames // 4)
    assert torch.allclose(logits[1, : alone.shape[1]], alone[0], atol=1e-5)


def test_words_and_characters_as_symbols() -> None:
    words = RecognizerConfig()
    assert words.encode("Zero, 3 nine!").tolist() == [1, 4, 10]
    assert words.decode(torch.tensor([0, 1, 1, 0, 1, 4, 4, 0])) == "zero zero three"
    assert words.decode(torch.zeros(5, dtype=torch.int64)) == ""
    characters = RecognizerConfig(unit="characters", symbols=CHARACTERS)
    assert characters.decode(characters.encode("a cab")) == "a cab"
    hello = characters.encode("hello")
    assert characters.decode(hello) == "helo"  # a letter twice needs a blank between
    assert characters.decode(torch.cat([hello[:3], torch.tensor([0]), hello[3:], torch.tensor([1, 0])])) == "hello"
    with pytest.raises(DataError, match="'ten' is none of the 10 words"):
        words.encode("one ten")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unit": "phones"}, "unknown unit 'phones'"),
        ({"symbols": ()}, "one or more"),
        ({"symbols": ("one", "one")}, "different"),
        ({"symbols": ("One",)}, "'One'"),
        ({"symbols": ("one two",)}, "'one two'"),
        ({"unit": "characters", "symbols": ("ab",)}, "'ab'"),
        ({"width": 0}, "width=0"),
        ({"kernel_size": 4}, "kernel_size=4"),
    ],
)
def test_config_refuses(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecognizerConfig(**values)  # type: ignore[arg-type]


def test_transcribes_any_length_but_none() -> None:
    with seeded("lengths"):
        model = Recognizer(RecognizerConfig(**_SMALL)).eval()
    for size in (1, 79, 801):
        assert isinstance(model.transcribe(torch.zeros(size)), str)
    with pytest.raises(DataError, match="0 samples"):
        model.transcribe(torch.zeros(0))


def test_saved_and_loaded(tmp_path: Path) -> None:
    with seeded("saved"):
        model = Recognizer(RecognizerConfig(**_SMALL)).eval()
    save_judge(tmp_path / "judge", model, history={"num_steps": 3})
    loaded, folder = load_judge(tmp_path / "judge", Recognizer)
    assert folder.kind == Recognizer.kind and folder.extra["history"] == {"num_steps": 3}
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        expected = tensor.bfloat16().float() if tensor.ndim > 1 else tensor
        assert torch.equal(loaded.state_dict()[name], expected), name
    features, valid = hear(torch.randn(1, 8000), torch.tensor([8000]), _MEL)
    assert torch.allclose(loaded(features, valid)[0], model(features, valid)[0], atol=0.05)
    file = folder.component(Recognizer.kind).path
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(CheckpointError, match="damaged"):
        load_judge(tmp_path / "judge", Recognizer)
