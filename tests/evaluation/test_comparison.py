"""The comparison: its numbers against hand-made data, its answers independent of gold, its files never overwritten."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mass import verify
from mass.adaptation import synthesis
from mass.bootstrap import mean_interval
from mass.config import AdaptConfig, EvalConfig, InnerConfig, SamplingConfig, SynthesisConfig
from mass.errors import ConfigError, DataError, RunError
from mass.evaluation.answers import Attempt, Drawn
from mass.evaluation.evaluate import Comparison, evaluate
from mass.evaluation.folder import ComparisonFolder
from mass.evaluation.methods import TT_SS
from mass.evaluation.table import Judged, Record, paired_bootstrap, row_of, wilson
from mass.model import Mass, load
from mass.report import html_page, terminal_table
from mass.runs.folder import held
from mass.tasks import content_hash, minimath
from mass.tasks import load as load_tasks
from mass.types import Adaptation, Example, Task, Verdict

GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_test.jsonl"
CONFIG = EvalConfig(
    answer=SamplingConfig(max_new_tokens=8, temperature=0.0),
    ttt=InnerConfig(learning_rate=20.0),
    stack=3,
    resamples=500,
)
ADAPT = AdaptConfig(SynthesisConfig(examples=2, sampling=SamplingConfig(max_new_tokens=10)))
SAMPLED = replace(CONFIG, samples=2)
UNTRAINED = {"mass": "untrained"}
METHODS = ("base", "base-ttt", "tt-ss", "mass", "maj@n")
ALL = (*METHODS, "mass-unadapted", "mass-maj@n", "base-best-of-n", "best-of-n", "in-context")


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Mass:
    return load(str(tiny_base), config=ADAPT)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return minimath.load("test", 7, 0)


@pytest.fixture
def valid_practice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights writes no practice that parses; stand in for it with something that does."""

    def synthesise(
        lm: Any, problems: Sequence[str], config: SynthesisConfig, *_: Any, **__: Any
    ) -> list[tuple[Example, ...]]:
        tokens = tuple(lm.target_ids("2 + 2"))
        return [
            tuple(Example(f"{problem} {j}", f"{j}. Answer: {j}", "2 + 2", tokens) for j in range(config.examples))
            for problem in problems
        ]

    monkeypatch.setattr(synthesis, "synthesise", synthesise)


def texts(comparison: Comparison) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in comparison.records:
        found.setdefault(record.method, []).append(record.attempt.text)
        found[record.method] += [text for drawn in record.attempt.drawn for text in drawn.texts]
    return found


def without_clock(comparison: Comparison) -> dict[str, Any]:
    data = comparison.to_dict()
    for row in data["rows"]:
        for part in (row, *row["sampled"]):
            part.pop("seconds_per_answer")
    return {key: value for key, value in data.items() if key != "created"}


# --- statistics


