"""Decoding with recurrent layers, windows and compressed keys, against transformers' own `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

import mass.lm.sampling
import mass.preflight.doctor.text
from hybrid_lms import DECODED, REFUSED, hybrid_lm, make_hybrid
from mass.config import SamplingConfig
from mass.errors import ModelError
from mass.lm import LM
from mass.lm.cache import new_cache, padding_trace, require_decodable
from mass.lm.prefill import select_rows
from mass.preflight.doctor.text import differing_texts

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 12, 40, 7, 33, 21, 8, 60, 61], [11, 12, 13], [70, 71, 9, 10, 15, 16], [5, 9], [66, 44, 33]]
LONG = 30
"""New tokens: five windows of the models that have one."""


def generated(lm: LM, prompt: list[int], ends: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    written = lm.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONG, do_sample=False,
        eos_token_id=ends or None, pad_token_id=0,
    )  # fmt: skip
    return written[0, len(prompt) :].tolist()


def with_ends(monkeypatch: pytest.MonkeyPatch, ends: list[int]) -> None:
    monkeypatch.setattr(LM, "end_ids", property(lambda _: frozenset(ends)))


@pytest.mark.parametrize("kind", DECODED)
def test_unequal_prompts_are_continued_as_by_generate(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """To the limit, and with ends at which rows leave the batch one after the other."""
    lm = hybrid_lm(kind)
    require_decodable(lm.model, kind, CPU)
    with_ends(monkeypatch, [])
    whole = [generated(lm, prompt, []) for prompt in PROMPTS]
    ours = lm.sample(PROMPTS, SamplingConfig(LONG, 0.0), [0] * len(PROMPTS))
    assert [list(sample.tokens) for sample in ours] == whole
    ends = sorted({row[place] for row, place in zip(whole, (25, 3, 9, 14, 1), strict=True)})
    with_ends(monkeypatch, ends)
    ours = lm.sample(PROMPTS, SamplingConfig(LONG, 0.0), [0] * len(PROMPTS))
    assert [list(sample.tokens) for sample in ours] == [generated(lm, prompt, ends) for prompt in PROMPTS]
    assert len({len(sample.tokens) for sample in ours}) > 1  # or no row would have left early


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_wrong_text_is_refused_in_one_line(kind: str) -> None:
    said = "which keeps what it has read in a form of its own|whose recurrent layers take in the padding"
    with pytest.raises(ModelError, match=f"'mine' is a {kind}ForCausalLM, ({said}).*expected") as error:
        require_decodable(make_hybrid(kind), "mine", CPU)
    assert "\n" not in str(error.value)


def test_an_encoder_is_refused_and_a_decoder_that_does_not_call_itself_one_is_not() -> None:
    with pytest.raises(ModelError, match="'mine' is a BertLMHeadModel that reads whole texts, an encoder; expected"):
        require_decodable(make_hybrid("Bert"), "mine", CPU)
    require_decodable(make_hybrid("Bert", is_decoder=True), "mine", CPU)
    assert make_hybrid("GPTNeoX").config.is_decoder is False
    require_decodable(make_hybrid("GPTNeoX"), "mine", CPU)


@pytest.mark.parametrize("kind", ["Qwen3Next", "FalconH1", "Lfm2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_that_is_masked_leaves_no_trace_and_other_padding_does(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype
) -> None:
    model = make_hybrid(kind).to(dtype)
    require_decodable(model, kind, CPU)
    forward = type(model.model).forward

    def unmasked(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **{**kwargs, "attention_mask": None})

    monkeypatch.setattr(type(model.model), "forward", unmasked)
    assert padding_trace(model, CPU) > 0.1
    with pytest.raises(ModelError, match="recurrent layers take in the padding"):
        require_decodable(model, kind, CPU)


def filled(kind: str, rows: int) -> DynamicCache:
    model = make_hybrid(kind)
    cache = new_cache(model)
    ids = torch.arange(4 * rows).view(rows, 4) + 3
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def states(cache: DynamicCache) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for layer in cache.layers:
        found += [t for name in ("keys", "values") if (t := getattr(layer, name, None)) is not None]
        for name in ("conv_states", "recurrent_states"):
            kept = getattr(layer, name, {})
            found += [t for t in (kept.values() if isinstance(kept, dict) else kept) if torch.is_tensor(t)]
    return found


@pytest.mark.parametrize("kind", ["FalconH1", "Qwen3Next", "Lfm2", "Gemma2"])
def test_rows_of_every_state_are_selected_and_repeated(kind: str) -> None:
    before = states(filled(kind, 3))
    assert len(before) >= 3
    selected, repeated = filled(kind, 3), filled(kind, 3)
    select_rows(selected, torch.tensor([2, 0]))
    select_rows(repeated, torch.arange(3).repeat_interleave(2))
    assert all(torch.equal(now, was[[2, 0]]) for now, was in zip(states(selected), before, strict=True))
    assert all(torch.equal(now, was[[0, 0, 1, 1, 2, 2]]) for now, was in zip(states(repeated), before, strict=True))


def test_the_doctor_sees_text_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = hybrid_lm("Gemma2")
    with_ends(monkeypatch, [])
    assert differing_texts(lm, 0) == 0
    monkeypatch.setattr(mass.preflight.doctor.text, "_generated", lambda *_: [1] * 16)
    assert differing_texts(lm, 0) == 1
    with pytest.raises(ModelError, match="form of its own"):
        differing_texts(hybrid_lm("Mamba2"), 0)
