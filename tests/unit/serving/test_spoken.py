"""What the page of speech asks for: steps and sentences as they come, voices to hear, samples."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from resgen.checkpoints.format import Component, load_folder, save_folder
from resgen.checkpoints.voices import sentences_of
from resgen.data.sound.decode import encode_sound, read_sound
from resgen.errors import CheckpointError
from resgen.pipelines.speech import fit
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.serving.routes import STEPS_AHEAD, headers_of
from resgen.serving.service import Service
from serving_parts import Asked, talk
from speech_parts import DEPTH, RATE, voice

TEXT = "Abc. Cab. Ab."
STREAM = "/v1/speech/stream"


def samples_of(content: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(content), "<i2").astype(np.float32) / 32768)


@pytest.mark.parametrize("named", [None, "ann"])
def test_a_stream_shows_every_step_and_every_sentence(
    speaks: dict[str, str], pipe: SpeechPipeline, named: str | None
) -> None:
    body = {"text": TEXT, "seed": 3, "num_steps": 2, **({"voice": named} if named else {})}

    async def ask(_: Service, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(STREAM, json=body)

    answer = talk(speaks, ask)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *events, last = [json.loads(line) for line in answer.text.splitlines()]
    order = [(event["event"], event["sentence"]) for event in events]
    assert order == [(event, k) for k in range(3) for event in ("step", "step", "sound")]
    parts = list(pipe.stream(TEXT, seed=3, num_steps=2, voice=named))
    for event in events:
        part = parts[event["sentence"]]
        assert base64.b64decode(event["spectrogram"]).startswith(b"\x89PNG")
        if event["event"] == "step":
            assert event["sentences"] == 3 and event["num_steps"] == 2
            assert len(event["visible"]) == len(part.codes), "positions of the sentence, without those of the prompt"
            assert event["step"] < 2 or set(event["visible"]) == {DEPTH}
        else:
            torch.testing.assert_close(samples_of(event["pcm"]), part.audio, atol=1e-4, rtol=0)
            assert event["duration_s"] == part.duration_s and [event["text"]] == part.texts
    assert {**last, "seconds": 0} == {
        "event": "done",
        "model": "voice",
        "seed": 3,
        "sample_rate_hz": RATE,
        "seconds": 0,
    }


def test_a_slow_client_misses_old_steps_and_no_sound(speaks: dict[str, str]) -> None:
    """While it reads nothing, the newest steps wait for it, and every sentence."""
    body, made = {"text": TEXT, "seed": 3, "num_steps": 20}, []

    async def ask(service: Service, _: httpx.AsyncClient) -> list[dict[str, Any]]:
        model: Any = service.models["voice"]
        step = model.step
        model.step = lambda record, *others: made.append(record.step) or step(record, *others)
        asked = Asked(service, STREAM, body)
        assert (await asked.message())["status"] == 200
        asked.reads.clear()
        async with asyncio.timeout(60):
            while service.batcher._waiting or service.batcher._computing:
                await asyncio.sleep(0.01)
        asked.reads.set()
        return [json.loads(message["body"]) for message in await asked.rest() if message.get("body")]

    events = talk(speaks, ask)
    assert [event["sentence"] for event in events if event["event"] == "sound"] == [0, 1, 2]
    assert events[-1]["event"] == "done"
    told = [(event["sentence"], event["step"]) for event in events if event["event"] == "step"]
    assert told == sorted(told) and [step for _, step in told[-STEPS_AHEAD:]] == made[-STEPS_AHEAD:]
    sent = 3  # when it stopped to read: those that were on their way
    assert len(told) <= STEPS_AHEAD + sent < len(made) - sent, "no more wait, however slow it is"


def test_doubts_about_a_prompts_text_are_told_where_they_are_asked_for(
    speaks: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked: list[str] = []

    def better_orders(model: object, samples: object, spoken: Any, mel: object) -> tuple[int, int]:
        looked.append(spoken.text)
        return (3, 5) if spoken.text == "a cab" else (1, 5)

    monkeypatch.setattr(fit, "better_orders", better_orders)
    prompt = base64.b64encode(encode_sound(voice(0.95), RATE)).decode()
    fields = {"text": TEXT, "seed": 3, "num_steps": 2, "prompt": prompt, "check_prompt": True}
    files = ["audio/wav", "audio/flac"]

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        wrong, right = ({**fields, "prompt_text": text} for text in ("a cab", "ab ca"))
        named = {"text": "ab", "num_steps": 1, "voice": "ann", "check_prompt": True}
        quiet = [{**wrong, "check_prompt": False}, right, named]
        bodies = [await client.post("/v1/speech", json=body) for body in (wrong, *quiet)]
        streams = [await client.post(STREAM, json=body) for body in (wrong, right)]
        sounds = [await client.post("/v1/speech", json=wrong, headers={"Accept": kind}) for kind in files]
        return bodies, streams, [*sounds, await client.post("/v1/speech", json=right, headers={"Accept": files[0]})]

    bodies, streams, sounds = talk(speaks, ask)
    (line,) = bodies[0].json()["warnings"]
    assert line.startswith("the prompt may say something else than its text 'a cab': 3 of 5 other orders")
    assert [body.json()["warnings"] for body in bodies[1:]] == [[], [], []]
    told, untold = ([json.loads(one) for one in answer.text.splitlines()] for answer in streams)
    assert told[0] == {"event": "warning", "warnings": [line]}
    assert [one["event"] for one in told[1:]] == [one["event"] for one in untold]
    assert [sound.headers.get("x-warning") for sound in sounds] == [line, line, None]
    assert set(looked) == {"a cab", "ab ca"} and len(looked) == 7, "not where nobody asks, nor at a model's own voice"
    assert "a cab" not in capsys.readouterr().err, "the log may not hold what is sent"


def test_a_warning_in_a_header_is_one_line_of_ascii() -> None:
    assert headers_of(3, ["the text '/kˈæt/'", "b"])["X-Warning"] == "the text '/k\\u02c8\\xe6t/'; b"
    assert headers_of(3) == {"X-Seed": "3"}


def test_what_cannot_be_spoken_is_told_with_a_status(speaks: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return await client.post(STREAM, json={"text": "xyz"}), await client.post(STREAM, json={"text": ""})

    spoken, empty = talk(speaks, ask)
    assert spoken.status_code == 422 and "cannot speak" in spoken.json()["error"]
    assert empty.status_code == 422


def test_voices_can_be_heard(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return await client.get("/v1/voices"), await client.get("/v1/voices", params={"model": "nobody"})

    voices, other = talk(speaks, ask)
    (ann,) = voices.json()["voices"]
    assert ann["name"] == "ann" and ann["text"] == "a cab" and other.status_code == 404
    assert base64.b64decode(ann["flac"]) == pipe.voices["ann"].content


def test_samples_are_spoken_once(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> Any:
        answers = [await client.get("/v1/speech/samples") for _ in range(2)]
        return [answer.json() for answer in answers], service.metrics.text().decode()

    (first, second), metrics = talk(speaks, ask)
    (sample,) = first["samples"]
    assert first == second and "resgen_batch_size_count 1.0" in metrics
    assert (sample["text"], sample["voice"], sample["seed"]) == ("a cab", "default", 0)
    expected = pipe("a cab", seed=0).audio
    torch.testing.assert_close(read_sound(base64.b64decode(sample["wav"]), RATE), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sentences", ["a text", [1], [""], ["x" * 1001], ["a"] * 65])
def test_sentences_of_another_form_are_refused(sentences: Any, tmp_path: Any) -> None:
    part = {"tokenizer": Component(type="t", config={}, tensors={})}
    save_folder(tmp_path / "model", kind="pipeline", components=part, extra={"sentences": sentences})
    with pytest.raises(CheckpointError, match="sentence"):
        sentences_of(load_folder(tmp_path / "model"))
