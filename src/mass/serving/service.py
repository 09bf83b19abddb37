"""Requests -> jobs -> outcomes: what is admitted, what waits, which two requests are one, and how a server stops."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from mass.adaptation.canaries import Canaries
from mass.config import ServeConfig
from mass.lm.continuous import Decoder, Load
from mass.serving import kept
from mass.serving.answering import Answering, Workshop
from mass.serving.errors import RequestError, internal, too_busy, unavailable
from mass.serving.examples import AnsweringByExamples
from mass.serving.failures import described
from mass.serving.inner_loops import InnerLoops
from mass.serving.job import Job, Outcome
from mass.serving.learned import LearnedExamples
from mass.serving.metrics import Metrics
from mass.serving.models import Models
from mass.serving.protocol import AnswerRequest
from mass.serving.records import Entry, Records
from mass.serving.replaying import Replaying

log = logging.getLogger(__name__)
T = TypeVar("T")

TOKENISING_THREADS = 2
DRAIN_LOOK_S = 0.1
"""Seconds between two looks at whether to stop at once."""
SMOOTHING = 0.1
"""Weight of the newest request in the running mean of seconds."""


@dataclass(frozen=True)
class Identity:
    """What a client calls a request, so that the same one is not answered twice at once."""

    owner: str
    name: str
    """The value of the header."""
    strict: bool
    """True for an idempotency key, which must not be used for another request while the first is answered."""


@dataclass
class Serving:
    """A server's state from its start to its end: the service is there once the model is loaded."""

    service: Service | None = None

    def ready(self) -> Service:
        """Return the service. Raises a `RequestError` of status 503 while it is loading."""
        if self.service is None:
            raise unavailable("the model is being loaded; try again in a moment", "loading")
        return self.service


