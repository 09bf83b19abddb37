"""What is admitted, what waits, what gives up, and how the server stops."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from servers import ADAPTING, BASE, PROBLEM, WAIT_S, Running, config, serving, until

from mass.model import Mass
from mass.serving import answering, streams
from mass.serving.job import Text
from mass.serving.streams import events
from mass.types import GateDecision

Held = tuple[threading.Event, threading.Event]
QUESTION = [{"role": "user", "content": PROBLEM}]
ALWAYS = {"adapt": "always", "seed": 0}


def later(work: Any) -> Any:
    """Start work in a thread; returns its future."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def jobs(server: Running) -> int:
    return len(server.service._jobs)


def test_a_plain_request_does_not_wait_behind_practice(server: Running, held: Held) -> None:
    asked, go = held
    adapted = later(lambda: server.ask(mass=ALWAYS, seed=0))
    assert asked.wait(WAIT_S)
    plain = server.ask(model=BASE)
    assert not plain["mass"]["adapted"]
    assert not adapted.done()
    go.set()
    assert adapted.result(WAIT_S)["mass"]["adapted"]


def test_the_deadline_gives_the_unadapted_answer(server: Running, held: Held) -> None:
    asked, go = held
    found = server.ask(mass={**ALWAYS, "deadline_s": 0.5})
    assert asked.is_set() or found["mass"]["fallback"] == "deadline"
    assert found["mass"]["fallback"] == "deadline"
    assert not found["mass"]["adapted"]
    never = server.ask(mass={"adapt": "never"})
    assert found["choices"][0]["message"] == never["choices"][0]["message"]
    assert never["mass"]["fallback"] is None
    go.set()
    until(lambda: jobs(server) == 0)


def test_a_streamed_deadline_gives_the_unadapted_answer(server: Running, held: Held) -> None:
    body = {"model": ADAPTING, "messages": QUESTION, "stream": True, "mass": {**ALWAYS, "deadline_s": 0.3}}
    text = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=WAIT_S).text
    assert '"fallback":"deadline"' in text
    assert text.endswith("data: [DONE]\n\n")
    held[1].set()


def test_a_failed_adaptation_is_no_error(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a secret text of the request")

    monkeypatch.setattr(answering, "practised", fail)
    found = server.ask(mass=ALWAYS)
    assert (found["mass"]["adapted"], found["mass"]["fallback"]) == (False, "failed")
    assert found["choices"][0]["message"] == server.ask(mass={"adapt": "never"})["choices"][0]["message"]


def test_comments_keep_a_stream_alive_while_it_practises(
    server: Running, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go = held
    monkeypatch.setattr(streams, "events", lambda job, _: events(job, 0.01))
    with (
        httpx2.Client(timeout=WAIT_S) as client,
        client.stream(
            "POST",
            f"{server.url}/v1/chat/completions",
            json={"model": ADAPTING, "messages": QUESTION, "stream": True, "mass": ALWAYS},
        ) as reply,
    ):
        lines = reply.iter_lines()
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-mass-id"].startswith("mass-")
        assert asked.wait(WAIT_S)
        assert next(line for line in lines if line.startswith(":")) == ": practising"
        go.set()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_certain_model_does_not_practise(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    certain = GateDecision(False, "certain without practice", {"certainty": 0.99})
    monkeypatch.setattr(answering.gate, "before", lambda *_: certain)
    monkeypatch.setattr(answering.Answering, "_threshold", lambda _: 0.5)
    found = server.ask(mass={"adapt": "auto"})["mass"]
    assert (found["adapted"], found["fallback"]) == (False, "certain without practice")
    assert found["gate"] == {"adapt": False, "reason": certain.reason, "measures": {"certainty": 0.99}}
    assert "synthesis" not in found["tokens"]
    assert server.ask(mass=ALWAYS)["mass"]["fallback"] != certain.reason


@pytest.mark.parametrize("header", ["Idempotency-Key", "x-request-id"])
def test_the_same_request_is_not_adapted_twice_at_once(server: Running, held: Held, header: str) -> None:
    asked, go = held
    count = server.service.metrics.outcomes.labels(ADAPTING, "adapted")._value
    before, body = count.get(), {"model": ADAPTING, "messages": QUESTION, "mass": ALWAYS, "temperature": 1.0}

    def post() -> httpx2.Response:
        return httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers={header: "one"}, timeout=WAIT_S)

    first = later(post)
    assert asked.wait(WAIT_S)
    second = later(post)
    until(lambda: any(len(job._listeners) == 2 for job in server.service._jobs))
    go.set()
    one, other = first.result(WAIT_S).json(), second.result(WAIT_S).json()
    assert one == other
    assert count.get() == before + 1
    assert post().json()["id"] != one["id"]  # not in flight any more: answered anew


def test_another_request_under_a_key_in_use_is_refused(server: Running, held: Held) -> None:
    asked, go = held
    url, headers = f"{server.url}/v1/chat/completions", {"Idempotency-Key": "two"}
    body = {"model": ADAPTING, "messages": QUESTION, "mass": ALWAYS}
    first = later(lambda: httpx2.post(url, json=body, headers=headers, timeout=WAIT_S))
    assert asked.wait(WAIT_S)
    other = httpx2.post(url, json={**body, "seed": 5}, headers=headers, timeout=WAIT_S)
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_key_reused")
    go.set()
    assert first.result(WAIT_S).status_code == 200


@pytest.mark.parametrize(("header", "status"), [("Idempotency-Key", 400), ("x-request-id", 200)])
def test_a_key_too_long_to_be_kept_is_refused(server: Running, header: str, status: int) -> None:
    body: dict[str, Any] = {"model": BASE, "messages": QUESTION}
    found = httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers={header: "k" * 201}, timeout=WAIT_S)
    assert found.status_code == status
    if status == 400:
        assert "201 characters; expected at most 200" in found.json()["error"]["message"]


def test_keys_of_two_clients_do_not_meet(locked: Running) -> None:
    body: dict[str, Any] = {"model": BASE, "messages": QUESTION}
    url = f"{locked.url}/v1/chat/completions"

    def post(key: str) -> str:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "same"}
        return httpx2.post(url, json=body, headers=headers, timeout=WAIT_S).json()["id"]

    futures = [later(lambda key=key: post(key)) for key in ("alice-key", "bob-key")]
    assert len({future.result(WAIT_S) for future in futures}) == 2


