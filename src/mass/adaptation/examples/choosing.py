"""A set of examples -> the way to use it, judged by answers to examples that are held out.

The examples are divided into folds. Each fold is asked of the model with the other folds in context, in the weights, or
both; the adapters of all folds and rates learn side by side as one stack. The accuracy on the held-out examples
decides, and between equal accuracies the likelihood of the held-out outputs. Adapting is chosen only where it beats the
best prompt. Nothing but the given examples is used.

Legend: F folds, R learning rates.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mass import verify
from mass.adaptation.examples.asking import prompt
from mass.adaptation.examples.given import ExampleSet, divide
from mass.adaptation.examples.learning import held_out_losses, learn
from mass.adaptation.examples.lessons import Taught, lessons_of
from mass.bootstrap import wilson
from mass.config import ExamplesConfig, SamplingConfig
from mass.lm.target_losses import target_losses
from mass.seeds import derive
from mass.timing import Clock
from mass.types import Candidate, Choice, Pair, Params

if TYPE_CHECKING:
    from mass.lm import LM

LEARNING_COST = 3.5
"""Time of a token in the inner loop over that in a forward pass: forward, backward, and the adapter's products."""
FOR_CHOOSING = 0.75
"""Share of the remaining time that choosing may take with the last learning."""
CHANCE = 0.1
"""A difference with a larger p-value is called chance."""


@dataclass(frozen=True)
class Grid:
    """The rates and numbers of epochs with which learning is tried."""

    folds: list[list[int]]
    rates: tuple[float, ...]
    epochs: tuple[int, ...]