@pytest.mark.parametrize(
    ("correct", "judged", "low", "high"),
    [  # the first two from Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_against_published_values(correct: int, judged: int, low: float, high: float) -> None:
    assert wilson(correct, judged) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(counts: tuple[int, int]) -> None:
    """Each bound p satisfies |share - p| = z sqrt(p (1 - p) / n)."""
    correct, judged = counts
    interval = wilson(correct, judged)
    assert interval is not None
    share = correct / judged
    for bound in interval:
        distance = 1.959963984540054 * math.sqrt(bound * (1 - bound) / judged)
        assert abs(share - bound) == pytest.approx(distance, abs=1e-9) or bound in (0.0, 1.0)
    assert interval[0] <= share <= interval[1]


def test_nothing_judged_has_no_interval() -> None:
    assert wilson(0, 0) is None
    assert paired_bootstrap(0, 0, 0, 100, 0) is None


def test_the_bootstrap_of_equal_results_is_a_point() -> None:
    assert paired_bootstrap(0, 0, 50, 1000, 0) == (0.0, 0.0)
    assert paired_bootstrap(50, 0, 0, 1000, 0) == (1.0, 1.0)
    assert paired_bootstrap(0, 50, 0, 1000, 0) == (-1.0, -1.0)


def test_the_bootstrap_agrees_with_resampling_problems_and_with_the_normal_limit() -> None:
    helped, hurt, unchanged = 60, 20, 320
    low, high = paired_bootstrap(helped, hurt, unchanged, 20_000, 3) or (0.0, 0.0)
    differences = np.repeat([1, -1, 0], [helped, hurt, unchanged])
    drawn = np.random.default_rng(8).choice(differences, size=(20_000, 400)).mean(1)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.0051)
    mean, deviation = differences.mean(), differences.std() / 20
    assert (low, high) == pytest.approx((mean - 1.96 * deviation, mean + 1.96 * deviation), abs=0.0051)
    assert paired_bootstrap(helped, hurt, unchanged, 500, 3) == paired_bootstrap(helped, hurt, unchanged, 500, 3)


def record(
    correct: bool | None, method: str = "tt-ss", subject: str = "", level: int | None = None, fallback: str = ""
) -> Record:
    adaptation = Adaptation("p", "m", 0, {}, "", fallback=fallback)
    return Record(Task("p", subject=subject, level=level), method, Attempt("", 10, 0.5, adaptation), Verdict(correct))


def test_a_row_counts_what_changed_and_leaves_out_what_has_no_verdict() -> None:
    base = [record(c, "base") for c in (True, True, False, False, False, None, True)]
    now = [record(c) for c in (True, False, True, True, False, True, None)]
    row = row_of("tt-ss", now, base, 2000, 0)
    assert (row.n, row.no_verdict, row.accuracy) == (7, 1, 4 / 6)
    assert row.interval == wilson(4, 6)
    assert (row.helped, row.hurt, row.unchanged) == (2, 1, 2)
    assert row.difference == pytest.approx(1 / 5)
    assert row.difference_interval == paired_bootstrap(2, 1, 2, 2000, 0)
    assert (row.tokens_per_answer, row.seconds_per_answer, row.fallbacks) == (10, 0.5, 0)


def test_the_base_row_is_compared_with_nothing_and_without_base_no_row_is() -> None:
    base = [record(True), record(False)]
    row = row_of("base", base, base, 100, 0)
    assert (row.difference, row.difference_interval, row.helped, row.unchanged) == (0.0, None, None, None)
    row = row_of("tt-ss", base, None, 100, 0)
    assert (row.difference, row.difference_interval, row.helped, row.unchanged) == (None, None, None, None)


def test_any_row_can_be_the_one_that_others_are_compared_with() -> None:
    base = [record(c, "base") for c in (True, True, False, False, False)]
    now = [record(c) for c in (True, False, True, True, False)]
    row = row_of("base", base, now, 2000, 0, "tt-ss")
    assert (row.helped, row.hurt, row.difference, row.is_reference) == (1, 2, pytest.approx(-1 / 5), False)
    assert row.difference_interval == paired_bootstrap(1, 2, 2, 2000, 0)
    itself = row_of("tt-ss", now, now, 2000, 0, "tt-ss")
    assert (itself.difference, itself.difference_interval, itself.is_reference) == (0.0, None, True)
    assert row_of("base", base, base, 100, 0).is_reference


def test_a_comparison_against_another_method_is_that_against_base_turned_round(model: Mass, tasks: list[Task]) -> None:
    usual, turned = (
        evaluate(model, tasks[:3], ["base", "tt-ss", "maj@2"], config=SAMPLED, against=against)
        for against in (None, "tt-ss")
    )
    assert (usual.against, turned.against) == ("base", "tt-ss")
    assert [r.attempt.text for r in usual.records] == [r.attempt.text for r in turned.records]
    (_, adapted, _), (base, _, _) = usual.rows, turned.rows
    assert (base.helped, base.hurt) == (adapted.hurt, adapted.helped)
    assert base.sampled[0].difference == pytest.approx(-(adapted.sampled[0].difference or 0.0))
    page, data = html_page(turned.to_dict()), turned.to_dict()
    assert data["against"] == "tt-ss"
    assert [row["is_reference"] for row in data["rows"]] == [False, True, False]
    assert "Against tt-ss" in page
    assert "Against base" not in page
    assert any("differences from tt-ss" in note for note in turned.notes)
    # a method that chooses among samples has no samples of its own to be compared with
    chosen = evaluate(model, tasks[:3], ["base", "maj@2"], config=SAMPLED, against="maj@2")
    assert chosen.rows[0].sampled[0].difference is None


def test_rows_without_any_verdict_have_no_accuracy() -> None:
    now = [record(None), record(None)]
    row = row_of("tt-ss", now, now, 100, 0)
    assert (row.accuracy, row.interval, row.difference, row.difference_interval) == (None, None, None, None)
    assert (row.helped, row.hurt, row.unchanged, row.no_verdict) == (0, 0, 0, 2)


def test_the_bootstrap_of_means_agrees_with_drawing_problems_and_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, 400) / 8
    drawn = rng.choice(values, size=(20_000, 400)).mean(1)
    assert mean_interval(list(values), 20_000, 1) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=2e-3)
    assert mean_interval([0.25] * 9, 100, 0) == (0.25, 0.25)
    assert mean_interval([], 100, 0) is None
    chances = rng.beta(0.5, 0.5, (600, 150))  # of each of 150 problems to be solved by one sample; their mean is 1/2
    shares = rng.binomial(8, chances) / 8
    intervals = [mean_interval(list(row), 400, i) or (0.0, 0.0) for i, row in enumerate(shares)]
    covered = sum(low <= 0.5 <= high for low, high in intervals) / len(intervals)
    assert 0.93 <= covered <= 0.97


