"""A model with its adapter -> a small bilevel problem on it, and the derivatives of that problem.

Inner losses: two practice rows; outer loss: one target row; SGD of K = 2 steps with a rate for each tensor.

Legend: P tensors of the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mass.lm import LM
from mass.metagrad import SGD, adapt, layerwise
from mass.metagrad.check import gradient, norm
from mass.metagrad.live import LiveMemory
from mass.metagrad.objective import leaves
from mass.types import Batch, Params

STEPS, MOVE, SCALE_OF_B = 2, 0.03, 0.05
"""MOVE: how far one step goes, relative to the adapter's norm."""


@dataclass(frozen=True)
class Point:
    """Where derivatives are taken, or a direction from there."""

    weights: Tensor
    start: Params
    rates: Tensor
    """[P]"""

    def parts(self) -> dict[str, Params]:
        return {"weights": {"weights": self.weights}, "start": self.start, "rates": {"rates": self.rates}}

    def moved(self, part: str, direction: Params, by: float) -> Point:
        values = {name: p + by * direction[name] for name, p in self.parts()[part].items()}
        if part == "start":
            return Point(self.weights, values, self.rates)
        changed = {"weights": self.weights, "rates": self.rates, **values}
        return Point(changed["weights"], self.start, changed["rates"])


@dataclass(frozen=True)
class Problem:
    lm: LM
    practice: Batch
    target: Batch

    def losses(self, params: Params, index: Tensor | None = None) -> Tensor:
        return self.lm.losses(self.practice.select(index), params)

    def practice_loss(self, params: Params, index: Tensor | None = None) -> Tensor:
        """Their sum."""
        return self.losses(params, index).sum()

    def adapted_loss(self, at: Point) -> Tensor:
        """The outer loss after adaptation."""
        optimizer = SGD(lr=dict(zip(at.start, at.rates.unbind(), strict=True)))
        adapted = adapt(self.losses, at.start, at.weights, optimizer, STEPS)
        return self.lm.losses(self.target, adapted).sum()

    def meta_gradients(self, at: Point) -> Point:
        weights, rates = (t.detach().clone().requires_grad_() for t in (at.weights, at.rates))
        start = leaves(at.start)
        loss = self.adapted_loss(Point(weights, start, rates))
        first, second, *others = torch.autograd.grad(loss, [weights, rates, *start.values()])
        return Point(first, dict(zip(start, others, strict=True)), second)

    def saved_bytes(self, start: Params, checkpoint: bool) -> int:
        """What the graph of one example's pass holds, with layers checkpointed or not."""

        with LiveMemory(torch.device("cpu")) as live, layerwise.checkpointing(checkpoint):
            loss = self.losses(leaves(start), torch.tensor([0])).sum()
            held = live.held
        del loss
        return held


def make_problem(lm: LM, rows: Sequence[tuple[Sequence[int], int]]) -> Problem:
    """`rows`: tokens, and how many of them come before those that count. The last is the target."""
    *practice, target = rows
    return Problem(lm, _batch(practice), _batch([target]))


def _batch(rows: Sequence[tuple[Sequence[int], int]]) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    padded = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in rows])
    place = torch.arange(length)
    mask = torch.stack([place < len(ids) for ids, _ in rows])
    counted = torch.stack([place >= context for _, context in rows]) & mask
    return Batch(padded, mask.long(), counted)


def make_point(problem: Problem, seed: int) -> tuple[Point, Params]:
    """Random, with B away from zero, and rates with which a step moves the adapter by a few percent; and the gradient
    of the practice loss there."""
    generator = torch.Generator().manual_seed(seed)
    fresh = problem.lm.adapters.init(seed, torch.float64, rank=4)
    start = {
        name: SCALE_OF_B * torch.randn(p.shape, generator=generator, dtype=torch.float64) if name.endswith("B") else p
        for name, p in fresh.items()
    }
    grads = gradient(problem.practice_loss, start)
    rate = MOVE * float(norm(start) / norm(grads))
    spread = 0.5 + torch.rand(len(start), generator=generator, dtype=torch.float64)
    return Point(torch.tensor([0.4, 0.6], dtype=torch.float64), start, rate * spread), grads
