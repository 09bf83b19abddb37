"""Build a small bilevel problem on a model with its adapter, and compute its derivatives.

Inner losses: two practice rows. Outer loss: one target row. Update: SGD of K = 2 steps with a rate for each tensor.

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
"""MOVE: the size of one step, relative to the adapter's norm."""


@dataclass(frozen=True)
class Point:
    """A point at which derivatives are taken, or a direction from there."""

    weights: Tensor
    start: Params
    rates: Tensor
    """[P] learning rates."""

    def parts(self) -> dict[str, Params]:
        """Return weights, start and rates, each as named tensors."""
        return {"weights": {"weights": self.weights}, "start": self.start, "rates": {"rates": self.rates}}

    def moved(self, part: str, direction: Params, by: float) -> Point:
        """Return the point with one part moved by `by` times `direction`."""
        values = {name: p + by * direction[name] for name, p in self.parts()[part].items()}
        if part == "start":
            return Point(self.weights, values, self.rates)
        changed = {"weights": self.weights, "rates": self.rates, **values}
        return Point(changed["weights"], self.start, changed["rates"])


@dataclass(frozen=True)
class BilevelProblem:
    """Two practice examples and a target for one model."""

    lm: LM
    practice: Batch
    target: Batch

    def losses(self, params: Params, index: Tensor | None = None) -> Tensor:
        """Return the practice losses, one for each row in `index` (None: all)."""
        return self.lm.losses(self.practice.select(index), params)

    def practice_loss(self, params: Params, index: Tensor | None = None) -> Tensor:
        """Return the sum of the practice losses."""
        return self.losses(params, index).sum()

    def adapted_loss(self, at: Point) -> Tensor:
        """Return the outer loss after adaptation."""
        optimizer = SGD(lr=dict(zip(at.start, at.rates.unbind(), strict=True)))
        adapted = adapt(self.losses, at.start, at.weights, optimizer, STEPS)
        return self.lm.losses(self.target, adapted).sum()

    def meta_gradients(self, at: Point) -> Point:
        """Return the gradient of the outer loss with respect to weights, start and rates."""
        weights, rates = (t.detach().clone().requires_grad_() for t in (at.weights, at.rates))
        start = leaves(at.start)
        loss = self.adapted_loss(Point(weights, start, rates))
        first, second, *others = torch.autograd.grad(loss, [weights, rates, *start.values()])
        return Point(first, dict(zip(start, others, strict=True)), second)

    def saved_bytes(self, start: Params, checkpoint: bool) -> int:
        """Return the bytes that the graph of one example's pass holds, with or without checkpointed layers."""

        with LiveMemory(torch.device("cpu")) as live, layerwise.checkpointing(checkpoint):
            loss = self.losses(leaves(start), torch.tensor([0])).sum()
            held = live.held
        del loss
        return held


def make_problem(lm: LM, rows: Sequence[tuple[Sequence[int], int]]) -> BilevelProblem:
    """Build the problem from rows of (token ids, how many of them come before those that count). The last row is the
    target."""
    *practice, target = rows
    return BilevelProblem(lm, _batch(practice), _batch([target]))


def _batch(rows: Sequence[tuple[Sequence[int], int]]) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    padded = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in rows])
    place = torch.arange(length)
    mask = torch.stack([place < len(ids) for ids, _ in rows])
    counted = torch.stack([place >= context for _, context in rows]) & mask
    return Batch(padded, mask.long(), counted)


def make_point(problem: BilevelProblem, seed: int) -> tuple[Point, Params]:
    """Return a random point, and the gradient of the practice loss there.

    B is away from zero, since at LoRA's usual start (B = 0) the gradient of A vanishes. The rates let one step move the
    adapter by a few percent.
    """
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