def sampled(right: str, majority: bool | None, method: str = "tt-ss", tokens: float = 5.0) -> Record:
    """A record whose sampled answers at 0.6 are right (1), wrong (0) or without a verdict (?)."""
    correct = tuple({"1": True, "0": False, "?": None}[c] for c in right)
    judged = Judged(Drawn(0.6, ("",) * len(right), tokens, tokens / 10), correct, majority)
    return replace(record(True, method), sampled=(judged,))


def test_a_sampled_row_averages_over_problems_and_pairs_them_with_base() -> None:
    base = [sampled("0000", False, "base"), sampled("1100", None, "base"), sampled("????", None), sampled("1111", True)]
    now = [sampled("1000", False), sampled("110?", True), sampled("1111", True), sampled("????", None, tokens=9.0)]
    (row,) = row_of("tt-ss", now, base, 3000, 7).sampled
    assert (row.temperature, row.samples) == (0.6, 4)
    assert row.accuracy == pytest.approx((1 / 4 + 2 / 3 + 1) / 3)
    assert row.interval == mean_interval([1 / 4, 2 / 3, 1.0], 3000, 7)
    assert row.difference == pytest.approx((1 / 4 + 2 / 3 - 2 / 4) / 2)
    assert row.difference_interval == mean_interval([1 / 4, 2 / 3 - 2 / 4], 3000, 7)
    assert (row.pass_at_n, row.pass_interval) == (1.0, wilson(3, 3))
    assert (row.maj_at_n, row.maj_interval) == (2 / 3, wilson(2, 3))
    assert (row.tokens_per_answer, row.seconds_per_answer) == (6.0, 0.6)
    (row,) = row_of("base", base, base, 100, 7).sampled
    assert (row.difference, row.difference_interval) == (None, None)
    assert (row.pass_at_n, row.maj_at_n) == (2 / 3, 1 / 2)


def test_groups_are_by_subject_and_by_level_in_order() -> None:
    now = [
        record(True, subject="Geometry", level=10),
        record(False, subject="Algebra", level=2, fallback="exploding update"),
        record(None, subject="Geometry", level=2),
        record(True),
    ]
    row = row_of("tt-ss", now, None, 100, 0)
    assert list(row.by_subject) == ["Geometry", "Algebra"]
    assert list(row.by_level) == ["2", "10"]
    group = row.by_subject["Geometry"]
    assert (group.n, group.accuracy, group.interval) == (2, 1.0, wilson(1, 1))
    assert row.by_level["2"].accuracy == 0.0
    assert row.fallbacks == 1


# --- the whole


