"""A recording with other words, over the interface: what the pipeline makes, and how it comes about."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import Any

import httpx
import pytest
import torch

from resgen.data.sound.decode import encode_sound, read_sound
from resgen.pipelines.speech import fit
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.serving.service import Service
from serving_parts import Asked, talk
from speech_parts import DEPTH, RATE, UNIT, voice

EDIT, STREAM = "/v1/speech/edit", "/v1/speech/edit/stream"
RECORDING = encode_sound(torch.cat([torch.zeros(800), voice(1.4), torch.zeros(800)]), RATE)
FIELDS = {"input_text": "ab ca bac", "text": "ab cab bac", "seed": 3, "num_steps": 2}
BODY = {**FIELDS, "recording": base64.b64encode(RECORDING).decode()}


def expected(pipe: SpeechPipeline, **changes: Any) -> Any:
    (result,) = pipe.edit(RECORDING, **{**FIELDS, **changes})
    return result


def close_to(content: bytes, audio: torch.Tensor) -> None:
    torch.testing.assert_close(read_sound(content, RATE), audio, atol=1e-4, rtol=0)


def posted(sources: dict[str, str], *requests: dict[str, Any], path: str = EDIT, **limits: Any) -> list[httpx.Response]:
    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return [await client.post(path, **request) for request in requests]

    return talk(sources, ask, **limits)


def test_an_edit_is_that_of_the_pipeline(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    """Of a form and of JSON, by a whole text and by a stretch."""
    stretch = {"text": "c", "begin_s": 0.4, "end_s": 0.7, "blend": True, "speed": 0.8}
    form, body, piece = posted(
        speaks,
        {"data": FIELDS, "files": {"recording": ("x.wav", RECORDING)}},
        {"json": BODY},
        {"json": {**BODY, **stretch}},
    )
    assert form.status_code == 200, form.text
    assert {**form.json(), "seconds": 0} == {**body.json(), "seconds": 0}
    rows = ((body.json(), expected(pipe), "cab"), (piece.json(), expected(pipe, **stretch), "c"))
    for answer, result, said in rows:
        plan = result.plan
        close_to(base64.b64decode(answer["wav"]), result.audio)
        assert base64.b64decode(answer["spectrogram"]).startswith(b"\x89PNG")
        assert (answer["text"], answer["model"], answer["seed"]) == (plan.text, "voice", 3)
        assert answer["replaced"] == " ".join(word.text for word in plan.replaced)
        assert [tuple(word.values()) for word in answer["words"]] == [tuple(word) for word in plan.words]
        assert (answer["begin_s"], answer["end_s"]) == plan.cut_s
        assert answer["new_end_s"] == pytest.approx(plan.cut_s[0] + plan.num_new * UNIT / RATE)
        assert answer["duration_s"] == result.duration_s
        old = answer["words"][slice(*answer["replaced_words"])]
        assert " ".join(word["text"] for word in old) == answer["replaced"]
        assert " ".join(answer["text"].split()[slice(*answer["new_words"])]) == said
    assert body.json()["replaced"] == "ca"


def test_doubts_about_a_transcript_are_told_where_they_are_asked_for(
    speaks: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[int] = []

    def better_orders(model: object, samples: torch.Tensor, spoken: object, mel: object) -> tuple[int, int]:
        heard.append(len(samples))
        return 3, 5

    monkeypatch.setattr(fit, "better_orders", better_orders)
    asked, wav = {"json": {**BODY, "check_input": True}}, {"headers": {"Accept": "audio/wav"}}
    told, quiet, sound = posted(speaks, asked, {"json": BODY}, asked | wav)
    (line,) = told.json()["warnings"]
    assert line.startswith("the recording may say something else than its text 'ab ca bac': 3 of 5 other orders")
    assert quiet.json()["warnings"] == [] and sound.headers["X-Warning"] == line
    (stream,) = posted(speaks, asked, path=STREAM)
    events = [json.loads(row) for row in stream.text.splitlines()]
    assert [event["event"] for event in events[:2]] == ["warning", "plan"] and events[0]["warnings"] == [line]
    assert len(heard) == 3 and set(heard) == {heard[0]} and heard[0] % UNIT == 0
    assert "ab ca bac" not in capsys.readouterr().err, "the server's log may not hold what is sent to it"


def test_a_change_at_the_end_ends_with_the_sound(speaks: dict[str, str]) -> None:
    """Its last position reaches beyond the recording."""
    recording = base64.b64encode(encode_sound(voice(1.21), RATE)).decode()
    last = {"recording": recording, "text": "cab", "begin_s": 0.9, "end_s": 1.21}
    same, other = posted(
        speaks, {"json": {**BODY, **last, "keep_length": True}}, {"json": {**BODY, **last, "speed": 4}}
    )
    assert same.json()["new_end_s"] == same.json()["end_s"] == same.json()["duration_s"]
    assert other.json()["new_end_s"] == pytest.approx(other.json()["duration_s"])
    assert other.json()["duration_s"] != same.json()["duration_s"]


def test_an_edit_as_the_file_that_is_asked_for(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    soundfile = pytest.importorskip("soundfile")
    kinds = {"audio/wav": "WAV", "audio/flac": "FLAC", "audio/mpeg": "MP3"}
    answers = posted(speaks, *({"json": BODY, "headers": {"Accept": kind}} for kind in kinds))
    audio = expected(pipe).audio
    for answer, (kind, name) in zip(answers, kinds.items(), strict=True):
        assert answer.status_code == 200 and answer.headers["x-seed"] == "3"
        assert answer.headers["content-type"] == kind and soundfile.info(io.BytesIO(answer.content)).format == name
        if kind != "audio/mpeg":
            close_to(answer.content, audio)


def test_a_stream_tells_the_plan_the_steps_and_the_sound(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    (answer,) = posted(speaks, {"json": BODY}, path=STREAM)
    plan, *steps, sound, last = [json.loads(line) for line in answer.text.splitlines()]
    result = expected(pipe)
    assert [one["event"] for one in (plan, *steps, sound, last)] == ["plan", "step", "step", "sound", "done"]
    assert plan["text"] == "ab cab bac" and plan["replaced"] == "ca" and len(plan["words"]) == 3
    assert plan["replaced_words"] == plan["new_words"] == [1, 2]
    assert plan["duration_s"] == pytest.approx(1.6) and base64.b64decode(plan["spectrogram"]).startswith(b"\x89PNG")
    begin, end = plan["new_positions"]
    assert (begin, end) == (result.plan.begin, result.plan.begin + result.plan.num_new)
    for number, step in enumerate(steps, start=1):
        known = step["visible"]
        assert step["step"] == number and step["num_steps"] == 2 and len(known) == len(result.codes)
        assert set(known[:begin] + known[end:]) == {DEPTH}, "what is given is known from the start"
        assert base64.b64decode(step["spectrogram"]).startswith(b"\x89PNG")
    assert min(steps[0]["visible"]) < DEPTH == min(steps[1]["visible"])
    pcm = torch.frombuffer(bytearray(base64.b64decode(sound["pcm"])), dtype=torch.int16) / 32768
    torch.testing.assert_close(pcm, result.audio, atol=1e-4, rtol=0)
    assert sound["duration_s"] == result.duration_s
    assert {**last, "seconds": 0} == {
        "event": "done",
        "model": "voice",
        "seed": 3,
        "sample_rate_hz": RATE,
        "seconds": 0,
    }


REFUSED = [
    ({"text": "Ab, ca bac."}, 422, "has the words of the recording; change one, or name a stretch"),
    ({"text": "xyz"}, 422, "the model cannot speak"),
    ({"input_text": "xyz"}, 422, "the model cannot speak"),
    ({"text": ""}, 422, "text"),
    ({"text": "a" * 501}, 422, "501 characters"),
    ({"input_text": "a" * 501}, 422, "501 characters"),
    ({"begin_s": 0.4}, 422, "begin_s or end_s alone makes no stretch; give both, or neither"),
    ({"begin_s": 0.4, "end_s": 9}, 422, "the stretch from 0.4 to 9 s must have 0 <= from < to <= 1.60 s"),
    ({"begin_s": -1, "end_s": 1}, 422, "begin_s"),
    ({"speed": 2, "keep_length": True}, 422, "speed=2.0 and keep_length both say"),
    ({"speed": 9}, 422, "speed"),
    ({"num_steps": 999}, 422, "num_steps=999 must be at most 128"),
    ({"recording": ""}, 422, "recording"),
    ({"recording": "%%%"}, 422, "the recording is not base64"),
    ({"recording": "AAAA"}, 415, "the recording is not a sound of a known format"),
    ({"recording": "UklGRg=="}, 422, "the recording"),
    ({"recording": base64.b64encode(encode_sound(torch.zeros(8000), RATE)).decode()}, 422, "recording is silent"),
    ({"model": "clothes"}, 404, "unknown speech model 'clothes'"),
    ({"voice": "ann"}, 422, "voice"),
]


@pytest.mark.parametrize("path", [EDIT, STREAM])
def test_what_is_refused(path: str, speaks: dict[str, str]) -> None:
    answers = posted(speaks, *({"json": {**BODY, **changes}} for changes, *_ in REFUSED), path=path)
    for answer, (_, status, named) in zip(answers, REFUSED, strict=True):
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), (named, answer.text)
        assert named in answer.json()["error"] and "\n" not in answer.json()["error"], (named, answer.text)


def test_more_that_is_refused(speaks: dict[str, str]) -> None:
    upload = {"recording": ("x.wav", RECORDING)}
    other, bare, twice, long = posted(
        speaks,
        {"json": BODY, "headers": {"Accept": "image/png"}},
        {"data": FIELDS, "files": {"recording": ("x.wav", b"")}},
        {"data": {**FIELDS, "recording": "x"}, "files": upload},
        {"data": FIELDS, "files": upload},
        max_sound_s=1.0,
    )
    assert other.status_code == 406 and "audio/wav" in other.json()["error"]
    assert bare.status_code == 422 and bare.json()["error"] == "recording: the file is missing or empty; send one"
    assert twice.status_code == 422 and twice.json()["error"] == "recording: a file is expected"
    assert long.status_code == 422 and "the recording" in long.json()["error"] and "1" in long.json()["error"]


def test_a_client_that_leaves_ends_its_edit(speaks: dict[str, str]) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> int:
        model: Any = service.models["voice"]
        seen, step, asked = [], model.step, Asked(service, STREAM, {**BODY, "num_steps": 20})
        loop = asyncio.get_running_loop()

        def leave(*arguments: Any) -> Any:
            seen.append(arguments[0].step)
            loop.call_soon_threadsafe(asked.gone.set)
            end = time.monotonic() + 20
            while not service.batcher._computing[0].left and time.monotonic() < end:
                time.sleep(0.001)
            return step(*arguments)

        model.step = leave
        await asked.rest()
        assert (await client.post(EDIT, json=BODY)).status_code == 200, "the worker is free"
        return len(seen)

    assert talk(speaks, ask) == 1, "no step after the client has left"
