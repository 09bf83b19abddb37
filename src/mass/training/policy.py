"""Compute group-relative advantages from rewards, and the clipped policy loss, as pure functions of tensors.

A_j = (r_j - mean r) / (std r + ε) within a group of samples of one prompt; loss = -mean min(ρ A, clip(ρ) A) with the
ratio ρ = π(token) / π_old(token). The outer loss uses them for the k solutions of one task, and the generator for the m
practice examples of one task, rewarded by the negative attribution.

Legend: G groups, k samples of a group, N sequences, T tokens. Masked or invalid entries may hold any value, even NaN.

References: PPO, arXiv 1707.06347 (the clip); GRPO, arXiv 2402.03300 (the group); Dr. GRPO, arXiv 2503.20783 (no
scaling, constant normaliser); J. Schulman, "Approximating KL divergence", 2020 (k3).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mass.errors import ConfigError, ShapeError


def group_advantages(
    rewards: Float[Tensor, "G k"], valid: Bool[Tensor, "G k"] | None = None, eps: float = 1e-6, scale: bool = True
) -> Float[Tensor, "G k"]:
    """Return how much better each sample is than its group; sums to 0 in each group, and carries no gradient.

    Samples that are not `valid` (no verdict) get 0 and do not count. Groups with fewer than two valid samples, or with
    equal rewards, get 0 too, as they have nothing to compare. The variance is the mean square over the valid samples
    (divided by their number, not by one less). Keep `eps` well below the spread of rewards that may be very small, such
    as attributions. `scale=False` leaves out the division by the standard deviation. Raises ShapeError.
    """
    valid = _check_group(rewards, valid)
    kept = rewards.detach().masked_fill(~valid, 0.0)
    count = valid.sum(1, keepdim=True).clamp(min=1)
    centred = (kept - kept.sum(1, keepdim=True) / count).masked_fill(~valid, 0.0)
    # Equal rewards are detected by comparison: the rounding error of their mean, divided by ε, would look like an
    # advantage.
    high, low = kept.masked_fill(~valid, -torch.inf).amax(1), kept.masked_fill(~valid, torch.inf).amin(1)
    spread = (centred.square().sum(1, keepdim=True) / count).sqrt() + eps if scale else torch.ones_like(centred[:, :1])
    silent = (high <= low)[:, None] | (spread == 0)  # 0 where the squares underflow
    return (centred / spread.masked_fill(silent, 1.0)).masked_fill(silent, 0.0)


def lowest_for_rejected(rewards: Float[Tensor, "G k"], valid: Bool[Tensor, "G k"]) -> Float[Tensor, "G k"]:
    """Replace rewards that are not `valid` by the lowest valid one of their group, or by 0 where there is none.

    Raises ShapeError.
    """
    valid = _check_group(rewards, valid)
    lowest = rewards.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    return torch.where(valid, rewards, lowest.masked_fill(~valid.any(1, keepdim=True), 0.0))


def clipped_policy_loss(
    logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, " N"],
    mask: Bool[Tensor, "N T"],
    clip: float = 0.2,
    reduction: Literal["sequence", "token"] = "sequence",
    normaliser: float | None = None,
    weights: Float[Tensor, "N T"] | None = None,
) -> Float[Tensor, ""]:
    """Return -min(ρ A, clip(ρ, 1 - clip, 1 + clip) A), reduced over the tokens where `mask` is True.

    Gradients flow to `logprobs` alone.

    Args:
        old_logprobs: those of the policy that sampled; pass `logprobs.detach()` for fresh samples (ρ = 1, the plain
            policy gradient).
        reduction: "sequence" takes the mean over the tokens of a sequence, then over the N sequences; a sequence
            without tokens counts as 0. "token" takes the sum over all tokens, divided by the constant `normaliser`, so
            that tokens of long sequences do not count less.
        normaliser: with "token", for instance N times the token limit; None with "sequence".
        weights: factors of the tokens' terms, without gradient: `truncated_ratio` for samples of a sampling server.

    Raises ShapeError for tensors that do not fit together, ConfigError for a clip or reduction that cannot be used.
    """
    _check_tokens(
        mask, logprobs=logprobs, old_logprobs=old_logprobs, **({} if weights is None else {"weights": weights})
    )
    if advantages.shape != logprobs.shape[:1]:
        raise ShapeError(
            f"advantages have shape {_shape(advantages)}, expected [N] = [{len(logprobs)}], one a sequence"
        )
    _check_reduction(clip, reduction, normaliser)
    ratio = (logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0).exp()
    gain = advantages.detach()[:, None]
    objective = torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain)
    objective = (objective if weights is None else objective * weights.detach()).masked_fill(~mask, 0.0)
    if normaliser is not None:
        return -objective.sum() / normaliser
    return -(objective.sum(1) / mask.sum(1).clamp(min=1)).mean()


def truncated_ratio(
    logprobs: Float[Tensor, "N T"], sampled: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], cap: float = 2.0
) -> Float[Tensor, "N T"]:
    """Return min(π / π_sampled, cap) of each token, without gradient; 1 where `mask` is False.

    A sampling server with the same weights rounds differently from the training, so its samples come from a slightly
    different policy. This weight corrects for that, and the cap bounds its variance; the authors of the method use 2.
    Raises ShapeError.

    Reference: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"
    (https://fengyao.notion.site/off-policy-rl).
    """
    _check_tokens(mask, logprobs=logprobs, sampled=sampled)
    return (logprobs.detach() - sampled).masked_fill(~mask, 0.0).exp().clamp_max(cap)


def kl_to_reference(
    logprobs: Float[Tensor, "N T"], ref_logprobs: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]
) -> Float[Tensor, ""]:
    """Estimate KL(π ‖ reference) in nats per token from tokens sampled from π: mean of e^d - 1 - d, d = log(ref / π).

    This k3 estimator is unbiased and never negative; it is 0 without tokens. Gradients flow to `logprobs` alone. Raises
    ShapeError.
    """
    _check_tokens(mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
    difference = (ref_logprobs.detach() - logprobs).masked_fill(~mask, 0.0)
    return (difference.expm1() - difference).sum() / mask.sum().clamp(min=1)


def _check_group(rewards: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mask of valid samples, all of them for None. Raises ShapeError."""
    if rewards.ndim != 2 or rewards.shape[1] == 0 or not rewards.is_floating_point():
        raise ShapeError(
            f"rewards are {rewards.dtype} of shape {_shape(rewards)}, "
            "expected floating-point [G, k] with k of at least 1; reshape them to one row a group"
        )
    if valid is None:
        return torch.ones_like(rewards, dtype=torch.bool)
    if valid.shape != rewards.shape or valid.dtype != torch.bool:
        raise ShapeError(
            f"valid is {valid.dtype} of shape {_shape(valid)}, "
            f"expected bool {_shape(rewards)}, the shape of the rewards; mark each sample"
        )
    return valid


def _check_tokens(mask: Tensor, **logprobs: Tensor) -> None:
    for name, values in logprobs.items():
        if values.ndim != 2 or values.shape[0] == 0 or not values.is_floating_point():
            raise ShapeError(
                f"{name} are {values.dtype} of shape {_shape(values)}, "
                "expected floating-point [N, T] with N of at least 1; pad the sequences to one length"
            )
        if mask.shape != values.shape or mask.dtype != torch.bool:
            raise ShapeError(
                f"mask is {mask.dtype} of shape {_shape(mask)}, expected bool {_shape(values)}, the shape of {name}; "
                "mark each token"
            )


def _check_reduction(clip: float, reduction: str, normaliser: float | None) -> None:
    if not clip >= 0:
        raise ConfigError(f"clip = {clip}, expected at least 0; 0.2 is usual")
    if reduction not in ("sequence", "token"):
        raise ConfigError(f"reduction = {reduction!r}, expected 'sequence' or 'token'; choose one")
    if (reduction == "token") != (normaliser is not None):
        raise ConfigError(
            f"normaliser = {normaliser} with reduction = {reduction!r}, expected a number with 'token' and None with "
            "'sequence'; change one of them"
        )
    if normaliser is not None and not normaliser > 0:
        raise ConfigError(
            f"normaliser = {normaliser}, expected a positive number, for instance N times the token limit"
        )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
