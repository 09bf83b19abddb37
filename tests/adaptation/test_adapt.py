"""Test time, on a small model that writes well-formed practice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from mass import timing
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
from mass.lm import LM, load_lm
from mass.lm.lora import adapter_hash, pick
from mass.timing import Clock
from mass.types import Adaptation, Example
from small_lms import full_logits, random_adapter

CONFIG = AdaptConfig(
    SynthesisConfig(examples=4, sampling=SamplingConfig(max_new_tokens=48)),
    ScoringConfig(hidden=8),
    InnerConfig(learning_rate=0.5, steps=2),
    SamplingConfig(max_new_tokens=24, temperature=0.0),
)
PROBLEMS = ["Compute 1 + 2.", "Compute 3 + 3.", "Compute 2 + 2."]


@pytest.fixture(scope="module")
def lm(taught_base: Path) -> LM:
    return load_lm(ModelConfig(name=str(taught_base)), LoraConfig(r=2, lora_alpha=4.0))


@pytest.fixture(scope="module")
def state(lm: LM) -> MetaState:
    """Scores differ, and the adapter's A is not all that learns."""
    fresh = init_state(lm, CONFIG, 0)
    generator = torch.Generator().manual_seed(3)
    eta = {n: t + torch.randn(t.shape, generator=generator) for n, t in fresh.eta.items()}
    return MetaState(random_adapter(lm, 4, scale=0.02), eta, fresh.log_rates)


def with_inner(**changes: object) -> AdaptConfig:
    return dataclasses.replace(CONFIG, inner=dataclasses.replace(CONFIG.inner, **changes))


def rated(state: MetaState, rate: float) -> MetaState:
    log = torch.tensor(rate).log()
    return dataclasses.replace(state, log_rates={n: log.clone() for n in state.log_rates})


def group(*pairs: tuple[str, str], rejected: str = "") -> tuple[Example, ...]:
    """The scorer reads the tokens; which ones they are does not matter here."""
    return tuple(Example(p, s, f" {p}\nSolution: {s}", (5, 6, 7 + i), rejected) for i, (p, s) in enumerate(pairs))


GOOD = group(("Compute 1 + 1.", "1+1=2. Answer: 2"), ("Compute 2 + 3.", "2+3=5. Answer: 5"))
NONE = group(("", ""), ("", ""), rejected="unparsed")


def test_practice_is_learned_and_recorded(lm: LM, state: MetaState) -> None:
    records, adapted = answer_all(lm, state, PROBLEMS, CONFIG, [0, 1, 2])
    used = [e for r in records for e in r.examples if e.valid]
    assert len(used) >= 6
    assert all(e.score is not None and 0 < e.weight <= 1 for e in used)
    assert all(
        e.score is None and e.weight == 0 and e.loss_before is None for r in records for e in r.examples if e.rejected
    )
    for record in records:
        learned = [e for e in record.examples if e.valid]
        assert sum(e.weight * e.loss_after for e in learned) < 0.99 * sum(e.weight * e.loss_before for e in learned)
    for b, record in enumerate(records):
        assert sum(e.weight for e in record.examples) == pytest.approx(1)
        assert record.fallback == ""
        assert record.update_norm > 0
        assert record.adapter_hash == adapter_hash(pick(adapted.stack, b)) != adapter_hash(state.theta)
        assert record.tokens.keys() == {"synthesis", "answer", "unadapted answer"}
        assert record.tokens["synthesis"] == sum(len(e.tokens) for e in record.examples)
        assert {"synthesis", "scoring", "inner loop", "answer"} <= record.seconds.keys()
        assert record.verdict is None
        assert (record.problem, record.seed, record.model) == (PROBLEMS[b], b, lm.name)


def test_losses_and_norms_are_those_of_the_records(lm: LM, state: MetaState) -> None:
    (record,), adapted = answer_all(lm, state, PROBLEMS[:1], CONFIG, [0])
    for e in record.examples:
        if e.valid:
            batch = lm.batch([lm.example_row(e.problem, e.solution)])
            assert e.loss_before == pytest.approx(float(lm.losses(batch, state.theta)), rel=1e-4)
            assert e.loss_after == pytest.approx(float(lm.losses(batch, pick(adapted.stack, 0))), rel=1e-4)
    change = sum(float((adapted.stack[n][0] - t).square().sum()) for n, t in state.theta.items()) ** 0.5
    assert record.update_norm == pytest.approx(
        change / sum(float(t.square().sum()) for t in state.theta.values()) ** 0.5
    )


def test_an_answer_does_not_depend_on_those_beside_it(lm: LM, state: MetaState) -> None:
    together, _ = answer_all(lm, state, PROBLEMS, CONFIG, [0, 1, 2])
    for b, record in enumerate(together):
        (alone,), _ = answer_all(lm, state, PROBLEMS[b : b + 1], CONFIG, [b])
        assert alone.text == record.text
        assert [e.tokens for e in alone.examples] == [e.tokens for e in record.examples]
        assert alone.update_norm == pytest.approx(record.update_norm, rel=1e-4)
        assert [e.weight for e in alone.examples] == pytest.approx([e.weight for e in record.examples], rel=1e-4)


def test_rejected_examples_change_nothing(lm: LM, state: MetaState) -> None:
    one = adapt_stack(lm, state, ["Q"], [GOOD], CONFIG, Clock())
    more = adapt_stack(lm, state, ["Q"], [(*GOOD[:1], *NONE, *GOOD[1:])], CONFIG, Clock())
    assert adapter_hash(pick(one.stack, 0)) == adapter_hash(pick(more.stack, 0))
    assert [e.weight for e in more.groups[0]][1:3] == [0.0, 0.0]


