"""Forecast the bytes that each stage of a step holds: what stays throughout, and what is added in turn.

The stages are those of `mass.training.mass_step` and `mass.training.solver_step`; their passes are measured by
`mass.preflight.dryrun.passes`.

Legend: B problems of a stack, m practice examples of each, k sampled solutions of each.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mass.adaptation.batch import rows_per_pass
from mass.adaptation.scoring import LIKELIHOOD, likelihood_rows
from mass.config import RunConfig
from mass.lm.prompts import CODE, MATH
from mass.metagrad.memory import Expected
from mass.preflight.dryrun.lengths import Lengths
from mass.preflight.dryrun.passes import PassForecast, Rows

MARGIN = 0.06
"""Share of a device's memory that is lost to gaps between tensors and to libraries."""


@dataclass(frozen=True)
class Part:
    """The bytes of one thing, and the option to lower if they are too many."""

    name: str
    bytes: float
    lower: str = ""


@dataclass(frozen=True)
class Memory:
    """The memory of one process of a run."""

    stays: tuple[Part, ...]
    """Parts that are held throughout."""
    stages: tuple[Part, ...]
    """Parts that are held in turn, in addition to the others."""
    inner: Expected | None
    """The engine's division of the inner loop; None for methods that do not adapt."""

    @property
    def peak(self) -> float:
        """The largest number of bytes held at once."""
        return sum(part.bytes for part in self.stays) + max(part.bytes for part in self.stages)

    @property
    def largest(self) -> Part:
        """The stage with the peak."""
        return max(self.stages, key=lambda part: part.bytes)


