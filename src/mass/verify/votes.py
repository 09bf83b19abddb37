"""Texts that answer one problem -> ballots: texts whose answers the problem's verifier finds equal are one ballot.

The gold is not needed, and not seen: only the verifier's name is. Each different answer is compared with one answer of
each ballot so far, cheaply first, by algebra only where that cannot tell, so the cost is near linear in the texts where
they agree on few answers, and bounded where they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mass.types import Task
from mass.verify import choice, harness, math, words
from mass.verify.exact import number
from mass.verify.extract import final_answer, find
from mass.verify.notation import plain
from mass.verify.pool import NoVerdict

MAX_BALLOTS = 64
"""An answer is compared with so many ballots at most, the first ones; beyond these it is a ballot of its own."""
MAX_MEMBERS = 8
"""With so many different answers of a ballot, at most, before it joins that."""
MAX_ALGEBRA = 200
"""Comparisons by algebra in one vote."""
TIMEOUT_COST = 40
"""One that timed out counts as so many."""

Equal = Callable[[str, str], bool | None]
"""Whether two answers are equal; None where only algebra can tell."""


@dataclass
class _Count:
    """The ballots so far."""

    equal: Equal
    budget: int = MAX_ALGEBRA
    members: list[list[str]] = field(default_factory=list[list[str]])
    """Of each ballot its different answers, the first seen first."""

    def place(self, answer: str) -> int:
        """The ballot that `answer` belongs to, new where it equals no other."""
        open_: list[int] = []
        for ballot, members in enumerate(self.members[:MAX_BALLOTS]):
            # 50% is both 0.5 and 50, which are not each other: none of the members may be known to be different.
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
            # Only of an equation it matters which is asked for.
            return math.same(one, other) or ("=" in one + other and math.same(other, one))
        except NoVerdict:
            self.budget -= TIMEOUT_COST
            return False


def ballots(texts: Sequence[str], verifier: str = "math") -> list[str | None]:
    """For each text the answer that its ballot is for, as it was first written; None where it gives no answer.

    `verifier` is the name in the task. Of one that has no answers to compare (programs, reasoning-gym's and your own),
    answers are alike as for `exact`.
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
    """Answers of other keys are different."""
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
}
"""Verifier -> how it reads an answer, answers that are alike at sight, and how it compares the others."""
_ANY = Task("", answer="0")
