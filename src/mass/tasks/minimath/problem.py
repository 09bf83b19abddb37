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
        """Return a solution in one style.

        Args:
            style: `worked` writes the steps and the answer; `bare` only the answer; `mistaken` works out the kind's
                common misreading; `slip` has one wrong step (chosen by `rng`) and what follows from it. A problem whose
                slip would still end in the right answer gets a wrong last step. Where a value is tried, the slip is in
                that value: the test that follows is correct, and fails.

        Raises:
            ValueError: The style is `mistaken`, and the kind has no common misreading.
        """
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

    @property
    def tried(self) -> bool:
        """True if the solution tries a value and tests it."""
        pad = Scratchpad()
        self.kind.solve(pad, *self.numbers)
        return pad.guess_at is not None

    def _slip(self, right: Scratchpad, rng: random.Random) -> tuple[Scratchpad, int | Fraction]:
        if right.guess_at is not None:
            return self._failed_try(right.guess_at, rng)
        slip_by = rng.choice((-10, -2, -1, 1, 2, 10))
        calculations = [i for i, step in enumerate(right.steps) if "=" in step] or [0]
        for slip_at in (rng.choice(calculations), calculations[-1]):
            pad = Scratchpad(slip_at, slip_by)
            result = self.kind.solve(pad, *self.numbers)
            if _plain(result) != self.answer:
                return pad, result
        return pad, result + slip_by

    def _failed_try(self, guess_at: int, rng: random.Random) -> tuple[Scratchpad, int | Fraction]:
        """Return a solution that tries a wrong value and tests it correctly."""
        while True:
            pad = Scratchpad(guess_at, rng.choice((-3, -2, -1, 1, 2, 3)))
            result = self.kind.solve(pad, *self.numbers)
            if result > 0 and pad.steps[-1] == "no":
                return pad, result

    def task(self, id: str = "") -> Task:
        """Return the problem as a Task with its worked solution."""
        return Task(self.text, self.solution(), self.answer, self.kind.subject, self.level, id, verifier="exact")


def _plain(value: int | Fraction) -> str:
    return str(value)
