"""Examples -> the rows that are learned, step by step, for a stack of adapters, and their losses.

Each step has rows of its own: the engine is given all rows of all steps, and weights [K, N] that are 0 except for the
rows of the step. So an epoch can have another order, and another conversation, than the one before.

Legend: B adapters of a stack, K steps, R rows of one adapter in a step, N = K B R rows, L tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mass.adaptation.batch import rows_per_pass
from mass.errors import DataError
from mass.seeds import derive
from mass.types import Batch, Pair, Params

if TYPE_CHECKING:
    from mass.lm import LM

Rows = Literal["plain", "leave-one-out", "permuted"]


@dataclass(frozen=True)
class Lesson:
    """One row: tokens, which of them count, and the weight of their mean loss."""

    ids: tuple[int, ...]
    counted: tuple[bool, ...]
    weight: float


@dataclass(frozen=True)
class Taught:
    """An example to be learned: input and output, with a weight."""

    pair: Pair
    weight: float = 1.0


def epochs_of(lm: LM, examples: Sequence[Taught], rows: Rows, limit: int, seed: int) -> Iterator[list[Lesson]]:
    """Yield the rows of one epoch after the other, without end, each in an order of its own."""
    epoch = 0
    fixed = None if rows == "permuted" else [_row(lm, examples, i, rows, limit) for i in range(len(examples))]
    while True:
        rng = random.Random(derive(seed, "epoch", epoch))
        if fixed is None:
            yield _conversations(lm, rng.sample(examples, len(examples)), limit)
        else:
            yield rng.sample(fixed, len(fixed))
        epoch += 1


def _row(lm: LM, examples: Sequence[Taught], index: int, rows: Rows, limit: int) -> Lesson:
    one = examples[index]
    shots = [other.pair for i, other in enumerate(examples) if i != index] if rows == "leave-one-out" else []
    target = lm.target_ids(one.pair[1])
    context = _context(lm, shots, one.pair[0], limit - len(target))
    return _lesson(context, target, one.weight)


def _context(lm: LM, shots: Sequence[Pair], question: str, limit: int) -> list[int]:
    """Return the prompt of a question after as many examples as fit."""
    for count in range(len(shots), 0, -1):
        found = lm.shots_prompt(shots[:count], question)
        if len(found) <= limit:
            return found
    return lm.solve_prompt(question)


def _lesson(context: Sequence[int], target: Sequence[int], weight: float) -> Lesson:
    return Lesson((*context, *target), (False,) * len(context) + (True,) * len(target), weight)


def _conversations(lm: LM, examples: Sequence[Taught], limit: int) -> list[Lesson]:
    """Return the examples as few conversations of at most `limit` tokens, in which all outputs count.

    One pass over a conversation learns each output after the examples before it. The weight of a conversation is that
    of its examples together. Where a template renders an earlier turn differently, each example gets a row of its own.
    """
    found: list[Lesson] = []
    rest = list(examples)
    while rest:
        taken, lesson = _conversation(lm, rest, limit)
        found.append(lesson)
        rest = rest[taken:]
    return found


def _conversation(lm: LM, examples: Sequence[Taught], limit: int) -> tuple[int, Lesson]:
    """Return how many of the examples, from the first, are in the conversation, and the conversation."""
    ids: list[int] = []
    counted: list[bool] = []
    weight, shots = 0.0, list[Pair]()
    for taken, one in enumerate(examples):
        context = lm.shots_prompt(shots, one.pair[0]) if shots else lm.solve_prompt(one.pair[0])
        target = lm.target_ids(one.pair[1])
        # The end token of the last answer is not always part of the next prompt.
        before = ids if context[: len(ids)] == ids else ids[:-1]
        fits = not shots or (context[: len(before)] == before and len(context) + len(target) <= limit)
        if not fits:
            return taken, Lesson(tuple(ids), tuple(counted), weight)
        counted = counted[: len(before)] + [False] * (len(context) - len(before)) + [True] * len(target)
        ids, weight = [*context, *target], weight + one.weight
        shots.append(one.pair)
    return len(examples), Lesson(tuple(ids), tuple(counted), weight)


@dataclass(frozen=True)
class Lessons:
    """All rows of all steps of a stack."""

    lm: LM
    batch: Batch
    """[N, L], step by step, within a step adapter by adapter."""
    owners: Tensor
    """[N] the index of each row's adapter."""
    weights: Float[Tensor, "K N"]
    """0 except for the rows of the step."""
    rows_per_step: int
    steps_per_epoch: int
    tokens: int
    """Tokens of all rows, without padding."""

    @property
    def steps(self) -> int:
        """K."""
        return len(self.weights)

    @property
    def micro_batch(self) -> int:
        """Rows of a pass: those of a step, or a part of them where they are many tokens."""
        most = rows_per_pass(self.lm.device.type, self.batch.input_ids.shape[1]) or self.rows_per_step
        return max(size for size in range(1, self.rows_per_step + 1) if self.rows_per_step % size == 0 and size <= most)

    def losses(self, params: Params, index: Tensor | None = None) -> Float[Tensor, " n"]:
        """Return the losses of the rows `index` under the stack: the argument `losses` of `mass.metagrad.adapt`."""
        owners = self.owners if index is None else self.owners[index]
        # The rows of a whole step are equal consecutive blocks, for which no adapter has to be copied to each row.
        whole = torch.equal(owners, self.owners[: self.rows_per_step])
        return self.lm.losses(self.batch.select(index), params, None if whole else owners)


