"""Tasks -> a meta-trained checkpoint: synthesis -> scoring -> inner loop -> outer loss -> meta-gradient -> update.

One outer step on a batch of problems: the generator writes practice for each, the scorer weighs it, the adapter takes
K steps on it, the outer loss judges the adapted weights on the problem itself, and its exact gradient goes back to the
scorer (through the weights), to the starting adapter (gamma), to the inner learning rates, and as a reward to the
generator: `-dL/ds_i` of each example. Source: arXiv 2603.03524.

Every random draw is a function of (seed, step, problem), so a stopped run resumes to the same parameters bit for bit.

Legend: B tasks of a stack, m examples of a task, N valid examples of a stack.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mass import checkpoint, outer, policy, scoring, synthesis, tasks, verify
from mass.adapt import Clock, Groups, answer_all
from mass.adapter import repeat
from mass.checkpoint import MetaState, optimizer_of
from mass.config import RunConfig, TasksConfig
from mass.lm import LM
from mass.metagrad import MetaGradients, meta_gradients, outer_gradient
from mass.practice import Practice, practice_of, valid_mask
from mass.runlog import RunFolder
from mass.seeds import derive
from mass.tasks import minimath
from mass.types import Params, Task

Metrics = dict[str, float]


@dataclass
class Step:
    """Gradients and measurements that the stacks of one outer step add up."""

    theta: Params
    eta: Params
    log_rates: Params
    clock: Clock = field(default_factory=Clock)
    sums: dict[str, float] = field(default_factory=dict[str, float])
    """Quantities summed over tasks."""

    @staticmethod
    def zero(state: MetaState) -> Step:
        return Step(
            *({n: torch.zeros_like(t) for n, t in p.items()} for p in (state.theta, state.eta, state.log_rates))
        )

    def add(self, **values: float) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def add_gradient(self, to: Params, gradient: Params, scale: float = 1.0) -> None:
        for name, value in gradient.items():
            to[name] += scale * value


class Trainer:
    """Holds what one run trains and how far it is."""

    def __init__(self, lm: LM, config: RunConfig, run: RunFolder) -> None:
        self.lm, self.config, self.run = lm, config, run
        self.state = checkpoint.init_state(lm, config.adapt, config.train.seed)
        self.step = 0
        self.task_at = task_stream(config.tasks)
        self.validation = _validation_tasks(config)
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
        self.optimizer.load_state_dict(torch.load(folder / "trainer.pt", weights_only=True))
        self.run.rewind(self.step)

    def fit(self, on_step: Callable[[Metrics], None]) -> None:
        """Run to `train.steps`, logging, evaluating and saving as configured."""
        train = self.config.train
        if self.step == 0 and train.eval_every:
            self._log({"step": 0, **self.evaluate()}, on_step)
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
        def write(folder: Path) -> None:
            checkpoint.save(folder, self.lm, self.state, self.config.adapt, self.config.train.method, self.step)
            torch.save(self.optimizer.state_dict(), folder / "trainer.pt")

        written = self.run.write_checkpoint(self.step, write)
        if evaluation:
            score = {"step": self.step, "accuracy": evaluation["eval/accuracy"]}
            best = self.run.best_score()
            if best is None or score["accuracy"] > best["accuracy"] or best["step"] >= self.step:
                self.run.write_best(written, score)
        self.run.keep_latest(self.config.train.keep_checkpoints)

    # --- one outer step

    def outer_step(self) -> Metrics:
        train = self.config.train
        first = self.step * train.tasks_per_step
        batch = [self.task_at(first + i) for i in range(train.tasks_per_step)]
        seeds = [derive(train.seed, "train", first + i) for i in range(train.tasks_per_step)]
        step = Step.zero(self.state)
        stack_step = self._grpo_stack if train.method == "solver-grpo" else self._mass_stack
        for start in range(0, len(batch), train.stack):
            part = slice(start, start + train.stack)
            stack_step(step, batch[part], seeds[part])
        norms = self._update(step, len(batch))
        self.step += 1
        return self._metrics(step, len(batch), norms)

    def _mass_stack(self, step: Step, batch: Sequence[Task], seeds: Sequence[int]) -> None:
        config, lm, state = self.config, self.lm, self.state
        problems = [task.problem for task in batch]
        with step.clock.stage("synthesis"):
            groups = synthesis.synthesise(lm, problems, config.adapt.synthesis, seeds, state.theta)
        practice = practice_of(lm, groups)
        generated = sum(len(e.tokens) for group in groups for e in group)
        step.add(valid=sum(e.valid for g in groups for e in g) / config.adapt.synthesis.examples, tokens=generated)
        if practice is None:
            self._unadapted_stack(step, batch, seeds)
            return
        with step.clock.stage("scoring"):
            eta = {name: t.detach().requires_grad_() for name, t in state.eta.items()}
            places = list(zip(practice.owners.tolist(), practice.places.tolist(), strict=True))
            flat = scoring.score(lm, eta, [problems[b] for b, _ in places], [groups[b][j] for b, j in places])
        gradients = self._meta_gradients(step, batch, seeds, groups, practice, flat.detach())
        with step.clock.stage("update"):
            if flat.requires_grad:
                grads = torch.autograd.grad(
                    flat, list(eta.values()), practice.pick(gradients.scores), allow_unused=True
                )
                step.add_gradient(step.eta, {n: g for n, g in zip(eta, grads, strict=True) if g is not None})
            step.add_gradient(step.theta, gradients.theta, config.train.gamma)
            step.add_gradient(step.log_rates, gradients.log_rates)
        if config.train.generator:
            with step.clock.stage("generator"):
                self._generator(step, problems, groups, gradients.scores)

    def _meta_gradients(
        self, step: Step, batch: Sequence[Task], seeds: Sequence[int], groups: Groups, practice: Practice, flat: Tensor
    ) -> MetaGradients:
        config, state = self.config, self.state
        valid = valid_mask(groups, self.lm.device)
        kind = config.adapt.scoring.normalise
        scores = practice.spread(flat, *valid.shape)
        weights = scoring.normalise(scores, valid, kind)
        with step.clock.stage("inner and meta-gradient"):
            outside = step.clock.seconds.get("outer", 0.0)
            gradients = meta_gradients(
                practice.losses,
                lambda s: practice.pick(scoring.normalise(s, valid, kind)),
                scores,
                state.theta,
                state.log_rates,
                lambda rates: optimizer_of(config.adapt.inner, rates),
                config.adapt.inner.steps,
                lambda adapted: self._outer(step, batch, seeds, adapted),
                config.adapt.inner.micro_batch,
            )
        step.clock.seconds["inner and meta-gradient"] -= step.clock.seconds.get("outer", 0.0) - outside
        entropy = -(weights * weights.clamp_min(1e-12).log()).sum()
        step.add(
            outer_loss=gradients.outer_loss,
            weight=float(weights.sum() / valid.sum(1).clamp_min(1).float().mean()),
            weight_entropy=float(entropy),
            attribution=float(gradients.scores.abs().sum() / valid.sum(1).clamp_min(1).float().mean()),
            not_finite=float((~gradients.finite).sum()),
        )
        return gradients

    def _outer(self, step: Step, batch: Sequence[Task], seeds: Sequence[int], adapted: Params) -> list[Tensor] | Any:
        config = self.config.outer
        with step.clock.stage("outer"):
            if self.config.train.method == "mass-gold":
                parts = outer.gold_losses(self.lm, batch, config, adapted)
            else:
                parts = self._verified(step, batch, seeds, adapted)
            for part in parts:
                yield part

    def _verified(self, step: Step, batch: Sequence[Task], seeds: Sequence[int], adapted: Params) -> Any:
        config = self.config.outer
        frozen = {name: t.detach() for name, t in adapted.items()}
        solutions = outer.sample_solutions(self.lm, batch, config, seeds, frozen, verify.check)
        judged = solutions.judged.sum(1).clamp_min(1)
        step.add(
            reward=float((solutions.rewards * solutions.judged).sum(1).div(judged).sum()),
            solved_any=float((solutions.rewards > 0).any(1).sum()),
            no_verdict=float((~solutions.judged).sum()) / config.samples,
            tokens=sum(len(s.tokens) for s in solutions.samples),
        )
        yield from outer.verifier_losses(self.lm, batch, solutions, config, adapted)
        if self.config.train.kl and adapted is self.state.theta:
            yield self.config.train.kl * outer.kl_loss(self.lm, batch, solutions, adapted)

    def _unadapted_stack(self, step: Step, batch: Sequence[Task], seeds: Sequence[int]) -> None:
        """No example of any task is valid: the outer loss of theta itself still trains the solver."""
        stack = repeat(self.state.theta, len(batch))
        loss, grads = outer_gradient(lambda adapted: self._outer(step, batch, seeds, adapted), stack)
        step.add(outer_loss=loss)
        summed = {name: g.sum(0) for name, g in zip(stack, grads, strict=True)}
        step.add_gradient(step.theta, summed, self.config.train.gamma)

    def _generator(self, step: Step, problems: Sequence[str], groups: Groups, attribution: Tensor) -> None:
        """Clipped policy gradient on the tokens of y_i, rewarded with -u_i relative to its group."""
        lm, m = self.lm, self.config.adapt.synthesis.examples
        valid = valid_mask(groups, lm.device)
        rewards = policy.lowest_for_rejected(-attribution, valid)
        advantages = policy.group_advantages(rewards, eps=1e-12).flatten()
        prompts = [lm.synthesis_prompt(problem) for problem in problems]
        rows = [(prompts[i // m], list(groups[i // m][i % m].tokens)) for i in range(len(advantages))]

        def loss(theta: Params) -> Any:
            index = advantages.nonzero()[:, 0].tolist()
            size = self.config.outer.micro_batch or max(1, len(index))
            for start in range(0, len(index), size):
                part = index[start : start + size]
                logprobs, mask = lm.token_logprobs(lm.batch([rows[i] for i in part]), theta)
                value = policy.clipped_policy_loss(
                    logprobs, logprobs.detach(), advantages[part], mask, clip=self.config.train.clip
                )
                yield value * len(part) / m

        value, grads = outer_gradient(loss, self.state.theta)
        step.add(generator_loss=value)
        gradient = dict(zip(self.state.theta, grads, strict=True))
        step.add_gradient(step.theta, gradient, self.config.train.generator)

    def _grpo_stack(self, step: Step, batch: Sequence[Task], seeds: Sequence[int]) -> None:
        loss, grads = outer_gradient(lambda theta: self._outer(step, batch, seeds, theta), self.state.theta)
        step.add(outer_loss=loss)
        step.add_gradient(step.theta, dict(zip(self.state.theta, grads, strict=True)))

    def _update(self, step: Step, count: int) -> dict[str, float]:
        """Average, clip each group, take the optimiser's step. Returns the gradient norms before clipping."""
        train = self.config.train
        warm = min(1.0, (self.step + 1) / max(1, train.warmup))
        norms: dict[str, float] = {}
        pairs = (
            ("theta", self.state.theta, step.theta),
            ("eta", self.state.eta, step.eta),
            ("rates", self.state.log_rates, step.log_rates),
        )
        for (name, params, grads), group in zip(pairs, self.optimizer.param_groups, strict=True):
            for key, tensor in params.items():
                tensor.grad = grads[key] / count
            norms[name] = float(torch.nn.utils.clip_grad_norm_(list(params.values()), train.max_grad_norm))
            group["lr"] = group["base_lr"] * warm
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms

    def _metrics(self, step: Step, count: int, norms: dict[str, float]) -> Metrics:
        rates = torch.stack([t.exp() for t in self.state.log_rates.values()])
        means = {name: value / count for name, value in step.sums.items()}
        tokens = step.sums.get("tokens", 0.0)
        means.pop("tokens", None)
        return {
            **{name.replace("_", " "): value for name, value in means.items()},
            "tokens": tokens,
            "inner rate": float(rates.mean()),
            "inner rate/min": float(rates.min()),
            "inner rate/max": float(rates.max()),
            **{f"gradient norm/{name}": value for name, value in norms.items()},
            **{f"seconds/{name}": value for name, value in step.clock.seconds.items()},
        }

    def evaluate(self) -> Metrics:
        """Greedy accuracy on held-out problems, adapted and not, with the same checkpoint."""
        config = self.config
        counts: dict[str, float] = {"accuracy": 0.0, "unadapted accuracy": 0.0, "fallbacks": 0.0}
        trains_adaptation = config.train.method != "solver-grpo"
        for start in range(0, len(self.validation), config.train.stack):
            part = self.validation[start : start + config.train.stack]
            seeds = [derive(config.train.seed, "eval", start + i) for i in range(len(part))]
            adapt = config.adapt if trains_adaptation else _without_adaptation(config)
            records, _ = answer_all(self.lm, self.state, [t.problem for t in part], adapt, seeds)
            for task, record in zip(part, records, strict=True):
                counts["accuracy"] += verify.check(task, record.text).correct is True
                counts["unadapted accuracy"] += verify.check(task, record.unadapted_text or "").correct is True
                counts["fallbacks"] += bool(record.fallback) and trains_adaptation
        return {f"eval/{name}": value / len(self.validation) for name, value in counts.items()}
