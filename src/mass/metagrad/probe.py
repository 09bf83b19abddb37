"""Measure passes of a few examples, to know the bytes that a pass of n examples holds for any n.

Part of a pass grows with its examples (their graphs), part does not (the gradient of the parameters, which may be the
larger part for a stack of adapters). On a CPU the bytes alive after each operation are known: passes of two and of
three examples give, for each moment, a line in n, and the peak is the highest of the lines. (A pass of one example
skips some operations.) On CUDA only the peaks are known: n > k examples have at most n/k of the peak of k, as no part
grows faster than n.

Legend: m examples, n of them in a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from mass.metagrad.live import LimitReached, LiveMemory
from mass.metagrad.objective import Objective, leaves
from mass.types import Params

NOTABLE, WORTHWHILE = 0.05, 12
"""Share of the parameters' gradient in the peak of one example's pass, and number of examples, above which passes of
several examples are measured too."""
MEASURED_ON_CUDA = 8
"""Most examples of the second pass on CUDA, where only peaks are known."""

Line = tuple[float, float]
"""(bytes that do not depend on n, bytes for each example)"""


@dataclass(frozen=True)
class PassBytes:
    """The bytes of a pass of n examples, as lines in n."""

    graph: Line
    """Bytes that the graph of its gradient holds."""
    moments: tuple[Line, ...]
    """Bytes alive at the moments that may be the peak."""

    def held(self, n: int) -> float:
        """Return the bytes that the graph of n examples holds."""
        return _at(self.graph, n)

    def peak(self, n: int) -> float:
        """Return the most bytes at one time in a pass of n examples."""
        return max(_at(line, n) for line in self.moments)

    def largest(self, free: float) -> float:
        """Return the largest n, not rounded, whose peak is at most `free`; infinite where the peak does not grow."""
        if self.peak(1) > free:
            return 0.0
        return min((free - fixed) / each if each > 0 else math.inf for fixed, each in self.moments)


@dataclass(frozen=True)
class _Pass:
    """The bytes measured in one pass of `examples` examples."""

    examples: int
    held: float
    peak: float
    history: Sequence[int]
    """Bytes after each operation; empty where only the peak is known."""
    in_full: bool
    """True if the peak was measured, False if it was estimated from the graph."""


class Probe:
    """The costs of first-order and second-order passes, each measured once, on the last example, alone and repeated.

    A pass that exceeds the limit is interrupted, and its cost is infinite. Where `plenty` times the graphs of all
    examples fit, a second-order pass is only measured up to its graph, and its peak is taken as twice that; `in_full`
    switches this short cut off.
    """

    def __init__(
        self,
        objective: Objective,
        params: Params,
        weights_m: Tensor,
        limit: float,
        plenty: int,
        *,
        in_full: bool = False,
    ) -> None:
        self._objective, self._params, self._weights_m = objective, leaves(params), weights_m
        self._limit, self._plenty, self._in_full = max(limit, 0.0), plenty, in_full
        self._known: dict[tuple[bool, bool, bool], PassBytes] = {}

    def first_order(self, checkpoint: bool, *, limited: bool = True) -> PassBytes:
        """Return the cost of a gradient."""
        return self._cost(False, checkpoint, limited)

    def second_order(self, checkpoint: bool, *, limited: bool = True) -> PassBytes:
        """Return the cost of a gradient with its graph and the double backward through it."""
        return self._cost(True, checkpoint, limited)

    def _cost(self, second_order: bool, checkpoint: bool, limited: bool) -> PassBytes:
        key = second_order, checkpoint, limited
        if key not in self._known:
            self._known[key] = self._measured(second_order, checkpoint, self._limit if limited else math.inf)
        return self._known[key]

    def _measured(self, second_order: bool, checkpoint: bool, limit: float) -> PassBytes:
        passes = list[_Pass]()
        with suppress(LimitReached):
            passes.append(self._run(1, second_order, checkpoint, limit))
            for examples in self._more(passes[0], second_order):
                passes.append(self._run(examples, second_order, checkpoint, limit))
        return _joined(passes)

    def _more(self, one: _Pass, second_order: bool) -> Sequence[int]:
        """Return the sizes of further passes to measure; none where they could not change the schedule.

        They matter only where a notable part of the memory does not grow with the examples.
        """
        count, graphs = len(self._weights_m), self._plenty if second_order else 0
        everything = count * (graphs * one.held + one.peak)
        gradient = sum(p.numel() * p.element_size() for p in self._params.values())
        enough = everything <= self._limit and not self._in_full
        if count < WORTHWHILE or enough or gradient < NOTABLE * one.peak or not one.in_full:
            return ()
        return (2, 3) if one.history else (min(MEASURED_ON_CUDA, count, max(2, int(self._limit / one.peak))),)

    def _run(self, examples: int, second_order: bool, checkpoint: bool, limit: float) -> _Pass:
        # The last example, repeated: `adapt` asks for the largest there, so the result is a bound for the others.
        index = torch.full((examples,), len(self._weights_m) - 1, device=self._weights_m.device)
        params, weights = list(self._params.values()), self._weights_m.detach().requires_grad_(second_order)
        roomy = 0.0 if self._in_full else self._limit / (self._plenty * len(self._weights_m))
        with LiveMemory(params[0].device, limit) as live:
            found, _ = self._objective.gradient(
                self._params, weights, index, checkpoint=checkpoint, create_graph=second_order
            )
            held, outputs = live.held, [g for g in found.values() if g.requires_grad]
            del found
            in_full = not outputs or checkpoint or held > roomy
            if outputs and in_full:  # in the direction of the gradient itself: memory does not depend on the direction
                torch.autograd.grad(outputs, [*params, weights], outputs, allow_unused=True)
            peak = live.peak if in_full else max(live.peak, 2 * held)
        return _Pass(examples, max(held, 1.0), max(peak, 1.0), live.history, in_full)


def _joined(passes: Sequence[_Pass]) -> PassBytes:
    """Make a cost from passes of one example, and perhaps of more; without any, the first exceeded the limit."""
    if not passes:
        return PassBytes((0.0, math.inf), ((0.0, math.inf),))
    one, before, last = passes[0], passes[max(0, len(passes) - 2)], passes[-1]
    if last is one:
        return PassBytes((0.0, one.held), ((0.0, one.peak),))
    graph = _line((before.examples, before.held), (last.examples, last.held))
    if before.history and len(before.history) == len(last.history):
        moments = {
            _line((before.examples, a), (last.examples, b)) for a, b in zip(before.history, last.history, strict=True)
        }
        return PassBytes(graph, _highest(moments))
    # Only peaks are known: a line through that of one example, with the slope of the larger pass as a bound.
    each = last.peak / last.examples
    return PassBytes(graph, ((one.peak - each, each),))


def _line(a: tuple[int, float], b: tuple[int, float]) -> Line:
    """Return the line through two points (examples, bytes)."""
    each = (b[1] - a[1]) / (b[0] - a[0])
    return a[1] - a[0] * each, each


def _highest(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Return the lines without those that lie below another for every n >= 1."""
    kept = list[Line]()
    for line in sorted(lines, key=lambda line: (line[1], _at(line, 1)), reverse=True):
        if not kept or _at(line, 1) > _at(kept[-1], 1):
            kept.append(line)
    return tuple(kept)


def _at(line: Line, n: int) -> float:
    fixed, each = line
    return fixed + n * each
