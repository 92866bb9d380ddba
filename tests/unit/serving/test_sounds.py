"""Answers that are files: sound, whole or sentence by sentence, and images."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from resgen.data.sound.decode import encode_sound, read_sound, resample
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.serving.service import Service
from serving_parts import Asked, png, talk
from speech_parts import RATE, voice

TEXT = "Abc. Cab. Ab."
BODY = {"text": TEXT, "seed": 3, "num_steps": 2}
SPEECH, OPENAI = "/v1/speech", "/v1/audio/speech"


def close_to(content: bytes, expected: torch.Tensor, rate: int = RATE) -> None:
    torch.testing.assert_close(read_sound(content, rate), expected, atol=1e-4, rtol=0)


def test_speech_as_the_file_that_is_asked_for(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    kinds = {
        "audio/wav": "WAV",
        "audio/flac;q=0.5, text/html": "FLAC",
        "audio/wav;q=0.1, audio/mpeg": "MP3",
        "audio/ogg": "OGG",
        "audio/*": "WAV",
    }

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return [await client.post(SPEECH, json=BODY, headers={"Accept": kind}) for kind in kinds]

    expected = pipe(TEXT, seed=3, num_steps=2).audio
    soundfile = pytest.importorskip("soundfile")
    for answer, kind in zip(talk(speaks, ask), kinds.values(), strict=True):
        assert answer.status_code == 200 and answer.headers["x-seed"] == "3"
        assert soundfile.info(io.BytesIO(answer.content)).format == kind
        if kind in ("WAV", "FLAC"):
            close_to(answer.content, expected)
        assert len(read_sound(answer.content, RATE)) == len(expected)


def test_json_says_what_a_form_says(speaks: dict[str, str]) -> None:
    sound = encode_sound(voice(0.95), RATE)
    fields = {**BODY, "prompt_text": "a cab", "speed": 0.8}

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        prompt = base64.b64encode(sound).decode()
        return (
            await client.post(SPEECH, data=fields, files={"prompt": ("x.wav", sound)}),
            await client.post(SPEECH, json={**fields, "prompt": prompt}),
            await client.post(SPEECH, json={**fields, "prompt": prompt}, headers={"Accept": "audio/wav"}),
        )

    form, body, streamed = talk(speaks, ask)
    assert form.status_code == 200 and {**body.json(), "seconds": 0} == {**form.json(), "seconds": 0}
    close_to(streamed.content, read_sound(base64.b64decode(form.json()["wav"]), RATE))


def test_named_voices(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return (
            await client.post(SPEECH, json={**BODY, "voice": "ann"}, headers={"Accept": "audio/wav"}),
            await client.post(OPENAI, json={"input": TEXT, "seed": 3, "voice": "ann", "response_format": "wav"}),
            await client.post(SPEECH, data={**BODY, "voice": "default"}, files={"prompt": ("", b"")}),
        )

    own, openai, default = talk(speaks, ask)
    close_to(own.content, pipe(TEXT, seed=3, num_steps=2, voice="ann").audio)
    close_to(openai.content, pipe(TEXT, seed=3, voice="ann").audio)
    close_to(base64.b64decode(default.json()["wav"]), pipe(TEXT, seed=3, num_steps=2).audio)


def test_openais_formats(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    formats = {"wav": "audio/wav", "pcm": "audio/pcm", "flac": "audio/flac", "opus": "audio/ogg", None: "audio/mpeg"}
    body = {"input": TEXT, "seed": 3, "num_steps": 2, "speed": 0.9}

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        asked = [{"response_format": one} if one else {} for one in formats]
        return [await client.post(OPENAI, json={**body, **one}) for one in asked]

    expected = pipe(TEXT, seed=3, num_steps=2, speed=0.9).audio
    for answer, (name, kind) in zip(talk(speaks, ask), formats.items(), strict=True):
        assert answer.headers["content-type"] == kind and answer.headers["x-seed"] == "3"
        if name == "pcm":
            samples = torch.from_numpy(np.frombuffer(answer.content, "<i2").astype(np.float32)) / 32768
            assert abs(len(samples) - 3 * len(expected)) < 10
            assert (samples - resample(expected, RATE, 24_000))[100:-100].abs().mean() < 0.02 * samples.abs().mean()
        elif name in ("wav", "flac"):
            close_to(answer.content, expected)
        else:
            assert len(read_sound(answer.content, RATE)) == len(expected)


def test_pictures_as_png(clothes: dict[str, str]) -> None:
    pipe = ImagePipeline.from_pretrained(clothes["clothes"], device="cpu", dtype="float32")
    one, several = {"class_ids": ["Bag"], "seed": 5}, {"class_ids": ["Bag", 0], "num_samples": 2, "seed": 5}

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        headers = {"Accept": "image/png"}
        fields = {"class_id": "Bag", "box": "0,0,8,4", "seed": "5"}
        return (
            await client.post("/v1/images", json=one, headers=headers),
            await client.post("/v1/images", json=several, headers=headers),
            await client.post("/v1/images/edit", data=fields, files={"image": ("a", png())}, headers=headers),
            await client.post("/v1/images", json=one, headers={"Accept": "*/*"}),
        )

    single, sheet, edited, as_json = talk(clothes, ask)
    assert single.content == base64.b64decode(as_json.json()["images"][0]["png"])
    assert single.headers["content-type"] == "image/png" and single.headers["x-seed"] == "5"
    expected = pipe(["Bag", 0], num_samples=2, seed=5).sheet()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sheet.content))), np.asarray(expected))
    assert Image.open(io.BytesIO(edited.content)).size == (8, 8)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "names"),
    [
        (SPEECH, {"text": "abc", "prompt": "%%%", "prompt_text": "a"}, {}, 422, "the prompt is not base64"),
        (SPEECH, {"text": "abc", "prompt": "AAAA", "prompt_text": "a"}, {}, 415, "not a sound"),
        (SPEECH, {"text": "abc", "prompt": "UklGRg==", "prompt_text": "a"}, {"Accept": "audio/wav"}, 422, "prompt"),
        (SPEECH, {"text": "abc", "prompt_text": "a"}, {"Accept": "audio/wav"}, 422, "give prompt and prompt_text"),
        (SPEECH, {"text": "xyz"}, {"Accept": "audio/wav"}, 422, "cannot speak 'x'"),
        (SPEECH, {"text": "a. " + "abc" * 35, "speed": 0.25}, {"Accept": "audio/wav"}, 422, "at once"),
        (SPEECH, {"text": "..."}, {"Accept": "audio/flac"}, 422, ""),
        (SPEECH, {"text": "a" * 501}, {"Accept": "audio/wav"}, 422, "501 characters"),
        (SPEECH, {"text": 3}, {}, 422, "text"),
        (SPEECH, {}, {}, 422, "text"),
        (SPEECH, [1], {}, 422, ""),
        (SPEECH, {"text": "abc"}, {"Accept": "video/mp4"}, 406, "audio/wav"),
        (SPEECH, {"text": "abc"}, {"Accept": "audio/wav;q=0"}, 406, "audio/wav"),
        (SPEECH, {"text": "abc"}, {"Accept": ",;=;q=x," * 500}, 406, "audio/wav"),
        ("/v1/images", {}, {"Accept": "audio/wav"}, 406, "image/png"),
        (SPEECH, {"text": "abc", "voice": "alloy"}, {}, 422, "unknown voice 'alloy'; allowed: default, ann"),
        (SPEECH, {"text": "abc", "voice": "ann", "prompt_text": "a"}, {}, 422, "two voices"),
        (OPENAI, {"input": "abc", "voice": "alloy"}, {}, 422, "unknown voice 'alloy'"),
        (OPENAI, {"input": "abc", "voice": {"id": "voice_1"}}, {}, 422, "voice"),
        (OPENAI, {"input": "abc", "model": "tts-1"}, {}, 404, "unknown speech model 'tts-1'"),
        (OPENAI, {"input": "abc", "response_format": "aac"}, {}, 422, "'mp3', 'opus', 'flac', 'wav' or 'pcm'"),
        (OPENAI, {"input": "abc", "stream_format": "sse"}, {}, 422, "stream_format"),
        (OPENAI, {"input": "abc", "instructions": "whisper"}, {}, 422, "instructions"),
        (OPENAI, {"input": "abc", "speed": 5}, {}, 422, "speed"),
        (OPENAI, {"input": "xyz"}, {}, 422, "cannot speak 'x'"),
        (OPENAI, {"input": "a" * 501}, {}, 422, "501 characters"),
        (OPENAI, {}, {}, 422, "input is missing; send it"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(
    path: str, body: Any, headers: dict[str, str], status: int, names: str, sources: dict[str, str]
) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(path, json=body, headers=headers)

    answer = talk(sources, ask)
    assert answer.status_code == status and list(answer.json()) == ["error"], answer.text
    reason = answer.json()["error"]["message"] if path == OPENAI else answer.json()["error"]
    assert names in reason and "\n" not in reason


def test_bodies_that_are_no_json(speaks: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> list[int]:
        statuses = []
        for body in (b"", b"{", b"\xff", b"[" * 60_000, b"{}" * 100):
            answer = await client.post(SPEECH, content=body, headers={"Content-Type": "application/json"})
            assert list(answer.json()) == ["error"]
            statuses.append(answer.status_code)
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            answer = await client.post(SPEECH, content=b"text=abc", headers={"Content-Type": kind})
            assert "application/json or multipart/form-data" in answer.json()["error"]
            statuses.append(answer.status_code)
        return statuses

    assert talk(speaks, ask) == [400] * 5 + [415] * 2


class Held:
    """A service whose sentences wait, from number `since` on, until they are let go."""

    def __init__(self, service: Service, since: int) -> None:
        self.pipe, self.since = service.models["voice"].pipe, since
        self.count, self.reached, self.go = 0, threading.Event(), threading.Event()
        self.next_codes = self.pipe.next_codes
        self.pipe.next_codes = self

    def __call__(self, *arguments: Any) -> Any:
        self.count += 1
        if self.count >= self.since:
            self.reached.set()
            assert self.go.wait(20), "nobody let the sentence go"
        return self.next_codes(*arguments)


ROUTES = [(SPEECH, BODY), (OPENAI, {"input": TEXT, "seed": 3, "num_steps": 2, "response_format": "wav"})]


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_the_first_sentence_is_sent_while_the_others_are_made(
    path: str, body: dict[str, Any], speaks: dict[str, str], pipe: SpeechPipeline
) -> None:
    async def ask(service: Service, _: httpx.AsyncClient) -> bytes:
        held = Held(service, 2)
        asked = Asked(service, path, body)
        assert (await asked.message())["status"] == 200
        first = (await asked.message())["body"]
        assert held.count <= 2 and not held.go.is_set() and len(first) > 44
        held.go.set()
        parts = [message.get("body", b"") for message in await asked.rest()]
        assert [bool(part) for part in parts] == [True, True, False], "one chunk for each further sentence"
        assert service.busy == 0
        return first + b"".join(parts)

    close_to(talk(speaks, ask), pipe(TEXT, seed=3, num_steps=2).audio)


def test_other_requests_come_between_the_sentences(speaks: dict[str, str]) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> list[str]:
        held, order = Held(service, 1), []
        model: Any = service.models["voice"]
        for name in ("_tell", "_speak"):
            run: Callable[..., Any] = getattr(model, name)
            setattr(model, name, lambda tickets, name=name, run=run: order.append(name) or run(tickets))
        asked = Asked(service, SPEECH, BODY)
        await asyncio.to_thread(held.reached.wait, 20)
        plain = asyncio.create_task(client.post(SPEECH, json=BODY))
        while not len(service.batcher):
            await asyncio.sleep(0)
        held.go.set()
        await asked.rest()
        assert (await plain).status_code == 200
        return order

    assert talk(speaks, ask) == ["_tell", "_speak", "_tell", "_tell"]


def test_streams_share_their_batches(speaks: dict[str, str], pipe: SpeechPipeline) -> None:
    """One of them fails at its second sentence, which is known with the first."""
    long = {"text": "a. " + "abc" * 35, "seed": 1, "num_steps": 2, "speed": 0.25}
    bodies = [BODY, {**BODY, "seed": 4, "text": "Cab."}, long]

    async def ask(service: Service, client: httpx.AsyncClient) -> Any:
        sounds = (client.post(SPEECH, json=body, headers={"Accept": "audio/wav"}) for body in bodies)
        return await asyncio.gather(*sounds), service.metrics.text().decode()

    (first, second, third), metrics = talk(speaks, ask, max_wait_ms=500.0)
    close_to(first.content, pipe(TEXT, seed=3, num_steps=2).audio)
    close_to(second.content, pipe("Cab.", seed=4, num_steps=2).audio)
    assert third.status_code == 422 and "at once" in third.json()["error"]
    assert "resgen_batch_size_count 3.0" in metrics and "resgen_batch_size_sum 5.0" in metrics


def test_a_client_that_leaves_ends_its_stream(speaks: dict[str, str]) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> int:
        held = Held(service, 2)
        asked = Asked(service, SPEECH, BODY)
        for _ in range(2):
            await asked.message()
        await asyncio.to_thread(held.reached.wait, 20)
        asked.gone.set()
        await asked.rest()
        held.go.set()
        assert (await client.post(SPEECH, json=BODY)).status_code == 200, "the worker is free"
        assert len(service.batcher) == 0 and service.busy == 0
        return held.count

    assert talk(speaks, ask) == 2, "the third sentence is not made"


def test_a_client_that_reads_nothing_is_left(speaks: dict[str, str]) -> None:
    async def ask(service: Service, _: httpx.AsyncClient) -> str:
        asked = Asked(service, SPEECH, BODY)
        asked.reads.clear()
        assert await asked.rest() == [] and service.busy == 0
        return service.metrics.text().decode()

    assert f'resgen_requests_total{{route="{SPEECH}",status="499"}} 1.0' in talk(speaks, ask, timeout_s=3.0)


@pytest.mark.parametrize("defect", [False, True])
def test_a_stream_that_cannot_go_on_is_cut_short(
    defect: bool, speaks: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    async def ask(service: Service, _: httpx.AsyncClient) -> str:
        held = Held(service, 2)
        if defect:
            held.go.wait = lambda _: False  # type: ignore[method-assign]
        asked = Asked(service, SPEECH, BODY)
        messages = [await asked.message(), await asked.message(), *await asked.rest()]
        held.go.set()
        assert messages[0]["status"] == 200 and all(message.get("more_body") for message in messages[1:])
        return service.metrics.text().decode()

    status = 500 if defect else 504
    assert f'resgen_requests_total{{route="{SPEECH}",status="{status}"}} 1.0' in talk(speaks, ask, timeout_s=2.0)
    log = capsys.readouterr().err
    assert ("AssertionError" in log) == defect and "Abc" not in log and "RuntimeError" not in log


def test_a_stream_that_was_accepted_is_finished(speaks: dict[str, str]) -> None:
    async def ask(service: Service, _: httpx.AsyncClient) -> tuple[int, bool]:
        held = Held(service, 2)
        asked = Asked(service, SPEECH, BODY)
        await asyncio.to_thread(held.reached.wait, 20)
        closing = asyncio.create_task(service.close())
        while not service.batcher._closed:
            await asyncio.sleep(0)
        held.go.set()
        messages = await asked.rest()
        await closing
        return held.count, messages[-1].get("more_body", False)

    assert talk(speaks, ask) == (3, False)


@pytest.mark.parametrize("kind", ["audio/wav", "audio/flac"])
def test_a_full_queue_refuses_streams_too(kind: str, speaks: dict[str, str]) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> list[int]:
        held = Held(service, 1)
        first = Asked(service, SPEECH, BODY)
        await asyncio.to_thread(held.reached.wait, 20)
        second = Asked(service, SPEECH, BODY)
        while not len(service.batcher):
            await asyncio.sleep(0)
        turned_away = await client.post(SPEECH, json=BODY, headers={"Accept": kind})
        held.go.set()
        started = [(await one.rest())[0]["status"] for one in (first, second)]
        return [turned_away.status_code, *started]

    assert talk(speaks, ask, max_queue=1) == [429, 200, 200]
