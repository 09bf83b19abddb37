"""Problems -> attempts: the methods that answer by themselves, each with what it cost. Source: arXiv 2603.03524.

`mass.evaluation.methods` says what each is made of; those that choose among sampled answers are in
`mass.evaluation.controls`. A method sees the texts of problems, never a `Task`: gold cannot reach it. The tasks that
base-ttt learns from are training tasks. Answer i is a function of its problem and `seeds[i]` (and, but for rounding,
not of its neighbours).
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mass import tasks as task_sets
from mass.adaptation import checkpoint as checkpoint_files
from mass.adaptation.adapt import answer_all
from mass.adaptation.checkpoint import MetaState, init_state
from mass.config import (
    AdaptConfig,
    EvalConfig,
    LoraConfig,
    ScoringConfig,
    SynthesisConfig,
)
from mass.errors import ConfigError, DataError, nearest
from mass.evaluation.methods import TRAINED, TT_SS_LIKELIHOOD, UNTRAINED_METHODS, checkpoint_of, choice_of
from mass.lm import LM
from mass.lm.prompts import with_thinking
from mass.lm.source import shipped_folder
from mass.model import UNTRAINED, Mass, origin_of
from mass.runs.folder import training_of
from mass.seeds import derive
from mass.types import Adaptation, Example, Groups, Params, Task

TRAINING_POOL = 1000
"""Problems of the train split that base-ttt draws from when it is given no training tasks."""

Checkpoints = Mapping[str, str | Path]
"""Method -> a run folder of `mass train`, one of its checkpoints, or 'untrained'."""


@dataclass(frozen=True)
class Drawn:
    """Sampled answers to one problem at one temperature, all from the weights that gave the attempt they belong to."""

    temperature: float
    texts: tuple[str, ...]
    tokens: float
    """Generated tokens that one of these answers costs: the practice before it and, on average, the answer itself."""
    seconds: float
    """Likewise."""


@dataclass(frozen=True)
class Attempt:
    """One answer and what it cost."""

    text: str
    tokens: int
    """All generated tokens: practice, votes and answer."""
    seconds: float
    """Wall-clock time, shared equally among the problems answered side by side."""
    record: Adaptation | None = None
    """Of an adapting method."""
    votes: dict[str, int] | None = None
    """Of a majority: answers and their votes, in order of first appearance."""
    samples: int = 1
    """Answers sampled to choose among: n of maj@n."""
    drawn: tuple[Drawn, ...] = ()
    """Answers sampled beside this one, by temperature, where they were asked for."""
    left_out: int = 0
    """Of in-context: practice examples that did not fit."""


@dataclass(frozen=True)
class Contestant:
    """The model as one method uses it."""

    lm: LM
    state: MetaState | None
    """None: the base alone."""
    config: AdaptConfig
    origin: str = ""
    """Where a trained state comes from, in words; empty for the untrained methods."""
    recorded: dict[str, Any] = field(default_factory=dict[str, Any])
    """The same for the records: fields of `Adaptation` (see `mass.model.origin_of`)."""
    training: dict[str, Any] = field(default_factory=dict[str, Any])
    """How a trained state was trained (see `mass.runs.folder.training_of`); empty where that is not known."""
    samples_base: bool = False
    """Whether its answers are the base's, though it has a state: of that, only the scorer is used."""

    @property
    def theta(self) -> Params | None:
        return None if self.state is None or self.samples_base else self.state.theta


# --- who takes part


def contestants(
    model: Mass, methods: Sequence[str], config: EvalConfig, checkpoints: Checkpoints, seed: int
) -> dict[str, Contestant]:
    """The model as each method uses it; checkpoints are read, and the base stays the one that is loaded.

    A checkpoint is asked with the prompts it was trained with, unless the model was given others.

    Raises:
        ConfigError: a method needs a checkpoint that is not there. ModelError: a checkpoint cannot be used.
    """
    for name in checkpoints:
        if name not in TRAINED:
            raise ConfigError(f"a checkpoint is given for {name!r}{nearest(name, TRAINED)}")
    lms = {model.lm.adapters.config: model.lm}
    trained: dict[str, Contestant] = {}
    found: dict[str, Contestant] = {}
    for method in methods:
        name = checkpoint_of(method)
        if name is not None:
            if name not in trained:
                trained[name] = _at_test(_trained(model, name, checkpoints, lms, config, seed), config)
            found[method] = _of_base(trained[name]) if _samples_base(method) else trained[name]
        elif method in UNTRAINED_METHODS:
            adapt = _untrained_config(model, method, config)
            state, recorded = init_state(model.lm, adapt, seed), origin_of(model.lm, None, seed)
            found[method] = Contestant(model.lm, state, adapt, recorded=recorded)
        else:
            found[method] = Contestant(model.lm, None, AdaptConfig(answer=config.answer))
    return found


