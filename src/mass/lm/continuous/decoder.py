"""Decode rows that join and leave between steps, in one thread for all that ask.

    rows wait in a queue -> their prompts are read, a part between two steps -> they join the batch -> token by token
    they end and leave it

A row is a function of its prompt, seed and adapter, as in `mass.lm.sampling`, whose draws these are: alone it gives the
same tokens bit for bit; beside others the logits differ by rounding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch

from mass.lm.continuous.admission import Admission
from mass.lm.continuous.ask import Ask, Cancelled, Closed, Limits, Load, QueueFull, adapters_of
from mass.lm.continuous.batch import Batch, Reading
from mass.lm.continuous.mixture import LaidOut
from mass.lm.continuous.queue import FairQueue, Group, grouped
from mass.lm.continuous.row import Row
from mass.lm.merging import can_be_merged
from mass.lm.sampling import StopStrings, check_lengths, decoding_cache
from mass.types import Sample

if TYPE_CHECKING:
    from mass.lm.model import LM

LOOK_S = 0.2
"""Seconds between two looks of a thread that waits for room in the queue at whether its rows are still wanted."""


class ContinuousDecoder:
    """Decodes the rows of many threads side by side. Use it in a `with` block, or `close` it."""

    def __init__(self, lm: LM, limits: Limits | None = None) -> None:
        self.lm = lm
        self._limits, self._end_ids = limits or Limits(), lm.end_ids
        self._known = LaidOut(lm.model.get_input_embeddings().weight.dtype)
        self._admission = Admission(lm, self._limits)
        self._merges = can_be_merged(decoding_cache(lm))
        self._changed = threading.Condition()
        """Guards the queue and what follows it here; told of every change of them."""
        self._queue, self._closed = FairQueue(), False
        self._thread: threading.Thread | None = None
        self._reading: Reading | None = None
        self._batches: list[Batch] = []
        """One batch; several for a model whose rows cannot be put into one cache after they were read apart."""
        self._tokens = self._steps = self._held = 0

    def __enter__(self) -> ContinuousDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, ask: Ask) -> Future[Sample]:
        """Queue a row; returns its sample as a future. `cancel` of the future takes the row out before the next step.

        Raises:
            ShapeError: an adapter that does not fit the model.
            DataError: a prompt without tokens, or one that fills the model's context.
            QueueFull: more rows wait than may.
            Closed: the decoder is closed.
        """
        return self.submit_all([ask])[0]

    def submit_all(self, asks: Sequence[Ask], *, wait: bool = False) -> list[Future[Sample]]:
        """Queue rows, all or none; those with one prompt and one adapter share its reading.

        Args:
            wait: whether to wait for room in the queue instead of raising QueueFull. `Cancelled` is raised where a row
                is cancelled meanwhile.
        """
        rows = self._rows(asks)
        most = min(self._admission.most(row.urgent) for row in rows) if rows else 1
        groups = grouped(rows, min(most, self._limits.waiting))
        with self._changed:
            self._require_open()
            if not wait and len(self._queue) + len(rows) > self._limits.waiting:
                raise QueueFull(
                    f"{len(rows)} more rows beside {len(self._queue)} that wait; expected at most "
                    f"{self._limits.waiting} in all; ask again later"
                )
            try:
                for group in groups:
                    self._await_room(group)
                    self._queue.add(group)
                    self._start()
            except BaseException:
                for row in rows:
                    row.future.cancel()
                raise
        return [row.future for row in rows]

    def load(self) -> Load:
        """Return what the decoder does now, for metrics."""
        with self._changed:
            running, adapters = self._running(), len(self._known)
            return Load(len(running), len(self._queue), adapters, self._tokens, self._steps, self._held)

    def close(self) -> None:
        """Refuse further rows, fail those that have not ended with `Closed`, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # --- in the threads that ask

    def _rows(self, asks: Sequence[Ask]) -> list[Row]:
        """Check what is asked for. Raises ShapeError or DataError."""
        adapters = adapters_of(asks, self.lm.adapters)
        check_lengths(self.lm, [ask.prompt for ask in asks])
        return [
            Row(
                ask,
                adapter,
                ask.stop if isinstance(ask.stop, StopStrings) else StopStrings(self.lm.tokenizer, ask.stop),
                min(ask.config.max_new_tokens, self.lm.context - len(ask.prompt)),
            )
            for ask, adapter in zip(asks, adapters, strict=True)
        ]

    def _require_open(self) -> None:
        if self._closed:
            raise Closed("the decoder is closed; expected an open one; make another")

    def _await_room(self, group: Group) -> None:
        while len(self._queue) + len(group.rows) > self._limits.waiting:
            self._changed.wait(LOOK_S)
            self._require_open()
            if any(row.drop_if_cancelled() for row in group.rows):
                raise Cancelled("the request was cancelled while its rows waited")

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mass decoder", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    # --- in the decoder's thread

    def _run(self) -> None:
        """Take turns until the decoder is closed."""
        with torch.no_grad():
            while self._await_work():
                try:
                    self._turn()
                except Exception as error:  # no fault may end the thread that others wait for
                    self._fail(error)
        self._fail(Closed("the decoder was closed before the row had ended; ask again elsewhere"))

    def _await_work(self) -> bool:
        """Wait for rows; returns False once the decoder is closed."""
        with self._changed:
            while not (self._closed or self._batches or self._reading or len(self._queue)):
                self._changed.wait()
            return not self._closed

    def _turn(self) -> None:
        """Let rows leave and join, and give each row in a batch one token."""
        self._drop_cancelled()
        self._admit()
        rows = self._running()
        try:
            self._read_on()
            for batch in list(self._batches):
                self._guarded(batch.rows, lambda batch=batch: self._step(batch))
            self._let_go()
        finally:  # once nothing of the rows that have ended is left here
            for row in rows:
                row.deliver()

    def _let_go(self) -> None:
        """Drop what no row needs any more."""
        with self._changed:
            self._batches = [batch for batch in self._batches if batch.live]
            self._known.keep(row.adapter for row in self._running())
            self._held = sum(batch.held for batch in self._batches) + (self._reading.held if self._reading else 0)

    def _step(self, batch: Batch) -> None:
        self._tokens += batch.step()
        self._steps += 1

    def _running(self) -> list[Row]:
        """Return the rows of the batches, and those whose prompts are read, that have not ended."""
        reading = self._reading  # looked up once: metrics ask for it beside the decoder's thread
        read = [row for row in reading.rows if not row.ended] if reading else []
        return [*read, *(row for batch in self._batches for row in batch.live)]

    def _drop_cancelled(self) -> None:
        for row in self._running():
            row.drop_if_cancelled()
        with self._changed:
            waiting = self._queue.rows()
            if any([row.drop_if_cancelled() for row in waiting]):
                self._queue.drop_ended()
                self._changed.notify_all()
            self._batches = [batch for batch in self._batches if batch.live]
            if self._reading and all(row.ended for row in self._reading.rows):
                self._reading = None

    def _admit(self) -> None:
        """Begin to read the prompts of waiting rows for which there is room, if no others are being read."""
        if self._reading is not None or not len(self._queue):
            return
        running = self._running()
        with self._changed:
            rows = self._admission.take(self._queue, running, self._held)
            self._changed.notify_all()
        if rows:
            most = self._limits.prefill_tokens if running else None
            begun: list[Reading] = []
            self._guarded(rows, lambda: begun.append(Reading(self.lm, rows, self._known, most)))
            self._reading = begun[0] if begun else None

    def _read_on(self) -> None:
        reading = self._reading
        if reading is None:
            return
        done: list[bool] = []
        self._guarded(reading.rows, lambda: done.append(reading.read_on()))
        if done == [False]:
            return
        self._reading = None
        if done and self._merges and self._batches:
            batch = self._batches[0]
            self._guarded([*batch.rows, *reading.rows], lambda: batch.join(reading))
        elif done:
            self._batches.append(Batch(self.lm, reading, self._known, self._end_ids))

    def _guarded(self, rows: Sequence[Row], work: Callable[[], object]) -> None:
        """Do some work on rows; an error in it fails these rows and no others."""
        try:
            work()
        except Exception as error:
            for row in rows:
                if not row.ended:
                    row.fail(error)

    def _fail(self, error: Exception) -> None:
        """Fail all rows, and forget them."""
        with self._changed:
            rows = [*self._running(), *self._queue.clear()]
            self._batches, self._reading, self._held = [], None, 0
            self._known.keep([])
            self._changed.notify_all()
        for row in rows:
            row.fail(error)
