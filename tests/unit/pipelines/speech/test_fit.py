"""Doubts about a prompt's text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resgen.checkpoints.locate import resolve_model
from resgen.checkpoints.voices import Voice
from resgen.data.sound.decode import read_sound
from resgen.pipelines.speech.fit import MAX_ORDERS, other_orders
from resgen.pipelines.speech.pipeline import SpeechPipeline

MODEL = "spoken-digits-small"


def test_every_order_is_another_one_of_the_same_words() -> None:
    assert other_orders(b"one") == []
    assert other_orders(b"one two") == [b"two one"]
    assert other_orders(b"one one one") == []
    assert set(other_orders(b"a b c")) == {b"b c a", b"c a b", b"c b a", b"b a c", b"a c b"}
    content = b" ".join(b"%d" % k for k in range(40))
    orders = other_orders(content)
    assert len(set(orders)) == len(orders) == MAX_ORDERS and content not in orders
    assert all(sorted(order.split()) == sorted(content.split()) for order in orders)
    assert any(order.split()[0] > order.split()[1] for order in orders)  # backwards too


@pytest.mark.parametrize(
    ("name", "wrong"), [("rms", "seven three four five nine five"), ("alicia", "eight five nine five")]
)
def test_a_wrong_text_is_doubted_and_the_right_one_is_not(
    name: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = SpeechPipeline.from_pretrained(MODEL)
    file = Path(resolve_model(MODEL)) / f"{name}.flac"
    lines: list[str] = []
    pipe.prepare(file, pipe.voices[name].text, lines.append)
    pipe.prepare(file, wrong)
    assert lines == []
    pipe.prepare(file, wrong, lines.append)
    (line,) = lines
    assert capsys.readouterr().err == "", "the server's log may not hold what is sent to it"
    assert f"{name}.flac' may say something else than its text {wrong!r}" in line


def test_a_text_that_is_too_short_for_its_sound_is_doubted() -> None:
    pipe = SpeechPipeline.from_pretrained(MODEL)
    lines: list[str] = []
    pipe.prepare(Path(resolve_model(MODEL)) / "rms.flac", "six", lines.append)
    (line,) = lines
    assert "s of speech, more than its text 'six' accounts for; give the full transcript" in line


def test_silence_that_is_edited_is_no_speech(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = SpeechPipeline.from_pretrained(MODEL)
    recording = read_sound(Path(resolve_model(MODEL)) / "rms.flac", pipe.sample_rate_hz, where="rms")
    late = torch.cat([torch.zeros(8 * pipe.sample_rate_hz - len(recording)), recording])
    spoken = {"input_text": pipe.voices["rms"].text, "text": "two"}
    pipe.plan_edit(late, **spoken, begin_s=0.5, end_s=1.0, doubt=pytest.fail)
    assert capsys.readouterr().err == ""
    lines: list[str] = []
    long = {"input_text": " ".join(["seven"] * 50), "text": "two"}
    pipe.plan_edit(late, **long, begin_s=0.5, end_s=1.0, doubt=lines.append)
    assert "s of speech, too little for its text" in lines[0] and len(lines) == 1


def test_the_text_of_a_recording_that_is_edited_is_doubted(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = SpeechPipeline.from_pretrained(MODEL)
    file, right, wrong = (
        Path(resolve_model(MODEL)) / "rms.flac",
        pipe.voices["rms"].text,
        "seven three four five nine five",
    )
    for text, doubts in ((right, 0), (wrong, 1)):
        pipe.words(file, text)
        assert capsys.readouterr().err.count("may say something else") == doubts
        pipe.edit(file, input_text=text, text=f"two {text}", num_steps=1)
        assert capsys.readouterr().err.count("may say something else") == doubts


def test_a_call_doubts_what_it_is_given_and_no_voice_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = SpeechPipeline.from_pretrained(MODEL)
    file = Path(resolve_model(MODEL)) / "rms.flac"
    pipe.voices["wrong"] = Voice(file.read_bytes(), "seven three four five nine five")
    pipe("one", voice="wrong", num_steps=1)  # `add_voice` has looked at it
    assert capsys.readouterr().err == ""
    pipe("one", prompt=file, prompt_text="seven three four five nine five", num_steps=1)
    assert "may say something else" in capsys.readouterr().err
    pipe.add_voice("again", file, "seven three four five nine five")
    assert "may say something else" in capsys.readouterr().err
