"""Weights of single steps, and what is told while the steps are taken."""

from __future__ import annotations

import torch

from mass.metagrad import SGD, adapt
from mass.types import Params


def test_a_micro_batch_without_weight_is_not_computed_and_changes_nothing() -> None:
    """Weights [K, m] that give each step examples of its own cost the passes of those alone."""
    passes: list[list[int]] = []

    def losses(params: Params, index: torch.Tensor | None) -> torch.Tensor:
        chosen = torch.arange(4) if index is None else index
        passes.append(chosen.tolist())
        return (params["p"] * (chosen + 1.0)).pow(2)

    start = {"p": torch.tensor([1.0], dtype=torch.float64)}
    weights = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    with torch.no_grad():
        found = adapt(losses, start, weights, SGD(0.01), steps=2, micro_batch=2)
        assert passes == [[0, 1], [2, 3]]
        whole = adapt(losses, start, weights, SGD(0.01), steps=2)
    assert torch.equal(found["p"], whole["p"])


def test_a_loss_of_no_weight_may_be_anything_where_its_micro_batch_is_left_out() -> None:
    def losses(params: Params, index: torch.Tensor | None) -> torch.Tensor:
        assert index is not None
        return params["p"] * torch.tensor([1.0, float("nan")])[index]

    with torch.no_grad():
        found = adapt(losses, {"p": torch.ones(1)}, torch.tensor([1.0, 0.0]), SGD(0.5), micro_batch=1)
        nothing = adapt(losses, {"p": torch.ones(1)}, torch.zeros(2), SGD(0.5), micro_batch=1)
    assert found["p"].tolist() == [0.5]
    assert nothing["p"].tolist() == [1.0]


def test_the_watch_sees_the_parameters_after_each_step() -> None:
    seen: list[tuple[int, float]] = []
    adapted = adapt(
        lambda params, index: params["p"].repeat(2)[index if index is not None else slice(None)],
        {"p": torch.ones(1)},
        torch.tensor([0.5, 0.5]),
        SGD(0.25),
        steps=3,
        watch=lambda step, params: seen.append((step, params["p"].item())),
    )
    assert seen == [(1, 0.75), (2, 0.5), (3, 0.25)]
    assert adapted["p"].item() == 0.25
