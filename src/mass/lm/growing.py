"""A cache of transformers -> the same cache, to which a token is written instead of all being copied for each.

transformers' dynamic layers concatenate: every step of decoding copies the keys and values of all tokens before it.
Here they stand in buffers with room for more tokens, and a copy is made once in `ROOM` of them. What a layer gives to
attention is the same to the last bit (docs/adr/0019-our-own-decoding-loop.md has the figures). Recurrent states and
other kinds of layers stay transformers' own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64
"""Tokens that a new buffer has room for beyond those it is made for."""


@dataclass
class _Buffer:
    """A tensor [N, h, T, d] in a larger one. What was last handed out can be made longer in place."""

    whole: Tensor | None = None
    last: Tensor | None = None
    end: int = 0

    def appended(self, kept: Tensor, new: Tensor) -> Tensor:
        """`kept` with `new` behind it along T. Whoever exchanged `kept` for another tensor gets another buffer."""
        before, count = (kept.shape[-2] if kept.numel() else 0), new.shape[-2]
        if self.whole is None or kept is not self.last or self.end + count > self.whole.shape[-2]:
            self.whole = new.new_empty(*new.shape[:-2], before + count + ROOM, new.shape[-1])
            if before:
                self.whole[..., :before, :] = kept
            self.end = before
        self.whole[..., self.end : self.end + count, :] = new
        self.end += count
        return self.whole[..., self.end - before - count : self.end, :]

    def keep(self, kept: Tensor) -> Tensor:
        """The part of what was handed out that is to grow."""
        self.last = kept
        return kept


class _GrowingLayer(DynamicLayer):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._buffers = _Buffer(), _Buffer()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """The keys and values for attention, with the new ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        keys, values = self._buffers
        all_keys, all_values = keys.appended(self.keys, key_states), values.appended(self.values, value_states)
        self.keys, self.values = keys.keep(self._kept(all_keys)), values.keep(self._kept(all_values))
        return all_keys, all_values

    def _kept(self, tokens: Tensor) -> Tensor:
        """What the next tokens may still attend to."""
        return tokens


class _GrowingSlidingLayer(_GrowingLayer, DynamicSlidingWindowLayer):
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.cumulative_length += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def _kept(self, tokens: Tensor) -> Tensor:
        return tokens[:, :, -self.sliding_window + 1 :]


def with_room(cache: DynamicCache) -> DynamicCache:
    """The cache, empty, with each layer that keeps keys and values alone exchanged for one that grows in place."""
    cache.layers = [_growing(layer) for layer in cache.layers]
    return cache


def _growing(layer: Any) -> Any:
    if type(layer) is DynamicLayer:
        return _GrowingLayer()
    if type(layer) is DynamicSlidingWindowLayer:
        return _GrowingSlidingLayer(layer.sliding_window)
    return layer