class Service:
    """Answers requests. It belongs to one event loop; the work is done in threads."""

    def __init__(
        self,
        config: ServeConfig,
        models: Models,
        decoders: Mapping[str, Decoder],
        canaries: Mapping[str, Canaries],
        records: Records | None = None,
    ) -> None:
        """`records` gets a record of each adaptation; None for a server that keeps none."""
        self.config, self.models, self.records = config, models, records
        self._decoders = dict(decoders)
        self._practising = ThreadPoolExecutor(config.max_adapting, thread_name_prefix="practice")
        self._learning = ThreadPoolExecutor(1, thread_name_prefix="examples")
        self._tokenising = ThreadPoolExecutor(TOKENISING_THREADS, thread_name_prefix="tokens")
        self._shop = Workshop(
            config,
            self._decoders,
            dict(canaries),
            self._practising,
            self._learning,
            self._tokenising,
            InnerLoops(config.max_stack),
            lambda: self.stopping,
        )
        self.stopping = False
        self.learned = LearnedExamples(config)
        self._jobs: set[Job] = set()
        self._by_identity: dict[Identity, tuple[str, Job]] = {}
        self._mean_s = 1.0
        self.metrics = Metrics(self.load, lambda: len(self._shop.waiting), lambda: len(self._jobs))

    def start(self, request: AnswerRequest, owner: str, identity: Identity | None = None) -> Job:
        """Begin to answer a request, or return the job of the same request that is being answered.

        Raises a `RequestError` where the model is unknown, the queue is full, or the server is stopping.
        """
        served = self.models.find(request.model)
        if request.mass.adapt == "always" and not served.adapts:
            raise RequestError(
                f"mass.adapt is 'always', and {served.name!r} answers plainly; expected {served.base + '+mass'!r} or "
                "another model that GET /v1/models lists with a parent",
                param="mass.adapt",
            )
        if request.mass.examples and (request.mass.adapt == "never" or not served.adapts):
            raise RequestError(
                "mass.examples is given, and the request is answered plainly; expected a model with a parent and no "
                "mass.adapt of 'never'; leave the examples out, or send them as messages",
                param="mass.examples",
            )
        if request.mass.examples and request.mass.steps is not None:
            raise RequestError(
                "mass.steps is given with mass.examples, whose learning is chosen by answers to held-out examples; "
                "leave one of the two out",
                param="mass.steps",
            )
        same = None if identity is None else self._same(identity, request)
        if same is not None:
            return same
        if self.stopping:
            raise unavailable("the server is stopping; try again", "stopping")
        if len(self._jobs) >= self.config.max_queue:
            raise too_busy(max(1, math.ceil(self._mean_s)))
        job = Job(request, served, owner)
        self._jobs.add(job)
        if identity is not None:
            self._by_identity[identity] = (_digest(request), job)
        job.task = asyncio.create_task(self._run(job, identity))
        return job

    def _same(self, identity: Identity, request: AnswerRequest) -> Job | None:
        """Return the job in flight of the same request. Raises a `RequestError` for a key that is used twice."""
        digest, job = self._by_identity.get(identity, ("", None))
        if job is None or job.done or job.cancelled:
            return None
        if digest == _digest(request):
            return job
        if identity.strict:
            raise RequestError(
                "the Idempotency-Key is in use for another request; expected a key of its own for each request",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
        return None

    async def _run(self, job: Job, identity: Identity | None) -> None:
        """Answer one job; whatever happens, it ends."""
        try:
            with _failing(job, "a request"):
                answering = self._answering(job)
                outcome = await answering.outcome()
                await self._keep_record(answering, outcome)
                self.metrics.answered(job, outcome)
                self._mean_s += SMOOTHING * (time.perf_counter() - job.started - self._mean_s)
                job.publish(outcome)
        finally:
            self._jobs.discard(job)
            if identity is not None and self._by_identity.get(identity, (None, None))[1] is job:
                del self._by_identity[identity]

    def _answering(self, job: Job) -> Answering:
        if job.request.mass.examples:
            return AnsweringByExamples(job, self._shop, self.learned)
        return Answering(job, self._shop)

    async def _keep_record(self, answering: Answering, outcome: Outcome) -> None:
        """Write the record before the answer ends, so that the identity in the reply can be looked up at once."""
        records = self.records
        if records is None or not (outcome.adapted or outcome.fallback):
            return
        try:
            await self._in_thread(lambda: records.add(kept.entry_of(answering, outcome)))
        except Exception as error:  # a full disk must not cost anybody an answer
            self.metrics.records_failed.inc()
            log.error("a record could not be written: %s", described(error))

    async def replay(self, entry: Entry) -> dict[str, Any]:
        """Answer again from a record, and compare. Raises a `RequestError` where its checkpoint is not served, or
        another version wrote it."""
        served = self.models.of(entry.summary.checkpoint_hash)
        if served is None:
            raise RequestError(
                f"the record was made with checkpoint {entry.summary.checkpoint!r} "
                f"({entry.summary.checkpoint_hash[:12]}), which is not served now; serve it, and replay then",
                code="checkpoint_not_served",
            )
        if self.stopping or len(self._jobs) >= self.config.max_queue:
            raise too_busy(max(1, math.ceil(self._mean_s)))
        recorded = kept.recorded(entry)
        job = Job(recorded.request, served, entry.summary.owner)
        job.task = asyncio.create_task(self._run_replay(job, Replaying(job, self._shop, entry.record, recorded)))
        self._jobs.add(job)
        try:
            samples = (await job.outcome()).samples
        finally:
            self._jobs.discard(job)
        return {
            "id": entry.summary.id,
            "same": [sample.text for sample in samples] == recorded.texts,
            "text": samples[0].text.strip(),
            "recorded": entry.record.text,
        }

    async def _run_replay(self, job: Job, replaying: Replaying) -> None:
        with _failing(job, "a replay"):
            job.publish(await replaying.outcome())

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenising, work)

    def load(self) -> Load:
        """Return the load of all decoders together."""
        loads = [decoder.load() for decoder in set(self._decoders.values())]
        return Load(**{name: sum(getattr(load, name) for load in loads) for name in Load.__dataclass_fields__})

    async def drain(self, seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        """Take no more requests; wait so long for those that are being answered, and give the others up.

        `hurried` becomes true where there is no time for that.
        """
        self.stopping = True
        end = time.monotonic() + seconds
        while self._jobs and time.monotonic() < end and not hurried():
            tasks = {job.task for job in self._jobs if job.task is not None}
            await asyncio.wait(tasks, timeout=DRAIN_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        for job in list(self._jobs):
            job.fail(unavailable("the server stopped before the answer was ready; try again", "stopping"))
            job.cancel()

    def close(self) -> None:
        """Stop all threads. Jobs in flight fail."""
        self.stopping = True
        for decoder in set(self._decoders.values()):
            decoder.close()
        for pool in (self._practising, self._learning, self._tokenising):
            pool.shutdown(wait=True, cancel_futures=True)
        self._shop.loops.close()


def _digest(request: AnswerRequest) -> str:
    """Return a hash of all that a request says."""
    values: dict[str, Any] = asdict(request)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@contextmanager
def _failing(job: Job, what: str) -> Generator[None, None, None]:
    """End the job with an error where the block raises one, whatever it is."""
    try:
        yield
    except RequestError as error:
        job.fail(error)
    except asyncio.CancelledError:
        job.cancelled = True
        job.fail(unavailable("the request was given up", "cancelled"))
    except Exception as error:
        log.error("%s failed: %s", what, described(error))
        job.fail(internal())
