"""Draw the pictures of a document. Every value has its 95% interval over seeds and problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mass.evaluation.rows import Group, Row
from mass.report import figures
from mass.report.figures import Plot
from mass.report.svg import MARKERS, MUTED, SERIES, drawing
from mass.report.words import percent
from research.document.asking import Answers, NotMeasured, Question
from research.document.tables import helped_and_hurt, label_of, mean_of, room_decodings
from research.results import Estimate, Training
from research.results.data import Curve, curves, sizes_of
from research.results.practice import AFTER, BEFORE, MEASURES, by_rank, measured, table_of
from research.results.stored import GREEDY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INTERVALS = "lines are 95% intervals over seeds and problems"
SMALLEST_UPDATE = 1e-5
"""Smaller updates are drawn at this place."""
LABEL_RATIO = 1.5
"""Least ratio of neighbouring numbers that are both written on a logarithmic axis."""


# --- the table


def rows_of(answers: Answers, of: str, methods: Sequence[str], at: str) -> list[Row]:
    """Return the methods as rows of a comparison, with intervals over seeds as well; methods without such answers
    are left out."""
    rows: list[Row] = []
    for method in methods:
        with suppress(NotMeasured):
            rows.append(_row(answers, of, method, at))
    return rows


def _row(answers: Answers, of: str, method: str, at: str) -> Row:
    question, stored = Question(of, at), answers.rows(of, method)
    found = answers.accuracy(method, question)
    evaluations = answers.evaluations(of).values()
    subjects = [s for s in dict.fromkeys(s for e in evaluations for s in e.subjects) if s]
    levels = sorted({level for e in evaluations for level in e.levels if level is not None})
    return Row(
        label=label_of(stored),
        method=method,
        n=found.problems,
        accuracy=found.mean,
        interval=found.interval,
        difference=None,
        difference_interval=None,
        helped=None,
        hurt=None,
        unchanged=None,
        tokens_per_answer=mean_of(stored, "tokens", at),
        seconds_per_answer=mean_of(stored, "seconds", at),
        fallbacks=0,
        no_verdict=0,
        by_subject={s: _group(answers.accuracy(method, Question(of, at, subject=s))) for s in subjects},
        by_level={str(level): _group(answers.accuracy(method, Question(of, at, level=level))) for level in levels},
        is_reference=method == "base",
    )


def _group(estimate: Estimate) -> Group:
    return Group(estimate.problems, estimate.mean, estimate.interval)


TABLE = {
    "accuracy": figures.accuracy_plot,
    "cost": figures.cost_plot,
    "subjects": figures.subject_plot,
    "levels": figures.level_plot,
}
"""Pictures of the rows of a table."""


def of_table(kind: str, answers: Answers, of: str, methods: Sequence[str], at: str) -> Plot:
    """Draw one of `TABLE`. Raises NotMeasured where the rows have nothing to draw."""
    rows = rows_of(answers, of, methods, at)
    plot = TABLE[kind](rows, figures.looks_of(rows))
    if plot is None:
        raise NotMeasured(of)
    return plot


def changes(answers: Answers, of: str, method: str, other: str, at: str) -> Plot:
    """Draw where a method helps compared with another, and where it hurts."""
    evaluations = answers.evaluations(of).values()
    names = [s for s in dict.fromkeys(s for e in evaluations for s in e.subjects) if s]
    groups = [("all", Question(of, at)), *((s, Question(of, at, subject=s)) for s in names)]
    found = [(name, *helped_and_hurt(answers, method, other, question)) for name, question in groups]
    title = f"Where {method} helps and hurts, against {other}"
    with drawing("changes", 1.1 + 0.34 * len(found), title) as canvas:
        axes = canvas.axes
        for place, (_, helped, hurt) in enumerate(found):
            label = ("helped: wrong became right", "hurt: right became wrong") if not place else (None, None)
            axes.barh(place, 100 * helped, color=SERIES[3], height=0.6, label=label[0])
            axes.barh(place, -100 * hurt, color=SERIES[2], height=0.6, label=label[1])
        axes.axvline(0, color=MUTED, linewidth=0.8)
        _names(axes, [name for name, _, _ in found])
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_xlabel("problems of the group, %")
        canvas.legend(columns=2)
        svg = canvas.svg()
    return Plot(title, f"Shares of the answers ({at}), over all seeds; the other answers stayed right or wrong.", svg)


# --- data efficiency


def data(answers: Answers, part: str, at: str, untrained: Mapping[str, str]) -> Plot:
    """Draw accuracy against the number of training problems.

    Args:
        untrained: Methods that need no training problems, and the evaluations on the same test problems to take them
            from.
    """
    found = list(curves(answers.part(part), at).values())
    if not found:
        raise NotMeasured(part)
    level = {method: answers.accuracy(method, Question(of, at)) for method, of in untrained.items()}
    title = "Accuracy against gold training problems"
    with drawing("data", 3.2 + 0.2 * math.ceil((len(found) + len(level)) / 3), title) as canvas:
        axes = canvas.axes
        for index, curve in enumerate(found):
            _draw_curve(axes, curve, SERIES[1 + index % 7], MARKERS[(1 + index) % 8])
        for index, (method, estimate) in enumerate(level.items(), len(found)):
            colour, (low, high) = SERIES[1 + index % 7], estimate.interval
            axes.axhspan(100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
            axes.axhline(100 * estimate.mean, color=colour, linestyle="--", linewidth=1.2, label=method)
        axes.set_xscale("log")
        sizes = _apart(sizes_of(found))
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("gold training problems (log scale)")
        axes.set_ylabel("test problems right, %")
        canvas.legend(columns=3)
        svg = canvas.svg()
    seeds = found[0].estimates[0].seeds
    over = "seeds and problems" if seeds > 1 else "problems"
    dashed = f" Dashed: {' and '.join(level)}, which no training problem goes into." if level else ""
    return Plot(
        title,
        f"Means over seeds ({seeds} of {found[0].method}), {at}; bands are 95% intervals over {over}.{dashed}",
        svg,
    )


def _apart(sizes: Sequence[int]) -> list[int]:
    """Return the numbers whose labels do not overlap on a logarithmic axis, preferring the larger ones."""
    kept: list[int] = []
    for size in sorted(sizes, reverse=True):
        if not kept or kept[-1] >= LABEL_RATIO * size:
            kept.append(size)
    return kept


def _draw_curve(axes: Axes, curve: Curve, colour: str, marker: str) -> None:
    low, high = ([100 * e.interval[side] for e in curve.estimates] for side in (0, 1))
    axes.fill_between(curve.problems, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(curve.problems, 100 * curve.means, color=colour, marker=marker, markersize=5, linewidth=1.5,
              label=curve.method)  # fmt: skip


# --- learning


def learning(answers: Answers, part: str, names: Sequence[str]) -> Plot:
    """Draw held-out accuracy during training, adapted and unadapted."""
    trainings = answers.part(part).trainings
    chosen = list(names) or list(trainings)
    if not any(name in trainings for name in chosen):
        raise NotMeasured(f"{part}: trainings")
    title = "Held-out accuracy during training"
    with drawing("learning", 3.2 + 0.2 * math.ceil(len(chosen) / 2), title) as canvas:
        for index, name in enumerate(n for n in chosen if n in trainings):
            _draw_learning(canvas.axes, name, trainings[name], SERIES[1 + index % 7])
        canvas.axes.set_xlabel("outer steps")
        canvas.axes.set_ylabel("validation problems right, %")
        canvas.legend(columns=2)
        svg = canvas.svg()
    return Plot(
        title, "Means over seeds; bands from the lowest to the highest seed. Dashed: the adaptation switched off.", svg
    )


def _draw_learning(axes: Axes, name: str, runs: Mapping[int, Training], colour: str) -> None:
    adapted, plain = (_by_step(runs, key) for key in ("eval/accuracy", "eval/unadapted accuracy"))
    for points, style, label in ((adapted, "-", name), (plain, "--", "")):
        if not points or (style == "--" and plain == adapted):
            continue
        steps = sorted(points)
        means = [100 * sum(points[s]) / len(points[s]) for s in steps]
        axes.plot(steps, means, color=colour, linestyle=style, linewidth=1.4, label=label or None)
        if len(runs) > 1:
            low, high = ([100 * pick(points[s]) for s in steps] for pick in (min, max))
            axes.fill_between(steps, low, high, color=colour, alpha=0.1, linewidth=0)


def _by_step(runs: Mapping[int, Training], key: str) -> dict[float, list[float]]:
    """Return the values of all seeds at each step that all of them have reached."""
    found: dict[float, list[float]] = {}
    for run in runs.values():
        for step, value in run.curves.get(key, []):
            found.setdefault(step, []).append(value)
    return {step: values for step, values in found.items() if len(values) == len(runs)}


# --- practice


def practice(answers: Answers, of: str) -> Plot:
    """Draw the measured shares among practice examples, before and after meta-training."""
    by_seed = answers.practice(of)
    shares = [m for m in MEASURES if m.unit == "share"]
    found = [(m.name, [measured(by_seed, when, m.name) for when in (BEFORE, AFTER)]) for m in shares]
    found = [(name, pair) for name, pair in found if any(pair)]
    title = "The practice it writes, before and after meta-training"
    with drawing("practice", 1.2 + 0.36 * len(found), title) as canvas:
        axes = canvas.axes
        for place, (_, pair) in enumerate(found):
            for shift, estimate, colour, marker in zip((-0.15, 0.15), pair, SERIES[:2], MARKERS[:2], strict=True):
                if estimate is not None:
                    axes.plot([100 * b for b in estimate.interval], [place + shift] * 2, color=colour, linewidth=2)
                    axes.plot(100 * estimate.mean, place + shift, color=colour, marker=marker, markersize=5.5,
                              linestyle="none", label=None if place else (BEFORE, AFTER)[shift > 0])  # fmt: skip
        _names(axes, [name for name, _ in found])
        axes.set_xlim(-2, 102)
        axes.set_xlabel("%")
        canvas.legend(columns=2)
        svg = canvas.svg()
    meanings = "; ".join(f"{m.name}: {m.meaning}" for m in shares if m.name in dict(found))
    return Plot(title, f"{INTERVALS.capitalize()}. {meanings.capitalize()}.", svg)


def practice_levels(answers: Answers, of: str) -> Plot:
    """Draw how much harder or easier than its target the practice is."""
    return _histogram(answers, of, "level", "Level of the practice against the target's", "level minus the target's",
                      [x - 0.5 for x in range(-4, 6)])  # fmt: skip


def practice_distances(answers: Answers, of: str) -> Plot:
    """Draw how far the practice problems are from the target's text."""
    edges = [x / 20 for x in range(21)]
    return _histogram(answers, of, "relative_distance", "Distance of the practice from the target",
                      "edit distance over the length of the longer text; 0 is a copy", edges)  # fmt: skip


