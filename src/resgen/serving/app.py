"""The HTTP interface: routes, their errors, and nothing of how pictures or speech are made."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

import resgen
from resgen.errors import ConfigError, DataError, ResGenError
from resgen.pipelines.image.edit import Box
from resgen.serving import schemas
from resgen.serving.batching import ClosedError, QueueFullError, Ticket
from resgen.serving.files import INDEX, page_files
from resgen.serving.gate import Gate, error_body, log_defect, status_headers
from resgen.serving.images import ServedImages
from resgen.serving.service import READY, Service, UnknownModelError
from resgen.serving.speech import ServedSpeech
from resgen.serving.uploads import check_picture, check_sound, read_form, validation_line

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
STEPS_AHEAD = 16
"""Steps of a stream that may wait for a slow client; more are left out."""


def documented(model: Any, *statuses: int, **content: Any) -> dict[str, Any]:
    """`responses` of a route: what it answers, and its errors."""
    errors: dict[Any, Any] = {s: {"model": schemas.ErrorAnswer, "description": REASONS[s]} for s in statuses}
    return {"responses": {200: {"model": model, **content} if model else content, **errors}}


def create_app(service: Service) -> ASGIApp:
    """The application around a service; start and close the service beside it."""
    app = FastAPI(title="resgen", version=resgen.__version__, docs_url=None, redoc_url=None)
    app.include_router(_open_routes(service))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return PlainTextResponse(described(app.openapi()))

    keyed = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
    app.include_router(_models(service), dependencies=keyed if service.config.api_key else [])
    refusals = (StarletteHTTPException, RequestValidationError, ResGenError, QueueFullError, ClosedError, TimeoutError)
    for kind in (*refusals, Exception):
        app.add_exception_handler(kind, _failed)
    return Gate(app, service)


def _open_routes(service: Service) -> APIRouter:
    router, files = APIRouter(), page_files()

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        if INDEX not in files:
            return PlainTextResponse("This server has no page; its interface is described at /openapi.json.\n")
        return await page(INDEX)

    @router.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    @router.get("/healthz", **documented(schemas.StatusAnswer))
    async def healthz() -> Response:
        """Whether the process lives."""
        return _json({"status": "ok"})

    @router.get("/readyz", **documented(schemas.StatusAnswer, 503))
    async def readyz() -> Response:
        """Whether it takes work."""
        if service.state != READY:
            raise HTTPException(503, f"the server is {service.state}")
        return _json({"status": "ok"})

    @router.get("/metrics", **documented(None, 401, description="Text for Prometheus.", content={"text/plain": {}}))
    async def metrics() -> Response:
        """Counters."""
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.content_type})

    return router


def _models(service: Service) -> APIRouter:
    router, batcher, config = APIRouter(prefix="/v1"), service.batcher, service.config
    work = (400, 401, 404, 413, 415, 422, 429, 503, 504)

    def settings(request: schemas.Sampling) -> dict[str, Any]:
        if request.num_steps is not None and request.num_steps > config.max_steps:
            raise ConfigError(f"num_steps={request.num_steps} must be at most {config.max_steps}")
        return {"num_steps": request.num_steps, "guidance_scale": request.guidance_scale}

    async def finished(request: Request, ticket: Ticket) -> Any:
        """The ticket's result, unless the client leaves first."""
        result = asyncio.create_task(service.result(ticket))
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

    @router.get("/models", **documented(schemas.ModelsAnswer, 401, 503))
    async def models() -> Response:
        """The models, their settings and their limits."""
        return _json(service.describe())

    @router.post("/images", **documented(schemas.ImagesAnswer, *work))
    async def images(request: Request, body: schemas.ImagesRequest) -> Response:
        """New pictures; the same seed gives the same pictures."""
        model = service.find(body.model, ServedImages)
        key, job = model.images(body.class_ids, body.num_samples, seed_of(body), settings(body))
        ticket = batcher.submit(key, job, size=len(job.class_ids))
        return _timed(model.answer(job, await finished(request, ticket)), ticket)

    stream_type = {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}

    @router.post("/images/stream", **documented(None, *work, description="One JSON document a line.", **stream_type))
    async def stream(body: schemas.ImagesRequest) -> Response:
        """New pictures, and how they come about step by step."""
        model = service.find(body.model, ServedImages)
        key, job = model.images(body.class_ids, body.num_samples, seed_of(body), settings(body))
        steps: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        def note(event: dict[str, Any]) -> None:
            if steps.qsize() < STEPS_AHEAD:
                steps.put_nowait(event)

        ticket = batcher.submit(key, job, size=len(job.class_ids), notify=note)

        async def lines() -> AsyncIterator[bytes]:
            result = asyncio.create_task(service.result(ticket))
            result.add_done_callback(lambda _: steps.put_nowait(None))
            try:
                while (event := await steps.get()) is not None:
                    yield _line(event)
                try:
                    answer = model.answer(job, await result)
                    yield _line({"event": "done", **answer, "seconds": _seconds(ticket)})
                except (ResGenError, TimeoutError) as error:
                    reason = REASONS[504] if isinstance(error, TimeoutError) else str(error)
                    yield _line({"event": "error", **json.loads(error_body(reason))})
                except Exception as error:
                    log_defect(error)
                    yield _line({"event": "error", "error": DEFECT})
            finally:
                result.cancel()

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    edit_form = schemas.form_schema(schemas.EditForm, {"image": True, "mask": False})

    @router.post("/images/edit", **documented(schemas.ImagesAnswer, *work), openapi_extra=edit_form)
    async def edit(request: Request) -> Response:
        """Part of a picture imagined anew."""
        form, files = await read_form(request, schemas.EditForm, {"image": True, "mask": False})
        model = service.find(form.model, ServedImages)
        for name, content in files.items():
            check_picture(content, f"the {'picture' if name == 'image' else name}", config.max_pixels)
        box = None if form.box is None else Box.parse(form.box)
        if form.box is not None and (box is None or "mask" in files):
            raise ConfigError("box must be x0,y0,x1,y1, and comes in place of a mask")
        key, job = model.edited(
            files["image"],
            mask=files.get("mask", box),
            keep_levels=form.keep_levels,
            class_id=form.class_id,
            num=form.num_samples,
            seed=seed_of(form),
            blend=form.blend,
            settings=settings(form),
        )
        ticket = batcher.submit(key, job, size=len(job.class_ids))
        return _timed(model.answer(job, await finished(request, ticket)), ticket)

    levels_form = schemas.form_schema(schemas.LevelsForm, {"image": True})

    @router.post("/images/levels", **documented(schemas.LevelsAnswer, *work), openapi_extra=levels_form)
    async def levels(request: Request) -> Response:
        """A picture decoded from one level, from two, ... and from all."""
        form, files = await read_form(request, schemas.LevelsForm, {"image": True})
        model = service.find(form.model, ServedImages)
        check_picture(files["image"], "the picture", config.max_pixels)
        ticket = batcher.submit(*model.levels(files["image"]))
        return _json({"levels": await finished(request, ticket)})

    speech_form = schemas.form_schema(schemas.SpeechForm, {"prompt": False})

    @router.post("/speech", **documented(schemas.SpeechAnswer, *work), openapi_extra=speech_form)
    async def speech(request: Request) -> Response:
        """A text spoken, in the voice of a prompt if there is one."""
        form, files = await read_form(request, schemas.SpeechForm, {"prompt": False})
        model = service.find(form.model, ServedSpeech)
        for text in (form.text, form.prompt_text or ""):
            if len(text) > config.max_text:
                raise DataError(f"a text has {len(text)} characters; at most {config.max_text} are allowed")
        if "prompt" in files:
            check_sound(files["prompt"], "the prompt")
        key, job = model.spoken(
            form.text,
            prompt=files.get("prompt"),
            prompt_text=form.prompt_text,
            speed=form.speed,
            seed=seed_of(form),
            settings=settings(form),
        )
        ticket = batcher.submit(key, job)
        return _timed(model.answer(job, await finished(request, ticket)), ticket)

    return router


