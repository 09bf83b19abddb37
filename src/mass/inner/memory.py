"""A memory budget -> how the passes are cut: micro-batches, layer checkpointing, graphs kept from forward to backward.

The bytes of a graph are measured, not estimated from a model: one example's second-order pass is run at the start, and
autograd's saved tensors are counted. They depend on shapes alone, so the same inputs give the same schedule, and
results that repeat bit for bit.

Legend: K steps, m examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mass.errors import ConfigError
from mass.inner.arguments import Mode
from mass.inner.objective import Objective, leaves
from mass.optimizers import Optimizer, wide
from mass.types import Params

Chunks = tuple[Tensor | None, ...]
"""Micro-batches: indices of examples, or one None for all."""

GIGABYTE = 1e9
ADAPTER_COPIES = 5
"""Adapted parameters, their cotangent, u, and the sums of a pass, in adapters."""
TRANSIENT = 0.15
"""What a pass holds beside its graph while it is differentiated, as a share of it. Measured: tests/test_memory.py."""
PASS_OVERHEAD = 0.3
"""A pass over n examples takes the time of n + 0.3; measured on a CPU (benchmarks/metagrad.py, micro-batches)."""
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
    if request.memory_gb is None or steps == 0:
        chunks = _chunks(count, request.micro_batch, device)
        return Schedule(chunks, chunks, request.checkpoint, request.checkpoint)
    second_order = request.differentiable and mode.hessian != "difference"
    tape = _tape_bytes(params, optimizer, mode, steps) if request.differentiable else 0.0
    probe = _Probe(objective, params, weights_Km[0])
    budget = _Budget(request.memory_gb, request.memory_gb * GIGABYTE - tape - ADAPTER_COPIES * _bytes(params))

    plain, checkpoint_gradient = budget.fit(probe.first_order, request)
    size, kept, checkpoint = plain, 0, checkpoint_gradient
    if second_order:
        fits, checkpoint = budget.fit(probe.second_order, request)
        graphs = 0 if checkpoint else (steps if mode.last is None else min(mode.last, steps))
        sizes = [request.micro_batch] if request.micro_batch else range(1, min(fits, count) + 1)
        size, kept = _cheapest(sizes, count, graphs, budget.free / probe.second_order(checkpoint))
    chunks = _chunks(count, request.micro_batch or size, device)
    return Schedule(_chunks(count, request.micro_batch or plain, device), chunks, checkpoint_gradient, checkpoint, kept)


def _cheapest(sizes: Iterable[int], count: int, steps: int, room: float) -> tuple[int, int]:
    """Size of a micro-batch, and how many graphs of such to keep, that take the least time.

    Graphs are kept in the last micro-batches of the last of `steps` steps and used up first, so kept graphs and one
    that is computed again are never alive together: `room` examples' graphs serve both.
    """

    def kept(size: int) -> int:
        return max(0, min(steps * -(-count // size), int(room / min(size, count) - TRANSIENT)))

    def time(size: int) -> float:
        parts = -(-count // size)
        share = kept(size) / (steps * parts) if steps else 0.0
        return (1 + PASS_OVERHEAD / min(size, count)) * (1 - KEPT_SAVES * share)

    best = min(sizes, key=time)
    return best, kept(best)


@dataclass(frozen=True)
class _Budget:
    memory_gb: float
    free: float
    """Bytes left for graphs."""

    def fit(self, bytes_of: Callable[[bool], float], request: Request) -> tuple[int, bool]:
        """How many examples fit, and whether with layer checkpointing: only where one does not fit without."""
        if not request.checkpoint and (size := self._examples(bytes_of(False))):
            return size, False
        if (request.checkpoint or request.may_checkpoint) and (size := self._examples(bytes_of(True))):
            return size, True
        least = min(bytes_of(request.checkpoint), bytes_of(request.checkpoint or request.may_checkpoint))
        needed = self.memory_gb + ((1 + TRANSIENT) * least - self.free) / GIGABYTE
        raise ConfigError(
            f"memory_gb = {self.memory_gb:g}, but one example and the tape need {math.ceil(1e4 * needed) / 1e4:g}; "
            "give at least that, or shorten the examples"
        )

    def _examples(self, each: float) -> int:
        return max(0, int(self.free / each / (1 + TRANSIENT)))


class _Probe:
    """Bytes of one example's passes, each measured once: of the larger of the first and the last example."""

    def __init__(self, objective: Objective, params: Params, weights_m: Tensor) -> None:
        self._objective, self._params, self._weights_m = objective, leaves(params), weights_m
        ends = sorted({0, len(weights_m) - 1})
        self._known: dict[tuple[bool, bool], float] = {}
        sizes = {i: self._measure(i, second_order=False, checkpoint=False) for i in ends}
        self._largest = max(sizes, key=lambda i: sizes[i])
        self._known[False, False] = sizes[self._largest]

    def first_order(self, checkpoint: bool) -> float:
        return self._bytes(False, checkpoint)

    def second_order(self, checkpoint: bool) -> float:
        return self._bytes(True, checkpoint)

    def _bytes(self, second_order: bool, checkpoint: bool) -> float:
        if (second_order, checkpoint) not in self._known:
            self._known[second_order, checkpoint] = self._measure(
                self._largest, second_order=second_order, checkpoint=checkpoint
            )
        return self._known[second_order, checkpoint]

    def _measure(self, example: int, *, second_order: bool, checkpoint: bool) -> float:
        index = torch.tensor([example], device=self._weights_m.device)
        weights = self._weights_m.detach().requires_grad_(second_order)

        def one_pass() -> None:
            if not second_order and not checkpoint:  # at its peak before the backward
                self._objective.terms(self._params, weights, index, checkpoint)
                return
            grads, _ = self._objective.gradient(
                self._params, weights, index, checkpoint=checkpoint, create_graph=second_order
            )
            # A checkpointed graph unfolds a layer at a time while it is differentiated.
            if second_order and checkpoint and (outputs := [g for g in grads.values() if g.requires_grad]):
                torch.autograd.grad(outputs, list(self._params.values()), outputs, allow_unused=True)

        return peak_saved_bytes(one_pass)


