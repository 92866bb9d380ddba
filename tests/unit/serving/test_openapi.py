"""Requests made up from the OpenAPI document: what comes back is what the document says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest

schemathesis = pytest.importorskip("schemathesis")

import uvicorn  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from resgen.serving.app import create_app  # noqa: E402
from resgen.serving.server import listen  # noqa: E402
from resgen.serving.service import Service  # noqa: E402
from serving_parts import ServerConfig  # noqa: E402

CHECKED = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@contextlib.contextmanager
def listening(sources: dict[str, str]) -> Iterator[str]:
    """The address of a server in another thread."""
    config = ServerConfig(max_wait_ms=0.0, max_samples=4, max_batch=4, max_steps=4, max_text=40)
    ready, ends = threading.Event(), []

    def run() -> None:
        async def main() -> None:
            service = Service(sources, config, device="cpu", dtype="float32")
            await service.start()
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
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ends[0]()
            thread.join()


def test_answers_are_those_of_the_document(sources: dict[str, str]) -> None:
    with listening(sources) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        operations = [entry.ok() for entry in schema.get_all_operations()]
        assert {"/v1/images/stream", "/v1/images/edit", "/v1/speech", "/readyz"} <= {one.path for one in operations}
        statuses = {operation.path: conforming(operation) for operation in operations}
    assert statuses["/v1/models"] == {200} and 200 in statuses["/v1/images"] and 422 in statuses["/v1/speech"]


def conforming(operation) -> set[int]:
    """Statuses of a few requests of one operation, valid and not; each answer is checked against the document."""
    seen: set[int] = set()

    for mode in GenerationMode:

        @settings(max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])
        @given(case=operation.as_strategy(generation_mode=mode))
        def conform(case) -> None:
            answer = case.call(timeout=600)
            seen.add(answer.status_code)
            case.validate_response(answer, checks=CHECKED)

        with contextlib.suppress(Unsatisfiable):  # what has neither parameters nor body cannot be wrong
            conform()
    return seen
