"""SiLU and RMSNorm with second derivatives in closed form, against autograd and against the models' own modules."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from mass.errors import ConfigError
from mass.lm import LM, elementwise
from mass.lm.elementwise import _plain_rms_norm, _rms_norm, drop_closed_forms, rms_norm, silu, use_closed_forms
from mass.metagrad import SGD, adapt
from mass.types import Batch, Params
from small_lms import ARCHITECTURES, float64_throughout, make_lm, make_model, random_adapter

ROWS = [("Compute 3 + 4.", "3+4=7."), ("x", "5"), ("A longer problem of 12 words", "Answer: 12 34")]
TAKEN = {
    "Llama": (2, 5),
    "Qwen2": (2, 5),
    "Qwen3": (2, 9),
    "Mistral": (2, 5),
    "Gemma2": (0, 9),
    "Gemma3": (0, 13),
    "Phi3": (2, 5),
    "GPT2": (0, 0),
    "Mixtral": (2, 5),
    "Qwen2Moe": (4, 5),
    "Qwen3Moe": (2, 9),
}
"""How many SiLU and how many RMSNorm modules."""
OFFSETS = pytest.mark.parametrize("offset", [0.0, 1.0], ids=["w", "1 + w"])


def draw(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def norm_of(width: int, eps: float, offset: float = 0.0) -> Callable[[Tensor], Tensor]:
    weight = draw(width, seed=1)
    plain = functools.partial(_plain_rms_norm, weight=weight + offset, eps=eps)
    return lambda x: _rms_norm(plain, x, weight, eps, offset)


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Output, gradient, and the second derivative for the input and for the cotangent."""
    x = x.detach().requires_grad_()
    g = draw(*x.shape, seed=5, dtype=x.dtype).requires_grad_()
    output = function(x)
    (first,) = torch.autograd.grad(output, x, g.to(output.dtype), create_graph=True)
    return [output, first, *torch.autograd.grad(first, (x, g), draw(*x.shape, seed=6, dtype=x.dtype))]


def assert_near(ours: list[Tensor], expected: list[Tensor], error: float) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert float((a.double() - b.double()).detach().norm()) <= error * float(b.detach().double().norm())


# ------------------------------------------------------------------------------- the functions


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 1, 2)])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_silu_has_its_derivatives(shape: tuple[int, ...], scale: float) -> None:
    x = draw(*shape, scale=scale).requires_grad_()
    assert gradcheck(silu, x)
    assert gradgradcheck(silu, x)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 1, 2), (2, 1)])
@pytest.mark.parametrize(("eps", "scale"), [(1e-6, 1.0), (0.3, 1.0), (1e-5, 3e-3), (1e-6, 50.0)])
@OFFSETS
def test_rms_norm_has_its_derivatives(shape: tuple[int, ...], eps: float, scale: float, offset: float) -> None:
    x, norm = draw(*shape, scale=scale).requires_grad_(), norm_of(shape[-1], eps, offset)
    step = 1e-6 * scale
    assert gradcheck(norm, x, eps=step, atol=1e-5 / scale)
    assert gradgradcheck(norm, x, eps=step, atol=1e-4 / scale**2)


@OFFSETS
def test_rows_of_zeros_and_large_values_too(offset: float) -> None:
    x = draw(4, 6)
    x[1], x[2], x[3] = 0.0, x[2] * 1e8, x[3] * 1e-8
    plain = functools.partial(_plain_rms_norm, weight=draw(6, seed=1) + offset, eps=1e-6)
    for row in range(4):  # whose derivatives differ by many orders of magnitude
        here = x[row : row + 1]
        assert_near(derivatives(norm_of(6, 1e-6, offset), here), derivatives(plain, here), 1e-6 if row == 2 else 1e-12)
    for ours in derivatives(silu, draw(4, 6, scale=1e4)):
        assert bool(ours.isfinite().all())
    large = draw(4, 6, scale=30.0)
    assert_near(derivatives(silu, large), derivatives(torch.nn.functional.silu, large), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_differentiated_in_single(dtype: torch.dtype) -> None:
    x, weight, error = draw(7, 32, dtype=dtype), draw(32, seed=1, dtype=dtype), 3 * torch.finfo(dtype).eps
    ours = derivatives(lambda x: rms_norm(x, weight, 1e-6), x)
    assert {t.dtype for t in ours} == {dtype}
    assert_near(ours, derivatives(lambda x: _plain_rms_norm(x, weight.double(), 1e-6), x.double()), error)
    assert_near(derivatives(silu, x), derivatives(torch.nn.functional.silu, x.double()), error)


@pytest.mark.parametrize("function", [silu, norm_of(4, 1e-6)])
def test_one_of_input_and_cotangent_may_need_no_gradient(function: Callable[[Tensor], Tensor]) -> None:
    x, g = draw(3, 4).requires_grad_(), draw(3, 4, seed=5)
    *_, x_bar, g_bar = derivatives(function, x)
    (first,) = torch.autograd.grad(function(x), x, g, create_graph=True)
    assert torch.equal(torch.autograd.grad(first, x, draw(3, 4, seed=6))[0], x_bar)
    moving = g.requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, moving, create_graph=True)
    assert torch.equal(torch.autograd.grad(first, moving, draw(3, 4, seed=6))[0], g_bar)


