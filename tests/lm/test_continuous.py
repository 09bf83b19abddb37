"""Rows that join and leave one batch, against `lm.sample` of each row alone."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from decoding_together import WAIT_S, Listener, alone, ask, each_alone, one_after_another, passes, planted, settings

import mass.lm.continuous.decoder
from hybrid_lms import DECODED, hybrid_lm
from mass.config import LoraConfig, ModelConfig, SamplingConfig
from mass.lm import LM, load_lm
from mass.lm.continuous import Ask, ContinuousDecoder, Limits
from mass.lm.sampling import StopStrings
from mass.types import Params, Sample
from small_lms import ARCHITECTURES, make_lm, prompt_ids, random_adapter

MARKERS = (40, 41, 42, 43)


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm(rank=4)


@pytest.fixture(scope="module")
def adapters(lm: LM) -> list[Params]:
    """Each makes the model say its own marker."""
    return [planted(lm, token, prompt_ids(lm)) for token in MARKERS]


@pytest.fixture(scope="module")
def terms() -> LM:
    return load_lm(ModelConfig("tiny-terms"), LoraConfig())


# ------------------------------------------------------------------------------- alone: bit for bit


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Mixtral"])
@pytest.mark.parametrize("config", [settings(), settings(temperature=0), settings(12, 0.7, 0.8)])
def test_a_row_alone_is_that_of_lm_sample(kind: str, adapted: bool, config: SamplingConfig) -> None:
    lm = make_lm(kind, torch.float32)
    adapter = random_adapter(lm) if adapted else None
    with ContinuousDecoder(lm) as decoder:
        for seed, prompt in enumerate(prompt_ids(lm)):
            row = ask(lm, prompt, seed, adapter, config=config, with_logprobs=True)
            assert decoder.submit(row).result(WAIT_S) == alone(lm, row)


def test_copies_alone_are_those_of_lm_sample(lm: LM) -> None:
    adapter, prompt = random_adapter(lm), prompt_ids(lm)[1]
    with ContinuousDecoder(lm) as decoder:
        futures = decoder.submit_all([ask(lm, prompt, seed, adapter, with_logprobs=True) for seed in range(6)])
        found = [future.result(WAIT_S) for future in futures]
    assert found == lm.sample([prompt] * 6, settings(), list(range(6)), adapter, with_logprobs=True)


def test_tiny_terms_alone(terms: LM) -> None:
    prompt = terms.solve_prompt("Find 3 blens of 12.")
    with ContinuousDecoder(terms) as decoder:
        for seed in range(3):
            row = ask(terms, prompt, seed, random_adapter(terms, seed, scale=0.1), with_logprobs=True)
            assert decoder.submit(row).result(WAIT_S) == alone(terms, row)


# ------------------------------------------------------------------------------- in a crowd


@pytest.mark.parametrize("seed", range(2))
def test_a_crowd_with_markers_and_cancels(lm: LM, adapters: list[Params], seed: int) -> None:
    """120 rows on at most 20 places: every row that was not cancelled is its own, and no marker is elsewhere."""
    rng = random.Random(seed)
    prompts, owners = prompt_ids(lm), list("abc")
    asks, listeners = list[Ask](), list[Listener]()
    for number in range(120):
        listener = Listener()
        config = rng.choice([settings(1), settings(30, 0.0), settings(40, 0.8, 0.9), settings(12)])
        adapter = rng.choice([None, None, *adapters])
        listeners.append(listener)
        asks.append(
            ask(
                lm, rng.choice(prompts), number, adapter, config=config, owner=rng.choice(owners),
                urgent=rng.random() < 0.3, with_logprobs=rng.random() < 0.3, on_piece=listener,
            )
        )  # fmt: skip
    with ContinuousDecoder(lm, Limits(rows=20, prefill_tokens=[512, 8][seed])) as decoder:
        futures = decoder.submit_all(asks[:60])
        for number in range(60, 120):  # each joins when an earlier one has come so far, or has ended
            before = rng.randrange(60)
            doomed = futures[rng.randrange(60)]
            listeners[before].at[rng.randrange(1, 9)] = doomed.cancel if number % 7 == 0 else lambda: None
            futures += decoder.submit_all([asks[number]], wait=True)
            if number % 9 == 0:
                futures[rng.randrange(len(futures))].cancel()
        found: list[Sample | None] = []
        for future in futures:
            try:
                found.append(future.result(WAIT_S))
            except CancelledError:
                found.append(None)
        assert decoder.load().running == decoder.load().waiting == 0
    kept = [(row, sample, heard) for row, sample, heard in zip(asks, found, listeners, strict=True) if sample]
    assert 80 < len(kept) < 120
    for (row, sample, heard), wanted in zip(kept, each_alone(lm, [row for row, *_ in kept]), strict=True):
        assert sample.tokens == wanted.tokens
        assert (sample.text, sample.finished) == (wanted.text, wanted.finished)
        assert (heard.text, heard.tokens) == (sample.text, sample.tokens)
        if row.with_logprobs:
            torch.testing.assert_close(torch.tensor(sample.logprobs), torch.tensor(wanted.logprobs))
        for marker, adapter in zip(MARKERS, adapters, strict=True):
            if row.adapter is adapter and row.config.temperature == 0:
                assert set(sample.tokens) == {marker}


@pytest.mark.parametrize("kind", [*ARCHITECTURES, *(f"hybrid {kind}" for kind in DECODED)])
def test_rows_that_join_one_by_one_are_their_own(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Windows, recurrent states, experts: rows of other lengths join at each second token, and leave when they end."""
    if kind.startswith("hybrid"):
        lm = hybrid_lm(kind.removeprefix("hybrid "))
        monkeypatch.setattr(LM, "end_ids", property(lambda _: frozenset({7, 20})))
    else:
        lm = make_lm(kind, torch.float32)
    prompts = [*prompt_ids(lm), prompt_ids(lm)[1][:2]]
    # The router of Llama 4 returns a tuple, so that it cannot have an adapter.
    own = [None] * 3 if kind.endswith("Llama4Text") else [None, random_adapter(lm, 1), random_adapter(lm, 2)]
    asks = [
        ask(lm, prompt, 3, own[number % 3], config=settings(10 + 3 * (number % 4), 0.0))
        for number, prompt in enumerate(prompts)
    ]
    with ContinuousDecoder(lm) as decoder:
        found = one_after_another(decoder, asks)
    assert [sample.tokens for sample in found] == [alone(lm, row).tokens for row in asks]


