"""Fill a cache with prompts, and compute the logits after each; every distinct prompt of an adapter is read once.

Rows that share a prompt (the m copies of a synthesis prompt, the votes of one problem) share its pass, and get rows of
their own in the cache afterwards. The beginning that all prompts of an adapter have in common (the examples before many
questions) is read once too. The rest of the prompts is padded on the left to the longest. Where lengths are very
different, the longer ones are read alone up to the position at which the shorter begin, and a pass never holds more
than `TOKENS` positions. This changes the results by rounding only.

Legend: N rows in G equal consecutive blocks, one for each adapter of a stack; w distinct prompts of a block, L
positions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from mass.types import Params

TOKENS = 4096
"""Most positions in one pass, padding included: it limits the memory, and is enough to keep any device busy."""
WASTE = 256
"""Number of padded positions from which a further pass is worth its overhead."""

Segment = tuple[int, int, int]
"""(first position, position after the last, number of prompts of each block that begin before the latter)"""


def prefill(
    lm: Any, prompts: Sequence[Sequence[int]], cache: DynamicCache, adapter: Params | None, blocks: int
) -> tuple[Tensor, Tensor]:
    """Fill the empty cache with N rows; returns the logits [N, V] after each prompt, and the mask [N, L].

    Args:
        blocks: number of equal consecutive blocks of prompts: the adapters of a stack, or 1.
    """
    distinct, source = _distinct(prompts, blocks)
    width = len(distinct) // blocks
    heads = _common(distinct, blocks) if _can_be_divided(cache) else []
    rests = [prompt[len(heads[i // width]) :] for i, prompt in enumerate(distinct)] if heads else distinct
    logits = torch.empty(0)
    for logits, _ in passes(lm, rests, cache, lambda _: lm.adapters.use(adapter), blocks, heads=heads):  # noqa: B007
        pass
    mask = _laid_out(lm, rests, heads)[1]
    if len(distinct) < len(prompts) or source != list(range(len(source))):
        where = torch.tensor(source)
        select_rows(cache, where)
        where = where.to(lm.device)
        logits, mask = logits[where], mask[where]
    return logits, mask


def passes(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    cache: DynamicCache,
    use: Callable[[Tensor], AbstractContextManager[None]],
    blocks: int = 1,
    most: int | None = None,
    heads: Sequence[Sequence[int]] = (),
) -> Iterator[tuple[Tensor, int]]:
    """Fill the empty cache with prompts, one pass at a time.

    Yields logits [.., V], after the last pass those after each prompt [w G, V], and the number of positions to come.

    Args:
        prompts: those of each block from the longest to the shortest.
        use: puts the adapters of the given rows (indices of prompts) in use.
        most: positions of one pass at most, `TOKENS` by default; more where the cache must be filled in one pass.
        heads: what stands before all prompts of each block, read once; the prompts are then without it.
    """
    width, shared = len(prompts) // blocks, max(map(len, heads), default=0)
    ids, mask = _laid_out(lm, prompts, heads)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    present, rest = 0, ids.shape[1] - shared
    segments = list(_short_enough(0, shared, 1, blocks, most))
    for first, end, begun in _segments(_begins(prompts, blocks), rest, blocks, _can_be_cut(cache), most):
        segments.append((first + shared, end + shared, begun))
    for first, end, begun in segments:
        # Prompts that begin here get copies of an earlier row's cache: all its positions are padding for them, and
        # masked.
        if 0 < present < begun:
            select_rows(cache, _of_blocks(blocks, present, torch.arange(begun).clamp_max(present - 1)))
        present = begun
        rows = _of_blocks(blocks, width, torch.arange(begun)).to(lm.device)
        with use(rows):
            out = lm.model(
                input_ids=ids[rows, first:end],
                attention_mask=mask[rows, :end],
                position_ids=positions[rows, first:end],
                past_key_values=cache,
                use_cache=True,
                **({"logits_to_keep": 1} if lm.keeps_logits else {}),
            )
        yield out.logits[:, -1].to(lm.device), ids.shape[1] - end


def _laid_out(lm: Any, prompts: Sequence[Sequence[int]], heads: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the tokens [w G, L] and their mask: the heads of the blocks, padded on the left, and then the prompts,
    padded so too."""
    ids, mask = left_pad(prompts, lm.pad_id, lm.device)
    if not heads:
        return ids, mask
    head_ids, head_mask = left_pad(heads, lm.pad_id, lm.device)
    width = len(prompts) // len(heads)
    both = [(head_ids, ids), (head_mask, mask)]
    ids, mask = (torch.cat([head.repeat_interleave(width, 0), rest], 1) for head, rest in both)
    return ids, mask


