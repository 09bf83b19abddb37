"""The gate: its decisions on measures of known size, and its place in an adaptation of a small model."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mass.adaptation import gate
from mass.adaptation.adapt import adapt_stack, practise
from mass.adaptation.answer import answer_all
from mass.adaptation.canaries import Canaries, prepare_canaries, read_canaries
from mass.adaptation.checkpoint import MetaState, adapt_config, init_state
from mass.adaptation.drift import Answers, drifts
from mass.config import (
    AdaptConfig,
    GateConfig,
    InnerConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    ScoringConfig,
    SynthesisConfig,
    to_dict,
)
from mass.encoding import finite
from mass.errors import ConfigError, DataError
from mass.lm import LM, load_lm
from mass.lm.lora import adapter_hash, pick, repeat
from mass.model import Mass
from mass.timing import Clock
from mass.types import Adaptation, Example, Sample
from small_lms import random_adapter

OPEN = GateConfig(enabled=True, max_surprise=None, max_least_loss=None, max_rise=None, max_drift=None)
CONFIG = AdaptConfig(
    SynthesisConfig(examples=8, sampling=SamplingConfig(max_new_tokens=48)),
    ScoringConfig(hidden=8),
    InnerConfig(learning_rate=0.5, steps=2),
    SamplingConfig(max_new_tokens=24, temperature=0.0),
    OPEN,
)
PROBLEMS = ["Compute 1 + 2.", "Compute 3 + 3.", "Compute 2 + 2."]
SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def lm(taught_base: Path) -> LM:
    return load_lm(ModelConfig(name=str(taught_base)), LoraConfig(r=2, lora_alpha=4.0))


@pytest.fixture(scope="module")
def state(lm: LM) -> MetaState:
    fresh = init_state(lm, CONFIG, 0)
    generator = torch.Generator().manual_seed(3)
    eta = {n: t + torch.randn(t.shape, generator=generator) for n, t in fresh.eta.items()}
    return MetaState(random_adapter(lm, 4, scale=0.02), eta, fresh.log_rates)


def with_gate(**changes: object) -> AdaptConfig:
    return dataclasses.replace(CONFIG, gate=dataclasses.replace(OPEN, **changes))


def examples(count: int) -> tuple[Example, ...]:
    texts = [(f"Compute {i} + 1.", f"{i}+1={i + 1}. Answer: {i + 1}") for i in range(count)]
    return tuple(Example(p, s, f" {p}\nSolution: {s}", (5, 6, 7 + i)) for i, (p, s) in enumerate(texts))


def canary_file(folder: Path, *rows: object) -> str:
    path = folder / "canaries.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


# --- decisions


def test_the_certain_are_left_alone() -> None:
    config = GateConfig(certainty=-0.01)
    assert not gate.before(-0.01, config).adapt, "at the threshold it is certain enough"
    assert gate.before(-0.0101, config).adapt
    assert gate.before(0.0, GateConfig()).adapt, "no threshold, no such gate"


@pytest.mark.parametrize(
    ("measures", "reason"),
    [
        ({"surprise": 1.0, "held_out_rise": 1.0, "drift": 1.0}, gate.PASSED),
        ({"surprise": 1.1, "held_out_rise": 2.0, "drift": 2.0}, gate.SURPRISING),
        ({"surprise": 0.0, "least_loss": 1.1, "held_out_rise": 2.0}, gate.UNLIKELY),
        ({"surprise": 0.0, "held_out_rise": 1.1, "drift": 2.0}, gate.LESS_LIKELY),
        ({"surprise": 0.0, "held_out_rise": -5.0, "drift": 1.1}, gate.DRIFTED),
        ({"surprise": 0.0, "drift": math.nan}, gate.DRIFTED),
        ({"surprise": 0.0, "drift": math.inf}, gate.DRIFTED),
        ({"surprise": 0.0}, gate.PASSED),
    ],
)
def test_the_first_failed_test_is_the_reason(measures: dict[str, float], reason: str) -> None:
    config = GateConfig(max_surprise=1.0, max_least_loss=1.0, max_rise=1.0, max_drift=1.0)
    assert gate.after(measures, config) == gate.GateDecision(reason == gate.PASSED, reason, measures)
    assert gate.after(measures, config, unrefused=True).reason == (reason if reason != gate.PASSED else gate.UNREFUSED)
    assert gate.after(measures, OPEN).adapt, "null means any"


@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=4), st.integers(2, 5))
def test_a_share_of_the_valid_is_held_out(rows: list[list[bool]], every: int) -> None:
    valid = torch.tensor(rows)
    held = gate.held_out(valid, GateConfig(enabled=True, hold_out=every))
    assert not (held & ~valid).any()
    assert held.sum(1).tolist() == [sum(row) // every for row in rows]
    assert not gate.held_out(valid, GateConfig(enabled=True, hold_out=0)).any()
    assert not gate.held_out(valid, GateConfig(hold_out=every)).any(), "a gate that is off holds nothing out"


@pytest.mark.parametrize(
    ("option", "value"), [("certainty", 0.1), ("hold_out", 1), ("max_drift", -1.0), ("max_rise", math.inf)]
)
def test_an_unusable_bound_is_named(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"gate.{option} is"):
        GateConfig(**{option: value})


def test_a_configuration_survives_json_and_old_ones_have_none() -> None:
    data = to_dict(with_gate(certainty=-0.5))
    assert adapt_config(data) == with_gate(certainty=-0.5)
    del data["gate"]
    assert adapt_config(data).gate == GateConfig(), "written before there was a gate"


# --- certainty


def test_certainty_is_the_mean_log_probability(lm: LM, state: MetaState) -> None:
    prompts = [lm.solve_prompt(problem) for problem in PROBLEMS]
    sampling = dataclasses.replace(CONFIG.answer, max_new_tokens=6)
    known = lm.sample(prompts, sampling, SEEDS, state.theta, with_logprobs=True)
    bare = [dataclasses.replace(sample, logprobs=()) for sample in known]
    expected = [sum(s.logprobs) / len(s.tokens) for s in known]
    assert gate.certainties(lm, prompts, known, state.theta) == pytest.approx(expected)
    mixed = [bare[0], known[1], bare[2]]
    assert gate.certainties(lm, prompts, mixed, state.theta) == pytest.approx(expected, rel=1e-4)
    assert gate.certainties(lm, prompts[:1], [Sample((), "", True)], state.theta) == [0.0]


def test_only_the_uncertain_practise(lm: LM, state: MetaState) -> None:
    everyone, _ = answer_all(lm, state, PROBLEMS, with_gate(certainty=0.0), SEEDS)
    found = [record.gate.measures["certainty"] for record in everyone if record.gate]
    config = with_gate(certainty=sorted(found)[1])
    records, adapted = answer_all(lm, state, PROBLEMS, config, SEEDS)
    skipped = [value >= sorted(found)[1] for value in found]
    assert sum(skipped) == 2
    for b, (record, certain) in enumerate(zip(records, skipped, strict=True)):
        assert (record.fallback == gate.CERTAIN) == certain == (not record.examples)
        assert (adapter_hash(pick(adapted.stack, b)) == adapter_hash(state.theta)) == certain
        assert ("synthesis" in record.seconds) != certain, "who does not practise pays for none"
        assert record.unadapted_text == everyone[b].unadapted_text
        assert record.text == (record.unadapted_text if certain else everyone[b].text)
    alone, stack = answer_all(lm, state, PROBLEMS, with_gate(certainty=-99.0), SEEDS)
    assert [record.fallback for record in alone] == [gate.CERTAIN] * 3
    assert all(torch.equal(stack.stack[name], t.expand(3, *t.shape)) for name, t in state.theta.items())


# --- after practice


def test_a_gate_that_is_off_changes_nothing(lm: LM, state: MetaState) -> None:
    off = dataclasses.replace(CONFIG, gate=GateConfig(certainty=-99.0, max_drift=0.0, max_surprise=0.0))
    one, adapted = answer_all(lm, state, PROBLEMS, off, SEEDS)
    other, same = answer_all(lm, state, PROBLEMS, dataclasses.replace(CONFIG, gate=GateConfig()), SEEDS)
    assert [(r.text, r.examples, r.gate) for r in one] == [(r.text, r.examples, None) for r in other]
    assert all(torch.equal(adapted.stack[name], same.stack[name]) for name in adapted.stack)


@pytest.mark.parametrize("normalise", ["softmax", "sigmoid", "uniform"])
def test_held_out_examples_judge_a_trial_without_them(lm: LM, state: MetaState, normalise: str) -> None:
    """By hand: learn the six others, and look at the two. The update that answers is that of a gate that is off."""
    config = dataclasses.replace(CONFIG, scoring=dataclasses.replace(CONFIG.scoring, normalise=normalise))
    plain = dataclasses.replace(config, gate=GateConfig())
    group = examples(8)
    learned, held = tuple(e for i, e in enumerate(group) if i % 4 != 3), (group[3], group[7])
    gated = adapt_stack(lm, state, PROBLEMS[:1], [group], config, Clock())
    without = adapt_stack(lm, state, PROBLEMS[:1], [group], plain, Clock())
    assert adapter_hash(gated.stack) == adapter_hash(without.stack)
    if normalise == "sigmoid":  # divided by the number of examples: six of them would weigh together 6/8 of a whole
        return
    trial = adapt_stack(lm, state, PROBLEMS[:1], [learned], plain, Clock())
    batch = lm.batch([lm.example_row(e.problem, e.solution) for e in held])
    rise = lm.losses(batch, pick(trial.stack, 0)) - lm.losses(batch, state.theta)
    (decision,) = gated.gates
    assert decision is not None
    assert decision.measures["held_out_rise"] == pytest.approx(float(rise.mean()), abs=1e-5)
    assert decision.measures["least_loss"] == pytest.approx(min(e.loss_before for e in gated.groups[0]), abs=1e-6)
    (alone,) = adapt_stack(lm, state, PROBLEMS[:1], [group[:3]], config, Clock()).gates
    assert alone is not None
    assert "held_out_rise" not in alone.measures, "of three, none is held out"


def test_surprise_is_the_loss_in_the_eyes_of_the_writer(lm: LM, state: MetaState) -> None:
    (record,), _ = practise(lm, state, PROBLEMS[:1], CONFIG, [3])
    own = [e for e in record.examples if e.valid]
    rows = []
    for e in own:
        label = len(lm.target_ids(e.solution))
        rows.append(([*lm.synthesis_prompt(PROBLEMS[0]), *e.tokens[:-label]], list(e.tokens[-label:])))
    expected = sum(e.weight * float(lm.losses(lm.batch([row]), state.theta)) for e, row in zip(own, rows, strict=True))
    assert record.gate is not None
    assert record.gate.measures["surprise"] == pytest.approx(expected / sum(e.weight for e in own), rel=1e-4)
    lies = tuple(dataclasses.replace(e, solution="Answer: 77", tokens=()) for e in own)
    (told,), _ = practise(lm, state, PROBLEMS[:1], CONFIG, [3], replay=[lies])
    assert told.gate is not None
    assert told.gate.measures["surprise"] > 3 * record.gate.measures["surprise"]


def test_a_discarded_update_answers_as_if_there_were_none(lm: LM, state: MetaState) -> None:
    everyone, free = practise(lm, state, PROBLEMS, with_gate(max_drift=1e9), SEEDS)
    surprise = [record.gate.measures["surprise"] for record in everyone if record.gate]
    bound = sorted(surprise)[1]
    records, adapted = practise(lm, state, PROBLEMS, with_gate(max_drift=1e9, max_surprise=bound), SEEDS)
    for b, record in enumerate(records):
        kept = surprise[b] <= bound
        assert record.gate is not None
        assert (record.gate.adapt, record.fallback) == ((True, "") if kept else (False, gate.SURPRISING))
        expected = pick(free.stack, b) if kept else state.theta
        assert adapter_hash(pick(adapted.stack, b)) == adapter_hash(expected) == record.adapter_hash
        assert record.gate.measures["drift"] > 0
    assert sum(bool(record.fallback) for record in records) == 1


def test_what_is_not_finite_is_judged_by_nothing_else(lm: LM, state: MetaState) -> None:
    rates = {name: torch.tensor(80.0) for name in state.log_rates}
    wild = dataclasses.replace(state, log_rates=rates)
    records, _ = practise(lm, wild, PROBLEMS[:2], with_gate(max_drift=0.5), SEEDS[:2], replay=[examples(4)] * 2)
    for record in records:
        assert record.gate is not None
        assert record.fallback == record.gate.reason in (gate.NOT_FINITE, gate.EXPLODING)
        back = Adaptation.from_dict(json.loads(json.dumps(finite(record.to_dict()), allow_nan=False)))
        assert back.gate is not None
        assert back.gate.reason == record.fallback


def test_a_record_replays_with_its_decision(lm: LM, state: MetaState) -> None:
    for changes in ({}, {"max_surprise": 0.0}, {"certainty": -99.0}):
        model = Mass(lm, state, with_gate(max_drift=1e9, **changes))
        record = model.solve(PROBLEMS[0]).adaptation
        assert record is not None
        stored = Adaptation.from_dict(json.loads(json.dumps(finite(record.to_dict()))))
        again = model.replay(stored)
        assert again.adaptation is not None
        assert (again.text, again.adaptation.adapter_hash) == (record.text, record.adapter_hash)
        assert again.adaptation.gate == record.gate


# --- canaries


@pytest.fixture(scope="module")
def canaries(lm: LM, state: MetaState, tmp_path_factory: pytest.TempPathFactory) -> Canaries:
    file = canary_file(tmp_path_factory.mktemp("canaries"), {"prompt": "Compute 4 + 4."}, {"prompt": "Compute 9 + 1."})
    return prepare_canaries(lm, state.theta, GateConfig(enabled=True, canaries=file, canary_tokens=10))


def test_drift_is_that_of_the_training_measure(lm: LM, state: MetaState, canaries: Canaries) -> None:
    others = [random_adapter(lm, seed, scale=0.1) for seed in (5, 6, 7)]
    stack = {name: torch.stack([other[name] for other in others]) for name in state.theta}
    drift, lost = canaries.measure(stack)
    rows, owners = [*canaries.rows] * 3, torch.tensor([0, 0, 1, 1, 2, 2])
    expected = drifts(lm, Answers(tuple(rows), owners, torch.full((6,), 0.5)), state.theta, stack, None)
    torch.testing.assert_close(drift, expected, rtol=1e-3, atol=1e-6)
    assert not lost.any()
    torch.testing.assert_close(canaries.measure(repeat(state.theta, 2))[0], torch.zeros(2), atol=1e-6, rtol=0)


def test_a_lost_refusal_is_seen(lm: LM, state: MetaState, tmp_path: Path) -> None:
    """Whatever theta answers is taken for its refusal; an adapter that answers otherwise has lost it."""
    prompt, sampling = "Compute 2 + 5.", SamplingConfig(8, temperature=0.0)
    (own,) = lm.sample([lm.solve_prompt(prompt)], sampling, [0], state.theta)
    assert own.text.strip()
    pattern = f"^{own.text.replace('+', '.')}$".replace("(", ".").replace(")", ".")
    file = canary_file(tmp_path, {"prompt": prompt, "pattern": pattern}, {"prompt": "Compute 1 + 1."})
    config = GateConfig(enabled=True, canaries=file, canary_tokens=8)
    canaries = prepare_canaries(lm, state.theta, config)
    other = random_adapter(lm, 9, scale=2.0)
    stack = {name: torch.stack([t, other[name]]) for name, t in state.theta.items()}
    assert canaries.measure(stack)[1].tolist() == [False, True]
    wild = dataclasses.replace(state, log_rates={name: torch.tensor(3.0) for name in state.log_rates})
    limits = dataclasses.replace(OPEN, canaries=file, canary_tokens=8)
    unbound = dataclasses.replace(CONFIG, gate=limits, inner=InnerConfig(steps=2, max_update_norm=1e9))
    records, _ = practise(lm, wild, PROBLEMS[:1], unbound, [0], replay=[examples(4)], canaries=canaries)
    assert records[0].fallback == gate.UNREFUSED


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([], "holds no canary"),
        (["{"], "line 1 is no JSON"),
        (["3"], "no text as its prompt"),
        ([{"prompt": " "}], "no text as its prompt"),
        ([{"prompt": "a"}, {"promt": "b"}], "line 2 has a key 'promt'; did you mean 'prompt'"),
        ([{"prompt": "a", "refuse": "yes"}], "true or false as refuse"),
        ([{"prompt": "a", "pattern": "("}], "no regular expression"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, rows: Sequence[object], error: str) -> None:
    with pytest.raises(DataError, match=error) as raised:
        read_canaries(Path(canary_file(tmp_path, *rows)))
    assert "\n" not in str(raised.value)


def test_what_the_model_does_not_refuse_is_refused(lm: LM, state: MetaState, tmp_path: Path) -> None:
    file = canary_file(tmp_path, {"prompt": "Compute 1 + 1."}, {"prompt": "Compute 2 + 2.", "refuse": True})
    with pytest.raises(DataError, match=r"canary 2 \('Compute 2 \+ 2.'\) is answered"):
        prepare_canaries(lm, state.theta, GateConfig(enabled=True, canaries=file))
    with pytest.raises(DataError, match="cannot be read"):
        prepare_canaries(lm, state.theta, GateConfig(enabled=True, canaries=str(tmp_path / "none")))


def test_the_package_has_canaries_for_any_model(lm: LM, state: MetaState) -> None:
    assert len(prepare_canaries(lm, state.theta, GateConfig(enabled=True, canary_tokens=2)).canaries) == 8
