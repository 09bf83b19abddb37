"""How a model learns a handful of given examples, and what it tries before it chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mass.config.adapt import SamplingConfig
from mass.config.checks import require, require_known, require_numbers, require_shares
from mass.config.yaml_file import FromYaml


@dataclass(frozen=True)
class ExamplesConfig(FromYaml):
    """Everything that decides how given examples are used, besides the model, the examples and the seed."""

    method: Literal["auto", "zero-shot", "in-context", "adapted", "adapted-in-context"] = "auto"
    """auto: chosen by answers to held-out examples. zero-shot: the question alone. in-context: the examples before
    the question. adapted: the examples in the weights. adapted-in-context: both."""
    rows: Literal["plain", "leave-one-out", "permuted"] = "plain"
    """plain: an example is learned as a question alone. leave-one-out: after all the others. permuted: the whole set is
    one conversation, in another order in each epoch, and each output is learned after those before it."""
    learning_rates: tuple[float, ...] = (5e-4,)
    """Rates of AdamW that are tried; the first one is used where nothing is tried."""
    epochs: tuple[int, ...] = (3, 8)
    """Numbers of passes over the examples that are tried; the last one is used where nothing is tried."""
    batch: int = 4
    """Examples in a step of the inner loop."""
    clip_norm: float = 1.0
    """Largest norm of a step's gradient."""
    folds: int = 5
    """Parts into which the examples are divided to choose: each is held out once, and asked of a model that has the
    others. As many examples, or fewer, are held out one by one."""
    written: int = 0
    """Examples that the model writes itself, continuing the set, and learns beside the given ones."""
    written_share: float = 0.3
    """Share of the weight that the written examples have together; the scorer divides it among them."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=256, temperature=1.0)
    """How written examples are sampled."""
    balance: bool = True
    """True if each output counts as much as any other where the outputs are labels, however often it occurs."""
    max_example_tokens: int = 1024
    """An example of more tokens, its prompt included, is left out."""
    budget_s: float | None = None
    """Seconds for choosing and learning together; less is tried where they do not suffice. None: everything is tried,
    and the result does not depend on the speed of the machine."""

    def __post_init__(self) -> None:
        require_known(self, "learn.")
        require(bool(self.learning_rates), "learn.learning_rates", self.learning_rates, "at least one")
        require(min(self.learning_rates, default=1) > 0, "learn.learning_rates", self.learning_rates, "above 0")
        rising = list(self.epochs) == sorted(set(self.epochs)) and min(self.epochs, default=0) >= 1
        require(rising, "learn.epochs", self.epochs, "rising numbers of at least 1")
        for name in ("batch", "max_example_tokens"):
            require(getattr(self, name) >= 1, f"learn.{name}", getattr(self, name), "at least 1")
        require(self.folds >= 2, "learn.folds", self.folds, "at least 2")
        require(self.written >= 0, "learn.written", self.written, "0 or more")
        require_numbers(self, "learn.", ("clip_norm",), above=0)
        require_shares(self, "learn.", ("written_share",))
        usable = self.budget_s is None or 0 < self.budget_s < float("inf")
        require(usable, "learn.budget_s", self.budget_s, "a number of seconds above 0, or null")
