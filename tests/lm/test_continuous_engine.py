"""A model that many threads share: they sample through one decoder, and take gradients beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_together import WAIT_S, each_alone, settings

from mass.adaptation.adapt import adapt_stack
from mass.adaptation.answer import answer_all
from mass.adaptation.checkpoint import MetaState, init_state
from mass.config import (
    AdaptConfig,
    InnerConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    ScoringConfig,
    SynthesisConfig,
)
from mass.errors import ConfigError, ShapeError
from mass.lm import LM, load_lm
from mass.lm.continuous import (
    Ask,
    Cancelled,
    ContinuousDecoder,
    Limits,
    SharedEngine,
    check_cancelled,
    current_request,
    share,
)
from mass.lm.lora import repeat
from mass.timing import Clock
from mass.types import Example
from small_lms import make_lm, prompt_ids, random_adapter

CONFIG = AdaptConfig(
    SynthesisConfig(examples=4, sampling=SamplingConfig(max_new_tokens=48)),
    ScoringConfig(hidden=8),
    InnerConfig(learning_rate=0.5, steps=2),
    SamplingConfig(max_new_tokens=24, temperature=0.0),
)
PROBLEMS = ["Compute 1 + 2.", "Compute 3 + 3.", "Compute 2 + 2.", "Compute 3 + 1."]


@pytest.fixture(scope="module")
def lm(taught_base: Path) -> LM:
    return load_lm(ModelConfig(name=str(taught_base), dtype="float64"), LoraConfig(r=2, lora_alpha=4.0))


@pytest.fixture(scope="module")
def state(lm: LM) -> MetaState:
    fresh = init_state(lm, CONFIG, 0)
    return MetaState(random_adapter(lm, 4, scale=0.02), fresh.eta, fresh.log_rates)


@dataclass
class Wish:
    """A request."""

    owner: Hashable = "me"
    urgent: bool = False
    looks_left: int = 1 << 30

    @property
    def cancelled(self) -> bool:
        self.looks_left -= 1
        return self.looks_left < 0


def in_threads(works: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(WAIT_S) for future in [pool.submit(work) for work in works]]


def test_samples_are_those_of_the_model_itself() -> None:
    lm = make_lm()
    prompts, seeds = prompt_ids(lm), list(range(6))
    stack = random_adapter(lm, 3, count=3)
    with ContinuousDecoder(lm) as decoder:
        shared = share(lm, decoder)
        for adapter in (None, random_adapter(lm), stack, repeat(random_adapter(lm), 3)):
            found = shared.sample(prompts, settings(), seeds, adapter, with_logprobs=True)
            wanted = lm.sample(prompts, settings(), seeds, adapter, with_logprobs=True)
            assert [s.tokens for s in found] == [s.tokens for s in wanted]
            assert all(len(s.logprobs) == len(s.tokens) for s in found)
        assert shared.sample([], settings(), []) == []
        with pytest.raises(ShapeError, match="2 seeds for 6 prompts"):
            shared.sample(prompts, settings(), [0, 1])
        with pytest.raises(ShapeError, match="6 prompts for a stack of 4"):
            shared.sample(prompts, settings(), seeds, random_adapter(lm, 3, count=4))
    assert lm.engine is None


def test_views_stop_at_their_own_texts(lm: LM) -> None:
    with ContinuousDecoder(lm) as decoder:
        shared = share(lm, decoder)
        views = [shared, shared.writing(), shared.asking("code"), share(shared, decoder)]
        assert all(isinstance(view.engine, SharedEngine) for view in views)
        asked = [lm.synthesis_prompt(problem) for problem in PROBLEMS]
        wanted = lm.writing().sample(asked, settings(48), [1, 2, 3, 4])
        assert [s.text for s in shared.writing().sample(asked, settings(48), [1, 2, 3, 4])] == [s.text for s in wanted]
        assert shared.with_lora(LoraConfig(r=3)).engine is None
        with pytest.raises(ConfigError, match="expected the same for"):
            share(make_lm(), decoder)


def test_adaptations_of_many_threads_are_those_alone(lm: LM, state: MetaState) -> None:
    """Writing, gradients and answers of eight requests at once, two of one problem."""
    requests = [(PROBLEMS[i % 4], i) for i in range(8)]
    wanted = [answer_all(lm, state, [problem], CONFIG, [seed])[0][0] for problem, seed in requests]
    with ContinuousDecoder(lm, Limits(rows=12, prefill_tokens=32)) as decoder:
        shared = share(lm, decoder)
        found = in_threads(
            [lambda p=p, s=s: answer_all(shared, state, [p], CONFIG, [s])[0][0] for p, s in requests]
        )  # fmt: skip
        assert decoder.load().adapters == 0
    for one, alone in zip(found, wanted, strict=True):
        assert [e.text for e in one.examples] == [e.text for e in alone.examples]
        assert (one.text, one.unadapted_text, one.fallback) == (alone.text, alone.unadapted_text, alone.fallback)
        assert one.update_norm == pytest.approx(alone.update_norm, rel=1e-9)
    assert any(record.update_norm > 0 for record in wanted)


def test_gradients_beside_decoding_change_neither(lm: LM, state: MetaState) -> None:
    """To the last bit for the gradients, whose passes hold the same rows."""
    groups = [
        tuple(Example(f"Compute {i} + {j}.", f"{i}+{j}={i + j}. Answer: {i + j}", "t", (5, 6, 7)) for j in (1, 2))
        for i in (1, 2)
    ]
    problems = PROBLEMS[:2]
    alone = adapt_stack(lm, state, problems, groups, CONFIG, Clock())
    asks = [
        Ask(lm.solve_prompt(PROBLEMS[i % 4]), settings(60), i, random_adapter(lm, i % 3, scale=0.2), lm.stops)
        for i in range(24)
    ]
    wanted = each_alone(lm, asks)
    with ContinuousDecoder(lm, Limits(rows=8)) as decoder:
        futures = decoder.submit_all(asks)
        beside = [adapt_stack(lm, state, problems, groups, CONFIG, Clock()) for _ in range(4)]
        found = [future.result(WAIT_S) for future in futures]
    assert [s.tokens for s in found] == [s.tokens for s in wanted]
    for adapted in beside:
        assert all(torch.equal(adapted.stack[name], alone.stack[name]) for name in alone.stack)


def test_a_cancelled_request_stops_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    monkeypatch.setattr(LM, "end_ids", property(lambda _: frozenset[int]()))
    prompts = prompt_ids(lm)
    with ContinuousDecoder(lm) as decoder:
        shared = share(lm, decoder)

        def cancelled() -> None:
            current_request.set(Wish(looks_left=20))
            with pytest.raises(Cancelled):
                shared.sample(prompts, settings(200), list(range(6)))
            current_request.set(Wish(looks_left=0))
            with pytest.raises(Cancelled):
                check_cancelled()
            with pytest.raises(Cancelled):
                shared.sample(prompts, settings(200), list(range(6)))

        in_threads([cancelled])
        assert decoder.load().tokens < 60
        check_cancelled()  # of this thread no request is known
        assert len(shared.sample(prompts, settings(3), list(range(6)))) == 6


def test_threads_that_encode_differently_do_not_disturb_each_other() -> None:
    """A chat template's special tokens count; those in a plain text never do."""
    lm = make_lm(chat=True)
    text = f"{lm.tokenizer.eos_token} 3 + 4 " * 3
    plain, chat = lm.target_ids(text), lm.solve_prompt("x")
    stop, wrong = threading.Event(), list[str]()

    def encode(work: Callable[[], list[int]], wanted: list[int]) -> None:
        while not stop.is_set() and not wrong:
            if work() != wanted:
                wrong.append("another thread's setting")

    threads = [
        threading.Thread(target=encode, args=pair)
        for pair in [(lambda: lm.target_ids(text), plain), (lambda: lm.solve_prompt("x"), chat)] * 2
    ]
    for thread in threads:
        thread.start()
    for _ in range(300):
        lm.target_ids(text)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
