from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mass.errors import ConfigError, MassError, ShapeError
from mass.training.policy import clipped_policy_loss, group_advantages, kl_to_reference, lowest_for_rejected

NAN, INF = float("nan"), float("inf")


@st.composite
def groups(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rewards [G, k], often tied, and which are valid."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    reward = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-10, 10, allow_subnormal=False))
    rewards = draw(st.lists(reward, min_size=rows * columns, max_size=rows * columns))
    valid = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    shape = (rows, columns)
    return torch.tensor(rewards, dtype=torch.float64).view(shape), torch.tensor(valid).view(shape)


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities [N, T] now and when sampled, advantages [N], mask."""
    seed = draw(st.integers(0, 2**31))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    generator = torch.Generator().manual_seed(seed)
    now = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    old = now + 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    advantages = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    return now, old, advantages, torch.rand(shape, generator=generator) < 0.7


quick = settings(max_examples=60, deadline=None)


class TestGroupAdvantages:
    def test_by_hand(self) -> None:
        rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 0.0, 0.0, 0.0]])
        expected = torch.tensor([[1.0, -1.0, -1.0, 1.0], [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]])
        assert torch.allclose(group_advantages(rewards, eps=0.0), expected)
        centred = torch.tensor([[0.5, -0.5, -0.5, 0.5], [2.25, -0.75, -0.75, -0.75]])
        assert torch.allclose(group_advantages(rewards, scale=False), centred)
        assert torch.allclose(group_advantages(rewards, eps=1.0)[0], centred[0] / 1.5)

    @quick
    @given(groups(), st.booleans())
    def test_sum_to_zero_and_only_valid_ones_count(self, group: tuple[Tensor, Tensor], scale: bool) -> None:
        rewards, valid = group
        advantages = group_advantages(rewards, valid, scale=scale)
        assert torch.allclose(advantages.sum(1), torch.zeros(len(rewards)).double(), atol=1e-9)
        assert bool((advantages[~valid] == 0).all())
        assert torch.equal(advantages, group_advantages(rewards.masked_fill(~valid, NAN), valid, scale=scale))
        for row in range(len(rewards)):
            alone = group_advantages(rewards[row][valid[row]][None], scale=scale) if valid[row].any() else None
            if alone is not None:
                assert torch.allclose(advantages[row][valid[row]], alone[0], atol=1e-9)

    @quick
    @given(groups(), st.randoms(use_true_random=False))
    def test_permutation_equivariant(self, group: tuple[Tensor, Tensor], random) -> None:
        rewards, valid = group
        order = list(range(rewards.shape[1]))
        random.shuffle(order)
        expected = group_advantages(rewards, valid)[:, order]
        assert torch.allclose(group_advantages(rewards[:, order], valid[:, order]), expected, atol=1e-6)

    @quick
    @given(groups())
    def test_higher_reward_is_higher_advantage_and_unit_spread(self, group: tuple[Tensor, Tensor]) -> None:
        rewards, _ = group
        advantages = group_advantages(rewards, eps=0.0)
        assert bool((advantages.gather(1, rewards.argsort(1)).diff(dim=1) >= -1e-12).all())
        spread = rewards.amax(1) - rewards.amin(1) > 1e-3
        assert torch.allclose(advantages[spread].square().mean(1), torch.ones(int(spread.sum())).double())

    @pytest.mark.parametrize("value", [0.1, 1.0, 1e6, -3.3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equal_rewards_are_exactly_zero(self, value: float, dtype: torch.dtype) -> None:
        rewards = torch.full((2, 7), value, dtype=dtype)
        valid = torch.tensor([[True] * 7, [True, False] * 3 + [True]])
        for scale in (True, False):
            assert not group_advantages(rewards, valid, scale=scale).any()

    def test_one_valid_sample_says_nothing(self) -> None:
        rewards = torch.tensor([[5.0, 1.0, 2.0]])
        assert not group_advantages(rewards, torch.tensor([[True, False, False]])).any()
        assert not group_advantages(rewards, torch.zeros(1, 3, dtype=torch.bool)).any()

    def test_a_spread_that_underflows_is_none(self) -> None:
        assert not group_advantages(torch.tensor([[0.0, 1e-200]], dtype=torch.float64), eps=0.0).any()
        assert not group_advantages(torch.tensor([[0.0, 1e-30]]), eps=0.0).any()

    def test_no_gradient(self) -> None:
        assert not group_advantages(torch.rand(2, 3, requires_grad=True)).requires_grad


class TestLowestForRejected:
    def test_by_hand(self) -> None:
        rewards = torch.tensor([[3.0, NAN, 1.0], [NAN, INF, 7.0], [2.0, -4.0, 5.0]])
        valid = torch.tensor([[True, False, True], [False] * 3, [True] * 3])
        expected = torch.tensor([[3.0, 1.0, 1.0], [0.0, 0.0, 0.0], [2.0, -4.0, 5.0]])
        assert torch.equal(lowest_for_rejected(rewards, valid), expected)

    @quick
    @given(groups())
    def test_rejected_never_beat_a_valid_one(self, group: tuple[Tensor, Tensor]) -> None:
        rewards, valid = group
        filled = lowest_for_rejected(rewards, valid)
        assert torch.equal(filled[valid], rewards[valid])
        for row in range(len(rewards)):
            lowest = rewards[row][valid[row]].min() if valid[row].any() else torch.tensor(0.0).double()
            assert bool((filled[row][~valid[row]] == lowest).all())


class TestClippedPolicyLoss:
    def test_by_hand(self) -> None:
        """Ratios 2 and 0.5 with A = +1 and A = -1: gains are cut at 1.2, losses at 0.8, and nothing else is."""
        ratio = torch.tensor([[2.0, 0.5], [2.0, 0.5]])
        loss = clipped_policy_loss(ratio.log(), torch.zeros(2, 2), torch.tensor([1.0, -1.0]), torch.ones(2, 2).bool())
        assert float(loss) == pytest.approx(-((1.2 + 0.5) / 2 + (-2.0 - 0.8) / 2) / 2)

    def test_reductions(self) -> None:
        zeros, mask = torch.zeros(2, 4), torch.tensor([[True, False, False, False], [True, True, True, False]])
        advantages = torch.tensor([2.0, 10.0])
        assert float(clipped_policy_loss(zeros, zeros, advantages, mask)) == pytest.approx(-6.0)
        by_token = clipped_policy_loss(zeros, zeros, advantages, mask, reduction="token", normaliser=8.0)
        assert float(by_token) == pytest.approx(-(2.0 + 30.0) / 8)

    def test_a_sequence_without_tokens_counts_as_zero(self) -> None:
        mask = torch.tensor([[True, True], [False, False]])
        loss = clipped_policy_loss(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([1.0, 1.0]), mask)
        assert float(loss) == pytest.approx(-0.5)

    @quick
    @given(rollouts(), st.sampled_from([{}, {"reduction": "token", "normaliser": 3.0}]))
    def test_ratio_one_is_the_plain_policy_gradient(self, rollout: tuple[Tensor, ...], how: dict) -> None:
        now, _, advantages, mask = rollout
        a, b = now.clone().requires_grad_(), now.clone().requires_grad_()
        loss = clipped_policy_loss(a, a.detach(), advantages, mask, **how)
        (got,) = torch.autograd.grad(loss, a)
        share = mask / 3.0 if how else mask / mask.sum(1, keepdim=True).clamp(min=1) / len(now)
        (expected,) = torch.autograd.grad(-(advantages[:, None] * b * share).sum(), b)
        assert torch.allclose(got, expected, atol=1e-12)

    @quick
    @given(rollouts(), st.sampled_from([0.0, NAN, INF, -INF]), st.sampled_from([0.0, NAN, -INF]))
    def test_masked_tokens_change_nothing(self, rollout: tuple[Tensor, ...], junk: float, other: float) -> None:
        now, old, advantages, mask = rollout
        results: list[tuple[Tensor, ...]] = []
        for first, second in ((now, old), (now.masked_fill(~mask, junk), old.masked_fill(~mask, other))):
            leaf = first.clone().requires_grad_()
            loss = clipped_policy_loss(leaf, second, advantages, mask) + kl_to_reference(leaf, second, mask)
            results.append((loss, *torch.autograd.grad(loss, leaf)))
        assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
        assert not results[1][1][~mask].any()

    @quick
    @given(rollouts(), st.floats(0.05, 0.5))
    def test_clipping_stops_the_gradient(self, rollout: tuple[Tensor, ...], clip: float) -> None:
        now, old, advantages, mask = rollout
        leaf = now.clone().requires_grad_()
        (grad,) = torch.autograd.grad(clipped_policy_loss(leaf, old, advantages, mask, clip=clip), leaf)
        ratio, gain = (now - old).exp(), advantages[:, None].expand_as(now)
        stopped = ((ratio > 1 + clip) & (gain > 0)) | ((ratio < 1 - clip) & (gain < 0))
        assert not grad[stopped & mask].any()
        assert bool((grad[~stopped & mask] != 0).all())

    def test_gradient_reaches_logprobs_alone(self) -> None:
        leaves = [torch.zeros(2, 2, requires_grad=True) for _ in range(2)] + [torch.ones(2, requires_grad=True)]
        clipped_policy_loss(leaves[0], leaves[1], leaves[2], torch.ones(2, 2).bool()).backward()
        assert [leaf.grad is not None for leaf in leaves] == [True, False, False]


class TestKlToReference:
    @quick
    @given(rollouts())
    def test_never_negative_and_zero_at_the_reference(self, rollout: tuple[Tensor, ...]) -> None:
        now, reference, _, mask = rollout
        assert float(kl_to_reference(now, reference, mask)) >= 0
        assert float(kl_to_reference(now, now, mask)) == 0
        d = (reference - now)[mask]
        expected = float((d.exp() - 1 - d).mean()) if mask.any() else 0.0
        assert float(kl_to_reference(now, reference, mask)) == pytest.approx(expected, abs=1e-12)

    def test_expectation_is_the_divergence(self) -> None:
        """Over all outcomes, weighted by their probability."""
        p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
        one = torch.ones(1, 1, dtype=torch.bool)
        mean = sum(p[i] * kl_to_reference(p[i].log().view(1, 1), q[i].log().view(1, 1), one) for i in range(3))
        assert float(mean) == pytest.approx(float((p * (p / q).log()).sum()))


LP, MASK = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
BAD: dict[str, tuple[Callable[[], object], type[MassError], str]] = {
    "flat rewards": (lambda: group_advantages(torch.ones(3)), ShapeError, r"\[3\]"),
    "integer rewards": (lambda: group_advantages(torch.ones(2, 3).long()), ShapeError, "floating-point"),
    "no samples": (lambda: group_advantages(torch.ones(2, 0)), ShapeError, r"\[2, 0\]"),
    "other valid": (lambda: group_advantages(LP, MASK[:, :2]), ShapeError, r"\[2, 2\].*\[2, 3\]"),
    "valid of numbers": (lambda: lowest_for_rejected(LP, LP), ShapeError, "expected bool"),
    "other mask": (lambda: kl_to_reference(LP, LP, MASK[:1]), ShapeError, r"\[1, 3\].*\[2, 3\]"),
    "other old": (lambda: clipped_policy_loss(LP, LP[:, :2], LP[:, 0], MASK), ShapeError, "old_logprobs"),
    "mask of numbers": (lambda: clipped_policy_loss(LP, LP, LP[:, 0], LP), ShapeError, "expected bool"),
    "token advantages": (lambda: clipped_policy_loss(LP, LP, LP, MASK), ShapeError, r"expected \[N\] = \[2\]"),
    "no sequences": (lambda: kl_to_reference(LP[:0], LP[:0], MASK[:0]), ShapeError, "at least 1"),
    "clip": (lambda: clipped_policy_loss(LP, LP, LP[:, 0], MASK, clip=-0.1), ConfigError, "clip = -0.1"),
    "no normaliser": (lambda: clipped_policy_loss(LP, LP, LP[:, 0], MASK, reduction="token"), ConfigError, "None"),
    "normaliser": (lambda: clipped_policy_loss(LP, LP, LP[:, 0], MASK, normaliser=2.0), ConfigError, "None with"),
    "zero normaliser": (
        lambda: clipped_policy_loss(LP, LP, LP[:, 0], MASK, reduction="token", normaliser=0.0),
        ConfigError,
        "positive",
    ),
    "reduction": (lambda: clipped_policy_loss(LP, LP, LP[:, 0], MASK, reduction="mean"), ConfigError, "'mean'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_raises_one_line(name: str) -> None:
    call, kind, text = BAD[name]
    with pytest.raises(kind, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
