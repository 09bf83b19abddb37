"""Checkpoint layers so that they can be differentiated twice, with one layer's graph alive at a time.

`checkpoint` keeps only the inputs of a layer. The first backward recomputes the layer and takes its vector-Jacobian
product (VJP). With `create_graph=True` that product is a node of its own, which keeps inputs and cotangents; its
backward recomputes the layer and its VJP with a graph, and differentiates them. `torch.utils.checkpoint`, in contrast,
keeps the graphs of all layers as soon as a gradient of a gradient is requested.

Reference: Chen et al. 2016, arXiv 1604.06174 (checkpointing).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mass.errors import ConfigError


@dataclass
class Checkpointed:
    """A count of what happened in a block of `checkpointing`."""

    layers: int = 0
    """Number of calls of `checkpoint` within the block."""


_current: ContextVar[Checkpointed | None] = ContextVar("layer_checkpointing", default=None)
"""The innermost block of `checkpointing`; None where layers are not checkpointed."""


@contextmanager
def checkpointing(enabled: bool) -> Generator[Checkpointed, None, None]:
    """Within the block, switch the checkpointing of wrapped layers on or off."""
    current = _current.get() or Checkpointed()
    token = _current.set(current if enabled else None)
    try:
        yield current
    finally:
        _current.reset(token)


def enabled() -> bool:
    """Return True where wrapped layers are checkpointed now."""
    return _current.get() is not None


def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """Return `function(*inputs)`, a tensor or a flat tuple, and keep only `inputs` for the backward.

    Gradients flow to inputs that require grad. Every tensor that the result depends on and that requires grad must be
    among `inputs`. Inputs may also be None, numbers, or tensors without gradient. `function` is called again in each
    backward, perhaps in another thread, and must then compute the same: it must be deterministic and must not depend on
    a context that may have ended (the autocast state is restored, nothing else).

    Raises ConfigError in the backward for a captured tensor that requires grad, and for a third derivative.
    """
    if (current := _current.get()) is not None:
        current.layers += 1
    plan = _Plan(function, _autocast_states(inputs))
    if not (torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)):
        return function(*inputs)
    outputs = _apply(_Call, plan, *inputs)
    return outputs if plan.several else outputs[0]


@dataclass
class _Plan:
    function: Callable[..., Any]
    autocast: Sequence[dict[str, Any]]
    several: bool = False
    """True if the function returns a tuple; known after its first run."""

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Return all outputs, under the first call's autocast state, without checkpointing layers inside once more."""
        with _Autocast(self.autocast), checkpointing(False):
            outputs = self.function(*inputs)
        self.several = isinstance(outputs, tuple | list)
        flat: tuple[Any, ...] = tuple(outputs) if self.several else (outputs,)
        if odd := [x for x in flat if not (x is None or isinstance(x, Tensor | int | float | str))]:
            raise ConfigError(
                f"a checkpointed function returned a {type(odd[0]).__name__} among its outputs, expected a tensor or a "
                "flat tuple of tensors: what is inside would get no gradient; return its tensors, or do not checkpoint"
            )
        return flat


class _Call(torch.autograd.Function):
    """inputs -> outputs; only the inputs are kept."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *inputs: Any) -> tuple[Any, ...]:  # pyright: ignore
        outputs = plan.run(inputs)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(x for x in outputs if isinstance(x, Tensor) and not _differentiable(x)))
        _save(ctx, inputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        inputs, needs = _saved(ctx), tuple(ctx.needs_input_grad[1:])
        if torch.is_grad_enabled():  # create_graph=True: the product itself becomes a node that keeps no graph
            return (None, *_apply(_Vjp, ctx.plan, needs, *inputs, *cotangents))
        return (None, *_vjp(ctx.plan, inputs, needs, cotangents))


class _Vjp(torch.autograd.Function):
    """(inputs, cotangents of the outputs) -> cotangents of the inputs; None for one that has no influence."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, needs: tuple[bool, ...], *tensors: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        ctx.plan, ctx.needs = plan, needs
        ctx.set_materialize_grads(False)
        _save(ctx, tensors)
        return _vjp(plan, tensors[: len(needs)], needs, tensors[len(needs) :])

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        grads = _double(ctx.plan, _saved(ctx), ctx.needs, tuple(ctx.needs_input_grad[2:]), bars)
        if torch.is_grad_enabled():
            grads = refuse_derivative(grads, third_derivative("turn layer checkpointing off (checkpoint=False)"))
        return (None, None, *grads)


