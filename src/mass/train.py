"""Tasks -> a meta-trained checkpoint in a run folder: gradients of each batch of problems, update, evaluate, save.

Every random draw is a function of (seed, number of the problem), so a stopped run resumes to the same parameters bit
for bit (on the same machine and number of threads).
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from mass import checkpoint, tasks, verify
from mass.adapt import answer_all
from mass.config import RunConfig, TasksConfig, at_test
from mass.errors import ConfigError, DataError, RunError
from mass.lm import LM, load_lm
from mass.metastep import Gradients, Stack, grpo_gradients, mass_gradients
from mass.runlog import RunFolder, check_folder, open_run
from mass.seeds import derive
from mass.tasks import minimath
from mass.types import Params, Task

Metrics = dict[str, float]


@dataclass(frozen=True)
class Problems:
    """What a run is trained and evaluated on."""

    task_at: Callable[[int], Task]
    """Task number n of training."""
    validation: Sequence[Task]
    skipped: Metrics = field(default_factory=Metrics)
    """How many were left out because they do not fit the model's context; empty when all do."""


class Trainer:
    """Holds what one run trains and how far it is."""

    def __init__(self, lm: LM, config: RunConfig, problems: Problems, run: RunFolder) -> None:
        self.lm, self.config, self.problems, self.run = lm, config, problems, run
        self.at_test = at_test(config)
        self.state = checkpoint.init_state(lm, config.adapt, config.train.seed)
        self.step = 0
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        train = self.config.train
        groups = [
            (self.state.theta, train.solver_lr),
            (self.state.eta, train.scorer_lr),
            (self.state.log_rates, train.rates_lr),
        ]
        return torch.optim.AdamW(
            [{"params": list(p.values()), "lr": lr, "base_lr": lr} for p, lr in groups],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )

    def resume(self) -> None:
        """Continue from the latest whole checkpoint; from the start when there is none."""
        latest = self.run.latest()
        if latest is None:
            self.run.rewind(-1)
            return
        self.step, folder = latest
        self.state, _ = checkpoint.load(folder, self.lm)
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True))
        self.run.rewind(self.step)

    def fit(self, on_step: Callable[[Metrics], None]) -> None:
        """Run to `train.steps`, logging, evaluating and saving as configured."""
        train = self.config.train
        before = {**self.problems.skipped, **(self.evaluate() if train.eval_every else {})} if self.step == 0 else {}
        if before:
            self._log({"step": 0, **before}, on_step)
        while self.step < train.steps:
            metrics = self.outer_step()
            last = self.step == train.steps
            evaluated = bool(train.eval_every) and (self.step % train.eval_every == 0 or last)
            if evaluated:
                metrics |= self.evaluate()
            self._log({"step": self.step, **metrics}, on_step)
            if evaluated or last or self.step % train.checkpoint_every == 0:
                self.save(metrics if evaluated else {})

    def _log(self, metrics: Metrics, on_step: Callable[[Metrics], None]) -> None:
        self.run.log(metrics)
        on_step(metrics)

    def save(self, evaluation: Metrics) -> None:
        """Write this step's checkpoint, and the best one. Raises RunError instead of writing what is not finite."""
        state = self.state
        if not all(bool(t.isfinite().all()) for p in (state.theta, state.eta, state.log_rates) for t in p.values()):
            raise RunError(
                f"the parameters are not finite after step {self.step}; the last checkpoint is from before; "
                "train anew with lower train.solver_lr, train.scorer_lr or train.rates_lr"
            )

        def write(folder: Path) -> None:
            checkpoint.save(folder, self.lm, self.state, self.at_test, self.config.train.method, self.step)
            torch.save(self.optimizer.state_dict(), folder / "trainer.pt")

        if evaluation:
            score = {"step": self.step, "accuracy": evaluation["eval/accuracy"]}
            best = self.run.best_score()
            if best is None or score["accuracy"] > best["accuracy"] or best["step"] >= self.step:
                self.run.write_best(write, score)
        self.run.write_checkpoint(self.step, write)
        self.run.keep_latest(self.config.train.keep_checkpoints)

    # --- one outer step

    def outer_step(self) -> Metrics:
        """Gradients of one batch of problems, a stack at a time, then one update."""
        train = self.config.train
        numbers = [self.step * train.tasks_per_step + i for i in range(train.tasks_per_step)]
        gradients_of = grpo_gradients if train.method == "solver-grpo" else mass_gradients
        parts: list[Gradients] = []
        for start in range(0, len(numbers), train.stack):
            some = numbers[start : start + train.stack]
            seeds = [derive(train.seed, "train", number) for number in some]
            parts.append(
                gradients_of(Stack(self.lm, self.state, self.config, [self.problems.task_at(n) for n in some], seeds))
            )
        norms = self._update(parts, len(numbers))
        self.step += 1
        return {**self._metrics(parts, len(numbers)), **norms}

    def _update(self, parts: Sequence[Gradients], count: int) -> Metrics:
        """Average over problems, clip each group, take the optimiser's step. Returns the norms before clipping.

        A group whose norm is not finite counts as zero in this step.
        """
        train, state = self.config.train, self.state
        means = {name: _mean([getattr(part, name) for part in parts], count) for name in ("theta", "eta", "log_rates")}
        if train.generator and train.method != "solver-grpo":
            means["generator"] = _scaled_generator(parts, count, train.generator)
        norms = {name: _norm(gradient) for name, gradient in means.items()}
        means = {name: gradient if math.isfinite(norms[name]) else {} for name, gradient in means.items()}
        means["theta"] = _sum(means["theta"], means.pop("generator", {}))
        warm = min(1.0, (self.step + 1) / max(1, train.warmup))
        for (name, gradient), group in zip(means.items(), self.optimizer.param_groups, strict=True):
            params: Params = getattr(state, name)
            for key, tensor in params.items():
                tensor.grad = gradient.get(key, torch.zeros_like(tensor))
            clip_grad_norm_(list(params.values()), train.max_grad_norm)
            group["lr"] = group["base_lr"] * warm
        self.optimizer.step()
        self.optimizer.zero_grad()
        skipped = sum(not math.isfinite(norm) for norm in norms.values())
        return {**{f"gradient norm/{name}": norm for name, norm in norms.items()}, "skipped updates": skipped}

    def _metrics(self, parts: Sequence[Gradients], count: int) -> Metrics:
        sums, seconds = _total([p.measured for p in parts]), _total([p.clock.seconds for p in parts])
        tokens, practice_loss, practised = (sums.pop(name, 0.0) for name in ("tokens", "practice_loss", "practised"))
        metrics = {name.replace("_", " "): value / count for name, value in sums.items()}
        if practised:
            metrics |= {"practice loss": practice_loss / practised}
        rates = torch.stack([t.exp() for t in self.state.log_rates.values()])
        if self.config.train.method != "solver-grpo":
            metrics |= {"inner rate": float(rates.mean())}
            metrics |= {"inner rate/lowest": float(rates.min()), "inner rate/highest": float(rates.max())}
        return {**metrics, "tokens": tokens, **{f"seconds/{name}": value for name, value in seconds.items()}}

    def evaluate(self) -> Metrics:
        """Accuracy on held-out problems, adapted and not, with the same checkpoint."""
        right = {"accuracy": 0, "unadapted accuracy": 0, "fallbacks": 0}
        validation = self.problems.validation
        for start in range(0, len(validation), self.config.train.stack):
            part = validation[start : start + self.config.train.stack]
            seeds = [derive(self.config.train.seed, "eval", start + i) for i in range(len(part))]
            texts, plain, fallbacks = zip(*self._answers(part, seeds), strict=True)
            for name, answers in (("accuracy", texts), ("unadapted accuracy", plain)):
                verdicts = verify.check_all(list(zip(part, answers, strict=True)))
                right[name] += sum(verdict.correct is True for verdict in verdicts)
            right["fallbacks"] += sum(fallbacks)
        return {f"eval/{name}": count / len(validation) for name, count in right.items()}

    def _answers(self, part: Sequence[Task], seeds: Sequence[int]) -> list[tuple[str, str, bool]]:
        """Adapted text, unadapted text, and whether the adaptation fell back; solver-grpo does not adapt."""
        problems = [task.problem for task in part]
        if self.config.train.method == "solver-grpo":
            prompts = [self.lm.solve_prompt(problem) for problem in problems]
            samples = self.lm.sample(prompts, self.at_test.answer, seeds, self.state.theta)
            return [(s.text, s.text, False) for s in samples]
        records, _ = answer_all(self.lm, self.state, problems, self.at_test, seeds)
        return [(r.text, r.unadapted_text or "", bool(r.fallback)) for r in records]


