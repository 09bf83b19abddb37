"""Meta-train a checkpoint in a run folder: gradients of each batch of problems, update, evaluation, saving.

Every random draw is a function of (seed, number of the problem), so a stopped run resumes to the same parameters bit
for bit (on the same machine, with the same number of threads). Several processes share the problems of each step and
make the same update, equal to that of one process except for rounding; the first of them writes the run folder.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from mass.adaptation import checkpoint
from mass.adaptation.checkpoint import MetaState
from mass.config import ModelConfig, RunConfig, at_test
from mass.errors import ConfigError, RunError
from mass.lm import LM, load_lm, room
from mass.runs import provenance
from mass.runs.data import Problems, read_problems
from mass.runs.folder import RunFolder, check_folder, held, open_run
from mass.seeds import derive
from mass.training import distributed as parallel
from mass.training.distributed import Ranks
from mass.training.gradients import Gradients, Stack, added, mean, norm, over_ranks, scaled_generator, total
from mass.training.mass_step import mass_gradients
from mass.training.model_card import write_card
from mass.training.solver_step import solver_gradients
from mass.training.validation import evaluate
from mass.types import Params

Metrics = dict[str, float]


class Trainer:
    """The state of one training run: the parameters, the optimiser, and the number of steps done."""

    def __init__(
        self, lm: LM, config: RunConfig, problems: Problems, run: RunFolder, ranks: Ranks | None = None
    ) -> None:
        self.lm, self.config, self.problems, self.run = lm, config, problems, run
        self.ranks = ranks or Ranks()
        self.at_test = at_test(config)
        self.state = checkpoint.init_state(lm, config.adapt, config.train.seed)
        self.step = 0
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        train = self.config.train
        rates = (train.solver_lr, train.scorer_lr, train.rates_lr)
        return torch.optim.AdamW(
            [
                {"params": list(params.values()), "lr": lr, "base_lr": lr}
                for params, lr in zip(_groups(self.state), rates, strict=True)
            ],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )

    def start(self, *, resume: bool) -> None:
        """Start from a new state or, to resume, from the latest complete checkpoint if there is one.

        All processes start with the first one's state. Raises RunError for a checkpoint of other prompts.
        """
        with self.ranks.together():
            if resume and self.ranks.first:
                self._resume()
        if self.ranks.size > 1:
            self._follow_first()

    def _resume(self) -> None:
        latest = self.run.latest()
        if latest is None:
            self.run.rewind(-1)
            return
        self.step, folder = latest
        self.state, description = checkpoint.load(folder, self.lm)
        if description.prompts not in (None, self.lm.prompt_set):
            raise RunError(
                f"{self.run.path} was trained with other prompts than {self.config.model.prompts or 'the default'} has "
                "now; resume with the same prompts, or start another run"
            )
        self.optimizer = self._optimizer()
        self.optimizer.load_state_dict(torch.load(folder / "trainer.pt", map_location="cpu", weights_only=True))
        self.run.rewind(self.step)

    def _follow_first(self) -> None:
        """Copy step, parameters and optimiser state of the first process to the others."""
        memory: dict[str, Any] = self.optimizer.state_dict()
        memory["state"] = {i: {key: t.cpu() for key, t in slot.items()} for i, slot in memory["state"].items()}
        groups = [{name: t.cpu() for name, t in params.items()} for params in _groups(self.state)]
        self.step, groups, memory = self.ranks.from_first((self.step, groups, memory))
        if not self.ranks.first:
            self.state = MetaState(*({name: t.to(self.lm.device) for name, t in params.items()} for params in groups))
            self.optimizer = self._optimizer()
            self.optimizer.load_state_dict(memory)

    def fit(self, callbacks: Sequence[Callable[[Metrics], None]]) -> None:
        """Run to `train.steps`, logging, evaluating and saving as configured."""
        train = self.config.train
        # An evaluation before the first step shows what the training starts from.
        before = {**self.problems.skipped, **(self.evaluate() if train.eval_every else {})} if self.step == 0 else {}
        if before:
            self._log({"step": 0, **before}, callbacks)
        while self.step < train.steps:
            metrics = self.outer_step()
            last = self.step == train.steps
            evaluated = bool(train.eval_every) and (self.step % train.eval_every == 0 or last)
            if evaluated:
                metrics |= self.evaluate()
            self._log({"step": self.step, **metrics}, callbacks)
            if evaluated or last or self.step % train.checkpoint_every == 0:
                self.save(metrics if evaluated else {})

    def _log(self, metrics: Metrics, callbacks: Sequence[Callable[[Metrics], None]]) -> None:
        if self.ranks.first:
            self.run.log(metrics)
            for callback in callbacks:
                callback(metrics)

    def save(self, evaluation: Metrics) -> None:
        """Write this step's checkpoint, and the best one if this is it; only the first process writes.

        Raises RunError for parameters that are not finite, or not the same in all processes, instead of writing them.
        """
        if not all(bool(t.isfinite().all()) for params in _groups(self.state) for t in params.values()):
            raise RunError(
                f"the parameters are not finite after step {self.step}; the last checkpoint is from before; "
                "train anew with lower train.solver_lr, train.scorer_lr or train.rates_lr"
            )
        if self.ranks.size > 1:
            self.ranks.agree(checkpoint.state_hash(self.state), f"the parameters after step {self.step}")
        if self.ranks.first:
            self._write(evaluation)

    def _write(self, evaluation: Metrics) -> None:

        def write(folder: Path) -> None:
            checkpoint.save(folder, self.lm, self.state, self.at_test, self.config.train.method, self.step)
            torch.save(self.optimizer.state_dict(), folder / "trainer.pt")
            write_card(self.run, self.config, folder)

        if evaluation:
            score = {"step": self.step, "accuracy": evaluation["eval/accuracy"]}
            best = self.run.best_score()
            # A best checkpoint of a later step is left over from before the run was resumed at an earlier one.
            if best is None or score["accuracy"] > best["accuracy"] or best["step"] >= self.step:
                self.run.write_best(write, score)
        self.run.write_checkpoint(self.step, write)
        self.run.keep_latest(self.config.train.keep_checkpoints)
        write_card(self.run, self.config)

    # --- one outer step

    def outer_step(self) -> Metrics:
        """Compute the gradients of one batch of problems, make one update, and return what was measured."""
        sums = self.gradients()
        count = self.config.train.tasks_per_step
        norms = self._update(sums, count)
        self.step += 1
        return {**self._metrics(sums, count), **norms}

    def gradients(self) -> Gradients:
        """Return the sums over this step's problems, the same in each process.

        Each process computes its share of the problems, one stack at a time.
        """
        train = self.config.train
        gradients_of = mass_gradients if train.adapts else solver_gradients
        parts: list[Gradients] = []
        with self.ranks.together():
            for portion in self._portions(train.tasks_per_step, train.stack):
                numbers = [self.step * train.tasks_per_step + i for i in portion]
                seeds = [derive(train.seed, "train", number) for number in numbers]
                some = [self.problems.task_at(number) for number in numbers]
                canaries = self.problems.canaries
                beside = () if canaries is None else [canaries(number) for number in numbers]
                parts.append(gradients_of(Stack(self.lm, self.state, self.config, some, seeds, beside)))
            own, done_s = total(parts), time.perf_counter()
        sums = over_ranks(own, self.state, self.ranks)
        if self.ranks.size == 1:
            return sums
        return dataclasses.replace(sums, seconds={**sums.seconds, "exchange": time.perf_counter() - done_s})

    def _portions(self, count: int, stack: int) -> Iterator[range]:
        """Yield this process's share of the numbers below `count`, in stacks that fit the free memory."""
        fits = room.stack_that_fits(self.lm, stack)
        for portion in self.ranks.portion(count, stack):
            yield from (portion[at : at + fits] for at in range(0, len(portion), fits))

    def _update(self, sums: Gradients, count: int) -> Metrics:
        """Average over problems, clip each group, and take the optimiser's step. Returns the norms before clipping.

        A group of parameters whose gradient is not finite gets a zero gradient in this step.
        """
        train, state = self.config.train, self.state
        means = {name: mean(getattr(sums, name), count) for name in ("theta", "eta", "log_rates")}
        if train.generator and train.adapts:
            means["generator"] = scaled_generator(sums, count, train.generator)
        norms = {name: norm(gradient) for name, gradient in means.items()}
        means = {name: gradient if math.isfinite(norms[name]) else {} for name, gradient in means.items()}
        means["theta"] = added(means["theta"], means.pop("generator", {}))
        # A linear warm-up: the first steps of Adam are about as long as the rate, whatever the gradient.
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

    def _metrics(self, sums: Gradients, count: int) -> Metrics:
        """Return the means over the problems of the step.

        Seconds are those of this process; its wait for the others is in "exchange".
        """
        found = dict(sums.measured)
        tokens, practice_loss, practised = (found.pop(name, 0.0) for name in ("tokens", "practice_loss", "practised"))
        metrics = {name.replace("_", " "): value / count for name, value in found.items()}
        if practised:
            metrics |= {"practice loss": practice_loss / practised}
        rates = torch.stack([t.exp() for t in self.state.log_rates.values()])
        if self.config.train.adapts:
            metrics |= {"inner rate": float(rates.mean())}
            metrics |= {"inner rate/lowest": float(rates.min()), "inner rate/highest": float(rates.max())}
        return {**metrics, "tokens": tokens, **{f"seconds/{name}": value for name, value in sums.seconds.items()}}

    def evaluate(self) -> Metrics:
        """Return the accuracy on held-out problems, with and without adaptation, of the present parameters."""
        return evaluate(self.lm, self.state, self.config, self.problems.validation, self.ranks)


