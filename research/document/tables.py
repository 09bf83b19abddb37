"""Build the tables of a document, in Markdown. All their numbers come from stored results."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mass.report.words import amount, percent, percent_interval, points, points_interval
from research.document.asking import Answers, NotMeasured, Question
from research.document.sentences import measure_text, needed_text, ratio_text
from research.results import Estimate, StoredRow, Training
from research.results.data import Curve, curves, needed_as_many_as, sizes_of
from research.results.practice import AFTER, BEFORE, ELSEWHERE, FAR, MEASURES, measured
from research.results.stored import GREEDY

REFERENCE = "solver-sft"
"""The method with which the data efficiency of others is compared, where it was trained."""

NUMBERED = re.compile(r"(?P<kind>.+)-(?P<number>[0-9.]+)")
"""The name of a training that stands for one value of a setting."""


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose other columns are numbers."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def decodings_of(answers: Answers, of: str) -> list[str]:
    """Return greedy decoding and then the temperatures."""
    rows = [row for e in answers.evaluations(of).values() for row in e.rows.values()]
    return [GREEDY, *sorted({at for row in rows for at in row.samples}, key=float)]


def decoding_name(at: str) -> str:
    return at if at == GREEDY else f"T = {at}"


def main_table(answers: Answers, of: str, methods: Sequence[str], against: str) -> str:
    """Return accuracy and paired difference for each decoding, costs, and the number of seeds."""
    decodings = decodings_of(answers, of)
    head = ["method", *(c for at in decodings for c in (f"{decoding_name(at)}, %", f"over {against}, points"))]
    head += ["tokens per answer", "seconds per answer", "seeds"]
    lines: list[list[str]] = []
    for method in methods:
        rows = answers.rows(of, method)
        cells = [cell for at in decodings for cell in _accuracy_cells(answers, of, at, method, against)]
        cells += [amount(mean_of(rows, "tokens")), amount(mean_of(rows, "seconds")), str(len(rows))]
        lines.append([label_of(rows), *cells])
    return markdown_table(head, lines)


def _accuracy_cells(answers: Answers, of: str, at: str, method: str, against: str) -> tuple[str, str]:
    question = Question(of, at)
    try:
        found = answers.accuracy(method, question)
        accuracy = f"{percent(found.mean)} {percent_interval(found.interval)}"
    except NotMeasured:
        return "", ""
    if method == against:
        return accuracy, ""
    return accuracy, attempt(lambda: _points(answers.gain(method, against, question)))


PUBLISHED = {
    "base": 0.436, "base-ttt": 0.412, "tt-ss": 0.466, "solver-grpo": 0.491, "mass-gold": 0.541, "mass": 0.590
}  # fmt: skip
"""Accuracy of Llama-3.1-8B-Instruct on MATH-500 (arXiv 2603.03524, its table)."""
PUBLISHED_WEAKEST = 1.92
"""The factor by which the paper's MASS multiplies the base's accuracy on the base's weakest subject (same table)."""
MARGINS = (
    ("mass", "base"), ("mass", "tt-ss"), ("mass", "solver-grpo"), ("mass", "mass-gold"), ("mass-gold", "base"),
    ("solver-grpo", "tt-ss"), ("base-ttt", "base"),
)  # fmt: skip


def margins_table(answers: Answers, places: Mapping[str, str]) -> str:
    """Return the paper's differences between methods, and the paired differences of each place under its heading."""
    lines: list[list[str]] = []
    for one, other in MARGINS:
        found = [attempt(partial(_margin, answers, one, other, of)) for of in places.values()]
        lines.append([f"{one} over {other}, points", points(PUBLISHED[one] - PUBLISHED[other]), *found])
    ratios = [attempt(partial(_weakest_ratio, answers, of)) for of in places.values()]
    lines.append(["mass over base, subject that base is weakest at", f"×{PUBLISHED_WEAKEST:.2f}", *ratios])
    return markdown_table(["", "the paper", *places], lines)


def _margin(answers: Answers, one: str, other: str, of: str) -> str:
    return _points(answers.gain(one, other, Question(of)))


def _weakest_ratio(answers: Answers, of: str) -> str:
    subject = answers.weakest("base", Question(of))
    return ratio_text(answers.ratio("mass", "base", Question(of, subject=subject)))


def _points(estimate: Estimate) -> str:
    """Write a difference, in bold where the interval excludes 0. Never bold for one seed, whose interval says
    nothing about another training."""
    text = f"{points(estimate.mean)} {points_interval(estimate.interval)}"
    return f"**{text}**" if estimate.standing and estimate.seeds > 1 else text


