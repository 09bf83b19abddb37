"""A memory budget -> how the passes are cut: micro-batches, layer checkpointing, graphs kept from forward to backward.

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
from mass.metagrad.probe import Cost, Probe
from mass.metagrad.update import Update, update_bytes
from mass.types import Params

Chunks = tuple[Tensor | None, ...]
"""Micro-batches: indices of examples, or one None for all."""

GIGABYTE = 1e9
FORWARD, DURING_PASS, DURING_DIFFERENCES, DURING_UPDATE = 2, 6, 8, 3
"""Copies of the parameters beside the tape and the state: without a backward θ and g; with one the adapted parameters,
their cotangents twice, in passes u and the sums too."""
PASS_OVERHEAD = 0.3
"""A pass over n examples takes the time of n + 0.3; measured on a CPU (benchmarks/metagrad.py, micro-batches)."""
KEPT_LEAST = 0.1
"""Share of all graphs below which none is kept: they would be alive beside the outer loss's graph for little."""
LEAST_GB = 1e-9
"""Where nothing can be spared: a budget is never 0, which would be none."""
ROUNDING = 1e-9
"""Of a number of examples that fits exactly."""
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
    spare_gb: float | None = None
    """Without `memory_gb`: what may be held, which changes nothing where it is enough."""

    @property
    def limited(self) -> Request:
        """The same within what may be held, a micro-batch no more than a wish."""
        return replace(self, memory_gb=max(self.spare_gb or 0.0, LEAST_GB), micro_batch=None)


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
    objective: Objective, params: Params, weights_Km: Tensor, update: Update, mode: Mode, request: Request
) -> Schedule:
    """Raises ConfigError when the budget does not hold a single example."""
    graphs = _graphs(mode, len(weights_Km))
    sparing = request.memory_gb is None and request.spare_gb is not None and request.spare_gb < math.inf
    limited = request.limited if sparing else request
    room = _room(params, update, mode, limited, graphs)
    probe = Probe(objective, params, weights_Km[0], room.passes, graphs + 1) if len(weights_Km) else None
    if sparing and probe is not None:
        unlimited = _chosen(None, room, weights_Km, mode, request)
        if _holds(probe, room, unlimited, weights_Km.shape[1], second_order=_second_order(mode, request)):
            return unlimited
    return _chosen(probe, room, weights_Km, mode, limited)


def _holds(probe: Probe, room: Room, schedule: Schedule, count: int, *, second_order: bool) -> bool:
    """Whether there is room for a schedule that keeps no graph."""
    cost = (probe.second_order if second_order else probe.first_order)(schedule.checkpoint)
    return cost.peak(_largest(schedule.chunks, count)) <= room.passes and room.updates >= 0


class Expected(NamedTuple):
    """What an adaptation and its backward would hold."""

    schedule: Schedule
    peak: float
    """Bytes, at most at one time."""
    between: float
    """Bytes that the forward leaves for the backward: the tape and the graphs that are kept."""


def forecast(
    objective: Objective, params: Params, weights_Km: Tensor, update: Update, mode: Mode, request: Request
) -> Expected:
    """What `choose` would choose on another device, and what that holds there: for tensors on the meta device, with
    passes measured to their end whatever the budget.

    Raises ConfigError as `choose` does.
    """
    if len(weights_Km) == 0:
        return Expected(_chosen(None, Room(math.inf, math.inf), weights_Km, mode, request), 0.0, 0.0)
    graphs = _graphs(mode, len(weights_Km))
    room = _room(params, update, mode, request, graphs)
    probe = Probe(objective, params, weights_Km[0], math.inf, graphs + 1, in_full=True)
    schedule = _chosen(probe, room, weights_Km, mode, request)
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
    """Steps that the backward goes through."""
    return steps if mode.last is None else min(mode.last, steps)


def _second_order(mode: Mode, request: Request) -> bool:
    return request.differentiable and mode.hessian != "difference" and mode.last != 0


