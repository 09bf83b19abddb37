"""Adapted parameters of B tasks, Tasks -> the outer loss on the targets, in parts that each fit one backward pass.

gold: cross-entropy of the worked solution of T under theta_K, `-mean_t log pi(solution_t)`.
verifier: `-1/k sum_j A_j mean_t log pi(R_jt)` over k sampled solutions R_j with group-relative advantages A_j (Shao et
al., arXiv 2402.03300), the ratio clipped. A sample without a verdict is left out, not counted as wrong.

Legend: B tasks, k samples of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mass.config import OuterConfig
from mass.policy import clipped_policy_loss, group_advantages
from mass.seeds import derive
from mass.types import Params, Sample, Task, Verdict

if TYPE_CHECKING:
    from mass.lm import LM

Check = Callable[[Task, str], Verdict]


@dataclass(frozen=True)
class Solutions:
    """k sampled and verified solutions of each of B tasks."""

    samples: tuple[Sample, ...]
    """[B k], the k of a task in a row."""
    rewards: Tensor
    """[B, k] 1.0 correct, 0.0 wrong or no verdict."""
    judged: Tensor
    """[B, k] bool, False where there is no verdict."""


def sample_solutions(
    lm: LM, tasks: Sequence[Task], config: OuterConfig, seeds: Sequence[int], adapted: Params | None, check: Check
) -> Solutions:
    """Sample and verify. `adapted` is a stack of one adapter for each task, or one adapter for all."""
    k = config.samples
    prompts = [lm.solve_prompt(task.problem) for task in tasks for _ in range(k)]
    row_seeds = [derive(seed, "solution", j) for seed in seeds for j in range(k)]
    samples = lm.sample(prompts, config.sampling, row_seeds, adapted)
    verdicts = [check(tasks[i // k], sample.text).correct for i, sample in enumerate(samples)]
    rewards = torch.tensor([1.0 if v else 0.0 for v in verdicts]).view(-1, k)
    judged = torch.tensor([v is not None for v in verdicts]).view(-1, k)
    return Solutions(tuple(samples), rewards, judged)


def verifier_losses(
    lm: LM, tasks: Sequence[Task], solutions: Solutions, config: OuterConfig, adapted: Params
) -> Iterator[Tensor]:
    """Parts whose sum is the sum over tasks of the policy loss. Differentiable in `adapted` (stacked, or shared)."""
    k = config.samples
    advantages = group_advantages(solutions.rewards, solutions.judged).flatten().to(lm.device)
    prompts = [lm.solve_prompt(task.problem) for task in tasks]
    rows = [(prompts[i // k], list(sample.tokens)) for i, sample in enumerate(solutions.samples)]
    counts = advantages.nonzero()[:, 0].tolist()
    for index in _chunks(counts, config.micro_batch):
        batch = lm.batch([rows[i] for i in index])
        owner = torch.tensor([i // k for i in index], device=lm.device)
        logprobs, mask = lm.token_logprobs(batch, adapted, owner if _stacked(adapted) else None)
        part = clipped_policy_loss(logprobs, logprobs.detach(), advantages[index], mask, clip=config.clip)
        yield part * (len(index) / k)


def gold_losses(lm: LM, tasks: Sequence[Task], config: OuterConfig, adapted: Params) -> Iterator[Tensor]:
    """Parts whose sum is the sum over tasks of the gold solution's cross-entropy. Differentiable in `adapted`."""
    rows = [lm.example_row(task.problem, task.solution or task.answer) for task in tasks]
    for index in _chunks(list(range(len(rows))), config.micro_batch):
        owner = torch.tensor(index, device=lm.device)
        yield lm.losses(lm.batch([rows[i] for i in index]), adapted, owner if _stacked(adapted) else None).sum()


def _stacked(params: Params) -> bool:
    return next(iter(params.values())).dim() == 3


def _chunks(index: list[int], size: int | None) -> Iterator[list[int]]:
    step = size or max(1, len(index))
    return (index[i : i + step] for i in range(0, len(index), step))
