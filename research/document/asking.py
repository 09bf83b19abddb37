"""Look up the values that a document asks for in stored results. A value that is not measured yet is not an error.

A place is 'part/name', as in 'table/test': the part of the study and the name of its evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from mass.errors import DataError, nearest
from mass.evaluation.methods import METHODS, choice_of
from research.results import (
    Estimate,
    Evaluation,
    Part,
    Results,
    StoredRow,
    Training,
    difference,
    estimate,
    ratio,
    series,
)
from research.results.estimates import Series, Some
from research.results.stored import GREEDY

T = TypeVar("T")
DECODING = re.compile(r"greedy|(?:pass |maj )?[0-9]+(?:\.[0-9]+)?")
PARTS = ("room", "table", "rates", "ablations", "data", "safety", "hard", "unseen", "authors", "rerun", "code", "math")


class NotMeasured(Exception):
    """The results could contain this value but do not yet; the message says which."""


@dataclass(frozen=True)
class Question:
    """Specifies which outcomes are meant."""

    of: str
    """The place."""
    at: str = GREEDY
    """Decoding: 'greedy', a temperature like '0.6', 'pass 0.6' or 'maj 0.6'."""
    subject: str | None = None
    level: int | None = None


@dataclass(frozen=True)
class Answers:
    """Looks up, computes and keeps the values that a document asks for.

    Its methods raise NotMeasured, or DataError for values that no results could contain.
    """

    results: Results
    _known: dict[Any, Series | None] = field(default_factory=dict[Any, "Series | None"])

    def part(self, name: str) -> Part:
        """Return a part of the study."""
        if name not in PARTS:
            raise DataError(f"part {name!r} is unknown{nearest(name, PARTS)}")
        if name not in self.results.parts:
            raise NotMeasured(name)
        return self.results.parts[name]

    def evaluations(self, of: str) -> dict[int, Evaluation]:
        """Return the evaluations at a place, by seed."""
        part, name = place(of)
        found = self.part(part).evaluations
        if name not in found:
            raise NotMeasured(of)
        return found[name]

    def rows(self, of: str, method: str) -> dict[int, StoredRow]:
        """Return the stored rows of a method, by seed."""
        found = {s: e.rows[method] for s, e in self.evaluations(of).items() if method in e.rows}
        if not found:
            raise self._no_method(of, method)
        return found

    def methods(self, of: str) -> list[str]:
        """Return the methods at a place, in the order of the list of methods; those with a number in their name
        last."""
        found = dict.fromkeys(m for e in self.evaluations(of).values() for m in e.rows)
        return sorted(found, key=lambda m: METHODS.index(m) if m in METHODS else len(METHODS))

    def series(self, method: str, question: Question) -> Series:
        """Return the outcomes of a method, by seed."""
        key = (method, question)
        if key not in self._known:
            self._check(question)
            some = Some(question.subject, question.level)
            self._known[key] = series(self.evaluations(question.of), method, question.at, some)
        found = self._known[key]
        if found is None:
            self.rows(question.of, method)
            raise NotMeasured(f"{question.of} {method} at {question.at}")
        return found

    def _check(self, question: Question) -> None:
        """Raise an error for a decoding, subject or level that no evaluation at the place has."""
        found = self.evaluations(question.of).values()
        decodings = dict.fromkeys(at for e in found for row in e.rows.values() for at in row.outcomes)
        for name, value, known in (
            ("decoding", question.at, list(decodings)),
            ("subject", question.subject, [*dict.fromkeys(s for e in found for s in e.subjects)]),
            ("level", question.level, [*dict.fromkeys(level for e in found for level in e.levels)]),
        ):
            if value is not None and value not in known:
                if name == "decoding" and DECODING.fullmatch(str(value)):
                    raise NotMeasured(f"{question.of} at {value}")
                raise DataError(f"{question.of} has no {name} {value!r}{nearest(str(value), map(str, known))}")

    def accuracy(self, method: str, question: Question) -> Estimate:
        """Return the accuracy of a method."""
        return estimate(self.series(method, question))

    def gain(self, method: str, other: str, question: Question) -> Estimate:
        """Return the paired difference between two methods."""
        found = difference(self.series(method, question), self.series(other, question))
        return _there(found, f"{question.of}: {method} and {other} share no seeds and problems")

    def gain_over(self, one: tuple[str, Question], other: tuple[str, Question]) -> Estimate:
        """Return the paired difference between methods of two places."""
        found = difference(self.series(*one), self.series(*other))
        return _there(found, f"{one[1].of} and {other[1].of} share no seeds and problems")

    def ratio(self, method: str, other: str, question: Question) -> Estimate:
        """Return the ratio of the accuracies of two methods."""
        found = ratio(self.series(method, question), self.series(other, question))
        return _there(found, f"{question.of}: {method} over {other}")

    def weakest(self, method: str, question: Question) -> str:
        """Return the name of the subject on which a method does worst."""
        names = {s for e in self.evaluations(question.of).values() for s in e.subjects}
        if not names:
            raise NotMeasured(f"{question.of}: subjects")
        found = {s: self.accuracy(method, replace(question, subject=s)).mean for s in sorted(names)}
        return min(found, key=lambda s: found[s])

    def training(self, of: str, row: StoredRow) -> Training | None:
        """Return the stored training from which a row's checkpoint comes."""
        run, seed = row.training.get("run"), row.training.get("seed")
        for name, seeds in self.part(place(of)[0]).trainings.items():
            if seed in seeds and run in (name, f"{name}-{seed}"):
                return seeds[seed]
        return None

    def practice(self, of: str) -> Mapping[int, Mapping[str, Any]]:
        """Return the analyses at a place, by seed."""
        part, name = place(of)
        found = self.part(part).practice
        if name not in found:
            raise NotMeasured(of)
        return found[name]

    def room(self, of: str) -> Mapping[str, Any]:
        """Return the measured headroom for practice at a place."""
        part, name = place(of)
        found = self.part(part).rooms
        if name not in found:
            raise NotMeasured(of)
        return next(iter(found[name].values()))

    def _no_method(self, of: str, method: str) -> Exception:
        if method in METHODS or choice_of(method) is not None:
            return NotMeasured(f"{of} {method}")
        return DataError(f"{of} has no method {method!r}{nearest(method, [*METHODS, *self.methods(of)])}")


def place(of: str) -> tuple[str, str]:
    """Split a place into part and name. Raises DataError."""
    part, slash, name = of.partition("/")
    if not (part and slash and name):
        raise DataError(f"{of!r} names no place in the results; expected part/name, as in table/test")
    return part, name


def _there(value: T | None, what: str) -> T:
    if value is None:
        raise NotMeasured(what)
    return value
