"""The HTTP interface: routes and their errors, independent of how images and speech are generated."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp

import resgen
from resgen.errors import ResGenError
from resgen.serving import schemas
from resgen.serving.batching import ClosedError, QueueFullError
from resgen.serving.files import DOCS, INDEX, page_files
from resgen.serving.gate import Gate, error_body, status_headers
from resgen.serving.routes import DEFECT, JSON, TOO_LONG, ModelRoutes, as_json, documented
from resgen.serving.service import READY, Service, UnknownModelError
from resgen.serving.uploads import media_type, validation_line


def create_app(service: Service) -> ASGIApp:
    """The application around a service; start and close the service beside it."""
    app = FastAPI(title="resgen", version=resgen.__version__, docs_url=None, redoc_url=None)
    app.include_router(_open_routes(service))

    keyed = [Depends(HTTPBearer(auto_error=False)), Depends(APIKeyHeader(name="X-API-Key", auto_error=False))]
    for routes in (ModelRoutes, *service.routes.values()):
        app.include_router(routes(service).router, dependencies=keyed if service.config.api_key else [])
    refusals = (StarletteHTTPException, RequestValidationError, ResGenError, QueueFullError, ClosedError, TimeoutError)
    for error in (*refusals, Exception):
        app.add_exception_handler(error, _failed)
    return Gate(app, service)


def _open_routes(service: Service) -> APIRouter:
    router, files = APIRouter(), page_files()

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        if INDEX not in files:
            return PlainTextResponse("This server has no page; its interface is described at /openapi.json.\n")
        return await page(INDEX)

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return await page(DOCS) if DOCS in files else RedirectResponse("openapi.json")

    @router.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such file")
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    @router.get("/healthz", **documented(schemas.StatusAnswer))
    async def healthz() -> Response:
        """Whether the process is alive."""
        return as_json({"status": "ok"})

    @router.get("/readyz", **documented(schemas.StatusAnswer, 503))
    async def readyz() -> Response:
        """Whether the server accepts work."""
        if service.state != READY:
            raise HTTPException(503, f"the server is {service.state}")
        return as_json({"status": "ok"})

    @router.get("/metrics", **documented(None, 401, description="Text for Prometheus.", content={"text/plain": {}}))
    async def metrics() -> Response:
        """Counts and times of requests and batches, the queue, memory."""
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.content_type})

    return router


async def _failed(request: Request, error: Exception) -> Response:
    """The answer to whatever a route raises."""
    if isinstance(error, StarletteHTTPException) and error.status_code == 405 and error.headers:
        methods = set(error.headers["Allow"].split(", "))
        error.headers = {"Allow": ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))}  # see Gate
    status, reason = _refusal(request, error)
    headers = (error.headers if isinstance(error, StarletteHTTPException) else None) or {}
    fields = {**headers, **status_headers(status)}
    return Response(error_body(reason, request.url.path), status, headers=fields, media_type=JSON)


def _refusal(request: Request, error: Exception) -> tuple[int, str]:
    match error:
        case StarletteHTTPException(status_code=405, headers={"Allow": allowed}):
            return 405, f"the method is not allowed for this address; allowed: {allowed}"
        case StarletteHTTPException(status_code=404, detail="Not Found"):
            return 404, "there is nothing at this address; /docs describes what there is"
        case StarletteHTTPException():
            return error.status_code, str(error.detail)
        case RequestValidationError():
            if request.method == "POST" and media_type(request) != JSON:
                return 415, "the body must be application/json; set the header Content-Type"
            if any(one["type"] == "json_invalid" for one in error.errors()):
                return 400, "the body is not valid JSON"
            # a place begins with "body" or "query", which are no fields
            return 422, validation_line([{**one, "loc": one["loc"][1:]} for one in error.errors()])
        case ResGenError():
            return 404 if isinstance(error, UnknownModelError) else 422, str(error)
        case QueueFullError():
            return 429, "too many requests are waiting; try again later"
        case ClosedError():
            return 503, "the server is shutting down"
        case TimeoutError():
            return 504, TOO_LONG
    return 500, DEFECT
