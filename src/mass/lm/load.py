"""A name or folder -> `LM`: any causal language model of transformers with its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mass.adapter import LoraSites
from mass.config import LoraConfig, ModelConfig
from mass.errors import ConfigError, ModelError
from mass.lm.model import LM
from mass.lm.source import find_source
from mass.prompts import CHAT, PLAIN


def load_lm(config: ModelConfig, lora: LoraConfig) -> LM:
    """Load base weights and tokenizer, frozen and in evaluation mode.

    Raises:
        ModelError: the folder is missing or holds no causal language model, or its tokenizer cannot pad.
        ConfigError: the device does not exist.
    """
    device = _device(config.device)
    source = find_source(config.name)
    tokenizer = source.make("tokenizer", AutoTokenizer)
    _require_padding(tokenizer, config.name)
    model = source.make("model", AutoModelForCausalLM, dtype=getattr(torch, config.dtype))
    model.to(device).eval().requires_grad_(False)
    prompts = CHAT if getattr(tokenizer, "chat_template", None) else PLAIN
    return LM(model, tokenizer, config.name, prompts, LoraSites(model, lora), config.decode_rows)


def _require_padding(tokenizer: Any, name: str) -> None:
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer of {name!r} has no padding token; expected one; set it once with "
            "tokenizer.pad_token = tokenizer.eos_token; tokenizer.save_pretrained(folder)"
        )
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {name!r} has no end token; expected eos_token in its configuration")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device is {name!r}, but this machine has no CUDA device; use auto or cpu")
    return device
