"""Faults that users of other servers met with adapters, keys and connections, each under churn on ours."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import torch
from servers import ADAPTING, BASE, KEYS, PROBLEM, WAIT_S, Running, until
from torch import Tensor

from mass.model import Mass
from mass.serving import answering
from mass.serving.practice import Course
from mass.types import Adaptation, Params

MARKERS = ("33333", "44444", "55555", "66666")
"""What planted practice makes the model answer."""
PLANTED = {"mass": {"adapt": "always"}, "max_tokens": 5}
ALWAYS = {"adapt": "always"}
PROBLEMS = 3
Forcing = dict[str, Params]


@pytest.fixture(scope="session")
def forcing(model: Mass) -> Forcing:
    """Adapters, each of which makes the model say its own token again and again, whatever it is asked.

    Its B moves the last hidden state far towards that token, and its A is the mean input of that layer, whose product
    with every input is positive.
    """
    lm = model.lm
    site = [one.name for one in lm.adapters.sites if one.name.endswith("down_proj")][-1]
    inputs = list[Tensor]()
    hook = lm.model.get_submodule(site).register_forward_pre_hook(
        lambda _, given: inputs.append(given[0].flatten(0, 1))
    )
    rows = [lm.example_row(problem_of(marker, i), marker) for marker in MARKERS for i in range(PROBLEMS)]
    with torch.no_grad():
        for prompt, target in rows:
            lm.model(input_ids=torch.tensor([[*prompt, *target]]))
    hook.remove()
    mean = torch.cat(inputs).mean(0)
    head, norm = lm.model.get_output_embeddings().weight, lm.model.model.norm.weight
    found: Forcing = {}
    for marker in MARKERS:
        (token,) = lm.tokenizer(marker[0], add_special_tokens=False)["input_ids"]
        params = {name: torch.zeros_like(t) for name, t in lm.init_adapter(0).items()}
        params[f"{site}.lora_A"][0] = mean / mean.norm() ** 2
        params[f"{site}.lora_B"][:, 0] = 1e4 * norm * head[token] / (norm * head[token]).norm()
        found[marker] = params
    return found


def problem_of(marker: str, index: int) -> str:
    """Return a problem whose practice is planted, so that its answer has to be the marker."""
    return f"Find the malk of the vector ({index}, {marker[0]})."


def planted(forcing: Forcing, seen: list[weakref.ref[Any]] | None = None) -> Callable[..., Any]:
    """Return a stand-in for practice that makes of a problem the adapter of its marker, a new object each time."""

    def practised(course: Course, _: Any) -> tuple[Adaptation, Params]:
        marker = next(m for m in MARKERS if course.problem.endswith(f"{m[0]})."))
        adapter = {name: t.clone() for name, t in forcing[marker].items()}
        if seen is not None:
            seen.extend(weakref.ref(t) for t in adapter.values())
        return Adaptation(course.problem, "m", course.seed, {"answer": {}}, "h"), adapter

    return practised


@pytest.fixture
def plant(forcing: Forcing, monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Planted practice; returns references to the tensors that were made."""
    seen = list[weakref.ref[Any]]()
    monkeypatch.setattr(answering, "practised", planted(forcing, seen))
    return seen


