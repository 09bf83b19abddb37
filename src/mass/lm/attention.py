"""Attention by a fused kernel that can be differentiated twice, without T x T matrices in the graph.

Fused kernels have a first derivative only. Here output and first derivative come from the fused kernel; the second
derivative is a closed form in plain matrix products, for one block of heads and query rows at a time.

With P = softmax(S), S = s Q Kᵀ + mask, O = P V, and the cotangent G of O, the first derivative is

    D = G Vᵀ - rowsum(P ∘ G Vᵀ),   dQ = s (P ∘ D) K,   dK = s (P ∘ D)ᵀ Q,   dV = Pᵀ G,

and, with cotangents A, B, C of dQ, dK, dV and M = s (A Kᵀ + Q Bᵀ), the second

    Z = P ∘ (M - rowsum(P ∘ M)),   R = Z ∘ D + P ∘ G Cᵀ,   Y = R - P ∘ rowsum(R),
    Ḡ = Z V + P C,   V̄ = Zᵀ G,   Q̄ = s (Y K + (P ∘ D) B),   K̄ = s (Yᵀ Q + (P ∘ D)ᵀ A).

Legend: N rows of a batch, H heads of keys and values, g query heads to each of them, T tokens, R query rows of a block,
d width of a head.

Reference: Dao 2023, arXiv 2307.08691 (the fused kernel and its first derivative).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mass.errors import ConfigError, ModelError, ShapeError
from mass.metagrad.layerwise import autocast_kind, refuse_derivative, third_derivative

NAME = "mass_exact_sdpa"
"""Name of `attend` in transformers. It is set in a model's configuration in memory, never in a saved one."""

BLOCK = 1 << 22
"""Largest number of entries of one of the about six T x T blocks that the second derivative holds at a time."""

FUSED_FROM = {"cpu": 128}
"""Least number of keys for the fused kernel, by kind of device. With fewer, plain operations are used, whose matrices
are small. Measured in a meta-gradient on one core, the fused kernel is 8% slower with 64 keys; 3% slower with 128, with
a graph one sixth smaller; and 8% faster with 256."""


_always_fused: ContextVar[bool] = ContextVar("attention_always_fused", default=False)


@contextmanager
def always_fused() -> Generator[None, None, None]:
    """Within the block, short sequences use the fused kernel too, so that checks on them test what long ones use."""
    token = _always_fused.set(True)
    try:
        yield
    finally:
        _always_fused.reset(token)


