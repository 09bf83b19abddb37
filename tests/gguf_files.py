"""GGUF files as llama.cpp's converter writes them, of a small Llama with a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from family_folders import CHATML, tokenizer_of

TEMPLATE = CHATML.replace("THINKS", "false")
_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_HEADS, _KEYS = 2, 1


def small_llama(seed: int = 0) -> Any:
    """Widths that blocks of 32 weights divide."""
    words = tokenizer_of("Qwen2")
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=_HEADS,
        num_key_value_heads=_KEYS, head_dim=16, max_position_embeddings=512, initializer_range=0.3,
        rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


def write_gguf(
    file: Path, model: Any, kind: str = "F32", *, architecture: str = "llama", leave_out: str = "", **more: Any
) -> Path:
    """`kind`: of the matrices, as ggml names it. `more`: keys of metadata, `__` for each dot."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, architecture)
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KEYS)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    for name, value in more.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_string
        add(name.replace("__", "."), value)
    for name, tensor in model.state_dict().items():
        if leave_out and leave_out in name:
            continue
        _add_tensor(writer, name, tensor, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: Any) -> None:
    words = tokenizer_of("Qwen2")
    tokens = [words.convert_ids_to_tokens(i) for i in range(len(words))]
    special = set(words.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(len(words))])
    described = words.backend_tokenizer.to_str()
    merges = transformers.tokenization_utils_base.json.loads(described)["model"]["merges"]
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in merges])
    writer.add_eos_token_id(words.eos_token_id)
    writer.add_pad_token_id(words.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def _add_tensor(writer: Any, name: str, tensor: torch.Tensor, kind: str) -> None:
    array = tensor.float().numpy()
    if ".q_proj" in name or ".k_proj" in name:
        array = _interleaved(array, _HEADS if ".q_proj" in name else _KEYS)
    if array.ndim == 1 or kind == "F32":
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(array, dtype=np.float32))
        return
    stored = getattr(gguf.GGMLQuantizationType, kind)
    writer.add_tensor(_gguf_name(name), gguf.quants.quantize(array, stored), raw_dtype=stored)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring pairs, transformers halves."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


def _gguf_name(name: str) -> str:
    ends = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    ends["lm_head.weight"] = "output.weight"
    if name in ends:
        return ends[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"
