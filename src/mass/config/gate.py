"""When a model practises at all, and when what it learned may answer."""

from __future__ import annotations

from dataclasses import dataclass

from mass.config.checks import require, require_numbers


@dataclass(frozen=True)
class GateConfig:
    """When a model practises at all, and when what it learned may answer. `mass gate` measures the bounds."""

    enabled: bool = False
    """True to decide for each problem; false to adapt to every problem."""
    certainty: float | None = None
    """A problem is answered without practice if the mean log-probability (nats) of the tokens of the model's own greedy
    answer is at least this; null to practise on every problem."""
    max_surprise: float | None = None
    """An update is discarded if the practice is more surprising than this to the model that is to have written it: the
    loss of the solutions in the writer's eyes (nats per token, by weight); null for any."""
    max_least_loss: float | None = 3.0
    """An update is discarded if the model, asked the practice problems, had a larger loss on each of the solutions
    before it learned them (nats per token): it finds none of them likely; null for any."""
    hold_out: int = 4
    """Every 4th valid practice example is held out of a trial update, which is judged by it; 0: none. The update that
    answers learns all examples."""
    max_rise: float | None = 1.0
    """An update is discarded if the trial raises the loss on the held-out examples by more (nats per token, on
    average); null for any rise."""
    max_drift: float | None = 0.5
    """An update is discarded if it moves the answers to canary prompts further (KL, nats per token, on average); null
    for any drift."""
    canaries: str | None = None
    """A JSONL file of canary prompts, which may say what must be refused; null for those of the package."""
    canary_tokens: int = 32
    """Tokens of an answer to a canary prompt at most."""

    def __post_init__(self) -> None:
        usable = self.certainty is None or self.certainty <= 0
        require(usable, "gate.certainty", self.certainty, "a mean log-probability, 0 or less, or null")
        require(self.hold_out == 0 or self.hold_out >= 2, "gate.hold_out", self.hold_out, "2 or more, or 0 for none")
        bounds = [
            name
            for name in ("max_surprise", "max_least_loss", "max_rise", "max_drift")
            if getattr(self, name) is not None
        ]
        require_numbers(self, "gate.", bounds, least=0)
        require(self.canary_tokens >= 1, "gate.canary_tokens", self.canary_tokens, "at least 1")
