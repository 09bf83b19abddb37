"""Sample continuations of prompts in one batch, with a KV cache, and a seed and an end of its own for each row.

Prompts are padded on the left. A prompt that several rows share is read once (`mass.lm.prefill`). A row that has ended
leaves the batch, so later steps compute only the rows that still run. With a stack of adapters all blocks of rows keep
the same height, so that one batched matrix product serves all adapters. The number of rows side by side is limited by
the free memory (`mass.lm.parts`). The reasons for a decoding loop of our own are in docs/adr/0019.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from mass.config import SamplingConfig
from mass.errors import DataError, ShapeError
from mass.lm.cache import new_cache
from mass.lm.drawing import draw, logprobs_of
from mass.lm.free_memory import spare_bytes
from mass.lm.growing import with_room
from mass.lm.lora import LoraSites, changes_nothing, laid_out, pick
from mass.lm.parts import parts, row_bytes
from mass.lm.prefill import prefill, select_rows
from mass.timing import Decoding, tell_decoding
from mass.types import Params, Sample


class Decodes(Protocol):
    """The part of a language model that sampling uses; `mass.lm.model.LM` has it."""

    model: Any
    tokenizer: Any
    name: str
    adapters: LoraSites
    device: torch.device
    decode_rows: int
    """Most rows decoded side by side, which limits the memory of the KV cache."""
    keeps_logits: bool
    """True if the model can leave out the logits of all but the last token."""

    @property
    def context(self) -> int: ...

    @property
    def end_ids(self) -> frozenset[int]: ...

    @property
    def pad_id(self) -> int: ...


LOOP_CHECK_EVERY = 32
"""Tokens between two looks at whether a text repeats itself."""
LOOP_CHARACTERS, LOOP_TIMES = 48, 4
"""A text that ends with one passage repeated at least 4 times, and over at least 48 characters, repeats itself."""


def repeats_itself(text: str) -> bool:
    """Return True for a text whose end is one passage of up to 400 characters, again and again."""
    for length in range(1, 401):
        times = max(LOOP_TIMES, -(-LOOP_CHARACTERS // length))
        if len(text) >= length * times and text.endswith(text[-length:] * times):
            return True
    return False


class StopStrings:
    """Finds the first stop string in a row's text, and decodes a text only if its newest token can complete one.

    With `loops`, a row that repeats itself is not continued either: it will not end by itself.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], *, loops: bool = False) -> None:
        self.stop = tuple(stop)
        self.loops = loops
        self.tokenizer = tokenizer
        self._completes: dict[int, bool] = {}

    def can_complete(self, token: int) -> bool:
        """Return True for a token whose text may hold the last character of a stop string, or a part of it."""
        if not self.stop:
            return False
        if (known := self._completes.get(token)) is None:
            text = self.tokenizer.decode([token]) if token < len(self.tokenizer) else ""
            # Several tokens may make one character; each alone is decoded to the replacement character.
            known = self._completes[token] = any(s[-1] in text for s in self.stop) or "\ufffd" in text
        return known

    def ends(self, tokens: Sequence[int]) -> bool:
        """Return True for a row whose text holds a stop string since its newest token."""
        return self.can_complete(tokens[-1]) and self.cut(self.text(tokens)) is not None

    def goes_round(self, tokens: Sequence[int]) -> bool:
        """Return True for a row that repeats itself and is not continued; looks only now and then."""
        return self.loops and len(tokens) % LOOP_CHECK_EVERY == 0 and repeats_itself(self.text(tokens))

    def text(self, tokens: Sequence[int]) -> str:
        """Decode a row's tokens, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def sample(self, tokens: Sequence[int], finished: bool, logprobs: Sequence[float] = ()) -> Sample:
        """Make a sample of a row's tokens, its text cut at the first stop string."""
        text = self.text(tokens)
        cut = self.cut(text)
        return Sample(tuple(tokens), text if cut is None else cut, finished, tuple(logprobs))

    def cut(self, text: str) -> str | None:
        """Return the text before the first stop string; None when there is none."""
        found = [at for s in self.stop if (at := text.find(s)) >= 0]
        return text[: min(found)] if found else None


