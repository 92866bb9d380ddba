"""The interface, request by request, against what the pipelines give."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from resgen.data.sound.decode import encode_sound, read_sound
from resgen.errors import ConfigError
from resgen.pipelines.image.pipeline import ImagePipeline
from resgen.pipelines.speech.pipeline import SpeechPipeline
from resgen.serving.app import create_app
from resgen.serving.batching import QueueFullError
from resgen.serving.config import ServerConfig
from resgen.serving.service import READY, Service, served_names
from serving_parts import PIXELS, listening, png, pngs, talk
from speech_parts import RATE, voice

SECRET = "secret words"
SPEECH_FIELDS = {"text": "abc", "seed": "3", "num_steps": "2"}


@pytest.fixture(scope="module")
def pipe(sources: dict[str, str]) -> ImagePipeline:
    return ImagePipeline.from_pretrained(sources["clothes"], device="cpu", dtype="float32")


def written(images: list[Image.Image]) -> list[bytes]:
    """PNG files as the command line writes them."""
    answers = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        answers.append(buffer.getvalue())
    return answers


def test_models_say_what_they_are(sources: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return (await client.get("/v1/models")).json()

    clothes, speech = talk(sources, ask, max_steps=9)["models"]
    assert clothes["name"] == "clothes" and clothes["modality"] == "image"
    assert clothes["classes"] == ["T-shirt/top", "Bag", "1"] and clothes["sample_rate_hz"] is None
    assert clothes["image"] == {"height": 8, "width": 8, "channels": 1}
    assert (clothes["positions"], clothes["levels"]) == (16, 3)
    assert clothes["defaults"]["num_steps"] == 4 and clothes["defaults"]["guidance_scale"] == 1.0
    assert clothes["limits"] == {"max_steps": 9, "max_samples": 32, "max_text": 500, "max_upload_bytes": 8 << 20}
    assert (speech["modality"], speech["image"], speech["sample_rate_hz"]) == ("speech", None, RATE)
    assert clothes["measured"] == [] and clothes["voices"] == [] and speech["voices"] == ["default", "ann"]
    assert clothes["sentences"] == [] and speech["sentences"] == ["a cab"], "what its voice says"


def test_pictures_are_those_of_the_pipeline(clothes: dict[str, str], pipe: ImagePipeline) -> None:
    body = {"class_ids": ["bag", 0], "num_samples": 2, "seed": 7, "num_steps": 3, "guidance_scale": 0.5}

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return (await client.post("/v1/images", json=body)).json(), (await client.post("/v1/images", json={})).json()

    answer, default = talk(clothes, ask)
    expected = pipe(["bag", 0], num_samples=2, seed=7, num_steps=3, guidance_scale=0.5)
    assert pngs(answer) == written(expected.images)
    assert [image["class_id"] for image in answer["images"]] == [1, 1, 0, 0]
    assert [image["class_name"] for image in answer["images"]] == ["Bag", "Bag", "T-shirt/top", "T-shirt/top"]
    assert (answer["model"], answer["seed"]) == ("clothes", 7) and answer["seconds"] > 0
    assert (answer["num_steps"], answer["guidance_scale"]) == (3, 0.5)
    assert pngs(default) == written(pipe(seed=default["seed"]).images), "every class once; the seed is told"


def test_samples_are_drawn_once_and_are_those_of_the_pipeline(clothes: dict[str, str], pipe: ImagePipeline) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> Any:
        path = "/v1/images/samples"
        service.state = "loading"
        assert (await client.get(path)).status_code == 503
        service.state = READY
        first, second = await asyncio.gather(client.get(path), client.get(path, params={"model": "clothes"}))
        later, other = await client.get(path), await client.get(path, params={"model": "nobody"})
        long = await client.get(path, params={"model": "x" * 201})
        assert long.status_code == 422 and long.json()["error"].endswith("must be text of at most 200 characters")
        return [one.json() for one in (first, second, later)], other, service.metrics.text().decode()

    answers, other, metrics = talk(clothes, ask)
    assert answers[0] == answers[1] == answers[2] and answers[0]["seed"] == 0
    assert pngs(answers[0]) == written(pipe(seed=0).images)
    assert [image["class_name"] for image in answers[0]["images"]] == ["T-shirt/top", "Bag", "1"]
    assert other.status_code == 404 and "resgen_batch_size_count 1.0" in metrics


def test_samples_that_failed_are_drawn_when_they_are_asked_for_again(clothes: dict[str, str]) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> list[int]:
        submit, calls = service.batcher.submit, []

        def full(*arguments: Any, **settings: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise QueueFullError
            return submit(*arguments, **settings)

        service.batcher.submit = full
        return [(await client.get("/v1/images/samples")).status_code for _ in range(3)] + [len(calls)]

    assert talk(clothes, ask) == [429, 200, 200, 2]


def test_requests_in_one_batch_are_not_mixed_up(clothes: dict[str, str], pipe: ImagePipeline) -> None:
    """Other seeds, classes and numbers, an edit among them: one sampling call, and everybody's own images."""
    bodies = [{"class_ids": [seed % 3], "num_samples": 1 + seed % 2, "seed": seed, "num_steps": 3} for seed in range(6)]
    fields = {"class_id": "bag", "box": "0,0,4,8", "seed": "2", "num_steps": "3"}

    async def ask(service: Service, client: httpx.AsyncClient) -> Any:
        edit = client.post("/v1/images/edit", data=fields, files={"image": ("a.png", png())})
        responses = await asyncio.gather(edit, *(client.post("/v1/images", json=body) for body in bodies))
        return [answer.json() for answer in responses], service.metrics.text().decode()

    (edited, *answers), metrics = talk(clothes, ask, max_wait_ms=500.0, max_batch=32)
    for body, answer in zip(bodies, answers, strict=True):
        expected = pipe(body["class_ids"], num_samples=body["num_samples"], seed=body["seed"], num_steps=3)
        assert answer["seed"] == body["seed"] and pngs(answer) == written(expected.images)
    expected = pipe.edit(Image.fromarray(PIXELS), mask=(0, 0, 4, 8), class_id=1, seed=2, num_steps=3)
    assert pngs(edited) == written(expected.images)
    assert "resgen_batch_size_count 1.0" in metrics and "resgen_batch_size_sum 10.0" in metrics


