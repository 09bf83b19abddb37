"""Group the answers to one problem for a vote: answers that the problem's verifier finds equal are one ballot.

The gold is not needed, and not seen: only the verifier's name is used. Each new answer is compared with the answers of
each ballot so far, first cheaply, and by algebra only where that cannot decide. So the cost is nearly linear in the
number of texts where they agree on few answers, and bounded where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mass.types import Task
from mass.verify import choice, harness, math, verbatim, words
from mass.verify.exact import number
from mass.verify.extract import final_answer, find
from mass.verify.notation import plain
from mass.verify.pool import NoVerdict

MAX_BALLOTS = 64
"""An answer is compared with the first so many ballots at most; one that equals none of them becomes a ballot of its
own."""
MAX_MEMBERS = 8
"""An answer is compared with at most this many different answers of a ballot before it joins that ballot."""
MAX_ALGEBRA = 200
"""The number of comparisons by algebra allowed in one vote."""
TIMEOUT_COST = 40
"""A comparison that timed out counts as this many."""

Equal = Callable[[str, str], bool | None]
"""Compares two answers: True, False, or None where only algebra can decide."""


@dataclass
class _Count:
    """The ballots found so far."""

    equal: Equal
    budget: int = MAX_ALGEBRA
    members: list[list[str]] = field(default_factory=list[list[str]])
    """For each ballot, its different answers in the order they were seen."""

    def place(self, answer: str) -> int:
        """Return the index of the ballot that `answer` belongs to; a new one where it equals no other answer."""
        open_: list[int] = []
        for ballot, members in enumerate(self.members[:MAX_BALLOTS]):
            # 50% equals 0.5 and also 50, which differ from each other: so no member may be known to be different.
            told = [self.equal(member, answer) for member in members[:MAX_MEMBERS]]
            if False not in told:
                if True in told:
                    return self._join(ballot, answer)
                open_.append(ballot)
        for ballot in open_:
            if self._by_algebra(self.members[ballot][0], answer):
                return self._join(ballot, answer)
        self.members.append([answer])
        return len(self.members) - 1

    def _join(self, ballot: int, answer: str) -> int:
        self.members[ballot].append(answer)
        return ballot

    def _by_algebra(self, one: str, other: str) -> bool:
        if self.budget <= 0:
            return False
        self.budget -= 1
        try:
            # The order of the two matters only for equations.
            return math.same(one, other) or ("=" in one + other and math.same(other, one))
        except NoVerdict:
            self.budget -= TIMEOUT_COST
            return False


def ballots(texts: Sequence[str], verifier: str = "math") -> list[str | None]:
    """Return for each text the answer of its ballot, as it was first written; None where the text gives no answer.

    Args:
        texts: Answer texts to one problem.
        verifier: The name in the task. Verifiers without comparable answers (programs, reasoning-gym's and your own)
            count answers as `exact` does.
    """
    read, key, equal = _READINGS.get(verifier, _READINGS["exact"])
    count, placed, found = _Count(equal), dict[str, int](), list[str | None]()
    for text in texts:
        answer = read(text)
        if answer is not None:
            known = key(answer)
            if known not in placed:
                placed[known] = count.place(answer)
            answer = count.members[placed[known]][0]
        found.append(answer)
    return found


def _math_key(answer: str) -> str:
    if len(answer) > math.MAX_ANSWER_CHARS:
        return answer
    value = number(answer)
    return math.squeeze(plain(answer)) if value is None else str(value)


def _math_equal(one: str, other: str) -> bool | None:
    if max(len(one), len(other)) > math.MAX_ANSWER_CHARS:
        return False
    told = math.compare(one, other)
    return told if isinstance(told, bool) else None


def _exact_key(answer: str) -> str:
    value = number(answer)
    return " ".join(answer.split()) if value is None else str(value)


def _exact_answer(text: str) -> str | None:
    found = find(text)
    return found.number or found.text if found else None


def _differ(one: str, other: str) -> bool:
    """Return False: here answers with different keys are always different."""
    del one, other
    return False


def _letter(text: str) -> str | None:
    return choice.check(Task("", answer="A"), text).extracted


_READINGS: dict[str, tuple[Callable[[str], str | None], Callable[[str], str], Equal]] = {
    "math": (final_answer, _math_key, _math_equal),
    "exact": (_exact_answer, _exact_key, _differ),
    "choice": (_letter, str, _differ),
    "gsm8k-strict": (lambda text: harness.gsm8k_strict(_ANY, text).extracted, harness.comparable, _differ),
    "gsm8k-flexible": (lambda text: harness.gsm8k_flexible(_ANY, text).extracted, harness.comparable, _differ),
    "minerva": (harness.minerva_answer, _math_key, _math_equal),
    "words": (words.ballot, str, _differ),
    "text": (lambda text: verbatim.plain(text) or None, str, _differ),
}
"""For each verifier: how it reads an answer, a key that equal answers mostly share, and how it compares the others."""
_ANY = Task("", answer="0")
