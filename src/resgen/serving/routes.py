"""What routes share: what they say of themselves, settings, waiting for an answer, and the answer as JSON."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from resgen.errors import ConfigError
from resgen.serving import schemas
from resgen.serving.batching import Ticket
from resgen.serving.service import Served, Service

REASONS = {
    400: "The request is damaged.",
    401: "The key is missing or wrong.",
    404: "There is no such model.",
    413: "The request, its picture or its sound is too large.",
    415: "The body or a file is of another type.",
    422: "A value is out of range, unknown or missing.",
    429: "Too many requests wait.",
    503: "The server is loading or shutting down.",
    504: "The answer took too long.",
}
DEFECT = "this is a defect of the server"
WORK = (400, 401, 404, 413, 415, 422, 429, 503, 504)
"""Errors of routes that compute."""


def documented(model: Any, *statuses: int, **content: Any) -> dict[str, Any]:
    """`responses` of a route: what it answers, and its errors."""
    errors: dict[Any, Any] = {s: {"model": schemas.ErrorAnswer, "description": REASONS[s]} for s in statuses}
    return {"responses": {200: {"model": model, **content} if model else content, **errors}}


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
        result = asyncio.create_task(self.service.result(ticket))
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ClientDisconnect
            return result.result()
        finally:
            for task in (result, gone):
                task.cancel()
            await asyncio.gather(result, gone, return_exceptions=True)

    async def answer(self, request: Request, model: Any, key: Any, job: Any, size: int = 1) -> Response:
        """Compute a model's job and answer it, with its time."""
        ticket = self.batcher.submit(key, job, size=size)
        return as_json({**model.answer(job, await self.result(request, ticket)), "seconds": seconds_of(ticket)})


class ModelRoutes(Routes):
    """What is served."""

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.router.get("/models", **documented(schemas.ModelsAnswer, 401, 503))(self.models)

    async def models(self) -> Response:
        """The models, their settings and their limits."""
        return as_json(self.service.describe())


def seed_of(request: schemas.Sampling) -> int:
    """The seed of a request; a new one if it has none."""
    return secrets.randbelow(1 << 32) if request.seed is None else request.seed


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def as_json(document: Any) -> Response:
    """A document as an answer."""
    return Response(json.dumps(document, allow_nan=False), media_type="application/json")


def seconds_of(ticket: Ticket) -> float:
    """Since the ticket was taken."""
    return round(time.monotonic() - ticket.since, 4)
