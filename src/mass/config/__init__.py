"""YAML file + dotted overrides -> one frozen dataclass per stage. A string under each field says what it means.

The resolved configuration is saved with every run and hashed into every record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from mass.config.checks import require, require_known, require_numbers
from mass.config.engine import EngineConfig


@dataclass(frozen=True)
class ModelConfig:
    name: str = "tiny"
    """'tiny' or 'tiny-terms' (ship with the package), 'smollm2' (a real model of 135 M parameters), or any causal
    language model of transformers: a local folder, a GGUF file, a hub name, or owner/name:file.gguf of the hub."""
    device: str = "auto"
    """'auto' (CUDA where there is one), 'cpu', 'cuda', 'cuda:1', ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    """Precision of the frozen base weights. auto: as its files have them where the device is fast at that, else
    float32. The adapter is kept in float32 (float64 with a float64 base)."""
    decode_rows: int = 128
    """Sequences sampled side by side at most, and never more than fit the device; the result does not depend on it."""
    device_map: str | dict[str, int | str] | None = None
    """Spreads the layers over several GPUs, by accelerate: auto, balanced, balanced_low_0, sequential, or a mapping
    from parts of the model to devices. None: all on `device`."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """4bit (NF4) or 8bit base weights by bitsandbytes, on a CUDA device (extra quant). A quantised base is a base of
    its own: its checkpoints do not fit the unquantised one."""
    revision: str | None = None
    """Branch, tag or commit of a model of the hub."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run; read it first."""
    prompts: str | None = None
    """A file of prompts (`mass prompts` prints one); None: a checkpoint's own, or the package's."""
    thinking: bool | None = None
    """Whether a model with a thinking switch (Qwen3) thinks aloud before it writes practice and answers; None: as the
    prompts say, which is no by default: practice is learned as it is answered, without the thinking before it."""
    engine: EngineConfig = EngineConfig()  # noqa: RUF009 (frozen)
    """Who samples: this process, or a server."""

    def __post_init__(self) -> None:
        require_known(self, "model.")
        require(self.decode_rows >= 1, "model.decode_rows", self.decode_rows, "at least 1")


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 8
    """Rank r of B A."""
    alpha: float = 16.0
    """The update is (alpha / rank) B A x."""
    targets: tuple[str, ...] = ("all-linear",)
    """Suffixes of the names of the linear layers that get an adapter, or 'all-linear' (all but the output head)."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "lora.rank", self.rank, "at least 1")
        require(self.alpha > 0, "lora.alpha", self.alpha, "a positive number")


@dataclass(frozen=True)
class SamplingConfig:
    max_tokens: int = 512
    """Generated tokens of one sequence at most, the end token included."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with at least this probability."""

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, "sampling.max_tokens", self.max_tokens, "at least 1")
        require(self.temperature >= 0, "sampling.temperature", self.temperature, "0 (greedy) or more")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "a number in (0, 1]")


