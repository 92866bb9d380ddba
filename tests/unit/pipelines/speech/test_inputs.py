"""Texts and sounds as callers have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resgen.data.sound.decode import encode_sound, resample, write_sound
from resgen.errors import ConfigError, DataError, WrongTypeError
from resgen.pipelines.speech.inputs import samples_of, texts_of
from resgen.pipelines.speech.utterances import SpeechOutput
from speech_parts import RATE, voice

SOUND = voice(0.6)
WHOLE = (SOUND * 32768).round().clamp(-32768, 32767)
"""What a file of 16 bits keeps."""


def test_one_text_or_several() -> None:
    assert texts_of("abc") == ["abc"]
    for several in (["a", "b"], ("a", "b"), np.array(["a", "b"]), {"a": 1, "b": 2}.keys()):
        assert texts_of(several) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (3, "text=3 must be a text or a list of texts"),
        (b"abc", "text=b'abc' must be a text"),
        (None, "text=None must be a text"),
        ([], r"text=\[\] must hold at least one text"),
        (["a", 3], r"text=\['a', 3\] holds 3, which is not text"),
    ],
)
def test_what_is_no_text(text: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        texts_of(text)


def test_a_file_and_its_content(tmp_path: Path) -> None:
    write_sound(SOUND, RATE, tmp_path / "a.wav")
    content = (tmp_path / "a.wav").read_bytes()
    for source in (tmp_path / "a.wav", str(tmp_path / "a.wav"), content, memoryview(content)):
        samples, where = samples_of(source, RATE, "prompt")
        assert torch.equal(samples, WHOLE / 32768)
        assert where == (f"prompt '{source}'" if isinstance(source, str | Path) else "the prompt")


@pytest.mark.parametrize(
    "source",
    [
        SOUND,
        SOUND.numpy(),
        (SOUND, RATE),
        SpeechOutput(audio=SOUND, sample_rate_hz=RATE, codes=torch.zeros(0, 2).long(), steps=[], texts=[], seed=0),
        (SOUND.numpy(), np.int64(RATE)),
        SOUND[None],
        SOUND.expand(2, -1),
        SOUND.expand(2, -1).T.numpy(),
        (torch.stack([2 * SOUND, 0 * SOUND]), RATE),
    ],
)
def test_samples(source: object) -> None:
    assert torch.equal(samples_of(source, RATE, "prompt")[0], SOUND)


def test_whole_numbers_are_scaled_by_their_type() -> None:
    assert torch.equal(samples_of(WHOLE.to(torch.int16), RATE, "prompt")[0], WHOLE / 32768)
    assert torch.equal(samples_of((WHOLE.numpy() * 65536).astype(np.int32), RATE, "prompt")[0], WHOLE / 32768)
    eight = (128 + (SOUND * 127).round()).to(torch.uint8)
    torch.testing.assert_close(samples_of(eight, RATE, "prompt")[0], SOUND, atol=0.02, rtol=0)


def test_another_rate_is_resampled_as_that_of_a_file() -> None:
    other = voice(0.6, rate=22_050)
    samples, _ = samples_of((other.numpy(), 22_050), RATE, "prompt")
    assert torch.equal(samples, resample(other, 22_050, RATE).clamp(-1, 1))
    from_file, _ = samples_of(encode_sound(other, 22_050), RATE, "prompt")
    torch.testing.assert_close(samples, from_file, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("source", "error", "named"),
    [
        (3, WrongTypeError, r"the prompt is 3 \(int\); give a file, samples at 8000 Hz"),
        ([0.1, 0.2], WrongTypeError, r"the prompt is \[0.1, 0.2\] \(list\)"),
        ((RATE, SOUND), WrongTypeError, r"\(tuple\); give a file, .* or \(samples, rate\)"),
        ((SOUND, 22_050.5), WrongTypeError, r"\(samples, rate\)"),
        ((SOUND, 12), ConfigError, "12"),
        (torch.zeros(2, 3, 4), DataError, r"the shape \(2, 3, 4\) of torch.float32"),
        (torch.zeros(4, dtype=torch.bool), DataError, "torch.bool"),
        (WHOLE, DataError, r"values up to .*, but those of a sound lie in \[-1, 1\]; scale them"),
        (b"no sound", DataError, "the prompt"),
    ],
)
def test_what_is_no_sound(source: object, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        samples_of(source, RATE, "prompt")


def test_a_rate_may_be_a_float_of_a_whole_number() -> None:
    for rate in (float(RATE), np.float32(RATE)):
        assert torch.equal(samples_of((SOUND, rate), RATE, "prompt")[0], SOUND)
    for rate in (RATE + 0.5, float("nan"), float("inf")):
        with pytest.raises(WrongTypeError, match=r"or \(samples, rate\)"):
            samples_of((SOUND, rate), RATE, "prompt")
