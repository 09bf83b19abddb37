"""Sample n answers to each problem and choose one: by majority, or by the scorer.

These methods spend the same cost as mass in another way, so that a gain can be told apart from its price.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from mass.adaptation import scoring
from mass.adaptation.batch import rows_per_pass
from mass.config import SamplingConfig
from mass.evaluation.answers import Attempt
from mass.evaluation.contestants import Contestant
from mass.lm import LM
from mass.seeds import derive
from mass.types import Example, Params, Sample
from mass.verify.votes import ballots as ballots_of

Tick = Callable[[int], None]
"""Called with the number of problems that are done."""


@dataclass
class Ballots:
    """Sampled answers to each problem, drawn when they are asked for and kept, so that several methods share them.

    Sample j of a problem has a seed derived from (its seed, j).
    """

    lm: LM
    adapter: Params | None
    problems: Sequence[str]
    seeds: Sequence[int]
    sampling: SamplingConfig
    stack: int = 32
    """Number of problems sampled side by side."""
    verifiers: Sequence[str] = ()
    """The name of each problem's verifier, which decides which answers are equal; if empty, all are mathematical."""
    _samples: list[list[Sample]] = field(default_factory=list[list[Sample]])
    _seconds: float = 0.0

    def first(self, n: int, tick: Tick | None = None) -> list[list[Sample]]:
        """Return the first n samples of each problem."""
        self._draw(n, tick)
        return [samples[:n] for samples in self._samples]

    def matching(self, tokens: float, tick: Tick | None = None) -> int:
        """Return an n whose samples have at least `tokens` generated tokens per problem.

        The first guess is `tokens` over the mean length of one sample, rounded up; it is increased until it is enough.
        """
        n = max(1, math.ceil(tokens / self._tokens(1)))
        self._draw(n, tick)
        while self._tokens(n) < tokens:
            n += 1
        return n

    def seconds(self, n: int) -> float:
        """Return the time of n samples of one problem, as a share of the time of all that were drawn."""
        return self._seconds / len(self.problems) * n / len(self._samples[0])

    def _tokens(self, n: int) -> float:
        """Return the generated tokens per problem of n samples."""
        return sum(len(s.tokens) for samples in self.first(n) for s in samples) / len(self.problems)

    def _draw(self, n: int, tick: Tick | None) -> None:
        self._samples = self._samples or [[] for _ in self.problems]
        known, start = len(self._samples[0]), time.perf_counter()
        for at in range(0, len(self.problems) if n > known else 0, self.stack):
            part = range(at, min(at + self.stack, len(self.problems)))
            prompts = [self.lm.solve_prompt(self.problems[i]) for i in part for _ in range(known, n)]
            row_seeds = [derive(self.seeds[i], "vote", j) for i in part for j in range(known, n)]
            drawn = iter(self.lm.sample(prompts, self.sampling, row_seeds, self.adapter))
            for i in part:
                self._samples[i] += [next(drawn) for _ in range(known, n)]
            if tick is not None:
                tick(part.stop)
        self._seconds += time.perf_counter() - start


def vote(ballots: Ballots, n: int, tick: Tick | None = None) -> list[Attempt]:
    """Return the majority answer of n samples of each problem."""
    drawn = ballots.first(n, tick)
    verifiers = ballots.verifiers or ["math"] * len(drawn)
    return [elect(samples, verifier, ballots.seconds(n)) for samples, verifier in zip(drawn, verifiers, strict=True)]


def elect(samples: Sequence[Sample], verifier: str = "math", seconds: float = 0.0) -> Attempt:
    """Return the sample that `majority` chooses, with the cost of all samples."""
    chosen, tally = majority([sample.text for sample in samples], verifier)
    tokens = sum(len(s.tokens) for s in samples)
    return Attempt(samples[chosen].text.strip(), tokens, seconds, votes=tally, samples=len(samples))


def majority(texts: Sequence[str], verifier: str = "math") -> tuple[int, dict[str, int]]:
    """Return the index of a text that gives the most frequent answer, and the votes of each answer.

    It is the first text with that answer; if answers tie, the one seen first wins. Answers are counted together where
    the verifier finds them equal (`mass.verify.votes`). Texts without an answer do not vote; if none votes, index 0 is
    returned.
    """
    given = ballots_of(texts, verifier)
    tally = Counter(answer for answer in given if answer is not None)
    chosen = given.index(max(tally, key=lambda answer: tally[answer])) if tally else 0
    return chosen, dict(tally)


def best_of(contestant: Contestant, ballots: Ballots, n: int, tick: Tick | None = None) -> list[Attempt]:
    """Choose, from n samples of each problem, the one that the scorer rates highest, read as a practice example whose
    problem is the target.

    Ties go to the one seen first. Samples that did not end, or do not fit the scorer's context, are not chosen; if none
    is left, the first sample answers.
    """
    drawn = ballots.first(n, tick)
    start = time.perf_counter()
    chosen = best_places(contestant, ballots.problems, drawn)
    seconds = ballots.seconds(n) + (time.perf_counter() - start) / len(drawn)
    return [
        Attempt(samples[place].text.strip(), sum(len(s.tokens) for s in samples), seconds, samples=n)
        for samples, place in zip(drawn, chosen, strict=True)
    ]


@torch.no_grad()
def best_places(contestant: Contestant, problems: Sequence[str], samples: Sequence[Sequence[Sample]]) -> list[int]:
    """Return for each problem the index of the sample that the contestant's scorer rates highest."""
    lm, state = contestant.lm, contestant.state
    assert state is not None
    rows = [
        (b, j, example)
        for b, (problem, group) in enumerate(zip(problems, samples, strict=True))
        for j, sample in enumerate(group)
        if (example := _as_example(lm, problem, sample)) is not None
    ]
    best: dict[int, tuple[float, int]] = {}
    if rows:
        longest = max(len(lm.synthesis_prompt(problems[b])) + len(e.tokens) for b, _, e in rows)
        size = min(lm.decode_rows, rows_per_pass(lm.device.type, longest) or lm.decode_rows)
        targets, examples = [problems[b] for b, _, _ in rows], [e for _, _, e in rows]
        scores = scoring.score(lm, state.eta, targets, examples, size).tolist()
        for (b, j, _), score in zip(rows, scores, strict=True):
            if b not in best or score > best[b][0]:
                best[b] = (score, j)
    return [best.get(b, (0.0, 0))[1] for b in range(len(problems))]


def _as_example(lm: LM, problem: str, sample: Sample) -> Example | None:
    """Return a sampled answer as the practice example "this very problem, and the answer"; None where it cannot be
    read."""
    if not sample.finished or not sample.text.strip():
        return None
    prompt, tokens = lm.attempt_row(problem, sample.text)
    fits = len(prompt) + len(tokens) <= lm.context
    return Example(problem, sample.text.strip(), tokens=tuple(tokens)) if fits else None
