"""Prompts -> sampled continuations: one batch, a KV cache, left padding, each row with its own seed and its own stop.

A row that has ended leaves the batch, so late steps are as narrow as what still runs. With a stack of adapters all
blocks of rows keep the same height, which lets one batched matrix product serve every adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from mass.adapter import LoraSites
from mass.config import SamplingConfig
from mass.errors import DataError, ShapeError
from mass.lm.cache import new_cache
from mass.types import Params, Sample


class Decodes(Protocol):
    """What sampling needs of a language model."""

    model: Any
    tokenizer: Any
    name: str
    adapters: LoraSites
    device: torch.device
    decode_rows: int
    """Rows decoded side by side at most; bounds the memory of the KV cache."""
    keeps_logits: bool
    """Whether the model can leave out the logits of all but the last token."""

    @property
    def context(self) -> int: ...

    @property
    def end_ids(self) -> frozenset[int]: ...

    @property
    def pad_id(self) -> int: ...


class StopStrings:
    """Finds the first stop string in a row's text; looks only where the newest token can complete one."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.tokenizer = tokenizer
        self._can_end: Tensor | None = None

    def candidates(self, tokens: Tensor) -> Tensor:
        """[N] token ids -> [N] bool."""
        if not self.stop:
            return torch.zeros_like(tokens, dtype=torch.bool)
        if self._can_end is None or self._can_end.device != tokens.device:
            texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
            ends = {s[-1] for s in self.stop}
            self._can_end = torch.tensor([bool(ends & set(t)) for t in texts], device=tokens.device)
        inside = tokens < len(self._can_end)
        return self._can_end[tokens.clamp_max(len(self._can_end) - 1)] & inside

    def cut(self, text: str) -> str | None:
        """The text before the first stop string; None when there is none."""
        found = [at for s in self.stop if (at := text.find(s)) >= 0]
        return text[: min(found)] if found else None