def train(config: RunConfig, folder: Path, resume: bool, on_step: Callable[[Metrics], None]) -> None:
    """Meta-train into a run folder, or resume the run in it.

    `on_step` is called with the metrics of each step, as they are logged to `metrics.jsonl`.
    """
    if config.train.kl and config.train.method == "mass-gold":
        raise ConfigError("train.kl is set, but mass-gold samples no solutions to measure it on; set train.kl to 0")
    check_folder(folder, config, resume=resume)
    lm = load_lm(config.model, config.lora)
    problems = read_problems(lm, config)
    trainer = Trainer(lm, config, problems, open_run(folder, config, resume=resume))
    if resume:
        trainer.resume()
    trainer.fit(on_step)


def read_problems(lm: LM, config: RunConfig) -> Problems:
    """The tasks of a run, without those that do not fit the model's context: one alone would stop it, again and again.

    Raises DataError when a task has not the gold that the method needs, or when no task fits.
    """
    method, skipped = config.train.method, Metrics()

    def usable(found: list[Task], kind: str, *, worked: bool) -> list[Task]:
        """Those that fit. `worked`: the solution itself is learned, not only an answer compared with."""
        _check_gold(found, kind, method, worked=worked)
        fitting = [task for task in found if _fits(lm, task, practice=method != "solver-grpo", worked=worked)]
        if not fitting:
            raise DataError(
                f"none of the {len(found)} {kind} fits the {lm.context} tokens that {lm.name!r} reads; shorten them "
                "or use a model with a longer context"
            )
        if len(fitting) < len(found):
            skipped[f"skipped {kind}"] = len(found) - len(fitting)
        return fitting

    gold = method == "mass-gold"
    task_at = task_stream(config.tasks, config.train.seed, lambda found: usable(found, "tasks", worked=gold))
    held_out = load_tasks(config.validation, config.train.eval_size) if config.train.eval_every else []
    return Problems(task_at, usable(held_out, "validation tasks", worked=False) if held_out else [], skipped)


