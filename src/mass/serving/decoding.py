"""A request and a set of weights -> its answers, sampled as rows of the decoder that all requests share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from mass.config import SamplingConfig
from mass.errors import DataError, EngineError, MassError
from mass.lm import LM
from mass.lm.continuous import Ask, Closed, Decoder, Piece, QueueFull
from mass.seeds import derive
from mass.serving.errors import RequestError, too_busy, unavailable
from mass.serving.failures import described
from mass.serving.job import Job, Text
from mass.types import Params, Sample

log = logging.getLogger(__name__)


def prompt_of(job: Job) -> list[int]:
    """Return the tokens of the request's prompt. Raises a `RequestError` where the context has no room for an answer.

    The base continues a prompt of `completions` as it is; in all other cases it is a message of the user. The last such
    message is asked as a problem where practice was trained to help with problems asked so.
    """
    request, served = job.request, job.served
    lm = served.mass.lm
    try:
        if is_raw(job):
            prompt = lm.text_prompt(request.messages[-1].text)
        else:
            turns = [(m.role, m.text) for m in request.with_examples]
            prompt = lm.conversation_prompt(turns, solve=served.solves)
    except MassError as error:
        raise RequestError(f"the messages cannot be used: {error}", param="messages") from error
    if not prompt:
        raise RequestError("the prompt has no tokens; expected a text", param="prompt")
    if len(prompt) >= lm.context:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens; {served.name!r} reads at most {lm.context}, the answer included",
            param="messages" if request.endpoint == "chat" else "prompt",
            code="context_length_exceeded",
        )
    return prompt


def is_raw(job: Job) -> bool:
    """Return True for a text that is continued as it is."""
    return job.request.endpoint == "completions" and not job.served.solves


def sampling_of(job: Job, prompt_tokens: int) -> SamplingConfig:
    """Return how the request's answers are sampled: as the checkpoint has it, where the request does not say."""
    request, own = job.request, job.served.mass.config.answer
    return SamplingConfig(
        min(request.max_tokens or own.max_new_tokens, job.served.mass.lm.context - prompt_tokens),
        own.temperature if request.temperature is None else request.temperature,
        own.top_p if request.top_p is None else request.top_p,
    )


def asks(
    job: Job,
    prompt: Sequence[int],
    config: SamplingConfig,
    seed: int,
    adapter: Params | None,
    *,
    streams: bool,
    with_logprobs: bool,
    cancelled: Callable[[], bool],
    lm: LM | None = None,
) -> list[Ask]:
    """Return one ask for each of the request's n answers; the first has the seed that `Mass.solve` would use.

    `lm` is the view of the model that is asked, which says what ends an answer beside the texts of the request; by
    default that of the request's model.
    """
    request, lm = job.request, lm or job.served.mass.lm
    own = () if is_raw(job) else lm.stops.stop
    stop = (*own, *request.stop) if request.stop or is_raw(job) else lm.stops

    def ask(index: int) -> Ask:
        def tell(piece: Piece) -> None:
            job.tell(Text(index, piece.text, piece.tokens, piece.logprobs))

        row_seed = derive(seed, "answer", index) if index else derive(seed, "answer")
        return Ask(
            prompt, config, row_seed, adapter, stop, with_logprobs, tell if streams else None, job.id, True, cancelled
        )

    return [ask(index) for index in range(request.n)]


async def sampled(decoder: Decoder, rows: Sequence[Ask]) -> tuple[Sample, ...]:
    """Sample the rows. Cancelling this cancels them, so that they leave the batch before the next step."""
    return await collected(submitted(decoder, rows))


def submitted(decoder: Decoder, rows: Sequence[Ask]) -> list[Future[Sample]]:
    """Submit the rows. Raises a `RequestError`."""
    try:
        return decoder.submit_all(rows)
    except QueueFull as error:
        raise too_busy(1) from error
    except Closed as error:
        raise unavailable("the server is stopping; try again", "stopping") from error
    except DataError as error:
        raise RequestError(str(error), code="context_length_exceeded") from error


async def collected(futures: Sequence[Future[Sample]]) -> tuple[Sample, ...]:
    """Wait for submitted rows, and cancel all of them if this is cancelled or one fails. Raises a `RequestError`."""
    try:
        return tuple(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))
    except Closed as error:
        raise unavailable("the server is stopping; try again", "stopping") from error
    except EngineError as error:
        log.error("the sampling server failed: %s", described(error))
        raise unavailable("the sampling server gave no answer; try again", "sampling_failed") from error
    finally:
        for future in futures:
            future.cancel()


def decoders_for(lms: Sequence[LM], make: Callable[[LM], Decoder]) -> list[Decoder]:
    """Return a decoder for each model; those with adapters of the same shape share one."""
    shared: dict[object, Decoder] = {}
    for lm in lms:
        if lm.adapters.config not in shared:
            shared[lm.adapters.config] = make(lm)
    return [shared[lm.adapters.config] for lm in lms]