def _histogram(answers: Answers, of: str, column: str, title: str, label: str, edges: Sequence[float]) -> Plot:
    import numpy as np

    by_seed = answers.practice(of)
    with drawing(f"practice-{column}", 2.9, title) as canvas:
        for index, when in enumerate((BEFORE, AFTER)):
            values = [
                v for stored in by_seed.values() if when in stored for v in table_of(stored, when, column).ravel()
            ]
            known = np.array([v for v in values if v == v])
            if len(known):
                counts, _ = np.histogram(np.clip(known, edges[0], edges[-1]), bins=np.array(edges))
                canvas.axes.stairs(100 * counts / len(known), edges, color=SERIES[index], linewidth=1.8, label=when,
                                   fill=index == 0, alpha=0.45 if index == 0 else 1)  # fmt: skip
        canvas.axes.set_xlabel(label)
        canvas.axes.set_ylabel("practice problems, %")
        canvas.legend(columns=2)
        svg = canvas.svg()
    return Plot(title, "Of the practice problems that parse, over all seeds, before and after meta-training.", svg)


def weights(answers: Answers, of: str) -> Plot:
    """Draw whether examples with more weight are right more often, and help more."""
    by_seed = answers.practice(of)
    found = {c: by_rank(by_seed, c) for c in ("correct", "helpful")}
    title = "Weight against correctness and benefit"
    with drawing("weights", 3.2, title) as canvas:
        drawn = 0
        for index, (name, label) in enumerate(
            (("correct", "right solution"), ("helpful", "helps, practised on alone"))
        ):
            points = [(rank + 1, e) for rank, e in enumerate(found[name]) if e is not None]
            drawn += len(points)
            for rank, e in points:
                canvas.axes.plot([rank + 0.08 * index] * 2, [100 * b for b in e.interval], color=SERIES[1 + index],
                                 linewidth=1.4, alpha=0.7)  # fmt: skip
            canvas.axes.plot([r + 0.08 * index for r, _ in points], [100 * e.mean for _, e in points],
                             color=SERIES[1 + index], marker=MARKERS[1 + index], markersize=5, linewidth=1.2,
                             label=label)  # fmt: skip
        if not drawn:
            raise NotMeasured(f"{of}: neither correctness nor effect")
        canvas.axes.set_xlabel("place by weight among the examples of a problem (1: most)")
        canvas.axes.set_ylabel("examples, %")
        canvas.axes.set_xticks(range(1, 1 + max(len(ranks) for ranks in found.values())))
        canvas.legend(columns=2)
        svg = canvas.svg()
    return Plot(title, f"After meta-training; {INTERVALS}.", svg)


