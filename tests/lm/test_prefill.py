"""A prompt that rows share is read once; how the reading is cut changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from mass.config import SamplingConfig
from mass.lm import LM
from mass.lm import prefill as module
from mass.lm.growing import with_room
from mass.lm.lora import pick
from mass.lm.prefill import _begins, _distinct, _segments, prefill
from mass.types import Params
from small_lms import ARCHITECTURES, float64_throughout, make_lm, prompt_ids, random_adapter

BOUND = 1e-10


def filled(lm: LM, prompts: list[list[int]], adapter: Params | None = None, blocks: int = 1) -> tuple[Tensor, Any]:
    """Logits after each prompt, and after one more token."""
    cache = with_room(DynamicCache(config=lm.model.config))
    with torch.no_grad():
        logits, mask = prefill(lm, prompts, cache, adapter, blocks)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        with lm.adapters.use(adapter):
            after = lm.model(
                input_ids=logits.argmax(-1, keepdim=True),
                attention_mask=mask,
                position_ids=mask.sum(1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
    return logits, after


def alone(lm: LM, prompts: list[list[int]], adapter: Params | None, blocks: int) -> tuple[Tensor, Tensor]:
    """The same by one row at a time, without a cache."""
    first, after = [], []
    for i, prompt in enumerate(prompts):
        one = pick(adapter, i * blocks // len(prompts)) if adapter is not None else None
        with torch.no_grad(), lm.adapters.use(one):
            first.append(lm.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1])
            longer = [*prompt, int(first[-1].argmax())]
            after.append(lm.model(input_ids=torch.tensor([longer]), use_cache=False).logits[0, -1])
    return torch.stack(first), torch.stack(after)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind != "Gemma2"])
def test_shared_and_cut_it_equals_each_row_alone(kind: str, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through passes of a few places, beyond every sliding window, with rows that begin in the midst."""
    lm = float64_throughout(make_lm(kind))
    adapter = random_adapter(lm, count=blocks, scale=0.1) if blocks > 1 else None
    short = prompt_ids(lm)
    prompts = [short[1], short[2], short[1], short[4], short[2], short[5]]
    expected = alone(lm, prompts, adapter, blocks)
    for tokens, waste in [(4096, 256), (12, 1), (1, 1), (4096, 8)]:
        monkeypatch.setattr(module, "TOKENS", tokens)
        monkeypatch.setattr(module, "WASTE", waste)
        for found, true in zip(filled(lm, prompts, adapter, blocks), expected, strict=True):
            torch.testing.assert_close(found, true, rtol=BOUND, atol=BOUND)


def test_a_prompt_is_read_once_for_all_its_rows() -> None:
    lm = make_lm()
    read: list[tuple[int, ...]] = []

    def note_shape(module: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG001
        read.append(tuple(kwargs["input_ids"].shape))

    handle = lm.model.register_forward_pre_hook(note_shape, with_kwargs=True)
    one, other, *_ = prompt_ids(lm)
    config = SamplingConfig(max_new_tokens=2, temperature=1.0)
    samples = lm.sample([one] * 6 + [other] * 6, config, list(range(12)))
    assert read[0] == (2, max(len(one), len(other)))
    assert read[1] == (12, 1)
    assert len({s.tokens for s in samples[:6]}) > 1
    read.clear()
    lm.sample([one] * 6 + [other] * 6, config, list(range(12)), random_adapter(lm, count=4, scale=0.1))
    assert read[0] == (4, max(len(one), len(other))), "once for each adapter"
    handle.remove()


def test_distinct_prompts_of_blocks() -> None:
    a, b, c = [1, 2], [3], [4, 5, 6]
    distinct, source = _distinct([a, b, a, c, c, c], 2)
    assert distinct == [(1, 2), (3,), (4, 5, 6), (4, 5, 6)]
    assert source == [0, 1, 0, 2, 2, 2]
    assert _begins(distinct, 2) == [0, 0]
    assert _begins(_distinct([a, b, a, c], 1)[0], 1) == [0, 1, 2]


def test_each_prompt_keeps_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one prompt is the beginning of the others, its logits still have to be computed."""
    monkeypatch.setattr(module, "WASTE", 1)
    assert module._common([(1, 2, 3), (1, 2)], 1) == [(1,)]
    assert module._common([(1, 2, 3), (1, 2, 4), (5, 2, 3), (5, 2)], 2) == [(1, 2), (5,)]
    assert module._common([(1, 2, 3), (1, 2, 4), (5, 2, 3), (6, 2)], 2) == []
    assert module._common([(1, 2, 3)], 1) == []


@pytest.mark.parametrize("tokens", [4096, 50, 1])
def test_segments_cover_all_places_once(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENS", tokens)
    begins = [0, 0, 100, 101, 700, 705]
    found = list(_segments(begins, 800, 2, True))
    assert [first for first, _, _ in found] == [0, *(end for _, end, _ in found[:-1])]
    assert found[-1][1:] == (800, 6)
    for first, end, begun in found:
        assert all(begin >= end for begin in begins[begun:]), "a row is left out of places where it has tokens"
        assert 2 * begun * (end - first) <= tokens or end - first == 1
    padding = sum(2 * max(0, min(end, begin) - first) for first, end, begun in found for begin in begins[:begun])
    assert padding < 4 * module.WASTE
    assert list(_segments(begins, 800, 2, False)) == [(0, 800, 6)]


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "GPT2", "Mistral", "Gemma3"])
def test_what_all_prompts_begin_with_is_read_once(kind: str, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beginnings of other lengths for each adapter. With a sliding window, which padding would fill, none is shared."""
    lm = float64_throughout(make_lm(kind))
    adapter = random_adapter(lm, count=blocks, scale=0.1) if blocks > 1 else None
    short = prompt_ids(lm)
    heads = [short[4] + short[5], short[5] + short[4] + short[2]][:blocks]
    prompts = [head + tail for head in heads for tail in (short[1], short[2], short[3])]
    expected = alone(lm, prompts, adapter, blocks)
    monkeypatch.setattr(module, "WASTE", 8)
    read: list[int] = []
    handle = lm.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()),  # noqa: ARG005
        with_kwargs=True,
    )
    found = filled(lm, prompts, adapter, blocks)
    handle.remove()
    for one, true in zip(found, expected, strict=True):
        torch.testing.assert_close(one, true, rtol=BOUND, atol=BOUND)
    shares = kind in ("Llama", "Qwen3", "GPT2")
    assert (sum(read[:-1]) < sum(map(len, prompts))) == shares
