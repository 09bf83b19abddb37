"""Put the adapters of rows into use together: one, a stack in equal blocks, or a stack for some rows among the base's.

An adapter is known by the object it was given as. Its copies (laid out for decoding, in a stack) are kept together with
that object, so that no other object can have its identity, and are dropped when no row uses it any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from mass.lm.lora import InUse, LoraSites, laid_out
from mass.lm.lora_places import Places
from mass.types import Params

Owner = Params | Literal["ended"] | None
"""The adapter of a row; None for the base. A row that has ended is computed with whatever is simplest."""


class LaidOut:
    """Adapters laid out for decoding, each for as long as a row uses it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._known: dict[int, tuple[Params, Params]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, adapter: Params) -> Params:
        """Return the laid out copy of an adapter."""
        if id(adapter) not in self._known:
            self._known[id(adapter)] = adapter, laid_out(adapter, self._dtype)
        return self._known[id(adapter)][1]

    def keep(self, adapters: Iterable[Params | None]) -> None:
        """Drop all adapters but these."""
        wanted = {id(adapter) for adapter in adapters if adapter is not None}
        self._known = {key: known for key, known in self._known.items() if key in wanted}


class Mixture:
    """What a batch of rows has in use; made again only when its rows change."""

    def __init__(self, sites: LoraSites, known: LaidOut, device: torch.device) -> None:
        self._sites, self._known, self._device = sites, known, device
        self._owners: list[Owner] = []
        self._in_use: InUse | None = None
        self._members: list[Params] = []
        self._stack: Params = {}

    def of(self, owners: Sequence[Owner]) -> InUse | None:
        """Return what is in use for rows with these adapters; None where all are the base's."""
        if len(owners) != len(self._owners) or any(a is not b for a, b in zip(owners, self._owners, strict=True)):
            self._in_use, self._owners = self._made(owners), list(owners)
        return self._in_use

    def _made(self, owners: Sequence[Owner]) -> InUse | None:
        members = list({id(owner): owner for owner in owners if isinstance(owner, dict)}.values())
        base = any(owner is None for owner in owners)
        if not members or (len(members) == 1 and not base):
            self._members, self._stack = [], {}
            return self._sites.in_use(self._known.of(members[0])) if members else None
        if len(members) != len(self._members) or any(a is not b for a, b in zip(members, self._members, strict=True)):
            self._members, self._stack = members, _stack([self._known.of(member) for member in members])
        place = {id(member): number for number, member in enumerate(members)}
        numbers = [place[id(owner)] if isinstance(owner, dict) else None for owner in owners]
        height, left = divmod(len(owners), len(members))
        if not left and numbers == [number for number in range(len(members)) for _ in range(height)]:
            return self._sites.in_use(self._stack)
        return self._sites.in_use(self._stack, Places.of(numbers, len(members), self._device))


def _stack(adapters: Sequence[Params]) -> Params:
    """Stack adapters that are laid out. A lower rank is filled up with zeros, which add nothing."""
    return {name: _stacked([adapter[name] for adapter in adapters], name) for name in adapters[0]}


def _stacked(tensors: Sequence[Tensor], name: str) -> Tensor:
    if name.endswith("lora_B"):  # keeps the layout [r, out]
        return _stacked([t.mT for t in tensors], "").mT
    rank = max(len(t) for t in tensors)
    return torch.stack([pad(t, (0, 0, 0, rank - len(t))) for t in tensors])
