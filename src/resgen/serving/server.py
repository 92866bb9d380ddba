"""A service under uvicorn: from the first signal on it takes no new work, and finishes what it accepted."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from resgen.errors import ConfigError
from resgen.serving.app import create_app
from resgen.serving.config import ServerConfig
from resgen.serving.service import CLOSING, Service, served_names

BACKLOG = 2048
CLOSING_S = 10
"""Seconds that clients have, at the end, to read the answers that are ready."""
HEADERS_S = 10.0
"""Seconds in which the headers of a request must be complete, from the connection or their first byte on."""


def serve(
    sources: Sequence[str],
    config: ServerConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str | None = None,
    dtype: str = "auto",
) -> None:
    """Serve models until SIGTERM or SIGINT; a second signal does not wait for the answers.

    Args:
        sources: folders, bundled names or `owner/model` of the hub.
        config: limits.
        host: address to listen on.
        port: 0 takes a free one.
        device: see the pipelines.
        dtype: see the pipelines.

    Raises:
        CheckpointError: there is no such model, or it is damaged.
        ConfigError: the address cannot be listened on, or two models have one name.
    """
    service = Service(served_names(sources), config, device=device, dtype=dtype)
    listener = listen(host, port)
    with listener:
        asyncio.run(_run(service, listener))


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is taken, not this machine's or not allowed.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"port {port} must lie in 0..65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, TypeError, UnicodeError) as error:  # the latter two of what is no name of a host
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error


class Connection(H11Protocol):
    """uvicorn's connection, which would wait for the rest of a request's headers without end."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Part of a request has come."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        """Wait for headers, for `HEADERS_S` at most, unless a request is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self.transport.close)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class _Server(uvicorn.Server):
    """uvicorn's server, which on a signal would close its doors at once and end by that signal."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.loop = asyncio.get_running_loop()
        self.closing: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: finish what was accepted, answer 503 to everything else. Second: give up what is left."""
        self.loop.call_soon_threadsafe(self._signalled, sig)

    def _signalled(self, sig: int) -> None:
        if self.closing is None:
            log(f"{signal.Signals(sig).name}: finishing what was accepted")
            self.closing = self.loop.create_task(self._close())
        else:
            self.service.batcher.abandon()
            self.force_exit = self.should_exit = True

    async def _close(self) -> None:
        await self.service.close()
        self.should_exit = True


def uvicorn_config(service: Service) -> uvicorn.Config:
    """How uvicorn serves."""
    return uvicorn.Config(
        create_app(service),
        http=Connection,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=CLOSING_S,
    )


async def _run(service: Service, listener: socket.socket) -> None:
    server = _Server(uvicorn_config(service), service)
    loading = asyncio.create_task(_load(service, server, listener))
    await server.serve(sockets=[listener])
    await loading
    if server.closing is not None:
        await server.closing


async def _load(service: Service, server: _Server, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    log("loading; requests are answered with 503 until the models are there")
    try:
        await service.start()
    except BaseException:
        server.should_exit = True
        raise
    if service.state != CLOSING:
        address = f"[{host}]" if ":" in host else host
        log(f"serving {', '.join(service.models)} on http://{address}:{port}")


def log(text: str) -> None:
    """One line for whoever runs the server."""
    print(text, file=sys.stderr, flush=True)
