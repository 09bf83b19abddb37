"""Problems -> attempts: the methods of the comparison, each with what it cost. Source of the rows: arXiv 2603.03524.

| method | adapter | practice |
| --- | --- | --- |
| base | none | none |
| base-ttt | untrained | random training problems with their worked solutions |
| tt-ss | untrained | written by the model itself, all weighed alike |
| solver-grpo, mass-unadapted | meta-trained | none |
| mass-gold, mass | meta-trained | written and weighed by the model itself |
| maj@n | none | none: majority vote of n sampled answers |

A method sees the texts of problems, never a `Task`: gold cannot reach it. The tasks that base-ttt learns from are
training tasks. Answer i is a function of its problem and `seeds[i]` (and, but for rounding, not of its neighbours).
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mass import checkpoint as checkpoint_files
from mass.adapt import Groups, answer_all
from mass.checkpoint import MetaState, init_state
from mass.config import (
    AdaptConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    ScoringConfig,
    SynthesisConfig,
)
from mass.errors import ConfigError, DataError, nearest
from mass.lm import LM, load_lm
from mass.lm.source import TINY, tiny_folder
from mass.model import UNTRAINED, Mass, origin_of
from mass.seeds import derive
from mass.tasks import minimath
from mass.types import Adaptation, Example, Params, Sample, Task
from mass.verify import final_answer
from mass.verify.exact import number

UNTRAINED_METHODS = ("base-ttt", "tt-ss")
ADAPTING = (*UNTRAINED_METHODS, "mass-gold", "mass")
TRAINED = ("solver-grpo", "mass-gold", "mass", "mass-unadapted")
METHODS = ("base", "base-ttt", "tt-ss", "solver-grpo", "mass-gold", "mass", "mass-unadapted", "maj@n")
TRAINING_POOL = 1000
"""Problems of minimath's train split that base-ttt draws from when it is given no training tasks."""

Checkpoints = Mapping[str, str | Path]
"""Method -> a run folder of `mass train`, one of its checkpoints, or 'untrained'."""
_MAJORITY = re.compile(r"maj@(n|[1-9][0-9]{0,4})")


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
    """Of maj@n: answers and their votes, in order of first appearance."""
    samples: int = 1
    """Answers sampled: n of maj@n."""


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

    @property
    def theta(self) -> Params | None:
        return None if self.state is None else self.state.theta


def is_majority(method: str) -> bool:
    return _MAJORITY.fullmatch(method) is not None


def fixed_votes(method: str) -> int | None:
    """9 for 'maj@9'; None for 'maj@n', which chooses n."""
    size = method.partition("@")[2]
    return None if size == "n" else int(size)


def check_methods(methods: Sequence[str]) -> list[str]:
    """The methods without repeats. Raises ConfigError for an unknown one, or when there is none."""
    for method in methods:
        if method not in METHODS and not is_majority(method):
            raise ConfigError(f"method {method!r} is unknown{nearest(method, METHODS)}")
    if not methods:
        raise ConfigError(f"no methods given; expected some of {', '.join(METHODS)}")
    return list(dict.fromkeys(methods))


# --- who takes part


def contestants(
    model: Mass, methods: Sequence[str], config: EvalConfig, checkpoints: Checkpoints, seed: int
) -> dict[str, Contestant]:
    """The model as each method uses it; checkpoints are read, and a base is loaded again only for another LoRA shape.

    Raises:
        ConfigError: a method needs a checkpoint that is not there. ModelError: a checkpoint cannot be used.
    """
    for name in checkpoints:
        if name not in TRAINED or name == "mass-unadapted":
            raise ConfigError(f"a checkpoint is given for {name!r}{nearest(name, TRAINED[:3])}")
    lms = {model.lm.adapters.config: model.lm}
    trained: dict[str, Contestant] = {}
    found: dict[str, Contestant] = {}
    for method in methods:
        if method in TRAINED:
            name = method.removesuffix("-unadapted")
            if name not in trained:
                trained[name] = _trained(model, name, checkpoints, lms, config, seed)
            found[method] = trained[name]
        elif method in UNTRAINED_METHODS:
            adapt = _untrained_config(model, config)
            recorded = origin_of(model.lm, None, seed)
            found[method] = Contestant(model.lm, init_state(model.lm, adapt, seed), adapt, recorded=recorded)
        else:
            found[method] = Contestant(model.lm, None, AdaptConfig(answer=config.answer))
    return found