@dataclass(frozen=True)
class SynthesisConfig:
    examples: int = 6
    """m: practice examples sampled for one problem."""
    sampling: SamplingConfig = SamplingConfig(max_tokens=1024, temperature=1.0)
    """How they are sampled."""
    writer: Literal["theta", "base"] = "theta"
    """theta: the meta-trained adapter writes the practice. base: the frozen base does (a frozen generator)."""
    allow_copies: bool = False
    """Whether an example whose problem is the target's own text is used."""
    attempts: int = 0
    """So many of the m examples are no practice problems but the model's own attempts at the problem itself, sampled
    from the solver's prompt. The scorer weighs them with the others; the generator is not trained on them. Another m at
    test has as large a share of them."""
    max_example_tokens: int = 2048
    """An example (solver prompt and solution) of more tokens is rejected as too long."""

    def __post_init__(self) -> None:
        require_known(self, "synthesis.")
        for name in ("examples", "max_example_tokens"):
            require(getattr(self, name) >= 1, f"synthesis.{name}", getattr(self, name), "at least 1")
        require(0 <= self.attempts <= self.examples, "synthesis.attempts", self.attempts, "0 to synthesis.examples")

    @property
    def written(self) -> int:
        """How many of the m examples are practice problems, which come first."""
        return self.examples - self.attempts

    def of_size(self, examples: int) -> SynthesisConfig:
        """With another m, of which as large a share is attempts."""
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
    """Whether the head also sees how likely the frozen model finds the solution that is scored; costs a second forward
    pass over it."""
    sharpness: float = 0.0
    """Where the scorer starts: untrained, it scores an example sharpness x the mean log-probability (nats) of its
    solution's tokens; 0: all alike."""

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
    """What the inner loop may hold beside the model, in 10^9 bytes; the engine chooses the rows per pass (unless
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
class AdaptConfig(PracticeConfig):
    """Everything that decides an adapted answer, besides the model, the checkpoint and the seed."""

    answer: SamplingConfig = SamplingConfig(max_tokens=1024, temperature=0.0)
    """How the answer is sampled."""


@dataclass(frozen=True)
class OuterConfig:
    sampling: SamplingConfig = SamplingConfig(max_tokens=1024, temperature=1.0)
    """How the k solutions are sampled (verifier)."""
    samples: int = 8
    """k (verifier)."""
    micro_batch: int | None = None
    """Sequences per pass of the outer loss; None: all at once."""

    def __post_init__(self) -> None:
        require(self.micro_batch is None or self.micro_batch >= 1, "outer.micro_batch", self.micro_batch, "at least 1")
        require(self.samples >= 2, "outer.samples", self.samples, "at least 2, a group to compare within")


@dataclass(frozen=True)
class TasksConfig:
    source: str = "minimath"
    """'minimath'; 'minimath-search'; 'minimath-terms'; the path of a .jsonl or .parquet file; 'gsm8k', 'math',
    'math500', 'aime', 'svamp', 'humaneval', 'mbpp', 'mmlu', 'bbh' or any owner/name of the hub (extra data);
    'reasoning_gym:NAME' (extra gym)."""
    split: str = "train"
    """Of minimath (train, validation or test) or of a data set of the hub; a file is what it is."""
    size: int | None = None
    """Number of tasks; None: all of a file, an endless stream when training on minimath, 1000 when evaluating. Training
    on a number of them goes through them again and again, each time in a new random order. Of minimath, those of one
    seed are nested: the first 30 of 100 are the 30."""
    seed: int = 0
    """Which tasks: of minimath's stream, or of a random subset of a file."""
    fields: dict[str, str] = field(default_factory=dict[str, str])
    """Our field -> the file's own name, where they differ: {problem: my_question, answer: my_answer}."""
    verifier: str | None = None
    """Judges all tasks: math, exact, words, choice, code, ... or one of your own, 'module:function' or
    'command:PROGRAM'; None: as the fields suggest."""
    part: tuple[float, float] | None = None
    """Of a file or data set, the tasks whose share by the hash of their problem lies between two numbers: [0, 0.9] to
    train on and [0.9, 1] to validate with have none in common. None: all."""
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
    problems, neither weighed nor verified."""
    steps: int = 100
    """Outer steps."""
    tasks_per_step: int = 8
    """Problems per outer step."""
    stack: int = 8
    """Of these, how many are adapted side by side in one batch. Memory grows with it; the result does not change."""
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
    problems of other subjects, differentiated through the inner loop as the outer loss is; see mass.training.drift."""
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
    """How many of the latest checkpoints are kept, beside the best on validation."""

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
        """Whether the method adapts to each problem, in training and at test."""
        return self.method in ("mass", "mass-gold")

    @property
    def practises(self) -> bool:
        """Whether practice is written for the training problems."""
        return self.adapts or self.method == "self-sft"

    @property
    def learns_gold(self) -> bool:
        """Whether the outer loss is that of the gold solutions."""
        return self.method in ("mass-gold", "solver-sft")

    @property
    def samples_solutions(self) -> bool:
        """Whether the outer loss is that of sampled and verified solutions."""
        return self.method in ("mass", "solver-grpo")


