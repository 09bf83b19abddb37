"""Validation problems with gold -> the bounds of a checkpoint's gate.

Every problem is answered with and without practice, the gate measuring but not deciding. `certainty` is the least bound
at which the problems left without practice would lose at most `LOST` of what practice gains on all of them (helped less
hurt). Each other bound lets a share of the updates pass that honest practice made: `KEPT_SURPRISE` for the surprise, on
which wrong practice differs most from honest practice, and `KEPT` for the others, which only catch what goes astray.
Hostile practice plays no part in the choice: nobody knows beforehand what it will be like.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mass.adaptation.answer import answer_all
from mass.config import GateConfig
from mass.errors import DataError
from mass.lm import room
from mass.model import Mass
from mass.seeds import derive
from mass.types import Adaptation, Task
from mass.verify import check_all

LOST = 0.01
"""Share of the gain that is given up for answers without practice."""
KEPT_SURPRISE, KEPT = 0.98, 0.995
"""Shares of honest updates that the bounds let pass."""
LEAST = 50
"""Fewest problems from which bounds are taken."""


@dataclass(frozen=True)
class Measured:
    """One validation problem."""

    measures: dict[str, float]
    """The measures of the gate, by name."""
    right: bool
    """True if the answer without practice is right."""
    adapted_right: bool


@dataclass(frozen=True)
class Bounds:
    """The bounds of a gate, and what they would have done to the problems they were measured on."""

    gate: GateConfig
    problems: int
    right: int
    """Problems answered rightly without practice."""
    helped: int
    hurt: int
    skipped: int
    """Problems that would be answered without practice."""
    certain_right: float
    """Chance that a right answer is more certain than a wrong one: the area under the curve, 0.5 for a coin."""
    certain_unhelped: float
    """Chance that a problem on which practice does not help is more certain than one on which it does."""


def measure(model: Mass, tasks: Sequence[Task], seed: int, stack: int) -> list[Measured]:
    """Answer the tasks with and without practice, `stack` side by side, and return what the gate measures on each."""
    # Bounds that nothing exceeds: everything is measured, and nothing decided.
    gate = dataclasses.replace(
        model.config.gate,
        enabled=True,
        certainty=0.0,
        max_surprise=None,
        max_least_loss=None,
        max_rise=None,
        max_drift=1e9,
    )
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, gate=gate))
    size, found = room.stack_that_fits(model.lm, stack), list[Measured]()
    for start in range(0, len(tasks), size):
        part = tasks[start : start + size]
        seeds = [derive(seed, "gate", start + i) for i in range(len(part))]
        problems = [task.problem for task in part]
        records, _ = answer_all(model.lm, model.state, problems, model.config, seeds, canaries=model.canaries())
        found += _judged(part, records)
    return found


def _judged(tasks: Sequence[Task], records: Sequence[Adaptation]) -> list[Measured]:
    """Return the problems with verdicts on both answers; those without a verdict are left out."""
    plain = check_all([(task, record.unadapted_text or "") for task, record in zip(tasks, records, strict=True)])
    adapted = check_all([(task, record.text) for task, record in zip(tasks, records, strict=True)])
    return [
        Measured({} if record.gate is None else record.gate.measures, before.correct, after.correct)
        for record, before, after in zip(records, plain, adapted, strict=True)
        if before.correct is not None and after.correct is not None
    ]


def bounds(measured: Sequence[Measured], gate: GateConfig) -> Bounds:
    """Choose the bounds; what they do not concern stays as `gate` has it.

    Raises:
        DataError: There are fewer than `LEAST` problems.
    """
    if len(measured) < LEAST:
        raise DataError(
            f"{len(measured)} problems have verdicts on both answers; expected at least {LEAST}; give more with --size"
        )
    certainty = np.array([one.measures["certainty"] for one in measured])
    right = np.array([one.right for one in measured])
    adapted = np.array([one.adapted_right for one in measured])
    gain = adapted.astype(int) - right.astype(int)
    threshold = _threshold(certainty, gain)
    chosen = dataclasses.replace(
        gate,
        certainty=threshold,
        max_surprise=_quantile(measured, "surprise", KEPT_SURPRISE) or gate.max_surprise,
        max_least_loss=_quantile(measured, "least_loss", KEPT) or gate.max_least_loss,
        max_rise=_quantile(measured, "held_out_rise", KEPT) or gate.max_rise,
        max_drift=_quantile(measured, "drift", KEPT) or gate.max_drift,
    )
    return Bounds(
        chosen,
        len(measured),
        int(right.sum()),
        int((gain > 0).sum()),
        int((gain < 0).sum()),
        0 if threshold is None else int((certainty >= threshold).sum()),
        area_under_curve(certainty, right),
        area_under_curve(certainty, gain <= 0),
    )


def _threshold(certainty: np.ndarray, gain: np.ndarray) -> float | None:
    """Return the least certainty from which on practice brings next to nothing; None where it always brings more."""
    order = np.argsort(-certainty, kind="stable")
    lost = gain[order].cumsum()
    # Where several problems are equally certain, all of them are skipped or none.
    ends = np.append(np.diff(certainty[order]) < 0, True)
    cheap = np.flatnonzero(ends & (lost <= LOST * max(0, int(gain.sum()))))
    return _rounded(float(certainty[order[cheap[-1]]])) if len(cheap) else None


def _quantile(measured: Sequence[Measured], name: str, share: float) -> float | None:
    values = [one.measures[name] for one in measured if name in one.measures]
    return max(0.0, _rounded(float(np.quantile(values, share)))) if values else None


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the chance that a positive has a higher score than a negative (ties count half); NaN without both."""
    one, other = scores[positive], scores[~positive]
    if not len(one) or not len(other):
        return float("nan")
    above = (one[:, None] > other[None]).mean() + 0.5 * (one[:, None] == other[None]).mean()
    return float(above)
