"""Record the passes of losses once for each shape of their inputs, and run them compiled from then on.

A first-order pass is a forward and a backward, a second-order pass one more backward through both. In each, autograd
builds and walks a graph and the model's own Python runs: with small batches, half of the time. `torch.compile` alone
does not help, as what it compiles can be differentiated only once. Recorded below autograd
(`mass.metagrad.recording`), a pass is a list of tensor operations without a graph, which a compiler can fuse.

Legend: m examples, n of them in a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mass.errors import ConfigError, ShapeError
from mass.metagrad.objective import Objective
from mass.metagrad.passes import Begun, Passes, Wanted
from mass.metagrad.recording import Function, Inputs, Recording
from mass.types import Params


class Traced:
    """A function of parameters and rows, with the recordings of its passes. Made by `traced`."""

    def __init__(self, function: Function, compile_options: dict[str, Any] | None) -> None:
        self.function = function
        self._compile_options = compile_options
        self._recordings: dict[Any, Recording] = {}

    def of(self, *rows: Tensor) -> TracedLosses:
        """Return the losses of these rows, tensors [m, ..], in the form that `mass.inner.adapt` takes.

        Raises ShapeError where the tensors do not have the same number m of entries.
        """
        if not rows or any(r.dim() == 0 or len(r) != len(rows[0]) for r in rows):
            raise ShapeError(
                f"rows have shapes {[list(r.shape) for r in rows]}, expected at least one tensor, and the same number "
                "of examples along the first axis of each; give tensors that belong together"
            )
        return TracedLosses(self, rows)

    def recording(self, autocast: dict[str, Any], inputs: Inputs) -> Recording:
        """Return the recording for inputs of these shapes; it is made when they come for the first time."""
        kinds = [(t.shape, t.dtype, t.device) for t in inputs.flat]
        key = (*inputs.params, *kinds, *autocast.values())
        if key not in self._recordings:
            self._recordings[key] = Recording(self.function, autocast, inputs, self._compile_options)
        return self._recordings[key]


def traced(function: Function, *, compiled: bool = True, **options: Any) -> Traced:
    """Wrap `function(params, *rows)` -> losses [n], so that `adapt` runs its passes recorded and compiled:

        losses = traced(function)
        adapted = adapt(losses.of(tokens, targets), params, weights, SGD(lr), steps)

    The function may look at shapes, not at values: no branch on a tensor, no `.item()`. Other tensors that it uses,
    such as a frozen model's weights, must stay the same tensor objects. Recording takes seconds and compiling up to
    minutes, once for each combination of shapes, so pad rows to a few lengths and use micro-batches of one size. The
    first run of each kind of pass is compared with the pass without recording.

    Passes with layer checkpointing, and finite differences, run without recording.

    Args:
        compiled: whether `torch.compile` compiles the recorded operations. Without it they run one by one, which needs
            no compiler and saves only the cost of autograd and of the model's own Python.
        options: further options of `torch.compile`.

    Raises ConfigError for options without compilation; later passes raise it where the function cannot be recorded or
    where the recorded derivatives differ from autograd's.
    """
    if options and not compiled:
        raise ConfigError(
            f"{sorted(options)[0]} is given beside compiled=False, expected options of torch.compile only where it "
            "compiles; leave one of them out"
        )
    # dynamic=False: a recording is for fixed shapes, and the compiler may rely on them.
    return Traced(function, {"fullgraph": True, "dynamic": False, **options} if compiled else None)


@dataclass(frozen=True)
class TracedLosses:
    """Losses of fixed rows (`mass.metagrad.Losses`) that the engine recognises as recordable."""

    traced: Traced
    rows: tuple[Tensor, ...]

    def __call__(self, params: Params, index: Tensor | None = None) -> Tensor:
        return self.traced.function(params, *self.select(index))

    def select(self, index: Tensor | None) -> tuple[Tensor, ...]:
        """Return the rows of the examples `index`; all of them for None."""
        return self.rows if index is None else tuple(r[index] for r in self.rows)


class _Kept(NamedTuple):
    """The state that `TracedPasses.begin` leaves for `finish`."""

    recording: Recording
    tensors: list[Tensor]
    inputs: Inputs
    examples: Tensor | None
    """Indices of the micro-batch among the m examples; None for all."""
    weights_m: Tensor


class TracedPasses(Passes):
    """The passes of an objective whose losses are traced.

    With layer checkpointing every method falls back on the pass by autograd: a recording would keep all layers.
    """

    def __init__(self, objective: Objective, losses: TracedLosses) -> None:
        super().__init__(objective)
        self._losses = losses

    def gradient(self, params: Params, weights_m: Tensor, index: Tensor | None, *, checkpoint: bool) -> Params:
        if checkpoint:
            return super().gradient(params, weights_m, index, checkpoint=True)
        recording, inputs = self._recording(params, weights_m, index)
        return recording.gradient(inputs)

    def begin(self, params: Params, weights_m: Tensor, index: Tensor | None, *, checkpoint: bool) -> Begun:
        if checkpoint:
            return super().begin(params, weights_m, index, checkpoint=True)
        recording, inputs = self._recording(params, weights_m, index)
        grads, kept = recording.begin(inputs)
        return Begun(grads, _Kept(recording, kept, inputs, index, weights_m))

    def finish(self, begun: Begun, u: Params, wanted: Wanted) -> tuple[Params, Tensor]:
        kept = begun.rest
        if not isinstance(kept, _Kept):  # it was begun with layer checkpointing, without a recording
            return super().finish(begun, u, wanted)
        products, bar_weights_n = kept.recording.finish(kept.tensors, kept.inputs, u, wanted)
        return products, _spread(bar_weights_n, kept.examples, kept.weights_m)

    def second_order(
        self, params: Params, weights_m: Tensor, index: Tensor | None, u: Params, wanted: Wanted, *, checkpoint: bool
    ) -> tuple[Params, Params, Tensor]:
        if checkpoint:
            return super().second_order(params, weights_m, index, u, wanted, checkpoint=True)
        recording, inputs = self._recording(params, weights_m, index)
        grads, products, bar_weights_n = recording.second_order(inputs, u, wanted)
        return grads, products, _spread(bar_weights_n, index, weights_m)

    def _recording(self, params: Params, weights_m: Tensor, index: Tensor | None) -> tuple[Recording, Inputs]:
        weights_n = weights_m if index is None else weights_m[index]
        inputs = Inputs(params, weights_n, self._losses.select(index))
        return self._losses.traced.recording(self.objective.autocast, inputs), inputs


def _spread(bar_weights_n: Tensor | None, index: Tensor | None, weights_m: Tensor) -> Tensor:
    """Put the values of a micro-batch into [m], with zeros for examples that are not in `index`."""
    if bar_weights_n is None:
        return torch.zeros_like(weights_m)
    return bar_weights_n if index is None else torch.zeros_like(weights_m).index_copy_(0, index, bar_weights_n)