@pytest.mark.parametrize("function", [silu, norm_of(4, 1e-6)])
def test_a_third_derivative_raises(function: Callable[[Tensor], Tensor]) -> None:
    x = draw(3, 4).requires_grad_()
    (g,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(ConfigError, match=r"three times.*drop_closed_forms") as error:
        h.sum().backward()
    assert "\n" not in str(error.value)


def test_a_weight_that_requires_grad_gets_one() -> None:
    x, weight = draw(3, 4).requires_grad_(), draw(4, seed=1).requires_grad_()
    assert gradcheck(lambda x, w: rms_norm(x, w, 1e-6), (x, weight))
    assert gradgradcheck(lambda x, w: rms_norm(x, w, 1e-6), (x, weight))


# ------------------------------------------------------------------------------- the modules of models


def modules_of(model: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """SiLU and RMSNorm modules that have the closed forms."""
    taken = [model.get_submodule(name) for name in use_closed_forms(model)]
    norms = [m for m in taken if type(m).__name__.endswith("RMSNorm")]
    return [m for m in taken if m not in norms], norms


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_which_modules_are_taken(kind: str) -> None:
    model = make_lm(kind).model
    silus, norms = modules_of(model)
    assert (len(silus), len(norms)) == TAKEN[kind]
    assert len(norms) == sum(type(m).__name__.endswith("RMSNorm") for m in model.modules())
    drop_closed_forms(model)
    assert all(type(m).__module__.startswith("transformers") and "forward" in vars(type(m)) for m in silus + norms)
    assert tuple(map(len, modules_of(model))) == TAKEN[kind], "again"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind != "GPT2"])
def test_outputs_are_the_modules_own_and_derivatives_those_of_autograd(kind: str, dtype: torch.dtype) -> None:
    model = make_model(kind, dtype)
    silus, norms = modules_of(model)
    error = max(4 * torch.finfo(dtype).eps, 1e-6)  # a float64 model's norms go through float32 in transformers
    for i, module in enumerate(silus + norms):
        width = 24 if module in silus else module.weight.shape[0]  # pyright: ignore
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(draw(width, seed=100 + i))
        x = draw(5, width, seed=10 + i, dtype=dtype)
        ours = derivatives(module, x)
        assert "Silu" in type(ours[0].grad_fn).__name__ or "RmsNorm" in type(ours[0].grad_fn).__name__
        drop_closed_forms(module)
        expected = derivatives(module, x)
        assert torch.equal(ours[0], expected[0])
        assert_near(ours, expected, error if dtype != torch.bfloat16 else 0.03)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_that_of_the_module(kind: str, dtype: torch.dtype) -> None:
    """Also a bfloat16 input to a float32 norm."""
    for module in (m[-1] for m in modules_of(make_model(kind, torch.float32)) if m):
        with torch.autocast("cpu", torch.bfloat16):
            ours = derivatives(module, draw(5, 16, dtype=dtype))
            drop_closed_forms(module)
            expected = derivatives(module, draw(5, 16, dtype=dtype))
        assert [t.dtype for t in ours] == [t.dtype for t in expected]
        assert torch.equal(ours[0], expected[0])
        assert_near(ours, expected, 0.02 if dtype == torch.bfloat16 else 1e-6)


class OtherRMSNorm(transformers.models.llama.modeling_llama.LlamaRMSNorm):
    """Not the same function: eps comes after the root."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * hidden_states / (hidden_states.square().mean(-1, keepdim=True).sqrt() + 1e-6)


class GatedRMSNorm(OtherRMSNorm):
    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        return hidden_states * gate


class BiasedRMSNorm(transformers.models.llama.modeling_llama.LlamaRMSNorm):
    """Its bias is zero as long as it was not trained."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.bias = nn.Parameter(torch.zeros(width))


def test_other_modules_are_left_alone() -> None:
    others = [OtherRMSNorm(4), GatedRMSNorm(4), BiasedRMSNorm(4), nn.RMSNorm(4), nn.SiLU(inplace=True), nn.GELU()]
    assert use_closed_forms(nn.Sequential(*others, nn.LayerNorm(4), nn.RMSNorm((2, 4), eps=1e-6))) == []
    assert use_closed_forms(nn.Sequential(nn.RMSNorm(4, eps=1e-6), nn.SiLU())) == ["0", "1"]
    replaced = nn.SiLU()
    replaced.forward = torch.relu
    assert use_closed_forms(replaced) == []


