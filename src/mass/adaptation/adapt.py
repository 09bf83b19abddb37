"""Adapt to problems at test time and answer them, with a record of each.

For each problem the model writes practice examples, weights them, takes gradient steps on them in an adapter, and
answers with the adapted weights. No gold solution and no verifier is used. Problems are adapted side by side as a
stack, each with its own adapter; the base and the checkpoint are never changed. An update that cannot be trusted (not
finite, exploding, or without a valid example) is discarded: that problem falls back on the unadapted weights, and its
record says so.

Legend: B problems, m examples of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mass.adaptation import scoring, synthesis
from mass.adaptation.batch import Practice, practice_of, trust_of, valid_mask
from mass.adaptation.checkpoint import MetaState
from mass.config import AdaptConfig, SamplingConfig, config_hash, to_dict
from mass.lm import LM
from mass.lm.lora import adapter_hash, pick, repeat
from mass.lm.prompts import to_json
from mass.metagrad.outer import inner_loop
from mass.seeds import derive
from mass.timing import Clock
from mass.types import Adaptation, Groups, Params, Sample
from mass.verify import final_answer


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


@torch.no_grad()
def adapt_stack(
    lm: LM,
    state: MetaState,
    problems: Sequence[str],
    groups: Groups,
    config: AdaptConfig,
    clock: Clock,
    *,
    losses: bool = True,
) -> Adapted:
    """Score the examples, weight them, and take K steps on them from theta, for B problems side by side.

    `losses` says whether the examples' losses before and after are measured, which takes two forward passes.
    """
    start = repeat(state.theta, len(problems))
    practice = practice_of(lm, groups)
    if practice is None or config.inner.steps == 0:
        reason = "no valid example" if practice is None else ""
        return Adapted(start, groups, (reason,) * len(problems), (0.0,) * len(problems))
    valid = valid_mask(groups, lm.device)
    with clock.stage("scoring"):
        scores = torch.zeros(valid.shape, dtype=lm.adapter_dtype, device=lm.device)
        if config.scoring.normalise != "uniform":
            rows = practice.targets(problems, groups)
            scores = practice.spread(scoring.score(lm, state.eta, *rows, config.inner.micro_batch), *valid.shape)
        trust = trust_of(groups, config.synthesis.verify, scores)
        weights = scoring.normalise(scores, valid, config.scoring.normalise, trust)
    with clock.stage("inner loop"):
        # A learned rate may overflow in exp; an infinite one would be an error of `adapt` instead of a bad update.
        rates = {name: t.exp().clamp_max(torch.finfo(t.dtype).max) for name, t in state.log_rates.items()}
        size = practice.rows_per_pass(config.inner.micro_batch)
        stack = inner_loop(practice.losses, config.inner, size, practice.spare_gb(size))(
            start, practice.pick(weights), rates
        )
        norms = _update_norms(stack, start)
        fallbacks = [
            _why_fall_back(n, bool(v), config.inner.max_update_norm) for n, v in zip(norms, valid.any(1), strict=True)
        ]
        # `where` and not a product: 0 times an update that is not finite would be NaN.
        keep = torch.tensor([not reason for reason in fallbacks], device=lm.device)
        stack = {n: torch.where(keep.view(-1, 1, 1), t, start[n]) for n, t in stack.items()}
    columns = {"score": practice.pick(scores), "weight": practice.pick(weights)}
    if losses:
        with clock.stage("practice losses"):
            columns |= {"loss_before": practice.measured(start, size), "loss_after": practice.measured(stack, size)}
    groups = _annotate(groups, practice, columns)
    return Adapted(stack, groups, tuple(fallbacks), tuple(norms))


def _update_norms(stack: Params, start: Params) -> list[float]:
    """Return ‖θ_K - θ_0‖ / ‖θ_0‖ of each adapter, in float64."""

    def squares(tensors: list[Tensor]) -> Tensor:
        return torch.stack([t.double().square().flatten(1).sum(1) for t in tensors]).sum(0)

    change = squares([stack[name] - start[name] for name in stack])
    return (change / squares([start[name] for name in stack]).clamp_min(1e-300)).sqrt().tolist()


def _why_fall_back(norm: float, any_valid: bool, limit: float) -> str:
    """Return the reason to discard an update; empty for one that can be trusted."""
    if not any_valid:
        return "no valid example"
    if norm != norm or norm == float("inf"):
        return "non-finite update"
    return "exploding update" if norm > limit else ""


def _annotate(groups: Groups, practice: Practice, columns: Mapping[str, Tensor]) -> Groups:
    """Return the examples with the fields that `columns` names filled in, a value for each row of the practice."""
    places = zip(practice.owners.tolist(), practice.places.tolist(), strict=True)
    values = zip(*[column.tolist() for column in columns.values()], strict=True)
    found = {place: dict(zip(columns, row, strict=True)) for place, row in zip(places, values, strict=True)}
    return [
        tuple(dataclasses.replace(e, **found.get((b, j), {})) for j, e in enumerate(group))
        for b, group in enumerate(groups)
    ]


def practise(
    lm: LM,
    state: MetaState,
    problems: Sequence[str],
    config: AdaptConfig,
    seeds: Sequence[int],
    clock: Clock | None = None,
    replay: Groups | None = None,
    *,
    losses: bool = True,
) -> tuple[list[Adaptation], Adapted]:
    """Write practice for each problem and adapt to it, without answering: the records have no texts and no verdicts.

    Args:
        seeds: one for each problem.
        clock: measures the stages; a new one by default.
        replay: practice examples to use instead of sampling new ones.
        losses: whether to measure the losses of practice before and after.
    """
    clock = clock or Clock()
    if replay:
        with clock.stage("synthesis"):  # of no length: records of all adaptations have the stage
            groups = replay
    else:
        groups = synthesis.practice_for(lm, problems, config.synthesis, seeds, state.theta, clock)
    adapted = adapt_stack(lm, state, problems, groups, config, clock, losses=losses)
    description, digest = to_dict(config), config_hash(config)
    records = [
        Adaptation(
            problem=problem,
            model=lm.name,
            seed=seeds[b],
            config=description,
            config_hash=digest,
            kind=lm.kind,
            prompts=to_json({lm.kind: lm.prompts})[lm.kind],
            stacked=len(problems),
            examples=adapted.groups[b],
            fallback=adapted.fallbacks[b],
            adapter_hash=adapter_hash(pick(adapted.stack, b)),
            update_norm=adapted.update_norms[b],
            tokens=synthesis.written_tokens(adapted.groups[b]),
            seconds=clock.shares(len(problems)),
        )
        for b, problem in enumerate(problems)
    ]
    return records, adapted


def answer_all(
    lm: LM,
    state: MetaState,
    problems: Sequence[str],
    config: AdaptConfig,
    seeds: Sequence[int],
    *,
    unadapted: bool = True,
    replay: Groups | None = None,
    losses: bool = True,
) -> tuple[list[Adaptation], Adapted]:
    """Adapt to each problem and answer it; the records carry no verdicts.

    Args:
        seeds: one for each problem.
        unadapted: True to answer with theta without the update too, for comparison. Both answers are sampled side by
            side, and the seconds of the stage "answer" are those of both.
        replay: practice examples to use instead of sampling new ones.
        losses: whether to measure the losses of practice before and after.
    """
    clock = Clock()
    records, adapted = practise(lm, state, problems, config, seeds, clock, replay, losses=losses)
    stack = adapted.stack
    if unadapted:
        # Side by side: a step of two rows takes hardly longer than one of one row, which only reads the weights.
        start = repeat(state.theta, len(problems))
        stack = {name: torch.cat([t, start[name].to(t)]) for name, t in stack.items()}
    answers_each = 1 + unadapted
    with clock.stage("answer"):
        answers = sample_answers(lm, [*problems] * answers_each, config.answer, [*seeds] * answers_each, stack)
    records = [_answered(r, sample) for r, sample in zip(records, answers[: len(problems)], strict=True)]
    if unadapted:
        plain = answers[len(problems) :]
        records = [_answered(record, sample, unadapted=True) for record, sample in zip(records, plain, strict=True)]
    seconds = clock.shares(len(problems))
    return [dataclasses.replace(record, seconds=seconds) for record in records], adapted


def sample_answers(
    lm: LM, problems: Sequence[str], config: SamplingConfig, seeds: Sequence[int], adapter: Params
) -> list[Sample]:
    """Sample one answer to each problem, under a stack of adapters or one adapter for all.

    A seed gives the same random numbers with and without adaptation, so that two answers differ by the weights alone.
    """
    prompts = [lm.solve_prompt(problem) for problem in problems]
    return lm.sample(prompts, config, [derive(seed, "answer") for seed in seeds], adapter)


def _answered(record: Adaptation, sample: Sample, *, unadapted: bool = False) -> Adaptation:
    """Return the record with an answer filled in, as the adapted or as the unadapted one."""
    text = sample.text.strip()
    if unadapted:
        tokens = {**record.tokens, "unadapted answer": len(sample.tokens)}
        return dataclasses.replace(record, unadapted_text=text, tokens=tokens)
    tokens = {**record.tokens, "answer": len(sample.tokens)}
    return dataclasses.replace(record, text=text, answer=final_answer(sample.text), tokens=tokens)
