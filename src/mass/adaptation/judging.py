"""An adapted stack and what was measured on it -> the stack without the updates that the gate discards.

Legend: B problems, m examples of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mass.adaptation import gate
from mass.adaptation.batch import Practice
from mass.adaptation.canaries import Canaries, needs_canaries, prepare_canaries
from mass.adaptation.checkpoint import MetaState
from mass.config import GateConfig
from mass.types import GateDecision, Groups, Params

if TYPE_CHECKING:
    from mass.lm import LM


@dataclass(frozen=True)
class Adapted:
    """A stack of B adapted adapters, with the examples they learned from."""

    stack: Params
    """[B, ...]; for a problem that fell back, the start itself."""
    groups: Groups
    """The examples of each problem with scores, weights, and losses before and after the update."""
    fallbacks: tuple[str, ...]
    """For each problem the reason why it fell back; empty where it did not."""
    update_norms: tuple[float, ...]
    """For each problem the norm of the change over the norm of the start, both over all tensors of the adapter."""
    gates: tuple[GateDecision | None, ...]
    """For each problem the gate's decision; None where the gate is off."""


@dataclass(frozen=True)
class Judge:
    """What the gate judges updates with."""

    config: GateConfig
    canaries: Canaries | None = None
    """None to measure no drift."""
    decided: Sequence[GateDecision] | None = None
    """Decisions of a record for each problem, to be taken as they are; None to decide."""

    @staticmethod
    def of(lm: LM, state: MetaState, config: GateConfig, canaries: Canaries | None) -> Judge:
        """Return a judge with these canaries, or with new ones where the configuration needs them."""
        if canaries is None and needs_canaries(config):
            canaries = prepare_canaries(lm, state.theta, config)
        return Judge(config, canaries)


def measures_of(
    valid: Tensor, held: Tensor, practice: Practice, before: Tensor, after: Tensor
) -> dict[str, list[float | None]]:
    """Return what the gate measures on the practice of each problem."""
    loss, rise = (practice.spread(values, *valid.shape) for values in (before, after - before))
    surprise = loss.masked_fill(~valid, float("inf")).min(1).values
    return {"surprise": [*surprise.tolist()], "held_out_rise": gate.mean_over(rise, held)}


def judged(adapted: Adapted, measures: Mapping[str, Sequence[float | None]], start: Params, judge: Judge) -> Adapted:
    """Return the adapted stack with the gate's decisions, and the start in place of updates that it discards."""
    count = len(adapted.fallbacks)
    if not judge.config.enabled:
        return dataclasses.replace(adapted, gates=(None,) * count)
    decisions = judge.decided or _decisions(adapted, measures, judge)
    return dataclasses.replace(
        adapted,
        stack=where([decision.adapt for decision in decisions], adapted.stack, start),
        fallbacks=tuple("" if decision.adapt else decision.reason for decision in decisions),
        gates=tuple(decisions),
    )


def _decisions(adapted: Adapted, measures: Mapping[str, Sequence[float | None]], judge: Judge) -> list[GateDecision]:
    lost = [False] * len(adapted.fallbacks)
    if judge.canaries is not None and not all(adapted.fallbacks):
        drift, some_lost = judge.canaries.measure(adapted.stack)
        measures, lost = {**measures, "drift": drift.tolist()}, some_lost.tolist()
    found: list[GateDecision] = []
    for b, (reason, norm) in enumerate(zip(adapted.fallbacks, adapted.update_norms, strict=True)):
        own = {"update_norm": norm, **{name: v for name, values in measures.items() if (v := values[b]) is not None}}
        # What an update that is not finite does to practice and canaries was measured on the start in its place.
        failed = GateDecision(False, reason, {"update_norm": norm})
        found.append(failed if reason else gate.after(own, judge.config, unrefused=lost[b]))
    return found


def where(keep: Sequence[bool], stack: Params, start: Params) -> Params:
    """Return the stack with the start in place of the adapters that are not kept."""
    # `where` and not a product: 0 times an update that is not finite would be NaN.
    mask = torch.tensor(keep, device=next(iter(stack.values())).device).view(-1, 1, 1)
    return {name: torch.where(mask, tensor, start[name]) for name, tensor in stack.items()}