def test_a_comparison_is_what_the_report_reads(model: Mass, tasks: list[Task]) -> None:
    seen: list[tuple[str, int, int]] = []
    source = {"source": "minimath", "split": "test", "seed": 0}
    found = evaluate(
        model,
        tasks,
        METHODS,
        checkpoints=UNTRAINED,
        config=CONFIG,
        source=source,
        on_progress=lambda *progress: seen.append(progress),
    )
    assert [row.method for row in found.rows] == list(METHODS)
    assert len(found.records) == 7 * len(METHODS)
    data = found.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["tasks"] == {**source, "size": 7, "hash": content_hash(tasks)}
    assert data["seed"] == 0
    assert data["config"]["eval"]["synthesis"]["examples"] == 2
    assert set(data["config"]["adapt"]) == {"base-ttt", "tt-ss", "mass"}
    assert [row["n"] for row in data["rows"]] == [7] * len(METHODS)
    assert len(data["examples"]) == 7
    assert [p["rejected"] != "" for p in data["examples"][0]["practice"]] == [True, True]
    assert any("mass: no checkpoint: its state is untrained" in note for note in data["notes"])
    page = html_page(data)
    assert all(row.label in page for row in found.rows)
    assert terminal_table(data).row_count == len(METHODS)
    assert [done for method, done, _ in seen if method == "base"] == [0, 3, 6, 7]
    assert {method for method, _, _ in seen} == set(METHODS)
    assert max(done for _, done, total in seen if total == 7) == 7


def test_verdicts_of_the_rows_are_the_verifiers(model: Mass, tasks: list[Task], monkeypatch: Any) -> None:
    def even(task: Task, text: str) -> Verdict:
        assert text is not None
        return Verdict(None if task.level == 3 else len(task.problem) % 2 == 0, "made up", "x")

    monkeypatch.setitem(verify.VERIFIERS, "even", even)
    judged = [replace(task, verifier="even", level=3 if i == 6 else 1) for i, task in enumerate(tasks)]
    found = evaluate(model, judged, ["base", "tt-ss"], config=CONFIG)
    right = sum(len(task.problem) % 2 == 0 for task in judged[:6])
    for row in found.rows:
        assert row.accuracy == right / 6
        assert row.no_verdict == 1
    assert found.rows[1].difference_interval == (0.0, 0.0)
    assert found.rows[1].unchanged == 6
    assert any("without a verdict" in note for note in found.notes)
    adaptation = found.records[-1].attempt.record
    assert adaptation is not None
    assert adaptation.verdict == found.records[-1].verdict


def test_sampled_answers_are_judged_like_any_other(model: Mass, tasks: list[Task], monkeypatch: Any) -> None:
    def first_word(task: Task, text: str) -> Verdict:
        asked.append((task.problem, text))
        return Verdict(len(text) % 2 == 0)

    asked: list[tuple[str, str]] = []
    monkeypatch.setitem(verify.VERIFIERS, "even", first_word)
    judged = [replace(task, verifier="even") for task in tasks]
    found = evaluate(model, judged, ["base", "tt-ss", "maj@2"], config=replace(CONFIG, samples=3))
    assert len(asked) > 2 * 7
    base, practised, voted = found.rows
    assert [row.temperature for row in base.sampled] == [0.6, 1.0]
    assert voted.sampled == ()
    for row, records in ((base, found.records[:7]), (practised, found.records[7:14])):
        for place, at in enumerate(row.sampled):
            texts = [record.sampled[place].drawn.texts for record in records]
            assert at.accuracy == pytest.approx(sum(len(t) % 2 == 0 for group in texts for t in group) / 21)
            assert at.pass_at_n == sum(any(len(t) % 2 == 0 for t in group) for group in texts) / 7
            assert at.tokens_per_answer > 1
    assert practised.sampled[0].difference is not None
    assert practised.sampled[0].tokens_per_answer > base.sampled[0].tokens_per_answer + 8
    line = json.loads(json.dumps(found.records[0].to_dict()))
    assert [s["temperature"] for s in line["sampled"]] == [0.6, 1.0]
    assert len(line["sampled"][0]["texts"]) == len(line["sampled"][0]["correct"]) == 3
    assert "sampled" not in found.records[14].to_dict()


