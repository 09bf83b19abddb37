"""What an engine does, and what one that asks a server must know of the model here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mass.config import SamplingConfig
from mass.lm.lora import LoraSites
from mass.types import Params, Sample


class Engine(Protocol):
    """Continues prompts. Row i is a function of its prompt, seed and adapter, as far as arithmetic repeats itself."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seeds: Sequence[int],
        adapter: Params | None = None,
        *,
        with_logprobs: bool = False,
    ) -> list[Sample]:
        """One continuation of each prompt, under the base, one adapter for all, or a stack of G adapters for G equal
        consecutive blocks of prompts."""
        ...


@dataclass(frozen=True)
class Local:
    """The model here, which the server's must equal."""

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
    """The text before the first of them; None where there is none."""
    logprobs: Callable[[Sequence[int], Sequence[int], Params | None], list[float]]
    """(prompt, tokens, adapter) -> log-probability (nats) of each token."""
    init_adapter: Callable[[int], Params]
    """A fresh adapter of a seed, which changes nothing."""
    prompt: tuple[int, ...]
    """Some prompt, to compare the two with."""

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)
