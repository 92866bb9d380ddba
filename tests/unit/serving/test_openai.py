"""OpenAI's own client against a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="openai is not installed")

from resgen.data.sound.decode import read_sound  # noqa: E402
from resgen.pipelines.speech.pipeline import SpeechPipeline  # noqa: E402
from resgen.serving.service import Service  # noqa: E402
from serving_parts import listening  # noqa: E402
from speech_parts import RATE  # noqa: E402

KEY = "a-key-of-the-server"
TEXT = "Abc. Cab. Ab."
ASKED: dict[str, Any] = {"model": "voice", "voice": "default", "input": TEXT, "extra_body": {"seed": 3}}


@pytest.fixture(scope="module")
def server(sources: dict[str, str]) -> Iterator[tuple[Service, str]]:
    with listening(sources, api_key=KEY) as (service, address):
        yield service, f"{address}/v1"


@pytest.fixture
def client(server: tuple[Service, str]) -> Iterator[Any]:
    with openai.OpenAI(base_url=server[1], api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def samples(sources: dict[str, str]) -> int:
    return len(SpeechPipeline.from_pretrained(sources["voice"], device="cpu", dtype="float32")(TEXT, seed=3).audio)


def test_the_models_are_listed(client: Any, sources: dict[str, str]) -> None:
    assert [model.id for model in client.models.list()] == list(sources)


def test_every_format(client: Any, samples: int) -> None:
    for kind in ("mp3", "opus", "flac", "wav"):
        answer = client.audio.speech.create(**ASKED, response_format=kind)
        assert len(read_sound(answer.content, RATE)) == samples
    default = client.audio.speech.create(**ASKED, speed=2.0)
    assert default.response.headers["content-type"] == "audio/mpeg" and len(read_sound(default.content, RATE)) < samples
    pcm = client.audio.speech.create(**ASKED, response_format="pcm", stream_format="audio")
    assert abs(len(pcm.content) / 2 - samples * 24_000 / RATE) < 10


def test_its_stream_is_read_while_the_rest_is_made(client: Any, server: tuple[Service, str], samples: int) -> None:
    pipe: Any = server[0].models["voice"].pipe
    next_codes, go = pipe.next_codes, threading.Event()
    calls: list[int] = []

    def held(*arguments: Any) -> Any:
        calls.append(1)
        assert len(calls) == 1 or go.wait(20), "nobody let the sentence go"
        return next_codes(*arguments)

    pipe.next_codes = held
    try:
        with client.audio.speech.with_streaming_response.create(**ASKED, response_format="wav") as answer:
            parts = answer.iter_bytes()
            content = next(parts)
            assert content[:4] == b"RIFF" and len(calls) <= 2
            go.set()
            content += b"".join(parts)
    finally:
        pipe.next_codes = next_codes
    assert len(calls) == 3 and len(read_sound(content, RATE)) == samples


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"voice": "alloy"}, "UnprocessableEntityError", "unknown voice 'alloy'; allowed: default, ann"),
        ({"model": "tts-1"}, "NotFoundError", "unknown speech model 'tts-1'; allowed: voice"),
        ({"input": "xyz"}, "UnprocessableEntityError", "cannot speak 'x'"),
        ({"response_format": "aac"}, "UnprocessableEntityError", "response_format"),
        ({"stream_format": "sse"}, "UnprocessableEntityError", "stream_format"),
        ({"input": "xyz", "response_format": "wav"}, "UnprocessableEntityError", "cannot speak 'x'"),
    ],
    ids=str,
)
def test_it_shows_why_something_is_refused(client: Any, changes: dict[str, Any], kind: str, reason: str) -> None:
    with pytest.raises(getattr(openai, kind), match=reason):
        client.audio.speech.create(**{**ASKED, **changes})


def test_it_shows_that_the_key_is_wrong(server: tuple[Service, str]) -> None:
    with (
        openai.OpenAI(base_url=server[1], api_key="another key", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="a key is needed"),
    ):
        client.audio.speech.create(**ASKED)
