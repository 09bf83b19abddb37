"""Attempts at the problem itself among the practice: sampled as the solver answers, weighed as copies, learned like any
example, and no business of the generator's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mass.adaptation.checkpoint import init_state
from mass.adaptation.scoring import score, verdict_losses
from mass.adaptation.synthesis import judge, synthesise
from mass.config import AdaptConfig, RunConfig, SamplingConfig, SynthesisConfig, at_test
from mass.errors import ConfigError, ShapeError
from mass.lm import LM
from mass.seeds import derive
from mass.training.trainer import train
from mass.types import Example, Sample
from small_lms import make_lm, random_adapter
from small_runs import config_for, gradients, with_inner

PROBLEM = "What is 2 + 3?"
SAMPLING = SamplingConfig(max_new_tokens=16, temperature=1.0)


def with_attempts(config: RunConfig, attempts: int) -> RunConfig:
    synthesis = dataclasses.replace(config.adapt.synthesis, attempts=attempts)
    return dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, synthesis=synthesis))


def test_attempts_come_last_and_are_what_the_solver_samples() -> None:
    lm = make_lm()
    theta = random_adapter(lm)
    config = SynthesisConfig(examples=5, attempts=3, sampling=SAMPLING)
    (group,) = synthesise(lm, [PROBLEM], config, [7], theta)
    assert [e.attempt for e in group] == [False, False, True, True, True]
    seeds = [derive(7, "synthesis", j) for j in (2, 3, 4)]
    samples = lm.sample([lm.solve_prompt(PROBLEM)] * 3, SAMPLING, seeds, theta)
    assert [e.tokens for e in group[2:]] == [s.tokens for s in samples]
    assert {e.problem for e in group[2:]} == {PROBLEM}
    (plain,) = synthesise(lm, [PROBLEM], dataclasses.replace(config, attempts=0), [7], theta)
    assert plain[:2] == group[:2]


def test_attempts_may_repeat_and_are_not_copies() -> None:
    config = SynthesisConfig(examples=4, attempts=4, sampling=SAMPLING)
    texts = [("Answer: 5", True), ("Answer: 5", True), ("Answer: 5", False), (" ", True)]
    samples = [Sample((1,), text, finished) for text, finished in texts]
    found = judge(make_lm(), PROBLEM, samples, config)
    assert [e.rejected for e in found] == ["", "", "unfinished", "unparsed: nothing was written"]


def test_the_scorer_reads_an_attempt_as_a_copy() -> None:
    lm = make_lm()
    eta = {n: t + 0.1 for n, t in init_state(lm, AdaptConfig(), 0).eta.items()}
    attempt = Example(PROBLEM, "Answer: 5", tokens=tuple(lm.target_ids("Answer: 5")), attempt=True)
    copy = Example(PROBLEM, "Answer: 5", tokens=tuple(lm.written_ids(PROBLEM, "Answer: 5")))
    other = Example(PROBLEM, "Answer: 6", tokens=tuple(lm.target_ids("Answer: 6")), attempt=True)
    one, two, three = score(lm, eta, [PROBLEM] * 3, [attempt, copy, other]).tolist()
    assert one == pytest.approx(two, abs=1e-12)
    assert one != three


def test_only_practice_problems_train_the_generator(wide: LM, taught_base: Path, sums: Path) -> None:
    config = with_inner(config_for(taught_base, sums, "mass-gold"), steps=2)
    m = config.adapt.synthesis.examples
    some, all_ = (gradients(wide, with_attempts(config, n), 2) for n in (m - 1, m))
    assert float(all_["eta"].norm()) > 0
    assert "generator" not in all_ or float(all_["generator"].norm()) == 0
    assert float(some["generator"].norm()) == 0  # a group of one has no advantage
    both = with_attempts(config, m - 2)
    assert float(gradients(wide, both, 2)["generator"].norm()) > 0
    whole, alone = gradients(wide, both, 4), gradients(wide, both, 1)
    for name, value in whole.items():
        torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-9)


def test_more_attempts_than_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match="attempts"):
        SynthesisConfig(examples=2, attempts=3)


# --- verdicts on attempts


def test_the_loss_is_the_share_of_weight_on_what_is_right() -> None:
    scores = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, 5.0], [0.2, 0.1, 0.4], [1.0, 2.0, 3.0]]).double()
    right = torch.tensor([[True, False, False], [True, False, True], [True, True, True], [False, False, True]])
    judged = torch.tensor([[True, True, True], [True, True, False], [True, True, True], [True, True, False]])
    shares = scores[0].softmax(0)[0], scores[1, :2].softmax(0)[0]
    expected = [*(-float(share.log()) for share in shares), 0.0, 0.0]
    losses = verdict_losses(scores.requires_grad_(), right, judged)
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
    assert scores.grad is not None
    assert scores.grad[2:].abs().sum() == 0
    assert scores.grad[1, 2] == 0
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1]


def test_the_loss_has_the_gradient_of_its_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    right, judged = (torch.rand(4, 5, generator=generator) < share for share in (0.4, 0.8))
    assert torch.autograd.gradcheck(lambda s: verdict_losses(s, right, judged), scores)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[2, 3\], \[2, 3\], \[2, 2\]; expected all"):
        verdict_losses(torch.zeros(2, 3), torch.ones(2, 3).bool(), torch.ones(2, 2).bool())


def test_verdicts_teach_the_scorer_and_nothing_else(wide: LM, taught_base: Path, sums: Path) -> None:
    config = with_attempts(with_inner(config_for(taught_base, sums, "mass-gold"), steps=2), 3)
    taught = dataclasses.replace(config, train=dataclasses.replace(config.train, scorer_verdicts=5.0))
    plain, more = gradients(wide, config, 4), gradients(wide, taught, 4)
    assert {name for name in plain if not torch.equal(plain[name], more[name])} == {"eta"}
    torch.testing.assert_close(more["eta"], gradients(wide, taught, 1)["eta"], rtol=1e-6, atol=1e-9)


def test_verdicts_without_attempts_are_refused(taught_base: Path, sums: Path, tmp_path: Path) -> None:
    config = config_for(taught_base, sums, "mass-gold")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, scorer_verdicts=1.0))
    with pytest.raises(ConfigError, match="nothing that is practised has a verdict"):
        train(config, tmp_path / "run")


# --- other numbers, long problems, no practice


def test_another_m_has_as_large_a_share_of_attempts(taught_base: Path, sums: Path) -> None:
    sizes = [SynthesisConfig(examples=12, attempts=6).of_size(m) for m in (6, 12, 5, 1)]
    assert [(one.examples, one.attempts) for one in sizes] == [(6, 3), (12, 6), (5, 2), (1, 0)]
    config = with_attempts(config_for(taught_base, sums), 3)
    assert at_test(config).synthesis.attempts == at_test(config).synthesis.examples


def test_an_attempt_that_the_scorer_cannot_read_is_too_long() -> None:
    lm = make_lm()
    config = SynthesisConfig(examples=1, attempts=1, sampling=SAMPLING, max_example_tokens=lm.context)
    problem = "a" * 120
    (found,) = judge(lm, problem, [Sample((1,), "b" * 20, finished=True)], config)
    assert (
        lm.example_tokens(problem, "b" * 20)
        <= lm.context
        < len(lm.synthesis_prompt(problem)) + len(lm.written_ids(problem, "b" * 20))
    )
    assert found.rejected == "too long"


def test_the_limit_of_a_problem_holds_without_practice_too(wide: LM, taught_base: Path, sums: Path) -> None:
    config = config_for(taught_base, sums, "mass-gold")
    synthesis = dataclasses.replace(config.adapt.synthesis, max_example_tokens=1)
    config = dataclasses.replace(config, adapt=dataclasses.replace(config.adapt, synthesis=synthesis))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, generator_kl=0.0))
    norms = [
        float(
            gradients(wide, dataclasses.replace(config, train=dataclasses.replace(config.train, **limit)), 2)[
                "theta"
            ].norm()
        )
        for limit in ({}, {"max_problem_norm": 1e-3})
    ]
    assert norms[0] > 0.01
    assert norms[1] <= 4 * 1e-3 * (1 + 1e-6)
