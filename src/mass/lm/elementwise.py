"""Give a model's SiLU and RMSNorm second derivatives in closed form.

PyTorch differentiates both as chains of elementary operations, and a gradient's graph keeps the inputs of each. Here
the graph keeps the input and the cotangent. With the logistic function σ, the cotangent g of the output and the
cotangent c of the gradient g s'(x), SiLU s(x) = x σ(x) has

    ḡ = c s'(x),   x̄ = c g s''(x),   s' = σ + x σ (1 - σ),   s'' = s' + σ - 2 σ s' = σ (1 - σ) (2 + x (1 - 2 σ)).

RMSNorm has y = w n, n = x r, r = (mean(x²) + eps)^(-1/2). With h = w g its gradient is P h, where P = r (I - n nᵀ / D),
and the gradient's derivative is

    ḡ = w P c,   x̄ = -(r² / D) (<n, c> h + <n, h> c + (<c, h> - 3 <n, h> <n, c> / D) n).

Legend: D width of a token's vector.

References: Elfwing et al. 2017, arXiv 1702.03118 (SiLU); Zhang and Sennrich 2019, arXiv 1910.07467 (RMSNorm).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mass.metagrad.layerwise import refuse_derivative, third_derivative
from mass.metagrad.optimizers import wide

_WAY_OUT = "call mass.lm.elementwise.drop_closed_forms on the model"
_PLAIN = "_mass_plain"
"""Name of the attribute of the classes made here that holds the class a module had before."""


def use_closed_forms(model: nn.Module) -> list[str]:
    """Give a model's SiLU and RMSNorm modules the closed forms; returns the names of the modules that have them.

    A module is changed if, on random input, it computes one of these functions: `x σ(x)`, or `w n` or `(1 + w) n`; any
    other is left alone. Its output stays the module's own to the last bit, in every precision and under autocast.
    Derivatives are computed in float32 or wider, and in float64 for a float64 model even where its module computes in
    float32 inside. Without a gradient, and for a norm whose weight requires grad, nothing changes. Each module's class
    becomes a subclass of itself with the same name, so `deepcopy` and `save_pretrained` work as before (pickling the
    module itself does not).

    A third derivative raises ConfigError.
    """
    names: list[str] = []
    for name, module in model.named_modules():
        # A `forward` that was set on the object would hide that of the new class.
        kind = None if "forward" in vars(module) else _closed_form(module)
        if kind is not None:
            module.__class__ = kind  # pyright: ignore[reportAttributeAccessIssue]
            names.append(name)
    return names


def drop_closed_forms(model: nn.Module) -> None:
    """Undo `use_closed_forms`."""
    for module in model.modules():
        module.__class__ = getattr(type(module), _PLAIN, type(module))  # pyright: ignore[reportAttributeAccessIssue]


def silu(x: Tensor) -> Tensor:
    """Compute `torch.nn.functional.silu`. A third derivative raises ConfigError."""
    return _apply(_Silu, x) if x.requires_grad and torch.is_grad_enabled() else F.silu(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute w x (mean(x²) + eps)^(-1/2) for x [.., D], normalised in float32 or wider and then rounded to x's type.

    A third derivative raises ConfigError, except for a weight that requires grad, where autograd computes all
    derivatives.
    """
    plain = functools.partial(_plain_rms_norm, weight=weight, eps=eps)
    return _rms_norm(plain, x, weight, eps) if _wanted(x, weight) else plain(x)


# ------------------------------------------------------------------------------- SiLU


class _Silu(torch.autograd.Function):
    """x -> x σ(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return _apply(_SiluVjp, x, g) if torch.is_grad_enabled() else torch.ops.aten.silu_backward(g, x)


class _SiluVjp(torch.autograd.Function):
    """(x, cotangent g of the output) -> g s'(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(x, g)
        return torch.ops.aten.silu_backward(g, x)

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, g = ctx.saved_tensors
        with torch.no_grad():
            bars = _silu_bars(x, g, c)
        return _twice_at_most(bars, ctx.needs_input_grad)