@dataclass(frozen=True)
class AtTestConfig:
    """What may be otherwise on held-out problems than in training. All else, the checkpoint has learned with."""

    examples: int = 6
    """m: practice examples sampled for one problem."""
    steps: int = 1
    """K."""
    answer: SamplingConfig = SamplingConfig(max_tokens=1024, temperature=0.0)
    """How the answer is sampled."""

    def __post_init__(self) -> None:
        require(self.examples >= 1, "test.examples", self.examples, "at least 1")
        require(self.steps >= 0, "test.steps", self.steps, "0 or more")


@dataclass(frozen=True)
class RunConfig:
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
    """How held-out problems are adapted to and answered: as in training, but for what `config.test` says."""
    return AdaptConfig(
        config.adapt.synthesis.of_size(config.test.examples),
        config.adapt.scoring,
        dataclasses.replace(config.adapt.inner, steps=config.test.steps),
        config.test.answer,
    )


@dataclass(frozen=True)
class EvalConfig:
    """How methods are compared."""

    answer: SamplingConfig = SamplingConfig(max_tokens=1024, temperature=0.0)
    """How every method samples its answer; it replaces that of a checkpoint."""
    ttt: InnerConfig | None = None
    """Inner loop of the untrained methods, base-ttt and tt-ss; None: as the model's own configuration starts it."""
    sharpness: float = 10.0
    """Of tt-ss-likelihood, whose weights are softmax(sharpness x the mean log-probability of a solution's tokens, nats)
    over the examples; 0 weighs them alike."""
    synthesis: SynthesisConfig | None = None
    """Practice of the untrained methods; None: as the model's own configuration has it, so that all have as much."""
    examples: int | None = None
    """m of every adapting method; None: as its configuration or checkpoint has it."""
    steps: int | None = None
    """K of every adapting method; None: as its configuration or checkpoint has it."""
    samples: int = 0
    """Answers sampled for each problem, method and temperature, beside the one of `answer`; 0: none."""
    temperatures: tuple[float, ...] = (0.6, 1.0)
    """Where `samples` are drawn, as in [0.6,1.0]. One adaptation of a problem serves all of them."""
    votes: int = 8
    """n of maj@n, best-of-n and the like when mass is not compared; otherwise as many samples as generate at least the
    tokens of mass."""
    vote_temperature: float = 1.0
    """Temperature of the samples that maj@n, best-of-n and the like choose among."""
    stack: int = 32
    """Problems answered side by side. Memory grows with it; the result does not change but for rounding."""
    resamples: int = 10_000
    """Bootstrap resamples of an interval."""

    def __post_init__(self) -> None:
        for name in ("votes", "stack", "resamples"):
            require(getattr(self, name) >= 1, f"eval.{name}", getattr(self, name), "at least 1")
        require_numbers(self, "eval.", ("sharpness",), least=0)
        require(self.vote_temperature > 0, "eval.vote_temperature", self.vote_temperature, "more than 0")
        require(self.examples is None or self.examples >= 1, "eval.examples", self.examples, "at least 1, or null")
        require(self.steps is None or self.steps >= 0, "eval.steps", self.steps, "0 or more, or null")
        require(self.samples >= 0, "eval.samples", self.samples, "0 or more")
        fit = bool(self.temperatures) and len(set(self.temperatures)) == len(self.temperatures)
        fit = fit and min(self.temperatures) > 0
        require(fit, "eval.temperatures", self.temperatures, "numbers above 0, each once")


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any) -> str:
    """First 12 hex digits of the SHA-256 of the configuration's canonical JSON."""
    data = config if isinstance(config, dict) else to_dict(config)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