@dataclass
class Chooser:
    """One choice in progress."""

    lm: LM
    """Asks questions as they are."""
    theta: Params
    examples: ExampleSet
    config: ExamplesConfig
    seed: int
    clock: Clock
    deadline: float = math.inf
    """Time (`perf_counter`) at which all should be done."""
    tokens: int = 0
    """Tokens generated so far."""

    def choose(self) -> Choice:
        """Try the ways to use the examples, and return the choice."""
        notes = self.examples.notes
        folds = divide(self.examples, self.config.folds, derive(self.seed, "folds"))
        if not folds:
            reason = "with one input nothing can be held out, so it is shown before each question; nothing was tried"
            return Choice(Candidate("in-context"), (), reason, 0, notes)
        tried = [self._ask("zero-shot", folds)]
        grid, cut = self._affordable(folds, tried[0])
        tried.append(self._ask("in-context", grid.folds if grid else folds))
        if grid is not None:
            tried += self._adapted(grid)
        chosen = best(tried)
        return Choice(chosen, tuple(tried), said(chosen, tried, cut), len(grid.folds if grid else folds), notes)

    def _ask(self, method: str, folds: Sequence[Sequence[int]]) -> Candidate:
        """Judge a prompt: the question alone, or after the examples of the other folds."""
        start = time.perf_counter()
        with self.clock.stage(f"trying {method}"):
            shots = [self._shots(fold) if method == "in-context" else () for fold in folds]
            right, loss = self._held_out(folds, shots, self.theta)
        return Candidate(method, right=right, loss=loss, seconds=time.perf_counter() - start)

    def _shots(self, fold: Sequence[int]) -> tuple[Pair, ...]:
        held = set(fold)
        return tuple(pair for i, pair in enumerate(self.examples.pairs) if i not in held)

    def _adapted(self, grid: Grid) -> list[Candidate]:
        """Learn in each fold at each rate, side by side, and judge after each number of epochs."""
        groups = [(fold, rate) for rate in grid.rates for fold in grid.folds]
        start = time.perf_counter()
        with self.clock.stage("trying adapted"):
            examples = [self._training(fold) for fold, _ in groups]
            seeds = [derive(self.seed, "lessons")] * len(groups)
            config = self.config
            lessons = lessons_of(
                self.lm, examples, config.rows, grid.epochs[-1], config.batch, config.max_example_tokens, seeds
            )
            stacks = learn(self.theta, lessons, config, [rate for _, rate in groups], grid.epochs)
            each = (time.perf_counter() - start) / len(grid.rates) / len(grid.epochs)
            found: list[tuple[Candidate, Params]] = []
            for at, rate in enumerate(grid.rates):
                for epochs, stack in stacks.items():
                    own = {name: t[at * len(grid.folds) : (at + 1) * len(grid.folds)] for name, t in stack.items()}
                    found.append((self._judge_adapted("adapted", grid, rate, epochs, own, each), own))
            if self._late():
                return [candidate for candidate, _ in found]
            # Both together costs as much as in context for each question: only the best learner is tried so.
            leading, stack = max(found, key=lambda pair: merit(pair[0]))
            assert leading.learning_rate is not None
            assert leading.epochs is not None
            both = self._judge_adapted("adapted-in-context", grid, leading.learning_rate, leading.epochs, stack, each)
        return [*(candidate for candidate, _ in found), both]

    def _late(self) -> bool:
        return time.perf_counter() > self.deadline

    def _training(self, fold: Sequence[int]) -> list[Taught]:
        held, pairs = set(fold), zip(self.examples.pairs, self.examples.weights, strict=True)
        return [Taught(pair, weight) for i, (pair, weight) in enumerate(pairs) if i not in held]

    def _judge_adapted(
        self, method: str, grid: Grid, rate: float, epochs: int, stack: Params, learning_s: float
    ) -> Candidate:
        start = time.perf_counter()
        shots = [self._shots(fold) if method.endswith("in-context") else () for fold in grid.folds]
        right, loss = self._held_out(grid.folds, shots, stack)
        return Candidate(method, rate, epochs, right, loss, learning_s + time.perf_counter() - start)

    def _held_out(
        self, folds: Sequence[Sequence[int]], shots: Sequence[tuple[Pair, ...]], adapter: Params
    ) -> tuple[tuple[bool | None, ...], float]:
        """Ask the examples of each fold after its shots; return the verdicts, in the set's order, and the mean loss.

        A stack has one adapter for each fold.
        """
        tasks, stacked = self.examples.tasks, next(iter(adapter.values())).dim() == 3
        height = max(map(len, folds))
        if stacked:
            # Equal blocks for the stack: a fold with fewer examples repeats its last prompt, which is read once.
            groups = [[(i, some) for fold, some in zip(folds, shots, strict=True) for i in _filled(fold, height)]]
        else:  # fold by fold, as the examples before the questions of one fold are read once
            groups = [[(i, some) for i in fold] for fold, some in zip(folds, shots, strict=True)]
        found: dict[int, tuple[str, float]] = {}
        for group in groups if any(shots) else [[pair for some in groups for pair in some]]:
            found |= self._asked(group, adapter, height if stacked else None)
        verdicts = verify.check_all([(tasks[i], found[i][0]) for i in sorted(found)])
        return tuple(verdict.correct for verdict in verdicts), sum(loss for _, loss in found.values()) / len(found)

    def _asked(
        self, group: Sequence[tuple[int, tuple[Pair, ...]]], adapter: Params, height: int | None
    ) -> dict[int, tuple[str, float]]:
        """Ask examples, each after its shots; return the text of the answer and the loss of the output by example.

        With a stack, `height` is the number of consecutive examples of each adapter.
        """
        tasks, limit = self.examples.tasks, self.examples.answer_tokens
        prompts = [prompt(self.lm, shots, tasks[i].problem, limit) for i, shots in group]
        targets = [self.lm.target_ids(tasks[i].solution) for i, _ in group]
        seeds = [derive(self.seed, "held out", i) for i, _ in group]
        samples = self.lm.sample(prompts, SamplingConfig(limit, 0.0), seeds, adapter)
        self.tokens += sum(len(sample.tokens) for sample in samples)
        if any(shots for _, shots in group):
            losses = target_losses(self.lm, prompts, targets, adapter)
        else:
            owners = None if height is None else [at // height for at in range(len(group))]
            losses = held_out_losses(self.lm, list(zip(prompts, targets, strict=True)), adapter, owners)
        rows = zip(group, samples, losses.tolist(), strict=True)
        return {i: (sample.text, loss) for (i, _), sample, loss in rows}

    def _affordable(self, folds: list[list[int]], plain: Candidate) -> tuple[Grid | None, str]:
        """Return what of learning fits the time that is left, and a phrase on what was left out."""
        config = self.config
        whole = Grid(folds, config.learning_rates, config.epochs)
        if self.deadline == math.inf:
            return whole, ""
        with self.clock.stage("trying zero-shot"):
            start = time.perf_counter()
            rows = [self.lm.example_row(*pair) for pair in self.examples.pairs]
            held_out_losses(self.lm, rows, self.theta)
            token_s = (time.perf_counter() - start) / sum(len(a) + len(b) for a, b in rows)
        tokens = sum(len(a) + len(b) for a, b in rows) * (1 if config.rows != "leave-one-out" else len(rows))
        left = (self.deadline - time.perf_counter()) * FOR_CHOOSING
        grid = affordable(whole, tokens * token_s * LEARNING_COST, left, 4 * plain.seconds)
        if grid is None:
            return None, "the time does not suffice for learning"
        return grid, "" if grid == whole else "less was tried, for lack of time"


def _filled(fold: Sequence[int], height: int) -> list[int]:
    return [*fold, *[fold[-1]] * (height - len(fold))]


def affordable(grid: Grid, epoch_s: float, left_s: float, asking_s: float) -> Grid | None:
    """Return the grid, or as much of it as takes at most `left_s` seconds; None where not even the least does.

    Fewer rates come first, then fewer epochs, then two folds. The time is that of learning in all folds at all rates,
    of asking at each point, and of learning the whole set at the end.

    Args:
        epoch_s: Seconds of one epoch over all examples.
        asking_s: Seconds of asking all held-out examples.
    """
    ends = [sorted(i for fold in grid.folds[at::2] for i in fold) for at in (0, 1)]
    tries = [
        grid,
        dataclasses.replace(grid, rates=grid.rates[:1]),
        dataclasses.replace(grid, rates=grid.rates[:1], epochs=grid.epochs[:1]),
        Grid(ends, grid.rates[:1], grid.epochs[:1]),
    ]
    for one in tries:
        folds, epochs = len(one.folds), one.epochs[-1]
        learning = epoch_s * epochs * ((folds - 1) * len(one.rates) + 1)
        if learning + asking_s * (1 + len(one.rates) * len(one.epochs)) <= left_s:
            return one
    return None


def merit(candidate: Candidate) -> tuple[float, float]:
    """Return what candidates are ordered by: accuracy on held-out examples, then the likelihood of their outputs."""
    accuracy = candidate.correct / candidate.judged if candidate.judged else 0.0
    loss = math.inf if candidate.loss is None or math.isnan(candidate.loss) else candidate.loss
    return accuracy, -loss


def best(tried: Sequence[Candidate]) -> Candidate:
    """Return the best candidate; the first of those that are equal, so that a prompt is preferred to learning."""
    return max(tried, key=merit)


def said(chosen: Candidate, tried: Sequence[Candidate], cut: str = "") -> str:
    """Return one sentence on a choice, with the uncertainty of so few examples."""
    text = f"{chosen.name}: {counted(chosen)} right"
    others = [one for one in tried if one.adapts != chosen.adapts]
    other = max(others, key=merit) if others else None
    if other is not None:
        text += f", against {counted(other)} {other.name}"
        if merit(chosen)[0] == merit(other)[0]:
            text += "; as many, so the likelihood of the outputs decided"
        elif sign_test(chosen, other) > CHANCE:
            text += "; with so few examples the difference may be chance"
    return text + (f" ({cut})" if cut else "")


def counted(candidate: Candidate) -> str:
    """Return `7 of 10 [40%, 89%]`, with Wilson's 95% interval."""
    interval = wilson(candidate.correct, candidate.judged)
    spread = "" if interval is None else f" [{interval[0]:.0%}, {interval[1]:.0%}]"
    return f"{candidate.correct} of {candidate.judged}{spread}"


def sign_test(one: Candidate, other: Candidate) -> float:
    """Return the two-sided p-value of the examples that only one of the two answered rightly."""
    pairs = [(a, b) for a, b in zip(one.right, other.right, strict=True) if a is not None and b is not None and a != b]
    n, wins = len(pairs), sum(a is True for a, _ in pairs)
    tail = sum(math.comb(n, i) for i in range(min(wins, n - wins) + 1)) / 2**n
    return min(1.0, 2 * tail)
