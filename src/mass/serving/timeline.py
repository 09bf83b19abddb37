"""Spans of time of one request -> seconds by stage, and the seconds that are neither the model's nor the queue's."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager


class Timeline:
    """The spans of one request, which may overlap: the unadapted answer is sampled beside the practice."""

    def __init__(self, began: float) -> None:
        """`began` is the time of the request's arrival (`time.perf_counter`)."""
        self._began = began
        self._spans: list[tuple[str, float, float]] = []
        self._parts: dict[str, float] = {}

    @contextmanager
    def span(self, stage: str) -> Generator[None, None, None]:
        """Count the block as a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spans.append((stage, start, time.perf_counter()))

    def divided(self, start: float, seconds: Mapping[str, float]) -> None:
        """Count a span from `start` to now, whose stages were measured elsewhere."""
        self._spans.append(("", start, time.perf_counter()))
        for stage, value in seconds.items():
            self._parts[stage] = self._parts.get(stage, 0.0) + value

    def seconds(self) -> dict[str, float]:
        """Return the seconds by stage up to now, with `total` and `other`."""
        found = dict(self._parts)
        for stage, start, end in (span for span in self._spans if span[0]):
            found[stage] = found.get(stage, 0.0) + end - start
        total = time.perf_counter() - self._began
        return {**found, "other": max(0.0, total - self._covered()), "total": total}

    def _covered(self) -> float:
        """Return the length of the union of all spans."""
        covered, reached = 0.0, float("-inf")
        for _, start, end in sorted(self._spans, key=lambda span: span[1]):
            covered += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return covered
