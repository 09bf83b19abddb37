"""One request -> its outcome: plain, or after practice; whatever fails in between, an answer.

The unadapted answer is sampled beside the practice. It shows the gate how certain the model is, and it is the answer
when the gate refuses the practice, the deadline passes, or something fails.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mass.adaptation import gate
from mass.adaptation.canaries import Canaries
from mass.config import AdaptConfig, SamplingConfig, ServeConfig
from mass.lm import LM
from mass.lm.continuous import Cancelled, Decoder, current_request
from mass.serving import decoding
from mass.serving.errors import internal
from mass.serving.failures import described
from mass.serving.inner_loops import InnerLoops, Learned
from mass.serving.job import Job, Outcome, Practice, Text, Unadapted
from mass.serving.practice import Course, practised
from mass.serving.timeline import Timeline
from mass.types import Adaptation, Example, GateDecision, Params, Sample

log = logging.getLogger(__name__)
T = TypeVar("T")

DEADLINE, FAILED, STOPPING = "deadline", "failed", "stopping"
"""Reasons for the unadapted answer, beside those of the gate and of the adaptation."""


@dataclass(frozen=True)
class Workshop:
    """What answers requests, shared by all of them."""

    config: ServeConfig
    decoders: dict[str, Decoder]
    """By the name of the model."""
    canaries: dict[str, Canaries]
    """By the name of the model; empty where the gate is off."""
    threads: Executor
    """Threads that practise, one for each request that practises at once."""
    learning: Executor
    """One thread that learns examples: a set at a time, so that the memory is that of one, and no thread that practises
    waits for it."""
    tokenising: Executor
    loops: InnerLoops
    stopping: Callable[[], bool] = lambda: False
    """True once no more practice is to begin."""
    waiting: set[str] = field(default_factory=set[str])
    """Identities of the requests that wait for a thread to practise in."""


@dataclass
class Work:
    """The request as sampling sees it (`mass.lm.continuous.Request`)."""

    job: Job | None
    """None for work that several requests wait for: it ends when it is stopped, not with one of them."""
    owner: str
    urgent: bool = False
    stopped: bool = False

    @property
    def cancelled(self) -> bool:
        return self.stopped or (self.job is not None and self.job.cancelled)


class Unfit(Exception):
    """The adapted weights must not answer; the text is the reason."""

    def __init__(self, reason: str, record: Adaptation | None = None, decision: GateDecision | None = None) -> None:
        super().__init__(reason)
        self.reason, self.record, self.decision = reason, record, decision


class Answering:
    """One request while it is answered."""

    def __init__(self, job: Job, shop: Workshop) -> None:
        self.job, self.shop = job, shop
        self.lm = job.served.mass.lm
        self.timeline = Timeline(job.started)
        options = job.request.mass
        given = next((s for s in (options.seed, job.request.seed) if s is not None), None)
        self.seed = secrets.randbits(31) if given is None else given
        self.answer_seed = self.seed if job.request.seed is None else job.request.seed
        self.work = Work(job, job.id)
        self.record: Adaptation | None = None
        self.measures: dict[str, float] = {}
        """What the gate has measured before the practice."""
        self.config = self._config(job.served.mass.config.answer)
        """What the request practises by, and how it is answered."""
        self.started = asyncio.Event()

    async def outcome(self) -> Outcome:
        """Return the outcome. Raises a `RequestError` only for what no answer can be given to."""
        with self.timeline.span("tokenising"):
            prompt = await self.in_thread(self.shop.tokenising, lambda: decoding.prompt_of(self.job))
        self.job.admit()
        config = decoding.sampling_of(self.job, len(prompt))
        self.config = self._config(config)
        if not self._adapts():
            return self.plain_outcome(prompt, await self.answers(prompt, config, self.start(), streams=True))
        return await self._adapted(prompt, config)

    # --- plain

    def start(self) -> Params | None:
        """Return the weights of the unadapted answer: the checkpoint's, or the base's own."""
        return self.job.served.mass.state.theta if self.job.served.adapts else None

    async def answers(
        self,
        prompt: list[int],
        config: SamplingConfig,
        adapter: Params | None,
        *,
        streams: bool,
        stage: str = "answer",
        lm: LM | None = None,
    ) -> tuple[Sample, ...]:
        """Sample the request's answers.

        Args:
            streams: True to tell their parts as they come, where the request is streamed.
            stage: the stage whose time this is.
            lm: the view of the model that is asked; by default that of the request's model.
        """
        rows = decoding.asks(
            self.job,
            prompt,
            config,
            self.answer_seed,
            adapter,
            streams=streams and self.job.request.stream,
            with_logprobs=self.job.request.logprobs or not streams,
            cancelled=lambda: self.job.cancelled,
            lm=lm,
        )
        with self.timeline.span(stage):
            return await decoding.sampled(self.shop.decoders[self.job.served.name], rows)

    def plain_outcome(self, prompt: list[int], samples: tuple[Sample, ...], **values: Any) -> Outcome:
        outcome = Outcome(
            samples, len(prompt), seed=self.seed, seconds=self.timeline.seconds(), tokens={"answer": _count(samples)}
        )
        return dataclasses.replace(outcome, **values)

    # --- adapted

    def _adapts(self) -> bool:
        return self.job.served.adapts and self._wish() != "never"

    def _wish(self) -> str:
        return self.job.request.mass.adapt or self.shop.config.adapt_default

    async def _adapted(self, prompt: list[int], config: SamplingConfig) -> Outcome:
        """Answer after practice, and with the unadapted answer where that fails or takes too long."""
        plain = asyncio.ensure_future(
            self.answers(prompt, config, self.start(), streams=False, stage="unadapted answer")
        )
        practice = asyncio.ensure_future(self._practice(prompt, config, plain))
        try:
            await asyncio.wait({practice}, timeout=self.seconds_left())
            if not practice.done() and not self.started.is_set():
                raise Unfit(DEADLINE)
            samples = await practice
            unadapted = await plain
        except Unfit as why:
            practice.cancel()  # else what practised to its end meanwhile would answer beside the unadapted answer
            return await self._fall_back(prompt, plain, why)
        finally:
            self.work.stopped = True
            for task in (practice, plain):
                task.add_done_callback(_heard)
                task.cancel()
        assert self.record is not None
        tokens = {**self.record.tokens, "answer": _count(samples), "unadapted answer": _count(unadapted)}
        return self.plain_outcome(
            prompt,
            samples,
            adapted=True,
            gate=self.record.gate,
            examples=self.record.examples,
            unadapted=unadapted,
            tokens=tokens,
        )

    async def _fall_back(self, prompt: list[int], plain: asyncio.Future[tuple[Sample, ...]], why: Unfit) -> Outcome:
        """Answer with the unadapted answer, which may still be on its way."""
        self.work.stopped = True
        self.require_unbegun()
        samples = await plain
        if self.job.request.stream:
            for index, sample in enumerate(samples):
                self.job.publish(Text(index, sample.text, sample.tokens, sample.logprobs))
        record = self.record
        return self.plain_outcome(
            prompt,
            samples,
            fallback=why.reason,
            gate=why.decision or (None if record is None else record.gate),
            examples=() if record is None else record.examples,
            tokens={**({} if record is None else record.tokens), "answer": _count(samples)},
        )

    async def _practice(
        self, prompt: list[int], config: SamplingConfig, plain: asyncio.Future[tuple[Sample, ...]]
    ) -> tuple[Sample, ...]:
        """Return the adapted answers. Raises Unfit for every reason not to."""
        try:
            if self._wish() == "auto":
                await self._require_doubt(prompt, config, plain)
            if self.shop.stopping():
                raise Unfit(STOPPING)
            adapter = await self._learn(plain)
            return await self._adapted_answers(prompt, config, adapter)
        except (Unfit, asyncio.CancelledError):
            raise
        except Cancelled:
            raise Unfit(DEADLINE) from None
        except Exception as error:  # whatever went wrong, there is an unadapted answer
            self.log_failure(error)
            raise Unfit(FAILED) from error

    def require_unbegun(self) -> None:
        """Raise a `RequestError` where a part of the adapted answer is with the client: another cannot follow it."""
        if self.job.answer_begun:
            raise internal()

    def log_failure(self, error: Exception) -> None:
        """Log what failed, without any text of the request."""
        log.error("an adaptation failed: %s", described(error))

    async def _adapted_answers(self, prompt: list[int], config: SamplingConfig, adapter: Params) -> tuple[Sample, ...]:
        # What streams has begun to answer by then, and goes on after the deadline: half an answer helps nobody.
        if self.job.request.stream:
            self.started.set()
        return await self.answers(prompt, config, adapter, streams=True)

    async def _require_doubt(
        self, prompt: list[int], config: SamplingConfig, plain: asyncio.Future[tuple[Sample, ...]]
    ) -> None:
        """Raise Unfit where the unadapted model is so certain of its answer that practice can only harm."""
        if self._threshold() is None:
            return
        asked, sample = await self._greedy(prompt, config, plain)
        with self.timeline.span("certainty"):
            theta = self.job.served.mass.state.theta
            (value,) = await self.in_thread(
                self.shop.tokenising, lambda: gate.certainties(self.lm, [asked], [sample], theta)
            )
        self.measures = {"certainty": value}
        decision = gate.before(value, self.config.gate)
        if not decision.adapt:
            raise Unfit(decision.reason, decision=decision)

    def _threshold(self) -> float | None:
        """Return the certainty from which practice can only harm; None where the checkpoint knows none."""
        return self.config.gate.certainty

    async def _greedy(
        self, prompt: list[int], config: SamplingConfig, plain: asyncio.Future[tuple[Sample, ...]]
    ) -> tuple[list[int], Sample]:
        """Return a greedy answer to the problem alone, with its prompt, as the gate's threshold was measured."""
        asked = await self.in_thread(self.shop.tokenising, lambda: self.lm.solve_prompt(self.job.request.problem))
        if asked == prompt and config.temperature == 0 and not self.job.request.stop:
            return prompt, (await asyncio.shield(plain))[0]
        greedy = dataclasses.replace(self.job.served.mass.config.answer, temperature=0.0)
        rows = decoding.asks(
            self.job,
            asked,
            greedy,
            self.answer_seed,
            self.start(),
            streams=False,
            with_logprobs=True,
            cancelled=lambda: self.work.cancelled,
        )[:1]
        with self.timeline.span("certainty"):
            (sample,) = await decoding.sampled(self.shop.decoders[self.job.served.name], rows)
        return asked, sample

    async def _learn(self, plain: asyncio.Future[tuple[Sample, ...]]) -> Params:
        """Practise in a thread, once one is free. Raises Unfit where the weights must not answer."""
        plain.add_done_callback(self._tell_unadapted)
        course = Course(
            self.job.served,
            self.shop.canaries.get(self.job.served.name),
            self.job.request.problem,
            self.seed,
            self.config,
            lambda: self.work.cancelled,
            self._wrote,
        )
        submitted = time.perf_counter()

        def learn() -> tuple[float, Learned]:
            began = time.perf_counter()
            self.shop.waiting.discard(self.job.id)
            current_request.set(self.work)
            return began, practised(course, self.shop.loops)

        self.shop.waiting.add(self.job.id)
        try:
            began, (record, adapter) = await self.in_thread(self.shop.threads, learn)
        finally:
            self.shop.waiting.discard(self.job.id)
        self.timeline.divided(submitted, {"queue": began - submitted, **record.seconds})
        if record.gate is not None:
            record = dataclasses.replace(record, gate=gate.with_measures(record.gate, self.measures))
        self.record = record
        self.job.publish(Practice("learned", record.examples))
        if record.fallback:
            raise Unfit(record.fallback)
        return adapter

    def _config(self, sampling: SamplingConfig) -> AdaptConfig:
        """Return the checkpoint's configuration with what the request and the server change of it."""
        own, steps = self.job.served.mass.config, self.job.request.mass.steps
        inner = own.inner if steps is None else dataclasses.replace(own.inner, steps=steps)
        guard = dataclasses.replace(own.gate, enabled=True, canaries=self.shop.config.canaries)
        return dataclasses.replace(own, inner=inner, answer=sampling, gate=guard)

    def _wrote(self, examples: tuple[Example, ...]) -> None:
        self.job.tell(Practice("written", examples))

    def _tell_unadapted(self, plain: asyncio.Future[tuple[Sample, ...]]) -> None:
        if not plain.cancelled() and plain.exception() is None:
            self.job.publish(Unadapted(tuple(sample.text.strip() for sample in plain.result())))

    def seconds_left(self) -> float | None:
        deadline_s = self.job.request.mass.deadline_s or self.shop.config.deadline_s
        return None if deadline_s is None else max(0.0, deadline_s - (time.perf_counter() - self.job.started))

    async def in_thread(self, executor: Executor, work: Callable[[], T]) -> T:
        """Run blocking work in a thread, in a context of its own."""
        return await asyncio.get_running_loop().run_in_executor(executor, contextvars.copy_context().run, work)


def _heard(task: asyncio.Future[Any]) -> None:
    """Look at a task's exception: asyncio reports those that nobody looked at, with their text."""
    if not task.cancelled():
        task.exception()


def _count(samples: tuple[Sample, ...]) -> int:
    return sum(len(sample.tokens) for sample in samples)
