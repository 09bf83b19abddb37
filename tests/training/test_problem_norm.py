"""Clipping each problem's meta-gradient: what a steep one adds is what it adds alone, shortened to the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mass.config import TrainConfig
from mass.errors import ConfigError
from mass.metagrad.outer import MetaGradients, meta_gradients
from mass.types import Params

STEEP = torch.tensor([1.0, 50.0, 0.1]).double()
"""How much of a change of the start reaches the outer loss, by problem."""
START: Params = {"a": torch.tensor([[0.3, -0.2]]).double()}
RATES: Params = {"a": torch.tensor(-1.0).double()}
SCORES = torch.tensor([[0.1, 0.4], [0.0, -0.3], [0.2, 0.2]]).double()


def inner(stack: Params, weights: Tensor, rates: Params) -> Params:
    pushed = weights.view(len(STEEP), -1).mul(torch.tensor([1.0, -2.0]).double()).sum(1)
    return {"a": STEEP.view(-1, 1, 1) * stack["a"].sin() + rates["a"][0].view(-1, 1, 1) * pushed.view(-1, 1, 1)}


def gradients(max_norm: float = math.inf, of: Sequence[int] = (0, 1, 2)) -> MetaGradients:
    chosen = torch.zeros(len(STEEP)).double()
    chosen[list(of)] = 1.0

    def outer(adapted: Params) -> list[Tensor]:
        return [(chosen.view(-1, 1, 1) * adapted["a"].square()).sum()]

    return meta_gradients(inner, lambda s, _: s.softmax(1), SCORES, START, RATES, outer, max_norm)


def test_a_limit_shortens_the_steep_problem_alone() -> None:
    whole, limit = gradients(), 2.0
    assert whole.norms[1] > limit > max(whole.norms[0], whole.norms[2])
    clipped = gradients(limit)
    torch.testing.assert_close(clipped.norms, whole.norms)
    factor = float(limit / whole.norms[1])
    steep, others = gradients(of=[1]), gradients(of=[0, 2])
    torch.testing.assert_close(clipped.theta["a"], factor * steep.theta["a"] + others.theta["a"])
    torch.testing.assert_close(clipped.scores, factor * steep.scores + others.scores)
    torch.testing.assert_close(clipped.log_rates["a"], factor * steep.log_rates["a"] + others.log_rates["a"])


def test_a_limit_that_none_reaches_changes_nothing() -> None:
    whole, limited = gradients(), gradients(1e6)
    assert torch.equal(whole.theta["a"], limited.theta["a"])
    assert torch.equal(whole.scores, limited.scores)


def test_a_problem_whose_gradient_is_not_finite_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "STEEP", torch.tensor([1.0, 1e100, 0.1], dtype=torch.float64))
    limited = gradients(2.0)
    assert limited.norms[1] == math.inf
    monkeypatch.setitem(globals(), "STEEP", torch.tensor([1.0, 50.0, 0.1]).double())
    torch.testing.assert_close(limited.theta["a"], gradients(of=[0, 2]).theta["a"])


def test_a_limit_is_above_zero() -> None:
    with pytest.raises(ConfigError, match="max_problem_norm"):
        TrainConfig(max_problem_norm=0.0)
