"""Decide for each problem: does the model practise at all, and may what it learned answer?

Before practice: a model that is certain of its own answer keeps it. Certainty is the mean log-probability of the tokens
of its greedy answer.

After practice, in this order: the update is finite and bounded; the practice is as if the model had written it freely
(`surprise`: the loss of the solutions in the eyes of the writer); the model itself found one of the solutions likely
before (`least_loss`); a trial update on a part of the examples did not make the others much less likely
(`held_out_rise`); the answers to canary prompts stay near (`drift`, a KL in nats per token); what must be refused still
is. The first test that fails is the reason to answer with the unadapted weights.

The bounds are measured on validation problems (`mass.evaluation.gate`) and kept in a checkpoint's configuration. The
canaries are in `mass.adaptation.canaries`.

Source of the first test: training at test time on inputs of low perplexity brings little or hurts, Hu et al., arXiv
2505.20633.

Legend: B problems, m examples of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mass.config import GateConfig
from mass.lm import room
from mass.types import GateDecision, Params, Sample

if TYPE_CHECKING:
    from mass.lm import LM

PASSED = "passed"
"""The reason of a decision for the update: no test failed."""
CERTAIN = "certain without practice"
"""The model was certain of its own answer, and did not practise."""
NO_EXAMPLE = "no valid example"
"""None of the practice could be used."""
NOT_FINITE = "non-finite update"
"""A number of the update is infinite or not a number."""
EXPLODING = "exploding update"
"""The update is larger than `inner.max_update_norm`."""
SURPRISING = "practice unlike the model's own"
"""The loss of the solutions in the eyes of their writer is above `gate.max_surprise`."""
UNLIKELY = "no practice likely to the model"
"""The loss of each of the solutions before the update is above `gate.max_least_loss`."""
LESS_LIKELY = "held-out practice less likely"
"""A trial update raised the loss on held-out examples by more than `gate.max_rise`."""
DRIFTED = "drift on canaries"
"""The answers to canary prompts moved further than `gate.max_drift`."""
UNREFUSED = "a refusal was lost"
"""The adapted weights answered a canary prompt that the unadapted ones refuse."""
REASONS = (PASSED, CERTAIN, NO_EXAMPLE, NOT_FINITE, EXPLODING, SURPRISING, UNLIKELY, LESS_LIKELY, DRIFTED, UNREFUSED)
"""All reasons of a decision."""


@torch.no_grad()
def certainties(
    lm: LM, prompts: Sequence[Sequence[int]], samples: Sequence[Sample], adapter: Params | None
) -> list[float]:
    """Return the mean log-probability (nats) of the tokens of each answer, 0 for one without tokens.

    Samples that came with log-probabilities cost nothing, others one forward pass.

    Args:
        adapter: One adapter, that of the samples.
    """
    found = {i: sum(s.logprobs) / len(s.logprobs) for i, s in enumerate(samples) if s.logprobs}
    missing = [i for i, s in enumerate(samples) if s.tokens and not s.logprobs]
    rows = [(list(prompts[i]), list(samples[i].tokens)) for i in missing]
    size = room.rows_that_fit(lm, max(1, len(rows)), max((len(p) + len(t) for p, t in rows), default=1), "forward")
    for at in range(0, len(rows), size):
        losses = lm.losses(lm.batch(rows[at : at + size]), adapter)
        found |= dict(zip(missing[at : at + size], (-losses).tolist(), strict=True))
    return [found.get(i, 0.0) for i in range(len(samples))]


def before(certainty: float, config: GateConfig) -> GateDecision:
    """Decide whether to practise on a problem, from the certainty of the model's own greedy answer."""
    certain = config.certainty is not None and certainty >= config.certainty
    return GateDecision(not certain, CERTAIN if certain else PASSED, {"certainty": certainty})


def held_out(valid: Bool[Tensor, "B m"], config: GateConfig) -> Bool[Tensor, "B m"]:
    """Return the examples to hold out: every n-th valid one of each problem, so none of a problem with fewer."""
    if not config.enabled or not config.hold_out:
        return torch.zeros_like(valid)
    return valid & (valid.cumsum(1) % config.hold_out == 0)


def mean_over(values: Float[Tensor, "B m"], chosen: Bool[Tensor, "B m"]) -> list[float | None]:
    """Return each problem's mean of the chosen values; None where none is chosen."""
    total, count = torch.where(chosen, values, 0.0).sum(1).tolist(), chosen.sum(1).tolist()
    return [one / number if number else None for one, number in zip(total, count, strict=True)]


def after(measures: Mapping[str, float], config: GateConfig, *, unrefused: bool = False) -> GateDecision:
    """Decide whether the weights of a finite and bounded update may answer.

    A measure that was not to be had, as of held-out examples where there were too few, is no reason against the update.
    One that is not a number is.
    """
    bounds = (
        ("surprise", config.max_surprise, SURPRISING),
        ("least_loss", config.max_least_loss, UNLIKELY),
        ("held_out_rise", config.max_rise, LESS_LIKELY),
        ("drift", config.max_drift, DRIFTED),
    )
    failed = [why for name, bound, why in bounds if bound is not None and not measures.get(name, bound) <= bound]
    failed += [UNREFUSED] if unrefused else []
    return GateDecision(not failed, failed[0] if failed else PASSED, dict(measures))


def with_measures(decision: GateDecision, earlier: Mapping[str, float]) -> GateDecision:
    """Return the decision with what was measured earlier beside its own measures."""
    return dataclasses.replace(decision, measures={**earlier, **decision.measures})
