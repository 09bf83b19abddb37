"""Check that our decoding, with prompts of unequal length in one batch, writes the same text as `generate`.

transformers' `generate` continues each prompt alone, without padding. Ours continues all of them side by side, with
padding on the left, and takes rows out of the batch as they end. Both run in float64, so that rounding does not decide.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mass.config import SamplingConfig
from mass.errors import ModelError
from mass.lm import LM
from mass.lm.cache import require_decodable

NEW_TOKENS = 16
LENGTHS = (9, 2, 5)
"""Lengths of the prompts in tokens."""


class CutVocabulary(LM):
    """A model whose token ids index a cut vocabulary, so that its tokenizer's ids have no meaning."""

    @property
    def end_ids(self) -> frozenset[int]:
        return frozenset()

    @property
    def pad_id(self) -> int:
        return 0


def differing_texts(lm: LM, seed: int) -> float:
    """Return the share of the prompts that are continued differently.

    Raises:
        ModelError: The model cannot be decoded.
    """
    require_decodable(lm.model, lm.name, lm.device)
    prompts = _prompts(int(lm.model.get_input_embeddings().weight.shape[0]), seed)
    ours = [list(sample.tokens) for sample in lm.sample(prompts, SamplingConfig(NEW_TOKENS, 0.0), [0] * len(prompts))]
    theirs = [_generated(lm, prompt) for prompt in prompts]
    return sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(prompts)


def _prompts(vocabulary: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]


def _generated(lm: LM, prompt: Sequence[int]) -> list[int]:
    ids = torch.tensor([list(prompt)], device=lm.device)
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "num_beams": 1, "repetition_penalty": 1.0}
    try:
        written = lm.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), eos_token_id=None, pad_token_id=0, **settings
        )
    except (ValueError, RuntimeError, TypeError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"transformers' own generate fails on it ({reason}); expected a model that it continues"
        ) from error
    return written[0, len(prompt) :].tolist()
