"""The recogniser learns, ignores padding, is reproducible, and survives being saved."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resgen.errors import CheckpointError, ConfigError, DataError
from resgen.evaluation.hearing import hear
from resgen.evaluation.recognizer import (
    CHARACTERS,
    KIND,
    Recognizer,
    RecognizerConfig,
    load_recognizer,
    save_recognizer,
    train_recognizer,
)
from resgen.ops.mel import MelConfig
from resgen.ops.random import seeded

_MEL = MelConfig(sample_rate_hz=8000, fft_size=256, window_size=200, hop_size=80, num_bands=20, max_hz=4000.0)
_SMALL = {"mel": _MEL, "front": 8, "width": 32, "num_blocks": 1}


def _spoken(words: list[int], stream: torch.Generator) -> Tensor:
    """Word 0 is a hum, word 1 a whistle; pauses around them."""
    parts = [torch.zeros(1200)]
    for word in words:
        hz = (400, 2000)[word] * (0.9 + 0.2 * float(torch.rand((), generator=stream)))
        parts += [0.3 * torch.sin(2 * math.pi * hz * torch.arange(1200) / 8000), torch.zeros(1200)]
    return torch.cat(parts) + 0.003 * torch.randn(sum(map(len, parts)), generator=stream)


def _corpus(count: int, seed: int) -> tuple[list[Tensor], list[str]]:
    stream = torch.Generator().manual_seed(seed)
    said = [torch.randint(0, 2, (1 + i % 3,), generator=stream).tolist() for i in range(count)]
    return [_spoken(words, stream) for words in said], [
        " ".join(("hum", "whistle")[w] for w in words) for words in said
    ]


def test_learns_what_is_said() -> None:
    config = RecognizerConfig(symbols=("hum", "whistle"), **_SMALL)
    sounds, texts = _corpus(48, 0)
    losses: list[float] = []
    model = train_recognizer(
        sounds,
        texts,
        config,
        num_steps=120,
        batch_seconds=4.0,
        learning_rate=1e-2,
        report=lambda step, share, loss: losses.append(loss),
    )
    assert len(losses) == 120 and losses[-1] < 0.3 * losses[0]
    unheard, expected = _corpus(20, 1)
    right = sum(model.transcribe(x) == text for x, text in zip(unheard, expected, strict=True))
    assert right >= 17, right
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_training_is_reproducible() -> None:
    config = RecognizerConfig(symbols=("hum", "whistle"), **_SMALL)
    sounds, texts = _corpus(8, 0)
    first, second, other = (train_recognizer(sounds, texts, config, num_steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.out.weight, second.out.weight)
    assert not torch.equal(first.out.weight, other.out.weight)


def test_training_refuses_what_it_cannot_learn_from() -> None:
    config = RecognizerConfig(symbols=("hum", "whistle"), **_SMALL)
    sounds, texts = _corpus(2, 0)
    with pytest.raises(DataError, match="each recording needs its text"):
        train_recognizer(sounds, texts[:1], config, num_steps=1)
    with pytest.raises(DataError, match="'jump' is none of the 2 words"):
        train_recognizer(sounds, [texts[0], "jump"], config, num_steps=1)
    with pytest.raises(ConfigError, match="num_steps or max_minutes"):
        train_recognizer(sounds, texts, config)
    with pytest.raises(ConfigError, match="batch_seconds=0"):
        train_recognizer(sounds, texts, config, num_steps=1, batch_seconds=0.0)


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
    save_recognizer(tmp_path / "judge", model, history={"num_steps": 3})
    loaded, folder = load_recognizer(tmp_path / "judge")
    assert folder.kind == KIND and folder.extra["history"] == {"num_steps": 3}
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        expected = tensor.bfloat16().float() if tensor.ndim > 1 else tensor
        assert torch.equal(loaded.state_dict()[name], expected), name
    features, valid = hear(torch.randn(1, 8000), torch.tensor([8000]), _MEL)
    assert torch.allclose(loaded(features, valid)[0], model(features, valid)[0], atol=0.05)
    file = folder.component(KIND).path
    file.write_bytes(file.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(CheckpointError, match="damaged"):
        load_recognizer(tmp_path / "judge")
