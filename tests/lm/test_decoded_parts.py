"""Which rows are decoded side by side, in what a device can spare."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from mass.lm import LM, sampling
from mass.lm.growing import ROOM
from mass.lm.parts import RowBytes, parts, row_bytes, rows_side_by_side
from mass.types import Sample
from small_lms import ARCHITECTURES, make_lm, prompt_ids, random_adapter, sample

EACH = RowBytes(token=10.0, row=100.0)


def test_rows_that_fit() -> None:
    tokens = 100 - ROOM
    assert EACH.of(tokens) == 1100
    for spare, rows in [(0.0, 1), (1099.0, 1), (2199.0, 1), (2200.0, 2), (1e9, 128), (float("inf"), 128)]:
        assert rows_side_by_side(spare, tokens, EACH, 128) == rows


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_bytes_of_a_token_are_those_of_a_cache(kind: str) -> None:
    lm = make_lm(kind)
    cache = DynamicCache(config=lm.model.config)
    ids = lm.tokenizer("3 + 4", return_tensors="pt")["input_ids"]
    lm.model(input_ids=ids, past_key_values=cache, use_cache=True)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    found = row_bytes(lm.model.config, 8)
    assert found.token * ids.shape[1] == held
    assert found.row >= 8 * len(lm.tokenizer)


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 6), st.floats(0, 1e5), st.integers(1, 64))
def test_every_row_is_in_one_part_and_every_part_fits(lengths: list[int], height: int, spare: float, most: int) -> None:
    found = parts(lengths, height, spare, EACH, most)
    assert sorted(unit for part in found for unit in part) == list(range(len(lengths)))
    for part in found:
        rows, longest = len(part) * height, max(lengths[unit] for unit in part)
        assert len(part) == 1 or (rows <= most and rows * EACH.of(longest) <= spare)


def test_all_that_fit_stay_in_their_order_and_long_rows_share_a_part() -> None:
    assert parts([9, 3, 500, 4], 1, 1e9, EACH, 128) == [[0, 1, 2, 3]]
    assert parts([9, 3, 500, 4], 1, 4 * EACH.of(9), EACH, 128) == [[1, 3, 0], [2]]
    assert parts([], 1, 1e9, EACH, 128) == []


def test_what_a_row_gets_does_not_depend_on_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    prompts = (prompt_ids(lm) * 2)[:8]
    stack = random_adapter(lm, count=2, scale=0.1)
    expected = [sample(lm, prompts, adapter) for adapter in (None, stack)]
    widths: list[int] = []
    decode = sampling._decode

    def counted(lm: LM, asked: Any, pace: Any) -> list[Sample]:
        widths.append(len(asked.prompts))
        return decode(lm, asked, pace)

    monkeypatch.setattr(sampling, "_decode", counted)
    each = row_bytes(lm.model.config, 8)
    for rows in (1, 3, 5):
        monkeypatch.setattr(sampling, "spare_bytes", lambda _, rows=rows: rows * each.of(60))
        widths.clear()
        found = [sample(lm, prompts, adapter) for adapter in (None, stack)]
        assert found == expected
        assert len(widths) >= 4 if rows < 5 else len(widths) > 2
