"""Name -> a way to compute the meta-gradient of a problem: ours in its modes, and the peers.

A route that cannot run here raises `Unavailable` with the reason, which the table shows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from metagrad_problem import Gradients, MetaGradient, Problem, Unavailable

from mass.inner import SGD, adapt, traced

Budget = float | None
"""Bytes: the peak of live tensors in the plain unroll at the same setting, where it was measured."""
BASELINE = "unroll"
"""The route that the ratios are of."""


@dataclass(frozen=True)
class Route:
    name: str
    prepare: Callable[[Problem, Budget], MetaGradient]
    graphs: float = 0.0
    """Where its memory grows with K: how many times the plain unroll's, about. Decides what fits the machine."""
    work: float = 1.0
    """Rough time of it in plain unrolls; for the estimate of the time left only."""
    torch: bool = True
    """Whether its tensors are torch's, so that their bytes can be counted."""
    compiled: bool = False
    """Whether it runs code of a compiler, whose operations cannot be counted."""
    prepared: bool = False
    """Whether `mass.lm` prepared the model: fused attention, SiLU and RMSNorm with closed second derivatives."""
    part: str = "peer"
    """"ours", "peer", or "unit": a pass that others are counted in."""


def _ours(
    name: str,
    work: float = 1.4,
    budget: float | None = None,
    prepared: bool = True,
    compiled: bool = False,
    **arguments: Any,
) -> Route:
    def prepare(problem: Problem, unroll_bytes: Budget) -> MetaGradient:
        given = dict(arguments)
        if budget is not None:
            if unroll_bytes is None:
                raise Unavailable("the plain unroll, whose memory is the budget, was not measured at this setting")
            given["memory_gb"] = budget * unroll_bytes / 1e9
        return ours(problem, given, compiled=compiled)

    graphs = 1.1 if budget == 1 else 0.0
    return Route(name, prepare, graphs=graphs, work=work, compiled=compiled, prepared=prepared, part="ours")


def ours(problem: Problem, arguments: Mapping[str, Any], *, compiled: bool = False) -> MetaGradient:
    """`mass.inner.adapt` with these arguments."""
    known = inspect.signature(adapt).parameters
    if missing := [name for name in arguments if name not in known]:
        raise Unavailable(f"mass.inner.adapt has no argument {missing[0]!r} in this version")
    setting = problem.setting
    losses = traced(problem.losses_of).of(problem.practice) if compiled else problem.losses

    def meta_gradient() -> Gradients:
        params, weights = problem.leaves()
        adapted = adapt(losses, params, weights, SGD(lr=setting.rate), setting.steps, **arguments)
        found = torch.autograd.grad(problem.outer(adapted), [weights, *params.values()])
        return dict(zip(["w", *params], found, strict=True))

    return meta_gradient


def _peer(module: str, **arguments: Any) -> Callable[[Problem, Budget], MetaGradient]:
    def prepare(problem: Problem, _: Budget) -> MetaGradient:
        return __import__(f"peers.{module}", fromlist=["prepare"]).prepare(problem, **arguments)

    return prepare


def _forward(problem: Problem, _: Budget) -> MetaGradient:
    def run() -> Gradients:
        with torch.no_grad():
            problem.losses(problem.params)
        return {}

    return run


def _gradient(problem: Problem, _: Budget) -> MetaGradient:
    def run() -> Gradients:
        params, weights = problem.leaves()
        torch.autograd.grad((weights.detach() * problem.losses(params)).sum(), list(params.values()))
        return {}

    return run


_ALL = (
    Route(BASELINE, _peer("plain"), graphs=1.0),
    Route("one forward", _forward, work=0.05, part="unit"),
    Route("one gradient", _gradient, work=0.1, part="unit"),
    _ours("mass"),
    _ours("mass, micro_batch 2", 1.6, micro_batch=2),
    _ours("mass, micro_batch 1", 1.7, micro_batch=1),
    _ours("mass, checkpoint", 2.0, checkpoint=True),
    _ours("mass, micro_batch 1, checkpoint", 2.2, micro_batch=1, checkpoint=True),
    _ours("mass, budget of the unroll", 1.0, budget=1.0),
    _ours("mass, budget of 1/40", 1.7, budget=1 / 40),
    _ours("mass, micro_batch 1, compiled", 0.9, compiled=True, micro_batch=1),
    _ours("mass, compiled", 0.8, compiled=True),
    _ours("mass, budget of the unroll, compiled", 0.7, budget=1.0, compiled=True),
    _ours("mass, plain model", 1.4, prepared=False),
    _ours("mass, micro_batch 1, plain model", 1.7, prepared=False, micro_batch=1),
    _ours("mass, finite_difference", 1.3, mode="finite_difference"),
    _ours("mass, truncated(1)", 0.5, mode="truncated(1)"),
    _ours("mass, first_order", 0.9, mode="first_order"),
    Route("unroll, model as mass prepares it", _peer("plain"), graphs=1.1, prepared=True),
    Route("unroll, steps checkpointed", _peer("plain", checkpointed=True), work=1.6),
    Route("torchopt MetaSGD", _peer("with_torchopt"), graphs=1.1),
    Route("higher", _peer("with_higher"), graphs=1.1),
    Route("betty, iterative", _peer("with_betty", way="unroll"), graphs=1.1),
    Route("betty, darts", _peer("with_betty", way="darts"), work=0.6),
    Route("jax unroll", _peer("with_jax", way="unroll"), graphs=1.8, torch=False),
    Route("jax unroll, steps checkpointed", _peer("with_jax", way="unroll checkpointed"), work=1.6, torch=False),
    Route("jax mixflow", _peer("with_jax", way="mixflow"), work=1.5, torch=False),
    Route("jax mixflow, layers checkpointed", _peer("with_jax", way="mixflow", remat=True), work=2.0, torch=False),
)
ROUTES: Mapping[str, Route] = {route.name: route for route in _ALL}
