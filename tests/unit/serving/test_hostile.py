"""Requests of people who mean no good: an error of theirs, never of the server's, and nothing on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
import tempfile
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from resgen.data.sound.decode import encode_sound
from resgen.serving.app import create_app
from resgen.serving.server import listen, uvicorn_config
from resgen.serving.service import Service
from serving_parts import files_under, png, talk
from speech_parts import RATE, voice

JSON = {"content-type": "application/json"}
FIELDS = {"class_id": "bag", "keep_levels": "1"}


def png_header(width: int, height: int) -> bytes:
    """An image that says it is large; its few bytes hold nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def picture_as(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def wav(seconds: float, channels: int = 1) -> bytes:
    """Silence."""
    data = bytes(2 * channels * int(seconds * 8000))
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, channels, 8000,
                       16000 * channels, 2 * channels, 16, b"data", len(data))  # fmt: skip
    return head + data


PICTURES: dict[str, tuple[bytes, set[int]]] = {
    "text": (b"hello", {415}),
    "a page": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", {415}),
    "GIF": (picture_as("GIF"), {415}),
    "TIFF": (picture_as("TIFF"), {415}),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {415}),
    "zip": (b"PK\x03\x04" + bytes(200), {415}),
    "nothing but a signature": (b"\x89PNG\r\n\x1a\n", {415}),
    "cut short": (png()[:60], {415, 422}),
    "damaged": (png()[:50] + b"\xff" * 20 + png()[70:], {415, 422}),
    "4 gigapixels": (png_header(65_000, 65_000), {413}),
    "just above the limit": (png_header(4097, 4097), {413}),
    "below the limit, and empty": (png_header(4000, 4000), {422}),
    "no pixels": (png_header(0, 0), {415, 422}),
    "empty": (b"", {422}),
}
SOUNDS: dict[str, tuple[bytes, set[int]]] = {
    "text": (b"hello", {415}),
    "an image": (png(), {415}),
    "a header": (wav(0), {422}),
    "cut short": (encode_sound(voice(0.95), RATE)[:4000], {422}),
    "silence": (wav(1), {422}),
    "short": (encode_sound(voice(0.1), RATE), {422}),
    "31 seconds": (wav(31), {422}),
    "800 channels": (wav(2, 800), {413, 422}),
    "a FLAC that unpacks to much": (b"fLaC" + bytes(40), {422}),
    "MP3 without sound": (b"\xff\xfb\x90\x00" + bytes(400), {422}),
    "not finite": (encode_sound(torch.rand(8000), RATE)[:44] + b"\xff" * 20_001, {422}),
}


@pytest.fixture
def no_files(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """The test runs in an empty folder that is also the one for temporary files; it is empty in the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))  # made when first imported
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file would be written")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # where SpooledTemporaryFile turns to when it is full
    yield
    assert files_under(tmp_path) == []


@pytest.mark.usefixtures("no_files")
def test_uploads_that_are_no_pictures(clothes: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> None:
        for what, (content, statuses) in PICTURES.items():
            upload = {"image": ("../../../etc/passwd\x00.png", content, "image/png")}
            for path, fields in (("/v1/images/edit", FIELDS), ("/v1/images/levels", {})):
                answer = await client.post(path, data=fields, files=upload)
                assert answer.status_code in statuses, (what, path, answer.text)
                assert list(answer.json()) == ["error"] and "\n" not in answer.json()["error"]
            mask = {"image": ("a.png", png()), "mask": ("m.png", content)}
            answer = await client.post("/v1/images/edit", data={"class_id": "bag"}, files=mask)
            assert answer.status_code in statuses, (what, "mask", answer.text)
        assert (await client.post("/v1/images/levels", files={"image": ("/etc/passwd", png())})).status_code == 200

    talk(clothes, ask)


@pytest.mark.usefixtures("no_files")
def test_uploads_that_are_no_prompts(sources: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> None:
        fields = {"text": "abc", "prompt_text": "a cab"}
        for what, (content, statuses) in SOUNDS.items():
            answer = await client.post("/v1/speech", data=fields, files={"prompt": ("|rm -rf", content)})
            assert answer.status_code in statuses, (what, answer.text)
        for lacking in ({"text": "abc"}, {"prompt_text": "a cab"}):
            sound = encode_sound(voice(0.95), RATE)
            answer = await client.post("/v1/speech", data=lacking, files={"prompt": ("a.wav", sound)})
            assert answer.status_code == 422
        for text in ("", " ", "...", "\x00", "xyz", "a" * 501, "日本"):
            answer = await client.post("/v1/speech", data={"text": text}, files={"prompt": ("", b"")})
            assert answer.status_code == 422, text
        for speed in ("0", "-1", "0.0001", "1e9", "nan"):
            answer = await client.post("/v1/speech", data={"text": "a", "speed": speed}, files={"prompt": ("", b"")})
            assert answer.status_code == 422, speed

    talk({"voice": sources["voice"]}, ask)


@pytest.mark.usefixtures("no_files")
def test_bodies_that_are_too_large_are_not_read_to_their_end(
    clothes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused at the limit, and what comes after the answer is read up to another."""
    monkeypatch.setattr("resgen.serving.gate.LATE_BYTES", 2 << 20)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        while sent < 1 << 30:
            sent += 1 << 16
            yield bytes(1 << 16)

    async def ask(_: Service, client: httpx.AsyncClient) -> None:
        form = {"content-type": "multipart/form-data; boundary=x"}
        answer = await client.post("/v1/images/edit", content=endless(), headers=form)
        assert answer.status_code == 413 and sent <= (5 << 20) + (1 << 17)
        answer = await client.post("/v1/images/edit", files={"image": ("a", bytes(4 << 20))})
        assert answer.status_code == 413
        for body in (b'{"class_ids": [' + b" " * (1 << 17) + b"1]}",):
            assert (await client.post("/v1/images", content=body, headers=JSON)).status_code == 413
        # Above the size at which Starlette's own parser would write a file.
        noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), dtype=np.uint8)
        answer = await client.post("/v1/images/levels", files={"image": ("a", png(noise))})
        assert answer.status_code == 200 and len(png(noise)) > 2 << 20

    talk(clothes, ask, max_upload_bytes=3 << 20)


