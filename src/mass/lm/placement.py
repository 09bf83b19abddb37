"""Place weights on devices, with or without quantisation, and keep the layers of a spread model checkpointable.

accelerate decides which device each part goes to. Its hooks replace each layer's `forward` on the object, which layer
checkpointing cannot recompute. They are replaced by hooks that run before the layers and move the inputs, so that the
layers themselves stay unchanged.

Reference: 4-bit weights with a LoRA on top, Dettmers et al., arXiv 2305.14314.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from mass.config import ModelConfig
from mass.errors import ConfigError, ModelError

_KEPT = "_mass_elsewhere"
"""Name of the attribute of a tensor with its version and its copies on other devices, so that layers share one mask."""


def weights_options(config: ModelConfig) -> dict[str, Any]:
    """Return options of `from_pretrained` for `device_map` and `quantization`.

    Raises ConfigError for options that exclude each other, a missing package, or a machine without a CUDA device.
    """
    options: dict[str, Any] = {}
    if config.device_map is not None:
        if config.device != "auto":
            raise ConfigError(
                f"model.device is {config.device!r} and model.device_map {config.device_map!r}; expected one of them"
            )
        _require("accelerate", "model.device_map", "accelerate")
        options["device_map"] = config.device_map
    if config.quantization != "none":
        options["quantization_config"] = _quantization(config.quantization)
        options.setdefault("device_map", {"": "cuda:0" if config.device in ("auto", "cuda") else config.device})
    return options


def _quantization(bits: str) -> Any:
    _require("bitsandbytes", f"model.quantization {bits}", "'mass-adapt[quant]'")
    _require("accelerate", f"model.quantization {bits}", "'mass-adapt[quant]'")
    if not torch.cuda.is_available():
        raise ConfigError(f"model.quantization is {bits}, and this machine has no CUDA device; expected one; use none")
    return bits_and_bytes(bits)


def bits_and_bytes(bits: str) -> Any:
    """Return the configuration of bitsandbytes: for 4bit NF4 with quantised scales and bfloat16 products; LLM.int8."""
    from transformers import BitsAndBytesConfig

    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _require(package: str, option: str, install: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{option} needs {package}, which is not installed; `pip install {install}`, or leave it out")


def stay_in_place(model: Any, name: str) -> None:
    """Replace the hooks of accelerate, in a model that it has spread over devices, by those of this module.

    Raises ModelError when a part was left on the CPU or the disk, from which every pass would have to load it.
    """
    places: dict[str, Any] = getattr(model, "hf_device_map", None) or {}
    devices = {str(place) for place in places.values()}
    if len(devices) < 2:
        return
    if slow := [part for part, place in places.items() if str(place) in ("cpu", "disk")]:
        raise ModelError(
            f"{name!r} does not fit the GPUs: {slow[0]!r} was left to the {places[slow[0]]}; expected all of it on "
            "GPUs; use model.quantization 4bit, a smaller model.dtype, or more of them"
        )
    hooks: Any = importlib.import_module("accelerate.hooks")
    hooks.remove_hook_from_module(model, recurse=True)
    # Removing the hooks leaves the class's own `forward` on each object, which would look like a replaced one.
    for module in model.modules():
        own = vars(module).get("forward")
        if own is not None and getattr(own, "__func__", None) is type(module).forward:
            del module.forward
    bring_inputs(model, {part: torch.device(place) for part, place in places.items()})


def bring_inputs(model: nn.Module, places: dict[str, torch.device]) -> None:
    """Register hooks that move the inputs of each of these parts of a model to the part's device."""
    for part, device in places.items():
        model.get_submodule(part).register_forward_pre_hook(_mover(device), with_kwargs=True)


def _mover(device: torch.device) -> Any:
    def move(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ARG001
        return moved(args, device), moved(kwargs, device)

    return move


def moved(value: Any, device: torch.device) -> Any:
    """Return nested tuples, lists and dicts with their tensors on `device`. Other objects, as caches, stay the same."""
    if isinstance(value, Tensor):
        return _moved_tensor(value, device)
    if type(value) in (tuple, list):
        return type(value)(moved(inner, device) for inner in value)
    if type(value) is dict:
        return {key: moved(inner, device) for key, inner in value.items()}
    return value


def _moved_tensor(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on `device`; a copy without a gradient is kept for other layers until the tensor changes."""
    if tensor.device == device:
        return tensor
    if tensor.requires_grad:
        return tensor.to(device)
    version = None if tensor.is_inference() else tensor._version
    kept: Any = getattr(tensor, _KEPT, None)
    if kept is None or kept[0] != version:
        kept = version, dict[torch.device, Tensor]()
        setattr(tensor, _KEPT, kept)
    return kept[1].setdefault(device, tensor.to(device)) if device not in kept[1] else kept[1][device]
