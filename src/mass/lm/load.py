"""Load any causal language model of transformers, with its tokenizer, as an `LM`."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mass.config import LoraConfig, ModelConfig
from mass.errors import ConfigError, DataError, ModelError
from mass.lm.cache import require_decodable
from mass.lm.dtype import choose, device_asked, own_dtype
from mass.lm.lora import LoraSites
from mass.lm.model import LM
from mass.lm.placement import stay_in_place, weights_options
from mass.lm.prompts import MATH, PromptSet, with_thinking
from mass.lm.prompts_file import Sections, complete, read
from mass.lm.remote.connect import sample_at_server
from mass.lm.source import Source, find_source

log = logging.getLogger(__name__)


def load_lm(config: ModelConfig, lora: LoraConfig, prompts: PromptSet | None = None) -> LM:
    """Load base weights and tokenizer, frozen and in evaluation mode.

    Prompts are `prompts` if given, else those of the file `config.prompts`, else the package's own.

    Raises:
        ModelError: the folder is missing, or holds an incomplete or other model, or another model's tokenizer.
        ConfigError: the device does not exist, a package that an option needs is missing, or the prompts are wrong.
        EngineError: the sampling server cannot be reached, or serves another model.
    """
    device = _device(config.device)
    options = weights_options(config)
    sections = {} if config.prompts is None else read(config.prompts)
    source = find_source(config.name, config.revision, trust_remote_code=config.trust_remote_code)
    tokenizer = source.make("tokenizer", AutoTokenizer)
    model = _model(source, config, device, options)
    _require_tokens(tokenizer, model, config.name)
    if "device_map" in options:
        stay_in_place(model, config.name)
    else:
        model.to(device)
    model.eval().requires_grad_(False)
    require_finite(model, config.name)
    require_decodable(model, config.name, model.get_input_embeddings().weight.device)
    asked = with_thinking(prompts or prompts_of(tokenizer, sections), config.thinking)
    lm = LM(model, tokenizer, config.name, asked[MATH], LoraSites(model, lora), config.decode_rows)
    lm.quantization, lm.thinking = config.quantization, config.thinking
    lm = lm.with_prompts(asked)
    _require_embedded(lm)
    if config.engine.url is not None:
        sample_at_server(lm, config.engine)
    return lm


def default_prompts(lm: LM) -> PromptSet:
    """Return the package's own prompts for a model."""
    return prompts_of(lm.tokenizer, {})


def prompts_of(tokenizer: Any, sections: Sections) -> PromptSet:
    """Return the prompts of a file's sections, completed by the package's own.

    Those depend on whether the tokenizer has a chat template.
    """
    return complete(sections, chat=bool(getattr(tokenizer, "chat_template", None)))


def _model(source: Source, config: ModelConfig, device: torch.device, options: dict[str, Any]) -> Any:
    """Load the weights. Raises ModelError for files that lack some: transformers would fill in random ones."""
    described = source.configuration()
    dtype, why = choose(config.dtype, own_dtype(described, source.place), device)
    if why:
        log.info("%s: %s", config.name, why)
    if getattr(described.get_text_config(), "attn_logit_softcapping", None):
        options = {**options, "attn_implementation": "eager"}  # fused kernels cannot cap scores; see mass.lm.attention
    model, found = source.make(
        "model",
        AutoModelForCausalLM,
        config=described,
        dtype=dtype,
        output_loading_info=True,
        **options,
    )
    if missing := sorted(found.get("missing_keys", ())):
        raise ModelError(
            f"the files of {config.name!r} lack {len(missing)} of its weights, {missing[0]!r} among them; expected "
            "all of them; copy or download the model anew"
        )
    return model


def _require_tokens(tokenizer: Any, model: Any, name: str) -> None:
    """Check that the tokenizer is the model's. Raises ModelError.

    Where files are missing, transformers makes a tokenizer with almost no tokens instead of failing.
    """
    text, rows = "Problem: 2 + 3 = 5", int(model.get_input_embeddings().weight.shape[0])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids or set(ids) <= set(tokenizer.all_special_ids):
        raise ModelError(
            f"the tokenizer of {name!r} knows no words; expected the model's own, tokenizer.json or tokenizer.model "
            "and tokenizer_config.json in its folder; copy them there"
        )
    if max(ids) >= rows:
        raise ModelError(
            f"the tokenizer of {name!r} is of another model: it writes token {max(ids)}, the model has {rows}; copy "
            "the model's own tokenizer into its folder"
        )


def require_finite(model: Any, name: str) -> None:
    """Check that all weights are finite. Raises ModelError; the cause is a damaged file or a training that diverged."""
    for part, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and weight.itemsize > 1:
            low, high = weight.detach().aminmax()
            if not bool((high - low).isfinite()):
                raise ModelError(
                    f"weight {part!r} of {name!r} has NaN or infinite values; expected finite ones; copy or download "
                    "the model anew, or take one from before it diverged"
                )


def _require_embedded(lm: LM) -> None:
    """Check that the embedding has a row for each token of the chat template. Raises ModelError.

    Special tokens that were added to a tokenizer later may have none.
    """
    with suppress(DataError):  # raised by a very short context, against which each problem is checked later anyway
        written = [*lm.solve_prompt("2 + 3"), *lm.target_ids("5")]
        rows = int(lm.model.get_input_embeddings().weight.shape[0])
        if (highest := max(written)) >= rows:
            token = lm.tokenizer.convert_ids_to_tokens(highest)
            raise ModelError(
                f"the chat template of {lm.name!r} is of another model: it writes token {highest} ({token!r}), the "
                f"model has {rows}; copy the model's own tokenizer into its folder, or resize its embedding "
                "(`resize_token_embeddings`) and train it"
            )


def _device(name: str) -> torch.device:
    """Return the device of a name. Raises ConfigError where it does not exist."""
    try:
        device = device_asked(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"model.device is {name!r}, but this machine has no CUDA device; use auto or cpu")
    return device
