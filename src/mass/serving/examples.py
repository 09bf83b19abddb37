"""A request with examples -> its answers by weights that learned them, once for all requests with the same examples."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence

from mass.adaptation.adapted import AdaptedModel
from mass.config import ExamplesConfig, SamplingConfig
from mass.lm.continuous import check_cancelled, current_request
from mass.serving import decoding
from mass.serving.answering import DEADLINE, FAILED, STOPPING, Answering, Unfit, Work, Workshop
from mass.serving.job import Job, Outcome
from mass.serving.learned import ExamplesKey, Kept, LearnedExamples
from mass.types import Choice, Sample

SEED = 0
"""Seed of learning: one adapter serves requests of all seeds."""


class AnsweringByExamples(Answering):
    """One request with examples while it is answered."""

    def __init__(self, job: Job, shop: Workshop, kept: LearnedExamples) -> None:
        super().__init__(job, shop)
        self.kept = kept
        self.choice: Choice | None = None
        """How the examples were used, once they were."""

    async def outcome(self) -> Outcome:
        """Return the outcome; the unadapted answer, with the examples in the prompt, where learning fails."""
        key = ExamplesKey.of(self.job)
        fresh = self.kept.find(key) is None
        working = asyncio.ensure_future(self._answered(key))
        self.job.admit()
        try:
            await asyncio.wait({working}, timeout=self.seconds_left())
            if not working.done() and not self.started.is_set():
                raise Unfit(DEADLINE)
            kept, prompt, samples = await working
        except Unfit as why:
            working.cancel()  # else what is learned meanwhile would answer beside the unadapted answer
            self.require_unbegun()
            return await self._unadapted(why)
        finally:
            self.work.stopped = True
            working.cancel()
        record = kept.model.adaptation
        self.choice = kept.model.choice
        self.record = dataclasses.replace(record, problem=self.job.request.problem, **self.job.served.mass.origin)
        return self.plain_outcome(
            prompt,
            samples,
            adapted=True,
            examples=record.examples,
            learned=kept.id,
            tokens={**(record.tokens if fresh else {}), "answer": sum(len(s.tokens) for s in samples)},
        )

    async def _answered(self, key: ExamplesKey) -> tuple[Kept, list[int], tuple[Sample, ...]]:
        """Learn the examples, or find them learned, and answer. Raises Unfit for every reason not to."""
        try:
            if self.shop.stopping():
                raise Unfit(STOPPING)
            kept = await self.kept.learn(key, self.job.served.name, self._learned_model)
            prompt = await self.in_thread(self.shop.tokenising, lambda: prompt_of(self.job, kept.model))
            config = self._sampling(kept.model, len(prompt))
            self.config = dataclasses.replace(self.config, answer=config)
            if self.job.request.stream:
                self.started.set()
            samples = await self.answers(prompt, config, kept.model.adapter, streams=True, lm=kept.model.lm)
            return kept, prompt, samples
        except (Unfit, asyncio.CancelledError):
            raise
        except Exception as error:
            self.log_failure(error)
            raise Unfit(FAILED) from error

    async def _learned_model(self) -> AdaptedModel:
        work = Work(None, self.job.id)
        config = ExamplesConfig(budget_s=self.shop.config.learned_budget_s)
        began = time.perf_counter()
        try:
            return await self.in_thread(self.shop.learning, lambda: learned(self.job, work, config))
        finally:
            work.stopped = True
            self.timeline.divided(began, {"learning examples": time.perf_counter() - began})

    def _sampling(self, model: AdaptedModel, prompt_tokens: int) -> SamplingConfig:
        """Return how the answers are sampled: as the request says, else not much longer than the examples' outputs."""
        asked = decoding.sampling_of(self.job, prompt_tokens)
        most = asked.max_new_tokens if self.job.request.max_tokens else model.answer.max_new_tokens
        return dataclasses.replace(asked, max_new_tokens=min(most, asked.max_new_tokens))

    async def _unadapted(self, why: Unfit) -> Outcome:
        """Answer with the examples in the prompt, as a server without practice would."""
        prompt = await self.in_thread(self.shop.tokenising, lambda: decoding.prompt_of(self.job))
        config = decoding.sampling_of(self.job, len(prompt))
        self.config = dataclasses.replace(self.config, answer=config)
        samples = await self.answers(prompt, config, self.start(), streams=True)
        return self.plain_outcome(prompt, samples, fallback=why.reason)


def learned(job: Job, work: Work, config: ExamplesConfig) -> AdaptedModel:
    """Learn the examples of a request, in a thread. Raises DataError for examples that cannot be used."""
    current_request.set(work)
    check_cancelled()
    request = job.request
    return job.served.mass.adapt(request.mass.examples, instruction=request.instruction, config=config, seed=SEED)


def prompt_of(job: Job, model: AdaptedModel) -> list[int]:
    """Return the prompt of the question, after as many of the examples to show as fit."""
    turns = [(m.role, m.text) for m in job.request.messages if m.role != "system"]
    most = model.lm.context - model.answer.max_new_tokens
    return next(
        prompt
        for count in range(len(model.shots), -1, -1)
        if len(prompt := _conversation(model, count, turns)) <= most or not count
    )


def _conversation(model: AdaptedModel, shots: int, turns: Sequence[tuple[str, str]]) -> list[int]:
    shown = [turn for one, other in model.shots[:shots] for turn in (("user", one), ("assistant", other))]
    return model.lm.conversation_prompt([*shown, *turns], solve=True)
