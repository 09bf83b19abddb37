"""Compute the gradients of one outer step for a stack of problems: the method, from top to bottom.

    y_i  ~ pi_theta(. | synthesis prompt of T)                    synthesis
    w    = normalise(s_eta(T, y_i))                               scoring
    theta_K = K steps of U on sum_i w_i l_i, from theta           inner loop
    L    = outer loss of theta_K on T                             gold, or verified samples
    u_i  = dL/ds_i                                                attribution
    dL/deta, gamma dL/dtheta, dL/d log rates                      exact, through the inner loop
    -u_i, less its group's mean, rewards the generator for y_i    policy gradient

Source: arXiv 2603.03524. Nothing here changes a parameter: `trainer` sums the gradients and takes the step.

Legend: B tasks of the stack, m examples of a task, N valid examples of the stack, k solutions of a task.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mass import verify
from mass.adaptation import scoring, synthesis
from mass.adaptation.batch import Practice, practice_of, trust_of, valid_mask
from mass.lm.lora import repeat
from mass.lm.model import Row
from mass.metagrad.outer import (
    MetaGradients,
    for_tasks,
    inner_loop,
    meta_gradients,
    outer_gradient,
    problem_norms,
    shortening,
)
from mass.timing import Clock
from mass.training import outer, policy
from mass.training.gradients import Gradients, Measured, Stack
from mass.training.targets import outer_parts
from mass.types import Groups, Params


def mass_gradients(stack: Stack) -> Gradients:
    """Return the gradients of one step of MASS: `mass` with the verifier's loss, `mass-gold` with the gold one."""
    lm, state, config = stack.lm, stack.state, stack.config
    clock, measured = Clock(), Measured()
    asked, there = config.adapt.synthesis, lm.engine is not None
    # Samples of a sampling server come from a policy that rounds differently, so their log-probabilities are kept.
    groups = synthesis.practice_for(lm, stack.problems, asked, stack.seeds, state.theta, clock, with_logprobs=there)
    measured.add_practice(groups)
    with clock.stage("generator"):
        writes = config.adapt.synthesis.writer == "theta" and config.adapt.synthesis.written > 0
        anchored = config.train.generator_kl and writes
        anchor = _anchor_gradient(stack, groups, measured) if anchored else {}
    practice = practice_of(lm, groups)
    if practice is None:
        return _without_practice(stack, anchor, clock, measured)
    with clock.stage("scoring"):
        eta = {name: t.detach().requires_grad_() for name, t in state.eta.items()}
        rows = practice.targets(stack.problems, groups)
        with torch.set_grad_enabled(not scoring.has_lora(eta)):  # a LoRA's graphs of all rows would take much memory
            scores_N = scoring.score(lm, eta, *rows, config.adapt.inner.micro_batch)
    through = _through_the_inner_loop(stack, groups, practice, scores_N.detach(), clock, measured)
    with clock.stage("scoring"):
        # The inner loop gives dL/ds; the chain rule through the scorer, s(eta), then gives dL/deta.
        cotangent = through.scores
        if config.train.scorer_verdicts:
            scores = practice.spread(scores_N.detach(), *cotangent.shape)
            cotangent = cotangent + config.train.scorer_verdicts * _verdict_gradient(stack, groups, scores, measured)
        if scores_N.requires_grad:
            grads = torch.autograd.grad(scores_N, list(eta.values()), practice.pick(cotangent), materialize_grads=True)
            eta_gradient = dict(zip(eta, grads, strict=True))
        else:
            cotangent_N = practice.pick(cotangent)
            eta_gradient = scoring.gradient(lm, eta, *rows, cotangent_N, config.adapt.inner.micro_batch)
    theta_gradient = {name: config.train.gamma * g + anchor.get(name, 0.0) for name, g in through.theta.items()}
    generator, squares = {}, (0.0, 0)
    if config.train.generator and writes:
        with clock.stage("generator"):
            generator, squares = _generator_gradient(stack, groups, through.scores)
    return Gradients(theta_gradient, generator, squares, eta_gradient, through.log_rates, measured, clock.seconds)


