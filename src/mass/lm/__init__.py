"""Load a language model, render prompts, sample, and compute log-probabilities. Only this package uses transformers."""

from mass.lm.load import default_prompts, load_lm
from mass.lm.model import LM, Row

__all__ = ["LM", "Row", "default_prompts", "load_lm"]
