"""The protocol of what can sample (`Engine`), and the facts about the local model that a server is checked against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mass.config import SamplingConfig
from mass.lm.lora import LoraSites
from mass.types import Params, Sample


class Engine(Protocol):
    """Anything that continues prompts. Row i is a function of its prompt, seed and adapter, except for rounding."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seeds: Sequence[int],
        adapter: Params | None = None,
        *,
        with_logprobs: bool = False,
    ) -> list[Sample]:
        """Sample one continuation of each prompt.

        The adapter is None for the base, one adapter for all, or a stack of G adapters for G equal consecutive blocks
        of prompts.
        """
        ...


@dataclass(frozen=True)
class Local:
    """The model of this process, which the server's model must equal."""

    name: str
    tokenizer: Any
    sites: LoraSites
    end_ids: frozenset[int]
    context: int
    """Longest sequence, in tokens."""
    vocabulary: int
    """Number of tokens that the model can give; the tokenizer may name fewer."""
    stop: tuple[str, ...]
    """Texts that end a continuation."""
    cut: Callable[[str], str | None]
    """A function that returns the text before the first of these texts; None where there is none."""
    logprobs: Callable[[Sequence[int], Sequence[int], Params | None], list[float]]
    """(prompt, tokens, adapter) -> log-probability (nats) of each token."""
    init_adapter: Callable[[int], Params]
    """(seed) -> a new adapter, which changes nothing."""
    prompt: tuple[int, ...]
    """A prompt for the comparison of the two models."""

    def text(self, tokens: Sequence[int]) -> str:
        """Decode tokens, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)