def attempt(make: Callable[[], str]) -> str:
    """Return the text, or an empty cell where it is not measured."""
    try:
        return make()
    except NotMeasured:
        return ""


def cost_table(answers: Answers, of: str, methods: Sequence[str]) -> str:
    """Return the costs of training and of an answer."""
    head = ["method", "training problems", "outer steps", "sampled tokens, M", "hours", "tokens per answer", "seconds"]
    lines: list[list[str]] = []
    for method in methods:
        rows = answers.rows(of, method)
        trained = [answers.training(of, row) for row in rows.values()]
        runs = [run for run in trained if run is not None]
        told = [row.training for row in rows.values()]
        lines.append(
            [
                label_of(rows),
                amount(_mean([t["problems"] for t in told if t.get("problems")])) if any(told) else "",
                amount(_mean([t["steps"] for t in told if t.get("steps")])) if any(told) else "",
                amount(_mean([run.tokens / 1e6 for run in runs if run.tokens is not None])) if runs else "",
                amount(_mean([run.seconds / 3600 for run in runs if run.seconds is not None])) if runs else "",
                amount(mean_of(rows, "tokens")),
                amount(mean_of(rows, "seconds")),
            ]
        )
    return markdown_table(head, lines)


def chances_table(answers: Answers, of: str, methods: Sequence[str]) -> str:
    """Return pass@N and maj@N at each temperature: what N samples contain."""
    temperatures = decodings_of(answers, of)[1:]
    samples = {at: n for e in answers.evaluations(of).values() for r in e.rows.values() for at, n in r.samples.items()}
    head = ["method", *(f"{kind}@{samples[at]}, T = {at}" for at in temperatures for kind in ("pass", "maj"))]
    lines: list[list[str]] = []
    for method in methods:
        if any(row.samples for row in answers.rows(of, method).values()):
            asked = [Question(of, f"{kind} {at}") for at in temperatures for kind in ("pass", "maj")]
            cells = [attempt(lambda q=q, m=method: _share_cell(answers.accuracy(m, q))) for q in asked]
            lines.append([label_of(answers.rows(of, method)), *cells])
    return markdown_table(head, lines)


def _share_cell(estimate: Estimate) -> str:
    return f"{percent(estimate.mean)} {percent_interval(estimate.interval)}"


def group_table(answers: Answers, of: str, methods: Sequence[str], at: str, by: str) -> str:
    """Return accuracy by subject or by level, with a line for each group and a column for each method."""
    found = answers.evaluations(of).values()
    names: list[Any] = list(dict.fromkeys(g for e in found for g in (e.subjects if by == "subject" else e.levels)))
    names = [name for name in (names if by == "subject" else sorted(names, key=str)) if name is not None]
    lines: list[list[str]] = []
    for name in names:
        question = Question(of, at, **{by: name})
        cells = [attempt(lambda m=m, q=question: _share_cell(answers.accuracy(m, q))) for m in methods]
        lines.append([str(name), *cells])
    return markdown_table([by, *(label_of(answers.rows(of, method)) for method in methods)], lines)


def changes_table(answers: Answers, of: str, method: str, other: str, at: str) -> str:
    """Return where a method gains compared with another and where it loses, by subject and by level."""
    evaluations = answers.evaluations(of).values()
    subjects = [s for s in dict.fromkeys(s for e in evaluations for s in e.subjects) if s]
    levels = sorted({level for e in evaluations for level in e.levels if level is not None})
    groups = [Question(of, at), *(Question(of, at, subject=s) for s in subjects)]
    groups += [Question(of, at, level=level) for level in levels]
    lines: list[list[str]] = []
    for question in groups:
        name = question.subject or (f"level {question.level}" if question.level is not None else "all")
        helped, hurt = helped_and_hurt(answers, method, other, question)
        before = attempt(lambda q=question: _share_cell(answers.accuracy(other, q)))
        gain = attempt(lambda q=question: _points(answers.gain(method, other, q)))
        lines.append([name, before, gain, percent(helped), percent(hurt)])
    return markdown_table(["", f"{other}, %", f"{method}, points", "helped, %", "hurt, %"], lines)


