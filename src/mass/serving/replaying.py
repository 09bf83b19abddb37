"""A record of an adaptation -> its answers again: from its practice, with its seeds, as its request was asked."""

from __future__ import annotations

from mass.adaptation.adapt import practise
from mass.config import ExamplesConfig
from mass.lm.continuous import current_request
from mass.lm.lora import pick
from mass.serving import decoding, examples
from mass.serving.answering import Answering, Work, Workshop
from mass.serving.job import Job, Outcome
from mass.serving.kept import Recorded
from mass.types import Adaptation, Params


class Replaying(Answering):
    """One record while it is replayed."""

    def __init__(self, job: Job, shop: Workshop, record: Adaptation, recorded: Recorded) -> None:
        super().__init__(job, shop)
        self._record, self._recorded = record, recorded
        self.answer_seed = recorded.answer_seed

    async def outcome(self) -> Outcome:
        """Return the outcome of the same request, with the weights that the recorded practice makes."""
        if self._recorded.learned_by is not None:
            return await self._by_examples(self._recorded.learned_by)
        prompt = await self.in_thread(self.shop.tokenising, lambda: decoding.prompt_of(self.job))
        adapter = await self.in_thread(self.shop.loops.thread, self._relearned)
        samples = await self.answers(prompt, self._recorded.sampling, adapter, streams=True)
        return self.plain_outcome(prompt, samples)

    async def _by_examples(self, config: ExamplesConfig) -> Outcome:
        """Return the outcome with the weights that the request's examples make, used as they were."""
        work = Work(self.job, self.job.id)
        model = await self.in_thread(self.shop.learning, lambda: examples.learned(self.job, work, config))
        prompt = await self.in_thread(self.shop.tokenising, lambda: examples.prompt_of(self.job, model))
        samples = await self.answers(prompt, self._recorded.sampling, model.adapter, streams=True, lm=model.lm)
        return self.plain_outcome(prompt, samples)

    def _relearned(self) -> Params | None:
        """Return the weights that answered: those that the practice makes, or the unadapted ones after a fallback.

        The gate's decision is taken as it was, and nothing is decided again.
        """
        record, mass, config = self._record, self.job.served.mass, self._recorded.config
        if record.fallback:
            return self.start()
        assert config is not None  # examples that were given are learned elsewhere
        current_request.set(Work(self.job, self.job.id))
        _, adapted = practise(
            mass.lm,
            mass.state,
            [record.problem],
            config,
            [record.seed],
            None,
            [record.examples],
            decided=None if record.gate is None else [record.gate],
        )
        return pick(adapted.stack, 0)
