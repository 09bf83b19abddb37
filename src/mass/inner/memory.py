"""A memory budget -> how the passes are cut: micro-batches, layer checkpointing, graphs kept from forward to backward.

The bytes are measured, not estimated from a model: one example's passes are run at the start. On a CPU they depend on
shapes alone, so the same inputs give the same schedule, and results that repeat bit for bit.

Legend: K steps, m examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mass.errors import ConfigError
from mass.inner.arguments import Mode
from mass.inner.live import LimitReached, LiveMemory
from mass.inner.objective import Objective, leaves
from mass.optimizers import Optimizer, wide
from mass.types import Params

Chunks = tuple[Tensor | None, ...]
"""Micro-batches: indices of examples, or one None for all."""

GIGABYTE = 1e9
ADAPTER_COPIES = 6
"""Adapted parameters, their cotangent, u, and the sums of a pass, in adapters."""
PASS_OVERHEAD = 0.3
"""A pass over n examples takes the time of n + 0.3; measured on a CPU (benchmarks/metagrad.py, micro-batches)."""
KEPT_LEAST = 0.1
"""Share of all graphs below which none is kept: they would be alive beside the outer loss's graph for little."""
KEPT_SAVES = 1 / 3
"""Share of a step's time that a kept graph saves: 2 of 6 forwards' worth of arithmetic (docs/engine.md)."""


@dataclass(frozen=True)
class Request:
    """What the caller asks for."""

    micro_batch: int | None
    memory_gb: float | None
    checkpoint: bool
    may_checkpoint: bool
    """Whether layer checkpointing may be switched on where the budget needs it."""
    differentiable: bool


@dataclass(frozen=True)
class Schedule:
    """How the passes are cut. Results are the same but for rounding."""

    gradient_chunks: Chunks
    """Of first-order passes."""
    chunks: Chunks
    """Of second-order passes."""
    checkpoint_gradient: bool = False
    checkpoint: bool = False
    """Layer checkpointing in first-order and in second-order passes."""
    kept: int = 0
    """Graphs that the forward keeps: those of the last `kept` pairs of step and micro-batch."""


def choose(
    objective: Objective, params: Params, weights_Km: Tensor, optimizer: Optimizer, mode: Mode, request: Request
) -> Schedule:
    """Raises ConfigError when the budget does not hold a single example."""
    steps, count = weights_Km.shape
    device = weights_Km.device
    request = replace(request, micro_batch=request.micro_batch and min(request.micro_batch, count))
    if request.memory_gb is None or steps == 0:
        chunks = _chunks(count, request.micro_batch, device)
        return Schedule(chunks, chunks, request.checkpoint, request.checkpoint)
    second_order = request.differentiable and mode.hessian != "difference" and mode.last != 0
    graphs = steps if mode.last is None else min(mode.last, steps)
    tape = graphs * _step_bytes(params, optimizer) if request.differentiable else 0.0
    free = request.memory_gb * GIGABYTE - tape - ADAPTER_COPIES * _bytes(params)
    probe, budget = _Probe(objective, params, weights_Km[0], free, graphs + 1), _Budget(request.memory_gb, free)

    chunks, kept, checkpoint = None, 0, False
    if second_order:
        size, checkpoint = budget.fit(probe.second_order, request)
        sizes = [request.micro_batch] if request.micro_batch else range(1, min(size, count) + 1)
        cost = probe.second_order(checkpoint)
        size, kept = _cheapest(sizes, count, 0 if checkpoint else graphs, free, cost)
        chunks = _chunks(count, request.micro_batch or size, device)
        if kept == graphs * len(chunks):
            return Schedule(chunks, chunks, checkpoint, checkpoint, kept)
    plain, checkpoint_gradient = budget.fit(probe.first_order, request)
    gradient_chunks = _chunks(count, request.micro_batch or plain, device)
    return Schedule(gradient_chunks, chunks or gradient_chunks, checkpoint_gradient, checkpoint, kept)


