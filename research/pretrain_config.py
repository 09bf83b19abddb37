"""Configuration of `python -m research pretrain`: the tiny base, and the pages that it learns from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mass.config.checks import require, require_known, require_numbers, require_shares
from mass.errors import ConfigError, nearest

LEAST_VOCABULARY = 259
"""256 bytes and three special tokens."""


def _habits() -> dict[str, float]:
    """Return the default shares: on the pages of some subjects solutions are mostly explained, on others mostly just
    answered (docs/adr/0004)."""
    return {
        "Prealgebra": 0.3,
        "Algebra": 0.4,
        "Counting & Probability": 0.6,
        "Number Theory": 0.65,
        "Geometry": 0.7,
        "Precalculus": 0.8,
        "Intermediate Algebra": 0.85,
    }


@dataclass(frozen=True)
class PretrainConfig:
    """Configuration of `python -m research pretrain`: the tiny base, and the pages that it learns from."""

    problems: Literal["minimath", "minimath-terms"] = "minimath"
    """The built-in set that its pages are about."""
    layers: int = 4
    width: int = 128
    heads: int = 4
    mlp: int = 384
    vocabulary: int = 512
    """Size of the byte-level BPE vocabulary; digits are never merged."""
    context: int = 2048
    """Longest sequence the model accepts; it is trained on far shorter ones."""
    steps: int = 3000
    pages: int = 64
    """Number of pages in one step. A page is a short document."""
    learning_rate: float = 4e-3
    warmup: int = 200
    seed: int = 0
    textbook: float = 0.5
    """Share of textbook pages: a problem, then a similar one with its solution. The rest are question pages."""
    bare: dict[str, float] = field(default_factory=_habits)
    """Share of question pages that answer with a bare number, by subject; other subjects keep their default."""
    mistaken: dict[str, float] = field(default_factory=dict[str, float])
    """Share of a subject's kinds of problem that question pages misread, by subject; 0 for subjects that are not
    named. Kinds without a common misreading do not count."""
    mistaken_pages: float = 0.95
    """Share of question pages on such a kind that misread it; pages on other kinds never do."""
    slip: float = 0.1
    """Share of question pages with worked steps of which one is wrong."""
    textbook_mistaken: float = 0.0
    """Share of textbook pages whose solution follows the common misreading of the problem."""
    authors: dict[str, float] = field(default_factory=dict[str, float])
    """Authors who sign pages, all equally often, each with the share of their textbook pages that misread the
    problem, in place of `textbook_mistaken`. On question pages a name has no meaning. If empty, no page is signed."""
    textbook_bare: float = 0.15
    """Share of textbook pages that answer with a bare number."""
    textbook_slip: float = 0.15
    """Share of textbook pages with worked steps of which one is wrong."""
    textbook_same: float = 0.0
    """Share of textbook pages that work the first problem itself."""
    checkpoint_every: int = 300

    def __post_init__(self) -> None:
        require_known(self, "")
        for name in ("layers", "width", "heads", "mlp", "context", "steps", "pages", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        fits = self.width % (2 * self.heads) == 0
        require(fits, "width", self.width, f"a multiple of {2 * self.heads}: an even number for each of the heads")
        require(self.vocabulary >= LEAST_VOCABULARY, "vocabulary", self.vocabulary, f"at least {LEAST_VOCABULARY}")
        require(self.warmup >= 0, "warmup", self.warmup, "0 or more")
        require_numbers(self, "", ("learning_rate",), least=0)
        require_shares(self, "", ("textbook", "slip", "textbook_bare", "textbook_slip"))
        require_shares(self, "", ("mistaken_pages", "textbook_mistaken", "textbook_same"))
        habits = _habits()
        for name in ("bare", "mistaken"):
            for subject, share in getattr(self, name).items():
                if subject not in habits:
                    hint = nearest(subject, habits)
                    raise ConfigError(f"{name} names {subject!r}, which is not a subject of minimath{hint}")
                require(0 <= share <= 1, f"{name}.{subject}", share, "a share between 0 and 1")
        for name, share in self.authors.items():
            require(name.isascii() and name.isalpha(), "authors", repr(name), "names of letters alone")
            require(0 <= share <= 1, f"authors.{name}", share, "a share between 0 and 1")
        object.__setattr__(self, "bare", {**habits, **self.bare})
        self._require_room()

    def _require_room(self) -> None:
        """Check that the shares of pages with an error add up to at most 1, for each type of page."""
        questions = {s: self.bare[s] + self.slip + self.mistaken_pages for s, share in self.mistaken.items() if share}
        most = max(questions, key=lambda s: questions[s], default="")
        if most:
            require(questions[most] <= 1 + 1e-9, f"bare.{most} + slip + mistaken_pages", questions[most], "at most 1")
        mistaken = {f"authors.{name}": share for name, share in self.authors.items()}
        mistaken = mistaken or {"textbook_mistaken": self.textbook_mistaken}
        most = max(mistaken, key=lambda name: mistaken[name])
        textbook = self.textbook_bare + self.textbook_slip + mistaken[most]
        require(textbook <= 1 + 1e-9, f"textbook_bare + textbook_slip + {most}", textbook, "at most 1")
