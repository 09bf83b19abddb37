"""Connect an `LM` to a sampling server; everything but sampling stays in this process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mass.config import EngineConfig
from mass.lm.model import LM
from mass.lm.remote import HttpEngine, Local, check_agreement
from mass.types import Params

PROBLEM = "Find the sum of the first 20 odd numbers, and say in words why it is a square."
"""The problem whose prompt is used to compare the server with the model here."""


def sample_at_server(lm: LM, config: EngineConfig) -> None:
    """Make `lm.sample` use the server, after checking that it serves the same model. Raises EngineError."""
    engine = HttpEngine.connect(_local(lm), config)
    if config.check:
        check_agreement(engine)
    lm.engine, lm.engine_config, lm.sampled_by = engine, config, engine.description
    lm.engine_of = lambda other: HttpEngine(_local(other), config, engine.served)


def _local(lm: LM) -> Local:
    """Describe the model of this process for its sampling server."""

    @torch.no_grad()
    def logprobs(prompt: Sequence[int], tokens: Sequence[int], adapter: Params | None) -> list[float]:
        values, _ = lm.token_logprobs(lm.batch([(list(prompt), list(tokens))]), adapter)
        return values[0].tolist()

    return Local(
        name=lm.name,
        tokenizer=lm.tokenizer,
        sites=lm.adapters,
        end_ids=lm.end_ids,
        context=lm.context,
        vocabulary=int(lm.model.config.get_text_config().vocab_size),
        stop=lm.prompts.stop,
        cut=lm.cut,
        logprobs=logprobs,
        init_adapter=lm.init_adapter,
        prompt=tuple(lm.solve_prompt(PROBLEM)),
    )
