"""Draw the metrics of a training run as small plots, and summarise them in a paragraph.

A row of metrics is a dict with `step` and any numeric keys; rows need not have the same keys. Keys with the same part
before their first `/` and the same unit are drawn in one plot. Keys that start with `eval/` come from held-out
problems.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mass.report.figures import Plot
from mass.report.svg import MARKERS, MUTED, SERIES, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 200
"""Maximum number of points drawn for a curve; a longer one is averaged over equal ranges of steps."""
MAX_NAMED = 6
"""Up to this many curves in a plot have a colour and a name each; of more, the middle one is drawn over the others."""
UNITS = {
    "seconds": "seconds",
    "time": "seconds",
    "tokens": "tokens",
    "accuracy": "share, 0 to 1",
    "share": "share, 0 to 1",
    "fraction": "share, 0 to 1",
    "loss": "loss",
    "nll": "nats per token",
    "kl": "divergence, nats per token",
    "rate": "learning rate",
    "rates": "learning rate",
    "lr": "learning rate",
    "norm": "Euclidean norm",
    "reward": "reward",
    "weight": "weight",
    "memory": "bytes",
    "bytes": "bytes",
}


@dataclass(frozen=True)
class Curve:
    """The values of one metric, by step."""

    key: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Return one curve per numeric key, ordered by step.

    If a step has two values (after a resume), the later row counts. A row without a step is placed at its own index.
    Values that are not finite are left out.
    """
    points: dict[str, dict[float, float]] = {}
    for index, row in enumerate(metrics):
        step = _finite(row.get("step"))
        for key, value in row.items():
            number = _finite(value)
            if key != "step" and number is not None:
                points.setdefault(key, {})[float(index) if step is None else step] = number
    return [Curve(key, *_columns(points[key])) for key in points]


def training_plots(curves: Sequence[Curve]) -> list[Plot]:
    """Return the plots: held-out results first, then the groups in the order in which the run wrote them."""
    panels: dict[tuple[str, str], list[Curve]] = {}
    for curve in sorted(curves, key=lambda curve: not curve.key.startswith("eval/")):
        panels.setdefault((_group(curve.key), unit_of(curve.key)), []).append(curve)
    return [_panel(f"curve{i}", group, unit, panels[group, unit]) for i, (group, unit) in enumerate(panels)]


def unit_of(key: str) -> str:
    """Return the unit named by the last word of a key that names one; empty when none does."""
    words = re.findall(r"[a-z]+", key.lower())
    return next((UNITS[word] for word in reversed(words) if word in UNITS), "")


def training_summary(curves: Sequence[Curve]) -> str:
    """Return a paragraph on the course of the run."""
    if not curves:
        return "The run has recorded no numbers yet."
    first, last = min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves)
    said = [f"The run recorded steps {first:g} to {last:g}."]
    trained = [_trend(c) for c in curves if not c.key.startswith("eval/") and _telling(c) and len(c.values) >= 10]
    if trained:
        said.append(f"From the mean of its first tenth to that of its last, {'; '.join(trained[:5])}.")
    held_out = [_best(curve) for curve in curves if curve.key.startswith("eval/") and _is_share(curve)]
    if held_out:
        said.append(f"On held-out problems, {'; '.join(held_out[:5])}.")
        said.append("A highest value picked afterwards flatters: judge the run by a comparison on fresh problems.")
    return " ".join(said)


def _trend(curve: Curve) -> str:
    tenth = max(1, len(curve.values) // 10)
    first, last = _mean(curve.values[:tenth]), _mean(curve.values[-tenth:])
    return f"{curve.key} went from {first:.3g} to {last:.3g}".replace("-", "−")


def _best(curve: Curve) -> str:
    best = max(range(len(curve.values)), key=curve.values.__getitem__)
    return (
        f"{curve.key} went from {curve.values[0]:.3f} (step {curve.steps[0]:g}) to {curve.values[-1]:.3f} "
        f"(step {curve.steps[-1]:g}), the highest being {curve.values[best]:.3f} (step {curve.steps[best]:g})"
    )


def _telling(curve: Curve) -> bool:
    return unit_of(curve.key) in {UNITS["loss"], UNITS["reward"], UNITS["accuracy"]}


def _is_share(curve: Curve) -> bool:
    return unit_of(curve.key) == UNITS["accuracy"]


def _panel(name: str, group: str, unit: str, curves: Sequence[Curve]) -> Plot:
    title = f"{group} ({unit})" if unit and group != unit else group
    named = len(curves) <= MAX_NAMED
    with drawing(name, 2.4 + (0.2 * math.ceil(len(curves) / 2) if named and len(curves) > 1 else 0), title) as canvas:
        axes = canvas.axes
        if named:
            for index, curve in enumerate(curves):
                _draw(axes, curve, SERIES[1 + index % 7], _name(curve.key, group))
        else:
            for curve in curves:
                _draw(axes, curve, SERIES[0], "", width=0.6)
            _draw(axes, _middle(curves), SERIES[1], "", width=1.8)
        _value_axis(axes, unit, [value for curve in curves for value in curve.values])
        axes.set_xlabel("step")
        if named and len(curves) > 1:
            canvas.legend(columns=2)
        svg = canvas.svg()
    return Plot(title, _caption(curves, named), svg)


def _caption(curves: Sequence[Curve], named: bool) -> str:
    said: list[str] = [curves[0].key + "."] if len(curves) == 1 else []
    if not named:
        said.append(f"{len(curves)} curves; the coloured one has the middle last value ({_middle(curves).key}).")
    longest = max(len(curve.steps) for curve in curves)
    if longest > MAX_POINTS:
        said.append(f"Each point is the mean of {math.ceil(longest / MAX_POINTS)} recorded steps.")
    if curves[0].key.startswith("eval/"):
        said.append("Measured on held-out problems.")
    return " ".join(said)


def _draw(axes: Axes, curve: Curve, colour: str, label: str, width: float = 1.3) -> None:
    steps, values = _thinned(curve)
    marker = MARKERS[1] if len(steps) <= 25 else ""
    axes.plot(steps, values, color=colour, linewidth=width, marker=marker, markersize=3.5, label=label)


def _value_axis(axes: Axes, unit: str, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    if unit == UNITS["accuracy"] and low >= 0 and high <= 1:
        bottom, top = math.floor(10 * low - 0.3), math.ceil(10 * high + 0.3)
        axes.set_ylim(max(-0.02, (bottom - (top - bottom < 2)) / 10), min(1.02, (top + (top - bottom < 2)) / 10))
    elif low > 0 and high / low > 100:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylabel("log scale")
    elif low < 0 < high:
        axes.axhline(0, color=MUTED, linewidth=0.8)


def _thinned(curve: Curve) -> tuple[list[float], list[float]]:
    stretch = math.ceil(len(curve.steps) / MAX_POINTS)
    starts = range(0, len(curve.steps), stretch)
    return (
        [_mean(curve.steps[start : start + stretch]) for start in starts],
        [_mean(curve.values[start : start + stretch]) for start in starts],
    )


def _middle(curves: Sequence[Curve]) -> Curve:
    return sorted(curves, key=lambda curve: curve.values[-1])[len(curves) // 2]


def _group(key: str) -> str:
    return key.split("/", 1)[0]


def _name(key: str, group: str) -> str:
    return key.removeprefix(f"{group}/")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _columns(points: Mapping[float, float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    steps = tuple(sorted(points))
    return steps, tuple(points[step] for step in steps)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
