"""Plan the passes for a memory budget: micro-batches, layer checkpointing, and graphs kept from forward to backward.

The bytes are measured (`mass.metagrad.probe`), not estimated from a model. On a CPU they depend on shapes alone, so the
same inputs give the same schedule, and results that repeat bit for bit.

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
from mass.metagrad.arguments import Mode
from mass.metagrad.objective import Objective
from mass.metagrad.optimizers import wide
from mass.metagrad.probe import PassBytes, Probe
from mass.metagrad.update import Update, update_bytes
from mass.types import Params

Chunks = tuple[Tensor | None, ...]
"""Micro-batches: indices of examples, or one None for all."""

GIGABYTE = 1e9
FORWARD, DURING_PASS, DURING_DIFFERENCES, DURING_UPDATE = 2, 6, 8, 3
"""Copies of the parameters that are alive in addition to the tape and the state. Without a backward (FORWARD): θ and g.
With one: the adapted parameters and, twice, their cotangents; during passes also u and the sums."""
PASS_OVERHEAD = 0.3
"""Fixed cost of a pass, in examples: a pass of n examples takes a time proportional to n + 0.3. Measured on a CPU
(benchmarks/metagrad.py, micro-batches)."""
KEPT_LEAST = 0.1
"""Share of all graphs below which none is kept: fewer save little time, and they stay alive together with the graph of
the outer loss."""
LEAST_GB = 1e-9
"""Budget where nothing can be spared; 0 would mean that there is no limit."""
ROUNDING = 1e-9
"""Rounding error allowed in a number of examples that fits exactly."""
KEPT_SAVES = 1 / 3
"""Share of a step's time that a kept graph saves: 2 of 6 forwards' worth of arithmetic (docs/engine.md)."""


@dataclass(frozen=True)
class PlanRequest:
    """The caller's wishes, from the arguments of `mass.metagrad.inner_loop.adapt`."""

    micro_batch: int | None
    memory_gb: float | None
    checkpoint: bool
    may_checkpoint: bool
    """True if layer checkpointing may be switched on where the budget needs it."""
    differentiable: bool
    """True if a backward follows."""
    spare_gb: float | None = None
    """Memory that may be held without `memory_gb`; it changes nothing where it is enough."""

    @property
    def limited(self) -> PlanRequest:
        """A copy of the request with `spare_gb` as its budget, and free to choose another micro-batch."""
        return replace(self, memory_gb=max(self.spare_gb or 0.0, LEAST_GB), micro_batch=None)


@dataclass(frozen=True)
class Schedule:
    """A division of the passes. All schedules give the same results, except for rounding."""

    gradient_chunks: Chunks
    """Micro-batches of first-order passes."""
    chunks: Chunks
    """Micro-batches of second-order passes."""
    checkpoint_gradient: bool = False
    """True for layer checkpointing in first-order passes."""
    checkpoint: bool = False
    """True for layer checkpointing in second-order passes."""
    kept: int = 0
    """Number of graphs that the forward keeps: those of the last `kept` pairs of step and micro-batch."""


def choose(
    objective: Objective, params: Params, weights_Km: Tensor, update: Update, mode: Mode, request: PlanRequest
) -> Schedule:
    """Choose the schedule of an adaptation. Raises ConfigError when the budget does not hold a single example."""
    graphs = _graphs(mode, len(weights_Km))
    sparing = request.memory_gb is None and request.spare_gb is not None and request.spare_gb < math.inf
    limited = request.limited if sparing else request
    room = _room(params, update, mode, limited, graphs)
    probe = Probe(objective, params, weights_Km[0], room.passes, graphs + 1) if len(weights_Km) else None
    if sparing and probe is not None:
        # `spare_gb` is a safeguard: where the passes fit as they are, nothing changes, results included.
        unlimited = _chosen(None, room, weights_Km, mode, request)
        if _holds(probe, room, unlimited, weights_Km.shape[1], second_order=_second_order(mode, request)):
            return unlimited
    return _chosen(probe, room, weights_Km, mode, limited)


def _holds(probe: Probe, room: FreeBytes, schedule: Schedule, count: int, *, second_order: bool) -> bool:
    """Return True where a schedule that keeps no graph fits the budget."""
    cost = (probe.second_order if second_order else probe.first_order)(schedule.checkpoint)
    return cost.peak(_largest(schedule.chunks, count)) <= room.passes and room.updates >= 0


