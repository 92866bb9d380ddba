"""Shared by all routes: their descriptions, settings, waiting for a result, and the response as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect

from resgen.errors import ConfigError, ResGenError
from resgen.serving import schemas
from resgen.serving.batching import Ticket
from resgen.serving.gate import error_body, log_defect
from resgen.serving.service import Served, Service

REASONS = {
    400: "The body is malformed, or does not arrive in time.",
    401: "The key is missing or wrong.",
    404: "There is no model of this name.",
    406: "The route has no response of the requested type.",
    413: "The body, an image or a sound is too large.",
    415: "The body or a file is of a type that the route does not take.",
    422: "A value is out of range, unknown or missing.",
    429: "The queue is full.",
    503: "The server is loading or shutting down.",
    504: "No response within the time limit.",
}
JSON = "application/json"
DEFECT = "the server failed; its log says where"
TOO_LONG = "the response took too long; ask for fewer images or steps, or a shorter text"
WORK = (400, 401, 404, 413, 415, 422, 429, 503, 504)
"""Errors of routes that compute."""
BODILESS = (401, 404, 422, 429, 503, 504)
"""Errors of routes that compute and take no body."""
STEPS_AHEAD = 16
"""Steps that may wait for a slow client."""

T = TypeVar("T")


def documented(model: Any, *statuses: int, error: Any = schemas.ErrorAnswer, **content: Any) -> dict[str, Any]:
    """`responses` of a route: what it answers, and its errors."""
    errors: dict[Any, Any] = {s: {"model": error, "description": REASONS[s]} for s in statuses}
    return {"responses": {200: {"model": model, **content} if model else content, **errors}}


def binary(*media_types: str) -> dict[str, Any]:
    """`content` of a documented answer that is a file of one of these types."""
    return {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}


class Routes:
    """Routes below `/v1`; a modality adds its own.

    Attributes:
        served: class of the models that answer them.

    Args:
        service: answers them.
    """

    served: type[Served]

    def __init__(self, service: Service) -> None:
        self.service, self.config, self.batcher = service, service.config, service.batcher
        self.router = APIRouter(prefix="/v1")
        self._made: dict[str, asyncio.Task[Response]] = {}

    def settings(self, request: schemas.Sampling) -> dict[str, Any]:
        """Settings of the sampler that a request names.

        Raises:
            ConfigError: too many steps.
        """
        if request.num_steps is not None and request.num_steps > self.config.max_steps:
            raise ConfigError(f"num_steps={request.num_steps} must be at most {self.config.max_steps}")
        return {"num_steps": request.num_steps, "guidance_scale": request.guidance_scale}

    async def result(self, request: Request, ticket: Ticket) -> Any:
        """The ticket's result, unless the client leaves first."""
        return await unless_gone(request, self.service.result(ticket))

    async def once(self, name: str, make: Callable[[], Coroutine[Any, Any, Response]]) -> Response:
        """What `make` answers; the same for everybody who asks for `name` later. What failed is tried again, and
        whoever leaves ends it for nobody."""
        task = self._made.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._made[name] = asyncio.create_task(make())
        return await asyncio.shield(task)

    def follow(self, key: Any, job: Any, *, size: int = 1) -> tuple[Ticket, AsyncGenerator[Any, None]]:
        """Compute a model's job; its ticket, and what the worker tells of it until it is done.

        The generator raises what goes wrong; closing it gives the ticket up.

        Args:
            key: the job's key.
            job: what to compute.
            size: samples.
        """
        events = Events()
        ticket = self.batcher.submit(key, job, size=size, notify=events.put_nowait)
        return ticket, self._events(ticket, events)

    async def _events(self, ticket: Ticket, events: Events) -> AsyncGenerator[Any, None]:
        result = asyncio.create_task(self.service.result(ticket))
        result.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            await result
        finally:
            result.cancel()

    async def answer(self, request: Request, model: Any, key: Any, job: Any, size: int = 1) -> Response:
        """Compute a model's job and answer it, with its time."""
        ticket = self.batcher.submit(key, job, size=size)
        return as_json({**model.answer(job, await self.result(request, ticket)), "seconds": seconds_of(ticket)})