def _untrained_config(model: Mass, config: EvalConfig) -> AdaptConfig:
    """As much practice as the model's own configuration, in uniform weights."""
    synthesis, inner = config.synthesis or model.config.synthesis, config.ttt or model.config.inner
    return AdaptConfig(synthesis, ScoringConfig(normalise="uniform"), inner, config.answer)


def _trained(
    model: Mass, name: str, checkpoints: Checkpoints, lms: dict[LoraConfig, LM], config: EvalConfig, seed: int
) -> Contestant:
    given, shipped = checkpoints.get(name), tiny_folder() / name
    if given is not None and str(given) == UNTRAINED:
        adapt = dataclasses.replace(model.config, answer=config.answer)
        state, recorded = init_state(model.lm, adapt, seed), origin_of(model.lm, None, seed)
        return Contestant(model.lm, state, adapt, "no checkpoint: its state is untrained", recorded)
    if given is not None:
        return _from_folder(model.lm, Path(given).expanduser(), name, lms, config, f"checkpoint {given}")
    if model.method == name:
        adapt = dataclasses.replace(model.config, answer=config.answer)
        return Contestant(model.lm, model.state, adapt, "the state of the given model", model.origin)
    if model.lm.name == TINY and shipped.is_dir():
        return _from_folder(model.lm, shipped, name, lms, config, "the checkpoint shipped with the package")
    raise ConfigError(
        f"method {name!r} needs a checkpoint that `mass train` made with train.method {name}, and model "
        f"{model.lm.name!r} ({model.method}) brings none; give its run folder "
        f"(--checkpoint-of {name}=DIR, in Python checkpoints={{{name!r}: DIR}}), or leave the method out"
    )


def _from_folder(
    lm: LM, folder: Path, name: str, lms: dict[LoraConfig, LM], config: EvalConfig, origin: str
) -> Contestant:
    if not folder.is_dir():
        raise ConfigError(
            f"checkpoint of {name!r} is {str(folder)!r}, which is no folder; give a run folder of `mass train`"
        )
    description = checkpoint_files.describe(folder)
    if description.lora not in lms:
        lms[description.lora] = load_lm(_as_loaded(lm), description.lora)
    state, description = checkpoint_files.load(folder, lms[description.lora])
    adapt = dataclasses.replace(description.adapt, answer=config.answer)
    steps = f"{description.step} steps of {description.method}" if description.step else "untrained: 0 steps"
    lm = lms[description.lora]
    return Contestant(lm, state, adapt, f"{origin} ({steps})", origin_of(lm, folder, None))


def _as_loaded(lm: LM) -> ModelConfig:
    return ModelConfig(lm.name, str(lm.device), lm.dtype, lm.decode_rows)  # type: ignore[arg-type]


# --- how they answer


def answer_plain(
    contestant: Contestant, problems: Sequence[str], seeds: Sequence[int], sampling: SamplingConfig
) -> list[Attempt]:
    """Answer with the contestant's weights as they are; the same random numbers as an adapted answer has."""
    lm, start = contestant.lm, time.perf_counter()
    prompts = [lm.solve_prompt(problem) for problem in problems]
    samples = lm.sample(prompts, sampling, [derive(seed, "answer") for seed in seeds], contestant.theta)
    seconds = (time.perf_counter() - start) / len(problems)
    return [Attempt(s.text.strip(), len(s.tokens), seconds) for s in samples]