@dataclass(frozen=True)
class _Asked:
    """Rows to be decoded side by side, under one adapter or in equal consecutive blocks for a stack of them."""

    prompts: Sequence[Sequence[int]]
    config: SamplingConfig
    seeds: Sequence[int]
    adapter: Params | None
    blocks: int
    stop: StopStrings
    with_logprobs: bool


@dataclass
class _Rows:
    """The n rows still in the batch."""

    index: Tensor
    """[n] their indices among all N rows."""
    cache: DynamicCache
    mask: Tensor
    """[n, L] 1 on real tokens, 0 on padding."""
    adapter: Params | None
    blocks: int


@dataclass
class _Pace:
    """The progress of all parts of one call together."""

    waiting: int
    """Number of rows of parts that have not begun."""
    tokens: int = 0
    """Number of tokens sampled so far."""
    began: float = field(default_factory=time.perf_counter)
    """Time in seconds (`perf_counter`) at which the call began."""
    part_began: float = 0.0
    """Time in seconds at which the present part began."""

    def begin(self, rows: int) -> None:
        """Start a part of so many rows."""
        self.waiting, self.part_began = self.waiting - rows, time.perf_counter()

    def tell(self, rows: int, live: int, step: int, steps: int) -> None:
        """Report that `live` of the part's `rows` rows continue after step `step` of at most `steps`.

        The estimate of the time left takes a step to last equally long however few rows continue.
        """
        now = time.perf_counter()
        each = (now - self.part_began) / step
        left_s = each * (steps - step if live else 0) + each * steps * self.waiting / rows
        tell_decoding(Decoding(self.tokens, live + self.waiting, now - self.began, left_s))


