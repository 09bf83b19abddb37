"""Check the values of `--model_args`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mass.config.checks import require
from mass.errors import ConfigError, nearest
from mass.lm.prompts import KINDS

TEXTS = (
    "pretrained", "checkpoint", "device", "dtype", "device_map", "quantization", "revision", "prompts", "kind", "out",
)  # fmt: skip
AUTO_BATCH = 8
"""Number of documents processed side by side for `--batch_size auto`."""


@dataclass(frozen=True)
class Arguments:
    """The values that `--model mass` takes in `--model_args`, separated by commas, and from `--batch_size` and
    `--device`."""

    pretrained: str = ""
    """A model as `mass.load` takes it: tiny-terms, smollm2, a folder, a GGUF file, or a hub name."""
    checkpoint: str | None = None
    """A run folder of `mass train`, or untrained; by default the shipped one for a shipped model, else untrained."""
    device: str = "auto"
    """auto, cpu, cuda:1, ... (`--device`). cuda:0, the harness's own default, is treated as auto."""
    dtype: str = "auto"
    """Precision of the base: float32, bfloat16, float16 or float64. auto: that of its files, where the device is
    fast with it."""
    device_map: str | None = None
    """Spreads the layers over several GPUs: auto, balanced, ..."""
    quantization: str | None = None
    """Base weights in 4bit or 8bit, by bitsandbytes."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    thinking: bool | None = None
    """True if a model with a thinking switch thinks aloud while it writes practice; answers follow the harness's
    prompts."""
    adapt: bool = True
    """false: the same weights without any adaptation; with checkpoint=untrained, the base alone."""
    examples: int | None = None
    """m: practice problems for each document; by default the checkpoint's own number."""
    steps: int | None = None
    """K: gradient steps; by default the checkpoint's own number."""
    seed: int = 0
    """Seed of the practice, together with the document's number; `mass eval --seed` draws the same."""
    batch_size: int = 1
    """Documents adapted side by side (`--batch_size`). More may change the last bits of a result."""
    max_gen_toks: int = 256
    """Maximum number of generated tokens per answer, where the task does not say."""
    prompts: str | None = None
    """A file of prompts for practice, as `mass prompts` prints one; by default the checkpoint's own."""
    kind: str | None = None
    """Kind of the problems, which chooses the prompts for practice: math, code, choice or other. By default choice
    where log-likelihoods are asked for, else math."""
    decode_rows: int = 128
    """Maximum number of sequences sampled side by side; bounds memory."""
    out: str | None = None
    """A new folder for one JSON line per document: its practice, its cost, its answers."""

    def __post_init__(self) -> None:
        require(self.examples is None or self.examples >= 1, "examples", self.examples, "at least 1")
        require(self.steps is None or self.steps >= 0, "steps", self.steps, "0 or more")
        require(self.kind is None or self.kind in KINDS, "kind", self.kind, f"one of {', '.join(KINDS)}")
        for name in ("batch_size", "max_gen_toks", "decode_rows"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")


def arguments_of(given: Mapping[str, Any]) -> Arguments:
    """Return the arguments from the values that the harness parsed: texts, numbers, booleans. None counts as absent.

    Raises:
        ConfigError: A name is not a field of `Arguments`, or a value cannot be used.
    """
    known = [field.name for field in fields(Arguments)]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name == "max_batch_size" or value is None:  # belongs to the harness's own search for a batch size
            continue
        if name not in known:
            raise ConfigError(
                f"--model_args has {name}={value}, which --model mass does not take{nearest(name, known)}"
            )
        values[name] = _checked(name, value)
    return Arguments(**values)


def _checked(name: str, value: Any) -> Any:
    if name == "batch_size" and str(value).startswith("auto"):
        return AUTO_BATCH
    if name == "device" and str(value) in (
        "cuda",
        "cuda:0",
    ):  # the harness passes this even without a GPU, and to each of several processes
        return "auto"
    if name in ("adapt", "thinking"):
        return _boolean(name, value)
    return str(value) if name in TEXTS else _whole(name, value)


def _boolean(name: str, value: Any) -> bool:
    said = str(value).lower()
    if said not in ("true", "false"):
        raise ConfigError(f"{name} is {value!r}; expected true or false; change it in --model_args")
    return said == "true"


def _whole(name: str, value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise ConfigError(f"{name} is {value!r}; expected a whole number; change it in --model_args") from None
