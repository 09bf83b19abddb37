"""Decide which waiting rows are begun: as many as the number of rows and the memory allow.

All rows of a batch are padded to the longest, so each counts with the length that the longest may come to have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mass.lm.continuous.ask import Limits
from mass.lm.continuous.queue import FairQueue, Group
from mass.lm.continuous.row import Row
from mass.lm.free_memory import spare_bytes
from mass.lm.parts import row_bytes
from mass.types import Params

if TYPE_CHECKING:
    from mass.lm.model import LM

COPIES = 2
"""Copies of an adapter while its rows run: laid out, and in a stack."""


class Admission:
    """The bounds of one decoder."""

    def __init__(self, lm: LM, limits: Limits) -> None:
        self._device = lm.device
        self._itemsize = int(lm.model.get_input_embeddings().weight.itemsize)
        self._each = row_bytes(lm.model.config, self._itemsize)
        self._rows = lm.decode_rows if limits.rows is None else limits.rows
        reserved = self._rows // 8 if limits.reserved is None else limits.reserved
        self._reserved = min(reserved, self._rows - 1)
        self._bound = float("inf") if limits.memory_gb is None else limits.memory_gb * 1e9

    def most(self, urgent: bool) -> int:
        """Return how many rows may run at once; fewer if they are not urgent."""
        return self._rows if urgent else self._rows - self._reserved

    def take(self, queue: FairQueue, running: Sequence[Row], held: int) -> list[Row]:
        """Remove and return the rows of the queue that are begun now. `held` are the bytes that running rows hold."""
        # What running rows hold is not free, but it is theirs in this account.
        budget = min(self._bound, spare_bytes(self._device) + held)
        rows = list(running)

        def fits(group: Group) -> bool:
            both = [*rows, *group.rows]
            if len(both) > self.most(group.urgent) or self._bytes(both) > budget:
                return False
            rows.extend(group.rows)
            return True

        taken = queue.take(fits)
        return taken if taken or running else queue.take_alone(lambda some: self._bytes(some) <= budget)

    def _bytes(self, rows: Sequence[Row]) -> float:
        adapters = {id(row.adapter): row.adapter for row in rows if row.adapter is not None}
        own = COPIES * self._itemsize * sum(_numbers(adapter) for adapter in adapters.values())
        return len(rows) * self._each.of(max(row.longest for row in rows)) + own


def _numbers(adapter: Params) -> int:
    return sum(tensor.numel() for tensor in adapter.values())