def sample_rows(
    lm: Decodes,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    seeds: Sequence[int],
    adapter: Params | None,
    stop: StopStrings,
    *,
    with_logprobs: bool = False,
) -> list[Sample]:
    """Sample one continuation of each prompt. Row i is a function of its prompt, seed and adapter alone.

    A stack of adapters needs as many equal consecutive blocks of prompts.

    Raises:
        ShapeError: seeds or a stack that do not fit the prompts.
        DataError: a prompt that fills the model's context.
    """
    blocks = count_adapters(adapter)
    _check(lm, prompts, seeds, blocks)
    if adapter is not None and changes_nothing(adapter):
        adapter = None  # a fifth to a half of a step would go into adding zeros
    adapter = None if adapter is None else laid_out(adapter, lm.model.get_input_embeddings().weight.dtype)
    height = max(1, len(prompts) // max(1, blocks))
    samples: list[Sample | None] = [None] * len(prompts)
    pace = _Pace(len(prompts))
    for rows, own in side_by_side(lm, prompts, config, adapter, height):
        pace.begin(len(rows))
        asked = _Asked(
            [prompts[i] for i in rows], config, [seeds[i] for i in rows], own, count_adapters(own), stop, with_logprobs
        )
        for i, sample in zip(rows, _decode(lm, asked, pace), strict=True):
            samples[i] = sample
    return [sample for sample in samples if sample is not None]


def count_adapters(adapter: Params | None) -> int:
    """Return the number of adapters of a stack; 1 for a single adapter, or none."""
    first = None if adapter is None else next(iter(adapter.values()))
    return first.shape[0] if first is not None and first.dim() == 3 else 1


def _check(lm: Decodes, prompts: Sequence[Sequence[int]], seeds: Sequence[int], blocks: int) -> None:
    if len(seeds) != len(prompts):
        raise ShapeError(f"{len(seeds)} seeds for {len(prompts)} prompts; expected one each")
    check_lengths(lm, prompts)
    if len(prompts) % blocks:
        raise ShapeError(f"{len(prompts)} prompts for a stack of {blocks} adapters; expected a multiple")


def check_lengths(lm: Decodes, prompts: Sequence[Sequence[int]]) -> None:
    """Check that each prompt leaves room for a token in the model's context. Raises DataError."""
    if prompts and (longest := max(map(len, prompts))) >= lm.context:
        raise DataError(
            f"a prompt of {longest} tokens; {lm.name!r} reads at most {lm.context - 1}; shorten it or use a model with "
            "a longer context"
        )


def side_by_side(
    lm: Decodes, prompts: Sequence[Sequence[int]], config: SamplingConfig, adapter: Params | None, height: int
) -> list[tuple[list[int], Params | None]]:
    """Return the rows of each part, and its adapter or stack. A block of a stack stays whole where it fits."""
    lengths = [min(len(p) + config.max_new_tokens, lm.context) for p in prompts]
    spare, each = spare_bytes(lm.device), row_bytes(lm.model.config, lm.model.get_input_embeddings().weight.itemsize)
    if adapter is None or next(iter(adapter.values())).dim() == 2:
        return [(rows, adapter) for rows in parts(lengths, 1, spare, each, lm.decode_rows)]
    longest = [max(lengths[start : start + height]) for start in range(0, len(lengths), height)]
    found: list[tuple[list[int], Params | None]] = []
    for units in parts(longest, height, spare, each, lm.decode_rows):
        rows = [unit * height + i for unit in units for i in range(height)]
        if len(units) > 1:
            some = adapter if len(units) == len(longest) else {name: t[units] for name, t in adapter.items()}
            found.append((rows, some))
        else:  # a single block has one adapter, so its rows may be divided freely
            own = pick(adapter, units[0])
            within = parts([lengths[i] for i in rows], 1, spare, each, lm.decode_rows)
            found += [([rows[i] for i in part], own) for part in within]
    return found


@torch.no_grad()
def _decode(lm: Decodes, asked: _Asked, pace: _Pace) -> list[Sample]:
    """Decode rows side by side, one token of each row in a step, until all have ended."""
    count, config, device = len(asked.prompts), asked.config, lm.device
    limits = torch.tensor([min(config.max_new_tokens, lm.context - len(p)) for p in asked.prompts], device=device)
    limit = int(limits.max())
    # All random numbers are drawn first, by row and step, so that a row's do not depend on which rows leave the batch.
    uniform = uniform_numbers(asked.seeds, limit, config).to(device)
    tokens = torch.full((count, limit), -1, device=device)  # -1 after the end of a row
    logprobs = torch.zeros(count, limit, device=device) if asked.with_logprobs else None
    finished = torch.zeros(count, dtype=torch.bool, device=device)
    end_ids = torch.tensor(sorted(lm.end_ids), device=device)
    cache = decoding_cache(lm)
    logits, mask = prefill(lm, asked.prompts, cache, asked.adapter, asked.blocks)
    rows = _Rows(torch.arange(count, device=device), cache, mask, asked.adapter, asked.blocks)
    ended, going = finished, count
    for t in range(limit):
        chosen = draw(logits, config, uniform[rows.index, t])
        live = ~ended[rows.index]  # rows that have ended may still be in the batch until the next `_compact`
        tokens[rows.index, t] = torch.where(live, chosen, -1)
        if logprobs is not None:
            logprobs[rows.index, t] = logprobs_of(logits, chosen)
        done = torch.isin(chosen, end_ids)
        for i in _in_question(asked.stop, chosen, live & ~done, t):
            row = tokens[rows.index[i], : t + 1].tolist()
            done[i] = asked.stop.ends(row)
            if not done[i] and asked.stop.goes_round(row):
                limits[rows.index[i]] = t + 1
        finished[rows.index] |= done & live
        ended = finished | (limits <= t + 1)
        pace.tokens, going = pace.tokens + going, int((~ended).sum())
        pace.tell(count, going, t + 1, limit)
        if going == 0:
            break
        # Rows that leave the batch change results by rounding only: each row has its own numbers, positions and mask.
        rows, keep = _compact(rows, ended)
        logits = _step(lm, rows, chosen[keep][:, None])
    return _collect(tokens.cpu(), None if logprobs is None else logprobs.cpu(), finished.cpu(), asked.stop)


def decoding_cache(lm: Decodes) -> DynamicCache:
    """Make an empty cache, with layers that grow in place where they hold only keys and values."""
    return with_room(new_cache(lm.model))


def _step(lm: Decodes, rows: _Rows, ids: Tensor) -> Tensor:
    """Run the model on the tokens [n, 1] just sampled; returns the logits [n, V] of the next tokens."""
    rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(ids), 1)], 1)
    with lm.adapters.use(rows.adapter):
        return next_logits(lm, ids, rows.mask, rows.cache)


