"""The one package that knows transformers: load a model, render prompts, sample, compute log-probabilities."""

from mass.lm.load import default_prompts, load_lm
from mass.lm.model import LM, Row

__all__ = ["LM", "Row", "default_prompts", "load_lm"]