def _without_practice(stack: Stack, anchor: Params, clock: Clock, measured: Measured) -> Gradients:
    """Return the gradients where no example of any task is valid: the outer loss of theta itself trains the solver."""
    copies = repeat(stack.state.theta, len(stack.tasks))  # one for each task, to clip each task's gradient
    loss, grads = outer_gradient(lambda params: outer_parts(stack, params, clock, measured), copies)
    limit = stack.config.train.problem_limit
    norms = problem_norms(grads)
    measured.add(outer_loss=loss, problem_norm=float(norms.sum()), clipped=float((norms > limit).sum()))
    if limit < math.inf:
        grads = [for_tasks(shortening(norms, limit), g) for g in grads]
    gamma = stack.config.train.gamma
    return Gradients(
        {name: gamma * g.sum(0) + anchor.get(name, 0.0) for name, g in zip(copies, grads, strict=True)},
        reward_squares=(0.0, len(stack.tasks) * stack.config.adapt.synthesis.written),
        measured=measured,
        seconds=clock.seconds,
    )


def _through_the_inner_loop(
    stack: Stack, groups: Groups, practice: Practice, scores_N: Tensor, clock: Clock, measured: Measured
) -> MetaGradients:
    """Adapt to the practice, differentiate the outer loss back through it, and measure both."""
    config = stack.config
    valid = valid_mask(groups, stack.lm.device)
    scores = practice.spread(scores_N, *valid.shape)
    trust = trust_of(groups, config.adapt.synthesis.verify, scores)
    losses = _FirstLosses(practice)
    kind = config.adapt.scoring.normalise
    size = practice.rows_per_pass(config.adapt.inner.micro_batch)
    with clock.stage("inner loop and meta-gradient", without="outer"):
        gradients = meta_gradients(
            inner_loop(losses, config.adapt.inner, size, practice.spare_gb(size)),
            lambda s, alive: practice.pick(scoring.normalise(s, valid & alive[:, None], kind, trust)),
            scores,
            stack.state.theta,
            stack.state.log_rates,
            lambda adapted: outer_parts(stack, adapted, clock, measured),
            config.train.problem_limit,
        )
    weights = scoring.normalise(scores, valid, kind, trust)
    count = valid.sum(1).clamp_min(1)
    if losses.seen is not None:
        measured.add(**_practice_loss(weights, practice.spread(losses.seen, *valid.shape)))
    measured.add(
        outer_loss=gradients.outer_loss,
        weight=float((weights.sum(1) / count).sum()),
        heaviest_weight=float(weights.max(1).values.sum()),
        attribution=float((gradients.scores.abs().sum(1) / count).sum()),
        not_finite=float((~gradients.finite).sum()),
        problem_norm=float(gradients.norms.sum()),
        clipped=float((gradients.norms > config.train.problem_limit).sum()),
    )
    return gradients


class _FirstLosses:
    """The practice losses, which record the first value of each example: the loss before the first inner step.

    The inner loop computes these losses anyway, so measuring them needs no pass of its own.
    """

    def __init__(self, practice: Practice) -> None:
        self._practice = practice
        self.seen: Tensor | None = None
        """First losses [N]; NaN for an example that was never evaluated."""

    def __call__(self, params: Params, index: Tensor | None = None) -> Tensor:
        values = self._practice.losses(params, index)
        if self.seen is None:
            self.seen = torch.full((len(self._practice),), float("nan"), dtype=values.dtype, device=values.device)
        places = slice(None) if index is None else index
        self.seen[places] = torch.where(self.seen[places].isnan(), values.detach(), self.seen[places])
        return values


def _practice_loss(weights: Float[Tensor, "B m"], losses: Float[Tensor, "B m"]) -> dict[str, float]:
    """Return the sum of the weighted mean loss over tasks with practice, and the number of such tasks."""
    total = weights.sum(1)
    some = total > 0
    means = (weights * losses).sum(1)[some] / total[some]
    return {"practice_loss": float(means.sum()), "practised": float(some.sum())}