def _vjp(
    plan: _Plan, inputs: Sequence[Any], needs: Sequence[bool], cotangents: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Recompute the function with a graph, pull `cotangents` back to the inputs marked in `needs`, drop the graph."""
    with torch.enable_grad():
        leaves = _leaves(inputs, needs)
        outputs = plan.run(leaves)
        _check_captures(outputs, leaves)
        return _pull(outputs, cotangents, leaves, needs, create_graph=False)


def _double(
    plan: _Plan, tensors: Sequence[Any], needs: Sequence[bool], wanted: Sequence[bool], bars: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Pull cotangents `bars` of the VJP's results back to its `tensors` (inputs, then cotangents) where `wanted`."""
    with torch.enable_grad():
        leaves = _leaves(tensors, (*needs, *wanted[len(needs) :]))
        inputs, cotangents = leaves[: len(needs)], leaves[len(needs) :]
        grads = _pull(plan.run(inputs), cotangents, inputs, needs, create_graph=True)
        refuse_once_differentiable(grads)
        return _pull(grads, bars, leaves, wanted, create_graph=False)


def _pull(
    outputs: Sequence[Any],
    cotangents: Sequence[Tensor | None],
    leaves: Sequence[Any],
    wanted: Sequence[bool],
    *,
    create_graph: bool,
) -> tuple[Tensor | None, ...]:
    """Take a VJP over outputs that have a cotangent; one result for each leaf, None where unwanted or independent."""
    pairs = [
        (y, bar)
        for y, bar in zip(outputs, cotangents, strict=True)
        if bar is not None and isinstance(y, Tensor) and y.requires_grad
    ]
    asked = [x for x, want in zip(leaves, wanted, strict=True) if want]
    if not pairs or not asked:
        return (None,) * len(leaves)
    values, bars = zip(*pairs, strict=True)
    grads = iter(torch.autograd.grad(values, asked, bars, create_graph=create_graph, allow_unused=True))
    return tuple(next(grads) if want else None for want in wanted)


def _check_captures(outputs: Sequence[Any], leaves: Sequence[Any]) -> None:
    """Check that the outputs depend on no tensor that requires grad except `leaves`. Raises ConfigError.

    Such a tensor would silently get no gradient.
    """
    known = {id(x) for x in leaves if isinstance(x, Tensor)}
    for node in _graph_nodes(outputs):
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor) and id(variable) not in known:
            raise ConfigError(
                f"a checkpointed function uses a tensor of shape {list(variable.shape)} that requires grad and is not "
                "among its arguments, so it would get no gradient; pass it as an argument, or detach it"
            )


def refuse_once_differentiable(gradients: Iterable[Tensor | None]) -> None:
    """Check that the graph of gradients holds no kernel that is marked as once-differentiable. Raises ConfigError.

    Such a kernel leaves a node that raises when autograd reaches it. Asked for the gradient of given inputs, autograd
    does not reach it, and the second derivative would silently be without it.
    """
    for node in _graph_nodes(gradients):
        if type(node).__name__ == "Error":  # the class of the node that `once_differentiable` leaves
            raise ConfigError(
                "losses use a kernel whose backward has no derivative of its own (once_differentiable), expected one "
                'that can be differentiated twice; use a plain PyTorch one, or mode="finite_difference"'
            )


def _graph_nodes(values: Iterable[Any]) -> Generator[Any, None, None]:
    """Yield each node of the autograd graph behind the tensors among `values` once."""
    stack: list[Any] = [x.grad_fn for x in values if isinstance(x, Tensor) and x.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        fresh = [parent for parent, _ in node.next_functions if parent is not None and parent not in seen]
        seen.update(fresh)
        stack.extend(fresh)


def refuse_derivative(tensors: Sequence[Tensor | None], error: Exception) -> tuple[Tensor | None, ...]:
    """Return tensors with the same values, whose derivative raises `error`."""
    # Without an input that requires grad, autograd would make no node, and the derivative would silently be missing.
    anchor, kept = torch.zeros((), requires_grad=True), [t for t in tensors if t is not None]
    stream = iter(_apply(_Refusal, error, anchor, *kept))
    return tuple(None if t is None else next(stream) for t in tensors)


class _Refusal(torch.autograd.Function):
    """Identity whose backward raises an error."""

    @staticmethod
    def forward(ctx: Any, error: Exception, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG004  # pyright: ignore
        ctx.error = error
        return tuple(t.clone() for t in tensors)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:  # pyright: ignore
        raise ctx.error


def third_derivative(way_out: str) -> ConfigError:
    """Make the error for a layer that is differentiated three times; `way_out` says what the user can do."""
    return ConfigError(f"a layer was differentiated three times, expected at most twice; {way_out}")


class _Autocast:
    """Several autocast states, entered together. Their cache is off: it would keep casts made without a graph."""

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        self.contexts = [torch.autocast(**state, cache_enabled=False) for state in states]

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*error)


def autocast_kind(tensor: Tensor) -> str:
    """Return the kind of device whose autocast state applies to a tensor.

    The meta device, on which only shapes are computed, has no autocast of its own; it uses the CPU's.
    """
    return "cpu" if tensor.is_meta else tensor.device.type


def _autocast_states(inputs: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the present arguments of `torch.autocast` for each kind of device among the inputs."""
    kinds = {autocast_kind(x) for x in inputs if isinstance(x, Tensor)}
    return [
        {"device_type": kind, "enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}
        for kind in sorted(kinds)
    ]


def _save(ctx: Any, values: Sequence[Any]) -> None:
    """Save tensors through autograd, which frees them and notices changes in place; other values on `ctx` itself."""
    ctx.rest = [None if isinstance(x, Tensor) else x for x in values]
    ctx.places = [i for i, x in enumerate(values) if isinstance(x, Tensor)]
    ctx.save_for_backward(*(values[i] for i in ctx.places))


def _saved(ctx: Any) -> list[Any]:
    """Return what `_save` saved, in its order."""
    values = list(ctx.rest)
    for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
        values[place] = tensor
    return values


def _leaves(values: Sequence[Any], needs: Sequence[bool]) -> list[Any]:
    return [
        x.detach().requires_grad_(need) if isinstance(x, Tensor) else x for x, need in zip(values, needs, strict=True)
    ]


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _apply(function: Any, *inputs: Any) -> tuple[Any, ...]:
    return function.apply(*inputs)  # `apply` is untyped
