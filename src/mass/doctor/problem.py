"""A model with its adapter -> a small bilevel problem on it, and the derivatives of that problem.

Inner losses: two practice rows; outer loss: one target row; SGD of K = 2 steps with a rate for each tensor.

Legend: P tensors of the adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mass import layerwise
from mass.inner import SGD, adapt
from mass.lm import LM
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
        return self.lm.losses(self.practice if index is None else self.practice.select(index), params)

    def practice_loss(self, params: Params) -> Tensor:
        """Their sum."""
        return self.losses(params).sum()

    def adapted_loss(self, at: Point, micro_batch: int | None = None, checkpoint: bool = False) -> Tensor:
        """The outer loss after adaptation."""
        optimizer = SGD(lr=dict(zip(at.start, at.rates.unbind(), strict=True)))
        adapted = adapt(self.losses, at.start, at.weights, optimizer, STEPS, micro_batch, checkpoint=checkpoint)
        return self.lm.losses(self.target, adapted).sum()

    def meta_gradients(self, at: Point, micro_batch: int | None = None, checkpoint: bool = False) -> Point:
        weights, rates = (t.detach().clone().requires_grad_() for t in (at.weights, at.rates))
        start = leaves(at.start)
        loss = self.adapted_loss(Point(weights, start, rates), micro_batch, checkpoint)
        first, second, *others = torch.autograd.grad(loss, [weights, rates, *start.values()])
        return Point(first, dict(zip(start, others, strict=True)), second)

    def saved_bytes(self, start: Params, checkpoint: bool) -> int:
        """What the graph of one pass holds, with layers checkpointed or not."""
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in self.lm.model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved), layerwise.checkpointing(checkpoint):
            loss = self.practice_loss(leaves(start))
        del loss
        return sum(size for place, size in sizes.items() if place not in weights)


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


def make_point(problem: Problem, seed: int) -> Point:
    """Random, with B away from zero, and rates with which a step moves the adapter by a few percent."""
    generator = torch.Generator().manual_seed(seed)
    fresh = problem.lm.adapters.init(seed, torch.float64, rank=4)
    start = {
        name: SCALE_OF_B * torch.randn(p.shape, generator=generator, dtype=torch.float64) if name.endswith("B") else p
        for name, p in fresh.items()
    }
    grads = gradient(problem.practice_loss, start)
    rate = MOVE * float(norm(start) / norm(grads))
    spread = 0.5 + torch.rand(len(start), generator=generator, dtype=torch.float64)
    return Point(torch.tensor([0.4, 0.6], dtype=torch.float64), start, rate * spread)


def random_direction(like: Params, seed: int) -> Params:
    """As long as `like`, spread over each tensor in proportion to its size."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype) * p.norm() / p.numel() ** 0.5
        for name, p in like.items()
    }


def gradient(function: Callable[[Params], Tensor], at: Params) -> Params:
    params = leaves(at)
    grads = torch.autograd.grad(function(params), list(params.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(params, grads, strict=True))


def hessian_product(function: Callable[[Params], Tensor], at: Params, u: Params) -> Params:
    """H u by a double backward, as the engine takes it."""
    params = leaves(at)
    grads = torch.autograd.grad(function(params), list(params.values()), create_graph=True)
    along = torch.stack([(g * u[name]).sum() for name, g in zip(params, grads, strict=True)]).sum()
    products = torch.autograd.grad(along, list(params.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(params, products, strict=True))


def leaves(params: Params) -> Params:
    return {name: p.detach().requires_grad_() for name, p in params.items()}


def dot(a: Params, b: Params) -> Tensor:
    return functools.reduce(torch.add, [(a[name] * b[name]).sum() for name in a])


def norm(params: Params) -> Tensor:
    return dot(params, params).sqrt()


def relative_error(got: Params, expected: Params) -> float:
    difference = {name: got[name].double() - value.double() for name, value in expected.items()}
    return float(norm(difference) / norm({name: value.double() for name, value in expected.items()}))