@pytest.mark.usefixtures("valid_practice")
def test_controls_spend_the_tokens_of_mass_on_the_samples_of_base_and_checkpoint(
    model: Mass, tasks: list[Task], monkeypatch: Any
) -> None:
    drawn: list[int] = []
    sample = type(model.lm).sample

    def counted(self: Any, prompts: Any, sampling: Any, *args: Any, **kwargs: Any) -> Any:
        if sampling.temperature == 1.0 and sampling.max_new_tokens == 8:
            drawn.append(len(prompts))
        return sample(self, prompts, sampling, *args, **kwargs)

    monkeypatch.setattr(type(model.lm), "sample", counted)
    methods = ["maj@n", "base-best-of-n", "mass-maj@n", "best-of-n", "best-of-2", "in-context", "mass"]
    found = evaluate(model, tasks, methods, checkpoints=UNTRAINED, config=CONFIG)
    rows = {row.method: row for row in found.rows}
    n = int(rows["maj@n"].label.removeprefix("maj@"))
    labels = [rows[m].label for m in methods]
    expected = [f"maj@{n}", f"base-best-of-{n}", f"mass-maj@{n}", f"best-of-{n}", "best-of-2", "in-context", "mass"]
    assert labels == expected  # an untrained adapter changes nothing, so both samplers write as much
    assert sum(drawn) == 2 * 7 * n  # maj@n and base-best-of-n share their samples, and so do the other three
    for method in ("maj@n", "best-of-n", "base-best-of-n", "mass-maj@n"):
        assert rows[method].tokens_per_answer == rows["maj@n"].tokens_per_answer >= rows["mass"].tokens_per_answer
    assert rows["best-of-2"].tokens_per_answer < rows["maj@n"].tokens_per_answer
    practice = 2 * len(model.lm.target_ids("2 + 2"))
    assert practice < rows["in-context"].tokens_per_answer <= practice + 8
    said = " ".join(found.notes)
    assert f"base-best-of-{n}: the one that the scorer of mass likes most of that many base answers" in said
    assert f"mass-maj@{n}: majority vote of that many answers of the unadapted checkpoint of mass" in said
    assert "0 examples at 0 of 7 problems did not fit" in said


@pytest.mark.usefixtures("valid_practice")
def test_no_gold_reaches_a_method(model: Mass, tasks: list[Task]) -> None:
    poison = [Task(t.problem, "POISON 1", "POISON 2", "POISON 3", 99, f"POISON {i}") for i, t in enumerate(tasks)]
    clean = evaluate(model, tasks, ALL, checkpoints=UNTRAINED, config=SAMPLED)
    poisoned = evaluate(model, poison, ALL, checkpoints=UNTRAINED, config=SAMPLED)
    assert texts(clean) == texts(poisoned)
    for a, b in zip(clean.records, poisoned.records, strict=True):
        if a.attempt.record is not None and b.attempt.record is not None:
            assert a.attempt.record.adapter_hash == b.attempt.record.adapter_hash
            assert not a.attempt.record.fallback
    assert len({tuple(t) for t in texts(clean).values()}) > 2  # the methods differ, so equality says something


@pytest.mark.usefixtures("valid_practice")
def test_two_runs_are_equal_whatever_the_stack_and_other_seeds_are_not(model: Mass, tasks: list[Task]) -> None:
    def run(stack: int, seed: int = 0) -> Comparison:
        config = replace(SAMPLED, stack=stack)
        return evaluate(model, tasks, ALL, checkpoints=UNTRAINED, config=config, seed=seed)

    first, again, wider, other = run(3), run(3), run(7), run(3, seed=1)
    assert without_clock(first) == without_clock(again)
    assert texts(first) == texts(wider)
    assert texts(first)["maj@n"] != texts(other)["maj@n"]
    greedy, others = ([r.attempt.text for r in c.records if r.method == "base"] for c in (first, other))
    assert greedy == others
    first_examples, other_examples = (
        [r.attempt.record.examples for r in c.records if r.method == "base-ttt" and r.attempt.record]
        for c in (first, other)
    )
    assert first_examples != other_examples