def test_rows_whose_caches_cannot_be_put_together(monkeypatch: pytest.MonkeyPatch, lm: LM) -> None:
    monkeypatch.setattr(mass.lm.continuous.decoder, "can_be_merged", lambda _: False)
    asks = [ask(lm, prompt, 5, random_adapter(lm, i % 2)) for i, prompt in enumerate(prompt_ids(lm))]
    with ContinuousDecoder(lm) as decoder:
        found = one_after_another(decoder, asks)
    assert [sample.tokens for sample in found] == [alone(lm, row).tokens for row in asks]


def test_a_crowd_on_tiny_terms(terms: LM) -> None:
    prompts = [terms.solve_prompt(text) for text in ("Find 3 blens.", "What is 12 + 4 of a zorp of 7?")]
    own = [None, random_adapter(terms, 1, scale=0.1), random_adapter(terms, 2, scale=0.12)]
    asks = [ask(terms, prompt, seed, adapter) for seed in range(8) for prompt in prompts for adapter in own]
    with ContinuousDecoder(terms, Limits(rows=16, prefill_tokens=16)) as decoder:
        found = [future.result(WAIT_S) for future in decoder.submit_all(asks)]
    assert [sample.text for sample in found] == [sample.text for sample in each_alone(terms, asks)]
    assert len({sample.text for sample in found}) > 8


def test_adapters_beside_a_base_row_do_not_touch_it(lm: LM) -> None:
    """In float32, where another order of sums would show: the log-probabilities are equal to the last bit."""
    lm = make_lm(dtype=torch.float32)
    prompt, config = prompt_ids(lm)[1], settings(20, 0.0)

    def beside(adapters: list[Params | None]) -> Sample:
        rows = [Ask(prompt, config, 0, adapter, with_logprobs=True) for adapter in adapters]
        with ContinuousDecoder(lm) as decoder:
            return decoder.submit_all(rows)[0].result(WAIT_S)

    lone = beside([None, None, None])
    assert beside([None, random_adapter(lm, 1), random_adapter(lm, 2)]).tokens == lone.tokens
    torch.testing.assert_close(
        torch.tensor(beside([None, random_adapter(lm, 1), None]).logprobs), torch.tensor(lone.logprobs)
    )


