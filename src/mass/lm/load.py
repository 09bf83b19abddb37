"""A name or folder -> `LM`: any causal language model of transformers with its tokenizer."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mass.adapter import LoraSites
from mass.config import LoraConfig, ModelConfig
from mass.errors import ConfigError, ModelError
from mass.lm.model import LM
from mass.prompts import CHAT, PLAIN

TINY = "tiny"
HUB_TIMEOUT_S = 5.0


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
    local = Path(source).is_dir() or not _hub_answers()
    where: dict[str, Any] = {"local_files_only": local}
    _require_files(source, config.name, local)
    tokenizer = _load("tokenizer", config.name, AutoTokenizer, source, **where)
    _require_padding(tokenizer, config.name)
    dtype = getattr(torch, config.dtype)
    model = _load("model", config.name, AutoModelForCausalLM, source, dtype=dtype, **where)
    model.to(device).eval().requires_grad_(False)
    prompts = CHAT if getattr(tokenizer, "chat_template", None) else PLAIN
    return LM(model, tokenizer, config.name, prompts, LoraSites(model, lora), config.decode_rows)


def _looks_local(source: str) -> bool:
    """A hub name is `name` or `owner/name`; anything with a leading dot, slash or tilde, or deeper, is a path."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()


def _hub_answers() -> bool:
    """One short request, through the user's proxy; the library's own would be tried for most of a minute."""
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:  # of whichever HTTP library this version of the hub's client uses, or offline mode
        return False
    return True


def _require_files(source: str, name: str, local: bool) -> None:
    """Raises ModelError when the configuration, which every model has, is neither here nor to be had."""
    try:
        AutoConfig.from_pretrained(source, local_files_only=local)
    except (OSError, ValueError, KeyError) as error:
        if local and not Path(source).is_dir():
            raise ModelError(
                f"model {name!r} is no folder here, is not in the hub's cache, and the hub cannot be reached; give a "
                "folder with config.json, 'tiny', or go online"
            ) from error
        raise _cannot_load("configuration", name, error) from error


def _cannot_load(what: str, name: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"{what} of {name!r} cannot be loaded ({reason[:200]}); expected a folder or hub name of a causal "
        "language model; check the name, or the files in the folder"
    )


def _load(what: str, name: str, kind: Any, source: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(what, name, error) from error


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