class Expected(NamedTuple):
    """The memory that an adaptation and its backward would hold."""

    schedule: Schedule
    peak: float
    """The most bytes at one time."""
    between: float
    """Bytes that the forward leaves for the backward: the tape and the graphs that are kept."""


def forecast(
    objective: Objective, params: Params, weights_Km: Tensor, update: Update, mode: Mode, request: PlanRequest
) -> Expected:
    """Predict the choice of `choose` on another device, and the memory it holds there, from tensors on the meta device.

    Passes are measured to their end whatever the budget is. Raises ConfigError as `choose` does.
    """
    if len(weights_Km) == 0:
        return Expected(_chosen(None, FreeBytes(math.inf, math.inf), weights_Km, mode, request), 0.0, 0.0)
    graphs = _graphs(mode, len(weights_Km))
    room = _room(params, update, mode, request, graphs)
    probe = Probe(objective, params, weights_Km[0], math.inf, graphs + 1, in_full=True)
    schedule = _chosen(probe, room, weights_Km, mode, request)
    # Whatever a budget of one gigabyte does not leave for passes is what the tape and the recursion themselves hold.
    whole = _room(params, update, mode, replace(request, memory_gb=1.0), graphs)
    first = probe.first_order(schedule.checkpoint_gradient).peak(
        _largest(schedule.gradient_chunks, weights_Km.shape[1])
    )
    tape = _tape(params, update, graphs) if request.differentiable else 0.0
    passes, updates = GIGABYTE - whole.passes, GIGABYTE - whole.updates
    if not _second_order(mode, request):
        return Expected(schedule, max(passes + first, updates), tape)
    size, cost = _largest(schedule.chunks, weights_Km.shape[1]), probe.second_order(schedule.checkpoint)
    kept = schedule.kept * cost.held(size)
    within = max(first, cost.peak(size), cost.peak(size) - cost.held(size) + kept)
    return Expected(schedule, max(passes + within, updates + kept), tape + kept)


def _graphs(mode: Mode, steps: int) -> int:
    """Return the number of steps that the backward goes through."""
    return steps if mode.last is None else min(mode.last, steps)


def _second_order(mode: Mode, request: PlanRequest) -> bool:
    return request.differentiable and mode.hessian != "difference" and mode.last != 0


def _chosen(probe: Probe | None, room: FreeBytes, weights_Km: Tensor, mode: Mode, request: PlanRequest) -> Schedule:
    steps, count = weights_Km.shape
    device, graphs = weights_Km.device, _graphs(mode, steps)
    request = replace(request, micro_batch=request.micro_batch and min(request.micro_batch, count))
    if request.memory_gb is None or probe is None:
        chunks = _chunks(count, request.micro_batch, device)
        return Schedule(chunks, chunks, request.checkpoint, request.checkpoint)
    budget = _Budget(request, room, count)

    chunks, kept, checkpoint = None, 0, False
    if _second_order(mode, request):
        size, checkpoint = budget.fit(probe.second_order)
        sizes = [request.micro_batch] if request.micro_batch else range(1, size + 1)
        cost = probe.second_order(checkpoint)
        # Kept graphs stay alive until the backward, and memory that is merely spare is for other stages too. With
        # layer checkpointing there is no whole graph to keep.
        keepable = 0 if checkpoint or request.spare_gb is not None else graphs
        size, kept = _cheapest(sizes, count, keepable, room, cost)
        chunks = _chunks(count, request.micro_batch or size, device)
        if kept == graphs * len(chunks):  # no gradient is computed without its graph: first-order passes are unused
            return Schedule(chunks, chunks, checkpoint, checkpoint, kept)
    plain, checkpoint_gradient = budget.fit(probe.first_order)
    gradient_chunks = _chunks(count, request.micro_batch or plain, device)
    return Schedule(gradient_chunks, chunks or gradient_chunks, checkpoint_gradient, checkpoint, kept)


def _largest(chunks: Chunks, count: int) -> int:
    """Return the number of examples of the largest micro-batch."""
    return max(count if index is None else len(index) for index in chunks)