def answer_adapted(
    contestant: Contestant, problems: Sequence[str], seeds: Sequence[int], practice: Groups | None = None
) -> list[Attempt]:
    """Adapt to each problem, on its own practice or on what is given, and answer it."""
    assert contestant.state is not None
    records, _ = answer_all(
        contestant.lm, contestant.state, problems, contestant.config, seeds, unadapted=False, replay=practice
    )
    records = [dataclasses.replace(record, **contestant.recorded) for record in records]
    return [Attempt(r.text, sum(r.tokens.values()), sum(r.seconds.values()), r) for r in records]


def training_pool(train_tasks: Sequence[Task] | None, seed: int, held_out: Sequence[str]) -> list[Task]:
    """Training tasks with a worked solution, none of them among the `held_out` problems.

    Raises DataError when none is left.
    """
    tasks = minimath.load("train", TRAINING_POOL, seed) if train_tasks is None else train_tasks
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


# --- the vote


def vote(
    lm: LM,
    problems: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    votes: int,
    tokens: float | None = None,
    stack: int = 32,
    tick: Callable[[int], None] | None = None,
) -> list[Attempt]:
    """The majority answer of n samples of each problem, the same n for all.

    Args:
        votes: n, when `tokens` is None.
        tokens: what n samples shall cost per problem, at least: n is that over the mean length of one sample of
            each problem, rounded up, and one more as long as the samples drawn come out shorter.
        tick: told now and then how many of the problems are as good as done.
    """
    start = time.perf_counter()
    ballots: list[list[Sample]] = [[] for _ in problems]
    if tokens is None:
        _cast(lm, problems, seeds, sampling, ballots, votes, stack, tick)
    else:
        _cast(lm, problems, seeds, sampling, ballots, 1, stack, None)
        more = math.ceil(tokens / _mean_tokens(ballots)) - 1
        _cast(lm, problems, seeds, sampling, ballots, more, stack, tick)
        while _mean_tokens(ballots) < tokens:
            _cast(lm, problems, seeds, sampling, ballots, 1, stack, None)
    seconds = (time.perf_counter() - start) / len(problems)
    return [elect(samples, seconds) for samples in ballots]


def _cast(
    lm: LM,
    problems: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    ballots: list[list[Sample]],
    count: int,
    stack: int,
    tick: Callable[[int], None] | None,
) -> None:
    """Add `count` samples to each problem's ballot; sample j of a problem has seed (its seed, j)."""
    if count < 1:
        return
    prompts = [lm.solve_prompt(problem) for problem in problems]
    for start in range(0, len(problems), stack):
        part = range(start, min(start + stack, len(problems)))
        places = [(i, len(ballots[i]) + j) for i in part for j in range(count)]
        row_seeds = [derive(seeds[i], "vote", j) for i, j in places]
        samples = lm.sample([prompts[i] for i, _ in places], sampling, row_seeds)
        for (i, _), sample in zip(places, samples, strict=True):
            ballots[i].append(sample)
        if tick is not None:
            tick(part.stop)


def _mean_tokens(ballots: Sequence[Sequence[Sample]]) -> float:
    """Generated tokens per problem."""
    return sum(len(s.tokens) for samples in ballots for s in samples) / len(ballots)


def elect(samples: Sequence[Sample], seconds: float = 0.0) -> Attempt:
    """The first sample that gives the answer most samples give; of equals, the answer seen first.

    Answers are alike when they write the same rational number, else when their words are alike. Samples without an
    answer do not vote; where none votes, the first sample answers.
    """
    tally: dict[str, int] = {}
    first: dict[str, Sample] = {}
    for sample in samples:
        answer = final_answer(sample.text)
        if answer is not None:
            key = _alike(answer)
            tally[key] = tally.get(key, 0) + 1
            first.setdefault(key, sample)
    chosen = first[max(tally, key=lambda key: tally[key])] if tally else samples[0]
    tokens = sum(len(s.tokens) for s in samples)
    return Attempt(chosen.text.strip(), tokens, seconds, votes=tally, samples=len(samples))


def _alike(answer: str) -> str:
    value = number(answer)
    return " ".join(answer.lower().split()) if value is None else str(value)
