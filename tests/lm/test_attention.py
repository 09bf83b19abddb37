"""Attention by a fused kernel, differentiated twice, against the same in plain mathematics."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from mass.errors import ConfigError, ShapeError
from mass.lm import attention
from mass.lm.attention import exact_attention, plain_attention

N, H, T, D = 2, 4, 7, 3


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the short sequences here."""
    monkeypatch.setattr(attention, "FUSED_FROM", {})


def doubles(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def qkv(heads: int = H, queries: int = T, keys: int = T, values: int = D) -> tuple[Tensor, Tensor, Tensor]:
    return (
        doubles(N, H, queries, D),
        doubles(N, heads, keys, D, seed=1),
        doubles(N, heads, keys, values, seed=2),
    )


def padding(rows: int = N) -> Tensor:
    """Causal, the first row of the batch padded; query row 3 of the last sees nothing at all."""
    mask = torch.ones(rows, 1, T, T, dtype=torch.bool).tril()
    mask[0, :, :, 5:] = False
    mask[-1, :, 3] = False
    return mask


CASES: dict[str, dict[str, Any]] = {
    "free": {},
    "causal": {"is_causal": True},
    "scaled": {"is_causal": True, "scale": 0.3},
    "boolean mask": {"attn_mask": padding()},
    "one mask for all rows": {"attn_mask": padding(1)},
    "matrix mask": {"attn_mask": torch.ones(T, T, dtype=torch.bool).tril()},
    "float mask": {"attn_mask": doubles(N, 1, T, T, seed=3).detach()},
    "mask of each head": {"attn_mask": doubles(1, H, T, T, seed=3).detach().masked_fill(~padding(1), -torch.inf)},
}


def derivatives(function: Any, tensors: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    """Output, gradient and second derivative, in directions that are not symmetric."""
    output = function(*tensors, **options)
    first = torch.autograd.grad((output * doubles(*output.shape, seed=9)).sum(), tensors, create_graph=True)
    along = sum((g * doubles(*g.shape, seed=7)).sum() + g.square().sum() for g in first)
    return [output, *first, *torch.autograd.grad(along, tensors)]


def assert_equal(ours: list[Tensor], plain: list[Tensor], error: float = 1e-11) -> None:
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=error, atol=error)


@pytest.fixture(params=[1 << 22, 1, 60], ids=["whole", "a row at a time", "blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(attention, "BLOCK", request.param)
    return request.param


# ------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize(("case", "heads"), list(product(CASES, (H, 2, 1))))
def test_output_gradient_and_second_derivative_are_those_of_plain_attention(case: str, heads: int, block: int) -> None:
    del block
    options = CASES[case]
    plain = {("mask" if name == "attn_mask" else name): value for name, value in options.items()}
    tensors = qkv(heads)
    ours = derivatives(exact_attention, tensors, **options, enable_gqa=heads != H)
    assert_equal(ours, derivatives(plain_attention, tensors, **plain, enable_gqa=heads != H))
    assert all(bool(t.isfinite().all()) for t in ours)


@pytest.mark.parametrize("case", ["causal", "boolean mask"])
def test_gradcheck_and_gradgradcheck(case: str) -> None:
    def wrapped(*tensors: Tensor) -> Tensor:
        return exact_attention(*tensors, **CASES[case], enable_gqa=True)

    assert gradcheck(wrapped, qkv(2))
    assert gradgradcheck(wrapped, qkv(2))


@pytest.mark.parametrize(("queries", "keys"), [(4, 7), (7, 4), (1, 5)])
def test_more_keys_than_queries_and_the_reverse(queries: int, keys: int, block: int) -> None:
    del block
    tensors = qkv(2, queries, keys, values=5)
    for causal in (False, True):
        ours = derivatives(exact_attention, tensors, is_causal=causal, enable_gqa=True)
        assert_equal(ours, derivatives(plain_attention, tensors, is_causal=causal, enable_gqa=True))


@pytest.mark.parametrize("needs", [n for n in product((False, True), repeat=3) if any(n)])
def test_some_of_query_key_value_need_a_gradient(needs: tuple[bool, ...]) -> None:
    tensors = [t.detach().requires_grad_(need) for t, need in zip(qkv(), needs, strict=True)]
    asked = [t for t in tensors if t.requires_grad]

    def second(function: Any) -> list[Tensor]:
        output = function(*tensors)
        first = torch.autograd.grad(output.square().sum(), asked, create_graph=True)
        again = torch.autograd.grad(sum(g.pow(3).sum() for g in first), asked, materialize_grads=True)
        return [output, *first, *again]

    assert_equal(second(exact_attention), second(plain_attention))


def test_the_second_derivative_of_one_gradient_alone() -> None:
    tensors = qkv()
    for i in range(3):
        results = []
        for function in (exact_attention, plain_attention):
            (g,) = torch.autograd.grad(function(*tensors).square().sum(), tensors[i], create_graph=True)
            results.append(list(torch.autograd.grad(g.pow(3).sum(), tensors)))
        assert_equal(*results)


def test_a_mask_that_requires_grad_gets_one() -> None:
    mask = doubles(N, 1, T, T, seed=3)
    ours = derivatives(exact_attention, (*qkv(), mask))
    assert_equal(ours, derivatives(plain_attention, (*qkv(), mask)))


def test_a_backward_can_be_repeated() -> None:
    tensors = qkv()
    output = exact_attention(*tensors, is_causal=True).square().sum()
    once, twice = (torch.autograd.grad(output, tensors, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_half_precision_is_differentiated_in_single() -> None:
    tensors = tuple(t.detach().bfloat16().requires_grad_() for t in qkv())
    exact = derivatives(plain_attention, tuple(t.detach().double().requires_grad_() for t in tensors), is_causal=True)
    for ours, expected in zip(derivatives(exact_attention, tensors, is_causal=True)[4:], exact[4:], strict=True):
        assert float((ours - expected).norm() / expected.norm()) < 0.02


def test_autocast_is_that_of_the_plain_kernel() -> None:
    q, k, v = (t.detach().float().requires_grad_() for t in qkv())
    with torch.autocast("cpu", torch.bfloat16):
        ours = exact_attention(q, k, v.bfloat16(), is_causal=True)
        theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v.bfloat16(), is_causal=True)
        assert torch.equal(ours, theirs)
        (g,) = torch.autograd.grad(ours.float().square().sum(), q, create_graph=True)
    (again,) = torch.autograd.grad(g.square().sum(), k)
    assert again.dtype == torch.float32
    assert bool(again.any())


# ------------------------------------------------------------------------------- memory


def test_no_matrix_of_tokens_by_tokens_is_kept_or_saved() -> None:
    length = 64
    q, k, v = (doubles(1, 2, length, D, seed=s) for s in range(3))
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    sizes: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.update({t.data_ptr(): t.numel()}), t)[1], lambda t: t
    ):
        output = exact_attention(q, k, v, mask)
        exact_attention(output, k, v, mask)
        first = torch.autograd.grad(output.square().sum(), (q, k, v), create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), (q, k, v))
    wide = [n for n in sizes.values() if n >= length * length]
    assert len(wide) == 1, "the mask itself, once for both calls"


def test_short_sequences_are_left_to_plain_mathematics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FUSED_FROM", {"cpu": T + 1})
    ours = exact_attention(*qkv(2), CASES["boolean mask"]["attn_mask"], enable_gqa=True)
    assert torch.equal(ours, plain_attention(*qkv(2), CASES["boolean mask"]["attn_mask"], enable_gqa=True))
    monkeypatch.setattr(attention, "FUSED_FROM", {"cpu": T})
    assert "_Attention" in type(exact_attention(*qkv()).grad_fn).__name__


# ------------------------------------------------------------------------------- what cannot be done


def test_a_third_derivative_raises() -> None:
    tensors = qkv()
    (g,) = torch.autograd.grad(exact_attention(*tensors).square().sum(), tensors[0], create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(ConfigError, match=r"three times.*eager") as error:
        h.sum().backward()
    assert "\n" not in str(error.value)


def test_dropout_with_a_gradient_raises() -> None:
    with pytest.raises(ConfigError, match=r"dropout is 0.1, expected 0") as error:
        exact_attention(*qkv(), dropout_p=0.1)
    assert "\n" not in str(error.value)
    with torch.no_grad():
        assert exact_attention(*qkv(), dropout_p=0.1).shape == (N, H, T, D)


@pytest.mark.parametrize("tensors", [(qkv()[0], *qkv(2)[1:]), qkv()[0:1] * 2 + qkv(keys=3)[2:], [t[0] for t in qkv()]])
def test_shapes_that_do_not_fit_raise(tensors: Any) -> None:
    with pytest.raises(ShapeError, match=r"expected \[N, heads, T, d\]"):
        exact_attention(*tensors)


# ------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask_heads", [0, 1, H])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_new_token_attends_as_with_keys_copied_for_each_query_head(
    heads: int, mask_heads: int, scale: float | None
) -> None:
    query, key, value = (t.detach() for t in qkv(heads, queries=1))
    mask = torch.rand(N, mask_heads, 1, T, generator=torch.Generator().manual_seed(4)) < 0.6 if mask_heads else None
    if mask is not None:
        mask[..., 0] = True
    copied = (t.repeat_interleave(H // heads, 1) for t in (key, value))
    plain = plain_attention(query, *copied, mask, scale=scale).transpose(1, 2)
    found, _ = attention.attend(torch.nn.Module(), query, key, value, mask, scaling=scale)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