@dataclass(frozen=True)
class StepRows:
    """The numbers of rows in a step."""

    config: RunConfig
    lengths: Lengths
    ranks: int
    """Number of processes that share a step."""
    device: str
    """Kind of device, which decides how many rows pass at once where the configuration does not."""
    kind: str = MATH
    """Kind of the problems, which decides how practice is verified."""

    @property
    def stack(self) -> int:
        """Number of problems that are processed side by side."""
        return min(self.config.train.stack, self.problems)

    @property
    def problems(self) -> int:
        """Number of the step's problems that one process handles."""
        return -(-self.config.train.tasks_per_step // self.ranks)

    @property
    def written(self) -> Rows:
        """Practice of a stack, as it is sampled."""
        m = self.config.adapt.synthesis.examples
        return Rows(m * self.stack, self.lengths.synthesis, self.lengths.written, copies=m)

    @property
    def examples(self) -> Rows:
        """Practice of a stack, as it is learned."""
        m = self.config.adapt.synthesis.examples
        return Rows(m * self.stack, self.lengths.example_prompt, self.lengths.example)

    def compared(self, examples: int) -> Rows | None:
        """Return the solutions sampled to verify so many practice examples; None where none are.

        Programs are verified by running them, which takes a fraction of a second each and is not counted.
        """
        verify = self.config.adapt.synthesis.verify
        if not verify.enabled or self.kind == CODE:
            return None
        length = min(self.lengths.example, verify.sampling.max_new_tokens)
        return Rows(verify.solutions * examples, self.lengths.example_prompt, length)

    @property
    def targets(self) -> Rows:
        """Rows of the outer loss of a stack."""
        if self.config.train.learns_gold:
            return Rows(self.stack, self.lengths.solve, self.lengths.gold)
        k = self.config.outer.samples
        return Rows(k * self.stack, self.lengths.solve, self.lengths.answer, copies=k)

    def outer_pass(self, rows: Rows) -> Rows:
        """Return the rows of one pass of the outer loss and of the generator's loss."""
        return Rows(min(rows.count, self.config.outer.micro_batch or rows.count), rows.prompt, rows.counted)

    def inner_pass(self, rows: Rows) -> int | None:
        """Return the number of rows of one pass of the inner loop without `memory_gb`; None: all."""
        own = self.config.adapt.inner.micro_batch
        return own if own is not None else rows_per_pass(self.device, rows.length)


def memory_of(passes: PassForecast, step: StepRows) -> Memory:
    """Forecast the memory of a run.

    Raises:
        ConfigError: `adapt.inner.memory_gb` does not hold a single example.
    """
    config, train = step.config, step.config.train
    adapter = passes.shape.lora * passes.lm.adapter_dtype.itemsize
    eta = _scorer_bytes(passes, config)
    stacks = -(-step.problems // step.stack)
    sums = (2 * adapter if train.adapts and train.generator else adapter) + (eta if train.adapts else 0)
    stays = (
        Part("base weights", passes.shape.weights, "model.name: a smaller base"),
        Part("adapter and scorer", adapter + eta, "lora.r"),
        Part("optimiser (AdamW)", 2 * (adapter + eta), "lora.r"),
        Part(f"gradients of {stacks} stacks", (stacks - 1) * sums, "train.tasks_per_step, or a larger train.stack"),
    )
    inner = None
    stages: list[Part] = []
    if train.practises:
        stages.append(_sampling(passes, step, "synthesis", step.written, config.adapt.synthesis.examples))
    if train.adapts:
        stages.append(_scoring(passes, step, step.written))
        if train.generator or train.generator_kl:
            rows = step.outer_pass(step.written)
            held = passes.gradient(rows) + 2 * adapter
            lower = "outer.micro_batch" if rows.count > 1 else "adapt.synthesis.sampling.max_new_tokens"
            stages.append(Part("generator", held, lower))
        inner = passes.inner(config.adapt.inner, step.examples, step.stack, step.inner_pass(step.examples))
        lower = "adapt.inner.memory_gb (set it)" if config.adapt.inner.memory_gb is None else "adapt.inner.memory_gb"
        stages.append(Part("inner loop", inner.peak, lower))
        between = inner.between + step.stack * adapter
    else:
        between = 0.0
    stages += _outer(passes, step, between, adapter)
    if train.eval_every:
        stages.append(_evaluation(passes, step, adapter))
    stages.append(Part("update", 3 * sums + (8 / 4 * 2 * sums if step.ranks > 1 else 0), "lora.r"))
    return Memory(stays, tuple(stages), inner)


def _outer(passes: PassForecast, step: StepRows, between: float, adapter: int) -> list[Part]:
    """Return the stages of the outer loss, including what the inner loop keeps for its backward pass."""
    config, stack = step.config, step.stack if step.config.train.adapts else None
    parts: list[Part] = []
    if config.train.samples_solutions:
        sampled = _sampling(passes, step, "solutions", step.targets, config.outer.samples)
        parts.append(Part(sampled.name, between + sampled.bytes, sampled.lower))
    rows = step.outer_pass(step.targets)
    held = between + (step.stack if stack else 1) * adapter + passes.gradient(rows, stack)
    lower = "outer.micro_batch" if rows.count > 1 else "outer.sampling.max_new_tokens"
    return [*parts, Part("outer loss", held, lower)]


def _sampling(passes: PassForecast, step: StepRows, name: str, rows: Rows, of_one: int) -> Part:
    """Return the stage of sampling `model.decode_rows` at a time. Adapted solutions of one problem are sampled
    together."""
    limit, lower = step.config.model.decode_rows, "model.decode_rows"
    together = max(limit // of_one, 1) * of_one if name == "solutions" and step.config.train.adapts else limit
    return Part(name, passes.decoding(dataclasses.replace(rows, count=min(rows.count, together))), lower)


def _scoring(passes: PassForecast, step: StepRows, rows: Rows) -> Part:
    at_once = min(rows.count, step.config.adapt.inner.micro_batch or rows.count)
    lower = "adapt.inner.micro_batch (set it)" if step.config.adapt.inner.micro_batch is None else "train.stack"
    needed = passes.reading(Rows(at_once, rows.prompt, rows.counted))
    if step.config.adapt.scoring.lora_rank:
        needed = max(needed, passes.gradient(Rows(at_once, rows.length - 1, 1)))
    if few := likelihood_pass(step.config, rows, passes.shape.vocabulary):
        needed = max(needed, passes.forward(Rows(few, rows.prompt, rows.counted)))
    return Part("scoring", needed, lower)


def likelihood_pass(config: RunConfig, rows: Rows, vocabulary: int) -> int:
    """Return the number of rows at a time in the scorer's second pass; 0 where it has none."""
    at_once = min(rows.count, config.adapt.inner.micro_batch or rows.count)
    few = likelihood_rows(rows.prompt + rows.counted, vocabulary)
    return min(at_once, few) if config.adapt.scoring.likelihood else 0


def _evaluation(passes: PassForecast, step: StepRows, adapter: int) -> Part:
    """Return the largest stage of adapting to held-out problems and answering them."""
    config, lengths = step.config, step.lengths
    together = min(config.train.stack, config.train.eval_size)
    each = 2 if config.train.adapts else 1  # adapted and unadapted answers are sampled side by side
    answers = passes.decoding(Rows(min(each * together, config.model.decode_rows), lengths.solve, lengths.held_out))
    if not config.train.adapts:
        return Part("evaluation", answers, "train.stack")
    count = config.test.examples * together
    written = Rows(count, lengths.synthesis, lengths.written, copies=config.test.examples)
    sampled = dataclasses.replace(written, count=min(count, config.model.decode_rows))
    examples = Rows(min(count, step.inner_pass(step.examples) or count), lengths.example_prompt, lengths.example)
    stacks = 2 * together * adapter
    parts = [
        Part("", passes.decoding(sampled), "decode_rows"),
        _scoring(passes, step, written),
        Part("", stacks + passes.forward(examples), "adapt.inner.micro_batch (set it)"),
        Part("", stacks + answers, "train.stack"),
    ]
    most = max(parts, key=lambda part: part.bytes)
    return Part("evaluation", most.bytes, most.lower)


def _scorer_bytes(passes: PassForecast, config: RunConfig) -> int:
    if not config.train.adapts:
        return 0
    scoring, size = config.adapt.scoring, passes.lm.adapter_dtype.itemsize
    lora = passes.shape.lora * scoring.lora_rank // passes.lm.adapters.config.r
    return size * (scoring.hidden * (2 * passes.lm.width + LIKELIHOOD * scoring.likelihood + 2) + 1 + lora)