class Events(asyncio.Queue[Any]):
    """What a worker tells, on its way to a client. For one that reads slowly the newest `STEPS_AHEAD` steps wait, and
    everything that is no step."""

    def _init(self, maxsize: int) -> None:
        self._queue: deque[Any] = deque()

    def _put(self, item: Any) -> None:
        if _is_step(item):
            steps = [place for place, event in enumerate(self._queue) if _is_step(event)]
            if len(steps) >= STEPS_AHEAD:
                del self._queue[steps[0]]
        self._queue.append(item)


def _is_step(event: Any) -> bool:
    return isinstance(event, dict) and event["event"] == "step"


class ModelRoutes(Routes):
    """What is served."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.router.get("/models", **documented(schemas.ModelsAnswer, 401, 503))(self.models)

    async def models(self) -> Response:
        """The models, their default settings and their limits."""
        return as_json(self.service.describe())


LINES: dict[str, Any] = {"description": "One JSON document per line."}
LINES["content"] = {"application/x-ndjson": {"schema": {"type": "string"}}}


def as_lines(events: AsyncGenerator[Any, None], last: Callable[[], Any]) -> Response:
    """Events of a ticket as they come, one JSON document a line, and `last()` or what went wrong at the end."""

    async def lines() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(events):
            try:
                async for event in events:
                    yield _line(event)
                yield _line({"event": "done", **last()})
            except (ResGenError, TimeoutError) as error:
                reason = TOO_LONG if isinstance(error, TimeoutError) else str(error)
                yield _line({"event": "error", **json.loads(error_body(reason))})
            except Exception as error:
                log_defect(error)
                yield _line({"event": "error", "error": DEFECT})

    return StreamingResponse(lines(), media_type="application/x-ndjson")


def _line(document: Any) -> bytes:
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def seed_of(request: schemas.Sampling) -> int:
    """The seed of a request; a new one if it has none."""
    return secrets.randbelow(1 << 32) if request.seed is None else request.seed


async def unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """Wait for something that is cancelled if the client leaves first.

    Raises:
        ClientDisconnect: the client has left.
    """
    waiting, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return waiting.result()
    finally:
        for task in (waiting, gone):
            task.cancel()
        await asyncio.gather(waiting, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_json(document: Any) -> Response:
    """A document as an answer."""
    return Response(json.dumps(document, allow_nan=False), media_type=JSON)


def as_file(content: bytes, media_type: str, seed: int, warnings: Sequence[str] = ()) -> Response:
    """An image or sound as an answer, with the seed that makes it again in a header."""
    return Response(content, media_type=media_type, headers=headers_of(seed, warnings))


def headers_of(seed: int, warnings: Sequence[str] = ()) -> dict[str, str]:
    """Where an answer that is no JSON tells its seed and warnings; other letters than ASCII are escaped."""
    warning = "; ".join(warnings).encode("ascii", "backslashreplace").decode()
    return {"X-Seed": str(seed), **({"X-Warning": warning} if warning else {})}


def preferred(request: Request, offers: Sequence[str]) -> str:
    """The media type, of those that a route offers, that the Accept header likes best; the first without a header.

    Raises:
        HTTPException: 406: it names none of them.
    """
    accept = ",".join(request.headers.getlist("accept"))
    if not accept.strip():
        return offers[0]
    ranges: list[tuple[float, str]] = []
    for part in accept.split(","):
        name, *parameters = (one.strip().lower() for one in part.split(";"))
        quality = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        if name and re.fullmatch(r"[01](\.\d{0,3})?", quality) and float(quality):
            ranges.append((float(quality), name))
    for _, name in sorted(ranges, key=lambda one: -one[0]):
        for offer in offers:
            if name in (offer, "*/*", offer.partition("/")[0] + "/*"):
                return offer
    raise HTTPException(406, f"the response can be {', '.join(offers)}; name one of them in the Accept header")


def seconds_of(ticket: Ticket) -> float:
    """Since the ticket was taken."""
    return round(time.monotonic() - ticket.since, 4)