def test_what_untrained_methods_write_is_written_once_and_counted_for_each(
    model: Mass, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    synthesise = synthesis.synthesise

    def counted(lm: Any, problems: Sequence[str], *given: Any, **named: Any) -> Any:
        written.append(len(problems))
        return synthesise(lm, problems, *given, **named)

    monkeypatch.setattr(synthesis, "synthesise", counted)
    both = evaluate(model, tasks, ["base", "tt-ss", "tt-ss-likelihood"], config=CONFIG)
    assert sum(written) == len(tasks)
    for method in ("tt-ss", "tt-ss-likelihood"):
        alone = evaluate(model, tasks, ["base", method], config=CONFIG)
        pairs = zip(*([r for r in c.records if r.method == method] for c in (both, alone)), strict=True)
        for one, other in pairs:
            assert (one.attempt.text, one.attempt.tokens) == (other.attempt.text, other.attempt.tokens)
            assert one.attempt.record is not None
            assert other.attempt.record is not None
            assert one.attempt.record.adapter_hash == other.attempt.record.adapter_hash
            assert one.attempt.record.seconds["synthesis"] > 0
    seconds = [{r.attempt.record.seconds["synthesis"] for r in both.records if r.method == m} for m in TT_SS]  # type: ignore[union-attr]
    assert seconds[0] == seconds[1]


def test_the_majority_spends_at_least_the_tokens_of_mass(model: Mass, tasks: list[Task]) -> None:
    found = evaluate(model, tasks, ["maj@n", "mass", "maj@2"], checkpoints=UNTRAINED, config=CONFIG)
    majority, mass, two = found.rows
    n = int(majority.label.removeprefix("maj@"))
    assert n > 1
    assert majority.tokens_per_answer >= mass.tokens_per_answer
    assert majority.tokens_per_answer <= mass.tokens_per_answer + 8
    assert two.label == "maj@2"
    assert any(f"maj@{n}:" in note and "at least as many tokens" in note for note in found.notes)
    alone = evaluate(model, tasks[:2], ["maj@n"], config=replace(CONFIG, votes=3))
    assert alone.rows[0].label == "maj@3"
    assert any("n is configured" in note for note in alone.notes)


@pytest.mark.usefixtures("valid_practice")
def test_examples_show_the_answer_before_and_after(model: Mass, tasks: list[Task]) -> None:
    methods = ["mass", "mass-unadapted", "base"]
    reused = evaluate(model, tasks, methods, checkpoints=UNTRAINED, config=CONFIG)
    anew = evaluate(model, tasks, ["mass"], checkpoints=UNTRAINED, config=CONFIG)
    assert reused.examples == anew.examples
    found = texts(reused)
    assert found["mass-unadapted"] == found["base"]  # an untrained adapter changes nothing
    assert [e["unadapted_text"] for e in reused.examples] == found["base"]
    assert [e["text"] for e in reused.examples] == found["mass"]
    practice = reused.examples[0]["practice"]
    assert [p["weight"] for p in practice] == pytest.approx([0.5, 0.5])
    assert all(p["loss_after"] < p["loss_before"] for p in practice)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"tasks": []}, DataError, "no tasks"),
        ({"methods": ["base", "gpt"]}, ConfigError, "'gpt' is unknown"),
        ({"against": "mass"}, ConfigError, "against is 'mass', which is not compared"),
        ({"methods": ["mass"], "checkpoints": None}, ConfigError, "'mass' needs a checkpoint"),
        ({"tasks": [Task("1 + 1? " * 3000, answer="2")]}, DataError, "tokens with its prompt"),
        ({"tasks": [Task("1 + 1?", answer="2", verifier="maths")]}, DataError, "did you mean 'math'"),
        ({"methods": ["base-ttt"], "train_tasks": [Task("a", answer="1")]}, DataError, "none with a worked solution"),
    ],
)
def test_bad_input_is_one_line(
    model: Mass, tasks: list[Task], change: dict[str, Any], error: type[Exception], match: str
) -> None:
    arguments: dict[str, Any] = {"tasks": tasks[:1], "methods": ["base"], "config": CONFIG, **change}
    with pytest.raises(error, match=match) as caught:
        evaluate(model, **arguments)
    assert "\n" not in str(caught.value)


# --- files


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_records_are_written_as_they_come(model: Mass, tasks: list[Task], tmp_path: Path) -> None:
    out, counts = tmp_path / "new" / "out", list[int]()
    found = evaluate(
        model,
        tasks,
        ["base", "tt-ss"],
        config=CONFIG,
        out=out,
        on_progress=lambda *_: counts.append(len(lines(out))),
    )
    assert counts == [0, 3, 6, 7, 7, 10, 13, 14]
    rows = lines(out)
    assert [(r["method"], r["task"]) for r in rows] == [(m, t.id) for m in ("base", "tt-ss") for t in tasks]
    assert [r["gold"] for r in rows[:7]] == [t.answer for t in tasks]
    assert rows[0]["adaptation"] is None
    adaptation = Adaptation.from_dict(rows[7]["adaptation"])
    assert adaptation == found.records[7].attempt.record
    assert json.loads((out / "comparison.json").read_text()) == found.to_dict()


