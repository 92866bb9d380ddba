"""Requests made up from the OpenAPI document: what comes back is what the document says."""

from __future__ import annotations

import contextlib

import pytest

schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving_parts import listening  # noqa: E402

CHECKED = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_answers_are_those_of_the_document(sources: dict[str, str]) -> None:
    limits = {"max_samples": 4, "max_batch": 4, "max_steps": 4, "max_text": 40}
    with listening(sources, **limits) as (_, address):
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        operations = [entry.ok() for entry in schema.get_all_operations()]
        assert {"/v1/images/stream", "/v1/images/edit", "/v1/speech", "/v1/audio/speech", "/readyz"} <= {
            one.path for one in operations
        }
        statuses = {operation.path: conforming(operation) for operation in operations}
    assert statuses["/v1/models"] == {200} and 200 in statuses["/v1/images"]
    assert 422 in statuses["/v1/speech"] and 422 in statuses["/v1/audio/speech"]


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
