"""benchmarks/headroom.py on a small model: what oracles practise on, that it resumes, that test problems are kept."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mass.tasks import minimath
from mass.verify import check
from research import appraisal
from small_lms import small_sums

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import headroom
import headroom_practice

SMALL = ["--size", "4", "--samples", "2", "--examples", "3", "--answer_tokens", "24", "--practice_tokens", "24",
         "--clipped", "0.05", "--adamw", "--steps", "1", "--temperatures", "1.0"]  # fmt: skip


class Stated:
    """Stands in for a recognised problem: every text is a problem whose answer is 4."""

    kind, level = "sum", 1

    def task(self) -> Any:
        from mass.types import Task

        return Task("any", "", "4", "Algebra", 1, verifier="exact")


def run(base: Path, out: Path, *more: str) -> dict[str, Any]:
    assert headroom.main(["--model", str(base), "--out", str(out), *SMALL, *more]) == 0
    return json.loads((out / "headroom.json").read_text())


def practice_of(taught_base: Path, out: Path) -> headroom_practice.Practice:
    args = headroom.parser().parse_args(["--model", str(taught_base), "--out", str(out), *SMALL])
    return headroom.make_headroom(args).practice


def test_every_source_is_measured_and_shown(taught_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headroom_practice, "recogniser", lambda _: lambda _: Stated())
    found = run(taught_base, tmp_path, "--sgd", "0", "5")
    likely = [f"own likely x {sharpness}" for sharpness in (3, 10, 30)]
    sources = [s for s in headroom_practice.SOURCES if s != headroom_practice.LIKELY] + likely
    assert set(found["points"]) == {
        f"{source}, {inner}, K = 1" for source in sources for inner in ("sgd 0", "sgd 5", "sgd clipped 0.05")
    }
    assert all("skipped" not in point for point in found["points"].values())
    for source in sources:
        still, far = (found["points"][f"{source}, sgd {rate}, K = 1"] for rate in (0, 5))
        assert (still["row"]["difference"], still["row"]["sampled"][0]["difference"]) == (0.0, 0.0)
        assert still["update_norm"] < 1e-20
        assert far["update_norm"] > 0 or far["without_practice"] == 1.0
        if far["update_norm"] > 0:
            assert far["loss_after"] != far["loss_before"]
    page = (tmp_path / "headroom.md").read_text()
    assert page.count("\n| gold same | ") == 3 + 1
    assert (tmp_path / "headroom.png").stat().st_size > 5000


def test_a_run_goes_on_where_it_was_and_refuses_other_settings(
    taught_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(taught_base, tmp_path, "--sgd", "1", "--sources", "gold same")
    measured: list[str] = []
    measure = headroom.Headroom.measure

    def counted(self: headroom.Headroom, point: headroom.Point) -> dict[str, Any]:
        measured.append(point.key)
        return measure(self, point)

    monkeypatch.setattr(headroom.Headroom, "measure", counted)
    second = run(taught_base, tmp_path, "--sgd", "1", "2", "--sources", "gold same")
    assert measured == ["gold same, sgd 2, K = 1"]
    assert all(second["points"][key] == point for key, point in first["points"].items())
    capsys.readouterr()
    assert headroom.main(["--model", str(taught_base), "--out", str(tmp_path), *SMALL, "--seed", "9"]) == 2
    assert "was measured with seed = 1, now it is 9" in capsys.readouterr().err


def test_test_problems_are_kept_from_oracles(
    taught_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(taught_base), "--out", str(tmp_path), *SMALL, "--split", "test", "--sgd"]
    assert headroom.main(arguments) == 2
    assert "--allow_test" in capsys.readouterr().err
    assert not (tmp_path / "headroom.json").exists()
    assert headroom.main([*arguments, "--allow_test", "--clipped"]) == 0


def test_gold_practice_is_of_the_training_split_and_of_the_kind(taught_base: Path, tmp_path: Path) -> None:
    practice = practice_of(taught_base, tmp_path)
    for source in ("gold same", "gold random"):
        for problem, group in zip(practice.problems.drawn, practice.groups(source), strict=True):
            assert minimath.problem_split(problem.text) == "validation"
            assert {minimath.problem_split(e.problem) for e in group} == {"train"}
            assert len(group) == 3
            if source == "gold same":
                kinds = {problem.text.split()[0]}
                assert {e.problem.split()[0] for e in group} == kinds
    assert practice.groups("gold same") == practice.groups("gold same")


def test_oracles_keep_only_what_is_right(taught_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    practice = replace(
        practice_of(taught_base, tmp_path), problems=headroom_practice.Problems("minimath", small_sums(), [], [])
    )
    for all_of, right in zip(practice.groups("copies"), practice.groups("copies correct"), strict=True):
        task = next(t for t in practice.problems.tasks if t.problem == all_of[0].problem)
        kept = [e.valid for e in right]
        assert kept == [e.valid and check(task, e.solution).correct is True for e in all_of]
    monkeypatch.setattr(headroom_practice, "recogniser", lambda _: lambda _: Stated())
    counts = [0, 0]
    for all_of, right in zip(practice.groups("own"), practice.groups("own correct"), strict=True):
        wanted = [e.valid and check(Stated().task(), e.solution).correct is True for e in all_of]
        assert [e.valid for e in right] == wanted
        counts = [counts[0] + sum(e.valid for e in all_of), counts[1] + sum(wanted)]
    assert counts[0] > counts[1] > 0


def test_a_source_that_cannot_be_judged_is_skipped_and_says_so(taught_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text(
        "".join(json.dumps({"problem": f"Compute {a} + 1.", "answer": str(a + 1)}) + "\n" for a in range(5))
    )
    assert appraisal.recogniser(str(file)) is None
    found = run(taught_base, tmp_path / "out", "--tasks", str(file), "--sgd")
    skipped = {p["source"]: p["skipped"] for p in found["points"].values() if "skipped" in p}
    assert set(skipped) == {"gold same", "gold nearest", "gold random", "own correct"}
    assert "nobody can say which practice" in skipped["own correct"]
    assert "give --train_tasks" in skipped["gold random"]
    assert "Not measured: gold same" in (tmp_path / "out" / "headroom.md").read_text()


def test_the_nearest_gold_is_of_the_same_words_and_no_problem_is_practised_for_itself(
    taught_base: Path, tmp_path: Path
) -> None:
    tasks, train = tmp_path / "held_out.jsonl", tmp_path / "training.jsonl"
    asked = ["Compute the area of a circle.", "Compute the sum of a list."]
    others = ["Compute the area of a square.", "Compute the sum of a tuple.", "Compute the sum of a list."]
    for file, texts in ((tasks, asked), (train, others)):
        file.write_text("".join(json.dumps({"problem": t, "answer": "1", "solution": "1"}) + "\n" for t in texts))
    files = ["--tasks", str(tasks), "--train_tasks", str(train), "--examples", "1"]
    args = headroom.parser().parse_args(["--model", str(taught_base), "--out", str(tmp_path), *SMALL, *files])
    groups = headroom.make_headroom(args).practice.groups("gold nearest")
    assert [group[0].problem for group in groups] == others[:2]
    states = headroom.parser().parse_args(["--model", str(taught_base), "--out", str(tmp_path), *SMALL,
                                           *files, "--nearest", "states"])  # fmt: skip
    by_states = headroom.make_headroom(states).practice.groups("gold nearest")
    assert [e.problem for group in by_states for e in group] != []
    assert all(e.problem not in asked for group in by_states for e in group)


def test_practice_in_the_context_is_a_point_and_nothing_is_written_or_answered_twice(
    taught_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--sgd", "1", "--clipped", "--sources", "own", "--in_context", "own"]
    first = run(taught_base, tmp_path, *options)
    assert set(first["points"]) == {"own, in context", "own, sgd 1, K = 1"}
    assert first["points"]["own, in context"]["update_norm"] is None

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was kept")

    monkeypatch.setattr(headroom_practice, "synthesise", never)
    monkeypatch.setattr(headroom, "answer_plain", never)
    second = run(taught_base, tmp_path, *options[:2], "2", *options[2:])
    assert second["unadapted"] == first["unadapted"]
    assert second["points"].items() >= first["points"].items()


def test_no_point_begins_after_the_given_minutes(taught_base: Path, tmp_path: Path) -> None:
    given = ["--model", str(taught_base), "--out", str(tmp_path), *SMALL, "--sgd", "1", "--clipped", "--sources",
             "gold same", "--no_losses"]  # fmt: skip
    assert headroom.main([*given, "--minutes", "0"]) == headroom.LEFT
    assert json.loads((tmp_path / "headroom.json").read_text())["points"] == {}
    assert headroom.main(given) == 0
    (point,) = json.loads((tmp_path / "headroom.json").read_text())["points"].values()
    assert point["update_norm"] > 0
    assert point["loss_after"] is None
