"""Read the rows of a comparison from JSON into frozen values.

A row needs `label`, `n` and `accuracy`. Every other key may be missing or null, as those that compare with base are in
the base row itself. Accuracies, differences and interval bounds are shares of 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mass.errors import DataError

Interval = tuple[float, float]


@dataclass(frozen=True)
class ReportGroup:
    """A method's accuracy on a part of the problems."""

    n: int
    accuracy: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Sampled:
    """A method's sampled answers at one temperature, N for each problem."""

    temperature: float
    samples: int
    accuracy: float | None
    interval: Interval | None
    difference: float | None
    difference_interval: Interval | None
    pass_at_n: float | None
    maj_at_n: float | None
    tokens: float | None
    """Tokens per answer, practice included."""
    seconds: float | None


@dataclass(frozen=True)
class ReportRow:
    """One method."""

    label: str
    method: str
    n: int
    accuracy: float | None
    interval: Interval | None
    difference: float | None
    """Accuracy minus that of base on the same problems; None for base."""
    difference_interval: Interval | None
    helped: int | None
    hurt: int | None
    tokens: float | None
    """Generated tokens per answer."""
    seconds: float | None
    """Wall-clock seconds per answer."""
    fallbacks: int
    no_verdict: int
    by_subject: dict[str, ReportGroup]
    by_level: dict[str, ReportGroup]
    sampled: tuple[Sampled, ...] = ()
    """One entry per temperature."""

    @property
    def is_base(self) -> bool:
        """True for the row with which the others are compared."""
        return self.method == "base"


def rows_of(comparison: Mapping[str, Any]) -> list[ReportRow]:
    """Return the rows of a comparison.

    Raises:
        DataError: This is not a comparison.
    """
    rows = comparison.get("rows")
    if not isinstance(rows, list):
        raise DataError("this is no comparison: it has no list 'rows'; give the JSON that `mass eval` writes")
    return [_row(row, index) for index, row in enumerate(rows)]


def _row(data: Mapping[str, Any], index: int) -> ReportRow:
    missing = [key for key in ("label", "n", "accuracy") if key not in data]
    if missing:
        raise DataError(f"row {index} of the comparison has no {missing[0]!r}; give the JSON that `mass eval` writes")
    base = data.get("method") == "base"
    return ReportRow(
        label=str(data["label"]),
        method=str(data.get("method", data["label"])),
        n=int(data["n"]),
        accuracy=_number(data["accuracy"]),
        interval=_interval(data.get("interval")),
        difference=None if base else _number(data.get("difference")),
        difference_interval=None if base else _interval(data.get("difference_interval")),
        helped=None if base else data.get("helped"),
        hurt=None if base else data.get("hurt"),
        tokens=_number(data.get("tokens_per_answer")),
        seconds=_number(data.get("seconds_per_answer")),
        fallbacks=int(data.get("fallbacks") or 0),
        no_verdict=int(data.get("no_verdict") or 0),
        by_subject=_groups(data.get("by_subject")),
        by_level=_groups(data.get("by_level")),
        sampled=tuple(_sampled(part) for part in data.get("sampled") or ()),
    )


def _sampled(data: Mapping[str, Any]) -> Sampled:
    return Sampled(
        temperature=float(data["temperature"]),
        samples=int(data["samples"]),
        accuracy=_number(data.get("accuracy")),
        interval=_interval(data.get("interval")),
        difference=_number(data.get("difference")),
        difference_interval=_interval(data.get("difference_interval")),
        pass_at_n=_number(data.get("pass_at_n")),
        maj_at_n=_number(data.get("maj_at_n")),
        tokens=_number(data.get("tokens_per_answer")),
        seconds=_number(data.get("seconds_per_answer")),
    )


def _groups(data: Mapping[str, Any] | None) -> dict[str, ReportGroup]:
    return {
        str(name): ReportGroup(int(group["n"]), _number(group.get("accuracy")), _interval(group.get("interval")))
        for name, group in (data or {}).items()
    }


def _number(value: Any) -> float | None:
    """Return a finite number, or None; also for NaN and infinities, which JSON files of other tools may contain."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(value: Any) -> Interval | None:
    if value is None:
        return None
    low, high = _number(value[0]), _number(value[1])
    return None if low is None or high is None else (low, high)
