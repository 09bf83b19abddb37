"""Attempts at the problem itself among the practice: sampled as the solver answers, weighed as copies, learned like any
example, and no business of the generator's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mass.checkpoint import init_state
from mass.config import AdaptConfig, RunConfig, SamplingConfig, SynthesisConfig
from mass.errors import ConfigError
from mass.lm import LM
from mass.scoring import score
from mass.seeds import derive
from mass.synthesis import judge, synthesise
from mass.types import Example, Sample
from small_lms import make_lm, random_adapter
from small_runs import config_for, gradients, with_inner

PROBLEM = "What is 2 + 3?"
SAMPLING = SamplingConfig(max_tokens=16, temperature=1.0)


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
