"""Write the numbers of a comparison as text, and one paragraph that claims no more than the intervals allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mass.bootstrap import Interval
from mass.evaluation.rows import Row, SampledRow, reference_of

MISSING = "–"


def percent(share: float | None) -> str:
    """Return a share as a percentage, without the sign."""
    return MISSING if share is None else f"{100 * share:.1f}"


def points(share: float | None) -> str:
    """Return a difference in percentage points, with its sign."""
    return MISSING if share is None else f"{100 * share:+.1f}".replace("-", "−")


def percent_interval(interval: Interval | None) -> str:
    return "" if interval is None else f"[{percent(interval[0])}, {percent(interval[1])}]"


def points_interval(interval: Interval | None) -> str:
    return "" if interval is None else f"[{points(interval[0])}, {points(interval[1])}]"


def amount(value: float | None) -> str:
    """Return a number with three significant digits, without an exponent."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def standing(row: Row | SampledRow) -> int | None:
    """Return 1 when the interval of the difference lies above 0, -1 when below, 0 when it contains 0; None without
    an interval."""
    if row.difference_interval is None:
        return None
    low, high = row.difference_interval
    return 1 if low > 0 else -1 if high < 0 else 0


def against(rows: Sequence[Row]) -> str:
    """Name the row that the others are compared with, as in 'against base'."""
    reference = reference_of(rows)
    return f"against {'base' if reference is None else reference.label}"


def temperatures(rows: Sequence[Row]) -> list[tuple[float, int]]:
    """Return the temperatures at which answers were sampled, each with the number of answers per problem."""
    return list(dict.fromkeys((part.temperature, part.samples) for row in rows for part in row.sampled))


def at_temperature(rows: Sequence[Row], temperature: float) -> list[tuple[Row, SampledRow]]:
    """Return the methods that have answers at a temperature."""
    return [(row, part) for row in rows for part in row.sampled if part.temperature == temperature]


def sampled_title(temperature: float, samples: int) -> str:
    """Return the title of a table of sampled answers."""
    return f"sampled at temperature {temperature:g}, {samples} answers to each problem"


def summary(comparison: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return a paragraph on a comparison."""
    reference = reference_of(rows)
    mass = next((row for row in rows if row.method == "mass"), None)
    sentences = [_setting(comparison, rows), *_compared(reference, rows)]
    if mass is not None and not mass.is_reference:
        sentences += _adapting(mass, reference)
    sentences += _caveats(rows)
    return " ".join(sentences)


def task_text(comparison: Mapping[str, Any]) -> str:
    """Name the tasks of a comparison, with split, seed and chosen parts."""
    tasks: Mapping[str, Any] = comparison.get("tasks") or {}
    details = [f"{tasks['split']} split"] if tasks.get("split") else []
    details += [f"seed {tasks['seed']}"] if tasks.get("seed") is not None else []
    for one, several in (("level", "levels"), ("subject", "subjects")):
        chosen: Sequence[object] = tasks.get(several) or ()
        details += [f"{several if len(chosen) > 1 else one} {', '.join(map(str, chosen))}"] if chosen else []
    source = str(tasks.get("source", "unnamed"))
    return f"{source} ({', '.join(details)})" if details else source


def _setting(comparison: Mapping[str, Any], rows: Sequence[Row]) -> str:
    sizes = sorted({row.n for row in rows})
    count = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}" if sizes else "no"
    methods = "One method" if len(rows) == 1 else f"{len(rows)} methods"
    model = comparison.get("model", "unnamed")
    return f"{methods} answered {count} problems of {task_text(comparison)} with the model {model}."


def _compared(reference: Row | None, rows: Sequence[Row]) -> list[str]:
    if reference is None:
        return ["There is no base row, so nothing is compared."]
    name = reference.label
    interval = f" (95% interval {_span(reference.interval, percent)})" if reference.interval else ""
    said = [f"{name} answered {percent(reference.accuracy)}% of them correctly{interval}."]
    verdicts = (
        (1, f"Better than {name}, beyond the 95% interval of the paired difference: {{}}."),
        (0, f"Not distinguishable from {name}, as that interval covers 0: {{}}."),
        (-1, f"Worse than {name}, beyond that interval: {{}}."),
    )
    for value, sentence in verdicts:
        named = [_gain(row) for row in rows if standing(row) == value]
        if named:
            said.append(sentence.format("; ".join(named)))
    return said


def _gain(row: Row) -> str:
    return f"{row.label} ({points(row.difference)} points, {_span(row.difference_interval, points)})"


def _span(interval: Interval | None, show: Any) -> str:
    return MISSING if interval is None else f"{show(interval[0])} to {show(interval[1])}"


def _adapting(mass: Row, reference: Row | None) -> list[str]:
    said: list[str] = []
    if reference is not None and mass.helped is not None and mass.hurt is not None:
        said.append(
            f"Against {reference.label}, {mass.label} turned {_counted(mass.helped, 'wrong answer')} right "
            f"and {_counted(mass.hurt, 'right answer')} wrong."
        )
    if mass.tokens_per_answer and reference is not None and reference.tokens_per_answer:
        times = mass.tokens_per_answer / reference.tokens_per_answer
        said.append(
            f"It generated {amount(mass.tokens_per_answer)} tokens per answer, {times:.1f} times the "
            f"{amount(reference.tokens_per_answer)} of {reference.label}."
        )
    if mass.fallbacks:
        said.append(f"It fell back to the unadapted answer on {mass.fallbacks} of {mass.n} problems.")
    return said


def _caveats(rows: Sequence[Row]) -> list[str]:
    said: list[str] = []
    unjudged = sum(row.no_verdict for row in rows)
    if unjudged:
        said.append(f"On {_counted(unjudged, 'answer')} the verifier gave no verdict.")
    compared = sum(standing(row) is not None for row in rows)
    if compared > 2:
        said.append(f"The intervals hold for one method at a time; they are not corrected for comparing {compared}.")
    return said


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