def _check_gold(found: Sequence[Task], kind: str, method: str, *, worked: bool) -> None:
    for task in found:
        if not ((worked and task.solution) or task.answer).strip():
            raise DataError(
                f"{task.id!r} of the {kind} has no {'solution and no answer' if worked else 'answer'}, which {method} "
                "needs; add it to the file, or map the file's own field to it with the option 'fields'"
            )


def _fits(lm: LM, task: Task, *, practice: bool, worked: bool) -> bool:
    try:
        lm.solve_prompt(task.problem)
        if practice:
            lm.synthesis_prompt(task.problem)
    except DataError:
        return False
    return not worked or lm.example_tokens(task.problem, task.solution or task.answer) <= lm.context


def task_stream(
    config: TasksConfig, seed: int, usable: Callable[[list[Task]], list[Task]] = list
) -> Callable[[int], Task]:
    """Task number n of training: of minimath's endless stream, or of a file read in a new random order each epoch.

    `usable` picks among the tasks of a list; those of an endless stream are what they are.
    """
    if config.source in minimath.SOURCES and config.size is None:
        return lambda number: minimath.task_at(config.split, config.seed, number, source=config.source)
    found = usable(load_tasks(config))

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        places = list(range(len(found)))
        random.Random(derive(seed, "order", epoch)).shuffle(places)
        return places

    def at(number: int) -> Task:
        epoch, place = divmod(number, len(found))
        return found[order(epoch)[place]]

    return at


def load_tasks(config: TasksConfig, size: int | None = None) -> list[Task]:
    return tasks.load(
        config.source,
        split=config.split,
        size=config.size or size,
        seed=config.seed,
        fields=config.fields or None,
        verifier=config.verifier,
    )


def _mean(parts: Sequence[Params], count: int) -> Params:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name] for part in parts if name in part]).sum(0) / count for name in names}


def _scaled_generator(parts: Sequence[Gradients], count: int, weight: float) -> Params:
    """The generator's gradient with rewards in units of their standard deviation over the whole batch.

    Not over each group: where practice makes next to no difference, the rewards of a group are noise, and dividing by
    their own spread would make that noise the loudest part of the gradient.
    """
    squares, number = (sum(values) for values in zip(*(part.reward_squares for part in parts), strict=True))
    if not squares:
        return {}
    scale = weight / (squares / number) ** 0.5
    return {name: scale * g for name, g in _mean([part.generator for part in parts], count).items()}


def _sum(one: Params, other: Params) -> Params:
    return {**other, **{name: t + other[name] if name in other else t for name, t in one.items()}}


def _norm(gradient: Params) -> float:
    return float(torch.stack([g.norm() for g in gradient.values()]).norm()) if gradient else 0.0


def _total(tables: Sequence[Metrics]) -> Metrics:
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: sum(table.get(name, 0.0) for table in tables) for name in names}
