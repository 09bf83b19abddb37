"""Traps around a language model's meta-gradient (DESIGN, "Silent wrong gradients and other traps found").

Each ends in an error or in the right numbers, but for one that only a comparison with central differences finds:
`mass.metagrad.check_losses`, or `mass doctor`.

Elsewhere: AdamW's eps_root from B = 0 and losses that changed before backward (tests/metagrad/test_inner.py), fused
SDPA made exact (tests/lm). Traps of forward-mode autograd (`silu` under dual numbers, `layer_norm` in reverse over
forward) are out of the way: nothing here uses it, and GPT2's `layer_norm` equals the unroll (tests/test_families.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, layer_norm, scaled_dot_product_attention, silu
from torch.utils.checkpoint import CheckpointError

from mass.errors import ConfigError
from mass.lm import LM
from mass.metagrad import SGD, AdamW, Optimizer, adapt, check_losses
from mass.types import Params
from small_lms import float64_throughout, make_lm, make_model, random_adapter

Losses = Callable[[Params, Tensor | None], Tensor]


def lm_problem(lm: LM) -> tuple[Losses, Callable[[Params], Tensor]]:
    rows = [lm.example_row(f"Compute {i} + 2{' and more' * i}.", f"{i}+2={i + 2}") for i in range(3)]
    practice, target = lm.batch(rows[:2]), lm.batch(rows[2:])
    return (
        lambda params, index: lm.losses(practice if index is None else practice.select(index), params),
        lambda params: lm.losses(target, params).sum(),
    )


def meta_gradients(
    losses: Losses, outer: Callable[[Params], Tensor], start: Params, optimizer: Optimizer, **options: Any
) -> list[Tensor]:
    start = {name: p.detach().clone().requires_grad_() for name, p in start.items()}
    weights = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    adapted = adapt(losses, start, weights, optimizer, 2, **options)
    return list(torch.autograd.grad(outer(adapted), [weights, *start.values()]))


def of_lm(lm: LM, optimizer: Optimizer | None = None, start: Params | None = None) -> list[Tensor]:
    return meta_gradients(*lm_problem(lm), start or random_adapter(lm), optimizer or SGD(lr=0.05))


def worst_error(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True))


# ------------------------------------------------------------------------------- Hugging Face's gradient checkpointing


def enable(model: torch.nn.Module, reentrant: bool) -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_transformers_rests_in_evaluation_mode(reentrant: bool) -> None:
    lm = make_lm()
    expected = of_lm(lm)
    enable(lm.model, reentrant)
    assert worst_error(of_lm(lm), expected) == 0.0


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_of_transformers_raises_in_training_mode(reentrant: bool) -> None:
    """It runs a layer again after `adapters.use` has ended, without the adapter."""
    lm = make_lm()
    enable(lm.model, reentrant)
    lm.model.train()
    with pytest.raises((CheckpointError, RuntimeError), match=r"number of tensors|not have been used in the graph"):
        of_lm(lm)


NAMES = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight")
TOKENS = torch.randint(0, 200, (3, 9), generator=torch.Generator().manual_seed(0))


def functional_losses(model: torch.nn.Module) -> tuple[Losses, Params]:
    """The parameters stand in for the module's own for the length of the call, as many meta-learning codes do it."""

    def losses(params: Params, index: Tensor | None) -> Tensor:
        rows = TOKENS if index is None else TOKENS[index]
        logits = torch.func.functional_call(model, params, kwargs={"input_ids": rows, "use_cache": False}).logits
        return cross_entropy(logits[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none").mean(1)

    return losses, {name: model.get_parameter(name).detach() + 0.1 for name in NAMES}


def of_functional_call(model: torch.nn.Module) -> list[Tensor]:
    losses, start = functional_losses(model)
    practice, target = torch.tensor([0, 1]), torch.tensor([2])
    return meta_gradients(
        lambda params, index: losses(params, practice if index is None else practice[index]),
        lambda params: losses(params, target).sum(),
        start,
        SGD(lr=0.05),
    )


@pytest.mark.parametrize("reentrant", [False, True])
def test_functional_call_with_gradient_checkpointing_raises_on_a_frozen_model(reentrant: bool) -> None:
    model = make_model()
    enable(model, reentrant)
    model.train()
    with pytest.raises((CheckpointError, RuntimeError), match=r"number of tensors|not have been used in the graph"):
        of_functional_call(model)


def test_functional_call_with_gradient_checkpointing_on_a_model_that_is_not_frozen_is_found_by_a_check() -> None:
    """Layers are recomputed with the module's own parameters, in forward and backward alike: `adapt` cannot see it."""
    model = make_model(attn_implementation="eager").requires_grad_()
    losses, start = functional_losses(model)
    first, second = check_losses(losses, start)
    assert max(first, second) < 1e-3
    enable(model, False)
    model.train()
    with pytest.raises(ConfigError, match="losses have a gradient that is"):
        check_losses(losses, start)


# ------------------------------------------------------------------------------- peft


def test_peft_s_hook_on_the_embeddings_changes_nothing() -> None:
    """`enable_input_require_grads` breaks transforms of torch.func; the engine uses none."""
    lm = make_lm()
    expected = of_lm(lm)
    lm.model.enable_input_require_grads()
    assert worst_error(of_lm(lm), expected) < 1e-12


# ------------------------------------------------------------------------------- fused attention, compiled losses


def attention_losses(params: Params, index: Tensor | None) -> Tensor:
    x = torch.linspace(-1, 1, 2 * 5 * 8, dtype=torch.float64).reshape(2, 1, 5, 8)
    x = x if index is None else x[index]
    return scaled_dot_product_attention(x @ params["q"], x, x.sin(), is_causal=True).square().sum((1, 2, 3))


def of_attention() -> list[Tensor]:
    start = {"q": torch.linspace(-0.5, 0.7, 64, dtype=torch.float64).reshape(8, 8)}
    return meta_gradients(attention_losses, lambda params: attention_losses(params, None).sum(), start, SGD(lr=0.05))


def test_fused_attention_without_a_second_derivative_raises() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        assert all(bool(g.isfinite().all()) for g in of_attention())
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match="is not implemented"):
        of_attention()


def test_compiled_losses_raise() -> None:
    compiled = torch.compile(lambda a, x: (x @ a).tanh().square().sum(1), backend="aot_eager")
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)

    def losses(params: Params, index: Tensor | None) -> Tensor:
        return compiled(params["a"], x if index is None else x[index])

    start = {"a": torch.ones(4, 3, dtype=torch.float64)}
    with pytest.raises(RuntimeError, match=r"donated_buffer|double backward"):
        meta_gradients(losses, lambda params: params["a"].sin().sum(), start, SGD(lr=0.05))


