"""A name or folder -> `LM`: any causal language model of transformers with its tokenizer."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mass.adapter import LoraSites
from mass.config import LoraConfig, ModelConfig
from mass.errors import ConfigError, ModelError
from mass.lm.model import LM
from mass.prompts import CHAT, PLAIN

TINY = "tiny"


def tiny_folder() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(importlib.resources.files("mass"))) / "models" / TINY


def load_lm(config: ModelConfig, lora: LoraConfig) -> LM:
    """Load base weights and tokenizer, frozen and in evaluation mode.

    Raises:
        ModelError: the folder is missing or holds no causal language model, or its tokenizer cannot pad.
        ConfigError: the device does not exist.
    """
    source = str(tiny_folder() / "base") if config.name == TINY else config.name
    device = _device(config.device)
    if _looks_local(source) and not Path(source).is_dir():
        raise ModelError(
            f"model folder {config.name!r} does not exist; give a folder with config.json, a hub name, or 'tiny'"
        )
    tokenizer = _load("tokenizer", config.name, lambda: AutoTokenizer.from_pretrained(source))
    _require_padding(tokenizer, config.name)
    _load("configuration", config.name, lambda: AutoConfig.from_pretrained(source))
    model = _load(
        "model",
        config.name,
        lambda: AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, config.dtype), attn_implementation="sdpa"
        ),
    )
    model.to(device).eval().requires_grad_(False)
    prompts = CHAT if getattr(tokenizer, "chat_template", None) else PLAIN
    return LM(model, tokenizer, config.name, prompts, LoraSites(model, lora))


def _looks_local(source: str) -> bool:
    """A hub name is `name` or `owner/name`; anything with a leading dot, slash or tilde, or deeper, is a path."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()


def _load(what: str, name: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{what} of {name!r} cannot be loaded ({reason[:200]}); expected a folder or hub name of a causal "
            "language model; check the name, or the files in the folder"
        ) from error


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
