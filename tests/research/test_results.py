"""Stored results: packed and read back unchanged, and estimates that hand-made outcomes make checkable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from research.document.tables import room_table
from research.results import collect, difference, estimate, ratio, read, series
from research.results.data import crossing, curves, needed_as_many_as
from research.results.estimates import Some
from research.results.packing import pack, unpack
from research.results.practice import by_rank, measured, per_problem, spearman
from research.results.stored import is_results

from mass.bootstrap import Resample, percentiles, two_level
from mass.config import AdaptConfig, EvalConfig, SamplingConfig, SynthesisConfig
from mass.errors import DataError, RunError
from mass.evaluation.evaluate import evaluate
from mass.model import load
from mass.tasks import minimath
from study_folders import evaluation, practice, room, training, whole_study, write_json


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.none() | st.integers(0, n)))))
def test_outcomes_are_read_as_they_were_packed(case: tuple[int, list[int | None]]) -> None:
    most, counts = case
    found = unpack(pack(counts, most), most)
    assert [None if np.isnan(value) else int(value) for value in found] == counts


@pytest.mark.parametrize(("text", "most"), [("0120", 1), ("01x", 1), ("1", 16), ("ff", 20)])
def test_a_text_that_was_not_packed_is_refused(text: str, most: int) -> None:
    with pytest.raises(DataError, match="outcomes"):
        unpack(text, most)


def test_a_comparison_is_stored_with_every_outcome(tiny_base: Path, tmp_path: Path) -> None:
    model = load(str(tiny_base), config=AdaptConfig(SynthesisConfig(2, SamplingConfig(8))))
    config = EvalConfig(answer=SamplingConfig(8, 0.0), samples=3, resamples=50)
    out = tmp_path / "runs" / "eval" / "test-4"
    found = evaluate(model, minimath.load("test", 7, 0), ["base", "tt-ss", "maj@2"], config=config, seed=4, out=out)
    (path,) = collect(tmp_path / "runs", tmp_path / "results" / "table")
    assert path == tmp_path / "results" / "table" / "eval" / "test-4.json"
    assert is_results(tmp_path / "results")
    stored = read(tmp_path / "results").parts["table"].evaluations["test"][4]
    assert stored.tasks["hash"] == found.tasks["hash"]
    assert stored.subjects == tuple(task.subject for task in minimath.load("test", 7, 0))
    assert stored.levels == tuple(task.level for task in minimath.load("test", 7, 0))
    for row in found.rows:
        kept = stored.rows[row.method]
        assert kept.outcomes["greedy"].mean() == row.accuracy
        assert kept.tokens["greedy"] == pytest.approx(row.tokens_per_answer, rel=1e-4)
        for part in row.sampled:
            at = f"{part.temperature:g}"
            assert kept.outcomes[at].mean() == pytest.approx(part.accuracy)
            assert kept.outcomes[f"pass {at}"].mean() == part.pass_at_n
            assert kept.outcomes[f"maj {at}"].mean() == part.maj_at_n
            assert kept.samples[at] == 3


def test_a_large_study_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    right = {f"method {i}": [bool(r) for r in rng.random(1000) < 0.5] for i in range(15)}
    sampled = {m: [[bool(r) for r in row] for row in rng.random((1000, 8)) < 0.5] for m in right}
    evaluation(tmp_path / "runs" / "test-0", 0, right, sampled=sampled)
    (path,) = collect(tmp_path / "runs", tmp_path / "stored")
    assert path.stat().st_size * 5 < 300_000


def test_answers_without_verdict_are_kept_apart(tmp_path: Path) -> None:
    draws = [[True, None, False], [None, None, None], [True, True, True]]
    evaluation(tmp_path / "r" / "a-0", 0, {"base": [True, None, False]}, sampled={"base": draws})
    collect(tmp_path / "r", tmp_path / "s" / "table")
    outcomes = read(tmp_path / "s").parts["table"].evaluations["a"][0].rows["base"].outcomes
    assert np.array_equal(outcomes["greedy"], [1, np.nan, 0], equal_nan=True)
    assert np.array_equal(outcomes["0.6"], [0.5, np.nan, 1], equal_nan=True)
    assert np.array_equal(outcomes["pass 0.6"], [1, np.nan, 1], equal_nan=True)


def test_a_training_is_stored_when_it_is_done(tmp_path: Path) -> None:
    training(tmp_path / "r" / "mass-2", 2, "mass", [0.4, 0.5, 0.6])
    lines = (tmp_path / "r" / "mass-2" / "metrics.jsonl").read_text().splitlines()
    unfinished = training(tmp_path / "r" / "other-2", 2, "mass", [0.4, 0.5, 0.6])
    (unfinished / "metrics.jsonl").write_text("\n".join(lines[:30]))
    assert [p.name for p in collect(tmp_path / "r", tmp_path / "s" / "table")] == ["mass-2.json"]
    found = read(tmp_path / "s").parts["table"].trainings["mass"][2]
    assert found.curves["eval/accuracy"] == [(0, 0.4), (20, 0.5), (40, 0.6)]
    assert (found.steps, found.tokens, found.seconds) == (40, 40_000, 120)
    assert len(found.curves["reward"]) == 20  # 40 steps, two to a point
    assert found.curves["reward"][0] == (1.5, 0.015)


def test_what_cannot_be_collected_or_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no finished run"):
        collect(tmp_path / "empty", tmp_path / "s")
    write_json(tmp_path / "broken" / "a" / "comparison.json", {"rows": []})
    with pytest.raises(DataError, match="cannot be read as a run"):
        collect(tmp_path / "broken", tmp_path / "s")
    write_json(tmp_path / "s" / "table" / "eval" / "a-0.json", {"name": "a", "seed": 0})
    with pytest.raises(DataError, match=r"a-0.json is not a stored result .* python -m research collect"):
        read(tmp_path / "s")


# --- estimates


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    runs = whole_study(folder / "runs")
    for part in runs.iterdir():
        collect(part, folder / "results" / part.name)
    return folder / "results"


def stored(tmp_path: Path, *evaluations: tuple[int, dict[str, list[Any]], dict[str, Any], str]) -> Any:
    for seed, right, trained, tasks in evaluations:
        evaluation(tmp_path / "r" / f"a-{seed}", seed, right, training=trained, tasks=tasks)
    collect(tmp_path / "r", tmp_path / "s" / "table")
    return read(tmp_path / "s").parts["table"].evaluations["a"]


def test_means_and_paired_differences_over_seeds_and_problems(tmp_path: Path) -> None:
    run = {"mass": {"run": "m"}}
    found = stored(
        tmp_path,
        (0, {"base": [1, 0, 0, 0], "mass": [1, 1, 1, None]}, run, "x"),
        (1, {"base": [1, 0, 0, 0], "mass": [0, 1, 0, 1]}, run, "x"),
    )
    mass, base = series(found, "mass"), series(found, "base")
    assert mass is not None
    assert base is not None
    assert estimate(mass).mean == pytest.approx((1 + 0.5) / 2)
    assert (estimate(mass).seeds, estimate(mass).problems) == (2, 4)
    gain = difference(mass, base)
    assert gain is not None
    assert gain.mean == pytest.approx((2 / 3 + 1 / 4) / 2)
    rows = (np.array([0, 1, 1, np.nan]), np.array([-1.0, 1, 0, 1]))
    assert gain.interval == pytest.approx(percentiles(two_level(Resample(rows, ("x", "x")))))
    factor = ratio(mass, base)
    assert factor is not None
    assert factor.mean == pytest.approx(0.75 / 0.25)
    some = series(found, "mass", some=Some(subject="Algebra"))
    assert some is not None
    assert some.outcomes[0].tolist()[0] == 1.0
    assert np.isnan(some.outcomes[0][1])
    assert series(found, "tt-ss") is None
    assert series(found, "mass", "0.6") is None


def test_one_run_of_an_untrained_method_stands_beside_every_seed(tmp_path: Path) -> None:
    run = {"mass": {"run": "m"}, "grpo": {"run": "g"}}
    found = stored(
        tmp_path,
        (0, {"base": [1, 0], "mass": [1, 1], "grpo": [1, 0]}, run, "x"),
        (1, {"mass": [0, 1]}, run, "x"),
        (2, {"mass": [1, 1]}, run, "y"),
    )
    mass, base, grpo = (series(found, name) for name in ("mass", "base", "grpo"))
    assert mass is not None
    assert base is not None
    assert grpo is not None
    gain = difference(mass, base)
    assert gain is not None
    assert (gain.seeds, gain.mean) == (2, pytest.approx((0.5 + 0) / 2))  # seed 2 saw other problems
    alone = difference(mass, grpo)  # one trained seed says nothing of the others
    assert alone is not None
    assert (alone.seeds, alone.mean) == (1, 0.5)
    back = difference(base, mass)
    assert back is not None
    assert back.mean == -gain.mean
    other = stored(tmp_path / "other", (5, {"base": [1, 0]}, {}, "z"))
    elsewhere = series(other, "base")
    assert elsewhere is not None
    assert difference(mass, elsewhere) is None


# --- data efficiency


def test_where_a_line_first_reaches_a_value() -> None:
    at = np.log([30.0, 300.0, 3000.0])
    values = np.array([[0.2, 0.2, 0.5, 0.2], [0.4, 0.1, 0.6, 0.5], [0.6, 0.3, 0.7, 0.4]])
    found = np.exp(crossing(at, values, np.array([0.3, 0.4, 0.5, 0.45])))
    assert found == pytest.approx([30 * 10**0.5, np.inf, 0.0, 30 * 10 ** (0.25 / 0.3)])


def test_problems_needed_are_read_off_the_curves(study: Path) -> None:
    """Made so that mass has with N problems what solver-sft has with 10 N: 90% fewer."""
    found = curves(read(study).parts["data"])
    assert found["mass"].problems == (30, 100, 300, 1000, 3000)
    assert [e.seeds for e in found["mass"].estimates] == [3] * 5
    needs = needed_as_many_as(found["mass"], found["solver-sft"], 1000)
    low, high = needs.interval
    assert low < 100 < high
    assert low < needs.problems < high
    none = needed_as_many_as(found["mass"], found["solver-sft"], 30)
    assert none.problems == -np.inf
    never = needed_as_many_as(found["solver-sft"], found["mass"], 3000)
    assert never.problems == np.inf


# --- practice


def of_practice(**columns: list[list[Any]]) -> dict[str, Any]:
    return {"near_copy": 2, "tasks": {"hash": "h"}, "after": {"columns": columns}}


def test_measures_of_practice_by_hand() -> None:
    data = of_practice(
        valid=[[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]],
        correct=[[1, 0, 1, None], [1, 1, 1, 1], [None] * 4],
        distance=[[0, 2, 0, 9], [3, 4, 5, 6], [None] * 4],
        level=[[1, -1, 4, None], [0, 0, 1, 1], [None] * 4],
        weight=[[0.5, 0.2, 0.0, 0.3], [0.4, 0.3, 0.2, 0.1], [0.0] * 4],
        effect=[[0.3, -0.1, 9.0, 0.1], [1.0, 2.0, 3.0, 4.0], [None] * 4],
    )
    expected = {
        "valid": [0.75, 1.0, 0.0],
        "correct": [0.5, 1.0, np.nan],
        "copies": [1 / 3, 0.0, np.nan],
        "near-copies": [2 / 3, 0.0, np.nan],
        "level": [0.0, 0.5, np.nan],
        "helpful": [2 / 3, 1.0, np.nan],
        "effect": [0.1, 2.5, np.nan],
        "weight and correctness": [(0.5 - 0.2) * 4, np.nan, np.nan],
        "weight and effect": [1.0, -1.0, np.nan],
    }
    for name, values in expected.items():
        assert per_problem(data, "after", name) == pytest.approx(np.array(values), nan_ok=True), name
    found = measured({0: data}, "after", "correct")
    assert found is not None
    assert (found.mean, found.problems) == (0.75, 3)
    assert measured({0: data}, "before", "correct") is None
    ranks = by_rank({0: data}, "correct")
    assert [None if e is None else e.mean for e in ranks] == [1.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),  # scipy's, with a tie
        ([3, 1, 2], [1, 2, 3], -0.5),
        ([1, 1, 1], [1, 2, 3], np.nan),
        ([1, 2], [1, 2], np.nan),
        ([1, np.nan, 2, 3], [1, 5, 2, 3], 1.0),
    ],
)
def test_spearman_against_known_values(one: list[float], other: list[float], expected: float) -> None:
    found = spearman(np.array(one, dtype=float), np.array(other, dtype=float))
    assert found == pytest.approx(expected, nan_ok=True)


def test_stored_practice_and_rooms_are_found(tmp_path: Path) -> None:
    practice(tmp_path / "r" / "mass-3", "mass", 3)
    room(tmp_path / "r" / "base-1")
    collect(tmp_path / "r", tmp_path / "s" / "learned")
    part = read(tmp_path / "s").parts["learned"]
    assert part.practice["mass"][3]["near_copy"] == 2
    stored_room = part.rooms["base"][1]
    assert len(stored_room["points"]) == 8
    assert "by_subject" not in json.dumps(stored_room)


def test_results_on_real_models_are_read_from_beside_and_without_answers(tmp_path: Path) -> None:
    measured_in = room(tmp_path / "r" / "mbpp")
    data = json.loads((measured_in / "headroom.json").read_text())
    data["unadapted"] |= {"right": [True, None], "answers": [{"text": "long", "tokens": 1, "seconds": 1, "drawn": []}]}
    data["unadapted"].pop("best-of-n")
    data["points"]["own, sgd 1"]["answers"] = data["unadapted"]["answers"]
    (measured_in / "headroom.json").write_text(json.dumps(data))
    collect(measured_in, tmp_path / "stored" / "real" / "code")
    collect(room(tmp_path / "r" / "base-1"), tmp_path / "stored" / "minimath" / "room")
    found = read(tmp_path / "stored" / "minimath").parts
    assert set(found) == {"room", "code"}
    stored = found["code"].rooms["mbpp"][1]
    assert stored["unadapted"]["right"] == [True, None]
    assert "answers" not in json.dumps(stored)
    assert set(read(tmp_path / "stored" / "real").parts) == {"code"}


def test_of_a_source_the_best_point_is_shown_also_where_it_gains_nothing(tmp_path: Path) -> None:
    data = json.loads((room(tmp_path / "r" / "mbpp") / "headroom.json").read_text())
    (point,) = [p for key, p in data["points"].items() if key == "own, sgd 1"]
    harm, nothing, shown = (json.loads(json.dumps(point)) for _ in range(3))
    for one, gain, rate in ((harm, -0.25, 3.0), (nothing, 0.0, 0.5), (shown, 0.125, 0.0)):
        one["rate"] = rate
        one["row"] |= {"difference": gain, "difference_interval": [gain, gain]}
    shown["optimizer"] = "in context"
    table = room_table({"unadapted": data["unadapted"], "points": [harm, nothing, shown]})
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["unadapted", "own", "own, in context"]
    assert "(sgd 0.5, K = 1)" in table.splitlines()[3].split("|")[3]
    assert "+12.5" in table
