"""Put rows of several caches into one, so that rows which were read apart are decoded side by side.

Keys and values end at the same place: those of shorter rows get places to the left of them, which the mask hides.
Places at which no row has a token are dropped, or a cache whose rows come and go would grow without end. A recurrent
state has no places; its rows are put below each other.

Legend: n rows, L places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from mass.lm.growing import GrowingLayer, GrowingSlidingLayer, below_each_other

Part = tuple[DynamicCache, Tensor]
"""A cache, and the indices of the rows to take from it."""

_KNOWN = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    GrowingLayer,
    GrowingSlidingLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)


def can_be_merged(cache: DynamicCache) -> bool:
    """Return True where all layers are of kinds whose whole content is known here.

    Another kind, or a subclass, may keep something more for each row, which would be lost.
    """
    return bool(cache.layers) and all(type(layer) in _KNOWN for layer in cache.layers)


def merge(parts: Sequence[Part], length: int) -> None:
    """Replace the first part's cache by the rows of all parts, in this order, with their last L = `length` places."""
    first = parts[0][0]
    for number, layer in enumerate(first.layers):
        layers = [(cache.layers[number], rows) for cache, rows in parts]
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            _merge_states(layer, layers)
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            _merge_keys(layer, layers, length)


def held_bytes(cache: DynamicCache) -> int:
    """Return the bytes of all tensors of a cache, free space included."""
    found: dict[int, int] = {}
    for layer in cache.layers:
        states = [*_states_of(layer).values()] if isinstance(layer, LinearAttentionCacheLayerMixin) else []
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None), *states):
            if tensor is not None:
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _merge_keys(layer: Any, layers: Sequence[tuple[Any, Tensor]], length: int) -> None:
    held = length
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length, held = length, min(length, layer.sliding_window - 1)
    keys, values = ([_rows(getattr(one, name), rows) for one, rows in layers] for name in ("keys", "values"))
    if isinstance(layer, GrowingLayer):
        layer.fill(keys, values, held)
    else:
        layer.keys, layer.values = below_each_other(keys, held), below_each_other(values, held)


def _merge_states(layer: Any, layers: Sequence[tuple[Any, Tensor]]) -> None:
    found = [{place: _rows(state, rows) for place, state in _states_of(one).items()} for one, rows in layers]
    for kind, number in found[0]:
        getattr(layer, kind)[number] = torch.cat([states[kind, number] for states in found])


def _states_of(layer: Any) -> dict[tuple[str, int], Tensor]:
    """Return the recurrent states of a layer, by kind and number."""
    kinds = ("conv_states", "recurrent_states")
    return {(kind, i): t for kind in kinds for i, t in getattr(layer, kind).items() if t is not None}


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows.to(tensor.device))
