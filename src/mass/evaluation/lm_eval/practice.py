"""Practise on documents: a stack of adapters, and a record of each adaptation with its cost.

The practice of a document is a function of its problem, its number and the seed. No gold takes part, and neither do the
other documents (up to rounding). Its seed is that of `mass eval` for the row of the same number.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mass import timing
from mass.adaptation.adapt import practise
from mass.config import AdaptConfig
from mass.errors import DataError, RunError
from mass.evaluation.lm_eval.requests import Document, Key
from mass.lm import LM
from mass.model import Mass
from mass.runs.folder import json_values
from mass.seeds import derive
from mass.types import Adaptation, Params

TOO_LONG = "problem too long"
"""The reason given for answering a document with the unadapted weights when, together with the prompt that asks for
practice, it exceeds the model's context. Other reasons are those of `Adaptation.fallback`."""


@dataclass(frozen=True)
class AdaptedWeights:
    """The adapters that documents are answered with."""

    params: Params
    stacked: bool
    """True if `params` is a stack with an adapter for each document, False if it is one adapter for all."""

    def of(self, numbers: Sequence[int]) -> Params:
        """Return a stack for these documents, or the one adapter for all."""
        return {name: tensor[list(numbers)] for name, tensor in self.params.items()} if self.stacked else self.params


@dataclass(frozen=True)
class Cost:
    """The cost of one document, or of many."""

    documents: int = 0
    adapted: int = 0
    """Number of documents answered by adapted weights."""
    tokens: int = 0
    """Generated tokens: practice and answers."""
    seconds: float = 0.0
    """Wall-clock seconds, divided equally among documents that were adapted and answered side by side."""
    fallbacks: Counter[str] = field(default_factory=Counter[str])
    """Number of documents answered by unadapted weights, by reason."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.documents + other.documents,
            self.adapted + other.adapted,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            self.fallbacks + other.fallbacks,
        )


@dataclass
class Entry:
    """The practice, cost and seed of one document."""

    key: Key
    problem: str
    seed: int
    adaptation: Adaptation | None = None
    fallback: str = ""
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def cost(self) -> Cost:
        adapted = self.adaptation is not None and not self.fallback
        reasons = Counter([self.fallback] if self.fallback else [])
        return Cost(1, int(adapted), sum(self.tokens.values()), sum(self.seconds.values()), reasons)


@dataclass
class DocumentPractice:
    """A model that practises on documents, with an entry for each document so far."""

    model: Mass
    config: AdaptConfig
    seed: int = 0
    adapt: bool = True
    entries: dict[Key, Entry] = field(default_factory=dict[Key, Entry])

    def seed_of(self, key: Key) -> int:
        """Return the seed of a document's practice."""
        return derive(self.seed, "eval", key[1])

    def weights(self, documents: Sequence[Document], kind: str | None = None) -> AdaptedWeights:
        """Return the adapters for these documents. A document seen before is adapted again on the same examples.

        Args:
            kind: Kind of the problems, which chooses the prompts (`mass.lm.prompts.KINDS`). None: the model's current
                kind.
        """
        lm = self.model.lm if kind is None else self.model.lm.asking(kind)
        for document in documents:
            entry = Entry(document.key, document.problem, self.seed_of(document.key))
            self.entries.setdefault(document.key, entry)
        if not self.adapt:
            return AdaptedWeights(self.model.state.theta, stacked=False)
        theta = self.model.state.theta
        each: list[Params] = [theta] * len(documents)
        known = [self.entries[document.key].adaptation is not None for document in documents]
        for replayed in (False, True):
            chosen = [i for i, document in enumerate(documents) if known[i] == replayed and self._fits(lm, document)]
            for i, adapter in zip(chosen, self._adapters(lm, [documents[i] for i in chosen], replayed), strict=True):
                each[i] = adapter
        return AdaptedWeights({name: torch.stack([params[name] for params in each]) for name in theta}, stacked=True)

    def _fits(self, lm: LM, document: Document) -> bool:
        try:
            lm.synthesis_prompt(document.problem)
        except DataError:
            self.entries[document.key].fallback = TOO_LONG
            return False
        return True

    def _adapters(self, lm: LM, documents: Sequence[Document], replayed: bool) -> list[Params]:
        if not documents:
            return []
        entries = [self.entries[document.key] for document in documents]
        problems, seeds = [entry.problem for entry in entries], [entry.seed for entry in entries]
        groups = [entry.adaptation.examples for entry in entries if entry.adaptation] if replayed else None
        records, adapted = practise(lm, self.model.state, problems, self.config, seeds, replay=groups)
        for entry, record in zip(entries, records, strict=True):
            if not replayed:
                entry.adaptation = dataclasses.replace(record, **self.model.origin)
                entry.fallback, entry.tokens = record.fallback, dict(record.tokens)
                entry.seconds = dict(record.seconds)
        return [{n: t[i] for n, t in adapted.stack.items()} for i in range(len(documents))]

    @contextmanager
    def answering(self, documents: Sequence[Document]) -> Generator[None, None, None]:
        """Count the time of the block as the time of these documents' answers."""
        start = time.perf_counter()
        with timing.stage("answer"):
            yield
        share = (time.perf_counter() - start) / max(1, len(documents))
        for document in documents:
            seconds = self.entries[document.key].seconds
            seconds["answer"] = seconds.get("answer", 0.0) + share

    def count(self, document: Document, tokens: int) -> None:
        """Add the generated tokens of an answer."""
        counts = self.entries[document.key].tokens
        counts["answer"] = counts.get("answer", 0) + tokens

    @property
    def cost(self) -> Cost:
        """The cost of all documents so far."""
        return sum((entry.cost for entry in self.entries.values()), Cost())


def new_log(folder: Path) -> Path:
    """Create the folder for the records.

    Raises:
        RunError: It holds records already, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.glob("documents*.jsonl")):
            raise RunError(f"out is {str(folder)!r}, which holds records already; give a new folder")
    except OSError as error:
        raise RunError(f"out is {str(folder)!r}, which cannot be made ({error.strerror}); give another") from error
    return folder


def append_entry(file: Path, entry: Entry, answers: Sequence[Any]) -> None:
    """Append one JSON line with the practice, the cost and the answers of a document. It contains no gold."""
    task, number = entry.key
    line = {
        "task": task,
        "doc_id": number,
        "problem": entry.problem,
        "seed": entry.seed,
        "fallback": entry.fallback,
        "tokens": entry.tokens,
        "seconds": entry.seconds,
        "answers": list(answers),
        "adaptation": None if entry.adaptation is None else entry.adaptation.to_dict(),
    }
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(json_values(line), ensure_ascii=False) + "\n")