@dataclass
class _Rows:
    """The rows still in the batch. `index` [n] names them among all N."""

    index: Tensor
    cache: DynamicCache
    mask: Tensor
    adapter: Params | None
    blocks: int


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
    if len(seeds) != len(prompts):
        raise ShapeError(f"{len(seeds)} seeds for {len(prompts)} prompts; expected one each")
    stacked = adapter is not None and next(iter(adapter.values())).dim() == 3
    blocks = next(iter(adapter.values())).shape[0] if stacked and adapter else 1
    if prompts and (longest := max(map(len, prompts))) >= lm.context:
        raise DataError(
            f"a prompt of {longest} tokens; {lm.name!r} reads at most {lm.context - 1}; shorten it or use a model with "
            "a longer context"
        )
    if len(prompts) % blocks:
        raise ShapeError(f"{len(prompts)} prompts for a stack of {blocks} adapters; expected a multiple")
    height = len(prompts) // blocks
    per_pass = max(1, lm.decode_rows // height) if stacked else 1
    samples: list[Sample] = []
    step = per_pass * height if stacked else lm.decode_rows
    for start in range(0, len(prompts), step):
        end = min(start + step, len(prompts))
        part = adapter
        if stacked and adapter:
            part = {name: t[start // height : end // height] for name, t in adapter.items()}
        blocks = (end - start) // height if stacked else 1
        samples += _decode(lm, prompts[start:end], config, seeds[start:end], part, blocks, stop, with_logprobs)
    return samples


@torch.no_grad()
def _decode(
    lm: Decodes,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    seeds: Sequence[int],
    adapter: Params | None,
    blocks: int,
    stop: StopStrings,
    with_logprobs: bool,
) -> list[Sample]:
    count = len(prompts)
    limits = torch.tensor([min(config.max_tokens, lm.context - len(p)) for p in prompts], device=lm.device)
    limit = int(limits.max())
    uniform = _uniform(seeds, limit, config).to(lm.device)
    tokens = torch.full((count, limit), -1, device=lm.device)
    logprobs = torch.zeros(count, limit, device=lm.device) if with_logprobs else None
    finished = torch.zeros(count, dtype=torch.bool, device=lm.device)
    ended = finished
    end_ids = torch.tensor(sorted(lm.end_ids), device=lm.device)
    ids, mask = _left_pad(prompts, lm.pad_id, lm.device)
    rows = _Rows(torch.arange(count, device=lm.device), _cache(lm), mask, adapter, blocks)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    for t in range(limit):
        with lm.adapters.use(rows.adapter):
            out = lm.model(
                input_ids=ids,
                attention_mask=rows.mask,
                position_ids=positions,
                past_key_values=rows.cache,
                use_cache=True,
                **({"logits_to_keep": 1} if t == 0 and lm.keeps_logits else {}),
            )
        logits = out.logits[:, -1].to(lm.device).float()
        chosen = _choose(logits, config, uniform[rows.index, t])
        live = ~ended[rows.index]
        tokens[rows.index, t] = torch.where(live, chosen, -1)
        if logprobs is not None:
            logprobs[rows.index, t] = torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]
        done = torch.isin(chosen, end_ids)
        _find_stops(lm, stop, tokens, rows.index, chosen, live & ~done, done, t)
        finished[rows.index] |= done & live
        ended = finished | (limits <= t + 1)
        if bool(ended.all()):
            break
        rows, keep = _compact(rows, ended)
        ids = chosen[keep][:, None]
        rows.mask = torch.cat([rows.mask, rows.mask.new_ones(len(keep), 1)], 1)
        positions = (rows.mask.sum(1, keepdim=True) - 1).clamp_max(lm.context - 1)  # ended rows may be at the end
    return _collect(lm, tokens.cpu(), None if logprobs is None else logprobs.cpu(), finished.cpu(), stop)


def _cache(lm: Decodes) -> DynamicCache:
    """Empty, with a layer of the kind that each of the model's layers fills."""
    return new_cache(lm.model)


def _uniform(seeds: Sequence[int], limit: int, config: SamplingConfig) -> Tensor:
    """[N, limit] float64 in [0, 1): the randomness of each row, from its own seed alone."""
    if config.temperature == 0:
        return torch.zeros(len(seeds), limit, dtype=torch.float64)
    draws = [torch.rand(limit, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(draws)


def _left_pad(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    length = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _choose(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """[n, V] logits -> [n] tokens, by inverting the cumulative distribution at `uniform` [n]."""
    if config.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits.double() / config.temperature, -1)
    if config.top_p < 1:
        ordered, order = probs.sort(-1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= config.top_p, 0.0)
        at = _invert(ordered, uniform)
        return order.gather(1, at[:, None])[:, 0]
    return _invert(probs, uniform)


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    cumulative = probs.cumsum(-1)
    at = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)[:, 0]
    last = (probs > 0).int().cumsum(-1).argmax(-1)  # the last token with any probability: where rounding may overrun
    return torch.minimum(at, last)


def _find_stops(
    lm: Decodes, stop: StopStrings, tokens: Tensor, index: Tensor, chosen: Tensor, live: Tensor, done: Tensor, t: int
) -> None:
    """Mark in `done` the rows whose text now holds a stop string."""
    for i in (stop.candidates(chosen) & live).nonzero()[:, 0].tolist():
        text = lm.tokenizer.decode(tokens[index[i], : t + 1].tolist(), skip_special_tokens=True)
        done[i] = stop.cut(text) is not None


def _compact(rows: _Rows, ended: Tensor) -> tuple[_Rows, Tensor]:
    """Drop ended rows once they are a quarter of the batch; every block keeps the height of its fullest one.

    Returns the rows and the positions [n'] kept among the old ones.
    """
    live = ~ended[rows.index]
    everything = torch.arange(len(live), device=live.device)
    blocks = live.view(rows.blocks, -1)
    kept_blocks = blocks.any(1).nonzero()[:, 0]
    height = int(blocks.sum(1).max())
    if len(kept_blocks) * height > 0.75 * len(live):
        return rows, everything
    order = blocks[kept_blocks].int().sort(dim=1, descending=True, stable=True).indices[:, :height].sort(1).values
    keep = everything.view(rows.blocks, -1)[kept_blocks].gather(1, order).flatten()
    rows.cache.batch_select_indices(keep if _on_one_device(rows.cache) else keep.cpu())
    adapter = rows.adapter
    if adapter is not None and len(kept_blocks) < rows.blocks:
        adapter = {name: t[kept_blocks] for name, t in adapter.items()}
    return _Rows(rows.index[keep], rows.cache, rows.mask[keep], adapter, len(kept_blocks)), keep


def _on_one_device(cache: DynamicCache) -> bool:
    """Otherwise an index must be on the CPU to suit all layers."""
    keys = (getattr(layer, "keys", None) for layer in cache.layers)
    return len({key.device for key in keys if key is not None}) <= 1


def _collect(lm: Decodes, tokens: Tensor, logprobs: Tensor | None, finished: Tensor, stop: StopStrings) -> list[Sample]:
    samples: list[Sample] = []
    kept_logprobs: list[list[float]] = [[]] * len(tokens) if logprobs is None else logprobs.tolist()
    for row, values, complete in zip(tokens.tolist(), kept_logprobs, finished.tolist(), strict=True):
        kept = [i for i in row if i >= 0]
        text = lm.tokenizer.decode(kept, skip_special_tokens=True)
        cut = stop.cut(text)
        samples.append(Sample(tuple(kept), text if cut is None else cut, complete, tuple(values[: len(kept)])))
    return samples