def test_other_settings_take_other_batches(clothes: dict[str, str]) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> str:
        bodies = [{"seed": 0, "num_steps": steps} for steps in (1, 2, 1)]
        await asyncio.gather(*(client.post("/v1/images", json=body) for body in bodies))
        return service.metrics.text().decode()

    assert "resgen_batch_size_count 2.0" in talk(clothes, ask, max_wait_ms=100.0)


def test_a_stream_shows_every_step_and_ends_with_the_answer(clothes: dict[str, str], pipe: ImagePipeline) -> None:
    body = {"class_ids": [1, 2], "seed": 4, "num_steps": 4}

    async def ask(_: Service, client: httpx.AsyncClient) -> httpx.Response:
        streamed, plain = await asyncio.gather(
            client.post("/v1/images/stream", json=body), client.post("/v1/images", json=body)
        )
        assert plain.json()["images"] == json.loads(streamed.text.splitlines()[-1])["images"]
        return streamed

    answer = talk(clothes, ask)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *steps, last = [json.loads(line) for line in answer.text.splitlines()]
    seen = []
    expected = pipe([1, 2], seed=4, num_steps=4, callback=lambda *step: seen.append(step))
    assert [step["step"] for step in steps] == [record.step for record, _, _ in seen]
    for step, (record, codes, visible) in zip(steps, seen, strict=True):
        assert step["event"] == "step" and step["num_steps"] == record.num_steps
        assert step["visible"] == visible.tolist() and len(step["visible"][0]) == 16
        assert [base64.b64decode(p) for p in step["images"]] == written(pipe.decode(codes, visible=visible))
    assert last["event"] == "done" and pngs(last) == written(expected.images)


def test_edits_are_those_of_the_pipeline(clothes: dict[str, str], pipe: ImagePipeline) -> None:
    picture, white = Image.fromarray(PIXELS), np.zeros((8, 8), np.uint8)
    white[:, 4:] = 255
    common = {"class_id": "Bag", "seed": "5", "num_samples": "2"}
    cases: list[tuple[dict[str, str], dict[str, bytes], dict[str, Any]]] = [
        ({"box": "0,0,8,4"}, {}, {"mask": (0, 0, 8, 4)}),
        ({"blend": "true"}, {"mask": png(white)}, {"mask": Image.fromarray(white), "blend": True}),
        ({"keep_levels": "2"}, {}, {"keep_levels": 2}),
    ]

    async def ask(_: Service, client: httpx.AsyncClient) -> list[Any]:
        answers = []
        for fields, files, _given in cases:
            uploads = {name: (f"../../{name}.png", content) for name, content in {"image": png(), **files}.items()}
            answers.append((await client.post("/v1/images/edit", data={**common, **fields}, files=uploads)).json())
        return answers

    for answer, (_, _, given) in zip(talk(clothes, ask), cases, strict=True):
        expected = pipe.edit(picture, class_id="bag", seed=5, num_samples=2, **given)
        assert pngs(answer) == written(expected.images)
        assert [image["class_name"] for image in answer["images"]] == ["Bag", "Bag"]


