"""Make the decoder layers of a transformers model checkpointable (`mass.metagrad.layerwise.checkpointing`).

A checkpointed layer gives gradients only to the tensors that are passed to `checkpoint` as arguments. Here these are
the tensors among the layer's arguments, its own parameters (under `torch.func.functional_call` those that replace them
at the call), and the LoRA parameters in use. These are put in use again when the layer is recomputed, long after the
`use` block has ended.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from mass.errors import ConfigError, ModelError
from mass.lm.lora import InUse, LoraSites
from mass.metagrad import layerwise

_ADAPTERS = "_mass_adapters"
"""Name of the attribute of a wrapped layer with functions that return the adapter parameters it has in use."""

_Lora = tuple[InUse | None, Callable[[InUse | None], AbstractContextManager[None]]]
"""The adapter in use, and a function that puts an adapter in use for the length of a block."""


def checkpoint_layers(model: nn.Module, *adapters: LoraSites) -> list[str]:
    """Wrap the decoder layers of a model, so that blocks of `checkpointing` apply to them; returns their names.

    Outside such a block (`mass.metagrad.layerwise.checkpointing`), and without a gradient, a layer computes what it did
    before. `adapters` are the objects that put LoRA parameters in use; a model with adapters among its own parameters
    (peft, `functional_call`) needs none. Each layer's class becomes a subclass of itself with the same name, so
    `deepcopy` and `save_pretrained` work as before (pickling the module itself does not).

    Raises ModelError when the model has no decoder layers, or their `forward` was replaced on the object.
    """
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers to checkpoint, expected GradientCheckpointingLayer of transformers; "
            "call mass.metagrad.layerwise.checkpoint on each of your layers yourself"
        )
    for name, layer in layers:
        if "forward" in vars(layer):
            raise ModelError(
                f"the forward of layer {name!r} was replaced on the object (device_map does so); expected the class's "
                "own; load the model without device_map, or call checkpoint_layers first"
            )
    for name, layer in layers:
        if _ADAPTERS not in vars(layer):
            layer.__class__ = _checkpointed(type(layer))  # pyright: ignore[reportAttributeAccessIssue]
            setattr(layer, _ADAPTERS, ())
        setattr(layer, _ADAPTERS, (*getattr(layer, _ADAPTERS), *(_lora_of(sites, name) for sites in adapters)))
    return [name for name, _ in layers]


def _lora_of(sites: LoraSites, name: str) -> Callable[[], _Lora]:
    """Return a function that returns the adapter parameters in use under the layer `name`."""
    in_use = sites.under(name)
    return lambda: (in_use(), sites.resume)


@functools.cache
def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    """Make a subclass whose `forward` is checkpointed while that is switched on; hooks stay outside and run once."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not (layerwise.enabled() and torch.is_grad_enabled()):
            return kind.forward(self, *args, **kwargs)
        if any(isinstance(value, Cache) for value in (*args, *kwargs.values())):
            raise ConfigError(
                "layer checkpointing with a cache of keys and values, which a recomputed layer would fill twice; "
                "expected none; call the model with use_cache=False"
            )
        return _call(self, kind.forward, args, kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__})


def _call(layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one layer through `checkpoint`, with every tensor that requires grad among the arguments."""
    tensors: list[Tensor] = []
    held = _lift((args, kwargs), tensors)
    own = {name: _lift(t, tensors) for name, t in _own_tensors(layer).items()}
    loras = [adapter() for adapter in getattr(layer, _ADAPTERS)]
    lora = [(active and active.map(functools.partial(_lift, tensors=tensors)), resume) for active, resume in loras]

    def again(*values: Tensor) -> Any:
        with ExitStack() as stack:
            for active, resume in lora:
                stack.enter_context(resume(active and active.map(functools.partial(_lower, tensors=values))))
            stack.enter_context(_Substituted(layer, {name: _lower(t, values) for name, t in own.items()}))
            inner_args, inner_kwargs = _lower(held, values)
            return forward(layer, *inner_args, **inner_kwargs)

    return layerwise.checkpoint(again, *tensors)


class _Place(int):
    """The index of a tensor among the arguments of `checkpoint`, in place of the tensor itself."""


def _lift(value: Any, tensors: list[Tensor]) -> Any:
    """Copy nested tuples, lists and dicts, with each tensor that requires grad moved to `tensors`."""
    if isinstance(value, Tensor) and value.requires_grad:
        tensors.append(value)
        return _Place(len(tensors) - 1)
    return _nested(value, lambda inner: _lift(inner, tensors))


def _lower(value: Any, tensors: Sequence[Tensor]) -> Any:
    """Put the tensors back into what `_lift` returned."""
    return tensors[value] if isinstance(value, _Place) else _nested(value, lambda inner: _lower(inner, tensors))


def _nested(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to the items of a tuple, list or dict; any other value is returned as it is."""
    if type(value) in (tuple, list):
        return type(value)(change(inner) for inner in value)
    if type(value) is dict:
        return {key: change(inner) for key, inner in value.items()}
    return value


def _own_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name; a tensor with two names is there under both."""
    parameters = layer.named_parameters(remove_duplicate=False)
    return dict(parameters) | dict(layer.named_buffers(remove_duplicate=False))


class _Substituted:
    """Within the block, replace a layer's parameters and buffers by the given tensors, where they differ.

    Those of a frozen base never differ, so nothing is replaced, and threads that share the base do not disturb each
    other.
    """

    def __init__(self, layer: nn.Module, tensors: dict[str, Tensor]) -> None:
        now = _own_tensors(layer)
        self.layer = layer
        self.tensors = {name: tensor for name, tensor in tensors.items() if tensor is not now.get(name)}
        self.before: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> None:
        for name, tensor in self.tensors.items():
            path, _, last = name.rpartition(".")
            module = self.layer.get_submodule(path)
            tables = vars(module)  # assigning to the attribute would ask for a Parameter
            table = tables["_parameters" if last in tables["_parameters"] else "_buffers"]
            self.before.append((table, last, table[last]))
            table[last] = tensor

    def __exit__(self, *_: object) -> None:
        for table, name, tensor in reversed(self.before):
            table[name] = tensor
