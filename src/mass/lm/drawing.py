"""Logits of the next token, a uniform number for each row -> the tokens drawn, by inverting the cumulative sum.

A vocabulary of 150,000 is not passed over in float64. Its blocks of `BLOCK` tokens get their masses in float32; the
uniform number chooses a block, and what is left of it a token within, in float64. A vocabulary of one block is all in
float64. Of a nucleus (top-p) only the largest logits are sorted, as many as it takes. What a row draws is a function of
its own logits and number: never of the rows beside it, nor of the order in which equal logits happen to be found.

Legend: n rows, V vocabulary, B blocks, k largest tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mass.config import SamplingConfig

BLOCK = 4096
"""Tokens whose probabilities are added up in float64 at once."""
AT_ONCE = 1 << 22
"""Logits, in float32, that are looked at together: bounds what drawing holds beside the logits themselves."""
NUCLEUS_FIRST, NUCLEUS_GROWTH = 64, 16
"""How many of the largest logits are sorted at first, and how many times more where these are too few."""


def draw(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """[n, V] logits, [n] numbers in [0, 1) -> [n] tokens at the configuration's temperature and top-p."""
    if config.temperature == 0:
        return logits.argmax(-1)
    few = max(1, AT_ONCE // logits.shape[-1])
    parts = zip(logits.split(few), uniform.split(few), strict=True)
    return torch.cat([_draw(some.float(), config, numbers) for some, numbers in parts])


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """[n, V] logits, [n] tokens -> [n] log-probabilities in nats, at temperature 1, in float32."""
    few = max(1, AT_ONCE // logits.shape[-1])
    parts = zip(logits.split(few), tokens.split(few), strict=True)
    return torch.cat([some.float().log_softmax(-1).gather(1, these[:, None])[:, 0] for some, these in parts])


def _draw(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    if config.top_p < 1:
        return _from_nucleus(logits, config.temperature, config.top_p, uniform)
    if logits.shape[-1] <= BLOCK:
        return _invert(torch.softmax(logits.double() / config.temperature, -1), uniform)[0]
    masses = torch.softmax(_log_masses(logits, config.temperature), -1)
    block, uniform = _invert(masses, uniform)
    places = block[:, None] * BLOCK + torch.arange(BLOCK, device=logits.device)
    beyond = places >= logits.shape[-1]
    within = logits.gather(1, places.masked_fill(beyond, 0)).double() / config.temperature
    token, _ = _invert(torch.softmax(within.masked_fill_(beyond, -torch.inf), -1), uniform)
    return block * BLOCK + token


def _log_masses(logits: Tensor, temperature: float) -> Tensor:
    """[n, V] -> [n, B] float64: the logarithm of the sum of exp(logit / temperature) over each block."""
    if logits.shape[-1] <= BLOCK:
        return (logits.double() / temperature).logsumexp(-1, keepdim=True)
    whole = logits.shape[-1] // BLOCK * BLOCK
    scaled = logits if temperature == 1 else logits / temperature
    masses = [scaled[:, :whole].unflatten(1, (-1, BLOCK)).logsumexp(-1)]
    if whole < logits.shape[-1]:
        masses.append(scaled[:, whole:].logsumexp(-1, keepdim=True))
    return torch.cat(masses, -1).double()


def _invert(probs: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """[n, k] probabilities, not necessarily of sum 1 -> the place [n] that each number falls on, and how far within
    that place's probability it lies, again a number in [0, 1)."""
    cumulative = probs.cumsum(-1)
    target = (uniform * cumulative[:, -1])[:, None]
    at = torch.searchsorted(cumulative, target, right=True)
    last = (probs > 0).int().cumsum(-1).argmax(-1, keepdim=True)  # with any probability: where rounding may overrun
    at = torch.minimum(at, last)
    share = probs.gather(1, at)
    within = (target - (cumulative.gather(1, at) - share)) / share
    return at[:, 0], within[:, 0].clamp(0, 1 - 2**-53)


def _from_nucleus(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """Draw from the fewest tokens whose probabilities reach `top_p`; of equal ones, those of lower number."""
    vocabulary = logits.shape[-1]
    log_total = _log_masses(logits, temperature).logsumexp(-1, keepdim=True)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    count = vocabulary if vocabulary <= BLOCK else NUCLEUS_FIRST
    while len(left):
        values, order = _largest(logits[left], count)
        probs = (values.double() / temperature - log_total[left]).exp()
        kept = probs.cumsum(-1) - probs < top_p
        least = values.gather(1, kept.sum(-1, keepdim=True) - 1)[:, 0]
        known = least > values[:, -1]  # all equals of the least one kept are in sight
        if count == vocabulary:
            known = torch.ones_like(known)
        at, _ = _invert(probs.masked_fill(~kept, 0.0)[known], uniform[left[known]])
        tokens[left[known]] = order[known].gather(1, at[:, None])[:, 0]
        left, count = left[~known], min(count * NUCLEUS_GROWTH, vocabulary)
    return tokens


def _largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits [n, k] and their tokens, in descending order; equal ones in the order of their numbers."""
    if count == logits.shape[-1]:
        values, order = logits.sort(dim=-1, descending=True, stable=True)
        return values, order
    numbers = logits.topk(count, -1).indices.sort(-1).values
    values, order = logits.gather(1, numbers).sort(dim=-1, descending=True, stable=True)
    return values, numbers.gather(1, order)