def left_pad(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad prompts on the left; returns the tokens [N, L] and their mask, 1 on real tokens."""
    length = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def select_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Replace the rows of the cache by `rows` among them, in this order; a row may be repeated."""
    cache.reorder_cache(rows)  # pyright: ignore[reportArgumentType] (int64 all the same); layers of every kind have it


def _distinct(prompts: Sequence[Sequence[int]], blocks: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """Return the distinct prompts of each block, and for each row the index of its prompt among them.

    Prompts are sorted from the longest to the shortest. Each block is filled up to the same number by repeating its
    last prompt, since a stack of adapters needs blocks of equal height.
    """
    height = len(prompts) // blocks
    rows = [tuple(prompt) for prompt in prompts]
    groups = [rows[start : start + height] for start in range(0, len(rows), height)]
    found = [sorted(dict.fromkeys(group), key=len, reverse=True) for group in groups]
    width = max(map(len, found))
    places = [{prompt: number * width + i for i, prompt in enumerate(own)} for number, own in enumerate(found)]
    source = [place[prompt] for place, group in zip(places, groups, strict=True) for prompt in group]
    return [prompt for own in found for prompt in own + own[-1:] * (width - len(own))], source


def _common(distinct: Sequence[tuple[int, ...]], blocks: int) -> list[tuple[int, ...]]:
    """Return what all prompts of a block begin with, for each block; nothing where it would save too little.

    At least one token of each prompt is left to the rest.
    """
    width = len(distinct) // blocks
    heads: list[tuple[int, ...]] = []
    for start in range(0, len(distinct), width):
        own = distinct[start : start + width]
        shortest = min(map(len, own)) - 1
        least, greatest = min(own), max(own)  # what these two share, all between them share
        length = next((i for i in range(shortest) if least[i] != greatest[i]), shortest)
        heads.append(own[0][:length])
    saved = min(map(len, heads)) * (width - 1) * blocks
    return heads if saved >= WASTE else []


def _begins(distinct: Sequence[Sequence[int]], blocks: int) -> list[int]:
    """Return [w]: the position at which the j-th prompt of a block begins, the first such position of all blocks."""
    longest, width = max(map(len, distinct)), len(distinct) // blocks
    return [longest - max(map(len, distinct[j::width])) for j in range(width)]


def _segments(
    begins: Sequence[int], length: int, blocks: int, may_cut: bool, most: int | None = None
) -> Iterator[Segment]:
    """Yield the segments into which the L positions are cut, so that each pass is short and holds little padding."""
    if not may_cut:
        yield 0, length, len(begins)
        return
    first = 0
    for at in sorted(set(begins[1:])):
        begun = bisect_right(begins, at - 1)
        if (at - first) * (len(begins) - begun) * blocks >= WASTE:
            yield from _short_enough(first, at, begun, blocks, most)
            first = at
    yield from _short_enough(first, length, len(begins), blocks, most)


def _short_enough(first: int, end: int, begun: int, blocks: int, most: int | None) -> Iterator[Segment]:
    """Cut a segment into passes of at most `most` positions, `TOKENS` by default."""
    step = max(1, (most or TOKENS) // (begun * blocks))
    for start in range(first, end, step):
        yield start, min(start + step, end), begun


def _can_be_cut(cache: DynamicCache) -> bool:
    """Return True where all layers keep only keys and values, of which masks hide those of other rows.

    A row of a recurrent state could not be copied for a prompt that begins later: the state depends on all its tokens.
    """
    return bool(cache.layers) and all(
        isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in cache.layers
    )


def _can_be_divided(cache: DynamicCache) -> bool:
    """Return True where padding may stand within a row: a sliding window would count it among the tokens it sees."""
    return _can_be_cut(cache) and not any(isinstance(layer, DynamicSlidingWindowLayer) for layer in cache.layers)


def _of_blocks(blocks: int, height: int, places: Tensor) -> Tensor:
    """Return the rows at the same places of each block of this height."""
    return (torch.arange(blocks)[:, None] * height + places).flatten()