class OnceSilu(torch.autograd.Function):
    """As many custom kernels declare it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return silu(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * (s * (1 + x * (1 - s)))


def test_a_kernel_that_is_once_differentiable_raises() -> None:
    """`autograd.grad` for given inputs does not walk to the node that would raise: the engine looks for it."""
    x = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3)
    start = {"a": torch.linspace(-0.5, 0.7, 9, dtype=torch.float64).reshape(3, 3)}

    def losses(params: Params, index: Tensor | None) -> Tensor:
        return OnceSilu.apply((x if index is None else x[index]) @ params["a"]).square().sum(1)

    def gradients(**options: Any) -> list[Tensor]:
        return meta_gradients(losses, lambda params: params["a"].sin().sum(), start, SGD(lr=0.1), **options)

    for options in ({}, {"memory_gb": 1.0}, {"mode": "first_order"}, {"micro_batch": 1}):
        with pytest.raises(ConfigError, match="once_differentiable"):
            gradients(**options)
    with pytest.raises(ConfigError, match="second derivative that is"):
        check_losses(losses, start)
    assert all(bool(g.isfinite().all()) for g in gradients(mode="finite_difference"))


# ------------------------------------------------------------------------------- optimisers


def test_adamw_without_eps_root_is_nan_at_a_fresh_adapter_and_finite_with_it() -> None:
    """LoRA's A has a gradient of exactly zero at B = 0, where √v̂ has no derivative."""
    lm = make_lm()
    without, with_root = (of_lm(lm, AdamW(lr=0.01, eps_root=e), lm.init_adapter(0)) for e in (0.0, 1e-8))
    assert any(bool(g.isnan().any()) for g in without)
    assert all(bool(g.isfinite().all()) for g in with_root)


# ------------------------------------------------------------------------------- what is random, what is in place


@pytest.mark.parametrize(("kind", "dropout"), [("Llama", {"attention_dropout": 0.5}), ("GPT2", {"resid_pdrop": 0.5})])
def test_a_model_left_in_training_mode_with_dropout_raises(kind: str, dropout: dict[str, float]) -> None:
    lm = make_lm(kind, attn_implementation="eager", **dropout)
    assert worst_error(of_lm(lm), of_lm(lm)) == 0.0
    lm.model.train()
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match="turn dropout off"):
        of_lm(lm)


def test_a_base_updated_between_forward_and_backward_raises() -> None:
    lm = make_lm()
    losses, outer = lm_problem(lm)
    weights = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    loss = outer(adapt(losses, random_adapter(lm), weights, SGD(lr=0.05), 2))
    with torch.no_grad():
        lm.model.get_input_embeddings().weight.mul_(1.5)
    with pytest.raises((ConfigError, RuntimeError), match=r"tensors they capture unchanged|inplace operation"):
        loss.backward()


# ------------------------------------------------------------------------------- layer_norm, and bfloat16


def test_layer_norm_has_the_right_second_derivative() -> None:
    """Reverse over forward through it was 13% off without an error; here against central differences."""
    x = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(2, 6).cos()

    def losses(params: Params, index: Tensor | None) -> Tensor:
        values = layer_norm(x @ params["a"], (5,)).exp().square().sum(1)
        return values if index is None else values[index]

    def outer(start: Tensor) -> Tensor:
        weights = torch.tensor([0.3, 0.6], dtype=torch.float64)
        return adapt(losses, {"a": start}, weights, SGD(lr=0.01), 2)["a"].sin().sum()

    start = torch.linspace(-0.5, 0.7, 30, dtype=torch.float64).reshape(6, 5).sin()
    assert torch.autograd.gradcheck(outer, start.requires_grad_())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_narrow_bases_keep_the_meta_gradient(dtype: torch.dtype, bound: float) -> None:
    """Against float64 with the same weights, those that `dtype` can hold."""
    lm = make_lm(dtype=dtype, initializer_range=0.05)
    start = random_adapter(lm, scale=0.05)
    got = of_lm(lm, start=start)
    wide = make_lm(initializer_range=0.05)
    wide.model.load_state_dict({name: value.double() for name, value in lm.model.state_dict().items()})
    exact = of_lm(float64_throughout(wide), start={name: p.double() for name, p in start.items()})
    joined, expected = (torch.cat([g.double().flatten() for g in grads]) for grads in (got, exact))
    assert float((joined - expected).norm() / expected.norm()) < bound