def next_logits(lm: Decodes, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Run the model on the newest token of each row [n, 1], which the mask [n, L] includes; returns logits [n, V]."""
    # Positions count real tokens only, not the padding. Rows that have ended may already be at the context's end.
    positions = (mask.sum(1, keepdim=True) - 1).clamp_max(lm.context - 1)
    out = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return out.logits[:, -1].to(lm.device)


def uniform_numbers(seeds: Sequence[int], limit: int, config: SamplingConfig) -> Tensor:
    """Draw [N, limit] float64 numbers in [0, 1), each row's from its own seed alone."""
    if config.temperature == 0:
        return torch.zeros(len(seeds), limit, dtype=torch.float64)
    draws = [torch.rand(limit, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(draws)


def _in_question(stop: StopStrings, chosen: Tensor, live: Tensor, t: int) -> list[int]:
    """Return the rows whose text must be looked at, since the newest token may end it."""
    if not (stop.stop or stop.loops):
        return []
    looks_at_all = stop.loops and (t + 1) % LOOP_CHECK_EVERY == 0
    rows = zip(chosen.tolist(), live.tolist(), strict=True)
    return [i for i, (token, is_live) in enumerate(rows) if is_live and (looks_at_all or stop.can_complete(token))]


def _compact(rows: _Rows, ended: Tensor) -> tuple[_Rows, Tensor]:
    """Drop ended rows when that makes the batch a quarter smaller; all blocks keep the height of the fullest one.

    Returns the rows, and the indices [n'] of those that were kept.
    """
    live = ~ended[rows.index]
    everything = torch.arange(len(live), device=live.device)
    blocks = live.view(rows.blocks, -1)
    kept_blocks = blocks.any(1).nonzero()[:, 0]
    height = int(blocks.sum(1).max())
    if len(kept_blocks) * height > 0.75 * len(live):  # selecting rows copies the whole cache, so it must save enough
        return rows, everything
    # Live rows first; a block with fewer of them is filled up with ended rows, and then put back into its order.
    order = blocks[kept_blocks].int().sort(dim=1, descending=True, stable=True).indices[:, :height].sort(1).values
    keep = everything.view(rows.blocks, -1)[kept_blocks].gather(1, order).flatten()
    select_rows(rows.cache, keep)
    adapter = rows.adapter
    if adapter is not None and len(kept_blocks) < rows.blocks:
        adapter = {name: t[kept_blocks] for name, t in adapter.items()}
    return _Rows(rows.index[keep], rows.cache, rows.mask[keep], adapter, len(kept_blocks)), keep


def _collect(tokens: Tensor, logprobs: Tensor | None, finished: Tensor, stop: StopStrings) -> list[Sample]:
    """Make a sample of each row's tokens; -1 stands after a row's end."""
    samples: list[Sample] = []
    kept_logprobs: list[list[float]] = [[]] * len(tokens) if logprobs is None else logprobs.tolist()
    for row, values, complete in zip(tokens.tolist(), kept_logprobs, finished.tolist(), strict=True):
        kept = [i for i in row if i >= 0]
        samples.append(stop.sample(kept, complete, values[: len(kept)]))
    return samples
