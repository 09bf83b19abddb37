"""Every family of models, as built by transformers: meta-gradients through `LM.losses` equal those of a plain unroll.

In float64 throughout (`small_lms.float64_throughout`) the two agree to about 1e-14; the bound is 1e-9 relative, for
weights, start, rates and adapted values, each tensor on its own.

What cannot be exact:

- The router of a mixture of experts takes the k highest scores: the losses have a jump in their derivative, and where
  scores are equal a jump in their value, wherever the choice changes. The gradient is that of the piece the parameters
  are in; it equals central differences as long as no token changes its experts between the two sides.
- Fused expert weights are tensors of several matrices, not linear layers, and so is the router: they get no adapter.
  Attention, dense layers and shared experts do.
- Gemma 2 caps attention scores, which `scaled_dot_product_attention` cannot: transformers refuses it there.
- `experts_implementation="grouped_mm"`, what transformers chooses by default, has no float64; "eager" has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mass.lm import LM
from mass.metagrad import SGD, AdamW, Optimizer, adapt
from mass.types import Batch, Params
from small_lms import ARCHITECTURES, MIXTURES, float64_throughout, make_lm, random_adapter
from unroll import Rule, adamw, sgd, unroll

BOUND = 1e-9
ADAMW = {"betas": (0.9, 0.99), "eps": 1e-8, "eps_root": 1e-6, "weight_decay": 0.1}
RULES: dict[str, tuple[Callable[..., Optimizer], Rule]] = {
    "sgd": (SGD, sgd()),
    "momentum": (functools.partial(SGD, momentum=0.8), sgd(0.8)),
    "adamw": (functools.partial(AdamW, **ADAMW), adamw(**ADAMW)),
}
RATES = {"sgd": 0.05, "momentum": 0.03, "adamw": 0.01}
FAMILIES = [
    (kind, attention)
    for kind in ARCHITECTURES
    for attention in ("eager", "sdpa")
    if attention != "sdpa" or kind != "Gemma2"
]
Adapt = Callable[[Params, Tensor, dict[str, Tensor]], Params]


@functools.cache
def family(kind: str, attention: str = "eager") -> LM:
    return float64_throughout(make_lm(kind, attn_implementation=attention))


@functools.cache
def batches(lm: LM) -> tuple[Batch, Batch]:
    """Three rows of practice of different lengths, longer than any sliding window, and one row of the outer loss."""
    rows = [lm.example_row(f"Compute {i} + 2{' and more' * i}.", f"{i}+2={i + 2}. Answer: {i + 2}") for i in range(4)]
    practice, outer = lm.batch(rows[:3]), lm.batch(rows[3:])
    assert not practice.attention_mask.all(), "no padding"
    assert practice.input_ids.shape[1] > 12
    return practice, outer


def practice_losses(lm: LM) -> Callable[[Params, Tensor | None], Tensor]:
    batch, _ = batches(lm)
    return lambda params, index=None: lm.losses(batch if index is None else batch.select(index), params)


def ours(lm: LM, name: str, steps: int, micro_batch: int | None, *, checkpoint: bool = False) -> Adapt:
    options = {"micro_batch": micro_batch, "checkpoint": checkpoint}
    return lambda params, weights, rates: adapt(
        practice_losses(lm), params, weights, RULES[name][0](lr=rates), steps, **options
    )


def reference(lm: LM, name: str, steps: int) -> Adapt:
    return lambda params, weights, rates: unroll(practice_losses(lm), params, weights, RULES[name][1], rates, steps)


def meta_gradients(lm: LM, run: Adapt, rate: float) -> Params:
    """Adapted values, and gradients for weights, start and rates, by name. The rates' are one vector: a single one of
    them may cancel to 1e-6 of its terms, where rounding alone moves the ninth digit."""
    params = {name: p.requires_grad_() for name, p in random_adapter(lm).items()}
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    scale = torch.linspace(0.5, 1.5, len(params), dtype=torch.float64)
    rates = {name: (rate * s).requires_grad_() for name, s in zip(params, scale, strict=True)}
    adapted = run(params, weights, rates)
    inputs = {"weights": weights, **params}
    loss = lm.losses(batches(lm)[1], adapted).sum()
    grads = torch.autograd.grad(loss, [*inputs.values(), *rates.values()])
    found = {"rates": torch.stack(grads[len(inputs) :]), **dict(zip(inputs, grads, strict=False))}
    return {**found, **{f"adapted {name}": p.detach() for name, p in adapted.items()}}


def worst_error(got: Params, expected: Params) -> float:
    assert got.keys() == expected.keys()
    assert all(float(value.norm()) > 1e-12 for value in expected.values()), "nothing to compare"
    return max(float((got[name] - expected[name]).norm() / expected[name].norm()) for name in expected)


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(("kind", "attention"), FAMILIES)
def test_equals_the_plain_unroll_one_example_at_a_time(kind: str, attention: str, name: str) -> None:
    lm = family(kind, attention)
    expected = meta_gradients(lm, reference(lm, name, 2), RATES[name])
    assert worst_error(meta_gradients(lm, ours(lm, name, 2, micro_batch=1), RATES[name]), expected) < BOUND


@pytest.mark.parametrize(("kind", "attention"), FAMILIES)
def test_equals_the_plain_unroll_with_layers_checkpointed(kind: str, attention: str) -> None:
    lm = family(kind, attention)
    expected = meta_gradients(lm, reference(lm, "sgd", 2), RATES["sgd"])
    assert worst_error(meta_gradients(lm, ours(lm, "sgd", 2, 2, checkpoint=True), RATES["sgd"]), expected) < BOUND


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_equals_the_plain_unroll_with_padding(kind: str) -> None:
    lm = family(kind)
    expected = meta_gradients(lm, reference(lm, "sgd", 2), RATES["sgd"])
    assert worst_error(meta_gradients(lm, ours(lm, "sgd", 2, micro_batch=None), RATES["sgd"]), expected) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(("kind", "attention"), FAMILIES)
def test_equals_the_plain_unroll_after_sixteen_steps(kind: str, attention: str, name: str) -> None:
    lm = family(kind, attention)
    expected = meta_gradients(lm, reference(lm, name, 16), RATES[name] / 8)
    assert worst_error(meta_gradients(lm, ours(lm, name, 16, micro_batch=2), RATES[name] / 8), expected) < BOUND


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind != "Gemma2"])
def test_attention_implementations_agree(kind: str) -> None:
    """What eager and SDPA compute is the same function, to the second derivative."""
    eager, sdpa = (meta_gradients(lm, ours(lm, "sgd", 2, 1), 0.05) for lm in (family(kind), family(kind, "sdpa")))
    assert worst_error(sdpa, eager) < BOUND


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_float64_throughout_changes_no_more_than_float32_s_rounding(kind: str) -> None:
    """On a row without padding: eager attention with a sliding window gives NaN in a float64 model on padded rows, as
    -1.8e308 becomes -inf in float32, and where all is masked, as between padding, -inf - -inf is NaN."""
    lm = make_lm(kind)
    batch, adapter = batches(lm)[1], random_adapter(lm)
    narrow = lm.losses(batch, adapter)
    wide = float64_throughout(lm).losses(batch, adapter)
    assert torch.allclose(wide, narrow, rtol=3e-5)
    assert kind == "GPT2" or not torch.equal(wide, narrow), "nothing was computed in float32"


# ------------------------------------------------------------------------------- what does not hold everywhere


def test_gemma2_with_sdpa_is_refused() -> None:
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        make_lm("Gemma2", attn_implementation="sdpa")


SITES = {
    "Mixtral": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "Qwen2Moe": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "shared_expert_gate"},
    "Qwen3Moe": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.mark.parametrize("kind", MIXTURES)
def test_fused_experts_and_routers_get_no_adapter(kind: str) -> None:
    sites = [site.name for site in family(kind).adapters.sites]
    assert {name.rsplit(".", 1)[-1] for name in sites} == SITES[kind]
    assert not any("experts." in name or name.endswith("mlp.gate") for name in sites)


@pytest.mark.parametrize("kind", MIXTURES)
def test_grouped_experts_have_no_float64_and_say_so(kind: str) -> None:
    lm = make_lm(kind, experts_implementation="grouped_mm")
    with pytest.raises(RuntimeError, match="got Double"):
        lm.losses(batches(lm)[0], random_adapter(lm))


def choices(lm: LM, run: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What `run` gives, and the experts that every router chose meanwhile."""
    chosen: list[Tensor] = []
    routers = [m for name, m in lm.model.named_modules() if name.endswith("mlp.gate")]
    assert routers
    hooks = [m.register_forward_hook(lambda *call: chosen.append(call[-1][-1].clone())) for m in routers]
    try:
        return run(), chosen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_is_exact_where_the_choice_of_experts_stays(kind: str) -> None:
    """The meta-gradient of the start against central differences; and a step that changes choices is a jump."""
    lm = family(kind)
    start, weights = random_adapter(lm), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    u = {name: p / 0.3 for name, p in random_adapter(lm, seed=1).items()}

    def outer(params: Params) -> Tensor:
        return lm.losses(batches(lm)[1], adapt(practice_losses(lm), params, weights, SGD(lr=0.05), 2)).sum()

    def at(h: float) -> tuple[Tensor, list[Tensor]]:
        return choices(lm, lambda: outer({name: p + h * u[name] for name, p in start.items()}))

    leaves = {name: p.clone().requires_grad_() for name, p in start.items()}
    grads = torch.autograd.grad(outer(leaves), list(leaves.values()))
    slope = sum(float((g * u[name]).sum()) for name, g in zip(leaves, grads, strict=True))
    (above, chosen), (below, others) = at(1e-6), at(-1e-6)
    assert all(torch.equal(a, b) for a, b in zip(chosen, others, strict=True))
    assert float(above - below) / 2e-6 == pytest.approx(slope, rel=1e-6)
    far = at(0.5)[1]
    assert any(not torch.equal(a, b) for a, b in zip(chosen, far, strict=True)), "no step changes the choice here"