def text(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def churned(server: Running, rounds: int, plain: str) -> Iterator[tuple[str, str]]:
    """Ask planted and plain requests from many clients at once; yield (expected, got)."""
    asked = [(m, problem_of(m, i % PROBLEMS)) for i in range(rounds) for m in MARKERS]

    def ask(index: int) -> tuple[str, str]:
        marker, problem = asked[index]
        if index % 5 == 4:
            return plain, text(server.ask(model=BASE))
        return marker, text(server.ask(problem, **PLANTED, n=1 + index % 2))

    with ThreadPoolExecutor(12) as pool:
        yield from pool.map(ask, range(len(asked)))


def test_a_request_in_flight_keeps_its_own_adapter(server: Running, plant: list[Any]) -> None:
    """vLLM #47724: a request was answered with the adapter of another one."""
    plain = text(server.ask(model=BASE))
    assert plain not in MARKERS
    found = list(churned(server, 8, plain))
    assert [got for _, got in found] == [expected for expected, _ in found]
    assert plant


@pytest.mark.usefixtures("plant")
def test_equal_prompts_never_share_what_was_cached(server: Running) -> None:
    """vLLM #30931 and #42125, llama.cpp #26207: keys and values of one adapter were used under another."""
    one, other = problem_of(MARKERS[0], 1), problem_of(MARKERS[1], 1)
    base = {problem: text(server.ask(problem, model=BASE)) for problem in (one, other)}
    for _ in range(3):
        for problem, marker in ((one, MARKERS[0]), (other, MARKERS[1])):
            assert text(server.ask(problem, **PLANTED)) == marker
            assert text(server.ask(problem, model=BASE)) == base[problem]
            assert text(server.ask(problem, mass={"adapt": "never"})) not in MARKERS
    with ThreadPoolExecutor(3) as pool:
        asked = ({"model": ADAPTING, **PLANTED}, {"model": BASE}, {"model": ADAPTING, **PLANTED})
        same = [pool.submit(server.ask, one, **body) for body in asked]
        assert [text(future.result()) for future in same] == [MARKERS[0], base[one], MARKERS[0]]


def test_nothing_of_an_adapter_is_left(server: Running, plant: list[weakref.ref[Any]]) -> None:
    """vLLM #54839: the weights of an unloaded adapter went on answering, and stayed in memory."""
    body = {"model": BASE, "messages": [{"role": "user", "content": PROBLEM}], "logprobs": True}
    before = server.post(**body).json()["choices"]
    for i in range(4):
        assert text(server.ask(problem_of(MARKERS[i], i % PROBLEMS), **PLANTED)) == MARKERS[i]
    assert server.post(**body).json()["choices"] == before
    until(lambda: server.service.load().adapters == 0)

    def freed() -> bool:
        gc.collect()
        return not [one for one in plant if one() is not None]

    assert plant
    until(freed)


@pytest.mark.usefixtures("plant")
def test_sixteen_answers_and_a_switch_do_not_lock_up(locked: Running) -> None:
    """SGLang #36894: unloading an adapter locked up after requests with n = 16."""
    body = {"model": "default", "messages": [{"role": "user", "content": problem_of(MARKERS[2], 2)}], **PLANTED}
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(locked.post, "/v1/chat/completions", "alice-key", **body, n=16) for _ in range(3)]
        switched = [
            locked.post("/v1/mass/default", "operator-key", model=m).status_code
            for m in (ADAPTING, "tiny-terms+second")
        ]
        found = [future.result(WAIT_S).json()["choices"] for future in asked]
    assert switched == [200, 200]
    assert [[c["message"]["content"] for c in choices] for choices in found] == [[MARKERS[2]] * 16] * 3
    assert locked.post("/v1/chat/completions", "bob-key", **body).status_code == 200


def test_switching_the_default_races_with_nothing(locked: Running) -> None:
    """dynamo #5184: loading and unloading raced, and requests failed or met the wrong weights."""
    body = {"model": "default", "messages": [{"role": "user", "content": PROBLEM}], "mass": {"adapt": "never"}}
    stop, names = threading.Event(), ("tiny-terms+second", ADAPTING, BASE)

    def switch() -> None:
        while not stop.is_set():
            for name in names:
                assert locked.post("/v1/mass/default", "operator-key", model=name).status_code == 200

    with ThreadPoolExecutor(5) as pool:
        switching = pool.submit(switch)
        found = list(pool.map(lambda _: locked.post("/v1/chat/completions", "alice-key", **body), range(40)))
        stop.set()
        switching.result(WAIT_S)
    assert {reply.status_code for reply in found} == {200}
    for reply in found:
        told = reply.json()
        assert told["model"] == told["mass"]["model"]
        checkpoint = told["mass"]["checkpoint"]
        assert (checkpoint or {}).get("name", "") == told["model"].partition("+")[2]
    locked.post("/v1/mass/default", "operator-key", model="tiny-terms+second")


def test_a_bad_adapter_fails_its_own_request_alone(
    server: Running, forcing: Forcing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM #4879: one adapter that could not be loaded failed all requests."""
    right = planted(forcing)

    def practised(course: Course, loops: Any) -> Any:
        record, adapter = right(course, loops)
        if course.seed == 1:
            raise RuntimeError("damaged")
        if course.seed == 2:
            adapter = {name: t[:1] for name, t in adapter.items()}  # of another shape
        if course.seed == 3:
            adapter = {}
        return record, adapter

    monkeypatch.setattr(answering, "practised", practised)

    def ask(seed: int) -> dict[str, Any]:
        return server.ask(problem_of(MARKERS[seed % 4], 1), **PLANTED, seed=seed % 4)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(16)))
    for index, reply in enumerate(found):
        if index % 4 == 0:
            assert text(reply) == MARKERS[0]
        else:
            assert reply["mass"]["fallback"] == "failed"
            assert text(reply) == text(
                server.ask(problem_of(MARKERS[index % 4], 1), mass={"adapt": "never"}, max_tokens=5)
            )


