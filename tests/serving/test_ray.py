"""Replicas on Ray: requests are spread over them, and one that is killed costs nobody an answer."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import openai
import pytest
from servers import ADAPTING, BASE, PROBLEM, WAIT_S, config, until

from mass.errors import ConfigError
from mass.model import Mass
from mass.serving import ray as on_ray
from mass.serving.keys import Keys
from mass.serving.loading import parts_of

QUESTION = [{"role": "user", "content": PROBLEM}]


def test_a_replica_loads_answers_and_ends(model: Mass, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray, by the part of ASGI that it speaks to a replica."""
    context = SimpleNamespace(replica_tag="r1")
    monkeypatch.setattr(on_ray, "_ray", lambda: (None, SimpleNamespace(get_replica_context=lambda: context)))
    app = on_ray.replica(config(records=str(tmp_path)), Keys(), lambda own: parts_of(model, {}, own))
    body = {"model": ADAPTING, "messages": QUESTION, "mass": {"adapt": "always"}}

    async def ask() -> list[httpx2.Response]:
        here = httpx2.ASGITransport(app=app)
        elsewhere = httpx2.ASGITransport(app=app, client=("192.0.2.7", 1))
        async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=here) as client:
            async with httpx2.AsyncClient(transport=elsewhere) as other:
                foreign = await other.get("http://localhost/v1/models")
            answer = await client.post("http://localhost/v1/chat/completions", json=body)
            kept = await client.get("http://localhost/v1/mass/adaptations")
            return [foreign, answer, kept]

    foreign, answer, kept = asyncio.run(ask())
    assert foreign.status_code == 403
    assert answer.json()["mass"]["adapted"]
    assert [one["id"] for one in kept.json()["data"]] == [answer.json()["mass"]["id"]]
    assert [path.name for path in tmp_path.iterdir()] == ["r1"]


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"needs the package 'ray'.*mass-adapt\[ray\]"):
        on_ray.application()


def replicas() -> list[int]:
    """Process ids of the replicas on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cmdline").read_bytes().startswith(b"ray::ServeReplica:default:mass"):
                found.append(int(folder.name))
    return found


def counts(records: Path) -> list[int]:
    """Records of each replica."""
    found = []
    for file in records.glob("*/records.sqlite3"):
        with closing(sqlite3.connect(file)) as db:
            found.append(db.execute("SELECT count(*) FROM adaptations").fetchone()[0])
    return found


def test_a_killed_replica_costs_nobody_an_answer(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    serve = importlib.import_module("ray.serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        serve.start(http_options={"port": port})
        serve.run(on_ray.application(BASE, config(records=str(tmp_path)), replicas=(2, 2)))
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=WAIT_S, max_retries=5)
        extra = {"mass": {"adapt": "always"}}

        def ask(_: int) -> bool:
            reply = client.chat.completions.create(model=ADAPTING, messages=QUESTION, extra_body=extra)  # type: ignore
            return reply.mass["adapted"]  # type: ignore

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(8)))
            assert min(counts(tmp_path)) > 0
            before = replicas()
            answers = [pool.submit(ask, number) for number in range(16)]
            until(lambda: any(answer.done() for answer in answers))
            os.kill(before[0], signal.SIGKILL)
            assert all(answer.result(WAIT_S) for answer in answers)
        until(lambda: len(replicas()) == 2 and before[0] not in replicas())
    finally:
        serve.shutdown()
        ray.shutdown()