def use_exact_attention(model: Any) -> None:
    """Make a transformers model with 'sdpa' attention twice differentiable; 'eager' attention already is.

    Raises ModelError for any other attention: its second derivative is missing, or silently zero.
    """
    name = getattr(model.config.get_text_config(), "_attn_implementation", None)
    if name in (None, "eager", NAME):
        return
    if name != "sdpa":
        raise ModelError(
            f"the model was loaded with attn_implementation={name!r}, which has no exact second derivative; expected "
            "'sdpa' (fused kernels, made exact here) or 'eager'; load it with one of these"
        )
    model.set_attn_implementation(NAME)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Run `exact_attention` with the arguments of transformers, or without a gradient transformers' own `sdpa`.

    Returns [N, T, gH, d] and None. Raises ModelError for options that 'sdpa' does not differentiate.
    """
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))):
        if query.is_meta:
            return _fused_on_meta(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
        if (
            query.shape[2] == 1
            and query.shape[1] > key.shape[1]
            and not dropout
            and options.get("position_bias") is None
        ):
            return _attend_in_decoding(query, key, value, attention_mask, scaling), None
        return sdpa_attention_forward(  # pyright: ignore[reportReturnType]
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
    if odd := [name for name in ("softcap", "position_bias", "cache") if options.get(name) is not None]:
        raise ModelError(
            f"this model's attention has {odd[0]}, which 'sdpa' does not differentiate; "
            "load it with attn_implementation='eager'"
        )
    length = query.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and length > 1 and attention_mask is None
    if causal:  # keys beyond the queries are empty positions of a cache
        key, value = key[:, :, :length], value[:, :, :length]
    grouped = query.shape[1] != key.shape[1]
    mixed = exact_attention(query, key, value, attention_mask, dropout, causal, scaling, grouped)
    return mixed.transpose(1, 2).contiguous(), None


def _attend_in_decoding(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> Tensor:
    """Attend with one new token in each row: [N, gH, 1, d] queries, [N, H, T, d] keys and values -> [N, 1, gH, d].

    The g query heads that share a head of keys become g query rows of one head. The kernel then reads each key once
    instead of g times, and keys need not be copied for it: 5 to 20 times as fast on a CPU with g = 3 and g = 7.
    """
    if mask is not None and mask.shape[1] > 1:  # each query head has its own mask
        mask = mask.expand(-1, query.shape[1], -1, -1).reshape(len(mask), key.shape[1], -1, mask.shape[-1])
    rows = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    mixed = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(len(query), 1, query.shape[1], -1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass(frozen=True)
class _Settings:
    """The arguments of an attention that are not tensors."""

    causal: bool
    scale: float


def exact_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute `torch.nn.functional.scaled_dot_product_attention` [N, gH, T, d] so that it can be differentiated twice.

    The graph holds q, k, v, the output and one number for each query. With a mask that requires grad, and for short
    sequences (`FUSED_FROM`), plain operations with T x T matrices are used. Query rows whose keys are all masked give 0
    and no gradient.

    Raises:
        ConfigError: dropout with a gradient (it would differ between passes); or a third derivative.
        ShapeError: q, k, v that do not go together.
    """
    wants_grad = any(t.requires_grad for t in (q, k, v) if torch.is_grad_enabled())
    if dropout_p > 0 and torch.is_grad_enabled():
        raise ConfigError(
            f"attention dropout is {dropout_p}, expected 0 where a gradient is taken; use model.eval() or set it to 0"
        )
    _check_shapes(q, k, v, grouped=enable_gqa)
    mask_wants_grad = attn_mask is not None and attn_mask.requires_grad and torch.is_grad_enabled()
    fused_from = 0 if _always_fused.get() else FUSED_FROM.get(k.device.type, 0)
    if mask_wants_grad or (wants_grad and k.shape[-2] < fused_from):
        return plain_attention(q, k, v, attn_mask, is_causal, scale, enable_gqa)
    if not wants_grad:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    q, k, v = _as_autocast(q, k, v)
    mask = None if attn_mask is None else additive(attn_mask, q.dtype)
    settings = _Settings(is_causal, q.shape[-1] ** -0.5 if scale is None else scale)
    return _apply(_Attention, settings, q, k, v, mask)


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention by matrix products and a softmax, which autograd differentiates any number of times."""
    mask = None if mask is None else additive(mask, q.dtype)  # this kernel does not convert a boolean mask
    return torch.ops.aten._scaled_dot_product_attention_math(
        q, k, v, mask, 0.0, is_causal, None, scale=scale, enable_gqa=enable_gqa
    )[0]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask into the number that is added to scores: 0 or -inf.

    It is made once for all layers that share the mask: each kernel would otherwise make its own and keep it for the
    backward. Rows are laid out in multiples of 16, as the kernels expect on a GPU.
    """
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    # The version counts changes in place, so that a mask that was changed gets a new additive mask.
    state = (dtype, None if mask.is_inference() else mask._version)
    known: tuple[Any, Tensor] | None = getattr(mask, "_additive", None)
    if known is None or known[0] != state:
        width = mask.shape[-1]
        made = torch.zeros((*mask.shape[:-1], -(-width // 16) * 16), dtype=dtype, device=mask.device)[..., :width]
        known = state, made.masked_fill_(~mask, float("-inf"))
        mask._additive = known  # pyright: ignore[reportAttributeAccessIssue]
    return known[1]


class _Attention(torch.autograd.Function):
    """(q, k, v) -> output, by the fused kernel, whose own small graph is kept for the first backward."""

    @staticmethod
    def forward(ctx: Any, settings: _Settings, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:  # pyright: ignore
        ctx.settings, ctx.needs = settings, tuple(ctx.needs_input_grad[1:4])
        ctx.save_for_backward(q, k, v, mask)
        ctx.graph = _fused(settings, (q, k, v), mask, ctx.needs)
        return ctx.graph[0].detach()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q, k, v, mask = ctx.saved_tensors
        # The kernel's graph is used up by one backward, as autograd's graphs are; a further backward makes a new one.
        graph, ctx.graph = ctx.graph, None
        graph = graph or _fused(ctx.settings, (q, k, v), mask, ctx.needs)
        if torch.is_grad_enabled():  # create_graph=True
            return (None, *_apply(_Vjp, ctx.settings, graph, q, k, v, mask, cotangent), None)
        return (None, *_pull(graph, cotangent), None)


class _Vjp(torch.autograd.Function):
    """(q, k, v, cotangent of the output) -> cotangents of q, k, v; None for one that is not needed."""

    @staticmethod
    def forward(  # pyright: ignore
        ctx: Any, settings: _Settings, graph: _Graph, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, g: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, mask, g)
        return _pull(graph, g)

    @staticmethod
    def backward(ctx: Any, *bars: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore
        q, k, v, mask, g = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(autocast_kind(q), enabled=False):
            grads: tuple[Tensor | None, ...] = _second_derivative(ctx.settings, (q, k, v, g), mask, bars)
        if torch.is_grad_enabled():
            grads = refuse_derivative(grads, third_derivative("load the model with attn_implementation='eager'"))
        return (None, None, *grads[:3], None, grads[3])


_Graph = tuple[Tensor, tuple[Tensor, ...]]
"""The output of a fused kernel with its graph, and the leaves q, k, v of that graph."""


def _fused(settings: _Settings, qkv: Sequence[Tensor], mask: Tensor | None, needs: Sequence[bool]) -> _Graph:
    """Run the fused kernel on leaves of its own, so that its backward can be taken alone."""
    # Autocast is off, as `exact_attention` has cast the arguments already.
    with torch.enable_grad(), torch.autocast(autocast_kind(qkv[0]), enabled=False):
        leaves = tuple(t.detach().requires_grad_(need) for t, need in zip(qkv, needs, strict=True))
        q, k, v = leaves
        groups = q.shape[1] // k.shape[1]
        if groups > 1 and mask is not None and q.device.type != "cpu":  # GPU kernels take no mask with grouped heads
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if q.is_meta:
            return _fused_on_meta(q, k, v, mask, settings.scale), leaves
        output = F.scaled_dot_product_attention(
            q, k, v, mask, 0.0, settings.causal, scale=settings.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    return output, leaves


def _fused_on_meta(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Run a fused kernel on the meta device, for its shapes: torch itself would choose the one with T x T matrices."""
    wide = None if mask is None else additive(mask, q.dtype).expand(*q.shape[:3], k.shape[2])
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, wide, True, 0.0, mask is None, scale=scale)[
        0
    ]


def _pull(graph: _Graph, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """Take the first derivative by the kernel's own backward, which frees its graph."""
    output, leaves = graph
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    grads = iter(torch.autograd.grad(output, asked, cotangent))
    return tuple(next(grads) if leaf.requires_grad else None for leaf in leaves)


def _second_derivative(
    settings: _Settings, tensors: Sequence[Tensor], mask: Tensor | None, bars: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Pull the cotangents `bars` of (dQ, dK, dV) back to (q, k, v, g), computing in float32 or wider."""
    if all(bar is None for bar in bars):
        return None, None, None, None
    q, k, v, g = tensors
    wide = torch.promote_types(q.dtype, torch.float32)
    results = tuple(torch.zeros(t.shape, dtype=wide, device=t.device) for t in tensors)
    batch, heads, length = q.shape[0], k.shape[1], q.shape[2]
    by_queries = [_grouped(t, heads) for t in (q, g, bars[0], results[0], results[3])]
    full = None if mask is None else _grouped(mask.expand(batch, q.shape[1], length, k.shape[2]), heads)
    # Sums over query rows (k̄, v̄) are added up over the blocks; rows are independent of each other otherwise.
    for at, rows in _blocks(batch, heads, q.shape[1] // heads, length, k.shape[2]):
        # Under a causal mask no row of the block attends to keys beyond its last row: they are skipped.
        end = min(rows.stop, k.shape[2]) if settings.causal else k.shape[2]
        q_, g_, a_, q_bar, g_bar = (None if t is None else t[:, at, :, rows] for t in by_queries)
        k_, v_, b_, c_, k_bar, v_bar = (
            None if t is None else t[:, at, :end] for t in (k, v, bars[1], bars[2], results[1], results[2])
        )
        added = None if full is None else full[:, at, :, rows, :end]
        if settings.causal:
            added = _triangle(rows, end, wide, q.device)
        _block(
            settings.scale, [_wide(t, wide) for t in (q_, k_, v_, g_, a_, b_, c_)], added, (q_bar, k_bar, v_bar, g_bar)
        )
    return tuple(result.to(t.dtype) for result, t in zip(results, tensors, strict=True))


def _block(scale: float, tensors: Sequence[Any], added: Tensor | None, results: Sequence[Any]) -> None:
    """Evaluate the formulas above for some heads and query rows; adds to the cotangents `results` of q, k, v, g.

    Queries are [N, h, g, R, d], keys [N, h, T, d]; the g query heads that share keys become rows of one matrix. The
    names are those of the formulas in lower case, with `ds` for P ∘ D; a cotangent of None counts as zero.
    """
    shape = tensors[0].shape
    q, g = tensors[0].flatten(2, 3), tensors[3].flatten(2, 3)
    a = None if tensors[4] is None else tensors[4].flatten(2, 3)
    k, v, b, c = (tensors[i] for i in (1, 2, 5, 6))
    # Every matrix of T columns is as large as the block allows, so each is overwritten once it is not needed any more.
    p = _softmax(q @ (scale * k).mT, added, shape)
    d = g @ v.mT
    d -= (p * d).sum(-1, keepdim=True)
    m = torch.zeros_like(p) if a is None else a @ (scale * k).mT
    if b is not None:
        m += q @ (scale * b).mT
    z = m.sub_((p * m).sum(-1, keepdim=True)).mul_(p)
    r = z * d
    ds = d.mul_(p)
    q_bar, k_bar, g_bar = q.new_zeros(()), torch.zeros_like(k), z @ v
    if b is not None:
        q_bar = ds @ b
    if a is not None:
        k_bar += ds.mT @ a
    if c is not None:
        r += (g @ c.mT).mul_(p)
        g_bar += p @ c
    y = r.sub_(p.mul_(r.sum(-1, keepdim=True)))
    results[0].add_((scale * (q_bar + y @ k)).view(shape))
    results[1].add_(scale * (k_bar + y.mT @ q))
    results[2].add_(z.mT @ g)
    results[3].add_(g_bar.view(*shape[:-1], -1))


def _softmax(scores: Tensor, added: Tensor | None, shape: Sequence[int]) -> Tensor:
    """Take the softmax of scores [N, h, gR, T] in place; a row of -inf alone gives zeros."""
    if added is not None:
        scores.view(*shape[:-1], -1).add_(added)
    # Without the clamp, a row of -inf alone would give -inf - -inf = NaN.
    scores -= scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
    scores.exp_()
    scores /= scores.sum(-1, keepdim=True).clamp_min_(1)  # a sum holds a term of 1, except in a row of -inf alone
    return scores


def _blocks(batch: int, heads: int, groups: int, length: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Yield (heads, query rows) whose scores have at most BLOCK entries; at least one row of one head."""
    row = batch * groups * keys
    some_rows = max(1, min(length, BLOCK // row))
    some_heads = max(1, BLOCK // (row * length))
    for head in range(0, heads, some_heads):
        for start in range(0, length, some_rows):
            yield slice(head, head + some_heads), slice(start, min(start + some_rows, length))


def _grouped(tensor: Tensor | None, heads: int) -> Any:
    """Reshape [N, gH, ..] to [N, H, g, ..] as a view."""
    return None if tensor is None else tensor.unflatten(1, (heads, -1))


def _wide(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _triangle(rows: slice, end: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make the causal mask of a block of rows: -inf where the key comes after the query, else 0."""
    later = torch.arange(end, device=device) > torch.arange(rows.start, rows.stop, device=device).unsqueeze(-1)
    return torch.zeros(later.shape, dtype=dtype, device=device).masked_fill_(later, float("-inf"))


def _as_autocast(*tensors: Tensor) -> Iterator[Tensor]:
    """Cast the arguments as autocast would: it does not see the kernel inside an autograd function."""
    device = autocast_kind(tensors[0])
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return (t if dtype is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, *, grouped: bool) -> None:
    fits = q.dim() == k.dim() == v.dim() == 4 and q.shape[0] == k.shape[0] and q.shape[-1] == k.shape[-1]
    fits = fits and k.shape[:3] == v.shape[:3]
    fits = fits and (q.shape[1] % k.shape[1] == 0 if grouped else q.shape[1] == k.shape[1])
    if not fits:
        raise ShapeError(
            f"attention of q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; expected [N, heads, T, d], with "
            "as many heads of keys and values, or with enable_gqa a divisor of them"
        )


def _apply(function: Any, *inputs: Any) -> Any:
    return function.apply(*inputs)  # `apply` is untyped
