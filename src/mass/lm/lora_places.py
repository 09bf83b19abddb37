"""Add the adapters of a stack to some rows of a batch, and leave the other rows to the base.

Rows are copied into G blocks of equal height, one for each adapter, so that one batched product serves all of them; the
results are written back over the rows they are for. A row without an adapter is never written to, so it is the base's
to the last bit, and costs nothing. A row that shares its adapter with others reads it together with them.

Legend: G adapters, N rows of a batch, S = G times height slots, T tokens, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mass.errors import ShapeError


@dataclass(frozen=True)
class Places:
    """The rows of a batch that use each adapter of a stack."""

    count: int
    """N."""
    slots: Tensor
    """[S] the row that each slot holds; a slot to spare holds any row."""
    filled: Tensor
    """[n] the slots whose row is its own; the other slots are to spare."""
    rows: Tensor
    """[n] the rows in these slots, each once."""

    @classmethod
    def of(cls, owners: Sequence[int | None], adapters: int, device: torch.device) -> Places:
        """Lay out N rows by the index of each row's adapter; None for a row of the base. Each adapter has a row."""
        rows_of: list[list[int]] = [[] for _ in range(adapters)]
        for row, owner in enumerate(owners):
            if owner is not None:
                rows_of[owner].append(row)
        height = max(map(len, rows_of))
        slots = [row for rows in rows_of for row in rows + rows[-1:] * (height - len(rows))]
        filled = [g * height + i for g, rows in enumerate(rows_of) for i in range(len(rows))]
        found = (torch.tensor(values, device=device) for values in (slots, filled, [slots[i] for i in filled]))
        return cls(len(owners), *found)

    def add_delta(self, output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        """Return `output + scaling B A x` where a row has an adapter, written over `output`, which has no gradient.

        Shapes: x [N, T, in] or [N T, in], output alike; a [G, r, in], b [G, out, r]. Raises ShapeError for a batch of
        other rows.
        """
        if x.shape[0] % self.count:
            raise ShapeError(f"a batch of {x.shape[0]} rows; expected {self.count}, or all tokens of so many")
        a, b = a.to(x.device, x.dtype), b.to(output.device, output.dtype)
        by_row, slots = output.view(self.count, -1, output.shape[-1]), self.slots.to(x.device)
        low = (x.reshape(self.count, -1, x.shape[-1])[slots].reshape(len(a), -1, x.shape[-1]) @ a.mT).to(output.dtype)
        blocks = by_row[slots.to(output.device)].reshape(len(b), -1, output.shape[-1])
        added = torch.baddbmm(blocks, low, b.mT, alpha=scaling).view(len(slots), -1, output.shape[-1])
        by_row.index_copy_(0, self.rows.to(output.device), added[self.filled.to(output.device)])
        return output