def peak_saved_bytes(run: Callable[[], None]) -> float:
    """Largest number of bytes that autograd graphs made in `run` held at one time, tensors that outlive it left out."""
    events: list[tuple[int, int]] = []  # +1 or -1, and the storage
    storages: dict[int, tuple[StorageWeakRef, int]] = {}

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # with its history it would hold the graph that holds it
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self.key = reference.cdata
            storages.setdefault(self.key, (reference, storage.nbytes()))
            events.append((1, self.key))

        def __del__(self) -> None:
            events.append((-1, self.key))

    def unpack(held: Any) -> Tensor:
        return held.tensor

    with torch.autograd.graph.saved_tensors_hooks(Held, unpack):
        run()
    own = {key: size for key, (reference, size) in storages.items() if reference.expired()}
    holders, total, peak = dict.fromkeys(own, 0), 0, 0
    for sign, key in events:
        if key not in own:
            continue
        before = holders[key]
        holders[key] = before + sign
        total += own[key] * ((holders[key] > 0) - (before > 0))
        peak = max(peak, total)
    return float(max(peak, 1))


def _tape_bytes(params: Params, optimizer: Optimizer, mode: Mode, steps: int) -> float:
    state = optimizer.init({name: p.detach() for name, p in params.items()})
    grads = {name: torch.empty_like(p, dtype=wide(p), device="meta") for name, p in params.items()}
    each = _bytes(params) + _bytes(grads) + _bytes(state)
    return (steps if mode.last is None else min(mode.last, steps)) * each


def _bytes(params: Params) -> float:
    return float(sum(p.numel() * p.element_size() for p in params.values()))


def _chunks(count: int, size: int | None, device: torch.device) -> Chunks:
    """Micro-batches of at most `size` examples, as equal as can be."""
    if size is None or size >= count:
        return (None,)
    parts = -(-count // size)
    return torch.tensor_split(torch.arange(count, device=device), parts)