def test_a_folder_in_use_is_refused_before_any_work(model: Mass, tasks: list[Task], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "file").write_text("")

    def fail(*_: Any) -> None:
        raise AssertionError("work was done")

    progress: Callable[[str, int, int], None] = fail
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(RunError, match="in use"):
            evaluate(model, tasks, ["base"], config=CONFIG, out=folder, on_progress=progress)
    with pytest.raises(RunError, match="cannot be written"):
        evaluate(model, tasks, ["base"], config=CONFIG, out=tmp_path / "file" / "x", on_progress=progress)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine.txt"]


def stop_at(method: str, done: int) -> Callable[[str, int, int], None]:
    def stop(*progress: Any) -> None:
        if progress[:2] == (method, done):
            raise KeyboardInterrupt

    return stop


def without_seconds(line: dict[str, Any]) -> dict[str, Any]:
    adaptation = {key: value for key, value in (line["adaptation"] or {}).items() if key != "seconds"}
    drawn = [{key: value for key, value in one.items() if key != "seconds"} for one in line.get("sampled", ())]
    return {**line, "seconds": 0.0, "adaptation": adaptation, "sampled": drawn}


@pytest.mark.usefixtures("valid_practice")
def test_a_comparison_that_was_broken_off_comes_to_the_same_answers(
    model: Mass, tasks: list[Task], tmp_path: Path
) -> None:
    def run(out: Path, resume: bool = False, stop: Any = None) -> Comparison:
        return evaluate(
            model, tasks, ALL, checkpoints=UNTRAINED, config=SAMPLED, out=out, resume=resume, on_progress=stop
        )

    whole = run(tmp_path / "whole")
    expected = [without_seconds(line) for line in lines(tmp_path / "whole")]
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(out, stop=stop_at("base", 0))
    kept = []
    places = [("base", 6), ("mass", 3), ("maj@n", 0), ("best-of-n", 0), ("in-context", 7)]
    for place in places:
        with pytest.raises(KeyboardInterrupt):
            run(out, resume=True, stop=stop_at(*place))
        kept.append(len(lines(out)))
        with (out / "records.jsonl").open("a") as file:
            file.write('{"task": "cut sh')
        assert not (out / "comparison.json").exists()
    again = run(out, resume=True)
    assert kept == [6, 24, 35, 56, 70]
    assert [without_seconds(line) for line in lines(out)] == expected
    found, once = without_clock(again), without_clock(whole)
    *notes, sessions = found.pop("notes")
    assert notes == once.pop("notes")
    assert sessions == "Answered in 7 sessions; interrupted after 0, 6, 24, 35, 56, 70 answers."
    assert found == once
    assert json.loads((out / "comparison.json").read_text()) == again.to_dict()
    with pytest.raises(RunError, match="is finished"):
        run(out, resume=True)


def test_a_part_of_a_stack_and_what_is_not_a_record_are_answered_anew(
    model: Mass, tasks: list[Task], tmp_path: Path
) -> None:
    methods, file = ["base", "tt-ss", "maj@2"], tmp_path / "records.jsonl"
    evaluate(model, tasks, methods, config=CONFIG, out=tmp_path)
    (tmp_path / "comparison.json").unlink()
    whole = file.read_text().splitlines(keepends=True)
    cuts = [whole[:1], whole[:3], whole[:5], whole[:12], whole[:17], [*whole[:4], "{}\n", *whole[5:]]]
    for cut, method, kept in zip(
        cuts, ["base", "base", "base", "tt-ss", "maj@2", "base"], [0, 3, 3, 10, 14, 3], strict=True
    ):
        file.write_text("".join(cut))
        said: list[tuple[str, int]] = []

        def stop(*progress: Any, said: list[tuple[str, int]] = said, method: str = method) -> None:
            said.append(progress[:2])
            if progress[0] == method:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tasks, methods, config=CONFIG, out=tmp_path, resume=True, on_progress=stop)
        assert said == [*((m, 7) for m in methods[: methods.index(method)]), (method, kept % 7)]
        assert len(lines(tmp_path)) == kept
    evaluate(model, tasks, methods, config=CONFIG, out=tmp_path, resume=True)
    again = [(line["method"], line["text"]) for line in lines(tmp_path)]
    assert again == [(line["method"], line["text"]) for line in map(json.loads, whole)]


