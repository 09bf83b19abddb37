"""Numbers of a server, in the form of Prometheus: how many, how long, with which outcome; no text of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from mass.lm.continuous import Load
from mass.serving.job import Job, Outcome

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
ADAPTED, PLAIN = "adapted", "plain"


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self, loads: Callable[[], Load], waiting: Callable[[], int], running: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.replies = Counter("mass_requests", "Replies, by route and status.", ["route", "status"], registry=registry)
        self.outcomes = Counter(
            "mass_answers",
            "Answered requests, by model and outcome: plain, adapted, or the reason for the unadapted answer.",
            ["model", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "mass_seconds", "Seconds of a request, by stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self.tokens = Counter("mass_tokens", "Generated tokens, by stage.", ["stage"], registry=registry)
        self.verdicts = Counter(
            "mass_verdicts", "Verdicts of users on answers.", ["model", "adapted", "right"], registry=registry
        )
        self.records_failed = Counter("mass_records_failed", "Records that could not be written.", registry=registry)
        self._gauge("mass_requests_running", "Requests that are being answered.", running)
        self._gauge("mass_requests_waiting", "Requests that wait for their turn to practise.", waiting)
        self._gauge("mass_rows_running", "Sequences that are being sampled.", lambda: loads().running)
        self._gauge("mass_rows_waiting", "Sequences that wait to be sampled.", lambda: loads().waiting)
        self._gauge("mass_adapters", "Adapters in use.", lambda: loads().adapters)
        self._gauge("mass_decoder_bytes", "Bytes of keys and values of running sequences.", lambda: loads().held)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, job: Job, outcome: Outcome) -> None:
        """Count one answered request."""
        what = ADAPTED if outcome.adapted else outcome.fallback or PLAIN
        self.outcomes.labels(job.served.name, what).inc()
        self._add(outcome.seconds, outcome.tokens)

    def _add(self, seconds: Mapping[str, float], tokens: Mapping[str, int]) -> None:
        for stage, value in seconds.items():
            self.seconds.labels(stage).observe(value)
        for stage, count in tokens.items():
            self.tokens.labels(stage).inc(count)

    def judged(self, model: str, *, adapted: bool, right: bool) -> None:
        """Count one verdict of a user."""
        self.verdicts.labels(model, _word(adapted), _word(right)).inc()

    def text(self) -> bytes:
        """Return the numbers as Prometheus reads them."""
        return generate_latest(self.registry)


def _word(value: bool) -> Literal["yes", "no"]:
    return "yes" if value else "no"