def helped_and_hurt(answers: Answers, method: str, other: str, question: Question) -> tuple[float, float]:
    """Return the shares of problems that only the one and only the other method answers correctly, over problems and
    seeds.

    For sampled answers these are the mean increase and the mean decrease.
    """
    import numpy as np

    from research.results.estimates import paired

    pair = paired(answers.series(method, question), answers.series(other, question))
    if pair is None:
        raise NotMeasured(f"{question.of}: {method} and {other} share no seeds and problems")
    one, two = pair
    changes = [one.outcomes[seed] - two.outcomes[seed] for seed in one.outcomes]
    helped, hurt = (float(np.mean([np.nanmean(np.maximum(s * c, 0)) for c in changes])) for s in (1, -1))
    return helped, hurt


def ablation_table(answers: Answers, part: str, reference: str, method: str, at: str) -> str:
    """Return a line for each evaluation of the part.

    It has the accuracy, the difference from the reference, the gain from the adaptation itself, and the best validation
    accuracy of the training with the same name.
    """
    lines: list[list[str]] = []
    for name in _settings(answers, part, reference):
        here, there = Question(f"{part}/{name}", at), Question(f"{part}/{reference}", at)
        accuracy = attempt(lambda q=here: _share_cell(answers.accuracy(method, q)))
        if not accuracy:
            continue
        against = (
            ""
            if name == reference
            else attempt(lambda q=here, r=there: _points(answers.gain_over((method, q), (method, r))))
        )
        update = attempt(lambda q=here: _points(answers.gain(method, f"{method}-unadapted", q)))
        rows = answers.rows(here.of, method)
        best = percent(_best(answers.part(part).trainings.get(name, {})))
        lines.append([name, accuracy, against, update, best, amount(mean_of(rows, "tokens")), str(len(rows))])
    head = ["setting", f"{method}, %", f"over {reference}, points", "adapted − unadapted, points", "validation, %"]
    return markdown_table([*head, "tokens per answer", "seeds"], lines)


def safety_table(answers: Answers, part: str, reference: str, method: str, at: str) -> str:
    """Return a line for each evaluation of the part, with the analysis of the same name.

    It has the accuracy, the answers that the adaptation helps and hurts, and its effect on problems of other subjects.
    """
    lines: list[list[str]] = []
    for name in _settings(answers, part, reference):
        here, there = Question(f"{part}/{name}", at), Question(f"{part}/{reference}", at)
        gain = "" if name == reference else _points(answers.gain_over((method, here), (method, there)))
        helped, hurt = helped_and_hurt(answers, method, f"{method}-unadapted", here)
        practised = answers.part(part).practice.get(name, {})
        elsewhere = [measure_text(measured(practised, AFTER, m.name), m.unit) for m in MEASURES if m.name in ELSEWHERE]
        accuracy = _share_cell(answers.accuracy(method, here))
        seeds = str(len(answers.rows(here.of, method)))
        lines.append([name, accuracy, gain, percent(helped), percent(hurt), *elsewhere, seeds])
    head = ["setting", f"{method}, %", f"over {reference}, points", "helped, %", "hurt, %", "drift, nats per token",
            f"above {FAR:g}", "answers to other subjects", "seeds"]  # fmt: skip
    return markdown_table(head, lines)


def _settings(answers: Answers, part: str, reference: str) -> list[str]:
    """Return the evaluations of a part, the reference first."""
    names = list(answers.part(part).evaluations)
    if reference not in names:
        raise NotMeasured(f"{part}/{reference}")
    return [reference, *sorted((name for name in names if name != reference), key=_by_number)]


