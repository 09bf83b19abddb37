"""Continue texts, or score given continuations, exactly as the harness's own models do.

A text is encoded as a whole, with the special tokens that the tokenizer adds (once), and cut from the left where it
does not fit. So with unadapted weights the numbers are those of `lm_eval --model hf`.

Legend: N rows, n tokens that count, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from mass.errors import ConfigError
from mass.evaluation.lm_eval.requests import Continuation
from mass.lm import LM
from mass.lm.sampling import StopStrings, sample_rows
from mass.types import Params, Sample

TOKENS_PER_PASS = 1024
"""Maximum number of continuation tokens in one pass: each takes a row of V log-probabilities."""


@dataclass(frozen=True)
class Scored:
    """A continuation whose likelihood is asked for."""

    context: tuple[int, ...]
    """Token ids before the continuation."""
    tokens: tuple[int, ...]
    """Token ids of the continuation."""
    weights: int = 0
    """Index of the adapter in the stack."""


@dataclass
class TextSampler:
    """A language model that is asked in the harness's way."""

    lm: LM
    cut: int = 0
    """Number of texts that have been cut."""
    _stops: dict[tuple[str, ...], StopStrings] = field(default_factory=dict[tuple[str, ...], StopStrings])

    # --- text to tokens

    @property
    def prefix_id(self) -> int:
        """The token that stands before a text without context."""
        tokenizer = self.lm.tokenizer
        return int(tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text. A text that already begins with the first special token, as chat templates
        write it, gets no second one."""
        begun = text.startswith(self.lm.tokenizer.decode([self.prefix_id]))
        options = {"add_special_tokens": False} if begun else {}
        return list(self.lm.tokenizer(text, **options)["input_ids"])

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the token ids of context and continuation.

        Space at the end of the context belongs to the continuation, since tokens of most models begin with the space
        before a word.
        """
        kept = context.rstrip()
        if not context:
            tokens = list(self.lm.tokenizer(continuation, add_special_tokens=False)["input_ids"])
            return ([self.prefix_id], tokens) if tokens[:1] != [self.prefix_id] else (tokens[:1], tokens[1:])
        before = self.encode(kept)
        return before or [self.prefix_id], self.encode(context + continuation)[len(before) :]

    def _fitted(self, context: Sequence[int], room: int) -> list[int]:
        """Return the last tokens of a context, so that `room` more fit into the model's context."""
        start = max(0, len(context) - max(1, self.lm.context - room))
        self.cut += start > 0
        return list(context[start:])

    def windows(self, text: str) -> list[Scored]:
        """Split a text into contexts and continuations that predict each token once.

        The first token is predicted from the tokenizer's own first token; every window but the first is as long as the
        model's context.
        """
        tokens, most = (
            [self.prefix_id, *self.lm.tokenizer(text, add_special_tokens=False)["input_ids"]],
            self.lm.context,
        )
        found: list[Scored] = []
        for start in range(1, len(tokens), most - 1):
            end = min(len(tokens), start + most - 1)
            first = max(0, end - most)
            found.append(Scored(tuple(tokens[first:start]), tuple(tokens[start:end])))
        return found

    # --- asking

    def continued(
        self, texts: Sequence[str], how: Continuation, seeds: Sequence[int], adapter: Params | None
    ) -> list[Sample]:
        """Return a continuation of each text.

        Raises:
            ConfigError: The tokens to generate do not fit into the model's context.
        """
        room = how.sampling.max_new_tokens
        if room >= self.lm.context:
            raise ConfigError(
                f"{room} tokens are to be generated, and {self.lm.name!r} reads {self.lm.context}; give fewer by "
                "--gen_kwargs max_gen_toks=N, or as model argument max_gen_toks where the task does not say"
            )
        if how.until not in self._stops:
            self._stops[how.until] = StopStrings(self.lm.tokenizer, how.until)
        prompts = [self._fitted(self.encode(text), room) for text in texts]
        return sample_rows(self.lm, prompts, how.sampling, seeds, adapter, self._stops[how.until])

    @torch.no_grad()
    def likelihoods(self, asked: Sequence[Scored], adapter: Params | None) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, True if greedy decoding would give it) for each continuation.

        Choices of one token after the same context share a row. `adapter` is a single adapter, or a stack that
        `Scored.weights` indexes.
        """
        found: dict[int, tuple[float, bool]] = {}
        stacked = adapter is not None and next(iter(adapter.values())).dim() == 3
        for rows in _passes(_shared(asked), asked, self.lm.decode_rows):
            firsts = [asked[row[0]] for row in rows]
            batch = self.lm.batch([(self._fitted(s.context, len(s.tokens)), list(s.tokens)) for s in firsts])
            which = torch.tensor([s.weights for s in firsts], device=self.lm.device) if stacked else None
            predictions = self.lm.predictions(batch, adapter, which).by_length([len(s.tokens) for s in firsts])
            for row, predicted in zip(rows, predictions, strict=True):
                tokens = torch.tensor([asked[number].tokens for number in row], device=self.lm.device)
                logprobs, best = predicted.of(tokens)
                for number, total, greedy in zip(row, logprobs.sum(1).tolist(), best.all(1).tolist(), strict=True):
                    found[number] = (total, greedy)
        return [
            found.get(number, (0.0, True)) for number in range(len(asked))
        ]  # an empty continuation has probability 1


def _shared(asked: Sequence[Scored]) -> list[list[int]]:
    """Group the indices that one row can answer: equal weights, context, and tokens except for the last."""
    rows: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for number, scored in enumerate(asked):
        if scored.tokens:
            rows.setdefault((scored.weights, scored.context, scored.tokens[:-1]), []).append(number)
    return list(rows.values())


def _passes(rows: Sequence[list[int]], asked: Sequence[Scored], most_rows: int) -> Iterator[list[list[int]]]:
    """Yield consecutive rows, as many as may be computed at once."""
    part: list[list[int]] = []
    counted = 0
    for row in rows:
        tokens = len(asked[row[0]].tokens)
        if part and (len(part) == most_rows or counted + tokens > TOKENS_PER_PASS):
            yield part
            part, counted = [], 0
        part.append(row)
        counted += tokens
    if part:
        yield part
