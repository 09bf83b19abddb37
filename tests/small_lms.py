"""Small causal language models of several architectures, made from their configurations, and sums to teach one."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from research.pretrain import train_tokenizer
from torch import Tensor

from mass.config import LoraConfig, SamplingConfig
from mass.lm import LM
from mass.lm.lora import LoraSites
from mass.lm.prompts import CHAT, PLAIN
from mass.preflight.doctor.wide import widen
from mass.types import Batch, Params, Sample, Task

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ["Problem: Compute 3 + 4 * 12.\nSolution: 4*12=48. 3+48=51. Answer: 51", "Similar problem: Find the area."]

_COMMON = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_GROUPED = {**_COMMON, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256}
_ALTERNATING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"experts_implementation": "eager", "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": {**_GROUPED, "tie_word_embeddings": True},
    "Qwen2": _GROUPED,
    "Qwen3": _GROUPED,
    "Mistral": {**_GROUPED, "sliding_window": 6},
    "Gemma2": {
        **_GROUPED,
        **_ALTERNATING,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "Gemma3": {**_GROUPED, **_ALTERNATING, "query_pre_attn_scalar": 8},
    "Phi3": {**_GROUPED, "sliding_window": 6},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "Mixtral": {**_GROUPED, "experts_implementation": "eager", "num_local_experts": 3, "num_experts_per_tok": 2},
    "Qwen2Moe": {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 12},
    "Qwen3Moe": {**_GROUPED, **_EXPERTS, "mlp_only_layers": [0]},
}
"""Two layers each, one of each kind where kinds alternate."""
MIXTURES = ("Mixtral", "Qwen2Moe", "Qwen3Moe")
"""Routed experts are fused tensors in transformers 5. Qwen2Moe also has an expert of plain linear layers that every
token visits; Qwen3Moe a layer without experts."""
_CLASSES = {"GPT2": ("GPT2Config", "GPT2LMHeadModel"), "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}


@functools.cache
def tokenizer(context: int = 256, chat: bool = False) -> Any:
    made = train_tokenizer(WORDS * 4, 290, context)
    made.chat_template = TEMPLATE if chat else None
    return made


def make_model(kind: str = "Llama", dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Any:
    """Weights far from zero, so that what is computed depends on all of them."""
    words = tokenizer()
    config_class, model_class = _CLASSES.get(kind, (f"{kind}Config", f"{kind}ForCausalLM"))
    config = getattr(transformers, config_class)(
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        **{"vocab_size": len(words), "initializer_range": 0.3, **ARCHITECTURES[kind], **changes},
    )
    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(config)
    return model.to(dtype).eval().requires_grad_(False)


def make_lm(
    kind: str = "Llama",
    dtype: torch.dtype = torch.float64,
    *,
    chat: bool = False,
    rank: int = 2,
    targets: tuple[str, ...] = ("all-linear",),
    seed: int = 0,
    **changes: Any,
) -> LM:
    model = make_model(kind, dtype, seed, **changes)
    lora = LoraSites(model, LoraConfig(r=rank, lora_alpha=2.0 * rank, target_modules=targets))
    return LM(model, tokenizer(chat=chat), f"small {kind}", CHAT if chat else PLAIN, lora)


def float64_throughout(lm: LM) -> LM:
    """A float64 model without float32 inside, so that two ways to the same number agree to float64's rounding.

    What transformers computes in float32 there: RMSNorm and the angles of rotary embeddings in every family that has
    them, the softmax of eager attention in all but GPT2, the router's softmax in mixtures of experts.
    """
    assert next(lm.model.parameters()).dtype == torch.float64
    widen(lm.model)
    return lm


def random_adapter(lm: LM, seed: int = 0, count: int | None = None, scale: float = 0.3) -> Params:
    """An adapter (a stack of `count`) whose B is not zero, so that it changes what the model says."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if count is None else (count,)

    def like(tensor: Tensor) -> Tensor:
        return scale * torch.randn(*lead, *tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    return {name: like(tensor) for name, tensor in lm.init_adapter(0).items()}


def sample(
    lm: LM, prompts: list[list[int]], adapter: Params | None = None, seed: int = 0, **config: Any
) -> list[Sample]:
    settings = SamplingConfig(**{"max_new_tokens": 16, "temperature": 1.0, **config})
    return lm.sample(prompts, settings, [seed + i for i in range(len(prompts))], adapter)


PROMPTS = ["3 + 4", "Compute 12 * 3 and then the area of it.", "x", "Find 7.", "Solution 5 6 7 8 9", "a b"]


def prompt_ids(lm: LM) -> list[list[int]]:
    """Prompts of different lengths."""
    return [lm.tokenizer(text)["input_ids"] for text in PROMPTS]


def full_logits(lm: LM, batch: Batch, adapter: Params | None = None, rows: Tensor | None = None) -> Tensor:
    with torch.no_grad(), lm.adapters.use(adapter, rows):
        return lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def small_sums() -> list[Task]:
    """The nine problems that `taught_base` has seen, with their golds."""
    return [
        Task(f"Compute {a} + {b}.", f"{a}+{b}={a + b}. Answer: {a + b}", str(a + b), "Algebra", 1, verifier="exact")
        for a in (1, 2, 3)
        for b in (1, 2, 3)
    ]
