"""What tests of continuous decoding share: adapters that give themselves away, rows that join at known moments."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mass.config import SamplingConfig
from mass.lm import LM
from mass.lm.continuous import Ask, ContinuousDecoder, Piece
from mass.types import Params, Sample

WAIT_S = 120.0
"""A row that takes longer is lost."""


def planted(lm: LM, token: int, prompts: Sequence[list[int]]) -> Params:
    """An adapter under which the likeliest token is always the same one, so that any mix-up shows."""
    batch = lm.batch([(prompt, [token] * 24) for prompt in prompts])
    generator = torch.Generator().manual_seed(token)
    params = {
        name: (0.05 * torch.randn(t.shape, generator=generator, dtype=t.dtype)).requires_grad_()
        for name, t in lm.init_adapter(token).items()
    }
    optimizer = torch.optim.Adam(params.values(), lr=0.1)
    for _ in range(25):
        optimizer.zero_grad()
        lm.losses(batch, params).mean().backward()
        optimizer.step()
    return {name: t.detach() for name, t in params.items()}


def alone(lm: LM, ask: Ask) -> Sample:
    """The row decoded by `lm.sample`, with its own texts to stop at."""
    return lm.sample([ask.prompt], ask.config, [ask.seed], ask.adapter, with_logprobs=ask.with_logprobs)[0]


def each_alone(lm: LM, asks: Sequence[Ask]) -> list[Sample]:
    """The rows decoded by `lm.sample`, those with equal settings and one adapter in one call."""
    alike: dict[object, list[int]] = {}
    for number, row in enumerate(asks):
        alike.setdefault((row.config, id(row.adapter)), []).append(number)
    found: dict[int, Sample] = {}
    for numbers in alike.values():
        prompts, seeds = [asks[i].prompt for i in numbers], [asks[i].seed for i in numbers]
        first = asks[numbers[0]]
        samples = lm.sample(prompts, first.config, seeds, first.adapter, with_logprobs=True)
        found |= dict(zip(numbers, samples, strict=True))
    return [found[i] for i in range(len(asks))]


@dataclass
class Listener:
    """Hears the pieces of a row; `at` starts something at the given piece."""

    pieces: list[Piece] = field(default_factory=list)
    at: dict[int, object] = field(default_factory=dict)

    def __call__(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if (action := self.at.pop(len(self.pieces), None)) is not None:
            action()  # type: ignore[operator]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for piece in self.pieces for token in piece.tokens)


def one_after_another(decoder: ContinuousDecoder, asks: Sequence[Ask], gap: int = 2) -> list[Sample]:
    """Decode rows of which each is submitted by the one before, at its `gap`-th piece or at its end."""
    futures: list[Future[Sample] | None] = [None] * len(asks)
    all_in = threading.Event()

    def submit(number: int) -> None:
        if number == len(asks):
            all_in.set()
        elif futures[number] is None:
            listener = Listener(at={gap: lambda: submit(number + 1)})
            futures[number] = decoder.submit(
                Ask(
                    asks[number].prompt, asks[number].config, asks[number].seed, asks[number].adapter,
                    asks[number].stop, asks[number].with_logprobs, listener,
                )
            )  # fmt: skip
            futures[number].add_done_callback(lambda _: submit(number + 1))

    submit(0)
    assert all_in.wait(WAIT_S)
    return [future.result(WAIT_S) for future in futures if future is not None]


def settings(tokens: int = 24, temperature: float = 1.0, top_p: float = 1.0) -> SamplingConfig:
    return SamplingConfig(tokens, temperature, top_p)


def ask(lm: LM, prompt: list[int], seed: int = 0, adapter: Params | None = None, **changes: Any) -> Ask:
    options = {"config": settings(), "stop": lm.stops, **changes}
    return Ask(prompt, options.pop("config"), seed, adapter, **options)


def passes(monkeypatch: pytest.MonkeyPatch, lm: LM) -> list[tuple[int, int]]:
    """The shapes [rows, tokens] of all passes of the model from now on."""
    shapes: list[tuple[int, int]] = []
    forward = lm.model.forward

    def noted(**options: Any) -> Any:
        shapes.append(tuple(options["input_ids"].shape))
        return forward(**options)

    monkeypatch.setattr(lm.model, "forward", noted)
    return shapes
