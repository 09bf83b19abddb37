"""The settings by which a model adapts to a problem and answers it: synthesis, scoring, inner loop, sampling."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Literal

from mass.config.checks import require, require_known, require_numbers, require_shares
from mass.config.gate import GateConfig
from mass.config.yaml_file import FromYaml


@dataclass(frozen=True)
class SamplingConfig:
    max_new_tokens: int = 512
    """Generated tokens of one sequence at most, the end token included."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with at least this probability."""

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "sampling.max_new_tokens", self.max_new_tokens, "at least 1")
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "0 (greedy) or more")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "a number in (0, 1]")


@dataclass(frozen=True)
class VerifyConfig:
    """How practice is verified without gold: programs by the tests that the model wrote with the problem, others by
    whether the model's own solutions of the practice problem agree."""

    enabled: bool = False
    """True if practice that fails is rejected."""
    solutions: int = 4
    """k: solutions sampled of each practice problem whose answer is no program. The written one votes with them."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=256, temperature=0.7)
    """How these solutions are sampled."""
    least_share: float = 0.5
    """A practice problem is rejected where a smaller share of its solutions has the most frequent answer."""
    by_share: bool = True
    """True if the weight of an example is multiplied by that share, before the weights of a problem are made to sum
    to 1."""

    def __post_init__(self) -> None:
        require(self.solutions >= 1, "verify.solutions", self.solutions, "at least 1")
        require_shares(self, "verify.", ("least_share",))


@dataclass(frozen=True)
class SynthesisConfig:
    examples: int = 6
    """m: practice examples sampled for one problem."""
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=1024, temperature=1.0)
    """Sampling of the practice examples."""
    writer: Literal["theta", "base"] = "theta"
    """theta: the meta-trained adapter writes the practice. base: the frozen base does (a frozen generator)."""
    allow_copies: bool = False
    """True if an example is used whose problem is the target's own text."""
    attempts: int = 0
    """Number of the m examples that are not practice problems but the model's own attempts at the problem itself,
    sampled from the solver's prompt. The scorer weighs them with the others; the generator is not trained on them.
    Another m at test has as large a share of them."""
    max_example_tokens: int = 2048
    """An example (solver prompt and solution) of more tokens is rejected as too long."""
    verify: VerifyConfig = VerifyConfig()
    """How practice is verified before it is learned."""

    def __post_init__(self) -> None:
        require_known(self, "synthesis.")
        for name in ("examples", "max_example_tokens"):
            require(getattr(self, name) >= 1, f"synthesis.{name}", getattr(self, name), "at least 1")
        require(0 <= self.attempts <= self.examples, "synthesis.attempts", self.attempts, "0 to synthesis.examples")

    @property
    def written(self) -> int:
        """Return how many of the m examples are practice problems, which come first."""
        return self.examples - self.attempts

    def of_size(self, examples: int) -> SynthesisConfig:
        """Return the same with another m, of which as large a share is attempts."""
        return dataclasses.replace(self, examples=examples, attempts=self.attempts * examples // self.examples)


@dataclass(frozen=True)
class ScoringConfig:
    normalise: Literal["softmax", "sigmoid", "uniform"] = "softmax"
    """softmax: weights sum to 1 over the valid examples. sigmoid: each in [0, 1], divided by m; can abstain.
    uniform: 1 over the number of valid examples; the scorer is not used."""
    hidden: int = 64
    """Width of the head's hidden layer."""
    lora_rank: int = 0
    """Rank of the scorer's own LoRA on the frozen model; 0: the head alone."""
    likelihood: bool = True
    """True if the head also sees how likely the frozen model finds the solution that is scored; costs a second forward
    pass over it."""
    agreement: bool = False
    """True if the head also sees the share of the model's solutions that agree (synthesis.verify); 1 for an example
    without one."""
    sharpness: float = 0.0
    """The start of the scorer: untrained, it scores an example sharpness x the mean log-probability (nats) of its
    solution's tokens; 0: all get equal scores."""

    def __post_init__(self) -> None:
        require_known(self, "scoring.")
        require(self.hidden >= 1, "scoring.hidden", self.hidden, "at least 1")
        require(self.lora_rank >= 0, "scoring.lora_rank", self.lora_rank, "0 or more")
        require_numbers(self, "scoring.", ("sharpness",), least=0)
        usable = not self.sharpness or (self.likelihood and self.hidden >= 2)
        require(usable, "scoring.sharpness", self.sharpness, "0, or likelihood true and hidden 2 or more")


STEP_PATTERN = r"0?\.0*[1-9]\d*|[1-9](?:\.\d*)?[eE]-\d+"
"""A number between 0 and 1, as in `finite_difference(1e-3)`."""


@dataclass(frozen=True)
class InnerConfig:
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The inner update U."""
    learning_rate: float = 0.1
    """Starting learning rate of every tensor."""
    momentum: float = 0.0
    """SGD only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW only."""
    eps_root: float = 1e-8
    """AdamW only: added inside the square root, so that the meta-gradient exists where the gradient is zero."""
    weight_decay: float = 0.0
    """AdamW only."""
    steps: int = 1
    """K."""
    micro_batch: int | None = None
    """Rows (examples of all problems adapted side by side) per pass of the inner loss. None: chosen by their length and
    the kind of device, see mass.adaptation.batch. Results are the same but for rounding; smaller needs less memory."""
    memory_gb: float | None = None
    """Memory that the inner loop may use beside the model, in 10^9 bytes; the engine chooses the rows per pass (unless
    micro_batch is given), layer checkpointing, and how many graphs it keeps for the backward. None: what
    the device has free, which changes nothing where it is enough."""
    checkpoint: bool | None = None
    """Layer checkpointing in the inner loop; None: where memory_gb needs it. true is an error with a model whose layers
    cannot be checkpointed."""
    clip_norm: float | None = None
    """Largest norm of an adapter's gradient in an inner step; None: any."""
    mode: str = "exact"
    """Meta-gradient: exact, truncated(n), first_order, finite_difference."""
    max_update_norm: float = 10.0
    """An adapted adapter whose change has a larger norm than this multiple of the starting adapter's is discarded."""

    def __post_init__(self) -> None:
        require_known(self, "inner.")
        require(self.steps >= 0, "inner.steps", self.steps, "0 or more")
        require_numbers(self, "inner.", ("learning_rate", "eps_root", "weight_decay"), least=0)
        require_numbers(self, "inner.", ("max_update_norm",), above=0)
        require(0 <= self.momentum < 1, "inner.momentum", self.momentum, "a number in [0, 1)")
        usable = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(usable, "inner.betas", self.betas, "two numbers in [0, 1)")
        require(self.micro_batch is None or self.micro_batch >= 1, "inner.micro_batch", self.micro_batch, "at least 1")
        for name in ("memory_gb", "clip_norm"):
            value: float | None = getattr(self, name)
            require(value is None or 0 < value < math.inf, f"inner.{name}", value, "a finite number above 0, or null")
        known = re.fullmatch(rf"exact|first_order|truncated\(\d+\)|finite_difference(\({STEP_PATTERN}\))?", self.mode)
        modes = "exact, truncated(n), first_order or finite_difference"
        require(known is not None, "inner.mode", self.mode, modes)


@dataclass(frozen=True)
class PracticeConfig:
    """Everything that decides an adaptation, besides the model, the checkpoint and the seed."""

    synthesis: SynthesisConfig = SynthesisConfig()
    scoring: ScoringConfig = ScoringConfig()
    inner: InnerConfig = InnerConfig()


@dataclass(frozen=True)
class AdaptConfig(PracticeConfig, FromYaml):
    """Everything that decides an adapted answer, besides the model, the checkpoint and the seed."""

    answer: SamplingConfig = SamplingConfig(max_new_tokens=1024, temperature=0.0)
    """Sampling of the answer."""
    gate: GateConfig = GateConfig()
    """When it practises at all, and when the adapted weights may answer."""
