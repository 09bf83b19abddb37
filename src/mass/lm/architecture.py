"""Build a model's architecture without its weights: its configuration, and modules on the meta device.

Tensors on the meta device have sizes and no data. For use without the model's files and without a connection, the
published configurations of the models that the recipes name are kept here.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from mass.config import LoraConfig, ModelConfig
from mass.errors import MassError, ModelError
from mass.lm.dtype import choose, device_asked, own_dtype
from mass.lm.load import prompts_of
from mass.lm.lora import LoraSites
from mass.lm.model import LM
from mass.lm.prompts import MATH, with_thinking
from mass.lm.prompts_file import read
from mass.lm.source import find_source


@dataclass(frozen=True)
class Published:
    """The shape of a model, from its published `config.json`."""

    model_type: str
    """Name of the architecture in `transformers.AutoConfig`."""
    source: str
    """The place where the values were published."""
    values: dict[str, Any] = field(default_factory=dict[str, Any])


PUBLISHED: dict[str, Published] = {
    "meta-llama/Llama-3.1-8B-Instruct": Published(
        "llama",
        "https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct/blob/main/config.json; arXiv 2407.21783, table 3",
        {
            "dtype": "bfloat16",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": False,
            "bos_token_id": 128000,
            "eos_token_id": [128001, 128008, 128009],
        },
    ),
    "Qwen/Qwen3-8B": Published(
        "qwen3",
        "https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json; arXiv 2505.09388, table 1",
        {
            "dtype": "bfloat16",
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": False,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
    ),
    "Qwen/Qwen2.5-0.5B-Instruct": Published(
        "qwen2",
        "https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct/blob/main/config.json; arXiv 2412.15115, table 1",
        {
            "dtype": "bfloat16",
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": True,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
    ),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": Published(
        "qwen2",
        "https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct/blob/main/config.json; arXiv 2409.12186, table 1",
        {
            "dtype": "bfloat16",
            "vocab_size": 151936,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "tie_word_embeddings": True,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
        },
    ),
}


@dataclass(frozen=True)
class Architecture:
    """A model without its weights."""

    name: str
    config: Any
    """The configuration object of transformers."""
    source: str
    """The place that the configuration comes from."""
    tokenizer: Any
    """The model's own tokenizer, or `byte_tokenizer()` where its files are not available."""
    own_tokenizer: bool
    """True if `tokenizer` is the model's own."""

    def _asked(self, made: Any, lora: LoraConfig, model: ModelConfig | None = None) -> LM:
        """Make an `LM` of the modules, with the loaded model's prompts, or a chat model's without its tokenizer."""
        sections = read(model.prompts) if model and model.prompts else {}
        prompts = with_thinking(prompts_of(self.tokenizer, sections), model.thinking if model else None)
        rows = {"decode_rows": model.decode_rows} if model else {}
        return LM(made, self.tokenizer, self.name, prompts[MATH], LoraSites(made, lora), **rows).with_prompts(prompts)

    def dtype(self, model: ModelConfig, *, elsewhere: bool = False) -> torch.dtype:
        """Return the precision of the base weights. `elsewhere`: for a GPU that is not in this machine."""
        own = own_dtype(self.config, self.source)
        if elsewhere or (model.device.startswith("cuda") and not torch.cuda.is_available()):
            return choose(model.dtype, own, torch.device("cuda"))[0]
        return choose(model.dtype, own, device_asked(model.device))[0]

    def build(self, model: ModelConfig, lora: LoraConfig, *, elsewhere: bool = False) -> LM:
        """Build the model on the meta device; `elsewhere` as for `dtype`."""
        with torch.device("meta"):
            made: Any = AutoModelForCausalLM.from_config(
                copy.deepcopy(self.config),  # `from_config` writes the precision into it
                dtype=self.dtype(model, elsewhere=elsewhere),
                attn_implementation="sdpa",
            )
        made.eval().requires_grad_(False)
        return self._asked(made, lora, model)

    def shrunk(self, layers: int, lora: LoraConfig, dtype: torch.dtype, device: torch.device) -> LM | None:
        """Make a model of the same kind with random weights, so small that its passes take only the time of Python.

        Timing it gives the overhead of a layer that does not depend on its size. None for a kind that cannot be made so
        small.
        """
        config = copy.deepcopy(self.config.get_text_config())
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, 0)
        for name, value in {**SMALL, "num_hidden_layers": layers}.items():
            if hasattr(config, name):
                setattr(config, name, value)
        if (kinds := getattr(config, "layer_types", None)) is not None:
            config.layer_types = kinds[:layers]
        try:
            made: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
            made.to(device).eval().requires_grad_(False)
            return self._asked(made, lora)
        except (ValueError, TypeError, AttributeError, RuntimeError, MassError):
            return None


END = "<|end|>"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A minimal chat template for a model whose own is not available."""
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 64,
}


def find_architecture(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Architecture:
    """Find a model's architecture in a folder, on the hub or in its cache, else in `PUBLISHED`.

    Raises ModelError where none of them has it.
    """
    try:
        source = find_source(name, revision, trust_remote_code=trust_remote_code)
    except ModelError as error:
        if name not in PUBLISHED:
            raise ModelError(
                f"{error}; of models that are not at hand, only those of the recipes are known: {', '.join(PUBLISHED)}"
            ) from error
        known = PUBLISHED[name]
        return Architecture(
            name, AutoConfig.for_model(known.model_type, **known.values), known.source, byte_tokenizer(), False
        )
    try:
        tokenizer, own = source.make("tokenizer", AutoTokenizer), True
    except ModelError:
        tokenizer, own = byte_tokenizer(), False
    return Architecture(name, source.configuration(), source.place, tokenizer, own)


def byte_tokenizer() -> Any:
    """Make a tokenizer with a token for each byte and a minimal chat template, in place of a model's own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({END: 0, **{byte: i + 1 for i, byte in enumerate(alphabet)}}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)
    wrapped.chat_template = TEMPLATE
    return wrapped
