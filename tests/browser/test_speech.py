"""Speech: texts, voices from files and the microphone, sound that can be heard and kept."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser.fake import SPEECH_MODEL, FakeServer, picture, sound
from browser.page import Page


@pytest.fixture
def voice(page: Page) -> Page:
    page.go("speech")
    return page


def choose_voice(page: Page, value: str) -> None:
    page.click(f"[name=voice][value={value}]")


def test_a_text_is_spoken_heard_and_kept(voice: Page, fake: FakeServer) -> None:
    voice.fill("[name=text]", "nine zero")
    voice.fill("[name=seed]", 4)
    voice.fill("[name=speed]", 1.25)
    assert voice.finish() == "0.4 s of speech in 0.1 s, seed 4."
    ((path, fields),) = fake.seen
    assert path == "/v1/speech/stream"
    settings = {"speed": "1.25", "num_steps": "12", "guidance_scale": "1", "seed": "4"}
    assert fields == {"model": "digits", "text": "nine zero", **settings}
    player = voice.one(".sound audio")
    voice.wait(lambda: voice.run("return arguments[0].duration", player) == pytest.approx(0.4, abs=0.01))
    assert voice.one(".sound .spectrogram img").is_displayed()
    voice.click(".sound .save")
    assert voice.downloaded("nine-zero-4.wav").read_bytes() == sound()


def test_a_voice_from_a_file_is_sent_as_it_is_with_its_text(voice: Page, fake: FakeServer, recording: Path) -> None:
    choose_voice(voice, "file")
    assert "consent" in voice.one(".consent").text
    voice.one("[name=recording]").send_keys(str(recording))
    voice.fill("[name=prompt_text]", "five two")
    voice.finish()
    fields = fake.seen[0][1]
    assert fields["prompt"] == recording.read_bytes() and fields["prompt_text"] == "five two"
    assert fields["check_prompt"] == "true"
    choose_voice(voice, "none")  # a file that was chosen before is not sent any more
    voice.finish()
    assert not {"prompt", "prompt_text", "check_prompt"} & set(fake.seen[1][1])


def test_doubts_about_the_text_of_a_voice_are_said(voice: Page, recording: Path) -> None:
    choose_voice(voice, "file")
    voice.one("[name=recording]").send_keys(str(recording))
    voice.fill("[name=prompt_text]", "something else")
    told = "0.4 s of speech in 0.1 s, seed 0. But the prompt may say something else than its text."
    assert voice.finish() == told
    voice.fill("[name=prompt_text]", "five two")
    assert voice.finish() == told.partition(" But")[0]


def test_what_is_missing_is_named_beside_its_field(voice: Page, fake: FakeServer, recording: Path) -> None:
    choose_voice(voice, "file")
    voice.finish()
    assert voice.error_of("[name=recording]") == "Choose a sound file."
    voice.one("[name=recording]").send_keys(str(recording))
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
    voice.one("[name=recording]").send_keys(str(tmp_path / "long.wav"))
    voice.fill("[name=prompt_text]", "one")
    voice.finish()
    assert voice.error_of("[name=recording]") == "'long.wav' has 0.4 MiB; this server takes 0.3 MiB at most."
    assert not fake.seen


@pytest.mark.parametrize(
    "error", ["the model cannot speak 'hello'; it knows: one, two", "no English words: 'x'; write the phonemes"]
)
def test_a_refused_text_is_named_beside_the_text(voice: Page, fake: FakeServer, error: str) -> None:
    fake.fault = {"status": 422, "error": error}
    voice.finish()
    assert voice.error_of("[name=text]") == f"{error}."


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
    assert "only on pages from https or localhost" in voice.one(".record-status").text


def test_speaking_can_be_cancelled(voice: Page, fake: FakeServer) -> None:
    fake.hold_at = 0
    voice.click("button.primary")
    voice.wait(lambda: voice.status() == "Speaking …")
    voice.click("button.cancel")
    assert voice.end() == "Cancelled."
    assert not voice.one(".sound").is_displayed()


def test_on_arrival_stand_sentences_of_the_model_and_how_good_it_is(voice: Page, fake: FakeServer) -> None:
    voice.wait(lambda: len(voice.all(".spoken-samples li")) == 2)
    assert voice.one(".measured").text == "word errors: 2.9 %"
    spoken = [one.text.split("\n")[:2] for one in voice.all(".spoken-samples li")]
    assert spoken == [["“three seven one”", "Voice: the model's own choice"], ["“nine zero. two four.”", "Voice: ann"]]
    players = voice.all(".spoken-samples audio")
    voice.wait(lambda: voice.run("return arguments[0].duration", players[1]) == pytest.approx(0.4, abs=0.01))
    voice.finish()
    assert not voice.one(".spoken-samples").is_displayed() and voice.one(".sound").is_displayed()


def test_sentences_and_voices_come_from_the_model(voice: Page, fake: FakeServer) -> None:
    assert voice.one("[name=text]").get_attribute("value") == "three seven one"
    assert [button.text for button in voice.all(".try button")] == fake.models[2]["sentences"]
    voice.click(".try button:nth-child(2)")
    voice.click("[name=voice][value='named:ann']")
    assert not voice.one(".voice-shared").is_displayed()
    voice.finish()
    fields = fake.seen[0][1]
    assert fields["text"] == "nine zero. two four." and fields["voice"] == "ann" and "prompt" not in fields
    voice.click("[name=voice][value=none]")
    voice.finish()
    assert "voice" not in fake.seen[1][1]


def test_a_named_voice_can_be_heard_before_it_speaks(voice: Page) -> None:
    voice.run("""window.played = []; const play = Audio.prototype.play;
        Audio.prototype.play = function () { window.played.push(this.src.slice(0, 22)); return play.call(this); }""")
    voice.click(".named .listen")
    voice.wait(lambda: voice.run("return window.played") == ["data:audio/flac;base64"])


def test_every_sentence_is_seen_step_by_step_and_can_be_gone_back_to(voice: Page, fake: FakeServer) -> None:
    fake.hold_at = 13  # the first step of the second sentence
    voice.fill("[name=text]", "one. two three.")
    voice.click("button.primary")
    voice.wait(lambda: len(voice.all(".sentence")) == 2, "the second sentence, while it is made")
    assert voice.all(".sentence .spoken")[0].text.startswith("“one”") and voice.status() == "Speaking …"
    fake.released.set()
    assert voice.end() == "0.4 s of speech in 0.1 s, seed 0."
    assert [one.text[:8] for one in voice.all(".sentence .spoken")] == ["“one” 0.", "“two thr"]
    first = ".sentence:nth-child(1)"
    assert "80 of 80 codes" in voice.one(f"{first} figcaption").text
    voice.slide(f"{first} .steps input", 3)
    assert "20 of 80 codes" in voice.one(f"{first} figcaption").text
    assert voice.one(f"{first} .steps output").text == "3 of 12"
    assert voice.png(f"{first} img") == base64.b64decode(picture("heard", "one", 3, size=64))
    voice.slide(f"{first} .steps input", 12)
    assert voice.png(f"{first} img") == base64.b64decode(picture("spectrogram", "one", size=64))


def test_sound_is_played_while_the_rest_is_made(voice: Page, fake: FakeServer) -> None:
    voice.run("""window.begun = []; const start = AudioBufferSourceNode.prototype.start;
        AudioBufferSourceNode.prototype.start = function (when) {
          window.begun.push([when, this.buffer.duration]); return start.call(this, when); }""")
    voice.fill("[name=text]", "one. two.")
    voice.finish()
    (first, length), (second, _) = voice.run("return window.begun")
    assert length == pytest.approx(0.2, abs=0.01) and second >= first + length - 1e-6, "without a gap or an overlap"
    voice.click("[name=listen]")
    voice.finish()
    assert len(voice.run("return window.begun")) == 2


def test_a_connection_that_ends_early_is_said(voice: Page, fake: FakeServer) -> None:
    fake.fault = "break"
    voice.finish()
    assert voice.error_of("button.primary") == "The connection ended before the response was complete. Try again."


LETTERS = {**SPEECH_MODEL, "name": "letters", "voices": ["default", "bob"], "sentences": ["a b", "c d"]}
PLAYING = "return [...document.querySelectorAll('audio')].filter((one) => !one.paused).length"


@pytest.fixture
def two(page: Page, fake: FakeServer) -> Page:
    """The view with two models of speech, and the samples of the first."""
    fake.models = [SPEECH_MODEL, LETTERS]
    page.load("speech")
    page.wait(lambda: len(page.all(".spoken-samples li")) == 2)
    return page


def play(page: Page, selector: str) -> None:
    """Again and again."""
    page.run("arguments[0].loop = true; return arguments[0].play()", page.one(selector))


def test_a_result_is_shown_although_another_model_was_chosen_meanwhile(two: Page, fake: FakeServer) -> None:
    fake.hold_at = 1
    two.click("button.primary")
    two.wait(lambda: two.all(".sentence"))
    two.choose("[name=model]", "letters")
    assert two.one(".sound").is_displayed() and two.status() == "Speaking …"
    fake.released.set()
    assert two.end() == "0.4 s of speech in 0.1 s, seed 0."
    assert two.one(".sound audio").is_displayed() and not two.one(".spoken-samples").is_displayed()
    two.choose("[name=model]", "digits")
    assert two.status() == "" and not two.one(".sound").is_displayed()


def test_while_samples_of_another_model_are_spoken_the_view_says_so(two: Page, fake: FakeServer) -> None:
    two.finish()
    fake.samples_held = True
    two.choose("[name=model]", "letters")
    assert two.one(".empty").text == "The model is speaking sample sentences …"
    fake.samples_released.set()
    two.wait(lambda: len(two.all(".spoken-samples li")) == 2)


def test_samples_that_arrive_during_a_request_stand_there_after_it_is_cancelled(page: Page, fake: FakeServer) -> None:
    fake.samples_held, fake.hold_at = True, 0
    page.load("speech")
    page.click("button.primary")
    page.wait(lambda: page.status() == "Speaking …")
    fake.samples_released.set()
    page.wait(lambda: len(page.all(".spoken-samples li")) == 2)
    page.click("button.cancel")
    assert page.end() == "Cancelled."
    assert page.one(".spoken-samples").is_displayed() and not page.one(".empty").is_displayed()


def test_an_own_voice_stays_for_another_model_and_a_named_one_does_not(two: Page, recording: Path) -> None:
    choose_voice(two, "file")
    two.one("[name=recording]").send_keys(str(recording))
    two.choose("[name=model]", "letters")
    assert two.one("[name=voice][value=file]").is_selected() and two.one("[name=recording]").is_displayed()
    choose_voice(two, "'named:bob'")
    assert not two.one("[name=recording]").is_displayed()
    two.choose("[name=model]", "digits")
    assert two.one("[name=voice][value=none]").is_selected() and not two.one("[name=recording]").is_displayed()


def test_one_sound_is_heard_at_a_time(two: Page) -> None:
    two.click("h2")  # browsers let no page sound before a press
    play(two, ".spoken-samples li:nth-child(1) audio")
    play(two, ".spoken-samples li:nth-child(2) audio")
    assert two.run(PLAYING) == 1
    two.finish()
    assert two.run(PLAYING) == 0, "what is hidden is silent"
    play(two, ".sound audio")
    two.choose("[name=model]", "letters")
    assert two.run(PLAYING) == 0


def test_a_sound_that_is_played_silences_the_one_that_is_made(two: Page, fake: FakeServer) -> None:
    two.run("""window.contexts = []; window.AudioContext = class extends AudioContext {
        constructor(options) { super(options); window.contexts.push(this); } };""")
    fake.hold_at = 13  # the first step of the second sentence
    two.fill("[name=text]", "one. two.")
    two.click("button.primary")
    two.wait(lambda: len(two.all(".sentence")) == 2)
    assert two.run("return window.contexts.map((one) => one.state)") != ["closed"]
    two.click(".named .listen")
    two.wait(lambda: two.run("return window.contexts.map((one) => one.state)") == ["closed"])
    fake.released.set()
    assert two.end().startswith("0.4 s of speech")


def test_a_voice_that_did_not_arrive_is_asked_for_again(page: Page, fake: FakeServer) -> None:
    fake.samples_fault = {"status": 500, "error": "internal error"}
    page.load("speech")
    page.click(".named .listen")
    page.wait(lambda: page.errors() == ["internal error."])
    assert page.error_of(".named .listen") == "internal error."
    fake.samples_fault = None
    page.click(".named .listen")
    page.wait(lambda: page.run("return document.querySelector('#view-speech form > audio').src.slice(0, 10)"))
    assert page.errors() == []


def test_a_voice_that_arrives_late_does_not_interrupt_what_was_asked_for_since(page: Page, fake: FakeServer) -> None:
    fake.samples_held = True
    page.load("speech")
    page.click(".named .listen")
    page.finish()
    late = "return performance.getEntriesByType('resource').filter((e) => e.name.includes('/voices')).length"
    assert page.run(late) == 0, "the voices came first"
    fake.samples_released.set()
    page.wait(lambda: page.run(late) == 1)
    page.run("return new Promise((done) => setTimeout(done, 100))")
    assert page.run("return document.querySelector('#view-speech form > audio').src") == ""


def test_a_long_text_is_kept_whole_and_its_length_said(voice: Page, fake: FakeServer, recording: Path) -> None:
    paste = "arguments[0].select(); document.execCommand('insertText', false, arguments[1])"
    voice.run(paste, voice.one("[name=text]"), 150 * "🙂" + 51 * "a")
    voice.finish()
    assert voice.error_of("[name=text]") == "The text has 201 characters; this server takes 200 at most."
    voice.fill("[name=text]", "one")
    choose_voice(voice, "file")
    voice.one("[name=recording]").send_keys(str(recording))
    voice.fill("[name=prompt_text]", 300 * "a")
    voice.finish()
    assert voice.error_of("[name=prompt_text]") == "What is said has 300 characters; this server takes 200 at most."
    assert not fake.seen


def test_a_file_that_was_removed_since_it_was_chosen_is_named(voice: Page, fake: FakeServer, recording: Path) -> None:
    choose_voice(voice, "file")
    voice.one("[name=recording]").send_keys(str(recording))
    voice.fill("[name=prompt_text]", "five")
    recording.unlink()
    voice.finish()
    said = "'me.wav' was changed or removed since it was chosen. Choose it again."
    assert voice.error_of("[name=recording]") == said and not fake.seen
    recording.write_bytes(sound())
    voice.one("[name=recording]").send_keys(str(recording))
    assert voice.finish().startswith("0.4 s of speech")


def test_a_recording_can_be_given_up_while_the_browser_asks_for_the_microphone(voice: Page) -> None:
    voice.run("""const media = navigator.mediaDevices, ask = media.getUserMedia.bind(media);
        window.asked = 0;
        media.getUserMedia = async (wish) => {
          window.asked += 1;
          await new Promise((lend) => (window.lend = lend));
          const sound = await ask(wish);
          [window.track] = sound.getTracks();
          return sound;
        };""")
    choose_voice(voice, "record")
    voice.click(".record")
    voice.wait(lambda: voice.one(".record-status").text == "Waiting for the microphone …")
    assert voice.one(".record").text == "Stop"
    voice.click(".record")
    voice.run("window.lend()")
    voice.wait(lambda: voice.one(".record").text == "Record")
    assert voice.run("return [window.asked, window.track.readyState]") == [1, "ended"]
    assert voice.one(".record-status").text.startswith("At most 6 seconds") and voice.errors() == []


def test_a_recorder_that_fails_gives_the_microphone_back(voice: Page) -> None:
    voice.run("""const media = navigator.mediaDevices, ask = media.getUserMedia.bind(media);
        media.getUserMedia = async (wish) => {
          const sound = await ask(wish);
          [window.track] = sound.getTracks();
          return sound;
        };
        window.MediaRecorder = class { constructor() { throw new Error("no encoder"); } };""")
    choose_voice(voice, "record")
    voice.click(".record")
    voice.wait(voice.errors)
    assert voice.error_of(".record") == "No recording: no encoder."
    assert voice.run("return window.track.readyState") == "ended"


def test_a_microphone_that_is_refused_is_said(voice: Page) -> None:
    voice.run("""navigator.mediaDevices.getUserMedia = async () => {
        throw new DOMException("Permission denied", "NotAllowedError"); };""")
    choose_voice(voice, "record")
    voice.click(".record")
    voice.wait(voice.errors)
    assert voice.error_of(".record") == "No recording: the browser was not allowed to use the microphone."
    assert voice.one(".record-status").text.startswith("At most 6 seconds")


def test_a_recording_that_is_stopped_at_once_is_said_to_be_too_short(voice: Page) -> None:
    choose_voice(voice, "record")
    voice.run(
        """const [button, status] = arguments;
        const watch = new MutationObserver(() => {
          if (status.textContent !== "Recording …") return;
          watch.disconnect();
          button.click();
        });
        watch.observe(status, {childList: true});""",
        voice.one(".record"),
        voice.one(".record-status"),
    )
    voice.click(".record")
    voice.wait(voice.errors)
    said = "No recording: it was stopped before there was a sound; record a few seconds."
    assert voice.error_of(".record") == said