@pytest.mark.parametrize("trainable", [False, True])
def test_a_norm_s_weight_may_be_trained(trainable: bool) -> None:
    lm = make_lm()
    norm = lm.model.model.norm
    norm.weight.requires_grad_(trainable)
    x = draw(3, 16).requires_grad_()
    output = norm(x)
    assert ("RmsNorm" in type(output.grad_fn).__name__) is not trainable
    if trainable:
        (g,) = torch.autograd.grad(output.square().sum(), norm.weight, create_graph=True)
        assert bool(torch.autograd.grad(g.sum(), x)[0].any())


def test_without_a_gradient_the_module_itself_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    for name in ("silu", "_rms_norm"):
        ours = getattr(elementwise, name)
        monkeypatch.setattr(elementwise, name, lambda *args, ours=ours: (calls.append(args[0]), ours(*args))[1])
    lm = make_lm()
    batch, adapter = lm.batch([lm.example_row(*ROWS[0])]), random_adapter(lm)
    lm.losses(batch, adapter)
    assert not calls
    lm.losses(batch, {name: p.requires_grad_() for name, p in adapter.items()})
    assert len(calls) == sum(TAKEN["Llama"]) - 1, "all but the norm of the embeddings, which need no gradient"


def test_copies_files_precision_and_hooks_are_as_before(tmp_path: Path) -> None:
    plain, model = make_model(), make_model()
    use_closed_forms(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert str(plain) == str(model)
    model.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))
    torch.save(model.state_dict(), io.BytesIO())
    seen: list[Any] = []
    twin = copy.deepcopy(model).to(torch.float32)
    twin.model.norm.register_forward_hook(lambda *args: seen.append(args))
    x = draw(2, 16, dtype=torch.float32).requires_grad_()
    assert "RmsNorm" in type(twin.model.norm(x).grad_fn).__name__
    assert len(seen) == 1
    assert "RmsNorm" in type(twin.model.norm(hidden_states=x).grad_fn).__name__


# ------------------------------------------------------------------------------- meta-gradients


def losses_of(lm: LM, batch: Batch) -> Callable[..., Tensor]:
    return lambda params, index=None: lm.losses(batch if index is None else batch.select(index), params)


def meta_gradient(lm: LM, **options: Any) -> list[Tensor]:
    losses = losses_of(lm, lm.batch([lm.example_row(*pair) for pair in ROWS]))
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    start = {name: p.requires_grad_() for name, p in random_adapter(lm, scale=0.1).items()}
    adapted = adapt(losses, start, weights, SGD(lr=0.05), 2, **options)
    outer = losses(adapted, torch.tensor([2, 0])).sum()
    return [outer.detach(), *torch.autograd.grad(outer, (weights, *start.values()), materialize_grads=True)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_meta_gradients_are_those_of_the_untouched_model(kind: str) -> None:
    untouched = make_lm(kind, attn_implementation="eager")
    drop_closed_forms(untouched.model)
    expected = meta_gradient(float64_throughout(untouched))
    lm = float64_throughout(make_lm(kind, attn_implementation="eager"))
    for options in ({"micro_batch": 1}, {"checkpoint": True}):
        assert_near(meta_gradient(lm, **options), expected, 1e-9)


def saved_bytes(run: Callable[[], object], *known: Tensor) -> int:
    """Of the tensors that graphs made in `run` save, those `known` left out."""
    saved: list[Tensor] = []  # all held to the end, so that no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t.detach()), t)[1], lambda t: t):
        run()
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in saved)}
    return sum(size for at, size in storages.items() if at not in {t.untyped_storage().data_ptr() for t in known})


@pytest.mark.parametrize(("kind", "share"), [("Llama", 0.85), ("Qwen3", 0.85), ("Gemma3", 0.85)])
def test_a_second_order_graph_takes_less(kind: str, share: float) -> None:
    lm = make_lm(kind, torch.float32)
    batch = lm.batch([lm.example_row(*ROWS[0])])
    adapter: Params = {name: p.requires_grad_() for name, p in random_adapter(lm).items()}

    def graph() -> None:
        torch.autograd.grad(lm.losses(batch, adapter).sum(), list(adapter.values()), create_graph=True)

    ours = saved_bytes(graph, *lm.model.parameters())
    drop_closed_forms(lm.model)
    plain = saved_bytes(graph, *lm.model.parameters())
    assert ours < share * plain, ours / plain


@pytest.mark.parametrize(("function", "numbers"), [(silu, 2), (norm_of(64, 1e-6), 2 + (2 + 1) / 64)])
def test_each_function_saves_its_input_and_its_cotangent(function: Callable[[Tensor], Tensor], numbers: float) -> None:
    """And a norm two numbers a row, and its weight."""
    x, g = draw(64, 64).requires_grad_(), draw(64, 64, seed=5).requires_grad_()
    saved = saved_bytes(lambda: torch.autograd.grad(function(x), x, g, create_graph=True))
    assert 8 * x.numel() * 2 <= saved <= 8 * x.numel() * numbers
