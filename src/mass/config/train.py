"""A training run: its problems, its outer loss, its optimizer, and what it is at test time."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from mass.config.adapt import AdaptConfig, InnerConfig, PracticeConfig, SamplingConfig, SynthesisConfig
from mass.config.checks import require, require_known, require_numbers
from mass.config.model import LoraConfig, ModelConfig
from mass.config.yaml_file import FromYaml


@dataclass(frozen=True)
class OuterConfig:
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=1024, temperature=1.0)
    """Sampling of the k solutions (verifier)."""
    samples: int = 8
    """k (verifier)."""
    micro_batch: int | None = None
    """Sequences per pass of the outer loss; None: all at once."""

    def __post_init__(self) -> None:
        require(self.micro_batch is None or self.micro_batch >= 1, "outer.micro_batch", self.micro_batch, "at least 1")
        require(self.samples >= 2, "outer.samples", self.samples, "at least 2, a group to compare within")


@dataclass(frozen=True)
class TasksConfig:
    source: str = "minimath-terms"
    """'minimath-terms'; 'minimath'; the path of a .jsonl or .parquet file; 'gsm8k', 'math',
    'math500', 'aime', 'svamp', 'humaneval', 'mbpp', 'mmlu', 'bbh' or any owner/name of the hub (extra data);
    'reasoning_gym:NAME' (extra gym)."""
    split: str = "train"
    """Part of minimath (train, validation or test) or of a data set of the hub; ignored for a file."""
    size: int | None = None
    """Number of tasks; None: all of a file, an endless stream when training on minimath, 1000 when evaluating. Training
    on a number of them goes through them again and again, each time in a new random order. Sets of minimath with
    one seed are nested: the first 30 of 100 are the 30."""
    seed: int = 0
    """Seed of minimath's stream, or of the random subset of a file."""
    fields: dict[str, str] = field(default_factory=dict[str, str])
    """Our field -> the file's own name, where they differ: {problem: my_question, answer: my_answer}."""
    verifier: str | None = None
    """Judges all tasks: math, exact, words, choice, code, ... or one of your own, 'module:function' or
    'command:PROGRAM'; None: as the fields suggest."""
    part: tuple[float, float] | None = None
    """Two numbers between 0 and 1: the tasks of a file or data set are taken for which a number computed from the hash
    of the problem lies between them. [0, 0.9] to train on and [0.9, 1] to validate with have none in common. None:
    all."""
    levels: list[int] | None = None
    """Only tasks of these levels: [1, 2, 3, 4] to train on and [5] to be tested on. `part` and `size` choose among
    them. None: all."""
    subjects: list[str] | None = None
    """Only tasks of these subjects, as in [Algebra, Geometry]; likewise."""

    def __post_init__(self) -> None:
        require(self.size is None or self.size >= 1, "tasks.size", self.size, "at least 1, or null for all")
        fit = self.part is None or (len(self.part) == 2 and 0 <= self.part[0] < self.part[1] <= 1)
        require(fit, "tasks.part", self.part, "two rising numbers between 0 and 1, as in [0, 0.9], or null for all")
        for name in ("levels", "subjects"):
            values = getattr(self, name)
            fit = values is None or 0 < len(values) == len(set(values))
            require(fit, f"tasks.{name}", values, "some, each once, or null for all")


