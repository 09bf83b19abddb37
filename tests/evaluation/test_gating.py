"""Bounds of a gate from measured problems: cases whose right bounds can be seen, and a whole measurement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mass.adaptation.checkpoint import describe, init_state, save, set_gate
from mass.config import AdaptConfig, GateConfig, InnerConfig, SamplingConfig, ScoringConfig, SynthesisConfig
from mass.errors import DataError, ModelError
from mass.evaluation.gating import LEAST, Measured, area_under_curve, bounds, measure
from mass.model import load
from small_lms import small_sums

CONFIG = AdaptConfig(
    SynthesisConfig(examples=4, sampling=SamplingConfig(max_new_tokens=48)),
    ScoringConfig(hidden=8),
    InnerConfig(learning_rate=0.5, steps=1),
    SamplingConfig(max_new_tokens=24, temperature=0.0),
)


def problems(*groups: tuple[int, float, bool, bool]) -> list[Measured]:
    """Groups of (number, certainty, right, right after practice), certainties falling within a group."""
    return [
        Measured({"certainty": round(certainty - i * 1e-4, 4), "surprise": 0.01, "drift": 0.1}, right, after)
        for count, certainty, right, after in groups
        for i in range(count)
    ]


def test_the_certain_are_those_whom_practice_does_not_help() -> None:
    found = bounds(problems((40, -0.1, True, True), (60, -0.5, False, True)), GateConfig())
    assert found.gate.certainty == pytest.approx(-0.1039)
    assert (found.skipped, found.right, found.helped, found.hurt) == (40, 40, 60, 0)
    assert found.certain_right == found.certain_unhelped == 1.0


def test_one_percent_of_the_gain_may_be_lost() -> None:
    some = problems((50, -0.1, True, True), (1, -0.2, False, True), (50, -0.3, True, True), (99, -0.5, False, True))
    found = bounds(some, GateConfig())
    assert found.skipped == 101, "one of 100 helped is lost, and 50 problems more are answered at once"
    fewer = bounds([*some[:-1]], GateConfig())
    assert fewer.skipped == 50, "one of 99 is too many"


def test_practice_that_always_helps_the_certain_first_leaves_no_threshold() -> None:
    assert bounds(problems((60, -0.1, False, True)), GateConfig()).gate.certainty is None


def test_practice_that_only_hurts_is_skipped_throughout() -> None:
    found = bounds(problems((60, -0.1, True, False)), GateConfig())
    assert found.skipped == 60


def test_the_equally_certain_are_all_skipped_or_none() -> None:
    even = [Measured({"certainty": -0.1}, right, True) for right in [True] * 50 + [False] * 50]
    assert bounds(even, GateConfig()).gate.certainty is None


def test_honest_updates_pass_the_other_bounds() -> None:
    values = np.linspace(0.0, 1.0, 201)
    some = [Measured({"certainty": -1.0, "surprise": v, "held_out_rise": -v, "drift": v}, True, True) for v in values]
    found = bounds(some, GateConfig(canaries="mine.jsonl", hold_out=3)).gate
    assert (found.max_surprise, found.max_drift) == (0.98, 0.995)
    assert found.max_rise == GateConfig().max_rise, "no loss rose: nothing to take a bound from"
    assert (found.canaries, found.hold_out, found.enabled) == ("mine.jsonl", 3, False)


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(DataError, match=f"{LEAST - 1} problems .* expected at least {LEAST}"):
        bounds(problems((LEAST - 1, -0.1, True, True)), GateConfig())


def test_the_area_under_a_curve() -> None:
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert area_under_curve(scores, np.array([False, False, True, True])) == 0.75
    assert area_under_curve(np.zeros(4), np.array([False, True, True, False])) == 0.5
    assert np.isnan(area_under_curve(scores, np.ones(4, dtype=bool)))


@pytest.fixture
def checkpoint(taught_base: Path, tmp_path: Path) -> Path:
    lm = load(str(taught_base), config=CONFIG).lm
    save(tmp_path / "run", lm, init_state(lm, CONFIG, 0), CONFIG, "mass", 1)
    return tmp_path / "run"


def test_every_problem_is_measured(taught_base: Path, checkpoint: Path) -> None:
    tasks = small_sums()[:5]
    model = load(str(taught_base), str(checkpoint))
    found = measure(model, tasks, 0, stack=4)
    assert len(found) == 5
    assert all({"certainty", "drift"} <= one.measures.keys() for one in found)
    assert all(one.measures["certainty"] < 0 for one in found)
    plain = [model.solve(task, adapt=False).text for task in tasks]
    assert [one.right for one in found] == [text.endswith(task.answer) for text, task in zip(plain, tasks, strict=True)]


def test_bounds_are_kept_in_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    before = json.loads((checkpoint / "mass.json").read_text())
    gate = GateConfig(certainty=-0.25, max_drift=0.125)
    assert set_gate(checkpoint, gate) == checkpoint / "mass.json"
    assert describe(checkpoint).adapt == dataclasses.replace(CONFIG, gate=gate)
    after = json.loads((checkpoint / "mass.json").read_text())
    after["adapt"]["gate"] = before["adapt"]["gate"]
    assert after == before
    assert not list(checkpoint.glob("*.tmp"))
    with pytest.raises(ModelError, match="no checkpoint"):
        set_gate(tmp_path, gate)


def test_the_verb_measures_and_keeps(taught_base: Path, checkpoint: Path, run: Callable[..., object]) -> None:
    tasks = checkpoint.parent / "sums.jsonl"
    rows = [{"problem": t.problem, "answer": t.answer} for t in small_sums()[:4]] * 13
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run("gate", "--model", taught_base, "--checkpoint", checkpoint, "--tasks", tasks, "--stack", "52")
    assert "52 problems" in found.err
    assert describe(checkpoint).adapt.gate.max_drift is not None
    assert f"kept in {checkpoint / 'mass.json'}" in found.err
    untrained = run("gate", "--model", taught_base, "--tasks", tasks)
    assert untrained.code == 2
    assert "no checkpoint to keep the bounds in" in untrained.err
