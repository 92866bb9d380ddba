"""A server's counters, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of its own.

    Args:
        queue_length: requests that wait for their batch, asked whenever the metrics are read.
        in_flight: requests for work that have come and have no answer yet, likewise.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, queue_length: Callable[[], int], in_flight: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter("resgen_requests", "Answers.", ("route", "status"), registry=self.registry)
        self._seconds = Histogram(
            "resgen_request_seconds", "Time to an answer.", ("route",), buckets=_SECONDS, registry=self.registry
        )
        self._batch_size = Histogram(
            "resgen_batch_size", "Samples computed together.", buckets=_SAMPLES, registry=self.registry
        )
        self._batch_seconds = Histogram(
            "resgen_batch_seconds", "Time of a batch.", buckets=_SECONDS, registry=self.registry
        )
        length = Gauge("resgen_queue_length", "Requests that wait for their batch.", registry=self.registry)
        length.set_function(lambda: float(queue_length()))
        flying = Gauge("resgen_requests_in_flight", "Requests for work without an answer.", registry=self.registry)
        flying.set_function(lambda: float(in_flight()))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer; `route` is one of few names, never an address as a client wrote it."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def computed(self, samples: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_size.observe(samples)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
