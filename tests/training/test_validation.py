"""What an evaluation in training counts, on held-out problems that it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from mass import verify
from mass.adaptation.answer import answer_all
from mass.adaptation.checkpoint import init_state
from mass.config import RunConfig, at_test
from mass.lm import LM
from mass.seeds import derive
from mass.training import validation
from mass.training.distributed import Ranks
from mass.training.trainer import train
from mass.training.validation import evaluate
from mass.types import Task
from small_lms import random_adapter, small_sums
from small_runs import METHODS, config_for

RIGHT, WRONG = "Answer: 2", "Answer: 3"
TASK = Task("Compute 1 + 1.", answer="2", verifier="exact")


def with_texts(monkeypatch: pytest.MonkeyPatch, adapted: list[str], plain: list[str]) -> None:
    """Answers that are given, in place of the model's."""
    asked: list[str] = []

    def answers(*arguments: object) -> object:
        records, stack = answer_all(*arguments)
        start = len(asked)
        asked.extend(record.problem for record in records)
        records = [
            dataclasses.replace(
                record, text=adapted[start + i], unadapted_text=plain[start + i], fallback="x" * (i % 2)
            )
            for i, record in enumerate(records)
        ]
        return records, stack

    monkeypatch.setattr(validation, "answer_all", answers)


@pytest.mark.parametrize("stack", [1, 2, 8])
def test_shares_and_what_the_update_helped_and_hurt(
    stack: int, lm: LM, taught_base: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(taught_base, sums, stack=stack)
    state = init_state(lm, config.adapt, 0)
    with_texts(monkeypatch, [RIGHT, RIGHT, RIGHT, WRONG, WRONG], [RIGHT, WRONG, WRONG, RIGHT, ""])
    found = evaluate(lm, state, config, [TASK] * 5, Ranks())
    assert found.pop("eval/fallbacks") == {1: 0, 2: 0.4, 8: 0.4}[stack]
    assert found == {"eval/accuracy": 0.6, "eval/unadapted accuracy": 0.4, "eval/helped": 2, "eval/hurt": 1}


def right(task: Task, text: str) -> bool:
    return verify.check(task, text).correct is True


def test_one_sample_of_each_with_and_without_adaptation(lm: LM, taught_base: Path, sums: Path) -> None:
    """Against the answers of each problem alone, as `mass solve` would sample them at that temperature."""
    config = config_for(taught_base, sums, eval_temperature=1.3, stack=4)
    state = dataclasses.replace(init_state(lm, config.adapt, 0), theta=random_adapter(lm, 4, scale=0.02))
    tasks = small_sums()
    found = evaluate(lm, state, config, tasks, Ranks())
    hot = dataclasses.replace(at_test(config), answer=dataclasses.replace(config.test.answer, temperature=1.3))
    expected = {"sampled accuracy": 0, "unadapted sampled accuracy": 0}
    for i, task in enumerate(tasks):
        (record,), _ = answer_all(lm, state, [task.problem], hot, [derive(config.train.seed, "eval", i)])
        expected["sampled accuracy"] += right(task, record.text)
        expected["unadapted sampled accuracy"] += right(task, record.unadapted_text or "")
    assert 0 < expected["unadapted sampled accuracy"] < len(tasks)
    for name, count in expected.items():
        assert found[f"eval/{name}"] == count / len(tasks)
    greedy = evaluate(lm, state, config_for(taught_base, sums, stack=4), tasks, Ranks())
    assert greedy.items() <= found.items(), "the rest is as without a temperature"
    assert found.keys() - greedy.keys() == {f"eval/{name}" for name in expected}


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("mass")])
def test_what_does_not_adapt_answers_with_theta_in_both_columns(
    method: str, lm: LM, taught_base: Path, sums: Path
) -> None:
    config = config_for(taught_base, sums, method, eval_temperature=1.0)
    theta = random_adapter(lm, 4, scale=0.02)
    state = dataclasses.replace(init_state(lm, config.adapt, 0), theta=theta)
    found = evaluate(lm, state, config, small_sums(), Ranks())
    prompts = [lm.solve_prompt(task.problem) for task in small_sums()]
    texts = [s.text for s in lm.sample(prompts, config.test.answer, list(range(9)), theta)]
    share = sum(map(right, small_sums(), texts)) / 9
    assert 0 < share < 1
    assert found["eval/accuracy"] == found["eval/unadapted accuracy"] == share
    assert found["eval/sampled accuracy"] == found["eval/unadapted sampled accuracy"]
    assert found["eval/helped"] == found["eval/hurt"] == found["eval/fallbacks"] == 0


def test_a_run_logs_them_from_the_first_evaluation_on(
    taught_base: Path, sums: Path, tmp_path: Path, straight: Callable[[str], Path]
) -> None:
    config: RunConfig = config_for(taught_base, sums, "solver-sft", eval_temperature=0.7, steps=2)
    seen: list[dict[str, float]] = []
    train(config, tmp_path / "run", callbacks=[seen.append])
    shares = ("accuracy", "unadapted accuracy", "sampled accuracy", "unadapted sampled accuracy", "helped", "hurt")
    for row in (seen[0], seen[2]):
        assert {f"eval/{name}" for name in shares} <= row.keys()
    assert (straight("solver-sft") / "metrics.jsonl").read_text().count("sampled accuracy") == 0