@dataclass(frozen=True)
class TrainConfig:
    method: Literal["mass", "mass-gold", "solver-grpo", "solver-sft", "self-sft"] = "mass"
    """mass: verifier outer loss. mass-gold: gold outer loss. The others never adapt: solver-grpo, policy gradient on
    solving; solver-sft, the loss of the gold solutions; self-sft, that of the practice that the base writes for the
    problems, neither weighted nor verified."""
    steps: int = 100
    """Outer steps."""
    tasks_per_step: int = 8
    """Problems per outer step."""
    stack: int = 8
    """Number of these that are adapted side by side in one batch. Memory grows with it; the result does not change."""
    solver_lr: float = 1e-3
    """Learning rate of theta."""
    scorer_lr: float = 1e-3
    """Learning rate of eta."""
    scorer_verdicts: float = 0.0
    """Weight of a term of the scorer's own: -log of the share of weight that lies on right attempts at the problem
    (`synthesis.attempts`), by the verifier. 0: the scorer learns from what practice does to the outer loss alone."""
    rates_lr: float = 1e-2
    """Learning rate of the logarithm of the inner learning rates; 0 keeps them fixed."""
    gamma: float = 1.0
    """Weight of the solver term: the gradient of the outer loss with respect to theta, through the inner loop."""
    generator: float = 1.0
    """Weight of the generator's policy gradient."""
    generator_kl: float = 0.2
    """Weight of the generator's KL divergence from the base (nats per token), measured on the practice it writes."""
    kl: float = 0.0
    """Weight of the KL divergence of the solver from the base."""
    canary_kl: float = 0.0
    """Weight of learned safety: the KL divergence (nats per token) of theta from the adapted theta_K on answers to
    problems of other subjects, differentiated through the inner loop as the outer loss is; see
    mass.adaptation.drift."""
    canary_tasks: int = 2
    """Such problems for each adapted problem, where canary_kl is above 0."""
    max_problem_norm: float | None = None
    """A problem whose own meta-gradient, with respect to the start, is longer counts less, so that it has this norm:
    where the inner loop is steep, one problem can speak louder than all others. None: no limit."""
    max_grad_norm: float = 1.0
    """Each group of parameters is clipped to this gradient norm."""
    warmup: int = 5
    """Steps of linear learning-rate warm-up."""
    seed: int = 0
    eval_every: int = 20
    """Steps between evaluations on held-out problems; 0: none."""
    eval_size: int = 140
    """Held-out problems per evaluation."""
    eval_temperature: float = 0.0
    """Above 0, held-out problems are also answered by one sample each at this temperature, with adaptation and without:
    what sampling gives on average, beside what test.answer gives."""
    checkpoint_every: int = 10
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Number of the latest checkpoints that are kept, beside the best on validation."""

    def __post_init__(self) -> None:
        require_known(self, "train.")
        least_one = ("steps", "tasks_per_step", "stack", "eval_size", "checkpoint_every", "keep_checkpoints")
        for name in (*least_one, "canary_tasks"):
            require(getattr(self, name) >= 1, f"train.{name}", getattr(self, name), "at least 1")
        for name in ("eval_every", "warmup"):
            require(getattr(self, name) >= 0, f"train.{name}", getattr(self, name), "0 or more")
        require_numbers(self, "train.", ("solver_lr", "scorer_lr", "rates_lr"), least=0)
        weights = ("gamma", "generator", "generator_kl", "kl", "canary_kl", "scorer_verdicts")
        require_numbers(self, "train.", weights, least=0)
        require_numbers(self, "train.", ("eval_temperature",), least=0)
        limits = ("max_grad_norm", *(("max_problem_norm",) if self.max_problem_norm is not None else ()))
        require_numbers(self, "train.", limits, above=0)

    @property
    def problem_limit(self) -> float:
        """`max_problem_norm`; infinite where there is none."""
        return math.inf if self.max_problem_norm is None else self.max_problem_norm

    @property
    def adapts(self) -> bool:
        """True if the method adapts to each problem, in training and at test."""
        return self.method in ("mass", "mass-gold")

    @property
    def practises(self) -> bool:
        """True if practice is written for the training problems."""
        return self.adapts or self.method == "self-sft"

    @property
    def learns_gold(self) -> bool:
        """True if the outer loss is that of the gold solutions."""
        return self.method in ("mass-gold", "solver-sft")

    @property
    def samples_solutions(self) -> bool:
        """True if the outer loss is that of sampled and verified solutions."""
        return self.method in ("mass", "solver-grpo")


@dataclass(frozen=True)
class AtTestConfig:
    """The settings that may differ between training and held-out problems. Everything else is as in training."""

    examples: int = 6
    """m: practice examples sampled for one problem."""
    steps: int = 1
    """K."""
    answer: SamplingConfig = SamplingConfig(max_new_tokens=1024, temperature=0.0)
    """Sampling of the answer."""

    def __post_init__(self) -> None:
        require(self.examples >= 1, "test.examples", self.examples, "at least 1")
        require(self.steps >= 0, "test.steps", self.steps, "0 or more")


@dataclass(frozen=True)
class RunConfig(FromYaml):
    """Configuration of `mass train`."""

    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    tasks: TasksConfig = TasksConfig()
    validation: TasksConfig = TasksConfig(split="validation", seed=1)
    adapt: PracticeConfig = PracticeConfig(synthesis=SynthesisConfig(examples=12), inner=InnerConfig(steps=2))
    """The adaptation that is trained through."""
    test: AtTestConfig = AtTestConfig()
    """The adaptation of held-out problems, where it differs: during training and by whoever loads the checkpoint."""
    outer: OuterConfig = OuterConfig()
    train: TrainConfig = TrainConfig()


def at_test(config: RunConfig) -> AdaptConfig:
    """Return the settings for held-out problems: those of training, except for what `config.test` says."""
    return AdaptConfig(
        config.adapt.synthesis.of_size(config.test.examples),
        config.adapt.scoring,
        dataclasses.replace(config.adapt.inner, steps=config.test.steps),
        config.test.answer,
    )
