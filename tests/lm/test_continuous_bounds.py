"""What bounds continuous decoding, and what may go wrong in it: turns, a full queue, memory, failures, ends."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from decoding_together import WAIT_S, Listener, alone, ask, passes, settings

from mass.errors import ConfigError, DataError, ShapeError
from mass.lm import LM
from mass.lm.continuous import Ask, Closed, ContinuousDecoder, Limits, QueueFull
from small_lms import make_lm, prompt_ids, random_adapter


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm(rank=4)


# ------------------------------------------------------------------------------- turns, bounds, memory


def order_of_first_pieces(decoder: ContinuousDecoder, asks: list[Ask]) -> list[int]:
    """Submit all at once; returns the rows in the order in which they began."""
    begun: list[int] = []
    heard: list[Ask] = []
    for number, row in enumerate(asks):
        listener = Listener(at={1: lambda number=number: begun.append(number)})
        heard.append(Ask(row.prompt, row.config, row.seed, on_piece=listener, owner=row.owner, urgent=row.urgent))
    for future in decoder.submit_all(heard):
        future.result(WAIT_S)
    return begun


def test_owners_take_turns(lm: LM) -> None:
    prompts = prompt_ids(lm)
    asks = [ask(lm, prompts[i % 6], i, config=settings(4), owner="many") for i in range(30)]
    asks += [ask(lm, prompts[0], 50, config=settings(4), owner="one")]
    with ContinuousDecoder(lm, Limits(rows=2, reserved=0)) as decoder:
        assert order_of_first_pieces(decoder, asks).index(30) <= 4


def test_reserved_rows_are_for_urgent_ones(monkeypatch: pytest.MonkeyPatch, lm: LM) -> None:
    prompt = prompt_ids(lm)[0]
    monkeypatch.setattr(LM, "end_ids", property(lambda _: frozenset[int]()))
    asks = [ask(lm, prompt, i, config=settings(10), owner=i, stop=()) for i in range(4)]
    asks += [ask(lm, prompt, 9, config=settings(3), urgent=True, owner="plain", stop=())]
    with ContinuousDecoder(lm, Limits(rows=3, reserved=1)) as decoder:
        begun = order_of_first_pieces(decoder, asks)
    assert sorted(begun[:3]) == [0, 1, 4], "two of the others, and the urgent one before the other two"


def test_a_full_queue_is_an_error_or_a_wait(lm: LM) -> None:
    asks = [ask(lm, prompt, i, config=settings(3)) for i, prompt in enumerate(prompt_ids(lm) * 2)]
    with ContinuousDecoder(lm, Limits(rows=2, waiting=4)) as decoder:
        with pytest.raises(QueueFull, match="12 more rows beside 0 that wait; expected at most 4"):
            decoder.submit_all(asks)
        found = [future.result(WAIT_S) for future in decoder.submit_all(asks, wait=True)]
        assert [sample.tokens for sample in found] == [alone(lm, row).tokens for row in asks]


def test_more_copies_than_there_are_rows(lm: LM) -> None:
    asks = [ask(lm, prompt_ids(lm)[1], seed, config=settings(5)) for seed in range(9)]
    with ContinuousDecoder(lm, Limits(rows=2)) as decoder:
        found = [future.result(WAIT_S) for future in decoder.submit_all(asks)]
    assert [sample.tokens for sample in found] == [alone(lm, row).tokens for row in asks]


def test_with_little_memory_rows_run_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    asks = [ask(lm, prompt_ids(lm)[i % 6], i, random_adapter(lm, i % 2), config=settings(5)) for i in range(8)]
    wanted = [alone(lm, row).tokens for row in asks]
    shapes = passes(monkeypatch, lm)
    with ContinuousDecoder(lm, Limits(memory_gb=1e-9)) as decoder:
        found = [future.result(WAIT_S) for future in decoder.submit_all(asks)]
    assert [sample.tokens for sample in found] == wanted
    assert max(rows for rows, _ in shapes) == 1


@pytest.mark.parametrize(
    "changes", [{"rows": 0}, {"waiting": 0}, {"prefill_tokens": 0}, {"reserved": -1}, {"memory_gb": 0.0}]
)
def test_limits_that_no_row_fits(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"decoder.{next(iter(changes))} is"):
        Limits(**changes)


def test_an_adapter_is_let_go_with_its_last_row(monkeypatch: pytest.MonkeyPatch, lm: LM) -> None:
    """While other rows still run, in a batch that keeps its place for some steps more."""
    monkeypatch.setattr(LM, "end_ids", property(lambda _: frozenset[int]()))
    prompt, refs, dead = prompt_ids(lm)[0], list[Any](), list[bool]()
    heard, short = Listener(), list[Any]()

    def join() -> None:
        adapter = random_adapter(lm, 5)
        refs.extend(weakref.ref(tensor) for tensor in adapter.values())
        short.append(decoder.submit(ask(lm, prompt, 0, adapter, config=settings(3), stop=())))

    def look() -> None:
        gc.collect()
        dead.append(short[0].done() and all(ref() is None for ref in refs))

    heard.at |= {2: join, 20: look}
    with ContinuousDecoder(lm) as decoder:
        rows = [ask(lm, prompt, i, on_piece=heard if i == 0 else None, config=settings(60), stop=()) for i in range(6)]
        for future in decoder.submit_all(rows):
            future.result(WAIT_S)
    assert refs
    assert dead == [True]


# ------------------------------------------------------------------------------- what goes wrong


def test_a_listener_that_raises_fails_its_row_only(lm: LM) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("boom")

    prompts = prompt_ids(lm)
    good = [ask(lm, prompt, 4) for prompt in prompts]
    with ContinuousDecoder(lm) as decoder:
        bad = decoder.submit(ask(lm, prompts[0], 4, on_piece=broken))
        futures = decoder.submit_all(good)
        with pytest.raises(RuntimeError, match="boom"):
            bad.result(WAIT_S)
        assert [f.result(WAIT_S).tokens for f in futures] == [alone(lm, row).tokens for row in good]


def test_a_pass_that_fails_fails_the_rows_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    forward = lm.model.forward
    with ContinuousDecoder(lm) as decoder:
        monkeypatch.setattr(lm.model, "forward", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder.submit(ask(lm, prompt_ids(lm)[0])).result(WAIT_S)
        monkeypatch.setattr(lm.model, "forward", forward)
        row = ask(lm, prompt_ids(lm)[0])
        assert decoder.submit(row).result(WAIT_S) == alone(lm, row)
        assert decoder.load().adapters == 0


def test_what_cannot_be_decoded_is_refused_at_once(lm: LM) -> None:
    prompt, adapter = prompt_ids(lm)[0], random_adapter(lm)
    name = next(iter(adapter))
    with ContinuousDecoder(lm) as decoder:
        with pytest.raises(ShapeError, match="use an adapter made for this model"):
            decoder.submit(ask(lm, prompt, adapter={**adapter, name: torch.ones(4, 3)}))
        with pytest.raises(ShapeError, match="expected one adapter"):
            decoder.submit(ask(lm, prompt, adapter=random_adapter(lm, count=2)))
        with pytest.raises(DataError, match="a prompt without tokens"):
            decoder.submit(ask(lm, []))
        with pytest.raises(DataError, match="reads at most 255"):
            decoder.submit(ask(lm, [5] * 256))
        assert decoder.submit(ask(lm, prompt)).result(WAIT_S)


@pytest.mark.parametrize("cancel", ["future", "function"])
def test_a_cancelled_row_leaves_before_the_next_step(monkeypatch: pytest.MonkeyPatch, cancel: str) -> None:
    lm = make_lm()
    monkeypatch.setattr(LM, "end_ids", property(lambda _: frozenset[int]()))
    gone, time_to_keep = threading.Event(), threading.Event()
    heard, futures = Listener(), list[Any]()
    heard.at[4] = lambda: gone.set() if cancel == "function" else futures[0].cancel()
    row = ask(lm, prompt_ids(lm)[0], on_piece=heard, stop=(), cancelled=gone.is_set, config=settings(200, 0.0))
    with ContinuousDecoder(lm) as decoder:
        heard.at[1] = lambda: time_to_keep.wait(WAIT_S)
        futures.append(decoder.submit(row))
        time_to_keep.set()
        with pytest.raises(CancelledError):
            futures[0].result(WAIT_S)
        after = decoder.submit(ask(lm, prompt_ids(lm)[1], config=settings(3)))
        after.result(WAIT_S)
        assert len(heard.pieces) == 4
        assert decoder.load().tokens < 20


def test_closing_fails_what_runs_and_what_waits(lm: LM) -> None:
    begun = threading.Event()
    rows = [
        ask(lm, prompt_ids(lm)[0], i, config=settings(240), on_piece=Listener(at={1: begun.set}), stop=())
        for i in range(6)
    ]
    decoder = ContinuousDecoder(lm, Limits(rows=2))
    futures = decoder.submit_all(rows)
    assert begun.wait(WAIT_S)
    decoder.close()
    decoder.close()
    assert all(future.done() for future in futures)
    assert any(isinstance(future.exception(), Closed) for future in futures)
    with pytest.raises(Closed, match="the decoder is closed"):
        decoder.submit(rows[0])
    assert decoder._thread is not None
    assert not decoder._thread.is_alive()
