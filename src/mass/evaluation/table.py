"""Compute a row of the table from answers and verdicts: accuracy, the paired difference from another row, what changed,
cost.

Accuracy is correct / judged; an answer without a verdict is counted separately, not as wrong. Intervals are 95%:
Wilson's for an accuracy (Wilson 1927); the percentile bootstrap over problems (Efron 1979) for the difference from
the reference row (base unless another is chosen), on the problems for which both have a verdict. For sampled answers,
the quantity that is averaged and resampled is the mean accuracy over the samples of a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mass.bootstrap import Interval, mean_interval, wilson
from mass.evaluation.answers import Attempt, Drawn
from mass.evaluation.methods import choice_of
from mass.evaluation.rows import Group, Row, SampledRow
from mass.types import Adaptation, Task, Verdict


@dataclass(frozen=True)
class Judged:
    """The verdicts on the sampled answers to one task at one temperature."""

    drawn: Drawn
    correct: tuple[bool | None, ...]
    majority: bool | None
    """The verdict on the most frequent answer."""

    @property
    def share(self) -> float | None:
        """The share of the judged answers that are correct; None when none is judged."""
        judged = [right for right in self.correct if right is not None]
        return sum(judged) / len(judged) if judged else None


@dataclass(frozen=True)
class Record:
    """One method's answer to one task."""

    task: Task
    method: str
    attempt: Attempt
    verdict: Verdict
    sampled: tuple[Judged, ...] = ()
    """One entry per temperature."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as values for JSON."""
        attempt, adaptation = self.attempt, self.attempt.record
        return {
            "task": self.task.id,
            "subject": self.task.subject,
            "level": self.task.level,
            "problem": self.task.problem,
            "gold": self.task.answer,
            "method": self.method,
            "text": attempt.text,
            "correct": self.verdict.correct,
            "reason": self.verdict.reason,
            "extracted": self.verdict.extracted,
            "tokens": attempt.tokens,
            "seconds": attempt.seconds,
            **({} if attempt.votes is None else {"votes": attempt.votes}),
            **({"samples": attempt.samples} if attempt.samples != 1 else {}),
            **({"left_out": attempt.left_out} if attempt.left_out else {}),
            **({"sampled": [_sampled_dict(judged) for judged in self.sampled]} if self.sampled else {}),
            "adaptation": None if adaptation is None else adaptation.to_dict(),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any], task: Task) -> Record:
        """Return the record that `to_dict` wrote, also after storage as JSON, where numbers that are not finite
        became None."""
        adaptation, sampled = data["adaptation"], tuple(_judged(values) for values in data.get("sampled", ()))
        attempt = Attempt(
            data["text"],
            data["tokens"],
            data["seconds"],
            None if adaptation is None else Adaptation.from_dict(adaptation),
            data.get("votes"),
            data.get("samples", 1),
            tuple(judged.drawn for judged in sampled),
            data.get("left_out", 0),
        )
        return Record(
            task, data["method"], attempt, Verdict(data["correct"], data["reason"], data["extracted"]), sampled
        )


def _sampled_dict(judged: Judged) -> dict[str, Any]:
    drawn = judged.drawn
    return {
        "temperature": drawn.temperature,
        "texts": list(drawn.texts),
        "correct": list(judged.correct),
        "majority": judged.majority,
        "tokens": drawn.tokens,
        "seconds": drawn.seconds,
    }


def _judged(values: Mapping[str, Any]) -> Judged:
    drawn = Drawn(values["temperature"], tuple(values["texts"]), values["tokens"], values["seconds"])
    return Judged(drawn, tuple(values["correct"]), values["majority"])


def paired_bootstrap(helped: int, hurt: int, unchanged: int, resamples: int, seed: int) -> Interval | None:
    """Return the 95% percentile interval of the mean difference over resampled problems.

    Each problem's difference is +1, -1 or 0, so a resample is one multinomial draw of the three counts.
    """
    n = helped + hurt + unchanged
    if n == 0:
        return None
    counts = np.random.default_rng(seed).multinomial(n, [helped / n, hurt / n, unchanged / n], size=resamples)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / n, [0.025, 0.975])
    return float(low), float(high)


