"""The rows of a comparison's table, as `mass.evaluation.table` computes them and as they are read from JSON again.

Accuracies, differences and the bounds of intervals are shares of 1. Nothing here loads torch, as `mass report` reads
rows without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mass.bootstrap import Interval
from mass.errors import DataError


@dataclass(frozen=True)
class Group:
    """A method's accuracy on the problems of one subject or level."""

    n: int
    accuracy: float | None
    interval: Interval | None


@dataclass(frozen=True)
class SampledRow:
    """A method's sampled answers at one temperature, in addition to the row it belongs to."""

    temperature: float
    samples: int
    """N: the number of answers sampled for each problem."""
    accuracy: float | None
    """Mean over problems of the share of a problem's judged answers that are correct."""
    interval: Interval | None
    difference: float | None
    """Accuracy minus that of the reference row at the same temperature, on the problems for which both have a
    verdict."""
    difference_interval: Interval | None
    pass_at_n: float | None
    """Share of the problems for which at least one of the N answers is right."""
    pass_interval: Interval | None
    maj_at_n: float | None
    """Share of the problems for which the most frequent of the N answers is right."""
    maj_interval: Interval | None
    tokens_per_answer: float | None
    """Tokens per answer, not per N answers; practice included."""
    seconds_per_answer: float | None


@dataclass(frozen=True)
class Row:
    """One method. Differences are from the reference row; they are None in that row itself, and in every row when the
    reference was not run."""

    method: str
    label: str
    """The method's name, for 'maj@n' with the n that was chosen."""
    n: int
    """Number of problems."""
    no_verdict: int
    """Number of answers without a verdict."""
    accuracy: float | None
    """Share of the judged answers that are correct; None when none was judged."""
    interval: Interval | None
    difference: float | None
    difference_interval: Interval | None
    helped: int | None
    """Number of problems that are wrong in the reference row and right in this one."""
    hurt: int | None
    """Number of problems that are right in the reference row and wrong in this one."""
    unchanged: int | None
    tokens_per_answer: float | None
    """All generated tokens, practice and votes included; None in a file that does not say."""
    seconds_per_answer: float | None
    """Wall-clock seconds; None in a file that does not say."""
    fallbacks: int
    """Number of answers from unadapted weights because the adaptation could not be used."""
    by_subject: dict[str, Group]
    by_level: dict[str, Group]
    sampled: tuple[SampledRow, ...] = ()
    """One entry per temperature; empty when no answers were sampled, or the method itself chooses among samples."""
    is_reference: bool = False
    """True for the row that the others are compared with."""


def rows_of(comparison: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a comparison that was read from JSON.

    A row needs `label`, `n` and `accuracy`. Every other key may be missing or null.

    Raises:
        DataError: This is not a comparison.
    """
    rows = comparison.get("rows")
    if not isinstance(rows, list):
        raise DataError("this is not a comparison: it has no list 'rows'; give the JSON that `mass eval` writes")
    return [_row(row, index) for index, row in enumerate(rows)]


def reference_of(rows: Sequence[Row]) -> Row | None:
    """Return the row that the others are compared with, or None where there is none."""
    return next((row for row in rows if row.is_reference), None)


def _row(data: Mapping[str, Any], index: int) -> Row:
    missing = [key for key in ("label", "n", "accuracy") if key not in data]
    if missing:
        raise DataError(f"row {index} of the comparison has no {missing[0]!r}; give the JSON that `mass eval` writes")
    method = str(data.get("method", data["label"]))
    reference = bool(data.get("is_reference", method == "base"))
    compared: Mapping[str, Any] = {} if reference else data
    return Row(
        method=method,
        label=str(data["label"]),
        n=int(data["n"]),
        no_verdict=int(data.get("no_verdict") or 0),
        accuracy=_number(data["accuracy"]),
        interval=_interval(data.get("interval")),
        difference=_number(compared.get("difference")),
        difference_interval=_interval(compared.get("difference_interval")),
        helped=compared.get("helped"),
        hurt=compared.get("hurt"),
        unchanged=compared.get("unchanged"),
        tokens_per_answer=_number(data.get("tokens_per_answer")),
        seconds_per_answer=_number(data.get("seconds_per_answer")),
        fallbacks=int(data.get("fallbacks") or 0),
        by_subject=_groups(data.get("by_subject")),
        by_level=_groups(data.get("by_level")),
        sampled=tuple(_sampled(part) for part in data.get("sampled") or ()),
        is_reference=reference,
    )


def _sampled(data: Mapping[str, Any]) -> SampledRow:
    return SampledRow(
        temperature=float(data["temperature"]),
        samples=int(data["samples"]),
        accuracy=_number(data.get("accuracy")),
        interval=_interval(data.get("interval")),
        difference=_number(data.get("difference")),
        difference_interval=_interval(data.get("difference_interval")),
        pass_at_n=_number(data.get("pass_at_n")),
        pass_interval=_interval(data.get("pass_interval")),
        maj_at_n=_number(data.get("maj_at_n")),
        maj_interval=_interval(data.get("maj_interval")),
        tokens_per_answer=_number(data.get("tokens_per_answer")),
        seconds_per_answer=_number(data.get("seconds_per_answer")),
    )


def _groups(data: Mapping[str, Any] | None) -> dict[str, Group]:
    return {
        str(name): Group(int(group["n"]), _number(group.get("accuracy")), _interval(group.get("interval")))
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
