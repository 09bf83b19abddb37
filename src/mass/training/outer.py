"""Compute the outer loss of adapted parameters on B tasks, in parts that each fit one backward pass.

gold: cross-entropy of the worked solution of T under theta_K, `-mean_t log pi(solution_t)`.
verifier: `-1/k sum_j A_j mean_t log pi(R_jt)` over k sampled solutions R_j with group-relative advantages A_j (Shao et
al., arXiv 2402.03300). The samples are fresh, so the importance ratio is 1 and is never clipped. Samples of a sampling
server, which rounds differently, are weighted by the truncated ratio of the policy here to the server's. A sample
without a verdict is left out, and does not count as wrong.

Legend: B tasks, k samples of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mass.config import OuterConfig
from mass.lm import room
from mass.seeds import derive
from mass.training.policy import clipped_policy_loss, group_advantages, kl_to_reference, truncated_ratio
from mass.types import Params, Sample, Task, Verdict

if TYPE_CHECKING:
    from mass.lm import LM
    from mass.lm.model import Row

Judge = Callable[[Sequence[tuple[Task, str]]], list[Verdict]]
"""A function from (task, answer text) pairs to their verdicts, in the same order."""


@dataclass(frozen=True)
class Solutions:
    """The k sampled and verified solutions of each of B tasks."""

    samples: tuple[Sample, ...]
    """[B k] samples; the k samples of a task are consecutive."""
    rewards: Tensor
    """[B, k] 1.0 for a correct solution, 0.0 for a wrong one or where there is no verdict."""
    judged: Tensor
    """[B, k] bool, False where there is no verdict."""


def sample_solutions(
    lm: LM, tasks: Sequence[Task], config: OuterConfig, seeds: Sequence[int], adapted: Params | None, judge: Judge
) -> Solutions:
    """Sample k solutions of each task and verify them.

    `seeds` has one seed for each task; `adapted` is a stack of one adapter for each task, or one adapter for all.
    """
    k = config.samples
    prompts = [lm.solve_prompt(task.problem) for task in tasks for _ in range(k)]
    row_seeds = [derive(seed, "solution", j) for seed in seeds for j in range(k)]
    samples = lm.sample(prompts, config.sampling, row_seeds, adapted, with_logprobs=lm.engine is not None)
    verdicts = [v.correct for v in judge([(tasks[i // k], sample.text) for i, sample in enumerate(samples)])]
    rewards = torch.tensor([1.0 if v else 0.0 for v in verdicts]).view(-1, k)
    judged = torch.tensor([v is not None for v in verdicts]).view(-1, k)
    return Solutions(tuple(samples), rewards, judged)


def verifier_losses(
    lm: LM, tasks: Sequence[Task], solutions: Solutions, config: OuterConfig, adapted: Params
) -> Iterator[Tensor]:
    """Yield parts whose sum is the sum over tasks of the policy loss; differentiable in `adapted` (a stack or one)."""
    k = config.samples
    advantages = group_advantages(solutions.rewards, solutions.judged).flatten().to(lm.device)
    rows = _solution_rows(lm, tasks, solutions, k)
    owners = torch.arange(len(rows), device=lm.device) // k
    sampled = [sample.logprobs for sample in solutions.samples]
    for part in policy_losses(lm, rows, advantages, adapted, config.micro_batch, owners, sampled):
        yield part / k


def policy_losses(
    lm: LM,
    rows: Sequence[Row],
    advantages: Float[Tensor, " N"],
    params: Params,
    micro_batch: int | None,
    owners: Tensor | None = None,
    sampled: Sequence[Sequence[float]] | None = None,
) -> Iterator[Tensor]:
    """Yield parts whose sum is the sum over rows of the policy loss of freshly sampled sequences (ratio 1).

    Rows whose advantage is 0 have no gradient and are left out.

    Args:
        owners: [N] the index of each row's adapter in a stack.
        sampled: for each row the log-probabilities under which a sampling server drew its tokens; each token is then
            weighted by the truncated ratio of its probability here to the server's. Empty for rows sampled in this
            process.
    """
    counted: list[int] = advantages.nonzero()[:, 0].tolist()
    for index in _chunks(lm, rows, counted, micro_batch):
        owner = owners[index] if owners is not None and _stacked(params) else None
        logprobs, mask = lm.token_logprobs(lm.batch([rows[i] for i in index]), params, owner)
        weights = _weights(logprobs, mask, [sampled[i] for i in index]) if sampled is not None else None
        loss = clipped_policy_loss(logprobs, logprobs.detach(), advantages[index], mask, weights=weights)
        yield loss * len(index)  # the loss is a mean over its rows; the sum must not depend on the cut into parts


def _weights(logprobs: Tensor, mask: Tensor, sampled: Sequence[Sequence[float]]) -> Tensor | None:
    """Return the truncated ratio of each token; None where this process sampled."""
    if not any(sampled):
        return None
    flat = torch.tensor([value for row in sampled for value in row], dtype=logprobs.dtype, device=logprobs.device)
    return truncated_ratio(logprobs, torch.zeros_like(logprobs).masked_scatter(mask, flat), mask)


def kl_losses(
    lm: LM, tasks: Sequence[Task], solutions: Solutions, config: OuterConfig, params: Params
) -> Iterator[Tensor]:
    """Yield parts whose sum is the sum over tasks of the KL divergence from the base (nats per token, k3 estimator).

    The mean over the tokens of a sequence is taken first, so that the result does not depend on the cut into parts.
    """
    rows = _solution_rows(lm, tasks, solutions, config.samples)
    owners = torch.arange(len(rows), device=lm.device) // config.samples
    return (part / config.samples for part in kl_of_rows(lm, rows, params, config.micro_batch, owners))


def kl_of_rows(
    lm: LM, rows: Sequence[Row], params: Params, micro_batch: int | None, owners: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield parts whose sum is the sum over rows, sampled under `params`, of the KL divergence from the base."""
    for index in _chunks(lm, rows, list(range(len(rows))), micro_batch):
        batch = lm.batch([rows[i] for i in index])
        logprobs, mask = lm.token_logprobs(
            batch, params, owners[index] if owners is not None and _stacked(params) else None
        )
        with torch.no_grad():
            reference, _ = lm.token_logprobs(batch)
        each = [kl_to_reference(*row) for row in zip(*(t.split(1) for t in (logprobs, reference, mask)), strict=True)]
        yield torch.stack(each).sum()


