"""Forecast a run without running it: its data, prompts, memory, time, and a verdict.

The architecture is built on the meta device, so the model's own code runs with sizes and without weights
(docs/adr/0011).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from mass.config import RunConfig
from mass.errors import ConfigError
from mass.lm import LM
from mass.lm.architecture import Architecture, find_architecture
from mass.lm.prompts import common_kind
from mass.preflight.dryrun.data import Data, examine
from mass.preflight.dryrun.device import Device, measure, told
from mass.preflight.dryrun.duration import Duration, duration_of
from mass.preflight.dryrun.lengths import Counter, Lengths, at_most, usual
from mass.preflight.dryrun.passes import PassForecast, Shape
from mass.preflight.dryrun.room import MARGIN, Memory, StepRows, memory_of
from mass.types import Task

__all__ = ["Rehearsal", "rehearse", "told"]

ASSUMED = Task("x" * 600, "x" * 1800, "x", id="assumed")
"""Stands for tasks that cannot be read: 200 tokens of problem and 600 of solution, like the longer problems of MATH."""


@dataclass(frozen=True)
class Model:
    """A description of the model."""

    name: str
    source: str
    """The origin of the architecture."""
    kind: str
    parameters: int
    sites: int
    """Number of layers with an adapter."""
    adapter: int
    """Number of parameters of one adapter."""
    context: int


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt."""

    kind: str
    text: str
    tokens: int | None
    """Number of tokens; None where there is no tokenizer."""


@dataclass(frozen=True)
class Rehearsal:
    """The forecast for a run."""

    model: Model
    data: Data
    prompts: tuple[Prompt, ...]
    counted: bool
    """True if tokens were counted by the model's tokenizer, False if they were guessed from characters."""
    usual: Lengths
    at_most: Lengths
    memory: Memory | None
    """Memory at the longest rows. None where the inner loop's budget does not hold one example."""
    usually: Duration | None
    """Time if the model's texts are as long as the worked solutions."""
    longest: Duration | None
    """Time if all of the model's texts run to their limits."""
    device: Device
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    """Reasons not to start the run like this, one line each."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; tasks are left out."""
        sets = [
            {f.name: getattr(s, f.name) for f in dataclasses.fields(s) if f.name != "tasks"} for s in self.data.sets
        ]
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("data", "memory")}
        plain = {name: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for name, v in found.items()}  # pyright: ignore[reportArgumentType]
        plain["prompts"] = [dataclasses.asdict(prompt) for prompt in self.prompts]
        return {**plain, "data": {"sets": sets, "shared": self.data.shared}, "memory": _memory_dict(self.memory)}


def rehearse(
    config: RunConfig, device: Device | None = None, *, device_gb: float | None = None, ranks: int = 1
) -> Rehearsal:
    """Forecast what `mass train` would do with this configuration. Nothing is written, and no weights are made.

    Args:
        config: The configuration of the run.
        device: The device it would run on. None: the present one, measured.
        device_gb: Memory to assume for the present device, in 10^9 bytes. None: its own.
        ranks: Number of processes that would share a step.

    Raises:
        ModelError: The model's architecture is not available.
        ConfigError: The device does not exist.
    """
    asked = config.model
    architecture = find_architecture(asked.name, asked.revision, trust_remote_code=asked.trust_remote_code)
    lm = architecture.build(config.model, config.lora, elsewhere=device is not None)
    data = examine(config)
    lm = lm.asking(common_kind(data.sample))
    counter = Counter(lm, exact=architecture.own_tokenizer)
    sample = data.sample or [ASSUMED]
    lengths = usual(counter, sample, config), at_most(counter, sample, config)
    passes = PassForecast(lm)
    device = device or measure(architecture, config.model, config.lora, device_gb)
    problems = list(data.problems)
    steps = [StepRows(config, each, ranks, device.kind, lm.kind) for each in lengths]
    memory = None
    try:
        memory = memory_of(passes, steps[1])
        problems += _too_much(memory, device)
    except ConfigError as error:
        problems.append(f"adapt.inner: {error}")
    usually, longest = (duration_of(passes.shape, one, memory.inner, device) if memory else None for one in steps)
    return Rehearsal(
        _described(architecture, lm, passes.shape),
        data,
        tuple(_prompts(lm, data.sample, exact=counter.exact)),
        counter.exact,
        lengths[0],
        lengths[1],
        memory,
        usually,
        longest,
        device,
        tuple(_notes(config, lm, counter, data, lengths[1])),
        tuple(problems),
    )