def moved(model: Mass) -> Mass:
    theta = {name: tensor + 1e-3 for name, tensor in model.state.theta.items()}
    return replace(model, state=replace(model.state, theta=theta))


def practising(model: Mass, rate: float) -> Mass:
    return replace(model, config=replace(ADAPT, inner=InnerConfig(learning_rate=rate)))


Change = Callable[[Mass, list[Task]], dict[str, Any]]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda *_: {"seed": 1}, "seed = 0, now it is 1"),
        (lambda *_: {"methods": ["tt-ss", "base"]}, "methods"),
        (lambda *_: {"config": replace(CONFIG, examples=1)}, "eval.examples = None, now it is 1"),
        (lambda _, tasks: {"tasks": tasks[:6]}, "tasks.size = 7, now it is 6"),
        (lambda _, tasks: {"tasks": [replace(tasks[0], answer="x"), *tasks[1:]]}, "tasks.gold"),
        (lambda *_: {"train_tasks": [Task("1 + 1?", "1+1=3. Answer: 3")]}, "practice of base-ttt.gold"),
        (lambda model, _: {"model": practising(model, 0.3)}, "adapt.mass.inner.learning_rate"),
        (lambda model, _: {"model": moved(model)}, "weights.mass"),
    ],
)
def test_a_comparison_goes_on_only_as_it_was_begun(
    model: Mass, tasks: list[Task], tmp_path: Path, change: Change, key: str
) -> None:
    arguments: dict[str, Any] = {
        "model": replace(model, method="mass"), "tasks": tasks, "methods": ["base", "base-ttt", "mass"],
        "train_tasks": [Task("1 + 1?", "1+1=2. Answer: 2")], "config": CONFIG, "out": tmp_path,
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        evaluate(**arguments, on_progress=stop_at("base-ttt", 3))
    before = (tmp_path / "records.jsonl").read_bytes()
    with pytest.raises(RunError, match=key) as caught:
        evaluate(**{**arguments, **change(arguments["model"], tasks)}, resume=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_a_folder_that_another_process_is_at_work_in_is_refused(model: Mass, tasks: list[Task], tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(RunError, match="another process is at work"):
        evaluate(model, tasks, ["base"], config=CONFIG, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_something_to_go_on_with(model: Mass, tasks: list[Task], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"train": {}}')
    with pytest.raises(RunError, match="holds no comparison to go on with"):
        evaluate(model, tasks, ["base"], config=CONFIG, out=tmp_path, resume=True)
    with pytest.raises(ConfigError, match="resume is set without out"):
        evaluate(model, tasks, ["base"], config=CONFIG, resume=True)


def test_numbers_that_are_not_finite_are_null_in_files(tmp_path: Path, model: Mass, tasks: list[Task]) -> None:
    found = evaluate(model, tasks[:1], ["tt-ss"], config=CONFIG)
    adaptation = replace(found.records[0].attempt.record or Adaptation("", "", 0, {}, ""), update_norm=math.nan)
    bad = replace(found.records[0], attempt=replace(found.records[0].attempt, record=adaptation))
    ComparisonFolder(tmp_path).write([bad])
    assert "NaN" not in (tmp_path / "records.jsonl").read_text()
    assert lines(tmp_path)[0]["adaptation"]["update_norm"] is None


@pytest.mark.skipif(not GSM8K.exists(), reason="the shared data are not there")
def test_gsm8k_from_end_to_end(model: Mass, tmp_path: Path) -> None:
    tasks = load_tasks(GSM8K)[:4]
    out = tmp_path / "out"
    found = evaluate(
        model,
        tasks,
        METHODS,
        checkpoints=UNTRAINED,
        config=CONFIG,
        source={"source": GSM8K.name},
        out=out,
    )
    assert [row.n for row in found.rows] == [4] * len(METHODS)
    assert all(row.no_verdict == 0 and row.accuracy is not None for row in found.rows)
    assert all(row.by_subject == {} and row.by_level == {} for row in found.rows)
    assert len(lines(out)) == 4 * len(METHODS)
    assert all(line["reason"] for line in lines(out))
    assert [e["answer"] for e in found.examples] == [task.answer for task in tasks]
    assert "gsm8k_test.jsonl" in html_page(found.to_dict())