@pytest.mark.parametrize(
    "values",
    [
        {"model": "tiny-terms+none"},
        {"lora_path": "x"},
        {"adapter": "mass"},
        {"mass": {"adapter": "x"}},
        {"mass": "always"},
        {"model": BASE, "mass": {"adapt": "always"}},
    ],
)
def test_a_field_is_never_ignored_in_silence(server: Running, values: dict[str, Any]) -> None:
    """sglang-jax #1521: the field that chose the adapter was ignored, and the base answered."""
    body = {"model": ADAPTING, "messages": [{"role": "user", "content": PROBLEM}], **values}
    assert server.post(**body).status_code in (400, 404)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_rows(server: Running, stream: bool) -> None:
    """llama.cpp #24496, ATOM #1441: work went on for clients that had closed their connections."""
    until(lambda: not server.service._jobs)
    told = server.service.metrics.outcomes.labels(BASE, "plain")._value
    before = told.get()
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": BASE, "prompt": "1", "n": 16, "temperature": 2, "max_tokens": 1900, "stream": stream})
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        client.sendall((head + body).encode())
        until(lambda: server.service.load().running > 0)
    until(lambda: not server.service._jobs and server.service.load().running == 0)
    assert told.get() == before  # it was not answered to its end


def test_a_client_that_goes_away_ends_its_practice(
    server: Running, held: tuple[threading.Event, threading.Event]
) -> None:
    """The same while it practises: the lesson is cancelled before its inner loop runs."""
    asked, go = held

    async def leave() -> None:
        async with httpx2.AsyncClient(timeout=WAIT_S) as client:
            body = {"model": ADAPTING, "messages": [{"role": "user", "content": PROBLEM}], "mass": ALWAYS}
            asking = asyncio.ensure_future(client.post(f"{server.url}/v1/chat/completions", json=body))
            await asyncio.to_thread(asked.wait, WAIT_S)
            asking.cancel()
            await asyncio.wait({asking})

    asyncio.run(leave())
    until(lambda: not server.service._jobs)
    go.set()
    assert server.ask(model=BASE)


def test_no_route_goes_around_the_key(locked: Running) -> None:
    """vLLM #58144: a route beside the API was served without the key. Each route alone: test_keys.py."""
    for path in ("/v1/models/", "/v1//models", "/%76%31/models", "/metrics/", "/health/..%2fmetrics", "/openapi.json",
                 "/docs", "/redoc", "/health/", "/HEALTH", "/health%00"):  # fmt: skip
        for method in ("GET", "HEAD", "OPTIONS", "POST", "TRACE"):
            found = httpx2.request(method, f"{locked.url}{path}")
            assert found.status_code == 401, (method, path)
    host, port = locked.url.removeprefix("http://").split(":")
    for line in ("GET http://x/metrics HTTP/1.1", "GET /health/../metrics HTTP/1.1", "GET /metrics#/health HTTP/1.1"):
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
            client.sendall(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert b" 401 " in client.recv(64)
    assert KEYS["MASS_ADMIN_KEY"] not in httpx2.get(f"{locked.url}/v1/models").text


def test_a_request_without_an_identity_is_recorded_too(server: Running) -> None:
    """OpenClaw-RL #31: requests without an identity were skipped in silence."""
    first, second = (server.ask(mass=ALWAYS, seed=6) for _ in range(2))
    assert first["id"] != second["id"]
    for reply in (first, second):
        assert server.get(f"/v1/mass/adaptations/{reply['id']}").status_code == 200
    bare = httpx2.post(f"{server.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": PROBLEM}]},
                       headers={"x-request-id": "mine"}, timeout=WAIT_S)  # fmt: skip
    assert (bare.headers["x-request-id"], bare.headers["x-mass-id"]) == ("mine", bare.json()["id"])
    assert server.get("/health").headers["x-request-id"]