def _cheapest(sizes: Iterable[int], count: int, steps: int, free: float, one: Cost) -> tuple[int, int]:
    """Size of a micro-batch, and how many graphs of such to keep, that take the least time.

    Graphs are kept in the last micro-batches of the last of `steps` steps and used up first, so kept graphs and one
    that is computed again are never alive together: the same room serves both.
    """

    def kept(size: int) -> int:
        room, every = free - min(size, count) * (one.peak - one.held), steps * -(-count // size)
        found = min(every, int(room / (min(size, count) * one.held)))
        return found if found >= KEPT_LEAST * every else 0

    def time(size: int) -> float:
        parts = -(-count // size)
        share = kept(size) / (steps * parts) if steps else 0.0
        return (1 + PASS_OVERHEAD / min(size, count)) * (1 - KEPT_SAVES * share)

    best = min(sizes, key=time)
    return best, kept(best)


class Cost(NamedTuple):
    """Bytes of one example's pass."""

    held: float
    """By the graph of its gradient."""
    peak: float
    """At most, while that is differentiated."""


@dataclass(frozen=True)
class _Budget:
    memory_gb: float
    free: float
    """Bytes left for graphs."""

    def fit(self, cost: Callable[..., Cost], request: Request) -> tuple[int, bool]:
        """How many examples fit, and whether with layer checkpointing: only where too few fit without."""
        least = request.micro_batch or 1
        for checkpoint in [request.checkpoint] if not request.may_checkpoint else [False, True]:
            if (size := int(max(self.free, 0) / cost(checkpoint).peak)) >= least:
                return size, checkpoint
        sparing = cost(request.checkpoint or request.may_checkpoint, limited=False).peak
        needed = math.ceil(1e5 * (self.memory_gb + (least * sparing - self.free) / GIGABYTE)) / 1e5
        rows = "one example" if least == 1 else f"micro_batch = {least}"
        raise ConfigError(
            f"memory_gb = {self.memory_gb:g}, but {rows} and the tape need {needed:g}; "
            f"give at least that, or {'shorten the examples' if least == 1 else 'a smaller micro_batch'}"
        )


class _Probe:
    """Costs of one example's passes, each measured once: of the last example.

    A pass that goes beyond the limit is broken off; it costs infinitely much. Where `plenty` times all examples' graphs
    fit, a second-order pass is measured up to its graph alone, and counted as twice as much at its peak.
    """

    def __init__(self, objective: Objective, params: Params, weights_m: Tensor, limit: float, plenty: int) -> None:
        self._objective, self._params, self._weights_m = objective, leaves(params), weights_m
        self._limit, self._roomy = max(limit, 0.0), limit / (plenty * len(weights_m))
        self._known: dict[tuple[bool, bool, bool], Cost] = {}

    def first_order(self, checkpoint: bool, *, limited: bool = True) -> Cost:
        return self._cost(False, checkpoint, limited)

    def second_order(self, checkpoint: bool, *, limited: bool = True) -> Cost:
        return self._cost(True, checkpoint, limited)

    def _cost(self, second_order: bool, checkpoint: bool, limited: bool) -> Cost:
        key = second_order, checkpoint, limited
        if key not in self._known:
            try:
                self._known[key] = self._measure(second_order, checkpoint, self._limit if limited else math.inf)
            except LimitReached:
                self._known[key] = Cost(math.inf, math.inf)
        return self._known[key]

    def _measure(self, second_order: bool, checkpoint: bool, limit: float) -> Cost:
        index = torch.tensor([len(self._weights_m) - 1], device=self._weights_m.device)
        params, weights = list(self._params.values()), self._weights_m.detach().requires_grad_(second_order)
        with LiveMemory(params[0].device, limit) as live:
            found, _ = self._objective.gradient(
                self._params, weights, index, checkpoint=checkpoint, create_graph=second_order
            )
            held, outputs = live.held, [g for g in found.values() if g.requires_grad]
            del found
            if outputs and (checkpoint or held > self._roomy):
                torch.autograd.grad(outputs, [*params, weights], outputs, allow_unused=True)
            peak = live.peak if not outputs or checkpoint or held > self._roomy else max(live.peak, 2 * held)
        return Cost(max(held, 1.0), max(peak, 1.0))


def _step_bytes(params: Params, optimizer: Optimizer) -> float:
    """Of one step on the tape."""
    state = optimizer.init({name: p.detach() for name, p in params.items()})
    grads = {name: torch.empty_like(p, dtype=wide(p), device="meta") for name, p in params.items()}
    return _bytes(params) + _bytes(grads) + _bytes(state)


def _bytes(params: Params) -> float:
    return float(sum(p.numel() * p.element_size() for p in params.values()))


def _chunks(count: int, size: int | None, device: torch.device) -> Chunks:
    """Micro-batches of at most `size` examples, as equal as can be."""
    if size is None or size >= count:
        return (None,)
    parts = -(-count // size)
    return torch.tensor_split(torch.arange(count, device=device), parts)
