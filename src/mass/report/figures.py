"""Draw the plots of a comparison, each with a title, a caption and an SVG.

Every accuracy is in percent with its 95% interval, and every caption says how many problems it is based on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from mass.bootstrap import Interval
from mass.evaluation.rows import Group, Row, reference_of
from mass.report.svg import BACKGROUND, MARKERS, MUTED, PANEL, SERIES, drawing
from mass.report.words import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_CHARS = 22
WIDE_RANGE = 5.0
"""A cost axis is logarithmic from this ratio of largest to smallest value."""


@dataclass(frozen=True)
class Plot:
    """A picture with its title and caption."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Look:
    """The colour and marker of one method in every plot."""

    colour: str
    marker: str


def comparison_plots(rows: Sequence[Row]) -> list[Plot]:
    """Return the plots for which the rows have numbers."""
    shown = [row for row in rows if row.accuracy is not None]
    looks = looks_of(shown)
    plots = [
        accuracy_plot(shown, looks),
        changes_plot(rows),
        cost_plot(shown, looks),
        subject_plot(shown, looks),
        level_plot(shown, looks),
    ]
    return [plot for plot in plots if plot is not None]


def looks_of(rows: Sequence[Row]) -> list[Look]:
    """Choose the looks: base is grey, mass has the first colour, the others take turns; nearly all differ in marker
    as well."""
    looks: list[Look] = []
    turn = 0
    for row in rows:
        if row.method == "base":
            index = 0
        elif row.method == "mass":
            index = 1
        else:
            index = 2 + turn % (len(SERIES) - 2)
            turn += 1
        shift = turn // (len(SERIES) - 1)
        looks.append(Look(SERIES[index], MARKERS[(index + shift) % len(MARKERS)]))
    return looks


