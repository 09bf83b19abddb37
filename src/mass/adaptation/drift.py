"""Measure the drift of an adaptation: how far it moves the answers to unrelated problems.

    KL = mean over tokens t of  sum_v pi_theta(v | x, y_<t) log( pi_theta(v | x, y_<t) / pi_theta_K(v | x, y_<t) )

in nats per token, for canary problems x of other subjects than the target and answers y that theta itself samples.
theta counts as a constant: gradients flow through theta_K alone, as those of the outer loss do. The sum over the
vocabulary is exact, and only the prefixes y_<t are sampled (summed over an answer instead of averaged, it would
estimate the divergence of whole answers, by the chain rule).

Sources: a locality loss differentiated through an update, Sinitsin et al., arXiv 2004.00345, and Mitchell et al., arXiv
2110.11309 (which has this divergence); the old model as the teacher of the new, Li and Hoiem, arXiv 1606.09282.

Legend: B tasks, N canary answers, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mass.config import SamplingConfig
from mass.lm import room
from mass.metagrad.layerwise import checkpoint
from mass.seeds import derive
from mass.types import Params, Task

if TYPE_CHECKING:
    from mass.lm import LM
    from mass.lm.logprobs import Predictions
    from mass.lm.model import Row


@dataclass(frozen=True)
class Answers:
    """Answers of theta to the canary problems of B tasks."""

    rows: tuple[Row, ...]
    """N sequences of a prompt and an answer, of which the answer counts."""
    owners: Tensor
    """[N] the index of each answer's task."""
    shares: Tensor
    """[N] one over the number of canary problems of that task."""

    @property
    def num_tokens(self) -> int:
        """Number of generated tokens."""
        return sum(len(answer) for _, answer in self.rows)


def sample_answers(
    lm: LM, canaries: Sequence[Sequence[Task]], sampling: SamplingConfig, seeds: Sequence[int], theta: Params
) -> Answers:
    """Sample one answer of theta to each canary problem.

    The temperature is 1 and top-p is off, whatever `sampling` says: the divergence is an expectation under theta.

    Args:
        canaries: the canary problems of each task.
        seeds: one for each task.
    """
    places = [(b, j) for b, problems in enumerate(canaries) for j in range(len(problems))]
    prompts = [lm.solve_prompt(canaries[b][j].problem) for b, j in places]
    plain = dataclasses.replace(sampling, temperature=1.0, top_p=1.0)
    samples = lm.sample(prompts, plain, [derive(seeds[b], "canary", j) for b, j in places], theta)
    rows = tuple((prompt, list(sample.tokens)) for prompt, sample in zip(prompts, samples, strict=True))
    owners = torch.tensor([b for b, _ in places], device=lm.device)
    shares = torch.tensor([1 / len(canaries[b]) for b, _ in places], dtype=lm.adapter_dtype, device=lm.device)
    return Answers(rows, owners, shares)


def kl_losses(lm: LM, answers: Answers, theta: Params, adapted: Params, micro_batch: int | None) -> Iterator[Tensor]:
    """Yield parts whose sum is the sum over tasks of the mean KL of their canaries; differentiable in `adapted` alone.

    Args:
        adapted: a stack of B adapters, or one for all.
        micro_batch: number of answers in a part, whose graph is alive at one time; None for as many as fit.
    """
    for index, per_row in _divergences(lm, answers, theta, adapted, micro_batch):
        yield (per_row * answers.shares[index]).sum()


@torch.no_grad()
def drifts(lm: LM, answers: Answers, theta: Params, adapted: Params, micro_batch: int | None) -> Float[Tensor, " B"]:
    """Return the mean KL (nats per token) of the canaries of each task, under a stack of B adapters."""
    found = answers.shares.new_zeros(next(iter(adapted.values())).shape[0])
    for index, per_row in _divergences(lm, answers, theta, adapted, micro_batch):
        found.index_add_(0, answers.owners[index], per_row * answers.shares[index])
    return found


def _divergences(
    lm: LM, answers: Answers, theta: Params, adapted: Params, micro_batch: int | None
) -> Iterator[tuple[Tensor, Float[Tensor, " n"]]]:
    """Yield (indices of answers, mean KL over the tokens of each)."""
    stacked = next(iter(adapted.values())).dim() == 3
    length = max((len(prompt) + len(answer) for prompt, answer in answers.rows), default=1)
    size = micro_batch or room.rows_that_fit(lm, max(1, len(answers.rows)), length, "gradient")
    for index in torch.arange(len(answers.rows), device=lm.device).split(size):
        batch = lm.batch([answers.rows[i] for i in index.tolist()])
        with torch.no_grad():
            before = lm.predictions(batch, theta)
        after = lm.predictions(batch, adapted, answers.owners[index] if stacked else None)
        each = each_divergence(before, after).to(lm.device)
        mask = batch.target_mask
        yield index, each.new_zeros(mask.shape).masked_scatter(mask, each).sum(1) / mask.sum(1)


def each_divergence(before: Predictions, after: Predictions) -> Float[Tensor, " n"]:
    """Return the KL at each of n places. The graph keeps no distributions, unless all of them are small."""

    def divergence(before_values: Tensor, after_values: Tensor) -> Tensor:
        one, other = (
            dataclasses.replace(of, values=values).log_softmax()
            for of, values in ((before, before_values), (after, after_values))
        )
        return (one.exp() * (one - other)).sum(1)

    parts = list(zip(before.split(), after.split(), strict=True))
    if len(parts) == 1:
        return divergence(before.values, after.values)
    return torch.cat([checkpoint(divergence, one.values, other.values) for one, other in parts])
