"""Let an `LM` and its views sample through a shared decoder, so that the requests of many threads are decoded together.

Everything else (losses, gradients, scores) is computed by the thread that asks for it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING

from mass.config import SamplingConfig
from mass.errors import ConfigError, ShapeError
from mass.lm.continuous.ask import Ask, Cancelled, Decoder, check_cancelled, current_request
from mass.lm.continuous.decoder import ContinuousDecoder
from mass.lm.lora import detach, pick
from mass.lm.sampling import count_adapters
from mass.types import Params, Sample

if TYPE_CHECKING:
    from mass.lm.model import LM


class SharedEngine:
    """Samples for one view of a model through a decoder. Threads may share it."""

    def __init__(self, view: LM, decoder: Decoder) -> None:
        self._view, self._decoder = view, decoder

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seeds: Sequence[int],
        adapter: Params | None = None,
        *,
        with_logprobs: bool = False,
    ) -> list[Sample]:
        """Sample as `mass.lm.LM.sample` does, beside the rows of other threads. Waits where the queue is full.

        Raises:
            ShapeError: seeds or a stack that do not fit the prompts.
            DataError: a prompt that fills the model's context.
            Cancelled: the current request (`current_request`) was cancelled; its rows have left the batch.
            Closed: the decoder was closed.
        """
        check_cancelled()
        if len(seeds) != len(prompts):
            raise ShapeError(f"{len(seeds)} seeds for {len(prompts)} prompts; expected one each")
        own = _for_each(adapter, len(prompts))
        request = current_request.get()
        cancelled = None if request is None else functools.partial(getattr, request, "cancelled")
        asks = [
            Ask(
                prompt,
                config,
                seed,
                own[i],
                self._view.stops,
                with_logprobs,
                owner=request and request.owner,
                urgent=request is not None and request.urgent,
                cancelled=cancelled,
            )
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
        futures = self._decoder.submit_all(asks, wait=True)
        try:
            return [future.result() for future in futures]
        except CancelledError as error:
            raise Cancelled("the request was cancelled, or its deadline has passed") from error
        finally:  # where one row failed, or Ctrl-C, the others are not wanted either
            for future in futures:
                future.cancel()


def share(lm: LM, decoder: Decoder) -> LM:
    """Return a view of the decoder's model whose samples, and those of its own views, come from the decoder.

    A view with adapters of another shape (`LM.with_lora`) samples by itself. Raises ConfigError for another model, or
    one that a server samples for where the decoder is of this process.
    """
    if lm.model is not decoder.lm.model or lm.adapters is not decoder.lm.adapters:
        raise ConfigError(
            f"the decoder is for {decoder.lm.name!r} with its adapters; expected the same for {lm.name!r}; make a "
            "decoder for this model"
        )
    at_server = lm.engine is not None and not isinstance(lm.engine, SharedEngine)
    if at_server and isinstance(decoder, ContinuousDecoder):
        raise ConfigError(f"{lm.name!r} is sampled by a server; expected this process; leave out model.engine.url")
    return lm.sampled_by_engine(
        lambda view: SharedEngine(view, decoder) if view.adapters is decoder.lm.adapters else None
    )


def _for_each(adapter: Params | None, count: int) -> list[Params | None]:
    """Return the adapter of each prompt: the same object for all prompts of a block. Raises ShapeError."""
    blocks = count_adapters(adapter)
    if count % blocks:
        raise ShapeError(f"{count} prompts for a stack of {blocks} adapters; expected a multiple")
    if adapter is None or next(iter(adapter.values())).dim() == 2:
        return [adapter] * count
    if all(t.stride(0) == 0 or len(t) == 1 for t in adapter.values()):  # one adapter, expanded to a stack by `repeat`
        return [pick(detach(adapter), 0)] * count
    own = [pick(detach(adapter), g) for g in range(blocks)]
    return [own[i * blocks // count] for i in range(count)]