def accuracy_plot(rows: Sequence[Row], looks: Sequence[Look]) -> Plot | None:
    """Plot the accuracy of each method; None without rows."""
    if not rows:
        return None
    title = "Accuracy by method"
    with drawing("accuracy", 0.9 + 0.34 * len(rows), title) as canvas:
        axes = canvas.axes
        reference = reference_of(rows)
        if reference is not None:
            axes.axvline(_percent(reference), color=SERIES[0], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for place, (row, look) in enumerate(zip(rows, looks, strict=True)):
            _point(axes, _percent(row), place, row.interval, look)
            end = 100 * (row.interval[1] if row.interval else row.accuracy or 0.0)
            _note(axes, percent(row.accuracy), end, place, right=True)
        _method_axis(axes, rows)
        axes.set_xlabel("problems answered correctly, %")
        _share_limits(axes, [bound for row in rows for bound in (row.interval or (row.accuracy or 0.0,) * 2)])
        svg = canvas.svg()
    dashed = f" The dashed line is {reference.label}." if reference is not None else ""
    return Plot(title, f"Share of {_sizes(rows)} answered correctly, with 95% intervals.{dashed}", svg)


def changes_plot(rows: Sequence[Row]) -> Plot | None:
    """Plot how many answers each method changed for the better and for the worse; None where nothing was compared."""
    changed = [row for row in rows if row.helped is not None and row.hurt is not None]
    if not changed:
        return None
    reference = reference_of(rows)
    against = "base" if reference is None else reference.label
    title = f"Answers that changed, against {against}"
    with drawing("changes", 0.9 + 0.34 * len(changed), title) as canvas:
        axes = canvas.axes
        for place, row in enumerate(changed):
            helped, hurt = row.helped or 0, row.hurt or 0
            axes.barh(
                place, helped, color=SERIES[3], height=0.6, label="helped: wrong became right" if not place else None
            )
            axes.barh(
                place, -hurt, color=SERIES[2], height=0.6, label="hurt: right became wrong" if not place else None
            )
            _note(axes, str(helped), helped, place, right=True)
            _note(axes, str(hurt), -hurt, place, right=False)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        _method_axis(axes, changed)
        reach = max(1, *(max(row.helped or 0, row.hurt or 0) for row in changed)) * 1.2
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_xlabel("problems")
        canvas.legend(columns=2)
        svg = canvas.svg()
    return Plot(
        title,
        f"Of {_sizes(changed)}, answered by {against} and by each method; the other answers stayed right or stayed "
        "wrong.",
        svg,
    )


def cost_plot(rows: Sequence[Row], looks: Sequence[Look]) -> Plot | None:
    """Plot accuracy against tokens per answer; None for fewer than two methods with a cost."""
    priced = [(row, look) for row, look in zip(rows, looks, strict=True) if row.tokens_per_answer]
    if len(priced) < 2:
        return None
    title = "Accuracy against cost"
    costs = [row.tokens_per_answer or 0.0 for row, _ in priced]
    logarithmic = max(costs) / min(costs) > WIDE_RANGE
    with drawing("cost", 3.1 + 0.2 * math.ceil(len(priced) / 3), title) as canvas:
        axes = canvas.axes
        for row, look in priced:
            _upright_point(axes, row.tokens_per_answer or 0.0, row, look, _short(row.label))
        if logarithmic:
            _log_axis(axes, costs)
        else:
            axes.set_xlim(0, 1.08 * max(costs))
        axes.set_xlabel("generated tokens per answer, practice included" + (" (log scale)" if logarithmic else ""))
        axes.set_ylabel("correct, %")
        canvas.legend(columns=3)
        svg = canvas.svg()
    return Plot(title, f"Each method on {_sizes(rows)}; bars are 95% intervals. Up and to the left is better.", svg)


def subject_plot(rows: Sequence[Row], looks: Sequence[Look]) -> Plot | None:
    """Plot accuracy by subject; None where no row has subjects."""
    names = _ordered(row.by_subject for row in rows)
    if not names:
        return None
    title = "Accuracy by subject"
    pitch = max(0.42, 0.13 * (len(rows) + 1))
    with drawing("subjects", 1.0 + pitch * len(names) + 0.2 * math.ceil(len(rows) / 3), title) as canvas:
        axes = canvas.axes
        for place in range(0, len(names), 2):
            axes.axhspan(place - 0.5, place + 0.5, color=PANEL, zorder=0)
        for index, (row, look) in enumerate(zip(rows, looks, strict=True)):
            places = [(place + _dodge(index, len(rows)), row.by_subject.get(name)) for place, name in enumerate(names)]
            _group_points(axes, places, look, _short(row.label), upright=False)
        sizes = [_group_sizes(rows, name, "by_subject") for name in names]
        axes.set_yticks(range(len(names)), [f"{_short(n)}\nn = {s}" for n, s in zip(names, sizes, strict=True)])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(-2, 102)
        axes.set_xlabel("problems answered correctly, %")
        canvas.legend(columns=3)
        svg = canvas.svg()
    return Plot(title, f"{_sizes(rows).capitalize()} in all; lines are 95% intervals, wide where n is small.", svg)


def level_plot(rows: Sequence[Row], looks: Sequence[Look]) -> Plot | None:
    """Plot accuracy by level; None where no row has levels."""
    names = sorted(_ordered(row.by_level for row in rows), key=lambda name: (len(name), name))
    if not names:
        return None
    title = "Accuracy by level"
    with drawing("levels", 3.1 + 0.2 * math.ceil(len(rows) / 3), title) as canvas:
        axes = canvas.axes
        for place in range(0, len(names), 2):
            axes.axvspan(place - 0.5, place + 0.5, color=PANEL, zorder=0)
        for index, (row, look) in enumerate(zip(rows, looks, strict=True)):
            places = [(place + _dodge(index, len(rows)), row.by_level.get(name)) for place, name in enumerate(names)]
            _group_points(axes, places, look, _short(row.label), upright=True)
        sizes = [_group_sizes(rows, name, "by_level") for name in names]
        axes.set_xticks(range(len(names)), [f"{n}\nn = {s}" for n, s in zip(names, sizes, strict=True)])
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        axes.set_ylim(-2, 102)
        axes.set_xlabel("level, from easy to hard")
        axes.set_ylabel("correct, %")
        canvas.legend(columns=3)
        svg = canvas.svg()
    return Plot(title, f"{_sizes(rows).capitalize()} in all; lines are 95% intervals, wide where n is small.", svg)


def _group_points(
    axes: Axes, places: Sequence[tuple[float, Group | None]], look: Look, label: str, *, upright: bool
) -> None:
    """Draw one method's points and intervals at `places` along the axis of groups."""
    known = [(place, group) for place, group in places if group is not None and group.accuracy is not None]
    at = [place for place, _ in known]
    values = [100 * (group.accuracy or 0.0) for _, group in known]
    bars = [(place, *group.interval) for place, group in known if group.interval is not None]
    spans = [bar[0] for bar in bars], [100 * bar[1] for bar in bars], [100 * bar[2] for bar in bars]
    draw = axes.vlines if upright else axes.hlines
    draw(*spans, color=look.colour, linewidth=1.3, alpha=0.55)
    x, y = (at, values) if upright else (values, at)
    axes.plot(x, y, linestyle="none", marker=look.marker, color=look.colour, markersize=4.5, label=label)


def _point(axes: Axes, value: float, place: float, interval: Interval | None, look: Look) -> None:
    if interval is not None:
        axes.plot([100 * bound for bound in interval], [place, place], color=look.colour, linewidth=2)
    axes.plot(value, place, marker=look.marker, color=look.colour, markersize=6.5, markeredgecolor=BACKGROUND)


def _upright_point(axes: Axes, x: float, row: Row, look: Look, label: str) -> None:
    if row.interval is not None:
        axes.plot([x, x], [100 * bound for bound in row.interval], color=look.colour, linewidth=1.5, alpha=0.7)
    axes.plot(
        x,
        _percent(row),
        linestyle="none",
        marker=look.marker,
        color=look.colour,
        markersize=7,
        markeredgecolor=BACKGROUND,
        label=label,
    )


def _note(axes: Axes, text: str, x: float, y: float, *, right: bool) -> None:
    """Write a number just right (or left) of the point x, y."""
    side, shift = ("left", 5) if right else ("right", -5)
    axes.annotate(text, (x, y), (shift, 0), textcoords="offset points", ha=side, va="center", fontsize=8.5)


def _method_axis(axes: Axes, rows: Sequence[Row]) -> None:
    """List the methods from top to bottom."""
    axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.3, max(values) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _share_limits(axes: Axes, shares: Sequence[float]) -> None:
    """Set the axis to the range of the data with a margin, rounded to 10 points and inside 0 to 100."""
    low = max(0, 10 * math.floor(10 * min(shares) - 0.2))
    high = min(100, 10 * math.ceil(10 * max(shares) + 0.2))
    axes.set_xlim(low - 0.5, high + 0.12 * (high - low))


def _ordered(groups: Iterable[Mapping[str, Group]]) -> list[str]:
    """Return the names in order of first appearance."""
    return list(dict.fromkeys(name for part in groups for name in part))


def _dodge(index: int, count: int) -> float:
    return (index - (count - 1) / 2) * 0.78 / max(count, 1)


def _group_sizes(rows: Sequence[Row], name: str, field: str) -> str:
    return _range([getattr(row, field)[name].n for row in rows if name in getattr(row, field)])


def _sizes(rows: Sequence[Row]) -> str:
    return f"{_range([row.n for row in rows])} problems"


def _range(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return str(low) if low == high else f"{low} to {high}"


def _percent(row: Row) -> float:
    return 100 * (row.accuracy or 0.0)


def _short(label: str) -> str:
    return label if len(label) <= LABEL_CHARS else label[: LABEL_CHARS - 1] + "…"
