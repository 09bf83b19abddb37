"""Small models that are more than decoders with attention, or less: recurrent layers, windows, latent attention."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from mass.config import LoraConfig
from mass.lm import LM
from mass.lm.lora import LoraSites
from mass.lm.prompts import PLAIN
from small_lms import tokenizer

_COMMON: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
_WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts_per_tok": 1, "experts_implementation": "eager"}
_DELTA = {
    "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
}  # fmt: skip
DECODED: dict[str, dict[str, Any]] = {
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "Qwen3Next": {**_DELTA, **_EXPERTS, "num_experts": 2},
    "Jamba": {
        **_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "GraniteMoeHybrid": {
        **_MAMBA2, **_EXPERTS, "layer_types": ["mamba", "attention"], "mamba_expand": 2, "num_local_experts": 2,
        "shared_intermediate_size": 12,
    },
    "FalconH1": {**_MAMBA2, "mamba_d_ssm": 32},
    "Bamba": {**_MAMBA2, "attn_layer_indices": [1], "mamba_expand": 2},
    "Gemma2": {**_WINDOW, "query_pre_attn_scalar": 8},
    "GptOss": {**_WINDOW, **_EXPERTS, "num_local_experts": 2},
    "Mistral": {"sliding_window": 6},
    "Olmo3": _WINDOW,
    "Llama4Text": {},
    "GPTNeoX": {},
    "DeepseekV3": {
        **_EXPERTS, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 12,
        "n_shared_experts": 1, "first_k_dense_replace": 1, "num_key_value_heads": 2,
    },
}  # fmt: skip
"""Decoded as transformers' own `generate` does."""
REFUSED: dict[str, dict[str, Any]] = {
    "Mamba": {"state_size": 4},
    "Mamba2": {"state_size": 8, "expand": 2, "num_heads": 4, "n_groups": 1, "chunk_size": 8},
    "Rwkv": {"attention_hidden_size": 16, "context_length": 256},
    "RecurrentGemma": {"lru_width": 16, "attention_window_size": 6, "block_types": ("recurrent", "attention")},
    "MiniMax": {
        **_EXPERTS,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 8,
        "num_local_experts": 2,
    },
}
_CLASSES = {"Llama4Text": "Llama4ForCausalLM", "Bert": "BertLMHeadModel"}


def make_hybrid(kind: str, **changes: Any) -> Any:
    """Random weights in float32, far from zero."""
    words = tokenizer()
    options = {**_COMMON, **DECODED.get(kind, {}), **REFUSED.get(kind, {}), "vocab_size": len(words), **changes}
    config = getattr(transformers, f"{kind}Config")(
        pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, **options
    )
    torch.manual_seed(0)
    made = getattr(transformers, _CLASSES.get(kind, f"{kind}ForCausalLM"))(config)
    return made.float().eval().requires_grad_(False)


def hybrid_lm(kind: str) -> LM:
    model = make_hybrid(kind)
    return LM(model, tokenizer(), f"small {kind}", PLAIN, LoraSites(model, LoraConfig(r=2)))
