"""Compute log-probabilities of tokens from hidden states and the output head, a few rows of logits at a time.

With s = f(W h + b) (`mass.lm.head`) and p = softmax(s), the log-probability of token t is s_t - log Σ exp s. Its
gradient in h, and that gradient's derivative along v, with u = W v and q = f'(z) u, are

    G = Wᵀ (f'(z) (e_t - p)),   ∂(G v)/∂h = Wᵀ (f'(z) p (p·q - q) + f''(z) u (e_t - p)),

where products without a dot are entry by entry. G is computed together with the value, from the same logits. The graph
keeps h, G and t, of n times d entries, and never n times V. A derivative along v recomputes its logits.

Legend: n tokens, d width of the states, V vocabulary, c tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.functional import linear

from mass.lm.head import Head
from mass.metagrad.layerwise import autocast_kind, refuse_derivative, third_derivative
from mass.metagrad.optimizers import wide

CHUNK = {"cpu": 1 << 23}
"""Number of logits in one chunk, by kind of device: 32 MiB in float32, of which two to four are alive. The rows, 55 for
a vocabulary of 152,000, are enough that the time of a product is arithmetic, and not the reading of W."""
CHUNK_ELSEWHERE = 1 << 26
"""Number of logits in one chunk on other devices."""
WHOLE = 1 << 22
"""Number of logits, 16 MiB in float32, up to which autograd may keep all: chunks would save nothing there."""

_always_chunked: ContextVar[bool] = ContextVar("always_chunked", default=False)


@contextmanager
def always_chunked() -> Generator[None, None, None]:
    """Within the block, chunks are used for few tokens too, so that checks on few tokens test what many use."""
    token = _always_chunked.set(True)
    try:
        yield
    finally:
        _always_chunked.reset(token)


def is_recorded() -> bool:
    """Return True while operations are recorded (`mass.metagrad.recording`) and tensors have shapes but no values."""
    return get_proxy_mode() is not None


def keeps_whole(tokens: int, vocabulary: int) -> bool:
    """Return True where the logits of so many tokens are few enough to be kept by autograd."""
    return tokens * vocabulary <= WHOLE and not _always_chunked.get()


def chunk_rows(vocabulary: int, device: str) -> int:
    """Return the number of tokens in one chunk."""
    return max(1, CHUNK.get(device, CHUNK_ELSEWHERE) // vocabulary)


def of_logits(logits: Float[Tensor, "n V"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return log-probabilities in float32 or wider, by autograd's own operations."""
    wider = logits.to(wide(logits))
    # With a largest logit of 0 the logsumexp is at most log V, so that the difference below loses no digits.
    wider = wider - wider.detach().amax(-1, keepdim=True)
    return wider.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - wider.logsumexp(-1)