def _described(architecture: Architecture, lm: LM, shape: Shape) -> Model:
    parameters = sum(p.numel() for p in lm.model.parameters())
    kind = type(lm.model).__name__
    return Model(lm.name, architecture.source, kind, parameters, len(lm.adapters.sites), shape.lora, lm.context)


def _prompts(lm: LM, sample: list[Task], *, exact: bool) -> list[Prompt]:
    """Return one prompt of each kind, for the first problem."""
    if not sample:
        return []
    problem = sample[0].problem
    rendered = (lm.solve_prompt(problem), lm.synthesis_prompt(problem))
    return [
        Prompt(kind, lm.tokenizer.decode(ids), len(ids) if exact else None)
        for kind, ids in zip(("solve", "synthesis"), rendered, strict=True)
    ]


def _too_much(memory: Memory, device: Device) -> list[str]:
    room = device.memory * (1 - MARGIN)
    if memory.peak <= room or math.isinf(room):
        return []
    beside = sum(part.bytes for part in memory.stays)
    part = max(memory.stays, key=lambda part: part.bytes) if beside > room else memory.largest
    return [
        f"does not fit: {memory.peak / 1e9:.3g} GB at the peak ({memory.largest.name}), {room / 1e9:.3g} of "
        f"{device.memory / 1e9:.3g} GB can be used; lower {part.lower}"
    ]


def _notes(config: RunConfig, lm: LM, counter: Counter, data: Data, longest: Lengths) -> list[str]:
    notes = [f"{one.kind}: gold of {who} is not accepted" for one in data.sets for who in one.refused[:3]]
    if not counter.exact:
        notes.append(f"no tokenizer of {lm.name!r} is at hand: tokens are guessed from characters")
    beside = {"model.quantization": config.model.quantization != "none", "model.device_map": config.model.device_map}
    beside |= {"model.engine": config.model.engine.url, "adapt.synthesis.attempts": config.adapt.synthesis.attempts}
    if ignored := [option for option, given in beside.items() if given]:
        notes.append(f"memory and time do not count with {', '.join(ignored)}")
    if not data.sample:
        notes.append("no tasks could be read: lengths are those of MATH's longer problems")
    limits = {
        "outer.sampling.max_new_tokens": longest.answer,
        "adapt.synthesis.sampling.max_new_tokens": longest.written,
    }
    for option, tokens in limits.items():
        if longest.synthesis + tokens > lm.context:
            notes.append(f"the longest prompt and {option} go beyond the {lm.context} tokens of the context: cut there")
    golds = sorted(counter.solution(task) for task in data.sample)
    beyond = sum(tokens > longest.answer for tokens in golds)
    if beyond and config.train.samples_solutions:
        notes.append(
            f"{beyond} of {len(golds)} worked solutions are longer than outer.sampling.max_new_tokens = "
            f"{longest.answer} (the longest has {golds[-1]})"
        )
    return notes


def _memory_dict(memory: Memory | None) -> dict[str, Any] | None:
    if memory is None:
        return None
    found: dict[str, Any] = {
        "peak": memory.peak,
        "stays": {part.name: part.bytes for part in memory.stays},
        "stages": {part.name: part.bytes for part in memory.stages},
    }
    if memory.inner is not None:
        schedule = memory.inner.schedule
        found["schedule"] = {
            "micro_batches": len(schedule.chunks),
            "checkpoint": schedule.checkpoint,
            "kept_graphs": schedule.kept,
        }
    return found