def _cheapest(sizes: Iterable[int], count: int, steps: int, room: FreeBytes, cost: PassBytes) -> tuple[int, int]:
    """Return the size of a micro-batch, and the number of such graphs to keep, that take the least time.

    Graphs are kept in the last micro-batches of the last of `steps` steps and used first, so kept graphs and one that
    is recomputed are never alive together: the same memory serves both.
    """

    def kept(size: int) -> int:
        n, every = min(size, count), steps * -(-count // size)
        # Differentiating a graph takes `peak - held` beyond the graph itself; an update takes memory of its own. Kept
        # graphs must fit together with either.
        left = min(room.passes - (cost.peak(n) - cost.held(n)), room.updates)
        found = min(every, int(left / cost.held(n)))
        return found if found >= KEPT_LEAST * every else 0

    def time(size: int) -> float:
        parts = -(-count // size)
        share = kept(size) / (steps * parts) if steps else 0.0
        return (1 + PASS_OVERHEAD / min(size, count)) * (1 - KEPT_SAVES * share)

    best = min(sizes, key=time)
    return best, kept(best)


class FreeBytes(NamedTuple):
    """Bytes that a budget leaves for the graphs of examples."""

    passes: float
    """Bytes left while a pass runs."""
    updates: float
    """Bytes left while an update is computed or differentiated: for graphs that are kept."""


def _tape(params: Params, update: Update, graphs: int) -> float:
    """Return the bytes of `graphs` steps on the tape: start, gradient and optimiser state of each."""
    state = _bytes(update.optimizer.init({name: p.detach() for name, p in params.items()}))
    gradient = _bytes({name: torch.empty_like(p, dtype=wide(p), device="meta") for name, p in params.items()})
    return graphs * (_bytes(params) + gradient + state)


def _room(params: Params, update: Update, mode: Mode, request: PlanRequest, graphs: int) -> FreeBytes:
    """Return what the tape of `graphs` steps and the recursion's own tensors leave of the budget."""
    budget = (request.memory_gb or math.inf) * GIGABYTE
    state = _bytes(update.optimizer.init({name: p.detach() for name, p in params.items()}))
    adapter = _bytes({name: torch.empty_like(p, dtype=wide(p), device="meta") for name, p in params.items()})
    updated = update_bytes(update, params, differentiated=request.differentiable)
    if not request.differentiable:
        free = budget - FORWARD * adapter - state
        return FreeBytes(free, free - updated)
    free = budget - _tape(params, update, graphs) - state
    copies = DURING_DIFFERENCES if mode.hessian == "difference" else DURING_PASS
    return FreeBytes(free - copies * adapter, free - DURING_UPDATE * adapter - updated)


@dataclass(frozen=True)
class _Budget:
    """A request with the bytes that it leaves for passes of `count` examples."""

    request: PlanRequest
    room: FreeBytes
    count: int

    def fit(self, cost: Callable[..., PassBytes]) -> tuple[int, bool]:
        """Return how many examples fit, and whether that needs layer checkpointing.

        Checkpointing recomputes every layer, so it is used only where too few examples fit without it.
        """
        request, least = self.request, self.request.micro_batch or 1
        for checkpoint in [request.checkpoint] if not request.may_checkpoint else [False, True]:
            size = cost(checkpoint).largest(self.room.passes) + ROUNDING
            if size >= least and self.room.updates >= 0:
                return int(min(size, self.count)), checkpoint
        # Measured once more without the limit, so that the error can say how much memory would be enough.
        sparing = cost(request.checkpoint or request.may_checkpoint, limited=False).peak(least)
        raise self._too_small(least, max(sparing - self.room.passes, -self.room.updates))

    def _too_small(self, least: int, missing: float) -> ConfigError:
        given = self.request.memory_gb or 0.0
        needed = math.ceil(1e5 * (given + missing / GIGABYTE)) / 1e5
        rows = "one example" if least == 1 else f"micro_batch = {least}"
        if self.request.spare_gb is not None:
            return ConfigError(
                f"{given:.3g} GB of memory can be spared for the inner loop, but {rows} and the tape need {needed:g}; "
                "free some, shorten the examples, or use a smaller model or fewer problems side by side"
            )
        return ConfigError(
            f"memory_gb = {given:g}, but {rows} and the tape need {needed:g}; "
            f"give at least that, or {'shorten the examples' if least == 1 else 'a smaller micro_batch'}"
        )


def _bytes(params: Params) -> float:
    return float(sum(p.numel() * p.element_size() for p in params.values()))


def _chunks(count: int, size: int | None, device: torch.device) -> Chunks:
    """Cut `count` examples into micro-batches of at most `size`, as equal as possible."""
    if size is None or size >= count:
        return (None,)
    parts = -(-count // size)
    return torch.tensor_split(torch.arange(count, device=device), parts)
