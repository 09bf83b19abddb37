"""Load a language model, render prompts, sample, and compute log-probabilities. Only this package uses transformers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mass.lm.load import default_prompts, load_lm
    from mass.lm.model import LM

_HOMES = {"LM": "model", "default_prompts": "load", "load_lm": "load"}

__all__ = ["LM", "default_prompts", "load_lm"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: prompts are read and printed without torch and transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mass.lm' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"mass.lm.{_HOMES[name]}"), name)
    return value