def test_a_full_queue_says_when_to_try_again(model: Mass) -> None:
    with serving(model, config(max_queue=1)) as server:
        loops, asked, go = server.service._shop.loops, threading.Event(), threading.Event()
        right = loops.learn

        def learn(*arguments: Any) -> Any:
            asked.set()
            assert go.wait(WAIT_S)
            return right(*arguments)

        loops.learn = learn  # type: ignore[method-assign]
        first = later(lambda: server.ask(mass=ALWAYS))
        assert asked.wait(WAIT_S)
        full = server.post(model=BASE, messages=QUESTION)
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert full.json()["error"]["type"] == "rate_limit_error"
        go.set()
        assert first.result(WAIT_S)["mass"]["adapted"]
        assert server.post(model=BASE, messages=QUESTION).status_code == 200


def test_stopping_finishes_what_was_begun_and_refuses_the_rest(model: Mass) -> None:
    with serving(model, config(drain_s=WAIT_S)) as server:
        loops, asked, go = server.service._shop.loops, threading.Event(), threading.Event()
        right = loops.learn

        def learn(*arguments: Any) -> Any:
            asked.set()
            assert go.wait(WAIT_S)
            return right(*arguments)

        loops.learn = learn  # type: ignore[method-assign]
        first = later(lambda: server.ask(mass=ALWAYS))
        assert asked.wait(WAIT_S)
        stopping = asyncio.run_coroutine_threadsafe(server.service.drain(WAIT_S), server.loop)
        until(lambda: server.service.stopping)
        refused = server.post(model=BASE, messages=QUESTION)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert server.get("/health").status_code == 503
        go.set()
        assert first.result(WAIT_S)["mass"]["adapted"]
        stopping.result(WAIT_S)


def test_stopping_gives_up_what_takes_too_long(model: Mass) -> None:
    with serving(model, config(drain_s=0.0)) as server:
        loops, asked, go = server.service._shop.loops, threading.Event(), threading.Event()
        loops.learn = lambda *_: (asked.set(), go.wait(WAIT_S))[1] and None  # type: ignore[method-assign,assignment]
        first = later(lambda: server.post(model=ADAPTING, messages=QUESTION, mass=ALWAYS))
        assert asked.wait(WAIT_S)
        asyncio.run_coroutine_threadsafe(server.service.drain(0.0), server.loop).result(WAIT_S)
        found = first.result(WAIT_S)
        assert (found.status_code, found.json()["error"]["code"]) == (503, "stopping")
        go.set()


def test_the_server_answers_while_the_model_loads(server: Running) -> None:
    from mass.serving.app import create_app
    from mass.serving.keys import Keys
    from mass.serving.service import Serving

    app = create_app(Serving(), config(), Keys())

    async def ask() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
            body = {"messages": QUESTION}
            return [await client.get("/health"), await client.post("/v1/chat/completions", json=body)]

    for found in asyncio.run(ask()):
        assert found.status_code == 503
        assert found.json()["error"]["code"] == "loading"
    assert server.get("/health").json() == {"status": "ok"}