def test_adapters_of_different_ranks_side_by_side(lm: LM) -> None:
    def of_rank(rank: int) -> Params:
        fresh, generator = lm.adapters.init(0, torch.float64, rank=rank), torch.Generator().manual_seed(rank)
        return {name: torch.randn(t.shape, generator=generator, dtype=t.dtype) / 5 for name, t in fresh.items()}

    own = [of_rank(rank) for rank in (1, 4, 2)]
    asks = [ask(lm, prompt, 2, adapter) for prompt in prompt_ids(lm)[:2] for adapter in own]
    with ContinuousDecoder(lm) as decoder:
        found = [future.result(WAIT_S) for future in decoder.submit_all(asks)]
    assert [sample.tokens for sample in found] == [alone(lm, row).tokens for row in asks]


# ------------------------------------------------------------------------------- reading prompts


def test_copies_of_a_prompt_are_read_once_for_each_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    prompt, adapter = prompt_ids(lm)[1], random_adapter(lm)
    shapes = passes(monkeypatch, lm)
    with ContinuousDecoder(lm) as decoder:
        asks = [ask(lm, prompt, seed, own) for seed in range(5) for own in (None, adapter)]
        for future in decoder.submit_all(asks):
            future.result(WAIT_S)
    assert [shape for shape in shapes if shape[1] > 1] == [(2, len(prompt))]
    assert shapes[1] == (10, 1)


def test_a_long_prompt_is_read_in_parts_beside_running_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    long = (prompt_ids(lm)[1] * 20)[:150]
    running, late = Listener(), list[Any]()
    row = ask(lm, prompt_ids(lm)[0], 1, config=settings(60, 0.0), on_piece=running, stop=())
    monkeypatch.setattr(LM, "end_ids", property(lambda _: frozenset[int]()))
    with ContinuousDecoder(lm, Limits(prefill_tokens=16)) as decoder:
        shapes = passes(monkeypatch, lm)
        second = ask(lm, long, 2, config=settings(4))
        running.at[3] = lambda: late.append(decoder.submit(second))
        decoder.submit(row).result(WAIT_S)
        assert late[0].result(WAIT_S).tokens == alone(lm, second).tokens
    read = [i for i, shape in enumerate(shapes[1:], 1) if shape[1] > 1 and shape != (1, len(long))]
    assert [shapes[i] for i in read][:-1] == [(1, 16)] * (len(long) // 16)
    assert all(later - sooner == 2 for sooner, later in itertools.pairwise(read)), "a step after each part"


# ------------------------------------------------------------------------------- text as it comes


def test_pieces_hold_back_what_may_become_a_stop_text(lm: LM) -> None:
    prompt = prompt_ids(lm)[0]
    for seed in range(12):
        text = alone(lm, ask(lm, prompt, seed)).text
        for stop in (text[5:8], text[4:5], "never to be seen"):
            heard = Listener()
            row = ask(lm, prompt, seed, stop=(stop,) if stop else (), on_piece=heard, with_logprobs=True)
            with ContinuousDecoder(lm) as decoder:
                sample = decoder.submit(row).result(WAIT_S)
            assert (heard.text, heard.tokens) == (sample.text, sample.tokens)
            assert tuple(p for piece in heard.pieces for p in piece.logprobs) == sample.logprobs
            assert not stop or stop not in heard.text


def test_a_stop_text_whose_character_takes_several_tokens(lm: LM) -> None:
    tokens: list[int] = lm.tokenizer("ab。cd", add_special_tokens=False)["input_ids"]
    stop = StopStrings(lm.tokenizer, ("。",))
    assert len(lm.tokenizer("。", add_special_tokens=False)["input_ids"]) > 1
    ended = [n for n in range(1, len(tokens) + 1) if stop.ends(tokens[:n])]
    assert stop.text(tokens[: ended[0]]) == "ab。"