def _untrained_config(model: Mass, method: str, config: EvalConfig) -> AdaptConfig:
    """As much practice as the model's own configuration, in uniform weights or in those of its likelihood."""
    synthesis, inner = config.synthesis or model.config.synthesis, config.ttt or model.config.inner
    likely = method == TT_SS_LIKELIHOOD
    scoring = ScoringConfig(sharpness=config.sharpness) if likely else ScoringConfig(normalise="uniform")
    return _with_counts(AdaptConfig(synthesis, scoring, inner, config.answer), config)


def _at_test(contestant: Contestant, config: EvalConfig) -> Contestant:
    return dataclasses.replace(contestant, config=_with_counts(contestant.config, config))


def _with_counts(adapt: AdaptConfig, config: EvalConfig) -> AdaptConfig:
    """With the m and K of the comparison, where it sets them."""
    m = adapt.synthesis.examples if config.examples is None else config.examples
    k = adapt.inner.steps if config.steps is None else config.steps
    return dataclasses.replace(
        adapt,
        synthesis=adapt.synthesis.of_size(m),
        inner=dataclasses.replace(adapt.inner, steps=k),
    )


def _samples_base(method: str) -> bool:
    choice = choice_of(method)
    return choice is not None and choice.sampler == "base"


def _of_base(contestant: Contestant) -> Contestant:
    """The base, with the scorer of a checkpoint."""
    return dataclasses.replace(contestant, samples_base=True)


def _trained(
    model: Mass, name: str, checkpoints: Checkpoints, lms: dict[LoraConfig, LM], config: EvalConfig, seed: int
) -> Contestant:
    given, shipped = checkpoints.get(name), shipped_folder(model.lm.name)
    if given is not None and str(given) == UNTRAINED:
        adapt = dataclasses.replace(model.config, answer=config.answer)
        state, recorded = init_state(model.lm, adapt, seed), origin_of(model.lm, None, seed)
        return Contestant(model.lm, state, adapt, "no checkpoint: its state is untrained", recorded)
    if given is not None:
        return _from_folder(model, Path(given).expanduser(), name, lms, config, f"checkpoint {given}")
    if model.method == name:
        adapt = dataclasses.replace(model.config, answer=config.answer)
        training = {"method": name, **training_of(Path(model.checkpoint))} if model.checkpoint else {}
        return Contestant(model.lm, model.state, adapt, "the state of the given model", model.origin, training)
    if shipped is not None and (shipped / name).is_dir():
        return _from_folder(model, shipped / name, name, lms, config, "the checkpoint shipped with the package")
    raise ConfigError(
        f"method {name!r} needs a checkpoint that `mass train` made with train.method {name}, and model "
        f"{model.lm.name!r} ({model.method}) brings none; give its run folder "
        f"(--checkpoint-of {name}=DIR, in Python checkpoints={{{name!r}: DIR}}), or leave the method out"
    )


def _from_folder(
    model: Mass, folder: Path, name: str, lms: dict[LoraConfig, LM], config: EvalConfig, origin: str
) -> Contestant:
    if not folder.is_dir():
        raise ConfigError(
            f"checkpoint of {name!r} is {str(folder)!r}, which is no folder; give a run folder of `mass train`"
        )
    description = checkpoint_files.describe(folder)
    if description.lora not in lms:
        lms[description.lora] = model.lm.with_lora(description.lora)
    lm = lms[description.lora]
    if description.prompts is not None and not model.prompts_given:
        own = with_thinking(description.prompts, lm.thinking)
        if own != lm.prompt_set:
            lm = lm.with_prompts(own)
            origin += ", asked with its own prompts"
    state, description = checkpoint_files.load(folder, lm)
    adapt = dataclasses.replace(description.adapt, answer=config.answer)
    steps = f"{description.step} steps of {description.method}" if description.step else "untrained: 0 steps"
    training = {"method": description.method, "step": description.step, **training_of(folder)}
    return Contestant(lm, state, adapt, f"{origin} ({steps})", origin_of(lm, folder, None), training)


# --- how they answer


def answer_plain(
    contestant: Contestant, problems: Sequence[str], seeds: Sequence[int], config: EvalConfig
) -> list[Attempt]:
    """Answer with the contestant's weights as they are; the same random numbers as an adapted answer has."""
    prompts = [contestant.lm.solve_prompt(problem) for problem in problems]
    return answer_prompts(contestant, prompts, seeds, config)


