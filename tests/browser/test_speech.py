"""Speech: texts, voices from files and the microphone, sound that can be heard and kept."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser.fake import FakeServer, sound
from browser.page import Page


@pytest.fixture
def voice(page: Page) -> Page:
    page.go("speech")
    return page


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "me.wav"
    path.write_bytes(sound())
    return path


def choose_voice(page: Page, value: str) -> None:
    page.click(f"[name=voice][value={value}]")


def test_a_text_is_spoken_heard_and_kept(voice: Page, fake: FakeServer) -> None:
    voice.fill("[name=text]", "nine zero")
    voice.fill("[name=seed]", 4)
    voice.fill("[name=speed]", 1.25)
    assert voice.finish() == "0.4 s of speech in 0.1 s, seed 4."
    ((path, fields),) = fake.seen
    assert path == "/v1/speech"
    settings = {"speed": "1.25", "num_steps": "12", "guidance_scale": "1", "seed": "4"}
    assert fields == {"model": "digits", "text": "nine zero", **settings}
    player = voice.one(".sound audio")
    voice.wait(lambda: voice.run("return arguments[0].duration", player) == pytest.approx(0.4, abs=0.01))
    assert voice.one(".spectrogram img").is_displayed()
    voice.click(".sound .save")
    assert voice.downloaded("nine-zero-4.wav").read_bytes() == sound()


def test_a_voice_from_a_file_is_sent_as_it_is_with_its_text(voice: Page, fake: FakeServer, recording: Path) -> None:
    choose_voice(voice, "file")
    assert "consent" in voice.one(".consent").text
    voice.one("[name=prompt]").send_keys(str(recording))
    voice.fill("[name=prompt_text]", "five two")
    voice.finish()
    fields = fake.seen[0][1]
    assert fields["prompt"] == recording.read_bytes() and fields["prompt_text"] == "five two"
    choose_voice(voice, "none")  # a file that was chosen before is not sent any more
    voice.finish()
    assert "prompt" not in fake.seen[1][1] and "prompt_text" not in fake.seen[1][1]


def test_what_is_missing_is_named_beside_its_field(voice: Page, fake: FakeServer, recording: Path) -> None:
    choose_voice(voice, "file")
    voice.finish()
    assert voice.error_of("[name=prompt]") == "Choose a sound file."
    voice.one("[name=prompt]").send_keys(str(recording))
    voice.finish()
    assert voice.error_of("[name=prompt_text]").startswith("Write what is said in it")
    voice.fill("[name=text]", " ")
    voice.finish()
    assert voice.error_of("[name=text]") == "Write what to say."
    choose_voice(voice, "record")
    voice.fill("[name=text]", "one")
    voice.finish()
    assert voice.errors() == ["Record a few seconds first."]
    assert not fake.seen


def test_a_file_larger_than_the_server_takes_is_not_sent(voice: Page, fake: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "long.wav").write_bytes(bytes(400_000))
    choose_voice(voice, "file")
    voice.one("[name=prompt]").send_keys(str(tmp_path / "long.wav"))
    voice.fill("[name=prompt_text]", "one")
    voice.finish()
    assert voice.error_of("[name=prompt]") == "'long.wav' has 0.4 MiB; this server takes 0.1 MiB at most."
    assert not fake.seen


def test_a_refused_text_is_named_beside_the_text(voice: Page, fake: FakeServer) -> None:
    fake.fault = {"status": 422, "error": "text 'hello' has letters out of the model's reach"}
    voice.finish()
    assert voice.error_of("[name=text]") == "text 'hello' has letters out of the model's reach."


def test_a_recording_is_sent_as_a_wav_file_of_one_channel(voice: Page, fake: FakeServer) -> None:
    choose_voice(voice, "record")
    voice.click(".record")
    voice.wait(lambda: voice.one(".clock").text >= "0.6")
    voice.click(".record")
    voice.wait(lambda: voice.one(".record-status").text.startswith("Recorded."))
    assert voice.one(".voice-shared audio").is_displayed()
    voice.fill("[name=prompt_text]", "beep")
    voice.finish()
    with wave.open(io.BytesIO(fake.seen[0][1]["prompt"])) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24000)
        assert 0.3 < file.getnframes() / 24000 < 3
        assert any(file.readframes(file.getnframes()))


@pytest.fixture
def insecure(driver: object) -> Iterator[None]:
    """As if the page had come from another machine without https."""
    source = "Object.defineProperty(window, 'isSecureContext', {get: () => false})"
    command = "Page.addScriptToEvaluateOnNewDocument"
    script = driver.execute_cdp_cmd(command, {"source": source})
    yield
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


def test_where_browsers_lend_no_microphone_the_page_says_why(insecure: None, voice: Page) -> None:
    choose_voice(voice, "record")
    assert not voice.one(".record").is_enabled()
    assert "only to pages from https or localhost" in voice.one(".record-status").text


def test_speaking_can_be_cancelled(voice: Page, fake: FakeServer) -> None:
    fake.delay_s = 1.0
    voice.click("button.primary")
    voice.wait(lambda: voice.status() == "Speaking …")
    voice.click("button.cancel")
    assert voice.end() == "Cancelled."
    assert not voice.one(".sound").is_displayed()
