"""A cache of keys and values whose layers write a new token in place.

The dynamic cache layers of transformers concatenate: every decoding step copies the keys and values of all earlier
tokens. Here they are in buffers with free space for more tokens, and a copy is made only once for `ROOM` tokens. The
keys and values that attention gets are the same to the last bit (docs/adr/0019-our-own-decoding-loop.md has the
measurements). Recurrent states and other kinds of layers stay transformers' own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64
"""Number of further tokens that a new buffer has space for."""


@dataclass
class _Buffer:
    """A tensor [N, h, T, d] inside a larger one, so that it can be made longer in place."""

    whole: Tensor | None = None
    """The larger tensor."""
    last: Tensor | None = None
    """The tensor that was last given out to be continued."""
    end: int = 0
    """Number of places of `whole` that are filled."""

    def appended(self, kept: Tensor, new: Tensor) -> Tensor:
        """Return `kept` with `new` after it along T, in place if `kept` is the tensor that was last given out.

        Selecting rows of the cache replaces `kept` by another tensor; then a new buffer is made.
        """
        before, count = (kept.shape[-2] if kept.numel() else 0), new.shape[-2]
        if self.whole is None or kept is not self.last or self.end + count > self.whole.shape[-2]:
            self.whole = new.new_empty(*new.shape[:-2], before + count + ROOM, new.shape[-1])
            if before:
                self.whole[..., :before, :] = kept
            self.end = before
        self.whole[..., self.end : self.end + count, :] = new
        self.end += count
        return self.whole[..., self.end - before - count : self.end, :]

    def filled(self, parts: Sequence[Tensor], length: int) -> Tensor:
        """Put parts [n, h, T, d] below each other in a new buffer, each with its last places at `length`.

        Places before the first of a part are zero. The result can be continued by `appended` in place.
        """
        self.whole = below_each_other(parts, length, ROOM)
        self.end = length
        return self.keep(self.whole[:, :, :length])

    def keep(self, kept: Tensor) -> Tensor:
        """Remember `kept` as the tensor that the next call of `appended` continues, and return it."""
        self.last = kept
        return kept


def below_each_other(parts: Sequence[Tensor], length: int, room: int = 0) -> Tensor:
    """Put parts [n, h, T, d] below each other with their last places at `length`, and `room` empty places after it.

    A longer part loses its first places; before the first place of a shorter one there are zeros.
    """
    first, row = parts[0], 0
    whole = first.new_zeros(sum(map(len, parts)), first.shape[1], length + room, first.shape[-1])
    for part in parts:
        held = min(length, part.shape[-2])
        whole[row : row + len(part), :, length - held : length] = part[:, :, part.shape[-2] - held :]
        row += len(part)
    return whole


class GrowingLayer(DynamicLayer):
    """A dynamic layer that writes new keys and values in place."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._buffers = _Buffer(), _Buffer()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Append new keys and values [N, h, t, d], and return all that attention may use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        keys, values = self._buffers
        all_keys, all_values = keys.appended(self.keys, key_states), values.appended(self.values, value_states)
        self.keys, self.values = keys.keep(self._kept(all_keys)), values.keep(self._kept(all_values))
        return all_keys, all_values

    def fill(self, keys: Sequence[Tensor], values: Sequence[Tensor], length: int) -> None:
        """Replace all keys and values by parts below each other, whose last places are at `length`."""
        self.keys, self.values = self._buffers[0].filled(keys, length), self._buffers[1].filled(values, length)

    def _kept(self, tokens: Tensor) -> Tensor:
        """Return the part that later tokens may still attend to."""
        return tokens


class GrowingSlidingLayer(GrowingLayer, DynamicSlidingWindowLayer):
    """A layer of attention within a sliding window that writes in place: its first tokens fall out of the window."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.cumulative_length += key_states.shape[-2]
        return super().update(key_states, value_states, *args, **kwargs)

    def _kept(self, tokens: Tensor) -> Tensor:
        return tokens[:, :, -self.sliding_window + 1 :]


def with_room(cache: DynamicCache) -> DynamicCache:
    """Replace each layer of an empty cache that keeps only keys and values by one that grows in place."""
    cache.layers = [_growing(layer) for layer in cache.layers]
    return cache


def _growing(layer: Any) -> Any:
    if type(layer) is DynamicLayer:  # not `isinstance`: a subclass may keep more than keys and values
        return GrowingLayer()
    if type(layer) is DynamicSlidingWindowLayer:
        return GrowingSlidingLayer(layer.sliding_window)
    return layer