@pytest.mark.parametrize(
    ("path", "key", "framing", "status"),
    [
        ("/v1/images/edit", "the-servers-key", "content-length: 16777216", 413),
        ("/v1/images/edit", "the-servers-key", "transfer-encoding: chunked", 400),
        ("/v1/images", "the-servers-key", "content-length: 5\r\ntransfer-encoding: chunked", 400),
        ("/v1/images/edit", "another-key", "content-length: 16777216", 401),
        ("/v1/nowhere", "the-servers-key", "content-length: 16777216", 413),
    ],
)
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_client_that_is_still_sending_reads_its_answer(
    clothes: dict[str, str], path: str, key: str, framing: str, status: int, connection: str
) -> None:
    """Through a real socket: the answer comes at once, the rest is read before the connection is closed."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\nx-api-key: {key}\r\n{framing}\r\nconnection: {connection}\r\n"
    head += "content-type: multipart/form-data; boundary=x\r\n\r\n"
    block = bytes(1 << 20)
    if "chunked" in framing:
        block = f"{len(block):x}\r\n".encode() + block + b"\r\n"

    async def ask(service: Service, _: httpx.AsyncClient) -> bytes:
        settings = uvicorn.Config(create_app(service), log_config=None, lifespan="off", ws="none")
        server, listener = uvicorn.Server(settings), listen("127.0.0.1", 0)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(head.encode() + block + block)
        answer = await reader.readuntil(b"}")
        for _block in range(14):
            writer.write(block)
            await writer.drain()
            await asyncio.sleep(0.01)
        if "chunked" in framing:
            writer.write(b"0\r\n\r\n")
        answer += await asyncio.wait_for(reader.read(), 20)  # to its end: a reset would raise
        writer.close()
        server.should_exit = True
        await running
        return answer

    answer = talk(clothes, ask, max_upload_bytes=1 << 20, api_key="the-servers-key")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and b"connection: close" in answer.lower()


@contextlib.asynccontextmanager
async def address_of(service: Service) -> AsyncIterator[tuple[str, int]]:
    """Where a service listens, with the settings of `resgen serve`."""
    server, listener = uvicorn.Server(uvicorn_config(service)), listen("127.0.0.1", 0)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()
    server.should_exit = True
    await running


@pytest.mark.parametrize(
    ("first", "later"),
    [(b"", b""), (b"GET / HTTP/1.1\r\nhost: a\r\n", b"x: 1\r\n"), (b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n", b"G")],
    ids=["silence", "headers without end", "a second request without end"],
)
def test_headers_that_never_end(
    clothes: dict[str, str], first: bytes, later: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resgen.serving.server.HEADERS_S", 0.5)

    async def ask(service: Service, _: httpx.AsyncClient) -> bytes:
        async with address_of(service) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(first)
            end = asyncio.create_task(reader.read())
            for part in range(100):
                await asyncio.wait({end}, timeout=0.1)
                if end.done():
                    break
                if part < 3:  # what comes after the end would break off the reading
                    writer.write(later)
            writer.close()
            assert end.done(), "the connection is open after 10 s"
            return end.result()

    assert talk(clothes, ask).count(b"HTTP/1.1 200") == first.count(b"healthz")


def test_a_request_whose_headers_are_there_has_its_time(
    clothes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resgen.serving.server.HEADERS_S", 1)

    async def ask(service: Service, _: httpx.AsyncClient) -> int:
        compute = service.batcher._run
        service.batcher._run = lambda tickets: (time.sleep(2), compute(tickets))[1]
        async with address_of(service) as (host, port), httpx.AsyncClient() as client:
            return (await client.post(f"http://{host}:{port}/v1/images", json={"class_ids": ["Bag"]})).status_code

    assert talk(clothes, ask) == 200


DAMAGED: list[tuple[str, bytes, dict[str, str], set[int]]] = [
    ("/v1/images", b"{", JSON, {400}),
    ("/v1/images", b"", JSON, {422}),
    ("/v1/images", b"[" * 60_000, JSON, {400}),
    ("/v1/images", b'{"seed": ' + b"9" * 5000 + b"}", JSON, {400}),
    ("/v1/images", b'{"seed": 1e400}', JSON, {422}),
    ("/v1/images", b'{"guidance_scale": NaN}', JSON, {422}),
    ("/v1/images", b'{"class_ids": ["\\ud800"]}', JSON, {422}),
    ("/v1/images", b'{"\\ud800": 1}', JSON, {422}),
    ("/v1/images", b"\xff\xfe", JSON, {400, 422}),
    ("/v1/images", b"{}", {"content-type": "text/plain"}, {415}),
    ("/v1/images", b"{}", {**JSON, "content-length": "-1"}, {413}),
    ("/v1/images/edit", b"{}", JSON, {415}),
    ("/v1/images/edit", b"x", {"content-type": "multipart/form-data"}, {400}),
    ("/v1/images/edit", b"x", {"content-type": "multipart/form-data; boundary=x"}, {400}),
    ("/v1/images/edit", b"--x\r\n\r\n\r\n--x--", {"content-type": "multipart/form-data; boundary=x"}, {400}),
    ("/v1/images/edit", b"--x--\r\n", {"content-type": "multipart/form-data; boundary=x"}, {400, 422}),
]


@pytest.mark.usefixtures("no_files")
def test_damaged_bodies(clothes: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> None:
        for path, body, headers, statuses in DAMAGED:
            answer = await client.post(path, content=body, headers=headers)
            assert answer.status_code in statuses, (path, body[:40], answer.text)
            assert list(answer.json()) == ["error"]
            assert body or answer.json()["error"] == "the body is missing; send it"

    talk(clothes, ask)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, "class"),
        ({"class_id": "bag"}, "nothing would be regenerated"),
        ({"class_id": "hat", "keep_levels": "1"}, "unknown class 'hat'"),
        ({"class_id": "bag", "keep_levels": "9"}, "keep_levels=9"),
        ({"class_id": "bag", "keep_levels": "one"}, "keep_levels='one' must be a whole number"),
        ({"class_id": "bag", "box": "0,0,9,9"}, "box 0,0,9,9"),
        ({"class_id": "bag", "box": "left"}, "box must be"),
        ({"class_id": "bag", "box": "1,2,3"}, "four whole numbers"),
        ({"class_id": "bag", "keep_levels": "1", "blend": "true"}, "blend"),
        ({"class_id": "bag", "keep_levels": "1", "blend": "maybe"}, "blend='maybe' must be true or false"),
        ({"class_id": "bag", "keep_levels": "1", "num_samples": "33"}, "33 images"),
        ({"class_id": "bag", "keep_levels": "1", "color": "red"}, "color"),
        ({"class_id": "bag", "keep_levels": ["1", "2"]}, "more than once"),
        ({"class_id": "bag", "keep_levels": "1", "image": "text"}, "image"),
    ],
    ids=str,
)
def test_fields_of_an_edit_that_are_refused(fields: dict[str, Any], names: str, clothes: dict[str, str]) -> None:
    async def ask(_: Service, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/images/edit", data=fields, files={"image": ("a", png())})

    answer = talk(clothes, ask)
    assert answer.status_code == 422 and names in answer.json()["error"], answer.text


def test_a_body_that_never_comes(clothes: dict[str, str]) -> None:
    import asyncio

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async def ask(_: Service, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/images", content=slow(), headers=JSON)

    answer = talk(clothes, ask, timeout_s=0.2)
    assert answer.status_code == 400 and "in time" in answer.json()["error"]