def answer_prompts(
    contestant: Contestant, prompts: Sequence[Sequence[int]], seeds: Sequence[int], config: EvalConfig
) -> list[Attempt]:
    """One answer to each prompt as `config.answer` says, and those sampled beside it."""
    lm, start = contestant.lm, time.perf_counter()
    samples = lm.sample(prompts, config.answer, [derive(seed, "answer") for seed in seeds], contestant.theta)
    seconds = (time.perf_counter() - start) / len(prompts)
    attempts = [Attempt(s.text.strip(), len(s.tokens), seconds) for s in samples]
    drawn = draw_beside(lm, prompts, seeds, contestant.theta, config)
    return [dataclasses.replace(attempt, drawn=some) for attempt, some in zip(attempts, drawn, strict=True)]


def answer_adapted(
    contestant: Contestant,
    problems: Sequence[str],
    seeds: Sequence[int],
    config: EvalConfig,
    practice: Groups | None = None,
) -> list[Attempt]:
    """Adapt to each problem, on its own practice or on what is given, and answer it; one adaptation for all answers."""
    assert contestant.state is not None
    lm = contestant.lm
    records, adapted = answer_all(
        lm, contestant.state, problems, contestant.config, seeds, unadapted=False, replay=practice
    )
    records = [dataclasses.replace(record, **contestant.recorded) for record in records]
    drawn = draw_beside(lm, [lm.solve_prompt(problem) for problem in problems], seeds, adapted.stack, config)
    return [_adapted_attempt(record, some) for record, some in zip(records, drawn, strict=True)]


def _adapted_attempt(record: Adaptation, drawn: tuple[Drawn, ...]) -> Attempt:
    """The practice is part of what each answer costs."""
    tokens, seconds = sum(record.tokens.values()), sum(record.seconds.values())
    attempt = Attempt(record.text, tokens, seconds, record, drawn=drawn)
    own_tokens, own_seconds = record.tokens["answer"], record.seconds["answer"]
    return dataclasses.replace(attempt, drawn=after(drawn, tokens - own_tokens, seconds - own_seconds))


def draw_beside(
    lm: LM, prompts: Sequence[Sequence[int]], seeds: Sequence[int], adapter: Params | None, config: EvalConfig
) -> list[tuple[Drawn, ...]]:
    """`config.samples` answers to each prompt at each of `config.temperatures`; nothing where none are asked for.

    Sample j of a problem has seed (its seed, temperature, j), whatever the method.
    """
    n, found = config.samples, [list[Drawn]() for _ in prompts]
    for temperature in config.temperatures if n else ():
        start = time.perf_counter()
        sampling = dataclasses.replace(config.answer, temperature=temperature)
        row_seeds = [derive(seed, "sampled", f"{temperature:g}", j) for seed in seeds for j in range(n)]
        samples = lm.sample([p for p in prompts for _ in range(n)], sampling, row_seeds, adapter)
        seconds = (time.perf_counter() - start) / len(samples)
        for i, drawn in enumerate(found):
            mine = samples[i * n : (i + 1) * n]
            tokens = sum(len(s.tokens) for s in mine) / n
            drawn.append(Drawn(temperature, tuple(s.text.strip() for s in mine), tokens, seconds))
    return [tuple(drawn) for drawn in found]


def after(drawn: Sequence[Drawn], tokens: float, seconds: float) -> tuple[Drawn, ...]:
    """The same answers, each of which also costs what came before them."""
    return tuple(dataclasses.replace(d, tokens=d.tokens + tokens, seconds=d.seconds + seconds) for d in drawn)


def training_pool(
    train_tasks: Sequence[Task] | None, seed: int, held_out: Sequence[str], source: str = "minimath"
) -> list[Task]:
    """Training tasks with a worked solution, none of them among the `held_out` problems. Where none are given, they
    come from the train split of a built-in source.

    Raises DataError when none is left.
    """
    tasks = task_sets.load(source, split="train", size=TRAINING_POOL, seed=seed) if train_tasks is None else train_tasks
    texts = set(held_out)
    pool = [task for task in tasks if task.solution.strip() and task.problem not in texts]
    if not pool:
        raise DataError(
            f"base-ttt has {len(tasks)} training tasks, none with a worked solution that is not also a problem to "
            "answer; give others, or leave base-ttt out"
        )
    return pool


def training_examples(lm: LM, pool: Sequence[Task], config: SynthesisConfig, seeds: Sequence[int]) -> Groups:
    """For each problem its own random draw of training tasks, as practice examples."""
    m = min(config.examples, len(pool))
    drawn = [random.Random(derive(seed, "training examples")).sample(pool, m) for seed in seeds]
    return [tuple(_example(lm, task, config) for task in tasks) for tasks in drawn]


def _example(lm: LM, task: Task, config: SynthesisConfig) -> Example:
    try:
        context, target = lm.example_row(task.problem, task.solution)
        fits = len(context) + len(target) <= min(lm.context, config.max_example_tokens)
    except DataError:  # the problem alone is too long
        fits = False
    return Example(task.problem, task.solution, rejected="" if fits else "too long")