def _silu_bars(x: Tensor, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return x̄ and ḡ, with no other tensor of this size where x is float32 or wider."""
    x_wide = x.to(wide(x))
    sigma = x_wide.sigmoid()
    # s' = x σ (1 - σ) + σ, where sigmoid_backward(x, σ) = x σ (1 - σ); s'' = σ - 2 σ s' + s', in the memory of σ.
    first = torch.ops.aten.sigmoid_backward(x_wide, sigma).add_(sigma)
    second = sigma.addcmul_(sigma, first, value=-2).add_(first)
    return second.mul_(g).mul_(c).to(x.dtype), first.mul_(c).to(g.dtype)


# ------------------------------------------------------------------------------- RMSNorm


def _plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x_wide = x.to(wide(x))
    return weight * (x_wide * torch.rsqrt(x_wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rms_norm(plain: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Compute `plain(x)` with the derivatives of (offset + weight) x (mean(x²) + eps)^(-1/2), which it must equal."""
    return _apply(_RmsNorm, plain, x, weight, eps, offset)


def _wanted(x: Tensor, weight: Tensor) -> bool:
    """Return True where a gradient is taken in x and none in the weight."""
    return torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad


class _RmsNorm(torch.autograd.Function):
    """x -> y, computed and rounded by the module's own `plain`."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, plain: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, eps: float, offset: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps, ctx.offset = eps, offset
        return plain(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        with torch.no_grad():  # r = (mean(x²) + eps)^(-1/2), which `plain` does not return
            r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x))
            r = r.square_().div_(x.shape[-1]).add_(ctx.eps).rsqrt_()
        if torch.is_grad_enabled():  # create_graph=True
            return (None, _apply(_RmsNormVjp, x, g, r, weight, ctx.offset), None, None, None)
        return (None, _rms_norm_vjp(x, g, r, weight, ctx.offset)[0], None, None, None)


class _RmsNormVjp(torch.autograd.Function):
    """(x, cotangent g of the output) -> P (w g)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, r: Tensor, weight: Tensor, offset: float) -> Tensor:  # pyright: ignore
        x_bar, xh = _rms_norm_vjp(x, g, r, weight, offset)
        ctx.save_for_backward(x, g, r, xh, weight)
        ctx.offset = offset
        return x_bar

    @staticmethod
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, g, r, xh, weight = ctx.saved_tensors
        with torch.no_grad():
            bars = _rms_norm_bars(x, g, r, xh, _scale(weight, ctx.offset, r.dtype), c)
        return (*_twice_at_most(bars, ctx.needs_input_grad), None, None, None)