def test_levels_of_a_picture(clothes: dict[str, str], pipe: ImagePipeline) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return (await client.post("/v1/images/levels", files={"image": ("a", png())})).json()

    levels = talk(clothes, ask)["levels"]
    assert [level["depth"] for level in levels] == [1, 2, 3]
    source = torch.from_numpy(PIXELS)[None, None]
    codes = pipe.tokenizer.encode(source.float() / 127.5 - 1)
    assert [base64.b64decode(level["png"]) for level in levels] == written(
        [pipe.decode(codes, depth)[0] for depth in (1, 2, 3)]
    )
    error = np.asarray(pipe.decode(codes)[0]).astype(float) - PIXELS
    assert levels[-1]["psnr_db"] == pytest.approx(10 * np.log10(255**2 / (error**2).mean()), abs=1e-3)


def test_speech_is_that_of_the_pipeline(sources: dict[str, str]) -> None:
    sound = encode_sound(voice(0.95), RATE)
    prompted = {**SPEECH_FIELDS, "prompt_text": "a cab", "speed": "0.8"}
    too_long = {**SPEECH_FIELDS, "text": "abc" * 35, "speed": "0.25"}

    async def ask(service: Service, client: httpx.AsyncClient) -> Any:
        return await asyncio.gather(
            client.post("/v1/speech", data=SPEECH_FIELDS, files={"prompt": ("", b"")}),
            client.post("/v1/speech", data=prompted, files={"prompt": ("x.wav", sound)}),
            client.post("/v1/speech", data=too_long, files={"prompt": ("", b"")}),
        )

    own, after, refused = talk({"voice": sources["voice"]}, ask, max_wait_ms=500.0)
    pipe = SpeechPipeline.from_pretrained(sources["voice"], device="cpu", dtype="float32")
    given = read_sound(sound, RATE)
    expected = [
        pipe("abc", seed=3, num_steps=2),
        pipe("abc", seed=3, num_steps=2, prompt=given, prompt_text="a cab", speed=0.8),
    ]
    for answer, output in zip((own.json(), after.json()), expected, strict=True):
        assert answer["sample_rate_hz"] == RATE and answer["duration_s"] == output.duration_s
        samples = read_sound(base64.b64decode(answer["wav"]), RATE)
        torch.testing.assert_close(samples, output.audio, atol=1e-4, rtol=0)
        assert Image.open(io.BytesIO(base64.b64decode(answer["spectrogram"]))).format == "PNG"
    assert refused.status_code == 422 and "at once" in refused.json()["error"], "the others were not harmed"


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ({"class_ids": ["hat"]}, 422, "unknown class 'hat'"),
        ({"class_ids": [3]}, 422, "unknown class '3'"),
        ({"class_ids": []}, 422, "class_ids=[] must be of at least 1 entry"),
        ({"class_ids": [True]}, 422, "class_ids.0=True must be a whole number or text or an object"),
        ({"class_ids": [0, -1]}, 422, "class_ids.1=-1 must be at least 0"),
        ({"class_ids": [{"a-b": [2]}]}, 422, "class_ids.0.a-b=[2] must be a whole number or text"),
        ({"class_ids": [0, {"style": 1, "hair": -1}]}, 422, "class_ids.1.hair=-1 must be at least 0"),
        ({"class_ids": ["x" * 401]}, 422, "must be text of at most 400 characters"),
        ({"class_ids": "bag"}, 422, "class_ids='bag' must be a list"),
        ({"num_samples": 0}, 422, "num_samples=0 must be at least 1"),
        ({"num_samples": 11}, 422, "33 images"),
        ({"num_steps": 0}, 422, "num_steps=0 must be at least 1"),
        ({"num_steps": "six"}, 422, "num_steps='six' must be a whole number"),
        ({"num_steps": 1.5}, 422, "num_steps=1.5 must be a whole number"),
        ({"num_steps": 129}, 422, "num_steps=129 must be at most 128"),
        ({"guidance_scale": 1001}, 422, "guidance_scale=1001 must be at most 1000"),
        ({"guidance_scale": "nan"}, 422, "guidance_scale='nan' must be a finite number"),
        ({"seed": -1}, 422, "seed"),
        ({"seed": 1 << 63}, 422, "seed=9223372036854775808 must be less than 9223372036854775808"),
        ({"seed": 1e30}, 422, "seed=1e+30 must be a whole number of fewer digits"),
        ({"co-lor": "red"}, 422, "unknown field 'co-lor'; /docs lists the fields of each route"),
        ({"query": "red"}, 422, "unknown field 'query'; "),
        ([], 422, "the body must be an object"),
        ({"model": "voice"}, 404, "unknown image model 'voice'"),
        ({"model": "nobody"}, 404, "unknown image model 'nobody'"),
    ],
    ids=str,
)
def test_values_that_are_refused(body: Any, status: int, names: str, clothes: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(path, json=body) for path in ("/v1/images", "/v1/images/stream")]

    for answer in talk(clothes, ask):
        assert answer.status_code == status and list(answer.json()) == ["error"]
        assert names in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_the_page_and_its_headers(clothes: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        odd = ["/page/nothing.js", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page/app.py", "/page/", "/nowhere"]
        return await client.get("/"), [await client.get(path) for path in odd], await client.get("/docs")

    index, missing, docs = talk(clothes, ask)
    assert index.status_code == 200
    policy = index.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:")
    assert index.headers["x-content-type-options"] == "nosniff" and index.headers["x-frame-options"] == "DENY"
    for answer in missing:
        assert answer.status_code == 404 and answer.headers["content-security-policy"] == policy
    assert docs.headers["content-type"].startswith("text/html") and "page/docs.js" in docs.text
    for text in (index.text, docs.text):
        assert not re.search(r"(src|href)=\"(https?:)?//", text), "nothing from elsewhere"


def test_head_is_get_without_its_body(clothes: dict[str, str]) -> None:
    """Through a real socket: it is the server that leaves out the body."""
    with listening(clothes) as (_, url), httpx.Client(base_url=url, timeout=60) as client:
        for path in ("/", "/docs", "/page/app.js", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/models"):
            get, head = client.get(path), client.head(path)
            assert (get.status_code, head.status_code) == (200, 200) and get.content and not head.content
            assert head.headers["content-type"] == get.headers["content-type"]
        assert client.head("/v1/images").status_code == 405 and client.head("/nowhere").status_code == 404


def test_addresses_and_methods_that_are_not_there(clothes: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        return await client.get("/v1/image"), await client.get("/v1/images"), await client.put("/healthz")

    nothing, get, put = talk(clothes, ask)
    assert nothing.status_code == 404 and "/docs" in nothing.json()["error"]
    assert get.status_code == 405 and get.json()["error"].endswith("allowed: POST") and get.headers["allow"] == "POST"
    assert put.status_code == 405 and put.json()["error"].endswith("allowed: GET, HEAD")
    assert put.headers["allow"] == "GET, HEAD"


def test_state_health_and_metrics(clothes: dict[str, str]) -> None:
    async def ask(service: Service, client: httpx.AsyncClient) -> None:
        paths = ("/healthz", "/readyz", "/v1/models")
        assert [(await client.get(path)).status_code for path in paths] == [200, 200, 200]
        for state in ("loading", "shutting down"):
            service.state = state
            assert [(await client.get(path)).status_code for path in paths] == [200, 503, 503]
            answer = await client.post("/v1/images", json={})
            assert answer.status_code == 503 and state in answer.json()["error"] and "retry-after" in answer.headers
        text = (await client.get("/metrics")).text
        assert 'resgen_requests_total{route="/readyz",status="503"} 2.0' in text
        assert "resgen_queue_length 0.0" in text and "nowhere" not in text

    talk(clothes, ask)


def test_a_key_is_needed_but_for_page_and_health(clothes: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    key = "a-long-enough-key"

    async def ask(_: Service, client: httpx.AsyncClient) -> None:
        for path in ("/", "/healthz", "/readyz"):
            assert (await client.get(path)).status_code == 200
        for headers in ({}, {"X-API-Key": key[:-1]}, {"Authorization": f"Basic {key}"}, {"X-API-Key": "\xff"}):
            encoded = {name: value.encode("latin-1") for name, value in headers.items()}
            for path in ("/v1/models", "/metrics"):
                answer = await client.get(path, headers=encoded)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
            assert (await client.post("/v1/images", headers=encoded, json={})).status_code == 401
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        document = (await client.get("/openapi.json", headers={"X-API-Key": key})).json()
        assert set(document["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}

    talk(clothes, ask, api_key=key)
    assert key not in capsys.readouterr().err


def test_a_full_queue_and_an_answer_that_takes_too_long(clothes: dict[str, str]) -> None:
    gate, entered = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert gate.wait(20)

    async def ask(service: Service, client: httpx.AsyncClient) -> None:
        holding = asyncio.create_task(service.batcher.in_worker(hold))
        await asyncio.to_thread(entered.wait, 20)
        first = asyncio.create_task(client.post("/v1/images", json={"seed": 1}))  # its batch waits for the worker
        while not service.batcher._computing:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(client.post("/v1/images", json={"seed": 1})) for _ in range(2)]
        while len(service.batcher) < 2:
            await asyncio.sleep(0.01)
        for path in ("/v1/images", "/v1/images/stream"):
            turned_away = await client.post(path, json={"seed": 1})
            assert turned_away.status_code == 429 and turned_away.headers["retry-after"] == "1"
        late = await asyncio.gather(first, *others)
        assert [answer.status_code for answer in late] == [504] * 3 and "too long" in late[0].json()["error"]
        assert len(service.batcher) == 0
        gate.set()
        await holding
        assert (await client.post("/v1/images", json={"seed": 1})).status_code == 200

    talk(clothes, ask, max_queue=2, timeout_s=2.0, max_wait_ms=0.0)


@pytest.mark.parametrize("path", ["/v1/images", "/v1/images/stream"])
def test_work_of_a_client_that_left_is_not_done(path: str, clothes: dict[str, str]) -> None:
    """As uvicorn tells it: a message after the body."""
    body = b'{"seed": 1}'

    async def ask(service: Service, _: httpx.AsyncClient) -> tuple[int, str]:
        gone, sent = asyncio.Event(), []
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
        asked = asyncio.create_task(create_app(service)({**scope, "scheme": "http"}, receive, send))
        while not len(service.batcher):
            await asyncio.sleep(0.001)
        gone.set()
        await asyncio.wait_for(asked, 5)
        return len(service.batcher), service.metrics.text().decode()

    waiting, metrics = talk(clothes, ask, max_wait_ms=20_000.0)
    assert waiting == 0 and "resgen_batch_size_count 0.0" in metrics
    if path == "/v1/images":
        assert 'resgen_requests_total{route="/v1/images",status="499"} 1.0' in metrics


def test_one_line_a_request_without_what_it_says(sources: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> None:
        await client.post("/v1/speech", files={"text": (None, "secret words")})
        await client.get("/secret-path?secret=1")

    talk({"voice": sources["voice"]}, ask)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines] == ["POST /v1/speech 422", "GET other 404"]


def test_a_defect_is_a_500_whose_trace_quotes_nothing(
    clothes: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("resgen.serving.image.model.sample", broken)

    async def ask(_: Service, client: httpx.AsyncClient) -> Any:
        plain = await client.post("/v1/images", json={"seed": 1})
        return plain, await client.post("/v1/images/stream", json={"seed": 1})

    plain, stream = talk(clothes, ask)
    assert plain.status_code == 500 and "log" in plain.json()["error"]
    assert [json.loads(line)["event"] for line in stream.text.splitlines()] == ["error"]
    log = capsys.readouterr().err
    assert "RuntimeError" in log and "image/model.py" in log and SECRET not in log


def test_names_of_models_do_not_tell_where_they_lie(sources: dict[str, str], tmp_path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "again" / "run").mkdir(parents=True)
    run = str(tmp_path / "run" / "model")
    assert served_names(["bundled", run]) == {"bundled": "bundled", "run": run}
    with pytest.raises(ConfigError, match="both be called 'run'"):
        served_names([run, str(tmp_path / "again" / "run")])


@pytest.mark.parametrize(
    "changes",
    [
        {"max_batch": 0},
        {"max_samples": 33},
        {"max_wait_ms": float("nan")},
        {"timeout_s": 0.0},
        {"max_pixels": 0},
        {"api_key": "short"},
    ],
    ids=str,
)
def test_limits_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(**changes)
