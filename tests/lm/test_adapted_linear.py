"""The closed form of an adapted linear layer against autograd's derivatives, and where it is not used."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from mass.config import LoraConfig
from mass.errors import ConfigError
from mass.lm.lora import LoraSites, Params, add_delta
from mass.lm.lora_linear import add_delta_in_closed_form

N, T, IN, OUT, R = 4, 3, 5, 6, 2
SCALING = 0.7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(stack: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight, x, A, B; the last three require grad."""
    lead = () if stack is None else (stack,)
    free = draw(N, T, IN, seed=1), draw(*lead, R, IN, seed=2), draw(*lead, OUT, R, seed=3)
    return draw(OUT, IN), *(t.requires_grad_() for t in free)


def closed(weight: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return add_delta_in_closed_form(x @ weight.T, x, weight, a, b, SCALING)


def by_autograd(weight: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return add_delta(x @ weight.T, x, a, b, SCALING)


def derivatives(
    function: Callable[..., Tensor], stack: int | None, free: tuple[int, ...] = (0, 1, 2)
) -> list[Tensor | None]:
    """The gradient of a scalar for those of (x, A, B) that are `free`, and that of a product with the gradient."""
    weight, *rest = operands(stack)
    rest = [t if i in free else t.detach() for i, t in enumerate(rest)]
    inputs = [rest[i] for i in free]
    loss = (function(weight, *rest) * draw(N, T, OUT, seed=4)).sin().sum()
    grads = torch.autograd.grad(loss, inputs, create_graph=True)
    along = sum((g * draw(*g.shape, seed=5 + i)).sum() for i, g in enumerate(grads))
    assert isinstance(along, Tensor)
    return [*(g.detach() for g in grads), *torch.autograd.grad(along, inputs, allow_unused=True)]


@pytest.mark.parametrize("free", [c for n in (1, 2, 3) for c in itertools.combinations(range(3), n)])
@pytest.mark.parametrize("stack", [None, 1, 2, 4])
def test_first_and_second_derivatives_are_those_of_autograd(stack: int | None, free: tuple[int, ...]) -> None:
    for got, expected in zip(derivatives(closed, stack, free), derivatives(by_autograd, stack, free), strict=True):
        assert got is not None
        assert expected is not None
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("stack", [None, 2])
def test_against_differences(stack: int | None) -> None:
    weight, *rest = operands(stack)
    assert gradcheck(lambda *free: closed(weight, *free), rest)
    assert gradgradcheck(lambda *free: closed(weight, *free).sin(), rest)


def test_a_product_with_one_part_of_the_gradient_alone() -> None:
    for part in range(3):
        found: list[list[Tensor | None]] = []
        for function in (closed, by_autograd):
            weight, *free = operands(2)
            grads = torch.autograd.grad(function(weight, *free).sin().sum(), free, create_graph=True)
            found.append(list(torch.autograd.grad(grads[part].square().sum(), free, allow_unused=True)))
        for got, expected in zip(*found, strict=True):
            torch.testing.assert_close(got, expected)


def test_a_third_derivative_is_refused() -> None:
    weight, *free = operands(None)
    first = torch.autograd.grad(closed(weight, *free).sin().sum(), free, create_graph=True)
    second = torch.autograd.grad(first[1].square().sum(), free, create_graph=True)
    with pytest.raises(ConfigError, match=r"differentiated three times.*closed_form=False"):
        second[0].sum().backward()


# ------------------------------------------------------------------------------- in a model


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(IN, IN), nn.Tanh(), nn.Linear(IN, OUT))
    return layers.double().requires_grad_(False)


def adapter(sites: LoraSites, stack: int | None = None) -> Params:
    lead = () if stack is None else (stack,)
    params = sites.init(0, torch.float64)
    return {n: draw(*lead, *p.shape, seed=i).requires_grad_() for i, (n, p) in enumerate(params.items())}


def product(layers: nn.Sequential, sites: LoraSites, params: Params, rows: Tensor | None = None) -> list[Tensor]:
    with sites.use(params, rows):
        loss = layers(draw(N, T, IN, seed=9)).square().sum()
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    return list(torch.autograd.grad([g.sin().sum() for g in grads], list(params.values())))


@pytest.mark.parametrize("rows", [None, torch.tensor([1, 0, 0, 1])])
@pytest.mark.parametrize("stack", [None, 1, 2])
def test_a_model_has_the_same_second_derivatives_with_and_without(stack: int | None, rows: Tensor | None) -> None:
    if stack == 1 and rows is not None:
        rows = torch.zeros_like(rows)
    found: list[list[Tensor]] = []
    for closed_form in (True, False):
        layers = model()
        sites = LoraSites(layers, LoraConfig(target_modules=["0", "2"], r=R), closed_form=closed_form)
        found.append(product(layers, sites, adapter(sites, stack), rows))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def used(change: Callable[[nn.Sequential], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many layers take the closed form after `change`."""
    calls: list[int] = []

    def counted(*operands: Any) -> Tensor:
        calls.append(1)
        return add_delta_in_closed_form(*operands)

    monkeypatch.setattr("mass.lm.lora.add_delta_in_closed_form", counted)
    layers = model()
    sites = LoraSites(layers, LoraConfig(target_modules=["0", "2"], r=R))
    change(layers)
    with sites.use(adapter(sites)):
        layers(draw(N, T, IN))
    return len(calls)


def train_a_weight(layers: nn.Sequential) -> None:
    layers[2].weight.requires_grad_()


def train_a_bias(layers: nn.Sequential) -> None:
    layers[2].bias.requires_grad_()


def hook(layers: nn.Sequential) -> None:
    layers[2].register_forward_hook(lambda _, __, output: 2 * output)


def replace_forward(layers: nn.Sequential) -> None:
    original = layers[2].forward
    layers[2].forward = lambda x: 2 * original(x)  # pyright: ignore


@pytest.mark.parametrize("change", [train_a_weight, train_a_bias, hook, replace_forward])
def test_a_layer_that_is_more_than_a_frozen_product_is_left_to_autograd(
    change: Callable[[nn.Sequential], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert used(lambda _: None, monkeypatch) == 2
    assert used(change, monkeypatch) == 1


def test_without_a_gradient_and_under_autocast_it_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        assert used(lambda _: None, monkeypatch) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert used(lambda _: None, monkeypatch) == 0


def test_the_output_is_the_same_to_the_last_bit() -> None:
    layers = model().float()
    sites = LoraSites(layers, LoraConfig(target_modules=["0", "2"], r=R))
    params = {name: p.detach().float() for name, p in adapter(sites).items()}
    with sites.use(params), torch.no_grad():
        expected = layers(draw(N, T, IN).float())
    with sites.use({name: p.requires_grad_() for name, p in params.items()}):
        assert torch.equal(layers(draw(N, T, IN).float()), expected)
