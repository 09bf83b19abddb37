"""Layer checkpointing against the function itself, and against how much it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mass.errors import ConfigError
from mass.metagrad.layerwise import checkpoint, checkpointing, enabled


def doubles(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def layer(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    return x + (x @ w).tanh() @ v


LAYER = (doubles(3, 4), doubles(4, 5, seed=1), doubles(5, 4, seed=2))


# ------------------------------------------------------------------------------- exactness


def test_first_and_second_derivatives_are_those_of_the_function() -> None:
    def wrapped(*tensors: Tensor) -> Tensor:
        return checkpoint(layer, *tensors)

    assert torch.equal(wrapped(*LAYER), layer(*LAYER))
    assert gradcheck(wrapped, LAYER)
    assert gradgradcheck(wrapped, LAYER)


def test_several_outputs_of_which_some_miss_some_inputs() -> None:
    def function(a: Tensor, b: Tensor, unused: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG001
        return a * b.exp(), a.sin().sum(), b, b.argsort()

    def wrapped(*tensors: Tensor) -> tuple[Tensor, ...]:
        return checkpoint(function, *tensors)[:3]

    tensors = doubles(3), doubles(3, seed=1), doubles(2, seed=2)
    assert gradcheck(wrapped, tensors)
    assert gradgradcheck(wrapped, tensors)
    outputs = checkpoint(function, *tensors)
    assert isinstance(outputs, tuple)
    assert not outputs[3].requires_grad
    for chosen in range(3):  # cotangents of the others are undefined
        (ours,) = torch.autograd.grad(outputs[chosen].sum(), tensors[1], retain_graph=True, materialize_grads=True)
        plain = function(*tensors)[chosen].sum()
        (theirs,) = torch.autograd.grad(plain, tensors[1], allow_unused=True, materialize_grads=True)
        assert torch.equal(ours, theirs)


def test_inputs_that_are_no_differentiable_tensors() -> None:
    def function(x: Tensor, index: Tensor, keep: Tensor, frozen: Tensor, scale: float, nothing: None) -> Tensor:
        assert nothing is None
        return (x[index] * keep * frozen).pow(3) * scale

    x, frozen = doubles(4), doubles(2, seed=1).detach()
    rest = (torch.tensor([2, 0]), torch.tensor([True, False]), frozen, 0.5, None)
    assert gradgradcheck(lambda x: checkpoint(function, x, *rest), (x,))


def test_layers_in_a_row_share_an_input_and_weights() -> None:
    def deep(x: Tensor, w: Tensor, call: Callable[..., Any]) -> Tensor:
        h = x
        for _ in range(3):
            h = call(layer, h, w, w.mT)
            h = h + call(lambda h, x: (h * x).sin(), h, x)
        return h

    x, w = doubles(2, 4), doubles(4, 5, seed=1)
    results = []
    for call in (checkpoint, lambda f, *xs: f(*xs)):
        first = torch.autograd.grad(deep(x, w, call).square().sum(), (x, w), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, w))
        results.append((*first, *second))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_a_checkpoint_inside_a_checkpoint() -> None:
    x, w, v = LAYER
    assert gradgradcheck(lambda *t: checkpoint(lambda *u: checkpoint(layer, *u).sin(), *t), (x, w, v))


# ------------------------------------------------------------------------------- memory


class Saved:
    """A tensor that a graph holds; counts how many there are at once."""

    live = 0
    peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Saved.live += 1
        Saved.peak = max(Saved.peak, Saved.live)

    def __del__(self) -> None:
        Saved.live -= 1


def saved_tensors(depth: int, *, checkpointed: bool) -> tuple[int, int]:
    """(after a forward, peak of a double backward) of a chain of layers."""

    def busy(x: Tensor, w: Tensor) -> Tensor:
        for _ in range(20):
            x = (x @ w).sin()
        return x

    x, w = doubles(2, 3), doubles(3, 3, seed=1)
    Saved.live = Saved.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        h = x
        for _ in range(depth):
            h = checkpoint(busy, h, w) if checkpointed else busy(h, w)
        after = Saved.live
        (g,) = torch.autograd.grad(h.sum(), w, create_graph=True)
        g.square().sum().backward()
    return after, Saved.peak


def test_one_layers_graph_is_alive_at_a_time_in_a_double_backward_too() -> None:
    ends = {depth: saved_tensors(depth, checkpointed=True) for depth in (2, 4, 8)}
    assert {depth: after for depth, (after, _) in ends.items()} == {2: 4, 4: 8, 8: 16}, "inputs: two a layer"
    growth = (ends[8][1] - ends[4][1]) / 4
    assert growth == (ends[4][1] - ends[2][1]) / 2
    assert growth <= 6, "inputs twice and a cotangent, not the 40 of a layer's graph"
    plain = {depth: saved_tensors(depth, checkpointed=False)[1] for depth in (4, 8)}
    assert (plain[8] - plain[4]) / 4 > 80


def test_a_first_backward_keeps_nothing() -> None:
    x, w = doubles(2, 4), doubles(4, 5, seed=1)
    Saved.live = Saved.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        y = checkpoint(layer, x, w, w.mT).sum()
        assert Saved.live == 3
        y.backward()
    assert Saved.live == 0


# ------------------------------------------------------------------------------- traps


def test_a_third_derivative_raises() -> None:
    x, w, v = LAYER
    (first,) = torch.autograd.grad(checkpoint(layer, x, w, v).square().sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), w, create_graph=True)
    with pytest.raises(ConfigError, match="three times") as error:
        second.sum().backward()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("factor", [None, 2.0])
def test_a_captured_tensor_raises_instead_of_getting_no_gradient(factor: float | None) -> None:
    x, w, v = LAYER
    captured = w if factor is None else w * factor
    y = checkpoint(lambda x: layer(x, captured, v.detach()), x)
    with pytest.raises(ConfigError, match=r"shape \[4, 5\] that requires grad") as error:
        y.sum().backward()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("leave", [False, True])
def test_recomputation_has_the_autocast_state_of_the_call(leave: bool) -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return (x @ w).float().sin()

    def second(call: Callable[..., Any]) -> Tensor:
        x, w = (torch.linspace(-1, 1, 16).reshape(4, 4).requires_grad_() for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16):
            y = call(f, x, w)
            (g,) = torch.autograd.grad(y.sum(), w, create_graph=True)
            if not leave:
                return torch.autograd.grad(g.square().sum(), x)[0]
        return torch.autograd.grad(g.square().sum(), x)[0]

    assert torch.equal(second(checkpoint), second(lambda f, *xs: f(*xs)))


def test_an_input_changed_in_place_raises() -> None:
    x, w, v = LAYER
    h = x * 1
    y = checkpoint(layer, h, w, v)
    with torch.no_grad():
        h.add_(1)
    with pytest.raises(RuntimeError, match="inplace"):
        y.sum().backward()


def test_without_gradients_it_is_the_function() -> None:
    x, w, v = (t.detach() for t in LAYER)
    assert checkpoint(layer, x, w, v).grad_fn is None
    with torch.no_grad():
        assert checkpoint(layer, *LAYER).grad_fn is None


def test_the_switch_is_off_and_belongs_to_its_block() -> None:
    assert not enabled()
    with checkpointing(True):
        assert enabled()
        with checkpointing(False):
            assert not enabled()
        assert enabled()
        assert checkpoint(lambda x: x * (2.0 if enabled() else 3.0), doubles(1)).item() == 3 * doubles(1).item()
    assert not enabled()


@pytest.mark.parametrize("nested", [lambda x: (x * 2, (x * 3,)), lambda x: {"a": x * 2}])
def test_outputs_whose_gradients_would_be_lost_are_refused(nested: Callable[..., Any]) -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ConfigError, match="among its outputs"):
        checkpoint(nested, x)