def train(
    config: RunConfig, out: str | Path, resume: bool = False, callbacks: Sequence[Callable[[Metrics], None]] = ()
) -> None:
    """Meta-train into a run folder; in a process that torchrun started, this process's share of the work.

    Args:
        config: the run; `RunConfig.from_yaml` reads a recipe.
        out: the run's folder, which must be new or empty unless `resume` is given.
        resume: continue the run in `out` from its last checkpoint.
        callbacks: each is called with the metrics of every step, as they are written to `metrics.jsonl`; in the first
            process only.

    Raises a MassError in all processes where one of them does.
    """
    folder = Path(out)
    if config.train.kl and not config.train.samples_solutions:
        raise ConfigError(
            f"train.kl is set, but {config.train.method} samples no solutions to measure it on; set train.kl to 0"
        )
    if config.train.canary_kl and not config.train.adapts:
        raise ConfigError(
            f"train.canary_kl is set, but {config.train.method} does not adapt, so nothing drifts; set it to 0"
        )
    if config.train.scorer_verdicts and not (config.train.adapts and config.adapt.synthesis.attempts):
        raise ConfigError(
            "train.scorer_verdicts is set, but nothing that is practised has a verdict; set adapt.synthesis.attempts "
            "with train.method mass or mass-gold, or scorer_verdicts to 0"
        )
    with parallel.joined(config.model.device) as (ranks, device):
        if config.train.tasks_per_step < ranks.size:
            raise ConfigError(
                f"train.tasks_per_step is {config.train.tasks_per_step} for {ranks.size} processes; expected at least "
                "one problem each; start fewer processes or raise train.tasks_per_step"
            )
        # The folder is checked before the model is loaded, which may take minutes.
        with ranks.together():
            if ranks.first:
                check_folder(folder, config, resume=resume)
        with ranks.together():
            lm = load_lm(_placed(config.model, device, ranks), config.lora)
            problems = read_problems(lm, config)
            lm = lm.asking(problems.kind)
        with ExitStack() as hold:
            with ranks.together():
                if ranks.first:
                    hold.enter_context(held(folder))
                run = open_run(folder, config, resume=resume) if ranks.first else RunFolder(folder)
            trainer = Trainer(lm, config, problems, run, ranks)
            trainer.start(resume=resume)
            if ranks.first:
                run.note(dataclasses.asdict(provenance.session(lm, trainer.step, ranks.size, problems)))
            trainer.fit(callbacks)
            if ranks.first and run.latest() is not None:
                write_card(run, config)


def _placed(model: ModelConfig, device: str, ranks: Ranks) -> ModelConfig:
    """Return the model's settings with this process's own device.

    Raises ConfigError for several processes with a model that is spread over several devices.
    """
    if model.device_map is None:
        return dataclasses.replace(model, device=device)
    if ranks.size > 1:
        raise ConfigError(
            f"model.device_map is {model.device_map!r} with {ranks.size} processes, each of which would take all GPUs; "
            "expected one of the two; start one process, or leave it out"
        )
    return model


def _groups(state: MetaState) -> tuple[Params, Params, Params]:
    """Return the groups of parameters, in the order of the optimiser's."""
    return state.theta, state.eta, state.log_rates