def of_states(head: Head, states: Float[Tensor, "n d"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return log-probabilities in float32 or wider, computed one chunk at a time.

    Differentiable twice in the states; a third derivative raises ConfigError.
    """
    head, states = head.in_autocast(states)
    with torch.autocast(autocast_kind(states), enabled=False):
        if torch.is_grad_enabled() and states.requires_grad:
            return _apply(_LogProbs, head, states, targets)
        return _value(head, states.detach(), targets, False)[0]


class _LogProbs(torch.autograd.Function):
    """(states, targets) -> log-probabilities, with their gradient G computed at the same time."""

    @staticmethod
    def forward(ctx: Any, head: Head, states: Tensor, targets: Tensor) -> Tensor:  # pyright: ignore
        value, slope = _value(head, states, targets, True)
        ctx.head = head
        ctx.save_for_backward(states, targets, slope)
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        states, targets, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return (None, _apply(_Vjp, ctx.head, states, targets, slope, g), None)
        return (None, _times(g, slope).to(states.dtype), None)


class _Vjp(torch.autograd.Function):
    """(states, cotangent g of the log-probabilities) -> g G, whose derivative knows that G depends on the states."""

    @staticmethod
    def forward(ctx: Any, head: Head, states: Tensor, targets: Tensor, slope: Tensor, g: Tensor) -> Tensor:  # pyright: ignore
        ctx.head = head
        ctx.save_for_backward(states, targets, slope, g)
        return _times(g, slope).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        states, targets, slope, g = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(autocast_kind(states), enabled=False):
            bar = g_bar = None
            if ctx.needs_input_grad[1]:
                bar = _times(g, _curvature(ctx.head, states, targets, v)).to(states.dtype)
            if ctx.needs_input_grad[4]:
                g_bar = (slope * v).sum(-1).to(g.dtype)
        grads = (bar, g_bar)
        if torch.is_grad_enabled():
            grads = refuse_derivative(grads, third_derivative("give it fewer tokens at a time"))
        return (None, grads[0], None, None, grads[1])


def _times(g: Tensor, rows: Tensor) -> Tensor:
    return g.unsqueeze(-1).to(rows.dtype) * rows


@dataclass(frozen=True)
class Predictions:
    """Distributions over the vocabulary at n positions."""

    values: Tensor
    """States [n, d] before the head, or logits [n, V] without a head."""
    head: Head | None
    """The head that turns states into logits; None where `values` are logits."""

    def __len__(self) -> int:
        return len(self.values)

    def logprobs(self, targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the log-probability (nats, float32 or wider) of one token at each position."""
        targets = targets.to(self.values.device)
        return of_logits(self.values, targets) if self.head is None else of_states(self.head, self.values, targets)

    def split(self) -> Iterator[Predictions]:
        """Yield a few positions at a time, as many as may have their distributions in memory together."""
        width = self.values.shape[-1] if self.head is None else self.head.weight.shape[0]
        size = len(self) if keeps_whole(len(self), width) else chunk_rows(width, self.values.device.type)
        return (Predictions(part, self.head) for part in self.values.split(max(1, size)))

    def by_length(self, lengths: Sequence[int]) -> Iterator[Predictions]:
        """Yield the positions of each row, given the number of positions of each."""
        return (Predictions(part, self.head) for part in self.values.split(list(lengths)))

    @torch.no_grad()
    def of(self, tokens: Int[Tensor, "A n"]) -> tuple[Float[Tensor, "A n"], Bool[Tensor, "A n"]]:
        """Return the log-probability of each token of A alternatives, and True where it is the most likely token."""
        found: list[tuple[Tensor, Tensor]] = []
        start = 0
        for part in self.split():
            logprobs, end = part.log_softmax(), start + len(part)
            asked = tokens[:, start:end].to(logprobs.device)
            found.append((logprobs.gather(1, asked.mT).mT, logprobs.argmax(-1) == asked))
            start = end
        return torch.cat([one for one, _ in found], 1), torch.cat([one for _, one in found], 1)

    def log_softmax(self) -> Float[Tensor, "n V"]:
        """Return the log-probabilities of all tokens, in float32 or wider."""
        if self.head is None:
            return self.values.to(wide(self.values)).log_softmax(-1)
        return self.head.logits(self.values).log_softmax(-1)


# ------------------------------------------------------------------------------- chunks


def _value(head: Head, states: Tensor, targets: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
    """Return log-probabilities [n], and G [n, d] in float32 or wider (empty unless `slope`)."""
    run = _recorded_value if is_recorded() else _value_by_chunks
    return run(states, targets, head.weight, head.bias, head.scale, head.cap, slope)


def _curvature(head: Head, states: Tensor, targets: Tensor, v: Tensor) -> Tensor:
    """Return ∂(G v)/∂h [n, d] in float32 or wider."""
    run = _recorded_curvature if is_recorded() else _curvature_by_chunks
    return run(states, targets, v, head.weight, head.bias, head.scale, head.cap)


def _value_by_chunks(
    states: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    cap: float | None,
    slope: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `_value` chunk by chunk."""
    head = Head(weight, bias, scale, cap)
    value = torch.empty(len(states), dtype=wide(states), device=states.device)
    slopes = torch.empty(*(states.shape if slope else (0, 0)), dtype=wide(states), device=states.device)
    for rows in _chunks(len(states), weight):
        s, first, _ = _shaped(head, linear(states[rows], weight, bias), 1 if slope else 0)
        t = targets[rows].unsqueeze(-1)
        p = s.log_softmax(-1)
        del s  # a chunk of logits is the unit of memory here: each is freed or overwritten as soon as possible
        value[rows] = p.gather(-1, t).squeeze(-1)
        if slope:
            p = p.exp_()
            at_target = weight[targets[rows]].to(wide(states))
            if first is not None:
                p, at_target = p.mul_(first), at_target * first.gather(-1, t)
            # Wᵀ e_t is row t of W, so only p needs a product with W.
            slopes[rows] = at_target - (p.to(weight.dtype) @ weight)
    return value, slopes


def _curvature_by_chunks(
    states: Tensor,
    targets: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Compute `_curvature` chunk by chunk, with the logits computed again."""
    head = Head(weight, bias, scale, cap)
    found = torch.empty(states.shape, dtype=wide(states), device=states.device)
    for rows in _chunks(len(states), weight):
        s, first, second = _shaped(head, linear(states[rows], weight, bias), 2)
        p = s.softmax(-1)
        del s
        u = linear(v[rows].to(weight.dtype), weight)
        u = u.to(wide(u))
        found[rows] = (_bent(p, u, first, second, targets[rows].unsqueeze(-1)).to(weight.dtype) @ weight).to(found)
    return found


def _bent(p: Tensor, u: Tensor, first: Tensor | None, second: Tensor | None, t: Tensor) -> Tensor:
    """Return f' p (p·q - q) + f'' u (e_t - p) with q = f' u; p and u are overwritten."""
    if first is None:  # f' = 1 and f'' = 0: p (p·u - u)
        u -= (p * u).sum(-1, keepdim=True)
        return p.mul_(u).neg_()
    q = first * u
    straight = ((p * q).sum(-1, keepdim=True) - q).mul_(first)
    if second is None:
        return p.mul_(straight)
    u *= second
    return p.mul_(straight.sub_(u)).scatter_add_(-1, t, u.gather(-1, t))


def _shaped(head: Head, z: Tensor, derivatives: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return f, f' and f'' of z in float32 or wider; the latter are None where they are 1 and 0, or not requested."""
    z = z.to(wide(z))
    if head.plain:
        return z, None, None
    if head.cap is None:
        first = torch.full((1, 1), head.scale, dtype=z.dtype, device=z.device).expand(len(z), z.shape[-1])
        return z * head.scale, first, None
    bend = (z * (head.scale / head.cap)).tanh_()
    first = (1 - bend.square()).mul_(head.scale) if derivatives else None
    second = first * bend * (-2 * head.scale / head.cap) if derivatives > 1 and first is not None else None
    return bend.mul_(head.cap), first, second


def _chunks(count: int, weight: Tensor) -> Iterator[slice]:
    size = chunk_rows(weight.shape[0], weight.device.type)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


# ------------------------------------------------------------------------------- recorded


@torch.library.custom_op("mass::target_logprobs", mutates_args=())
def _recorded_value(
    states: Tensor,
    targets: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    cap: float | None,
    slope: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `_value` as one operation in the record of a pass (`mass.metagrad.recording`).

    A compiler that saw the chunks would find that both derivatives compute the same logits, and keep all of them.
    """
    return _value_by_chunks(states, targets, weight, bias, scale, cap, slope)


@_recorded_value.register_fake
def _(
    states: Tensor,
    targets: Tensor,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    cap: float | None,  # noqa: ARG001
    slope: bool,
) -> tuple[Tensor, Tensor]:
    made = states.new_empty(states.shape if slope else (0, 0), dtype=wide(states))
    return states.new_empty(len(states), dtype=wide(states)), made


@torch.library.custom_op("mass::target_logprobs_curvature", mutates_args=())
def _recorded_curvature(
    states: Tensor,
    targets: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """Compute `_curvature` as one operation, for the reason given at `_recorded_value`."""
    return _curvature_by_chunks(states, targets, v, weight, bias, scale, cap)


@_recorded_curvature.register_fake
def _(
    states: Tensor,
    targets: Tensor,  # noqa: ARG001
    v: Tensor,  # noqa: ARG001
    weight: Tensor,  # noqa: ARG001
    bias: Tensor | None,  # noqa: ARG001
    scale: float,  # noqa: ARG001
    cap: float | None,  # noqa: ARG001
) -> Tensor:
    return states.new_empty(states.shape, dtype=wide(states))


def _apply(function: Any, *inputs: Any) -> Any:
    return function.apply(*inputs)  # `apply` is untyped
