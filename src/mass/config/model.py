"""The base model and its adapter: which weights, where, how precise, and who samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mass.config.checks import require, require_known
from mass.config.engine import EngineConfig


@dataclass(frozen=True)
class ModelConfig:
    name: str = "tiny-terms"
    """'tiny-terms' (ships with the package), 'smollm2' (a real model of 135 M parameters), or any causal language model
    of transformers: a local folder, a GGUF file, a hub name, or owner/name:file.gguf of the hub."""
    device: str = "auto"
    """'auto' (CUDA where there is one), 'cpu', 'cuda', 'cuda:1', ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Precision of the frozen base weights. auto: as its files have them where the device is fast at that, else
    float32. The adapter is kept in float32 (float64 with a float64 base)."""
    decode_rows: int = 128
    """Sequences sampled side by side at most, and never more than fit the device; the result does not depend on it."""
    device_map: str | dict[str, int | str] | None = None
    """Spreads the layers over several GPUs, by accelerate: auto, balanced, balanced_low_0, sequential, or a mapping
    from parts of the model to devices. None: all on `device`."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """4bit (NF4) or 8bit base weights by bitsandbytes, on a CUDA device (extra quant). A quantised base is a base of
    its own: its checkpoints do not fit the unquantised one."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub."""
    trust_remote_code: bool = False
    """True if Python code that comes with the model may run; read it first."""
    prompts: str | None = None
    """A file of prompts (`mass prompts` prints one); None: a checkpoint's own, or the package's."""
    thinking: bool | None = None
    """True if a model with a thinking switch (Qwen3) thinks aloud before it writes practice and answers. None: the
    prompts decide, by default against it: practice is learned as it is answered, without the thinking before it."""
    engine: EngineConfig = EngineConfig()
    """Who samples: this process, or a server."""

    def __post_init__(self) -> None:
        require_known(self, "model.")
        require(self.decode_rows >= 1, "model.decode_rows", self.decode_rows, "at least 1")


@dataclass(frozen=True)
class LoraConfig:
    r: int = 8
    """Rank r of B A."""
    lora_alpha: float = 16.0
    """The update is (alpha / rank) B A x."""
    target_modules: tuple[str, ...] = ("all-linear",)
    """Suffixes of the names of the linear layers that get an adapter, or 'all-linear' (all but the output head)."""

    def __post_init__(self) -> None:
        require(self.r >= 1, "lora.r", self.r, "at least 1")
        require(self.lora_alpha > 0, "lora.lora_alpha", self.lora_alpha, "a positive number")
