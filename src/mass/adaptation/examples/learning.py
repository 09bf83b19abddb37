"""Lessons -> adapters that have learned them: the inner loop on given examples, for a stack of adapters.

The stack serves the choice: adapters of other folds and rates learn side by side, and the parameters after several
numbers of epochs are kept from one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mass.adaptation.examples.lessons import Lessons
from mass.config import ExamplesConfig, InnerConfig
from mass.lm import room
from mass.lm.continuous import check_cancelled
from mass.lm.lora import detach, repeat
from mass.metagrad.outer import inner_loop
from mass.types import Batch, Params

if TYPE_CHECKING:
    from mass.lm import LM
    from mass.lm.model import Row

EPS_ROOT = 1e-16
"""Adam's epsilon inside the root, 1e-8 outside of it: nothing is differentiated through these steps."""


def inner_config(config: ExamplesConfig, rate: float, steps: int) -> InnerConfig:
    """Return the inner loop as an `InnerConfig`."""
    return InnerConfig("adamw", rate, eps_root=EPS_ROOT, steps=steps, clip_norm=config.clip_norm)


@torch.no_grad()
def learn(
    start: Params, lessons: Lessons, config: ExamplesConfig, rates: Sequence[float], marks: Sequence[int]
) -> dict[int, Params]:
    """Return the stack after each number of epochs in `marks`, by that number.

    Args:
        start: One adapter, from which all of the stack start.
        rates: The learning rate of each adapter of the stack.
    """
    lm, kept = lessons.lm, dict[int, Params]()
    at = {epochs * lessons.steps_per_epoch: epochs for epochs in marks}

    def watch(step: int, params: Params) -> None:
        check_cancelled()
        if step in at:
            kept[at[step]] = {name: tensor.clone() for name, tensor in detach(params).items()}

    size = lessons.micro_batch
    spare = room.spare_gb(lm, size, lessons.batch.input_ids.shape[1])
    rate = torch.tensor([rates], dtype=lm.adapter_dtype, device=lm.device)
    run = inner_loop(lessons.losses, inner_config(config, rates[0], lessons.steps), size, spare, watch)
    run(repeat(start, len(rates)), lessons.weights, dict.fromkeys(start, rate))
    return kept


@torch.no_grad()
def held_out_losses(
    lm: LM, rows: Sequence[Row], adapter: Params | None, owners: Sequence[int] | None = None
) -> Float[Tensor, " N"]:
    """Return the mean negative log-likelihood of each row's target, a few rows of similar length at a time."""
    order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
    found = torch.zeros(len(rows))
    at = 0
    while at < len(order):
        some = order[at : at + _rows_of(lm, [sum(map(len, rows[i])) for i in order[at:]])]
        batch: Batch = lm.batch([rows[i] for i in some])
        index = None if owners is None else torch.tensor([owners[i] for i in some], device=lm.device)
        found[some] = lm.losses(batch, adapter, index).float().cpu()
        at += len(some)
    return found


def _rows_of(lm: LM, lengths: Sequence[int]) -> int:
    """Return how many rows, from the shortest, are one pass of at most 4096 tokens, padding included."""
    most = next((n for n, length in enumerate(lengths) if (n + 1) * length > PASS_TOKENS), len(lengths))
    return max(1, min(most, room.rows_that_fit(lm, len(lengths), lengths[min(most, len(lengths) - 1)], "forward")))


PASS_TOKENS = 4096
"""Tokens of a forward pass for losses, padding included."""