def _rms_norm_vjp(x: Tensor, g: Tensor, r: Tensor, weight: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    """Return the gradient P h, and <x, h>."""
    x_wide = x.to(r.dtype)
    h = g * _scale(weight, offset, r.dtype)
    xh = _dot(x_wide, h)
    return _project(h, x_wide, r, xh).to(x.dtype), xh


def _rms_norm_bars(x: Tensor, g: Tensor, r: Tensor, xh: Tensor, scale: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return x̄ and ḡ; `xh` is <x, h> from the first derivative."""
    width, x_wide, c_wide, h = x.shape[-1], x.to(r.dtype), c.to(r.dtype), g * scale
    xc = _dot(x_wide, c_wide)
    nc, nh = xc * r, xh * r  # <n, c> and <n, h>, as n = x r
    along_x = (_dot(c_wide, h) - 3 / width * nh * nc) * r
    x_bar = h.mul_(nc).addcmul_(c_wide, nh).addcmul_(x_wide, along_x).mul_(r.square() / -width)
    g_bar = _project(c_wide, x_wide, r, xc).mul_(scale)
    return x_bar.to(x.dtype), g_bar.to(g.dtype)


def _project(h: Tensor, x: Tensor, r: Tensor, xh: Tensor) -> Tensor:
    """Return P h = r (h - n <n, h> / D), given <x, h>."""
    return torch.addcmul(h, x, xh * r.square(), value=-1 / x.shape[-1]).mul_(r)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the products <a, b> [.., 1]. `vecdot` is a matrix product, which autocast and TF32 would round."""
    return (a * b).sum(-1, keepdim=True)


def _scale(weight: Tensor, offset: float, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) + offset if offset else weight.to(dtype)


# ------------------------------------------------------------------------------- modules


def _closed_form(module: nn.Module) -> type[nn.Module] | None:
    """Return the class that a module gets; None for a module that computes neither function."""
    kind = type(module)
    if hasattr(kind, _PLAIN):
        return kind
    if isinstance(module, nn.SiLU) or kind.__name__ == "SiLUActivation":
        x = torch.linspace(-9, 9, 64, dtype=torch.float32, device="cpu")
        plain = not getattr(module, "inplace", False) and _agrees(module, x, F.silu)
        return _closed_silu(kind) if plain else None
    if kind.__name__.endswith("RMSNorm"):
        offset = next((offset for offset in (0.0, 1.0) if _is_rms_norm(module, offset)), None)
        return None if offset is None else _closed_rms_norm(kind, offset)
    return None


def _is_rms_norm(module: nn.Module, offset: float) -> bool:
    """Return True where a module computes RMSNorm for any weight.

    It is tried on the CPU with a random weight, and with rows so small that `eps` matters.
    """
    eps, weight = _eps(module), getattr(module, "weight", None)
    if not isinstance(eps, float) or weight is None or weight.dim() != 1:
        return False
    if [name for name, _ in module.named_parameters()] != ["weight"]:  # a bias could be zero now and change later
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    draw = torch.randn(6, weight.shape[0], generator=generator, dtype=torch.float32, device="cpu")
    x, values = torch.stack([draw[:2], draw[2:4] * eps**0.5, draw[3:5] * 30]), draw[5]
    probe = copy.copy(module)
    vars(probe)["_parameters"] = {"weight": nn.Parameter(values, requires_grad=False)}
    return _agrees(probe, x, lambda x: _plain_rms_norm(x, values + offset, eps))


def _agrees(module: nn.Module, x: Tensor, function: Callable[[Tensor], Tensor]) -> bool:
    """Return True where a module computes `function` on x, except for rounding."""
    with torch.no_grad():
        try:
            output = type(module).forward(module, x)  # not module(x), which would run the user's hooks
        except (TypeError, ValueError, RuntimeError):  # the module does not take one tensor of this shape
            return False
        expected = function(x)
    return isinstance(output, Tensor) and output.shape == x.shape and torch.allclose(output, expected, 1e-5, 1e-6)


def _eps(module: nn.Module) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


@functools.cache
def _closed_silu(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        x = _only_tensor(args, kwargs)
        if x is None or not (torch.is_grad_enabled() and x.requires_grad):
            return kind.forward(self, *args, **kwargs)
        return silu(x)

    return _subclass(kind, forward)


@functools.cache
def _closed_rms_norm(kind: type[nn.Module], offset: float) -> type[nn.Module]:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = _only_tensor(args, kwargs)
        if x is None or not _wanted(x, self.weight):
            return kind.forward(self, *args, **kwargs)
        return _rms_norm(functools.partial(kind.forward, self), x, self.weight, _eps(self), offset)

    return _subclass(kind, forward)


def _only_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the argument of a call with one tensor and nothing else; None for any other call."""
    values = (*args, *kwargs.values())
    return values[0] if len(values) == 1 and isinstance(values[0], Tensor) else None


def _subclass(kind: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    members = {"forward": forward, _PLAIN: kind, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), members)


def _twice_at_most(bars: tuple[Tensor, Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return the cotangents that are needed, whose own derivative raises ConfigError."""
    wanted = tuple(bar if need else None for bar, need in zip(bars, needs, strict=False))
    return refuse_derivative(wanted, third_derivative(_WAY_OUT)) if torch.is_grad_enabled() else wanted


def _apply(function: Any, *inputs: Any) -> Any:
    return function.apply(*inputs)  # `apply` is untyped
