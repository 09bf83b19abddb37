"""State a problem, and write its answer and its solutions in several styles."""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction

from mass.tasks.minimath.scratchpad import Kind, Numbers, Scratchpad
from mass.types import Task


@dataclass(frozen=True)
class Problem:
    """A problem that has been drawn. It can write its own text and its solution in each style."""

    kind: Kind
    level: int
    numbers: Numbers

    @property
    def text(self) -> str:
        """The statement of the problem."""
        return self.kind.text(*self.numbers)

    @property
    def answer(self) -> str:
        """The exact answer, as text."""
        return _plain(self.kind.solve(Scratchpad(), *self.numbers))

    def solution(self, style: str = "worked", rng: random.Random | None = None) -> str:
        """Worked steps and the answer; `bare` has no steps; `mistaken` works out what the kind is mistaken for; `slip`
        has one wrong step (chosen by `rng`) and what follows from it. A problem whose slip would still end in the right
        answer is given a wrong last step. Raises ValueError for a mistaken solution of a kind that is mistaken for
        nothing."""
        if style == "bare":
            return f"Answer: {self.answer}"
        pad = Scratchpad()
        solve = self.kind.mistaken if style == "mistaken" else self.kind.solve
        if solve is None:
            raise ValueError(f"{self.kind.name} is mistaken for nothing")
        result = solve(pad, *self.numbers)
        if style == "slip":
            pad, result = self._slip(pad, rng or random.Random(0))
        return f"{'. '.join(pad.steps)}. Answer: {_plain(result)}" if pad.steps else f"Answer: {_plain(result)}"

    def _slip(self, right: Scratchpad, rng: random.Random) -> tuple[Scratchpad, int | Fraction]:
        slip_by = rng.choice((-10, -2, -1, 1, 2, 10))
        calculations = [i for i, step in enumerate(right.steps) if "=" in step] or [0]
        for slip_at in (rng.choice(calculations), calculations[-1]):
            pad = Scratchpad(slip_at, slip_by)
            result = self.kind.solve(pad, *self.numbers)
            if _plain(result) != self.answer:
                return pad, result
        return pad, result + slip_by

    def task(self, id: str = "") -> Task:
        """Return the problem as a Task with its worked solution."""
        return Task(self.text, self.solution(), self.answer, self.kind.subject, self.level, id, verifier="exact")


def _plain(value: int | Fraction) -> str:
    return str(value)