# --- the headroom for practice


def room(answers: Answers, of: str, at: str) -> Plot:
    """Draw what practice from each source gained, against how far it moved the weights."""
    stored = answers.room(of)
    points = [p for p in stored["points"] if "skipped" not in p and p["update_norm"] is not None]
    names = list(room_decodings(stored["unadapted"]["row"]))
    name = at if at == GREEDY else f"T = {at}"
    if name not in names or not points:
        raise NotMeasured(f"{of} at {at}")
    base = room_decodings(stored["unadapted"]["row"])[name]
    title = f"Gain from practice by the size of the update ({name})"
    sources = list(dict.fromkeys(p["source"] for p in points))
    with drawing(f"room-{at.replace('.', '')}", 3.6 + 0.2 * math.ceil(len(sources) / 3), title) as canvas:
        for index, source in enumerate(sources):
            mine = [(p, room_decodings(p["row"])[name]) for p in points if p["source"] == source]
            _draw_source(canvas.axes, mine, source, SERIES[index % 8], MARKERS[index % 8])
        canvas.axes.axhline(0, color=MUTED, linewidth=0.8)
        canvas.axes.set_xscale("log")
        canvas.axes.xaxis.set_major_formatter("{x:g}")
        canvas.axes.xaxis.set_minor_formatter("")
        canvas.axes.set_xlabel("norm of the update over that of the adapter (log scale)")
        canvas.axes.set_ylabel(f"points over {percent(base['accuracy'])}% unadapted")
        canvas.legend(columns=3)
        svg = canvas.svg()
    size = stored["settings"]["size"]
    return Plot(
        title, f"{size} validation problems; each point one inner optimiser, rate and K; lines are 95% intervals.", svg
    )


def _draw_source(axes: Axes, points: Sequence[tuple[Any, Any]], source: str, colour: str, marker: str) -> None:
    shown = [(max(p["update_norm"], SMALLEST_UPDATE), part) for p, part in points if part["difference"] is not None]
    for x, part in shown:
        low, high = part["difference_interval"]
        axes.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=0.9, alpha=0.35)
    axes.plot([x for x, _ in shown], [100 * part["difference"] for _, part in shown], color=colour, marker=marker,
              markersize=4.5, linestyle="none", label=source)  # fmt: skip


def _names(axes: Axes, names: Sequence[str]) -> None:
    """List the groups from top to bottom."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
