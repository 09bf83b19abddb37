"""Compute the gradient of one step of a method that trains theta alone, without adaptation.

`solver-grpo`: group-relative policy gradient on verified solutions (Shao et al., arXiv 2402.03300).
`solver-sft`: cross-entropy of the gold solutions.
`self-sft`: cross-entropy of the practice that the base writes for the problems, all weighted equally and not verified.
It shows what the practice of `tt-ss` brings when it is learned once, instead of separately for each problem.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mass.adaptation import scoring, synthesis
from mass.adaptation.batch import practice_of, trust_of, valid_mask
from mass.metagrad.outer import outer_gradient
from mass.timing import Clock
from mass.training.gradients import Gradients, Measured, Stack
from mass.training.targets import outer_parts
from mass.types import Params


def solver_gradients(stack: Stack) -> Gradients:
    """Return the gradient of the outer loss of theta itself, or of its loss on practice for `self-sft`."""
    clock, measured = Clock(), Measured()
    theta = stack.state.theta
    parts = _practice_parts if stack.config.train.method == "self-sft" else outer_parts
    loss, grads = outer_gradient(lambda params: parts(stack, params, clock, measured), theta)
    measured.add(outer_loss=loss)
    return Gradients(dict(zip(theta, grads, strict=True)), measured=measured, seconds=clock.seconds)


def _practice_parts(stack: Stack, params: Params, clock: Clock, measured: Measured) -> Iterator[Tensor]:
    """Yield parts whose sum is the sum over problems of the mean loss of their valid practice (0 without any)."""
    lm, config = stack.lm, stack.config
    # By the base and not by theta, which changes during the training.
    groups = synthesis.practice_for(lm, stack.problems, config.adapt.synthesis, stack.seeds, None, clock)
    measured.add_practice(groups)
    practice = practice_of(lm, groups)
    if practice is None:
        return
    valid = valid_mask(groups, lm.device)
    scores = torch.zeros(valid.shape, dtype=lm.adapter_dtype, device=lm.device)
    trust = trust_of(groups, config.adapt.synthesis.verify, scores)
    alike = scoring.normalise(scores, valid, "uniform", trust)
    weights = practice.pick(alike)
    rows = torch.arange(len(practice), device=lm.device)
    chunks = rows.split(practice.rows_per_pass(config.outer.micro_batch) or len(rows))
    yield from clock.each("outer", ((weights[chunk] * practice.losses(params, chunk)).sum() for chunk in chunks))
