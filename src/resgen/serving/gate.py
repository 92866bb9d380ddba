"""The first and last step of every request: state, key, limits of bodies, headers, one line in the log, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import sys
import time
import traceback
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from resgen.serving.service import READY, Service

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self)",
    "Cache-Control": "no-store",
}
OPENAI = "/v1/audio/speech"
FORMS = (
    "/v1/images/edit",
    "/v1/images/levels",
    "/v1/speech",
    "/v1/speech/stream",
    "/v1/speech/edit",
    "/v1/speech/edit/stream",
)
"""Bodies with files."""
OPEN = ("/", "/healthz", "/readyz", "/docs")
ROUTES = (
    *OPEN,
    "/v1/models",
    "/v1/images",
    "/v1/images/stream",
    "/v1/images/samples",
    "/v1/speech/samples",
    "/v1/voices",
    OPENAI,
    *FORMS,
    "/metrics",
    "/openapi.json",
)
MAX_JSON_BYTES = 1 << 16
LATE_BYTES, LATE_S = 1 << 28, 10.0
"""How much of a body is read, and for how long, after the answer: a client that is still sending when the connection
closes would see a reset in its place."""
ABANDONED = 499
"""In log and metrics: the client left before its answer."""


class CutShortError(Exception):
    """The rest of an answer cannot be made; the connection ends without it, so that the client notices.

    Args:
        status: for log and metrics.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Gate:
    """ASGI middleware around the application.

    Args:
        app: what answers.
        service: its state, key and limits.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, unread = time.perf_counter(), ABANDONED, False
        body = _Body(Headers(scope=scope), receive, self._most(scope["path"]), self.service.config.timeout_s)

        async def answer(message: Message) -> None:
            nonlocal status, unread
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not body.complete:
                    headers["Connection"] = "close"
            elif not message.get("more_body", False) and not body.complete:
                unread, message = True, {**message, "more_body": True}  # the connection stays open for the rest
            try:
                async with asyncio.timeout(self.service.config.timeout_s):
                    await send(message)
            except TimeoutError as error:  # it reads nothing of what was sent
                raise ClientDisconnect from error

        computing = scope["path"].startswith("/v1/") and scope["method"] == "POST"
        self.service.busy += computing
        try:
            refused = self._refusal(scope, computing)
            if refused is None:
                asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope  # the server sends no body
                await self.app(asked, body.receive, answer)
            else:
                await send_error(answer, scope["path"], *refused)
        except ClientDisconnect:
            status = ABANDONED
        except CutShortError as error:
            status = error.status
        except Exception as error:
            log_defect(error)  # the application has answered 500
        finally:
            self.service.busy -= computing
            seconds = time.perf_counter() - began
            route = route_of(scope["path"])
            self.service.metrics.answered(route, status, seconds)
            print(f"{_method(scope)} {route} {status} {seconds:.3f}s", file=sys.stderr, flush=True)
        if unread:
            await body.drain()
            await send({"type": "http.response.body", "body": b""})

    def _refusal(self, scope: Scope, computing: bool) -> tuple[int, str] | None:
        """Status and reason for which a request is not even read."""
        service, path, headers = self.service, scope["path"], Headers(scope=scope)
        is_open = path in OPEN or path.startswith("/page/")
        if service.config.api_key is not None and not is_open and not has_key(headers, service.config.api_key):
            return 401, "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY"
        if path.startswith("/v1/") and service.state != READY:
            return 503, f"the server is {service.state}"
        length = headers.get("content-length", "0")
        if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may go by the other one
            return 400, "the body has both a length and a transfer encoding; send one of them"
        if not length.isdecimal() or int(length[:20]) > self._most(path):
            return 413, f"the body has {length[:20]} bytes; at most {self._most(path)} are read"
        if computing and service.busy > service.config.max_queue + service.config.max_batch:
            return 429, "too many requests; try again later"
        return None

    def _most(self, path: str) -> int:
        return self.service.config.max_upload_bytes if path in FORMS else MAX_JSON_BYTES


class _Body:
    """A request's body on its way: its bytes and the time that it takes are limited, and what is left can be drained.

    Attributes:
        complete: whether all of it was received, or nothing more will come.
    """

    def __init__(self, headers: Headers, receive: Receive, most: int, timeout_s: float) -> None:
        self.complete = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
        self._receive, self._most, self._until = receive, most, time.monotonic() + timeout_s
        self._count = 0

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: 413 or 400: too much, or too late.
        """
        if self.complete:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message = await self._next()
        except TimeoutError as error:
            raise HTTPException(400, "the request's body did not arrive in time") from error
        if self._count > self._most:
            raise HTTPException(413, f"the body has more than {self._most} bytes")
        return message

    async def drain(self) -> None:
        """Read on, within limits, and forget what comes."""
        most = self._count + LATE_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE_S):
                while not self.complete and self._count < most:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._count += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message


def log_defect(error: Exception) -> None:
    """An error that no client can mend, by type and place: its message may quote what a user wrote."""
    places = "".join(traceback.format_tb(error.__traceback__))
    print(f"{type(error).__name__} in a request:\n{places}", file=sys.stderr, flush=True)


def has_key(headers: Headers, key: str) -> bool:
    """Whether a request shows the key; takes equally long whatever it shows."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    offer = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return hmac.compare_digest(offer.encode("utf-8", "replace"), key.encode())


def route_of(path: str) -> str:
    """A path's name in log and metrics: never what a client made up."""
    return path if path in ROUTES else "/page/{name}" if path.startswith("/page/") else "other"


async def send_error(send: Send, path: str, status: int, reason: str) -> None:
    """An `error_body` as the answer."""
    body = error_body(reason, path)
    fields = {"content-type": "application/json", "content-length": str(len(body)), **status_headers(status)}
    start: dict[str, Any] = {"type": "http.response.start", "status": status}
    start["headers"] = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send(start)
    await send({"type": "http.response.body", "body": body})


def status_headers(status: int) -> dict[str, str]:
    """Headers that belong to a status."""
    return {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}.get(status, {})


def error_body(reason: str, path: str = "") -> bytes:
    """The body of every error: `{"error": reason}` in one line of ASCII, and what OpenAI's clients show on their route.

    Args:
        reason: of those that quote a request, the first 500 characters are taken.
        path: path of the request.
    """
    line = " ".join(reason.split())
    line = line if len(line) <= 500 else line[:500] + " ..."
    return json.dumps({"error": {"message": line} if path == OPENAI else line}).encode("ascii")


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
    return scope["method"] if scope["method"] in known else "other"
