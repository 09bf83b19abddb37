"""Draw the next token of each row from its logits and a uniform number, by inverting the cumulative distribution.

A vocabulary of 150,000 tokens would be slow to sum in float64. So the probabilities of blocks of `BLOCK` tokens are
computed in float32; the uniform number chooses a block, and the rest of it, rescaled, a token in that block, in
float64. A vocabulary of at most one block is summed in float64 throughout. For a nucleus (top-p) only as many of the
largest logits are sorted as are needed. A row's token is a function of its own logits and number: it depends neither on
the other rows nor on the order in which equal logits happen to be found.

Legend: n rows, V vocabulary, B blocks, k largest tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mass.config import SamplingConfig

BLOCK = 4096
"""Number of tokens whose probabilities are summed in float64 at once."""
AT_ONCE = 1 << 22
"""Number of logits processed together in float32, which limits the memory that drawing needs besides the logits."""
NUCLEUS_FIRST, NUCLEUS_GROWTH = 64, 16
"""Number of the largest logits that are sorted at first, and the factor by which it grows where they are too few."""


def draw(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """Draw [n] tokens from [n, V] logits and [n] numbers in [0, 1), at the configured temperature and top-p."""
    if config.temperature == 0:
        return logits.argmax(-1)
    few = max(1, AT_ONCE // logits.shape[-1])
    parts = zip(logits.split(few), uniform.split(few), strict=True)
    return torch.cat([_draw(some.float(), config, numbers) for some, numbers in parts])


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities [n] of tokens [n] under logits [n, V], in nats, at temperature 1, in float32."""
    few = max(1, AT_ONCE // logits.shape[-1])
    parts = zip(logits.split(few), tokens.split(few), strict=True)
    return torch.cat([some.float().log_softmax(-1).gather(1, these[:, None])[:, 0] for some, these in parts])


def _draw(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """Draw [n] tokens from [n, V] logits in float32, at a temperature above 0."""
    if config.top_p < 1:
        return _from_nucleus(logits, config.temperature, config.top_p, uniform)
    if logits.shape[-1] <= BLOCK:
        return _invert(torch.softmax(logits.double() / config.temperature, -1), uniform)[0]
    masses = torch.softmax(_log_masses(logits, config.temperature), -1)
    # The position of the number within the chosen block's probability is uniform again, and serves for the second draw.
    block, uniform = _invert(masses, uniform)
    places = block[:, None] * BLOCK + torch.arange(BLOCK, device=logits.device)
    beyond = places >= logits.shape[-1]
    within = logits.gather(1, places.masked_fill(beyond, 0)).double() / config.temperature
    token, _ = _invert(torch.softmax(within.masked_fill_(beyond, -torch.inf), -1), uniform)
    return block * BLOCK + token


def _log_masses(logits: Tensor, temperature: float) -> Tensor:
    """Return [n, B] in float64, the logarithm of the sum of exp(logit / temperature) over each block of [n, V]."""
    if logits.shape[-1] <= BLOCK:
        return (logits.double() / temperature).logsumexp(-1, keepdim=True)
    whole = logits.shape[-1] // BLOCK * BLOCK
    scaled = logits if temperature == 1 else logits / temperature
    masses = [scaled[:, :whole].unflatten(1, (-1, BLOCK)).logsumexp(-1)]
    if whole < logits.shape[-1]:
        masses.append(scaled[:, whole:].logsumexp(-1, keepdim=True))
    return torch.cat(masses, -1).double()


def _invert(probs: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index [n] in [n, k] probabilities on which each number falls, and its position within that entry.

    The probabilities need not sum to 1. The position is again a number in [0, 1).
    """
    cumulative = probs.cumsum(-1)
    target = (uniform * cumulative[:, -1])[:, None]
    at = torch.searchsorted(cumulative, target, right=True)
    # Rounding may carry the search beyond the end; it must not go further than the last entry above zero.
    last = (probs > 0).int().cumsum(-1).argmax(-1, keepdim=True)
    at = torch.minimum(at, last)
    share = probs.gather(1, at)
    within = (target - (cumulative.gather(1, at) - share)) / share
    return at[:, 0], within[:, 0].clamp(0, 1 - 2**-53)


def _from_nucleus(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """Draw from the fewest tokens whose probabilities sum to `top_p`; of equal logits, the lower tokens come first."""
    vocabulary = logits.shape[-1]
    log_total = _log_masses(logits, temperature).logsumexp(-1, keepdim=True)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    left = torch.arange(len(logits), device=logits.device)
    count = vocabulary if vocabulary <= BLOCK else NUCLEUS_FIRST
    while len(left):
        values, order = _largest(logits[left], count)
        probs = (values.double() / temperature - log_total[left]).exp()
        kept = probs.cumsum(-1) - probs < top_p  # the sum before a token: the one that crosses top_p is kept
        least = values.gather(1, kept.sum(-1, keepdim=True) - 1)[:, 0]
        # Only then are all tokens with the same logit as the least one kept among the sorted ones.
        known = least > values[:, -1]
        if count == vocabulary:
            known = torch.ones_like(known)
        at, _ = _invert(probs.masked_fill(~kept, 0.0)[known], uniform[left[known]])
        tokens[left[known]] = order[known].gather(1, at[:, None])[:, 0]
        left, count = left[~known], min(count * NUCLEUS_GROWTH, vocabulary)
    return tokens


def _largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest logits [n, k] and their tokens, in descending order; equal logits in the order of tokens."""
    if count == logits.shape[-1]:
        values, order = logits.sort(dim=-1, descending=True, stable=True)
        return values, order
    # `topk` returns equal values in any order, so they are put in the order of tokens before the stable sort.
    numbers = logits.topk(count, -1).indices.sort(-1).values
    values, order = logits.gather(1, numbers).sort(dim=-1, descending=True, stable=True)
    return values, numbers.gather(1, order)
