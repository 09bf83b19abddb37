"""Examples of requests: learned once for a client, kept within bounds, and nobody else's."""

from __future__ import annotations

import asyncio
import threading
import weakref
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import torch
from servers import ADAPTING, BASE, WAIT_S, Running, until

from mass.config import ExamplesConfig, ServeConfig
from mass.lm.continuous import check_cancelled
from mass.model import Mass
from mass.serving.learned import ExamplesKey, LearnedExamples

PAIRS = [["2 + 3", "5"], ["4 + 1", "5"], ["3 + 3", "6"], ["1 + 1", "2"]]


def turns(pairs: list[list[str]], question: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    shots = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return [*shots, {"role": "user", "content": question}]


def ask(server: Running, key: str | None, question: str, pairs: list[list[str]] = PAIRS, **more: Any) -> dict[str, Any]:
    body = {"model": ADAPTING, "messages": turns(pairs, question), "mass": {"examples": "messages"}, **more}
    found = server.post("/v1/chat/completions", key, **body)
    assert found.status_code == 200, found.text
    return found.json()


def learned(server: Running, key: str) -> list[str]:
    return [one["id"] for one in server.get("/v1/mass/examples", key).json()["data"]]


@pytest.fixture
def counted(locked: Running, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of every call that learns examples."""
    calls, right = list[Any](), Mass.adapt

    def adapt(self: Mass, examples: Any, **more: Any) -> Any:
        calls.append(tuple(examples))
        # How they are used is chosen elsewhere (tests/adaptation), in more time.
        return right(self, examples, **{**more, "config": ExamplesConfig(method="adapted", epochs=(1,))})

    monkeypatch.setattr(Mass, "adapt", adapt)
    locked.loop.call_soon_threadsafe(locked.service.learned.clear)
    return calls


def test_examples_are_learned_once_for_each_client(locked: Running, counted: list[Any]) -> None:
    first = ask(locked, "alice-key", "2 + 2")["mass"]
    assert first["adapted"]
    assert first["examples"] == learned(locked, "alice-key")[0]
    again = ask(locked, "alice-key", "5 + 1")["mass"]
    assert again["examples"] == first["examples"]
    assert len(counted) == 1
    assert "learning examples" not in again["seconds"]
    assert learned(locked, "bob-key") == []
    other = ask(locked, "bob-key", "2 + 2")["mass"]
    assert other["examples"] != first["examples"]
    assert len(counted) == 2
    assert ask(locked, "alice-key", "2 + 2", PAIRS[:3])["mass"]["examples"] != first["examples"]


def test_examples_given_as_a_list_are_the_same(locked: Running, counted: list[Any]) -> None:
    first = ask(locked, "alice-key", "2 + 2")
    body = {"model": ADAPTING, "messages": turns([], "2 + 2"), "mass": {"examples": PAIRS}}
    again = locked.post("/v1/chat/completions", "alice-key", **body).json()
    assert again["mass"]["examples"] == first["mass"]["examples"]
    assert again["choices"] == first["choices"]
    assert len(counted) == 1


def test_requests_that_come_meanwhile_wait_for_the_same(locked: Running, counted: list[Any]) -> None:
    async def ask_all() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(timeout=WAIT_S, headers={"Authorization": "Bearer alice-key"}) as client:
            bodies = [
                {"model": ADAPTING, "messages": turns(PAIRS, f"{i} + 2"), "mass": {"examples": "messages"}}
                for i in range(4)
            ]
            return list(
                await asyncio.gather(*(client.post(f"{locked.url}/v1/chat/completions", json=b) for b in bodies))
            )

    found = [reply.json()["mass"] for reply in asyncio.run(ask_all())]
    assert all(one["adapted"] for one in found)
    assert len({one["examples"] for one in found}) == 1
    assert len(counted) == 1


def test_a_client_deletes_its_own_alone(locked: Running, counted: list[Any]) -> None:
    id = ask(locked, "alice-key", "2 + 2")["mass"]["examples"]
    path, headers = f"{locked.url}/v1/mass/examples/{id}", {"Authorization": "Bearer bob-key"}
    assert httpx2.delete(path, headers=headers).status_code == 404
    assert learned(locked, "alice-key") == [id]
    assert learned(locked, "operator-key") == [id]
    assert httpx2.delete(path, headers={"Authorization": "Bearer alice-key"}).json()["deleted"]
    assert learned(locked, "alice-key") == []
    assert ask(locked, "alice-key", "2 + 2")["mass"]["examples"] != id
    assert len(counted) == 2


def test_examples_that_cannot_be_learned_are_shown(locked: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError

    locked.loop.call_soon_threadsafe(locked.service.learned.clear)
    monkeypatch.setattr(Mass, "adapt", fail)
    found = ask(locked, "alice-key", "2 + 2")
    assert (found["mass"]["adapted"], found["mass"]["fallback"]) == (False, "failed")
    shown = locked.post("/v1/chat/completions", "alice-key", model=ADAPTING, messages=turns(PAIRS, "2 + 2"),
                        mass={"adapt": "never"})  # fmt: skip
    assert shown.json()["choices"] == found["choices"]
    assert learned(locked, "alice-key") == []


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"model": BASE}, "mass.examples"),
        ({"mass": {"examples": "messages", "adapt": "never"}}, "mass.examples"),
        ({"mass": {"examples": "messages", "steps": 2}}, "mass.steps"),
    ],
)
def test_examples_are_not_ignored_in_silence(server: Running, values: dict[str, Any], param: str) -> None:
    body = {"model": ADAPTING, "messages": turns(PAIRS, "2 + 2"), "mass": {"examples": "messages"}, **values}
    found = server.post(**body)
    assert (found.status_code, found.json()["error"]["param"]) == (400, param)


def test_answers_by_examples_are_recorded_and_replayed(locked: Running, counted: list[Any]) -> None:
    reply = ask(locked, "alice-key", "2 + 2")
    path = f"/v1/mass/adaptations/{reply['id']}"
    found = locked.get(path, "alice-key").json()
    assert found["adapted"]
    assert found["record"]["text"] == reply["choices"][0]["message"]["content"]
    again = locked.post(f"{path}/replay", "alice-key").json()
    assert (again["same"], again["text"]) == (True, found["record"]["text"])
    assert len(counted) == 2


def test_the_unadapted_answer_after_learning_failed_is_recorded(
    locked: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError

    locked.loop.call_soon_threadsafe(locked.service.learned.clear)
    monkeypatch.setattr(Mass, "adapt", fail)
    path = f"/v1/mass/adaptations/{ask(locked, 'alice-key', '2 + 2')['id']}"
    assert locked.get(path, "alice-key").json()["fallback"] == "failed"
    assert locked.post(f"{path}/replay", "alice-key").json()["same"]


def test_learning_goes_on_without_the_request_that_began_it(
    locked: Running, counted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, right = threading.Event(), threading.Event(), Mass.adapt

    def adapt(self: Mass, *arguments: Any, **more: Any) -> Any:
        begun.set()
        assert go.wait(WAIT_S)
        check_cancelled()  # as all sampling does
        return right(self, *arguments, **more)

    monkeypatch.setattr(Mass, "adapt", adapt)
    jobs = locked.service._jobs
    body = {"model": ADAPTING, "messages": turns(PAIRS, "2 + 2"), "mass": {"examples": "messages"}}

    async def ask_twice() -> httpx2.Response:
        async with httpx2.AsyncClient(timeout=WAIT_S, headers={"Authorization": "Bearer alice-key"}) as client:
            first = asyncio.ensure_future(client.post(f"{locked.url}/v1/chat/completions", json=body))
            await asyncio.to_thread(begun.wait, WAIT_S)
            second = asyncio.ensure_future(client.post(f"{locked.url}/v1/chat/completions", json=body))
            (learning,) = locked.service.learned._learning.values()
            await asyncio.to_thread(until, lambda: learning.waiting == 2)
            first.cancel()
            await asyncio.to_thread(until, lambda: len(jobs) == 1)
            go.set()
            return await second

    assert asyncio.run(ask_twice()).json()["mass"]["adapted"]
    assert len(counted) == 1


def test_learning_examples_keeps_no_thread_from_practising(locked: Running) -> None:
    assert locked.service._shop.learning is not locked.service._shop.threads
    assert locked.service._shop.learning._max_workers == 1  # a set at a time


# --- the cache alone


@dataclass
class Cache:
    """A cache with a clock of its own, whose learning is an adapter of so many bytes."""

    kept: LearnedExamples
    now: list[float] = field(default_factory=lambda: [0.0])

    async def learn(self, owner: str, name: str, size: int = 400) -> str:
        async def make() -> Any:
            return SimpleNamespace(adapter={"a": torch.zeros(size // 4)}, choice=None)

        return (await self.kept.learn(ExamplesKey(owner, "h", name), "m", make)).id

    def has(self, owner: str, name: str) -> bool:
        return self.kept.find(ExamplesKey(owner, "h", name)) is not None


def cache(**values: Any) -> Cache:
    now = [0.0]
    return Cache(LearnedExamples(ServeConfig(**values), lambda: now[0]), now)


def test_the_one_that_was_not_used_longest_goes_first() -> None:
    one = cache(learned_sets=2)

    async def use() -> None:
        await one.learn("a", "1")
        await one.learn("a", "2")
        assert one.has("a", "1")
        await one.learn("a", "3")

    asyncio.run(use())
    assert [one.has("a", n) for n in "123"] == [True, False, True]


def test_memory_is_bounded_and_what_alone_is_too_large_is_not_kept() -> None:
    one = cache(learned_mb=0.001)

    async def use() -> None:
        await one.learn("a", "1")
        await one.learn("a", "2")
        await one.learn("a", "3")
        await one.learn("a", "large", 4000)

    asyncio.run(use())
    assert [one.has("a", n) for n in ("1", "2", "3", "large")] == [False, True, True, False]


def test_what_is_not_used_expires() -> None:
    one = cache(learned_minutes=1.0)
    asyncio.run(one.learn("a", "1"))
    one.now[0] = 59.0
    assert one.has("a", "1")
    one.now[0] = 118.0
    assert one.has("a", "1")
    one.now[0] = 179.0
    assert not one.has("a", "1")
    assert one.kept.of_owner(None) == []


def test_what_has_expired_is_freed_though_nobody_asks() -> None:
    one = cache(learned_minutes=1.0)
    asyncio.run(one.learn("a", "1"))
    (kept,) = (weakref.ref(found.model.adapter["a"]) for found in one.kept.of_owner(None))
    one.now[0] = 61.0
    one.kept.expire()
    assert kept() is None


def test_learning_is_cancelled_with_the_last_request_that_waits() -> None:
    one = cache()

    async def use() -> list[bool]:
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def slow() -> Any:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        key = ExamplesKey("a", "h", "1")
        waiting = [asyncio.ensure_future(one.kept.learn(key, "m", slow)) for _ in range(2)]
        await begun.wait()
        waiting[0].cancel()
        await asyncio.wait({waiting[0]})
        first = cancelled.is_set()
        waiting[1].cancel()
        await cancelled.wait()
        return [first, cancelled.is_set()]

    assert asyncio.run(use()) == [False, True]
    assert not one.has("a", "1")


def test_a_request_that_comes_as_learning_is_given_up_learns_anew() -> None:
    one = cache()

    async def use() -> str:
        begun = asyncio.Event()

        async def endless() -> Any:
            begun.set()
            await asyncio.Event().wait()

        async def quick() -> Any:
            return SimpleNamespace(adapter={"a": torch.zeros(4)}, choice=None)

        key = ExamplesKey("a", "h", "1")
        first = asyncio.ensure_future(one.kept.learn(key, "m", endless))
        await begun.wait()
        # Both in one turn of the loop: the learning that is given up has not ended when the next request comes.
        first.cancel()
        second = asyncio.ensure_future(one.kept.learn(key, "m", quick))
        return (await second).id

    assert asyncio.run(use()).startswith("examples-")
    assert one.has("a", "1")
