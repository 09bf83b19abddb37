"""Rows side by side: those whose prompts are being read, and those that get one token in each step.

A batch is changed between two steps only. What has ended is dropped when that makes the batch a quarter smaller, and
whenever rows join it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mass.lm.continuous.mixture import LaidOut, Mixture, Owner
from mass.lm.continuous.row import Row
from mass.lm.drawing import draw, logprobs_of
from mass.lm.merging import held_bytes, merge
from mass.lm.prefill import left_pad, passes, select_rows
from mass.lm.sampling import decoding_cache, next_logits


class Reading:
    """Rows whose prompts are read, a part of them at a time; each prompt once for each adapter."""

    def __init__(self, lm: Any, rows: Sequence[Row], known: LaidOut, most: int | None) -> None:
        self.rows = list(rows)
        self.cache = decoding_cache(lm)
        self._lm, self._mixture = lm, Mixture(lm.adapters, known, lm.device)
        firsts = {(row.prompt, id(row.adapter)): row for row in rows}
        distinct = sorted(firsts.values(), key=lambda row: len(row.prompt), reverse=True)
        place = {(row.prompt, id(row.adapter)): number for number, row in enumerate(distinct)}
        self._source = [place[row.prompt, id(row.adapter)] for row in rows]
        self._prompts, self._adapters = [row.prompt for row in distinct], [row.adapter for row in distinct]
        self._passes = passes(lm, self._prompts, self.cache, self._use, most=most)
        self.logits = torch.empty(0)

    @property
    def held(self) -> int:
        """Bytes of keys and values."""
        return held_bytes(self.cache)

    def read_on(self) -> bool:
        """Make one pass; returns True after the last one. The rows then have their places in cache and logits."""
        self.logits, left = next(self._passes)
        if left:
            return False
        if self._source != list(range(len(self._prompts))):
            where = torch.tensor(self._source)
            select_rows(self.cache, where)
            self.logits = self.logits[where.to(self._lm.device)]
        return True

    def mask(self) -> Tensor:
        """Return the mask [n, L] of the rows, 1 on real tokens."""
        return left_pad([row.prompt for row in self.rows], self._lm.pad_id, self._lm.device)[1]

    def _use(self, rows: Tensor) -> Any:
        return self._lm.adapters.resume(self._mixture.of([self._adapters[i] for i in rows.tolist()]))


class Batch:
    """Rows that are decoded side by side, each with logits for its next token."""

    def __init__(self, lm: Any, begun: Reading, known: LaidOut, end_ids: frozenset[int]) -> None:
        self._lm, self._end_ids = lm, end_ids
        self._mixture = Mixture(lm.adapters, known, lm.device)
        self.rows, self._cache, self._mask, self._logits = begun.rows, begun.cache, begun.mask(), begun.logits

    @property
    def live(self) -> list[Row]:
        """The rows that have not ended."""
        return [row for row in self.rows if not row.ended]

    @property
    def held(self) -> int:
        """Bytes of keys and values."""
        return held_bytes(self._cache)

    def join(self, begun: Reading) -> None:
        """Take in rows whose prompts are read, and drop those that have ended."""
        ours, theirs = _live(self.rows), _live(begun.rows)
        kept = [self.rows[i] for i in ours] + [begun.rows[i] for i in theirs]
        if not kept:
            self.rows = []
            return
        length = max(row.length for row in kept)
        here, there = (torch.tensor(rows, dtype=torch.int64) for rows in (ours, theirs))
        merge([(self._cache, here), (begun.cache, there)], length)
        here, there = here.to(self._lm.device), there.to(self._lm.device)
        self._mask = torch.cat([_last(self._mask[here], length), _last(begun.mask()[there], length)])
        self._logits = torch.cat([self._logits[here], begun.logits[there]])
        self.rows = kept

    def step(self) -> int:
        """Draw a token for each row, then run the model on these tokens; returns the number of tokens."""
        chosen = self._drawn()
        count = self._take(chosen)
        if self.live:
            keep = self._compact()
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], 1)
            owners: list[Owner] = ["ended" if row.ended else row.adapter for row in self.rows]
            with self._lm.adapters.resume(self._mixture.of(owners)):
                self._logits = next_logits(self._lm, chosen[keep][:, None], self._mask, self._cache)
        return count

    def _drawn(self) -> Tensor:
        """Draw tokens [n], together for rows with the same temperature and top-p."""
        numbers = torch.tensor([row.number for row in self.rows], dtype=torch.float64).to(self._logits.device)
        alike: dict[tuple[float, float], list[int]] = {}
        for i, row in enumerate(self.rows):
            alike.setdefault((row.config.temperature, row.config.top_p), []).append(i)
        if len(alike) == 1:
            return draw(self._logits, self.rows[0].config, numbers)
        chosen = torch.empty(len(self.rows), dtype=torch.int64, device=self._logits.device)
        for rows in alike.values():
            where = torch.tensor(rows, device=self._logits.device)
            chosen[where] = draw(self._logits[where], self.rows[rows[0]].config, numbers[where])
        return chosen

    def _take(self, chosen: Tensor) -> int:
        """Give each row its token; returns how many rows took one."""
        asked = [i for i, row in enumerate(self.rows) if row.with_logprobs and not row.ended]
        logprobs: dict[int, float] = {}
        if asked:
            where = torch.tensor(asked, device=chosen.device)
            logprobs = dict(zip(asked, logprobs_of(self._logits[where], chosen[where]).tolist(), strict=True))
        live = 0
        for i, (row, token) in enumerate(zip(self.rows, chosen.tolist(), strict=True)):
            if not row.ended:
                row.take(token, logprobs.get(i), token in self._end_ids)
                live += 1
        return live

    def _compact(self) -> Tensor:
        """Drop ended rows when that makes the batch a quarter smaller; returns the indices [n'] of the kept rows."""
        live = _live(self.rows)
        if len(live) > 0.75 * len(self.rows):  # selecting rows copies the whole cache, so it must save enough
            return torch.arange(len(self.rows), device=self._lm.device)
        self.rows = [self.rows[i] for i in live]
        keep = torch.tensor(live)
        length = max(row.length for row in self.rows) - 1  # the newest token has no place yet
        merge([(self._cache, keep)], length)
        keep = keep.to(self._lm.device)
        self._mask = _last(self._mask[keep], length)
        return keep


def _live(rows: Sequence[Row]) -> list[int]:
    return [i for i, row in enumerate(rows) if not row.ended]


def _last(mask: Tensor, length: int) -> Tensor:
    """Return the last `length` places of a mask [n, L], with zeros before them where there are fewer."""
    return torch.nn.functional.pad(mask, (length - mask.shape[1], 0))