def lessons_of(
    lm: LM,
    groups: Sequence[Sequence[Taught]],
    rows: Rows,
    epochs: int,
    batch: int,
    limit: int,
    seeds: Sequence[int],
) -> Lessons:
    """Make the rows of `epochs` passes over the examples of each adapter, `batch` of them in a step.

    An adapter with fewer examples than another goes through them more often, so that all take as many steps.
    """
    streams = [epochs_of(lm, group, rows, limit, seed) for group, seed in zip(groups, seeds, strict=True)]
    first = [next(stream) for stream in streams]
    longest = max(map(len, first))
    height = min(batch, longest)
    per_epoch = -(-longest // height)
    count = per_epoch * epochs * height
    chosen = [_take(lessons, stream, count) for lessons, stream in zip(first, streams, strict=True)]
    order = [(b, k * height + r) for k in range(per_epoch * epochs) for b in range(len(groups)) for r in range(height)]
    lessons = [chosen[b][i] for b, i in order]
    weights = torch.zeros(per_epoch * epochs, len(lessons), dtype=lm.adapter_dtype)
    mean = [sum(one.weight for one in some) / len(some) for some in first]
    for n, (lesson, (b, _)) in enumerate(zip(lessons, order, strict=True)):
        weights[n // (height * len(groups)), n] = lesson.weight / mean[b] / height
    return Lessons(
        lm,
        _batch(lm, lessons),
        torch.tensor([b for b, _ in order], device=lm.device),
        weights.to(lm.device),
        height * len(groups),
        per_epoch,
        sum(len(lesson.ids) for lesson in lessons),
    )


def _take(lessons: list[Lesson], stream: Iterator[list[Lesson]], count: int) -> list[Lesson]:
    found = list(lessons)
    while len(found) < count:
        found += next(stream)
    return found[:count]


def _batch(lm: LM, lessons: Sequence[Lesson]) -> Batch:
    longest = max(len(lesson.ids) for lesson in lessons)
    if longest > lm.context:
        raise DataError(f"an example of {longest} tokens; {lm.name!r} reads at most {lm.context}; shorten it")
    batch = lm.batch([(list(lesson.ids), []) for lesson in lessons])
    counted = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    for i, lesson in enumerate(lessons):
        counted[i, : len(lesson.counted)] = torch.tensor(lesson.counted, device=counted.device)
    return Batch(batch.input_ids, batch.attention_mask, counted)