def described(document: dict[str, Any]) -> str:
    """The OpenAPI document for people: every route and its body, in plain text that needs nothing from elsewhere."""
    lines = [f"{document['info']['title']} {document['info']['version']}; the whole document: /openapi.json"]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            lines += ["", f"{method.upper()} {path}", f"    {route['description']}"]
            for media, body in route.get("requestBody", {}).get("content", {}).items():
                schema = body["schema"]
                if "$ref" in schema:
                    schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
                lines.append(f"    {media}: {', '.join(schema['properties'])}")
    return "\n".join(lines) + "\n"


def seed_of(request: schemas.Sampling) -> int:
    """The seed of a request; a new one if it has none."""
    return secrets.randbelow(1 << 32) if request.seed is None else request.seed


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(document: Any) -> Response:
    return Response(json.dumps(document, allow_nan=False), media_type="application/json")


def _line(document: Any) -> bytes:
    return json.dumps(document, allow_nan=False).encode() + b"\n"


def _seconds(ticket: Ticket) -> float:
    return round(time.monotonic() - ticket.since, 4)


def _timed(answer: dict[str, Any], ticket: Ticket) -> Response:
    return _json({**answer, "seconds": _seconds(ticket)})


def _error(status: int, reason: str, headers: Any = None) -> Response:
    fields = {**(headers or {}), **status_headers(status)}
    return Response(error_body(reason), status, headers=fields, media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    """The answer to whatever a route raises."""
    match error:
        case StarletteHTTPException():
            return _error(error.status_code, str(error.detail), error.headers)
        case RequestValidationError():
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return _error(415, "the body must be application/json")
            if any(one["type"] == "json_invalid" for one in error.errors()):
                return _error(400, "the body is not valid JSON")
            return _error(422, validation_line(error.errors()))
        case ResGenError():
            return _error(404 if isinstance(error, UnknownModelError) else 422, str(error))
        case QueueFullError():
            return _error(429, "too many requests wait; try again later")
        case ClosedError():
            return _error(503, "the server is shutting down")
        case TimeoutError():
            return _error(504, "the answer took too long; ask for fewer samples or steps")
    return _error(500, DEFECT)
