"""Words of a recording are changed: choose one, see its words, change one, hear both."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from browser.fake import SPEECH_MODEL, FakeServer, picture, sound
from browser.page import Page

PRESS = "Press a word to change it, or write what is to be said."


@pytest.fixture
def words(page: Page) -> Page:
    page.go("words")
    return page


def take_sample(page: Page) -> None:
    page.wait(lambda: len(page.all(".offer li")) == 2)
    page.click(".offer li:nth-child(1) .change-words")


def upload(page: Page, recording: Path) -> None:
    page.one("[name=recording]").send_keys(str(recording))
    page.fill("[name=input_text]", "three seven one")


def duration_of(page: Page, selector: str) -> float:
    return page.run("return arguments[0].duration", page.one(selector)) or 0.0


def part_of(page: Page, selector: str) -> list[float]:
    """From where to where a spectrogram is marked, as shares of its width."""
    script = """const box = (one) => arguments[0].querySelector(one).getBoundingClientRect();
        const [image, part] = [box('img'), box('.part')];
        return [(part.left - image.left) / image.width, (part.right - image.left) / image.width]"""
    return page.run(script, page.one(selector))


def test_a_word_of_a_sample_is_changed_and_both_are_heard(words: Page, fake: FakeServer) -> None:
    take_sample(words)
    assert words.one("[name=input_text]").get_attribute("value") == "three seven one"
    assert words.one(".made").text == "Made here: “three seven one”"
    assert [chip.text for chip in words.all(".words .chip")] == ["three", "seven", "one"]
    words.click(".words .chip:nth-child(2)")
    words.keys("nine")  # in place of the word that was pressed
    assert words.one("[name=text]").get_attribute("value") == "three nine one"
    assert [chip.text for chip in words.all(".words .chip")] == ["three", "nine", "one"]
    assert words.one("#words-change").text == PRESS
    words.fill("[name=seed]", 4)
    assert words.finish() == "New from 0.16 to 0.32 s, in 0.1 s, seed 4."
    assert words.one("#words-change").text == "“seven” becomes “nine”; the rest is kept."
    ((path, fields),) = fake.seen
    assert path == "/v1/speech/edit/stream" and fields.pop("recording") == sound()
    settings = {"speed": "1", "num_steps": "12", "guidance_scale": "1", "seed": "4"}
    texts = {"input_text": "three seven one", "text": "three nine one", "blend": "true", "keep_length": "false"}
    assert fields == {"model": "digits", **texts, **settings}
    spoken = [words.one(f"{side} .spoken").text.split("”")[0] for side in (".before", ".after")]
    assert spoken == ["“three seven one", "“three nine one"]
    assert [words.one(f"{side} mark").text for side in (".before", ".after")] == ["seven", "nine"]
    words.wait(lambda: duration_of(words, ".before audio") == pytest.approx(0.4, abs=0.01))
    words.wait(lambda: duration_of(words, ".after audio") == pytest.approx(0.5, abs=0.01))
    assert part_of(words, ".before .timed") == pytest.approx([0.4, 0.6], abs=0.02)
    assert part_of(words, ".after .timed") == pytest.approx([0.32, 0.64], abs=0.02)
    words.click(".after .save")
    assert words.downloaded("three-nine-one-4.wav").read_bytes() == sound(0.5)
    assert words.console() == []


def test_steps_are_seen_while_they_are_made_and_afterwards(words: Page, fake: FakeServer) -> None:
    fake.hold_at = 1
    take_sample(words)
    words.fill("[name=text]", "three nine one")
    words.click("button.primary")
    words.wait(lambda: words.all(".after .steps output"), "a step")
    assert words.status() == "Speaking …" and words.one(".before img").is_displayed()
    fake.released.set()
    words.end()
    words.slide(".after .steps input", 6)
    assert words.png(".after img") == base64.b64decode(picture("after", 6, size=64))
    assert part_of(words, ".after .timed") == pytest.approx([0.4, 0.8], abs=0.02), "of the positions"
    assert "128 of 160 codes" in words.one(".after figcaption").text
    words.slide(".after .steps input", 12)
    assert words.png(".after img") == base64.b64decode(picture("after", size=64))


def test_the_sound_just_made_and_the_result_can_be_changed(page: Page, fake: FakeServer) -> None:
    page.go("speech")
    page.fill("[name=text]", "nine zero")
    page.finish()
    page.click(".result .change-words")
    page.wait(lambda: page.view() == "words")
    assert page.one("[name=text]").get_attribute("value") == "nine zero"
    page.fill("[name=text]", "nine two")
    page.finish()
    assert fake.seen[1][1]["recording"] == sound()
    page.click(".after .change-words")
    assert page.one("[name=input_text]").get_attribute("value") == "nine two"
    page.fill("[name=text]", "nine three")
    page.finish()
    assert fake.seen[2][1]["recording"] == sound(0.5) and fake.seen[2][1]["input_text"] == "nine two"


@pytest.mark.parametrize(
    ("text", "said", "before", "after"),
    [
        ("three 2 one", "“seven” becomes “two”", ["seven"], ["two"]),
        ("three one", "“seven one” becomes “one”", ["seven one"], ["one"]),
        ("three two seven one", "“two” is put in", [], ["two"]),
    ],
)
def test_what_changes_is_what_the_server_says(
    words: Page, recording: Path, text: str, said: str, before: list[str], after: list[str]
) -> None:
    """It knows how a text is read, and says a word again beside one that is left out."""
    upload(words, recording)
    assert words.one("[name=text]").get_attribute("value") == "three seven one", "follows as long as it is the same"
    words.fill("[name=text]", text)
    assert words.one("#words-change").text == PRESS
    words.finish()
    assert words.one("#words-change").text == f"{said}; the rest is kept."
    assert [one.text for one in words.all(".before mark")] == before
    assert [one.text for one in words.all(".after mark")] == after
    words.fill("[name=text]", "three")
    assert words.one("#words-change").text == PRESS


def test_what_the_page_does_not_play_any_more_is_given_up(words: Page, recording: Path) -> None:
    """Of sounds made in the page, the browser keeps those that an element plays."""
    take_sample(words)
    words.run("""const [create, revoke, alive] = [URL.createObjectURL, URL.revokeObjectURL, window.alive = new Set()];
        URL.createObjectURL = (blob) => { const url = create.call(URL, blob); alive.add(url); return url; };
        URL.revokeObjectURL = (url) => { alive.delete(url); revoke.call(URL, url); };""")
    for text in ("three nine one", "three two one"):
        words.fill("[name=text]", text)
        words.finish()
        words.click(".after .change-words")
    words.go("speech")
    for _ in range(2):
        words.finish()
    words.run("const s = document.querySelector('#view-speech select'); s.dispatchEvent(new Event('change'));")
    words.go("words")
    words.wait(lambda: len(words.all(".spoken-samples audio")) == 2)
    playing = "return [...document.querySelectorAll('[src^=\"blob:\"]')].map((one) => one.src)"
    held = words.run("return [...window.alive]")
    assert held and set(held) <= set(words.run(playing))


def test_what_is_missing_is_named_beside_its_field(words: Page, fake: FakeServer, recording: Path) -> None:
    words.finish()
    assert words.error_of("[name=recording]") == "Choose a sound file."
    words.one("[name=recording]").send_keys(str(recording))
    words.finish()
    assert words.error_of("[name=input_text]").startswith("Write what is said in it")
    words.fill("[name=input_text]", "three seven one")
    words.finish()
    assert words.error_of("[name=text]") == "Change at least one word."
    words.click("[name=source][value=record]")
    words.finish()
    assert words.errors() == ["Record a few seconds first."]
    assert not fake.seen


@pytest.mark.parametrize(
    ("error", "control"),
    [
        ("the recording is silent", "[name=recording]"),
        ("the model cannot speak 'x'; it knows: one, two", "[name=text]"),
        ("no English words: 'x'; write the phonemes between slashes", "[name=text]"),
        ("the text 'two' has the words of the recording; change one, or name a stretch", "[name=text]"),
        ("speed=1.5 and keep_length both say how long the new words take; give one of them", "[name=speed]"),
    ],
)
def test_what_the_server_refuses_is_named_beside_its_field(
    words: Page, fake: FakeServer, recording: Path, error: str, control: str
) -> None:
    upload(words, recording)
    words.fill("[name=text]", "three nine one")
    fake.fault = {"status": 422, "error": error}
    words.finish()
    assert words.error_of(control) == f"{error}."


def test_doubts_about_the_text_of_a_file_are_said(words: Page, fake: FakeServer, recording: Path) -> None:
    upload(words, recording)
    for said, doubt in (
        ("something else", " But the recording may say something else than its text."),
        ("one two", ""),
    ):
        words.fill("[name=input_text]", said)
        words.fill("[name=text]", "three seven")
        assert words.finish() == f"New from 0.16 to 0.32 s, in 0.1 s, seed 0.{doubt}"
    assert [fields["check_input"] for _, fields in fake.seen] == ["true", "true"]


def test_a_recording_made_now_is_sent(words: Page, fake: FakeServer) -> None:
    words.click("[name=source][value=record]")
    words.click(".record")
    words.wait(lambda: words.one(".clock").text >= "0.6")
    words.click(".record")
    words.wait(lambda: words.one(".record-status").text.startswith("Recorded."))
    assert words.one(".voice-shared audio").is_displayed() and "consent" in words.one(".consent").text
    words.fill("[name=input_text]", "beep beep")
    words.fill("[name=text]", "beep one")
    words.finish()
    assert fake.seen[0][1]["recording"].startswith(b"RIFF")


def test_a_connection_that_ends_early_is_said(words: Page, fake: FakeServer, recording: Path) -> None:
    upload(words, recording)
    words.fill("[name=text]", "three nine one")
    fake.fault = "break"
    words.finish()
    assert words.error_of("button.primary") == "The connection ended before the response was complete. Try again."


def test_a_change_is_shown_although_another_model_was_chosen_meanwhile(words: Page, fake: FakeServer) -> None:
    fake.models = [SPEECH_MODEL, {**SPEECH_MODEL, "name": "letters"}]
    words.load("words")
    take_sample(words)
    words.fill("[name=text]", "three nine one")
    fake.hold_at = 1
    words.click("button.primary")
    words.wait(lambda: words.all(".sentence figcaption"))
    words.choose("[name=model]", "letters")
    fake.released.set()
    assert words.end() == "New from 0.16 to 0.32 s, in 0.1 s, seed 0."
    assert words.one(".after audio").is_displayed() and not words.one(".offer").is_displayed()
    assert words.one("#words-change").text.endswith("; the rest is kept.")
    words.choose("[name=model]", "digits")
    assert words.one("#words-change").text == PRESS
    assert words.status() == "" and not words.one(".after").is_displayed() and words.one(".offer").is_displayed()


@pytest.mark.parametrize(("control", "name"), [("[name=input_text]", "What is said"), ("[name=text]", "The text")])
def test_a_long_text_is_kept_whole_and_its_length_said(
    words: Page, fake: FakeServer, recording: Path, control: str, name: str
) -> None:
    upload(words, recording)
    words.fill("[name=text]", "three nine one")
    words.fill(control, 201 * "a")
    words.finish()
    assert words.error_of(control) == f"{name} has 201 characters; this server takes 200 at most."
    assert not fake.seen