def _by_number(name: str) -> list[str | int]:
    """Return a sort key that puts '2-examples' before '12-examples'."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def data_table(answers: Answers, part: str, at: str) -> str:
    """Return accuracy against the number of training problems."""
    found = list(curves(answers.part(part), at).values())
    if not found:
        raise NotMeasured(part)
    sizes = sizes_of(found)
    lines = [[curve.method, *(_at_size(curve, size) for size in sizes)] for curve in found]
    return markdown_table(["right, %, by training problems", *(f"{size:,}" for size in sizes)], lines)


def _at_size(curve: Curve, size: int) -> str:
    return _share_cell(curve.estimates[curve.problems.index(size)]) if size in curve.problems else ""


def needs_table(answers: Answers, part: str, reference: str, at: str) -> str:
    """Return how many problems each method needs for the accuracy that the reference has with each number of them."""
    found = curves(answers.part(part), at)
    if reference not in found:
        raise NotMeasured(f"{part} {reference}")
    goal = found[reference]
    others = [curve for method, curve in found.items() if method != reference]
    lines: list[list[str]] = []
    for size, estimate in zip(goal.problems, goal.estimates, strict=True):
        needs = [needed_as_many_as(curve, goal, size) for curve in others]
        lines.append([f"{size:,}", percent(estimate.mean), *(needed_text(n) for n in needs)])
    return markdown_table([f"problems of {reference}", "its accuracy, %", *(curve.method for curve in others)], lines)


def validation_table(answers: Answers, part: str) -> str:
    """Return each training's best accuracy on validation problems, as a mean over seeds.

    Settings whose name ends in a number, such as solver-sft-0.003, have a column for each number.
    """
    found: dict[str, dict[str, str]] = {}
    for name, seeds in answers.part(part).trainings.items():
        best = _best(seeds)
        if best is not None and (numbered := NUMBERED.fullmatch(name)):
            found.setdefault(numbered["kind"], {})[numbered["number"]] = percent(best)
    if not found:
        raise NotMeasured(f"{part} on validation problems")
    numbers = sorted({number for row in found.values() for number in row}, key=float)
    return markdown_table(
        ["right, % of validation problems", *numbers],
        [[k, *(row.get(n, "") for n in numbers)] for k, row in found.items()],
    )


def _best(seeds: Mapping[int, Training]) -> float | None:
    """Return the best accuracy on validation problems, as a mean over seeds."""
    return _mean([run.best for run in seeds.values() if run.best is not None])


def practice_table(answers: Answers, of: str) -> str:
    """Return what the practice is like, before and after meta-training."""
    by_seed = answers.practice(of)
    lines: list[list[str]] = []
    for measure in MEASURES:
        found = [measured(by_seed, when, measure.name) for when in (BEFORE, AFTER)]
        if any(estimate is not None for estimate in found):
            cells = [measure_text(estimate, measure.unit) for estimate in found]
            lines.append([f"{measure.name}: {measure.meaning}", *cells])
    return markdown_table(["", "before", "after"], lines)


IN_CONTEXT = "in context"
"""The optimizer of practice that was put before the problem instead of into the weights."""


def room_table(room: dict[str, Any]) -> str:
    """Return the best point of each source of practice for each decoding, as differences from the unadapted answers."""
    names = list(room_decodings(room["unadapted"]["row"]))
    points_of: dict[str, list[dict[str, Any]]] = {}
    for point in room["points"]:
        if "skipped" not in point:
            name = point["source"] if point["optimizer"] != IN_CONTEXT else f"{point['source']}, {IN_CONTEXT}"
            points_of.setdefault(name, []).append(point)
    lines = [["unadapted", "", *(_stored_share(p) for p in room_decodings(room["unadapted"]["row"]).values())]]
    for source, some in points_of.items():
        best = [max(some, key=lambda p, n=n: _gain_or_least(room_decodings(p["row"])[n]["difference"])) for n in names]
        lines.append(
            [source, str(len(some)), *(_stored_gain(point, name) for point, name in zip(best, names, strict=True))]
        )
    return markdown_table(["practice", "settings", *names], lines)


def _gain_or_least(difference: float | None) -> float:
    """Return the difference; where there is none, less than any."""
    return -2.0 if difference is None else difference


def room_decodings(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {GREEDY: row, **{f"T = {part['temperature']:g}": part for part in row["sampled"]}}


def room_setting(point: Mapping[str, Any]) -> str:
    """Describe the inner loop of a point, and the sharpness of its weights."""
    if point["optimizer"] == IN_CONTEXT:
        return "no step"
    text = f"{point['optimizer']} {point['rate']:g}, K = {point['steps']}"
    return text if point.get("sharpness") is None else f"{text}, sharpness {point['sharpness']:g}"


def _stored_share(part: dict[str, Any]) -> str:
    text = f"{percent(part['accuracy'])}% {percent_interval(part['interval'])}"
    return text if "pass_at_n" not in part else f"{text}; of all samples one right: {percent(part['pass_at_n'])}%"


def _stored_gain(point: dict[str, Any], name: str) -> str:
    part = room_decodings(point["row"])[name]
    return f"{points(part['difference'])} {points_interval(part['difference_interval'])} ({room_setting(point)})"


# --- rows


def label_of(rows: dict[int, StoredRow]) -> str:
    """Return the method's name; with n where all seeds chose the same."""
    labels = {row.label for row in rows.values()}
    return labels.pop() if len(labels) == 1 else next(iter(rows.values())).method


def mean_of(rows: dict[int, StoredRow], cost: str, at: str = GREEDY) -> float | None:
    """Return the mean over seeds of 'tokens' or 'seconds' per answer."""
    return _mean([getattr(row, cost)[at] for row in rows.values() if at in getattr(row, cost)])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
