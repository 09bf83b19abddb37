"""How many rows pass at once, and that the number changes nothing but rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mass.adaptation import synthesis
from mass.adaptation.adapt import adapt_stack
from mass.adaptation.batch import TOKENS_PER_PASS, Practice, practice_of, rows_per_pass
from mass.adaptation.checkpoint import init_state
from mass.config import PracticeConfig, RunConfig, SynthesisConfig, TrainConfig, at_test
from mass.timing import Clock
from mass.training.gradients import Stack
from mass.training.mass_step import mass_gradients
from mass.types import Example, Params, Task
from small_lms import float64_throughout, make_lm, random_adapter


def test_a_cpu_takes_about_as_many_tokens_at_any_length() -> None:
    most = TOKENS_PER_PASS["cpu"]
    for tokens in (1, 7, 64, 500, most):
        rows = rows_per_pass("cpu", tokens)
        assert rows is not None
        assert rows * tokens <= most < (rows + 1) * tokens


@pytest.mark.parametrize("tokens", [TOKENS_PER_PASS["cpu"] + 1, 10**9])
def test_a_long_row_passes_alone(tokens: int) -> None:
    assert rows_per_pass("cpu", tokens) == 1


def test_a_gpu_takes_all() -> None:
    assert rows_per_pass("cuda", 10_000) is None


def test_a_number_of_the_user_is_kept_and_none_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = float64_throughout(make_lm())
    groups = [tuple(Example(f"{a} + {b}", f"{a}+{b}={a + b}") for a in range(3)) for b in range(2)]
    practice = practice_of(lm, groups)
    assert practice is not None
    assert practice.rows_per_pass(5) == 5
    length = practice.batch.input_ids.shape[1]
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 2 * length + 1)
    chosen = practice.rows_per_pass(None)
    assert chosen == 2
    stack = random_adapter(lm, count=2)
    torch.testing.assert_close(practice.measured(stack, chosen), practice.measured(stack), rtol=1e-12, atol=0)


def test_the_inner_loop_at_test_and_in_training_passes_the_chosen_number(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm(dtype=torch.float32)
    tasks = [Task(f"Compute {a}.", "1. Answer: 1", "1") for a in range(2)]
    groups = [tuple(Example("1 + 1", f"{a}", "x", (5, 6)) for a in range(3)) for _ in tasks]
    config = RunConfig(adapt=PracticeConfig(SynthesisConfig(examples=3)), train=TrainConfig(method="mass-gold"))
    state = init_state(lm, at_test(config), 0)
    passed: list[int | None] = []
    losses = Practice.losses

    def watched(self: Practice, params: Params, index: Tensor | None = None) -> Tensor:
        passed.append(None if index is None else len(index))
        return losses(self, params, index)

    monkeypatch.setattr(Practice, "losses", watched)
    monkeypatch.setattr(synthesis, "synthesise", lambda *_, **__: groups)
    monkeypatch.setitem(TOKENS_PER_PASS, "cpu", 1)
    adapt_stack(lm, state, [task.problem for task in tasks], groups, at_test(config), Clock())
    assert passed
    assert set(passed) == {1}
    passed.clear()
    mass_gradients(Stack(lm, state, config, tasks, [0, 1]))
    assert passed
    assert set(passed) == {1}
