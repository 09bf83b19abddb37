"""The engine and the model on CUDA: the CPU's numbers, bf16, and a memory budget that is kept. Skipped without one."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from mass.adaptation.batch import Practice
from mass.config import LoraConfig
from mass.lm import LM
from mass.lm.lora import LoraSites
from mass.lm.prompts import PLAIN
from mass.metagrad import SGD, AdamW, Optimizer, adapt
from mass.types import Batch, Params
from small_lms import float64_throughout, make_model, random_adapter, tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none"),
]
TASKS, EXAMPLES, TOKENS = 2, 3, 12
WIDE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "initializer_range": 0.02,
}


class WideRotary(nn.Module):
    """Rotary embedding in float64; transformers' goes through float32, whose cosine differs between devices."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.inverse: Tensor = like.get_buffer("inv_freq").double()

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * self.inverse.to(x.device)
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def lm_on(device: str, dtype: torch.dtype, **changes: object) -> LM:
    model = make_model("Llama", dtype, **changes)
    if dtype == torch.float64:
        model.model.rotary_emb = WideRotary(model.model.rotary_emb)
    model.to(device)
    lm = LM(model, tokenizer(), "on a device", PLAIN, LoraSites(model, LoraConfig(r=2, lora_alpha=4.0)))
    return float64_throughout(lm) if dtype == torch.float64 else lm


def random_rows(lm: LM, rows: int, tokens: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, lm.model.config.vocab_size, (rows, tokens), generator=generator).to(lm.device)
    counted = torch.zeros_like(ids, dtype=torch.bool)
    counted[:, tokens // 2 :] = True
    return Batch(ids, torch.ones_like(ids), counted)


def meta_gradient(lm: LM, optimizer: str = "sgd", micro_batch: int | None = None, scale: float = 0.3) -> list[Tensor]:
    """Of the targets' loss, for a stack of two tasks: with respect to the weights, the start and the rates."""
    owners = torch.arange(TASKS * EXAMPLES, device=lm.device) // EXAMPLES
    rows = random_rows(lm, TASKS * EXAMPLES, TOKENS, 1)
    practice = Practice(lm, rows, owners, torch.arange(len(rows), device=lm.device) % EXAMPLES)
    start = {n: t.to(lm.device).requires_grad_() for n, t in random_adapter(lm, count=TASKS, scale=scale).items()}
    weights = torch.linspace(0.1, 0.6, len(rows), device=lm.device, dtype=lm.adapter_dtype).requires_grad_()
    rates = {n: torch.full((), 0.02, device=lm.device, dtype=lm.adapter_dtype).requires_grad_() for n in start}
    rule: Optimizer = SGD(lr=rates, momentum=0.5) if optimizer == "sgd" else AdamW(lr=rates, eps_root=1e-6)
    adapted = adapt(practice.losses, start, weights, rule, steps=2, micro_batch=micro_batch)
    loss = lm.losses(random_rows(lm, TASKS, TOKENS, 2), adapted, torch.arange(TASKS, device=lm.device)).sum()
    return [g.cpu() for g in torch.autograd.grad(loss, [weights, *start.values(), *rates.values()])]


def furthest(mine: list[Tensor], reference: list[Tensor]) -> float:
    """Largest relative error of a tensor."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, reference, strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_meta_gradient_on_a_gpu_is_that_of_the_cpu(attention: str, optimizer: str) -> None:
    cpu, gpu = (lm_on(device, torch.float64, attn_implementation=attention) for device in ("cpu", "cuda"))
    reference = meta_gradient(cpu, optimizer)
    assert furthest(meta_gradient(gpu, optimizer), reference) < 1e-9
    assert furthest(meta_gradient(gpu, optimizer, micro_batch=2), reference) < 1e-9


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_bf16_base_gives_float32_gradients_near_the_float32_ones(attention: str) -> None:
    changes = {"attn_implementation": attention, "initializer_range": 0.1}
    exact = meta_gradient(lm_on("cuda", torch.float32, **changes), scale=0.05)
    rounded = meta_gradient(lm_on("cuda", torch.bfloat16, **changes), scale=0.05)
    assert {g.dtype for g in rounded} == {torch.float32}
    mine, reference = (torch.cat([g.flatten() for g in grads]) for grads in (rounded, exact))
    assert mine.isfinite().all()
    assert torch.cosine_similarity(mine, reference, dim=0) > 0.95


@pytest.mark.parametrize("memory_gb", [0.3, 1.0, 4.0])
def test_a_memory_budget_is_kept(memory_gb: float) -> None:
    lm = lm_on("cuda", torch.float32, **WIDE)
    batch = random_rows(lm, 8, 256, 1)
    start = {n: t.to(lm.device).requires_grad_() for n, t in random_adapter(lm, scale=0.02).items()}
    weights = torch.full((8,), 1 / 8, device=lm.device, requires_grad=True)

    def losses(params: Params, index: Tensor | None) -> Tensor:
        return lm.losses(batch if index is None else batch.select(index), params)

    def run() -> None:
        adapted = adapt(losses, start, weights, SGD(lr=0.1), steps=4, memory_gb=memory_gb)
        torch.autograd.grad(sum(p.square().sum() for p in adapted.values()), [weights, *start.values()])

    run()  # kernels' own workspaces are made once
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    assert torch.cuda.max_memory_allocated() - held < memory_gb * 1e9


def other_places() -> dict[str, AbstractContextManager[object]]:
    places: dict[str, AbstractContextManager[object]] = {"another stream": torch.cuda.stream(torch.cuda.Stream())}
    if torch.cuda.device_count() > 1:
        places["another current device"] = torch.cuda.device(1)
    return places


def test_results_do_not_depend_on_the_current_stream_or_device() -> None:
    lm = lm_on("cuda:0", torch.float64)
    reference = meta_gradient(lm)
    torch.cuda.synchronize()
    for name, place in other_places().items():
        with place:
            found = meta_gradient(lm)
        torch.cuda.synchronize()
        assert furthest(found, reference) < 1e-12, name
