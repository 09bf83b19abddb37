"""Estimate seconds for each stage of a step.

Time is arithmetic divided by the device's rate; a decoding step also reads the base and the cache once; and Python has
to start each layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mass.config import RunConfig
from mass.metagrad.memory import Expected
from mass.preflight.dryrun.device import Device
from mass.preflight.dryrun.passes import Rows, Shape
from mass.preflight.dryrun.room import StepRows, likelihood_pass

GRADIENT, DERIVATIVE = 3, 8
"""Python's work for a gradient, and for a gradient with its derivative, in units of one forward pass."""


@dataclass(frozen=True)
class Duration:
    """Seconds of one process."""

    stages: dict[str, float]
    """Seconds of each stage of one step."""
    evaluation: float
    """Seconds of one evaluation on held-out problems; 0 without any."""
    evaluations: int
    steps: int

    @property
    def step(self) -> float:
        """Seconds of one step."""
        return sum(self.stages.values())

    @property
    def run(self) -> float:
        """Seconds of the whole run."""
        return self.steps * self.step + self.evaluations * self.evaluation


class DeviceTime:
    """Estimates the seconds of a model's passes on a device."""

    def __init__(self, shape: Shape, device: Device) -> None:
        self.shape, self.device = shape, device

    def decoding(self, rows: Rows, at_once: int) -> float:
        """Return the seconds of sampling: distinct prompts first, then one token of each row at a time."""
        groups = -(-rows.count // at_once)
        each = replace(rows, count=-(-rows.count // groups))
        read = self.shape.forward(Rows(each.prompts, rows.prompt, 1))
        prompts = self.device.seconds(sum(read), 0.0, self.shape.layers)
        flops = sum(self.shape.forward(Rows(each.count, 0, 1)))
        context = rows.prompt + rows.counted / 2
        flops += 4 * each.count * context * self.shape.attention
        read = self.shape.weights + each.count * context * self.shape.cache
        return groups * (prompts + rows.counted * self.device.seconds(flops, read, self.shape.layers))

    def forward(self, rows: Rows, at_once: int) -> float:
        """Return the seconds of forward passes over the rows."""
        return self._passes(sum(self.shape.forward(rows)), rows, at_once, 1)

    def gradient(self, rows: Rows, at_once: int, *, checkpoint: bool = False) -> float:
        """Return the seconds of losses and their gradients."""
        return self._passes(self.shape.first_order(rows, checkpoint=checkpoint), rows, at_once, GRADIENT)

    def derivative(self, rows: Rows, at_once: int, *, checkpoint: bool = False) -> float:
        """Return the seconds of gradients and their derivatives."""
        return self._passes(self.shape.second_order(rows, checkpoint=checkpoint), rows, at_once, DERIVATIVE)

    def _passes(self, flops: float, rows: Rows, at_once: int, worth: int) -> float:
        parts = -(-rows.count // at_once)
        return self.device.seconds(flops, parts * worth * self.shape.weights, parts * worth * self.shape.layers)


def duration_of(shape: Shape, step: StepRows, inner: Expected | None, device: Device) -> Duration:
    """Estimate the duration of a run."""
    clock, train = DeviceTime(shape, device), step.config.train
    stacks = -(-step.problems // step.stack)
    stages = _practice(clock, step, inner) if train.practises else {}
    stages["outer"] = _outer(clock, step)
    evaluations = 1 + -(-train.steps // train.eval_every) if train.eval_every else 0
    evaluation = _evaluation(clock, step) if train.eval_every else 0.0
    return Duration({name: stacks * s for name, s in stages.items()}, evaluation, evaluations, train.steps)


def _practice(clock: DeviceTime, step: StepRows, inner: Expected | None) -> dict[str, float]:
    """Return the seconds of the stages for one stack, except the outer loss."""
    config, written, examples = step.config, step.written, step.examples
    found = {"synthesis": clock.decoding(written, min(written.count, config.model.decode_rows))}
    if (compared := step.compared(examples.count)) is not None:
        found["verification"] = clock.decoding(compared, min(compared.count, config.model.decode_rows))
    if not config.train.adapts or inner is None:
        return found
    at_once = step.outer_pass(written).count
    if config.train.generator_kl:
        found["generator"] = clock.gradient(written, at_once) + clock.forward(written, at_once)
    if config.train.generator:
        found["generator"] = found.get("generator", 0.0) + clock.gradient(written, at_once)
    read = clock.forward(written, config.adapt.inner.micro_batch or written.count)
    found["scoring"] = read * (4 if config.adapt.scoring.lora_rank else 1) + _likelihood(clock, config, written)
    schedule, steps = inner.schedule, config.adapt.inner.steps
    first, second = len(schedule.gradient_chunks), len(schedule.chunks)
    gradient = clock.gradient(examples, -(-examples.count // first), checkpoint=schedule.checkpoint_gradient)
    derivative = clock.derivative(examples, -(-examples.count // second), checkpoint=schedule.checkpoint)
    share = schedule.kept / (steps * second) if steps else 0.0
    found["inner loop and meta-gradient"] = steps * (gradient * (1 - share) + derivative)
    return found


def _likelihood(clock: DeviceTime, config: RunConfig, written: Rows) -> float:
    """Return the seconds of the scorer's second pass, which reads likelihoods."""
    few = likelihood_pass(config, written, clock.shape.vocabulary)
    return clock.forward(written, few) if few else 0.0


def _outer(clock: DeviceTime, step: StepRows) -> float:
    """Return the seconds of the outer loss for one stack."""
    config, rows = step.config, step.targets
    found = clock.gradient(rows, step.outer_pass(rows).count)
    if config.train.samples_solutions:
        found += clock.decoding(rows, min(rows.count, config.model.decode_rows))
    if config.train.kl:
        found += clock.gradient(rows, step.outer_pass(rows).count) + clock.forward(rows, step.outer_pass(rows).count)
    if config.train.canary_kl and config.train.adapts:
        others = Rows(config.train.canary_tasks * step.stack, rows.prompt, step.lengths.answer)
        found += clock.decoding(others, others.count) + clock.gradient(others, step.outer_pass(others).count)
    return found


def _evaluation(clock: DeviceTime, step: StepRows) -> float:
    """Return the seconds of an evaluation: practice, K gradients and two answers for each problem; one answer if the
    method does not adapt."""
    config, lengths = step.config, step.lengths
    problems = -(-config.train.eval_size // step.ranks)
    together = min(config.train.stack, problems)
    each = 2 if config.train.adapts else 1  # adapted and unadapted answers are sampled side by side
    groups, answers = -(-problems // together), Rows(each * together, lengths.solve, lengths.held_out)
    answering = clock.decoding(answers, min(answers.count, config.model.decode_rows))
    if not config.train.adapts:
        return groups * answering
    m = config.test.examples
    written = Rows(m * together, lengths.synthesis, lengths.written, copies=m)
    examples = Rows(m * together, lengths.example_prompt, lengths.example)
    at_once = step.inner_pass(examples) or examples.count
    practice = clock.decoding(written, min(written.count, config.model.decode_rows)) + clock.forward(written, at_once)
    practice += _likelihood(clock, config, written)
    if (compared := step.compared(examples.count)) is not None:
        practice += clock.decoding(compared, min(compared.count, config.model.decode_rows))
    learning = config.test.steps * clock.gradient(examples, at_once) + 2 * clock.forward(examples, at_once)
    return groups * (practice + learning + answering)
