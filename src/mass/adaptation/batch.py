"""The losses of practice examples as a function of adapter parameters, for the inner loop.

`l_i(theta)` = mean negative log-likelihood of the tokens of the solution `a_i` after the solver prompt of the problem
`p_i`. Rejected examples take no part: the losses are those of the N valid ones, in the order of `owners` and `places`.

Legend: B tasks, m examples of a task, N valid examples of all tasks, n of them in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mass.config import VerifyConfig
from mass.lm import room
from mass.types import Batch, Example, Params

if TYPE_CHECKING:
    from mass.lm import LM


TOKENS_PER_PASS = {"cpu": 2048}
"""Tokens of one pass of the inner loop, by kind of device; on other devices all rows pass at once."""


def rows_per_pass(device_type: str, tokens_per_row: int) -> int | None:
    """Return the number of rows in one pass where the user sets none; None for all of them.

    On a CPU the overhead of each operation dominates while a pass holds few tokens. From about a thousand tokens on,
    arithmetic dominates, and more rows only cost memory: about 2048 tokens give the least time for rows of any length
    (benchmarks/stack.py). A GPU is still dominated by overhead there, so it takes all rows; `memory_gb` limits them.
    The number depends on the rows and the kind of device alone, and is never found by timing, so that a resumed run
    repeats itself bit for bit.
    """
    tokens = TOKENS_PER_PASS.get(device_type)
    return None if tokens is None else max(1, tokens // max(1, tokens_per_row))


@dataclass(frozen=True)
class Practice:
    """The valid examples of a stack of B tasks as one batch of N rows."""

    lm: LM
    batch: Batch
    owners: Tensor
    """[N] the index of each row's task."""
    places: Tensor
    """[N] the index of each row among the m examples of its task."""

    def __len__(self) -> int:
        return len(self.owners)

    def rows_per_pass(self, micro_batch: int | None) -> int | None:
        """Return `micro_batch` if it is a number, else the number for rows as long as the longest; None for all."""
        if micro_batch is not None:
            return micro_batch
        return rows_per_pass(self.lm.device.type, self.batch.input_ids.shape[1])

    def spare_gb(self, rows: int | None) -> float | None:
        """Return the gigabytes that the inner loop may hold, `rows` rows at a time; None where they surely suffice."""
        return room.spare_gb(self.lm, min(rows or len(self), len(self)), self.batch.input_ids.shape[1])

    def losses(self, params: Params, index: Tensor | None = None) -> Float[Tensor, " n"]:
        """Return the losses of the rows `index` under a stack of B adapters: the argument `losses` of `adapt`."""
        if index is None:
            return self.lm.losses(self.batch, params, self.owners)
        return self.lm.losses(self.batch.select(index), params, self.owners[index])

    @torch.no_grad()
    def measured(self, params: Params, micro_batch: int | None = None) -> Float[Tensor, " N"]:
        """Return the losses without a graph, `micro_batch` rows at a time."""
        index = torch.arange(len(self), device=self.owners.device)
        return torch.cat([self.losses(params, part) for part in index.split(micro_batch or len(self))])

    def pick(self, table: Float[Tensor, "B m"]) -> Float[Tensor, " N"]:
        """Return the entries of a table [tasks, examples] that belong to the rows. Differentiable."""
        return table[self.owners, self.places]

    def only(self, chosen: Bool[Tensor, "B m"]) -> Practice:
        """Return the practice of the chosen examples alone, in the same order."""
        index = chosen[self.owners, self.places].nonzero().squeeze(1)
        return Practice(self.lm, self.batch.select(index), self.owners[index], self.places[index])

    def targets(self, problems: Sequence[str], groups: Sequence[Sequence[Example]]) -> tuple[list[str], list[Example]]:
        """Return each row's target problem and its example, as `mass.adaptation.scoring.score` takes them."""
        places: list[tuple[int, int]] = list(zip(self.owners.tolist(), self.places.tolist(), strict=True))
        return [problems[b] for b, _ in places], [groups[b][j] for b, j in places]

    def spread(self, values: Float[Tensor, " N"], tasks: int, examples: int, fill: float = 0.0) -> Tensor:
        """Put the rows' values into a table [tasks, examples], with `fill` elsewhere: the inverse of `pick`."""
        table = torch.full((tasks, examples), fill, dtype=values.dtype, device=values.device)
        table[self.owners, self.places] = values
        return table


def practice_of(lm: LM, groups: Sequence[Sequence[Example]]) -> Practice | None:
    """Make a batch of the valid examples, the longest last; None when no example of any task is valid."""
    found = [(b, j, e) for b, group in enumerate(groups) for j, e in enumerate(group) if e.valid]
    if not found:
        return None
    rows = [(lm.example_row(e.problem, e.solution), b, j) for b, j, e in found]
    # Micro-batches of rows of similar length hold little padding, and the engine measures memory on the last row.
    rows.sort(key=lambda row: sum(map(len, row[0])))
    batch = lm.batch([row for row, _, _ in rows])
    owners = torch.tensor([b for _, b, _ in rows], device=lm.device)
    places = torch.tensor([j for _, _, j in rows], device=lm.device)
    return Practice(lm, batch, owners, places)


def valid_mask(groups: Sequence[Sequence[Example]], device: torch.device) -> Tensor:
    """Return [B, m] bool, True for a valid example."""
    return torch.tensor([[e.valid for e in group] for group in groups], device=device)


def trust_of(groups: Sequence[Sequence[Example]], config: VerifyConfig, like: Tensor) -> Float[Tensor, "B m"] | None:
    """Return each example's agreement, 1 where it has none, as `like` has its numbers; None if it weighs nothing."""
    if not config.by_share or all(e.agreement is None for group in groups for e in group):
        return None
    shares = [[1.0 if e.agreement is None or not e.valid else e.agreement for e in group] for group in groups]
    return torch.tensor(shares, dtype=like.dtype, device=like.device)
