"""One row from its prompt to its sample: which number draws its next token, when it ends, which text is final."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from mass.lm.continuous.ask import Ask, Piece
from mass.lm.sampling import StopStrings, uniform_numbers
from mass.types import Params, Sample


class Row:
    """A row that is waiting, running, or has ended."""

    def __init__(self, ask: Ask, adapter: Params | None, stop: StopStrings, limit: int) -> None:
        self.prompt, self.config, self.with_logprobs = tuple(ask.prompt), ask.config, ask.with_logprobs
        self.owner, self.urgent, self.stop = ask.owner, ask.urgent, stop
        self.adapter = adapter
        """Its adapter until it has ended; None for the base."""
        self.limit = limit
        """Tokens to be sampled at most."""
        self.future: Future[Sample] = Future()
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.ended = False
        self._sample: Sample | None = None
        self._seed, self._numbers = ask.seed, list[float]()
        self._cancelled = ask.cancelled
        self._stream = None if ask.on_piece is None else _Stream(ask.on_piece, stop)

    @property
    def length(self) -> int:
        """Tokens of the prompt, and those sampled so far."""
        return len(self.prompt) + len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens that the row may come to have."""
        return len(self.prompt) + self.limit

    @property
    def number(self) -> float:
        """The number in [0, 1) that draws the next token; any for a row that has ended."""
        if not self._numbers:
            self._numbers = uniform_numbers([self._seed], self.limit, self.config)[0].tolist()
        return self._numbers[min(len(self.tokens), self.limit - 1)]

    def drop_if_cancelled(self) -> bool:
        """End the row if nobody wants it any more; returns True where it has ended."""
        if not self.ended and self.future.cancelled():
            self._end()
        elif not self.ended and self._cancelled is not None:
            try:
                if self._cancelled():
                    self.future.cancel()
                    self._end()
            except Exception as error:  # the caller's function; only this row is concerned
                self.fail(error)
        return self.ended

    def take(self, token: int, logprob: float | None, is_end: bool) -> None:
        """Append a token, and end the row where it is the last one."""
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        try:
            finished = is_end or self.stop.ends(self.tokens)
            over = finished or len(self.tokens) >= self.limit or self.stop.goes_round(self.tokens)
            sample = self.stop.sample(self.tokens, finished, self.logprobs) if over else None
            if self._stream is not None:
                self._stream.tell(self.tokens, self.logprobs, sample)
        except Exception as error:  # the tokenizer's or the listener's; only this row is concerned
            self.fail(error)
            return
        if sample is not None:
            self._sample = sample
            self._end()

    def deliver(self) -> None:
        """Give the sample to whoever waits for it, if the row has one."""
        if self._sample is not None:
            with suppress(InvalidStateError):  # cancelled a moment ago
                self.future.set_result(self._sample)

    def fail(self, error: BaseException) -> None:
        """End the row with an error for whoever waits for it."""
        self._end()
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def _end(self) -> None:
        """Let go of what is the caller's, since the row may stay in its batch for some steps more."""
        self.ended, self.adapter, self._stream, self._cancelled = True, None, None, None


class _Stream:
    """Tells a listener what is final of a row's text."""

    def __init__(self, on_piece: Callable[[Piece], None], stop: StopStrings) -> None:
        self._on_piece, self._stop = on_piece, stop
        self._sent, self._told = "", 0

    def tell(self, tokens: list[int], logprobs: list[float], sample: Sample | None) -> None:
        """Tell what has become final; all of it where there is a sample."""
        text = self._final(self._stop.text(tokens)) if sample is None else sample.text
        if not text.startswith(self._sent):  # some tokenizers take back a space: then it waits for the next token
            text = self._sent
        if text == self._sent and sample is None:
            return
        piece = Piece(text[len(self._sent) :], tuple(tokens[self._told :]), tuple(logprobs[self._told :]))
        self._sent, self._told = text, len(tokens)
        if piece.text or piece.tokens:
            self._on_piece(piece)

    def _final(self, text: str) -> str:
        """Return the text without half a character at its end, and without the start of a stop text there."""
        text = text.rstrip("\ufffd")
        longest = max(map(len, self._stop.stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop.stop):
                return text[:-size]
        return text
