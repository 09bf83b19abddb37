"""A checkpoint's name -> its folder, and back: the name by which a record says with which weights it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mass.adaptation import checkpoint as checkpoints
from mass.adaptation import hub
from mass.config import LoraConfig, to_dict
from mass.lm import LM
from mass.lm.source import SHIPPED_MODELS, require_no_former, shipped_folder
from mass.types import Adaptation

UNTRAINED = "untrained"
SHIPPED = "mass"
"""The checkpoint that a shipped model is loaded with."""


def origin_of(lm: LM, checkpoint: str | Path | None, state_seed: int | None) -> dict[str, Any]:
    """Return fields of `Adaptation`: the base, and the checkpoint (by its name in the package if it is part of
    that)."""
    name = UNTRAINED if checkpoint is None else _place_in_package(Path(checkpoint)) or str(checkpoint)
    return {
        "checkpoint": None if lm.name in SHIPPED_MODELS and name == f"{lm.name}/{SHIPPED}" else name,
        "state_seed": state_seed,
        "base_fingerprint": checkpoints.fingerprint(lm),
        "dtype": lm.dtype,
        "lora": to_dict(lm.adapters.config),
        "quantization": lm.quantization,
        "engine": lm.sampled_by,
    }


def _place_in_package(checkpoint: Path) -> str | None:
    """Return 'tiny-terms/NAME' for a checkpoint in the package, whatever base it is used with; None for any other."""
    for model in SHIPPED_MODELS:
        folder = shipped_folder(model)
        if folder is not None and checkpoint.resolve().is_relative_to(folder.resolve()):
            return Path(model, checkpoint.resolve().relative_to(folder.resolve())).as_posix()
    return None


def lora_of(record: Adaptation) -> LoraConfig:
    """Return the shape of the record's adapter. Raises TypeError on unknown keys."""
    return checkpoints.lora_config(record.lora) if record.lora else LoraConfig()


def folder_of(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: one that is here, one that ships with the package, or one of the hub, downloaded."""
    folder, (first, *rest) = Path(checkpoint), Path(checkpoint).parts or ("",)
    if folder.is_dir():
        return folder
    shipped = shipped_folder(first)
    if rest and shipped is not None:
        return shipped.joinpath(*rest)
    require_no_former(str(checkpoint))
    return hub.pull(str(checkpoint)) if hub.is_name(str(checkpoint)) else folder
