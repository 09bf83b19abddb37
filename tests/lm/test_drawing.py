"""Tokens drawn from logits: as the whole distribution in float64 would have it, whatever the size of the vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mass.config import SamplingConfig
from mass.lm.drawing import BLOCK, draw, logprobs_of

SIZES = [5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 151_936]


def random_logits(rows: int, vocabulary: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def numbers(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def in_float64(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """The definition: sort all, cut, invert."""
    probs = torch.softmax(logits.double() / temperature, -1)
    order = torch.arange(logits.shape[1]).expand(logits.shape)
    if top_p < 1:
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
    cumulative = probs.cumsum(-1)
    at = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
    return order.gather(1, at)[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("vocabulary", SIZES)
def test_a_draw_is_the_inversion_of_the_whole_distribution(vocabulary: int, temperature: float) -> None:
    """Blocks' masses are in float32: with several, a number within 1e-6 of a boundary may fall on its other side."""
    logits, uniform = random_logits(64, vocabulary), numbers(64)
    ours = draw(logits, SamplingConfig(temperature=temperature), uniform)
    expected = in_float64(logits, temperature, 1.0, uniform)
    if vocabulary <= BLOCK:
        assert torch.equal(ours, expected)
        return
    cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
    high = cumulative.gather(1, ours[:, None])[:, 0]
    low = torch.where(ours > 0, cumulative.gather(1, (ours[:, None] - 1).clamp_min(0))[:, 0], 0.0)
    assert (low - 1e-6 <= uniform).all()
    assert (uniform <= high + 1e-6).all()
    assert (ours == expected).sum() >= 62


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("vocabulary", [300, 3 * BLOCK + 7, 49_152])
def test_a_nucleus_is_that_of_the_full_sort(vocabulary: int, scale: float, top_p: float) -> None:
    """From flat, where tens of thousands of tokens are in it, to peaked."""
    logits, uniform = random_logits(16, vocabulary, scale), numbers(16)
    config = SamplingConfig(temperature=0.8, top_p=top_p)
    assert torch.equal(draw(logits, config, uniform), in_float64(logits, 0.8, top_p, uniform))


def test_equal_logits_are_ordered_by_their_numbers_whoever_is_beside() -> None:
    """bfloat16 has few values: thousands of tokens share one, and a partial sort finds them in any order."""
    logits = random_logits(24, 20_000, 1.0).mul(8).round().div(8)
    logits[::3] *= 4  # some rows are done with few tokens, others need nearly all
    assert len(logits[1].unique()) < 100
    uniform, config = numbers(24), SamplingConfig(temperature=1.0, top_p=0.7)
    together = draw(logits, config, uniform)
    assert torch.equal(together, in_float64(logits, 1.0, 0.7, uniform))
    alone = [draw(logits[i : i + 1], config, uniform[i : i + 1]) for i in range(24)]
    assert torch.equal(together, torch.cat(alone))


def test_draws_follow_a_large_distribution() -> None:
    """20,000 draws from 40,000 tokens, in bins of about equal probability: chi-square within five deviations."""
    logits = random_logits(1, 40_000, 2.0)
    config = SamplingConfig(temperature=1.3)
    found = torch.cat([draw(logits.expand(500, -1), config, some) for some in numbers(20_000).split(500)])
    probs = torch.softmax(logits[0].double() / 1.3, -1)
    bins = (probs.cumsum(0) * 500).long().clamp_max(499)
    expected = torch.zeros(500, dtype=torch.float64).index_add(0, bins, probs) * len(found)
    counts = torch.bincount(bins[found], minlength=500).double()
    full = expected > 5  # a token of much probability takes several bins' worth, and leaves some empty
    assert full.sum() > 400
    chi, free = ((counts - expected)[full].square() / expected[full]).sum(), int(full.sum()) - 1
    assert abs(float(chi) - free) < 5 * (2 * free) ** 0.5


@pytest.mark.parametrize("vocabulary", [7, BLOCK + 3])
@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_an_impossible_token_is_never_drawn(vocabulary: int, top_p: float) -> None:
    """At both ends of the unit interval, and where whole blocks are impossible."""
    logits = torch.full((6, vocabulary), -torch.inf)
    logits[:, vocabulary // 2] = 0.0
    logits[:, vocabulary - 2] = -1.0
    ends = torch.tensor([0.0, 1e-300, 0.73, 0.7311, 1 - 2**-53, 1.0], dtype=torch.float64)
    found = draw(logits, SamplingConfig(temperature=1.0, top_p=top_p), ends)
    assert set(found.tolist()) == {vocabulary // 2, vocabulary - 2}


def test_logprobs_are_those_of_a_softmax() -> None:
    logits = random_logits(200, 50_000)  # more than are looked at together
    tokens = torch.arange(200)
    expected = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs_of(logits, tokens).double(), expected, rtol=1e-6, atol=1e-5)
    assert torch.equal(logprobs_of(logits.bfloat16(), tokens), logprobs_of(logits.bfloat16().float(), tokens))
