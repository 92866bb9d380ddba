"""A service with small untrained models, and a client that talks to it without a network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from resgen.serving.app import create_app
from resgen.serving.config import ServerConfig
from resgen.serving.server import listen
from resgen.serving.service import Service

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)


@contextlib.asynccontextmanager
async def running(sources: dict[str, str], **limits: Any) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A ready service, and a client of it."""
    config = ServerConfig(**{"max_wait_ms": 20.0, "timeout_s": 30.0, **limits})
    service = Service(sources, config, device="cpu", dtype="float32")
    await service.start()
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=True)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield service, client
    finally:
        await service.close()


def talk(
    sources: dict[str, str], conversation: Callable[[Service, httpx.AsyncClient], Awaitable[Any]], **limits: Any
) -> Any:
    """The result of a conversation with a service."""

    async def run() -> Any:
        async with running(sources, **limits) as (service, client):
            return await conversation(service, client)

    return asyncio.run(run())


class Asked:
    """One request as a server would pass it on, whose answer is read message by message."""

    def __init__(self, service: Service, path: str, body: dict[str, Any]) -> None:
        self.gone, self.reads, self._content = asyncio.Event(), asyncio.Event(), json.dumps(body).encode()
        self.reads.set()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(self._content)).encode())]
        headers.append((b"accept", b"audio/wav"))
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
        self.task = asyncio.create_task(create_app(service)({**scope, "scheme": "http"}, self._receive, self._send))

    async def message(self) -> dict[str, Any]:
        return await asyncio.wait_for(self._answers.get(), 20)

    async def rest(self) -> list[dict[str, Any]]:
        await asyncio.wait_for(self.task, 20)
        return [self._answers.get_nowait() for _ in range(self._answers.qsize())]

    async def _receive(self) -> dict[str, Any]:
        if self._content:
            content, self._content = self._content, b""
            return {"type": "http.request", "body": content, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        await self._answers.put(message)


def png(array: np.ndarray = PIXELS) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def pngs(answer: dict[str, Any]) -> list[bytes]:
    """The files in an answer."""
    return [base64.b64decode(picture["png"]) for picture in answer["images"]]


def files_under(*folders: Path) -> list[Path]:
    """Everything that lies there now."""
    return sorted(path for folder in folders for path in folder.rglob("*"))


@contextlib.contextmanager
def listening(sources: dict[str, str], **limits: Any) -> Iterator[tuple[Service, str]]:
    """A server in another thread, and its address."""
    config = ServerConfig(**{"max_wait_ms": 0.0, **limits})
    ready, services, ends = threading.Event(), [], []

    def run() -> None:
        async def main() -> None:
            service = Service(sources, config, device="cpu", dtype="float32")
            await service.start()
            services.append(service)
            options = uvicorn.Config(create_app(service), log_config=None, lifespan="off")
            server = uvicorn.Server(options)
            loop = asyncio.get_running_loop()
            ends.append(lambda: loop.call_soon_threadsafe(setattr, server, "should_exit", True))
            ready.set()
            await server.serve(sockets=[listener])
            await service.close()

        asyncio.run(main())

    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(600)
        try:
            yield services[0], f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ends[0]()
            thread.join()
