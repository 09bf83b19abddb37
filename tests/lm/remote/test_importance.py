"""What a server sampled is weighed by the ratio of the policy here to the one that sampled it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from mass.adaptation.synthesis import synthesise
from mass.config import OuterConfig, SamplingConfig, SynthesisConfig
from mass.errors import ShapeError
from mass.lm import LM
from mass.training.outer import Solutions, policy_losses, sample_solutions, verifier_losses
from mass.training.policy import clipped_policy_loss, truncated_ratio
from mass.types import Example, Sample, Verdict, example_of
from small_lms import random_adapter, small_sums

CONFIG = OuterConfig(sampling=SamplingConfig(max_new_tokens=12), samples=4)


def gradient(lm: LM, samples: list[Sample], advantages: list[float]) -> torch.Tensor:
    rows = [(lm.solve_prompt("Compute 1 + 1."), list(sample.tokens)) for sample in samples]
    params = {name: t.clone().requires_grad_() for name, t in random_adapter(lm).items()}
    sampled = [sample.logprobs for sample in samples]
    loss = sum(policy_losses(lm, rows, torch.tensor(advantages), params, 2, sampled=sampled))
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(params.values()))])


def test_the_ratio_is_cut_at_its_cap_and_one_beyond_the_mask() -> None:
    here, there = torch.tensor([[-1.0, -2.0, -3.0, 0.0]]), torch.tensor([[-1.0, -1.0, -9.0, math.nan]])
    mask = torch.tensor([[True, True, True, False]])
    found = truncated_ratio(here.requires_grad_(), there, mask)
    torch.testing.assert_close(found, torch.tensor([[1.0, math.exp(-1.0), 2.0, 1.0]]))
    assert not found.requires_grad
    with pytest.raises(ShapeError, match="sampled"):
        truncated_ratio(here, there[:, :2], mask)


def test_weights_multiply_the_terms_of_their_tokens() -> None:
    logprobs = torch.randn(2, 3, dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    weights = torch.rand(2, 3, dtype=torch.float64).requires_grad_()
    advantages = torch.tensor([1.5, -0.5], dtype=torch.float64)
    loss = clipped_policy_loss(logprobs, logprobs.detach(), advantages, mask, weights=weights)
    (found,) = torch.autograd.grad(loss, logprobs)
    lengths = mask.sum(1, keepdim=True)
    torch.testing.assert_close(found, -(weights.detach() * advantages[:, None] * mask / lengths / 2))
    with pytest.raises(ShapeError, match="weights"):
        clipped_policy_loss(logprobs, logprobs.detach(), advantages, mask, weights=weights[:, :2])


def test_a_server_that_rounds_as_here_changes_nothing_and_one_that_does_not_is_weighed(lm: LM) -> None:
    prompts, adapter = [lm.solve_prompt("Compute 1 + 1.")] * 3, random_adapter(lm)
    mine = lm.sample(prompts, SamplingConfig(max_new_tokens=9), [1, 2, 3], adapter, with_logprobs=True)
    bare = [dataclasses.replace(sample, logprobs=()) for sample in mine]
    advantages = [1.0, -2.0, 0.5]
    plain = gradient(lm, bare, advantages)
    torch.testing.assert_close(gradient(lm, mine, advantages), plain, rtol=1e-3, atol=1e-5)
    half = [dataclasses.replace(s, logprobs=tuple(v + math.log(2) for v in s.logprobs)) for s in mine]
    torch.testing.assert_close(gradient(lm, half, advantages), plain / 2, rtol=1e-3, atol=1e-5)
    rare = [dataclasses.replace(s, logprobs=tuple(v - 5 for v in s.logprobs)) for s in mine]
    torch.testing.assert_close(gradient(lm, rare, advantages), plain * 2, rtol=1e-3, atol=1e-5)


def test_solutions_and_practice_of_a_server_bring_their_log_probabilities(lm: LM, remote: Callable[..., LM]) -> None:
    there, tasks, adapter = remote(), small_sums()[:2], random_adapter(lm)

    def judge(pairs: object) -> list[Verdict]:
        return [Verdict(i % 2 == 0) for i, _ in enumerate(pairs)]  # pyright: ignore

    found: Solutions = sample_solutions(there, tasks, CONFIG, [1, 2], adapter, judge)
    assert all(len(s.logprobs) == len(s.tokens) for s in found.samples)
    losses = [float(loss) for loss in verifier_losses(there, tasks, found, CONFIG, adapter)]
    bare = dataclasses.replace(found, samples=tuple(dataclasses.replace(s, logprobs=()) for s in found.samples))
    expected = [float(loss) for loss in verifier_losses(lm, tasks, bare, CONFIG, adapter)]
    assert losses == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert not any(s.logprobs for s in sample_solutions(lm, tasks, CONFIG, [1, 2], adapter, judge).samples)
    settings = SynthesisConfig(examples=2, sampling=SamplingConfig(max_new_tokens=8))
    (group,) = synthesise(there, ["Compute 1 + 1."], settings, [0], adapter, with_logprobs=True)
    assert all(len(e.logprobs) == len(e.tokens) > 0 for e in group)
    again: Example = example_of(dataclasses.asdict(group[0]) | {"logprobs": list(group[0].logprobs)})
    assert again == group[0]