def _solution_rows(lm: LM, tasks: Sequence[Task], solutions: Solutions, k: int) -> list[Row]:
    prompts = [lm.solve_prompt(task.problem) for task in tasks]
    return [(prompts[i // k], list(sample.tokens)) for i, sample in enumerate(solutions.samples)]


def gold_losses(lm: LM, tasks: Sequence[Task], config: OuterConfig, adapted: Params) -> Iterator[Tensor]:
    """Yield parts whose sum is the sum over tasks of the gold solution's cross-entropy. Differentiable in `adapted`."""
    rows = [lm.example_row(task.problem, task.solution or task.answer) for task in tasks]
    for index in _chunks(lm, rows, list(range(len(rows))), config.micro_batch):
        owner = torch.tensor(index, device=lm.device)
        yield lm.losses(lm.batch([rows[i] for i in index]), adapted, owner if _stacked(adapted) else None).sum()


def _stacked(params: Params) -> bool:
    return next(iter(params.values())).dim() == 3


def _chunks(lm: LM, rows: Sequence[Row], index: list[int], size: int | None) -> Iterator[list[int]]:
    """Return the indices of the rows of each pass: `size` rows, or for None as many as fit the free memory."""
    if size is None and index:
        length = max(len(rows[i][0]) + len(rows[i][1]) for i in index)
        size = room.rows_that_fit(lm, len(index), length, "gradient")
    step = size or 1
    return (index[i : i + step] for i in range(0, len(index), step))
