"""The problems the engine is tested on: a small Llama with LoRA, a toy; meta-gradients by `adapt` and by the unroll."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mass.metagrad import SGD, AdamW, Optimizer, adapt
from mass.preflight.doctor.wide import widen
from unroll import Rule, adamw, sgd, unroll

ADAMW = {"betas": (0.9, 0.99), "eps": 1e-8, "eps_root": 1e-6, "weight_decay": 0.1}
M = 5
Params = dict[str, Tensor]


# ------------------------------------------------------------------------------- a small real model with LoRA


@functools.cache
def llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    widen(model)
    return model


TARGETS = [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]


def lora_start(zero_b: bool = False) -> Params:
    generator = torch.Generator().manual_seed(1)
    params: Params = {}
    for name in TARGETS:
        out, into = llama().get_parameter(f"{name}.weight").shape
        params[f"{name}.A"] = 0.3 * torch.randn(3, into, generator=generator, dtype=torch.float64)
        params[f"{name}.B"] = 0.3 * torch.randn(out, 3, generator=generator, dtype=torch.float64)
        if zero_b:
            params[f"{name}.B"] = torch.zeros_like(params[f"{name}.B"])
    return params


def sequence_losses(params: Params, tokens: Tensor) -> Tensor:
    model = llama()
    merged = {
        f"{name}.weight": model.get_parameter(f"{name}.weight") + params[f"{name}.B"] @ params[f"{name}.A"]
        for name in TARGETS
    }
    logits = torch.func.functional_call(model, merged, kwargs={"input_ids": tokens, "use_cache": False}).logits
    return cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


@functools.cache
def tokens() -> Tensor:
    return torch.randint(0, 32, (M + 1, 7), generator=torch.Generator().manual_seed(2))


def practice(params: Params, index: Tensor | None = None) -> Tensor:
    rows = tokens()[:M]
    return sequence_losses(params, rows if index is None else rows[index])


def outer(params: Params) -> Tensor:
    return sequence_losses(params, tokens()[M:]).sum()


def make_weights(steps: int | None = None) -> Tensor:
    shape = (M,) if steps is None else (steps, M)
    return torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / M + 0.05


# ------------------------------------------------------------------------------- meta-gradients, ours and the reference


@dataclass(frozen=True)
class Case:
    optimizer: Callable[..., Optimizer]
    rule: Rule
    rate: float


CASES = {
    "sgd": Case(SGD, sgd(), 0.2),
    "momentum": Case(functools.partial(SGD, momentum=0.8), sgd(0.8), 0.2),
    "adamw": Case(functools.partial(AdamW, **ADAMW), adamw(**ADAMW), 0.03),
}


def make_rates(kind: str, rate: float, names: list[str], steps: int) -> dict[str, Tensor] | Tensor:
    values = torch.linspace(0.5, 1.5, len(names), dtype=torch.float64) * rate
    per_step = torch.linspace(1.2, 0.7, steps, dtype=torch.float64)
    if kind == "scalar":
        return torch.tensor(rate, dtype=torch.float64)
    if kind == "per step":
        return rate * per_step
    if kind == "per tensor":
        return dict(zip(names, values.unbind(), strict=True))
    return {name: value * per_step for name, value in zip(names, values, strict=True)}


Adapt = Callable[[Params, Tensor, Tensor | dict[str, Tensor]], Params]


def ours(case: Case, steps: int, micro_batch: int | None = None, **options: Any) -> Adapt:
    def run(params: Params, weights: Tensor, lr: Tensor | dict[str, Tensor]) -> Params:
        return adapt(practice, params, weights, case.optimizer(lr=lr), steps, micro_batch, **options)

    return run


def reference(case: Case, steps: int, **options: Any) -> Adapt:
    def run(params: Params, weights: Tensor, lr: Tensor | dict[str, Tensor]) -> Params:
        rates = lr if isinstance(lr, dict) else dict.fromkeys(params, lr)
        return unroll(practice, params, weights, case.rule, rates, steps, **options)

    return run


def meta_gradients(
    run: Adapt,
    params: Params,
    weights: Tensor,
    lr: Tensor | dict[str, Tensor],
    loss: Callable[[Params], Tensor] = outer,
) -> Params:
    """The adapted values and the gradients of `loss` at them for everything that goes in, by name."""
    params = {name: p.clone().requires_grad_() for name, p in params.items()}
    weights = weights.clone().requires_grad_()
    named = lr if isinstance(lr, dict) else {"all": lr}
    named = {name: r.clone().requires_grad_() for name, r in named.items()}
    adapted = run(params, weights, named if isinstance(lr, dict) else named["all"])
    inputs = {"w": weights, **params, **{f"rate {name}": r for name, r in named.items()}}
    grads = torch.autograd.grad(loss(adapted), list(inputs.values()), allow_unused=True, materialize_grads=True)
    return {**dict(zip(inputs, grads, strict=True)), **{f"adapted {n}": p.detach() for n, p in adapted.items()}}


def worst_error(got: Params, expected: Params) -> float:
    """Largest error relative to what is expected, over the tensors; absolute where that is zero."""
    assert got.keys() == expected.keys()
    return max(float((got[n] - expected[n]).norm() / (expected[n].norm() or 1.0)) for n in expected)


CLIP = 1.0
"""A norm between the gradients' at steps of small and of large weights, of `inputs`."""


def inputs(case: Case, steps: int, kind: str = "both") -> tuple[Params, Tensor, Tensor | dict[str, Tensor]]:
    """Start, weights that make every other step's gradient small, rates."""
    size = torch.tensor([0.4, 1.6], dtype=torch.float64).repeat(steps)[:steps, None]
    params = lora_start()
    return params, make_weights(steps) * size, make_rates(kind, case.rate, list(params), steps)


def clipped(case: Case, norm: float) -> Case:
    return dataclasses.replace(case, optimizer=functools.partial(case.optimizer, clip_norm=norm))


# ------------------------------------------------------------------------------- a toy


def toy_losses(params: Params, index: Tensor | None = None) -> Tensor:
    """Three smooth losses that couple both parameters."""
    x = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.9]], dtype=torch.float64)
    y = torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64)
    x, y = (x, y) if index is None else (x[index], y[index])
    return ((x @ params["a"]).tanh() * params["b"] - y) ** 2


def toy_start() -> Params:
    return {"a": torch.tensor([0.4, -0.6], dtype=torch.float64), "b": torch.tensor(0.7, dtype=torch.float64)}


def sines(params: Params) -> Tensor:
    """An outer loss."""
    return sum(p.sin().sum() for p in params.values())