def _chosen(probe: Probe | None, room: Room, weights_Km: Tensor, mode: Mode, request: Request) -> Schedule:
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
        keepable = 0 if checkpoint or request.spare_gb is not None else graphs  # what is spared is for others too
        size, kept = _cheapest(sizes, count, keepable, room, cost)
        chunks = _chunks(count, request.micro_batch or size, device)
        if kept == graphs * len(chunks):
            return Schedule(chunks, chunks, checkpoint, checkpoint, kept)
    plain, checkpoint_gradient = budget.fit(probe.first_order)
    gradient_chunks = _chunks(count, request.micro_batch or plain, device)
    return Schedule(gradient_chunks, chunks or gradient_chunks, checkpoint_gradient, checkpoint, kept)


def _largest(chunks: Chunks, count: int) -> int:
    """Examples of the largest micro-batch."""
    return max(count if index is None else len(index) for index in chunks)


def _cheapest(sizes: Iterable[int], count: int, steps: int, room: Room, cost: Cost) -> tuple[int, int]:
    """Size of a micro-batch, and how many graphs of such to keep, that take the least time.

    Graphs are kept in the last micro-batches of the last of `steps` steps and used up first, so kept graphs and one
    that is computed again are never alive together: the same room serves both.
    """

    def kept(size: int) -> int:
        n, every = min(size, count), steps * -(-count // size)
        left = min(room.passes - (cost.peak(n) - cost.held(n)), room.updates)
        found = min(every, int(left / cost.held(n)))
        return found if found >= KEPT_LEAST * every else 0

    def time(size: int) -> float:
        parts = -(-count // size)
        share = kept(size) / (steps * parts) if steps else 0.0
        return (1 + PASS_OVERHEAD / min(size, count)) * (1 - KEPT_SAVES * share)

    best = min(sizes, key=time)
    return best, kept(best)


class Room(NamedTuple):
    """Bytes that a budget leaves for the graphs of examples."""

    passes: float
    """While one of them is differentiated."""
    updates: float
    """While an update is: for graphs that are kept."""


def _tape(params: Params, update: Update, graphs: int) -> float:
    """Bytes of `graphs` steps on the tape: start, gradient and optimiser state of each."""
    state = _bytes(update.optimizer.init({name: p.detach() for name, p in params.items()}))
    gradient = _bytes({name: torch.empty_like(p, dtype=wide(p), device="meta") for name, p in params.items()})
    return graphs * (_bytes(params) + gradient + state)


def _room(params: Params, update: Update, mode: Mode, request: Request, graphs: int) -> Room:
    """What the tape of `graphs` steps and the recursion's own tensors leave of the budget."""
    budget = (request.memory_gb or math.inf) * GIGABYTE
    state = _bytes(update.optimizer.init({name: p.detach() for name, p in params.items()}))
    adapter = _bytes({name: torch.empty_like(p, dtype=wide(p), device="meta") for name, p in params.items()})
    updated = update_bytes(update, params, differentiated=request.differentiable)
    if not request.differentiable:
        free = budget - FORWARD * adapter - state
        return Room(free, free - updated)
    free = budget - _tape(params, update, graphs) - state
    copies = DURING_DIFFERENCES if mode.hessian == "difference" else DURING_PASS
    return Room(free - copies * adapter, free - DURING_UPDATE * adapter - updated)


@dataclass(frozen=True)
class _Budget:
    request: Request
    room: Room
    count: int
    """Examples there are."""

    def fit(self, cost: Callable[..., Cost]) -> tuple[int, bool]:
        """How many examples fit, and whether with layer checkpointing: only where too few fit without."""
        request, least = self.request, self.request.micro_batch or 1
        for checkpoint in [request.checkpoint] if not request.may_checkpoint else [False, True]:
            size = cost(checkpoint).largest(self.room.passes) + ROUNDING
            if size >= least and self.room.updates >= 0:
                return int(min(size, self.count)), checkpoint
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
    """Micro-batches of at most `size` examples, as equal as can be."""
    if size is None or size >= count:
        return (None,)
    parts = -(-count // size)
    return torch.tensor_split(torch.arange(count, device=device), parts)