def _verdict_gradient(
    stack: Stack, groups: Groups, scores: Float[Tensor, "B m"], measured: Measured
) -> Float[Tensor, "B m"]:
    """Return the gradient of `scoring.verdict_losses` in the scores of the attempts at the target.

    Only attempts can be verified; the practice problems that the model invents have no verifier.
    """
    places = [(b, j) for b, group in enumerate(groups) for j, e in enumerate(group) if e.attempt and e.valid]
    verdicts = verify.check_all([(stack.tasks[b], groups[b][j].solution) for b, j in places])
    right, judged = torch.zeros_like(scores, dtype=torch.bool), torch.zeros_like(scores, dtype=torch.bool)
    for place, verdict in zip(places, verdicts, strict=True):
        judged[place], right[place] = verdict.correct is not None, verdict.correct is True
    weights = scoring.normalise(scores, judged)
    count = judged.sum(1)
    some = count > 0
    measured.add(
        attempts_right=float((right.sum(1)[some] / count[some]).sum()),
        weight_right=float((weights * right).sum()),
    )
    with torch.enable_grad():
        leaf = scores.detach().requires_grad_()
        return torch.autograd.grad(scoring.verdict_losses(leaf, right, judged).sum(), leaf)[0]


def _generator_gradient(stack: Stack, groups: Groups, attribution: Tensor) -> tuple[Params, tuple[float, int]]:
    """Return the gradient of the policy loss on the tokens of the practice problems, and the squares of its rewards.

    The reward of an example is -u_i minus the mean of its group. At a ratio of 1 the gradient is linear in the rewards,
    so the whole batch can be scaled afterwards, and the result does not depend on how it is cut into stacks.
    """
    lm, config = stack.lm, stack.config
    m = config.adapt.synthesis.written
    # A rejected example has no attribution; the lowest reward of its group teaches the generator to avoid it.
    rewards = policy.lowest_for_rejected(-attribution[:, :m], valid_mask(groups, lm.device)[:, :m])
    # In units of the largest, so that attributions, which may be very small, are not lost in rounding.
    unit = rewards.abs().max().clamp_min(1e-30)
    advantages = policy.group_advantages(rewards / unit, scale=False).flatten()
    rows = _written_rows(stack, groups)
    sampled = [e.logprobs for group in groups for e in group if not e.attempt]
    theta = stack.state.theta
    parts = outer.policy_losses
    _, grads = outer_gradient(
        lambda params: (
            part / m for part in parts(lm, rows, advantages, params, config.outer.micro_batch, sampled=sampled)
        ),
        theta,
    )
    squares = float((advantages.double() * unit).square().sum())
    return {name: unit * g for name, g in zip(theta, grads, strict=True)}, (squares, len(advantages))


def _anchor_gradient(stack: Stack, groups: Groups, measured: Measured) -> Params:
    """Return the gradient of the generator's KL divergence from the base, on all it wrote, rejected examples included.

    The outer loss sees only the adapted weights. Only this term keeps theta, which writes the practice, able to write
    (docs/adr/0006).
    """
    config, theta = stack.config, stack.state.theta
    parts = outer.kl_of_rows
    value, grads = outer_gradient(
        lambda params: parts(stack.lm, _written_rows(stack, groups), params, config.outer.micro_batch), theta
    )
    m = config.adapt.synthesis.written
    measured.add(generator_KL=value / m)
    return {name: config.train.generator_kl / m * g for name, g in zip(theta, grads, strict=True)}


def _written_rows(stack: Stack, groups: Groups) -> list[Row]:
    """Return synthesis prompt and written tokens of each practice problem; attempts are not the generator's work."""
    prompts = [stack.lm.synthesis_prompt(problem) for problem in stack.problems]
    pairs = zip(prompts, groups, strict=True)
    return [(prompt, list(e.tokens)) for prompt, group in pairs for e in group if not e.attempt]
