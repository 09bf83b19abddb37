"""Folders with small models of the families that people use: configuration, tokenizer, template, weights in shards.

Each template writes turns with the markers and the peculiarities of its family; none is the family's own text.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Problem: Compute 3 + 4 * 12.\nSolution: 4*12=48. 3+48=51. Answer: 51",
    "Here is a problem:\n\nFind the area of it.\n\nReason step by step, and put your final answer within \\boxed{}.",
    "<think>\n\n</think>\n\nuser assistant system model Today Date: 26 Jul 2024",
]
LLAMA3 = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set said = messages[0].content %}\
{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}\
<|start_header_id|>system<|end_header_id|>

Today Date: {{ date_string if date_string is defined else strftime_now('%d %b %Y') }}

{{ said }}<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last and THINKS %}<think>

</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if THINKS and enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\
{{ raise_exception('Conversation roles must alternate user/assistant') }}{% elif m.role == 'user' %}\
[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""
GEMMA = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}<start_of_turn>\
{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
PHI3 = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}"""


@dataclass(frozen=True)
class Family:
    """What is peculiar to one family."""

    classes: tuple[str, str]
    """Configuration and model in transformers."""
    template: str | None
    bos: str | None
    eos: str
    turn_end: str
    """What ends an assistant's turn."""
    others: tuple[str, ...] = ()
    """Special tokens besides."""
    pad: str | None = None
    adds_bos: bool = True
    """Whether the tokenizer writes `bos` before every text."""
    sentencepiece: bool = False
    config: dict[str, Any] | None = None


def _of(kind: str) -> tuple[str, str]:
    return f"{kind}Config", f"{kind}ForCausalLM"


_HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
_TURNS = ("<start_of_turn>", "<end_of_turn>")
_ALTERNATING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
FAMILIES = {
    "Llama-3": Family(
        _of("Llama"), LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", _HEADERS,
        config={"tie_word_embeddings": False},
    ),
    "Qwen2": Family(
        _of("Qwen2"), CHATML.replace("THINKS", "false"), None, "<|im_end|>", "<|im_end|>",
        ("<|im_start|>", "<|endoftext|>"), "<|endoftext|>", adds_bos=False, config={"tie_word_embeddings": True},
    ),
    "Qwen3": Family(
        _of("Qwen3"), CHATML.replace("THINKS", "true"), None, "<|im_end|>", "<|im_end|>",
        ("<|im_start|>", "<|endoftext|>"), "<|endoftext|>", adds_bos=False, config={"tie_word_embeddings": True},
    ),
    "Mistral": Family(
        _of("Mistral"), MISTRAL, "<s>", "</s>", "</s>", ("<unk>",), sentencepiece=True, config={"sliding_window": 6}
    ),
    "Gemma-2": Family(
        _of("Gemma2"), GEMMA, "<bos>", "<eos>", "<end_of_turn>", _TURNS, "<pad>", sentencepiece=True,
        config={**_ALTERNATING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "Gemma-3": Family(
        ("Gemma3TextConfig", "Gemma3ForCausalLM"), GEMMA, "<bos>", "<eos>", "<end_of_turn>", _TURNS, "<pad>",
        sentencepiece=True, config=_ALTERNATING,
    ),
    "Phi-3": Family(
        _of("Phi3"), PHI3, "<s>", "<|endoftext|>", "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>"),
        "<|endoftext|>", adds_bos=False, sentencepiece=True, config={"sliding_window": 6},
    ),
}  # fmt: skip
_SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.3,
}  # fmt: skip


@functools.cache
def tokenizer_of(name: str) -> Any:
    """Byte-level, or as sentencepiece: spaces are ▁, and one is put at the start of a text."""
    family = FAMILIES[name]
    special = [t for t in dict.fromkeys((family.bos, family.eos, family.pad, family.turn_end, *family.others)) if t]
    made = Tokenizer(models.BPE(byte_fallback=family.sentencepiece))
    alphabet = [f"<0x{i:02X}>" for i in range(256)] if family.sentencepiece else []
    if family.sentencepiece:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        made.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        letters = sorted({letter for text in TEXTS for letter in text})
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=[*special, *alphabet], initial_alphabet=letters, show_progress=False
        )
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    made.train_from_iterator(TEXTS * 2, trainer)
    if family.bos and family.adds_bos:
        start = (family.bos, made.token_to_id(family.bos))
        made.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A $B", special_tokens=[start]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=family.bos, eos_token=family.eos, pad_token=family.pad,
        additional_special_tokens=[t for t in special if t not in (family.bos, family.eos, family.pad)],
    )  # fmt: skip
    tokenizer.chat_template = family.template
    return tokenizer


def make_folder(name: str, folder: Path, *, shard: str = "8KB", **changes: Any) -> Path:
    """Weights far from zero, in bfloat16's own values, in several files with an index."""
    family, words = FAMILIES[name], tokenizer_of(name)
    config_class, model_class = family.classes
    ends = [words.convert_tokens_to_ids(t) for t in dict.fromkeys((family.eos, family.turn_end))]
    config = getattr(transformers, config_class)(
        vocab_size=len(words), pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, **{**_SMALL, **(family.config or {}), **changes},
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder, max_shard_size=shard)
    words.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    return folder
