"""A frozen linear layer with LoRA as one node of the autograd graph, whose two derivatives are closed forms.

    y = W x + s B A x

Autograd would divide this into products, views and sums, each a node of its own. Here, with one row for each token in X
[N, in] and in G [N, out], the cotangent of Y, and with U = X Aᵀ and V = G B [N, r], the gradient is

    X̄ = G W + s V A,   Ā = s Vᵀ X,   B̄ = s Gᵀ U

and, for cotangents C, P, Q of these three, with L = s (C Aᵀ + X Pᵀ) and M = s G Q [N, r], that of the gradient

    Ḡ = C Wᵀ + L Bᵀ + s U Qᵀ,   X̄ = M A + s V P,   Ā = s Vᵀ C + Mᵀ X,   B̄ = Gᵀ L,

where a sum of products is computed as one product, of [L, s U] or [M, s V], or added by the product itself.

Legend: N tokens, r rank, s scaling. For a stack of G adapters each matrix has one more leading axis.

Reference: Hu et al., arXiv 2106.09685 (LoRA).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mass.metagrad.layerwise import autocast_kind, refuse_derivative, third_derivative

_WAY_OUT = "make the adapted layers with LoraSites(.., closed_form=False)"


def has_closed_form(module: nn.Module, x: Tensor, output: Tensor, a: Tensor, b: Tensor) -> bool:
    """Return True where the closed form applies.

    That is: gradients are on, `output` is W x (+ bias) and nothing else, and the dense frozen W, x, A and B have one
    precision.
    """
    if not torch.is_grad_enabled() or type(module) is not nn.Linear:
        return False
    weight, bias = module.weight, module.bias
    return (
        type(weight) is nn.Parameter
        and x.dtype == weight.dtype == output.dtype == a.dtype == b.dtype
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)  # pyright: ignore[reportUnnecessaryComparison]
        and "forward" not in vars(module)
        and len(module._forward_hooks) == 1  # pyright: ignore[reportPrivateUsage] - another could change the output
        and not torch.is_autocast_enabled(autocast_kind(x))
    )


def add_delta_in_closed_form(output: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Return `output + scaling B A x`, where `output` is W x (+ bias).

    Shapes: x [.., in], output [.., out]; a [r, in] and b [out, r], or stacks [G, r, in] and [G, out, r] for G equal
    consecutive blocks of rows. The graph of `output` is dropped, as the derivative of W x is part of the closed form,
    and its memory is overwritten. Gradients flow to x, a and b. A third derivative raises ConfigError.
    """
    return _apply(_Adapted, output.detach(), x, weight, a, b, scaling)


class _Adapted(torch.autograd.Function):
    """(W x, x, A, B) -> W x + s B A x."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:  # pyright: ignore
        b_t = b.mT.contiguous()  # products over contiguous rows are several times faster for a rank of 8
        low = _rows(x, a) @ a.mT
        _add_product(_rows(output, a), low, b_t, scaling)
        ctx.save_for_backward(x, weight, a, b, b_t, low)
        ctx.scaling = scaling
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight, a, b, b_t, low = ctx.saved_tensors
        needs = ctx.needs_input_grad[1], *ctx.needs_input_grad[3:5]
        if torch.is_grad_enabled():  # create_graph=True
            bars = _apply(_Vjp, g, x, a, b, weight, b_t, low, ctx.scaling, needs)
        else:
            bars = _vjp(g, x, a, weight, b_t, low, ctx.scaling, needs)[1:]
        return None, bars[0], None, *bars[1:], None


class _Vjp(torch.autograd.Function):
    """(cotangent g of the output, x, A, B) -> cotangents of x, A, B; None for one that is not needed."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any,
        g: Tensor,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        weight: Tensor,
        b_t: Tensor,
        low: Tensor,
        scaling: float,
        needs: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        del b  # an argument so that autograd knows the dependence on B; its numbers are in b_t
        low_bar, *bars = _vjp(g, x, a, weight, b_t, low, scaling, needs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, a, weight, b_t, low, low_bar)
        ctx.scaling = scaling
        return tuple(bars)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        with torch.no_grad():
            bars = _bars(ctx.saved_tensors, ctx.scaling, cotangents, ctx.needs_input_grad)
        if torch.is_grad_enabled():
            bars = refuse_derivative(bars, third_derivative(_WAY_OUT))
        return *bars, None, None, None, None, None


def _vjp(
    g: Tensor, x: Tensor, a: Tensor, weight: Tensor, b_t: Tensor, low: Tensor, s: float, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return V, and X̄, Ā, B̄ where needed."""
    g_rows = _rows(g, a)
    low_bar = g_rows @ b_t.mT
    x_bar = a_bar = b_bar = None
    if needs[0]:
        x_bar = (g.reshape(-1, g.shape[-1]) @ weight).view(x.shape)
        _add_product(_rows(x_bar, a), low_bar, a, s)
    if needs[1]:
        a_bar = (s * low_bar).mT @ _rows(x, a)
    if needs[2]:
        b_bar = ((s * low).mT @ g_rows).mT
    return low_bar, x_bar, a_bar, b_bar


def _bars(
    saved: Sequence[Tensor], s: float, cotangents: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Pull the cotangents C, P, Q of the gradient back to G, X, A, B, where needed."""
    g, x, a, weight, b_t, low, low_bar = saved
    c, p, q = cotangents
    p = torch.zeros_like(a) if p is None else p
    q_t = torch.zeros_like(b_t) if q is None else q.mT.contiguous()
    g_rows, x_rows = _rows(g, a), _rows(x, a)
    # along_b becomes L, and along_a is M, in the names of the formulas above.
    along_b, along_a = x_rows @ p.mT, s * (g_rows @ q_t.mT)
    if c is not None:
        _add_product(along_b, _rows(c, a), a.mT)
    along_b *= s
    g_bar = x_bar = a_bar = b_bar = None
    if needs[0]:
        g_bar = torch.zeros_like(g) if c is None else nn.functional.linear(c, weight)
        _add_product(_rows(g_bar, a), torch.cat([along_b, s * low], -1), torch.cat([b_t, q_t], -2))
    if needs[1]:
        x_bar = (torch.cat([along_a, s * low_bar], -1) @ torch.cat([a, p], -2)).view(x.shape)
    if needs[2]:
        a_bar = along_a.mT @ x_rows
        if c is not None:
            _add_product(a_bar, (s * low_bar).mT, _rows(c, a))
    if needs[3]:
        b_bar = (along_b.mT @ g_rows).mT
    return g_bar, x_bar, a_bar, b_bar


def _rows(x: Tensor, a: Tensor) -> Tensor:
    """Reshape [.., D] to [N, D], or to [G, N, D] where `a` is a stack of G."""
    return x.reshape(*a.shape[:-2], -1, x.shape[-1])


def _add_product(into: Tensor, left: Tensor, right: Tensor, scaling: float = 1.0) -> None:
    """Add scaling left @ right to `into`, in place."""
    (into.addmm_ if into.dim() == 2 else into.baddbmm_)(left, right, alpha=scaling)


def _apply(function: Any, *inputs: Any) -> Any:
    return function.apply(*inputs)  # `apply` is untyped
