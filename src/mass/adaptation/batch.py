"""Practice examples of B tasks -> their losses as a function of adapter parameters: what the inner loop learns.

`l_i(theta)` = mean negative log-likelihood of the tokens of `a_i` after the solver prompt of `p_i`. Rejected examples
take no part: the losses are those of the N valid ones, in the order of `owners` and `places`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mass.lm import room
from mass.types import Batch, Example, Params

if TYPE_CHECKING:
    from mass.lm import LM


TOKENS_PER_PASS = {"cpu": 2048}
"""Tokens of one pass of the inner loop, by kind of device; those not named pass everything at once."""


def rows_per_pass(device_type: str, tokens_per_row: int) -> int | None:
    """How many rows of a stack pass at once where the user names no number; None: all of them.

    A CPU is bound by the overhead of each operation while a pass holds few tokens and by arithmetic from about a
    thousand on, where more rows only cost memory: about 2048 tokens is at the flat bottom for rows of any length
    (benchmarks/stack.py). A GPU is still bound by overhead there, so it takes all; `memory_gb` says what fits.
    The same rows give the same number on any machine of the kind, never one found by timing: a resumed run repeats
    itself bit for bit.
    """
    tokens = TOKENS_PER_PASS.get(device_type)
    return None if tokens is None else max(1, tokens // max(1, tokens_per_row))


@dataclass(frozen=True)
class Practice:
    """The valid examples of a stack of B tasks as one batch of N rows."""

    lm: LM
    batch: Batch
    owners: Tensor
    """[N] the task of each row."""
    places: Tensor
    """[N] its place among the m examples of that task."""

    def __len__(self) -> int:
        return len(self.owners)

    def rows_per_pass(self, micro_batch: int | None) -> int | None:
        """`micro_batch` where it is a number, else what `rows_per_pass` says of rows as long as the longest."""
        if micro_batch is not None:
            return micro_batch
        return rows_per_pass(self.lm.device.type, self.batch.input_ids.shape[1])

    def spare_gb(self, rows: int | None) -> float | None:
        """What the inner loop may hold, so many rows at a time; None where that is surely enough."""
        return room.spare_gb(self.lm, min(rows or len(self), len(self)), self.batch.input_ids.shape[1])

    def losses(self, params: Params, index: Tensor | None = None) -> Float[Tensor, " n"]:
        """Per-example losses under a stack of B adapters: `losses` of `mass.metagrad.adapt`."""
        if index is None:
            return self.lm.losses(self.batch, params, self.owners)
        return self.lm.losses(self.batch.select(index), params, self.owners[index])

    @torch.no_grad()
    def measured(self, params: Params, micro_batch: int | None = None) -> Float[Tensor, " N"]:
        """The losses as plain numbers, `micro_batch` rows at a time."""
        index = torch.arange(len(self), device=self.owners.device)
        return torch.cat([self.losses(params, part) for part in index.split(micro_batch or len(self))])

    def pick(self, table: Float[Tensor, "B m"]) -> Float[Tensor, " N"]:
        """The entries of a [tasks, examples] table that belong to the rows. Differentiable."""
        return table[self.owners, self.places]

    def targets(self, problems: Sequence[str], groups: Sequence[Sequence[Example]]) -> tuple[list[str], list[Example]]:
        """The problem each row was written for, and its example: what `mass.adaptation.scoring.score` reads."""
        places: list[tuple[int, int]] = list(zip(self.owners.tolist(), self.places.tolist(), strict=True))
        return [problems[b] for b, _ in places], [groups[b][j] for b, j in places]

    def spread(self, values: Float[Tensor, " N"], tasks: int, examples: int, fill: float = 0.0) -> Tensor:
        """The inverse of `pick`: [tasks, examples], `fill` where an example is not valid."""
        table = torch.full((tasks, examples), fill, dtype=values.dtype, device=values.device)
        table[self.owners, self.places] = values
        return table


def practice_of(lm: LM, groups: Sequence[Sequence[Example]]) -> Practice | None:
    """None when no example of any task is valid."""
    found = [(b, j, e) for b, group in enumerate(groups) for j, e in enumerate(group) if e.valid]
    if not found:
        return None
    rows = [(lm.example_row(e.problem, e.solution), b, j) for b, j, e in found]
    rows.sort(key=lambda row: sum(map(len, row[0])))  # micro-batches of like length hold little padding
    batch = lm.batch([row for row, _, _ in rows])
    owners = torch.tensor([b for _, b, _ in rows], device=lm.device)
    places = torch.tensor([j for _, _, j in rows], device=lm.device)
    return Practice(lm, batch, owners, places)


def valid_mask(groups: Sequence[Sequence[Example]], device: torch.device) -> Tensor:
    """[B, m] bool."""
    return torch.tensor([[e.valid for e in group] for group in groups], device=device)