def test_heavier_examples_are_learned_more(lm: LM, state: MetaState) -> None:
    """Weights reach the update: the scorer's favourite gains most."""
    config = dataclasses.replace(with_inner(steps=1, learning_rate=0.1), scoring=ScoringConfig(hidden=8))
    hot = dataclasses.replace(state, eta={n: t * (50 if n == "head.w2" else 1) for n, t in state.eta.items()})
    (examples,) = adapt_stack(lm, rated(hot, 0.1), ["Q"], [GOOD], config, Clock()).groups
    heavy, light = sorted(examples, key=lambda e: -e.weight)
    assert heavy.weight > 0.9
    assert heavy.loss_before - heavy.loss_after > light.loss_before - light.loss_after


# ------------------------------------------------------------------------------- falling back


def fell_back(lm: LM, state: MetaState, config: AdaptConfig, groups: list[tuple[Example, ...]]) -> list[Adaptation]:
    problems = PROBLEMS[: len(groups)]
    records, adapted = answer_all(lm, state, problems, config, list(range(len(groups))), replay=groups)
    for b, record in enumerate(records):
        if record.fallback:
            assert record.text == record.unadapted_text
            assert adapter_hash(pick(adapted.stack, b)) == adapter_hash(state.theta) == record.adapter_hash
        else:
            assert record.adapter_hash != adapter_hash(state.theta)
    return records


def test_without_a_valid_example(lm: LM, state: MetaState) -> None:
    records = fell_back(lm, state, CONFIG, [NONE])
    assert [r.fallback for r in records] == ["no valid example"]
    records = fell_back(lm, state, CONFIG, [GOOD, NONE, GOOD])
    assert [r.fallback for r in records] == ["", "no valid example", ""]
    assert records[1].update_norm == 0


@pytest.mark.parametrize("rate", [1e30, float("inf")])
def test_with_a_learning_rate_beyond_reason(lm: LM, state: MetaState, rate: float) -> None:
    (record,) = fell_back(lm, rated(state, rate), CONFIG, [GOOD])
    assert record.fallback in ("non-finite update", "exploding update")
    assert all(e.loss_after == pytest.approx(e.loss_before) for e in record.examples)


def test_with_an_update_that_is_not_finite(lm: LM, state: MetaState, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one problem of a stack; its neighbours are adapted as ever."""
    expected = adapt_stack(lm, state, PROBLEMS, [GOOD, GOOD, GOOD], CONFIG, Clock())
    from mass.adaptation.batch import Practice

    right = Practice.losses

    def broken(self: Practice, params: dict[str, Tensor], index: Tensor | None = None) -> Tensor:
        owners = self.owners if index is None else self.owners[index]
        return right(self, params, index) * torch.where(owners == 1, torch.inf, 1.0)

    monkeypatch.setattr(Practice, "losses", broken)
    adapted = adapt_stack(lm, state, PROBLEMS, [GOOD, GOOD, GOOD], CONFIG, Clock())
    assert adapted.fallbacks == ("", "non-finite update", "")
    for b in (0, 2):
        assert adapter_hash(pick(adapted.stack, b)) == adapter_hash(pick(expected.stack, b))
    assert adapter_hash(pick(adapted.stack, 1)) == adapter_hash(state.theta)


def test_with_an_update_beyond_the_limit(lm: LM, state: MetaState) -> None:
    (record,) = fell_back(lm, state, with_inner(max_update_norm=1e-9), [GOOD])
    assert record.fallback == "exploding update"
    assert record.update_norm > 1e-9
    (record,) = fell_back(lm, state, with_inner(max_update_norm=record.update_norm * 1.01), [GOOD])
    assert record.fallback == ""


def test_no_steps_is_no_adaptation_and_no_fallback(lm: LM, state: MetaState) -> None:
    (record,), _ = answer_all(lm, state, PROBLEMS[:1], with_inner(steps=0), [0])
    assert (record.fallback, record.text) == ("", record.unadapted_text)
    assert record.adapter_hash == adapter_hash(state.theta)


# ------------------------------------------------------------------------------- no trace


def test_a_hundred_adaptations_leave_no_trace(lm: LM, state: MetaState) -> None:
    batch = lm.batch([(lm.solve_prompt(p), lm.target_ids("Answer: 3")) for p in PROBLEMS])
    before = full_logits(lm, batch)
    weights = {name: t.clone() for name, t in lm.model.state_dict().items()}
    values = [t.clone() for p in (state.theta, state.eta, state.log_rates) for t in p.values()]
    small = dataclasses.replace(
        CONFIG,
        synthesis=SynthesisConfig(examples=2, sampling=SamplingConfig(max_new_tokens=32)),
        inner=InnerConfig(learning_rate=0.5, steps=1),
        answer=SamplingConfig(max_new_tokens=4, temperature=0.0),
    )
    hashes: set[str] = set()
    for first in range(0, 100, 10):
        seeds = list(range(first, first + 10))
        records, _ = answer_all(lm, state, [PROBLEMS[s % 3] for s in seeds], small, seeds, unadapted=False)
        hashes |= {r.adapter_hash for r in records}
    assert len(hashes) > 80
    assert torch.equal(full_logits(lm, batch), before)
    assert all(torch.equal(t, weights[n]) for n, t in lm.model.state_dict().items())
    after = [t for p in (state.theta, state.eta, state.log_rates) for t in p.values()]
    assert all(torch.equal(x, y) for x, y in zip(values, after, strict=True))


def test_the_clock_leaves_out_what_runs_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = Clock()
    with clock.stage("whole", without="part"):
        now[0] += 1.0
        for _ in clock.each("part", iter([1, 2, 3])):
            now[0] += 10.0
    assert clock.seconds == {"whole": 1.0, "part": 30.0}