def test_what_is_no_http_gets_an_error_of_the_same_form(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
            client.sendall(sent)
            reply = b"".join(iter(lambda: client.recv(4096), b""))
        assert reply.startswith(b"HTTP/1.1 4"), reply
        assert b'{"error":{"message":' in reply


def test_a_body_that_grows_beyond_the_limit(server: Running) -> None:
    url = f"{server.url}/v1/chat/completions"
    big = b'{"messages": "' + b"x" * (1 << 21) + b'"}'
    declared = httpx2.post(url, content=big, headers={"Content-Type": "application/json"}, timeout=WAIT_S)
    assert (declared.status_code, declared.json()["error"]["code"]) == (413, "request_too_large")
    parts = (big[i : i + 65536] for i in range(0, len(big), 65536))
    chunked = httpx2.post(url, content=parts, headers={"Content-Type": "application/json"}, timeout=WAIT_S)
    assert chunked.status_code == 413


def test_metrics_count_answers(server: Running) -> None:
    server.ask(model=BASE)
    text = server.get("/metrics").text
    assert 'mass_answers_total{model="tiny-terms",outcome="plain"}' in text
    for name in (
        "mass_requests_running",
        "mass_requests_waiting",
        "mass_rows_running",
        "process_resident_memory_bytes",
    ):
        assert f"\n{name} " in text
    assert PROBLEM not in text


def test_unknown_paths_and_methods_have_the_same_form(server: Running) -> None:
    for found in (
        server.get("/v2"),
        server.get("/v1/chat/completions"),
        httpx2.request("PURGE", server.url + "/health"),
    ):
        assert found.status_code in (404, 405)
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}
    assert "script-src 'self'" in server.get("/health").headers["content-security-policy"]


def streamed(server: Running, **body: Any) -> tuple[str, str]:
    """Return what a stream says in all, and the text of its answer."""
    body = {"model": ADAPTING, "messages": QUESTION, "stream": True, **body}
    said = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=WAIT_S).text
    chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    parts = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk.get("choices", ())]
    return said, "".join(parts)


def test_practice_that_ends_after_the_deadline_does_not_answer_too(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, told = threading.Event(), threading.Event()
    right, practised = answering.Answering.answers, accepted(answering.practised)

    def practising(*arguments: Any) -> Any:
        found = practised(*arguments)
        assert go.wait(WAIT_S)
        return found

    async def answers(self: Any, *arguments: Any, stage: str = "answer", **more: Any) -> Any:
        if stage != "unadapted answer":
            try:
                return await right(self, *arguments, stage=stage, **more)
            finally:
                told.set()
        # It is still sampled when the deadline passes, and when the practice ends after that.
        await asyncio.to_thread(until, lambda: self.work.stopped)
        go.set()
        for _ in range(100):  # turns of the loop, in which an adapted answer would begin
            await asyncio.sleep(0)
            await asyncio.to_thread(int)
        if self.started.is_set():
            await asyncio.to_thread(told.wait, WAIT_S)
        return await right(self, *arguments, stage=stage, **more)

    monkeypatch.setattr(answering, "practised", practising)
    monkeypatch.setattr(answering.Answering, "answers", answers)
    said, text = streamed(server, mass={**ALWAYS, "deadline_s": 3.0})
    assert '"fallback":"deadline"' in said
    monkeypatch.undo()
    assert text == streamed(server, mass={"adapt": "never"})[1]


def test_half_an_adapted_answer_is_followed_by_an_error_and_no_other_answer(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Any, *_: Any) -> Any:
        self.job.publish(Text(0, "half of an"))
        raise RuntimeError

    monkeypatch.setattr(answering.Answering, "_adapted_answers", fail)
    monkeypatch.setattr(answering, "practised", accepted(answering.practised))
    said, text = streamed(server, mass=ALWAYS)
    assert text == "half of an"
    assert json.loads(said.splitlines()[-2][6:])["error"]["code"] == "internal_error"


def accepted(practised: Any) -> Any:
    """Return practice whose weights may answer whatever the gate says."""

    def practise(*arguments: Any) -> Any:
        record, adapter = practised(*arguments)
        return replace(record, fallback=""), adapter

    return practise


def test_metrics_are_told_while_rows_leave(server: Running) -> None:
    """The decoder's thread ends the reading of prompts between two looks at it."""
    decoder = next(iter(server.service._decoders.values()))

    class Leaving(type(decoder)):
        _looks = 0

        @property
        def _reading(self) -> Any:
            type(self)._looks += 1
            return SimpleNamespace(rows=[]) if self._looks == 1 else None

    one = object.__new__(Leaving)
    one._batches = []
    assert one._running() == []
