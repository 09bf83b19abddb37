"""A cache that grows in place gives attention what transformers' own gives it, to the last bit."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mass.lm.growing import ROOM, with_room
from small_lms import make_model

KINDS = ("Llama", "Mistral", "Gemma3", "GPT2")


def caches(kind: str) -> tuple[DynamicCache, DynamicCache]:
    config = make_model(kind).config
    return DynamicCache(config=config), with_room(DynamicCache(config=config))


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_what_transformers_own_holds(kind: str) -> None:
    """Through a prompt, single tokens beyond the room of a buffer, rows taken out and copied, and tokens again."""
    plain, ours = caches(kind)
    generator = torch.Generator().manual_seed(0)
    rows = 3
    moves = {9: torch.tensor([2, 0]), 40: torch.tensor([0, 0, 1, 1, 0]), 41: torch.tensor([3])}
    for step in range(ROOM + 50):
        new = torch.randn(2, rows, 1, 5 if step in (0, 20) else 1, 8, generator=generator)
        for layer in range(2):
            expected = plain.update(new[0], new[1], layer)
            found = ours.update(new[0], new[1], layer)
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
            assert plain.get_mask_sizes(1, layer) == ours.get_mask_sizes(1, layer)
        assert plain.get_seq_length() == ours.get_seq_length()
        if step in moves:
            plain.reorder_cache(moves[step])
            ours.reorder_cache(moves[step])
            rows = len(moves[step])


def test_a_step_does_not_copy_what_stands() -> None:
    _, ours = caches("Llama")
    ours.update(torch.ones(2, 1, 30, 8), torch.ones(2, 1, 30, 8), 0)
    before = ours.layers[0].keys
    assert before is not None
    places = set[int]()
    for _ in range(ROOM):
        keys, _ = ours.update(torch.ones(2, 1, 1, 8), torch.ones(2, 1, 1, 8), 0)
        places.add(keys.data_ptr())
    assert places == {before.data_ptr()}
    keys, _ = ours.update(torch.ones(2, 1, 1, 8), torch.ones(2, 1, 1, 8), 0)
    assert keys.data_ptr() != before.data_ptr()
    assert keys.shape[-2] == 30 + ROOM + 1


def test_a_window_does_not_keep_the_whole_past() -> None:
    _, ours = caches("Mistral")
    for _ in range(5 * ROOM):
        ours.update(torch.ones(1, 1, 1, 8), torch.ones(1, 1, 1, 8), 0)
    keys = ours.layers[0].keys
    assert keys is not None
    assert keys.shape[-2] == 5
    assert keys.untyped_storage().nbytes() <= (6 + ROOM) * 8 * 4


def test_other_layers_stay_their_own() -> None:
    class Peculiar(DynamicLayer):
        pass

    cache = DynamicCache(config=make_model("Gemma3").config)
    peculiar = Peculiar()
    cache.layers.append(peculiar)
    grown = with_room(cache).layers
    assert grown[-1] is peculiar
    assert isinstance(grown[0], DynamicSlidingWindowLayer)
    assert [type(layer).__name__ for layer in grown[:2]] == ["GrowingSlidingLayer", "GrowingLayer"]