def row_of(
    method: str,
    records: Sequence[Record],
    reference: Sequence[Record] | None,
    resamples: int,
    seed: int,
    against: str = "base",
) -> Row:
    """Return the row of one method, compared with the records of the method `against` on the same tasks, which are
    `reference` where it was run."""
    itself = method == against
    total = _group(records)
    change = Change(0.0) if itself else Change()
    if not itself and reference is not None:
        change = _change(records, reference, resamples, seed)
    return Row(
        method=method,
        label=label_of(method, records),
        n=total.n,
        no_verdict=sum(r.verdict.correct is None for r in records),
        accuracy=total.accuracy,
        interval=total.interval,
        difference=change.difference,
        difference_interval=change.interval,
        helped=change.helped,
        hurt=change.hurt,
        unchanged=change.unchanged,
        tokens_per_answer=mean_tokens(records),
        seconds_per_answer=sum(r.attempt.seconds for r in records) / len(records),
        fallbacks=sum(bool(r.attempt.record and r.attempt.record.fallback) for r in records),
        by_subject=_groups(records, lambda task: task.subject or None),
        by_level=dict(sorted(_groups(records, lambda task: task.level).items(), key=lambda item: int(item[0]))),
        sampled=tuple(
            _sampled_row(records, None if itself else reference, place, resamples, seed)
            for place in range(len(records[0].sampled))
        ),
        is_reference=itself,
    )


def _sampled_row(
    records: Sequence[Record], reference: Sequence[Record] | None, place: int, resamples: int, seed: int
) -> SampledRow:
    """Return the row for the temperature at index `place`. A method that chooses among samples has none of its own to
    compare with."""
    judged = [record.sampled[place] for record in records]
    shares = [j.share for j in judged]
    known = [share for share in shares if share is not None]
    comparable = reference if reference and reference[0].sampled else None
    before = [record.sampled[place].share for record in comparable] if comparable else [None] * len(shares)
    changes = [a - b for a, b in zip(shares, before, strict=True) if a is not None and b is not None]
    passes = [any(right is True for right in j.correct) for j in judged if j.share is not None]
    votes = [j.majority for j in judged if j.majority is not None]
    return SampledRow(
        temperature=judged[0].drawn.temperature,
        samples=len(judged[0].correct),
        accuracy=_mean(known),
        interval=mean_interval(known, resamples, seed),
        difference=_mean(changes),
        difference_interval=mean_interval(changes, resamples, seed),
        pass_at_n=_mean(passes),
        pass_interval=wilson(sum(passes), len(passes)),
        maj_at_n=_mean(votes),
        maj_interval=wilson(sum(votes), len(votes)),
        tokens_per_answer=sum(j.drawn.tokens for j in judged) / len(judged),
        seconds_per_answer=sum(j.drawn.seconds for j in judged) / len(judged),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def label_of(method: str, records: Sequence[Record]) -> str:
    """Return the method's name; 'maj@9' for a 'maj@n' with nine votes."""
    choice = choice_of(method)
    return method if choice is None else choice.label(records[0].attempt.samples)


def mean_tokens(records: Sequence[Record]) -> float:
    """Return the generated tokens per answer."""
    return sum(r.attempt.tokens for r in records) / len(records)


@dataclass(frozen=True)
class Change:
    """The difference of a method from the reference row, on the problems for which both have a verdict."""

    difference: float | None = None
    interval: Interval | None = None
    helped: int | None = None
    hurt: int | None = None
    unchanged: int | None = None


def _change(records: Sequence[Record], reference: Sequence[Record], resamples: int, seed: int) -> Change:
    verdicts = [(r.verdict.correct, b.verdict.correct) for r, b in zip(records, reference, strict=True)]
    pairs = [(now, before) for now, before in verdicts if now is not None and before is not None]
    helped = sum(now and not before for now, before in pairs)
    hurt = sum(before and not now for now, before in pairs)
    unchanged = len(pairs) - helped - hurt
    difference = (helped - hurt) / len(pairs) if pairs else None
    return Change(difference, paired_bootstrap(helped, hurt, unchanged, resamples, seed), helped, hurt, unchanged)


def _group(records: Sequence[Record]) -> Group:
    judged = [r.verdict.correct for r in records if r.verdict.correct is not None]
    return Group(len(records), sum(judged) / len(judged) if judged else None, wilson(sum(judged), len(judged)))


def _groups(records: Sequence[Record], part_of: Callable[[Task], str | int | None]) -> dict[str, Group]:
    """Return groups by name, in order of first appearance; tasks without a value are left out."""
    parts: dict[str, list[Record]] = {}
    for record in records:
        part = part_of(record.task)
        if part is not None:
            parts.setdefault(str(part), []).append(record)
    return {name: _group(part) for name, part in parts.items()}
