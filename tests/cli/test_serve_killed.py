"""`kill -9` of `mass serve` while it adapts and writes records."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serve_process import WAIT_S, started

from mass.serving.records import FILE, MOST, Records

KILLS, CLIENTS = int(os.environ.get("MASS_KILLS", "3")), 6
"""Each kill costs a start of the server, of several seconds: MASS_KILLS=20 makes the test thorough."""
LATEST_S = 2.0
"""A server is killed at most so many seconds after its first request."""
PROBLEM = "Find the malk of the vector ({}, 7)."


def ask(address: str, index: int) -> dict[str, Any]:
    """Ask for an adapted answer to problem number `index`. Raises HTTPError where the server is gone."""
    body = {
        "messages": [{"role": "user", "content": PROBLEM.format(index)}],
        "mass": {"adapt": "always", "seed": 0, "include": ["practice"]},
    }
    reply = httpx2.post(f"{address}/v1/chat/completions", json=body, timeout=WAIT_S)
    assert reply.status_code == 200, reply.text
    return reply.json()


def ask_until_gone(address: str, client: int, told: list[tuple[int, dict[str, Any]]], running: threading.Event) -> None:
    """Ask one problem after another until the server is gone, and note what it answered."""
    for index in range(client, 1000, CLIENTS):
        running.set()
        try:
            told.append((index, ask(address, index)))
        except httpx2.HTTPError:
            return


def killed_under_load(folder: Path, rng: random.Random) -> list[tuple[int, dict[str, Any]]]:
    """Start a server, kill it while clients ask, and return what it answered, the first answer alone."""
    told, running = list[tuple[int, dict[str, Any]]](), threading.Event()
    with started("--records", str(folder)) as (process, address), ThreadPoolExecutor(CLIENTS) as pool:
        told.append((0, ask(address, 0)))
        asking = [pool.submit(ask_until_gone, address, client, told, running) for client in range(CLIENTS)]
        assert running.wait(WAIT_S)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.0, LATEST_S))
        process.send_signal(signal.SIGKILL)
        assert process.wait(WAIT_S) == -signal.SIGKILL
        for one in asking:
            one.result(WAIT_S)
    return told


def require_whole(folder: Path, told: list[tuple[int, dict[str, Any]]]) -> None:
    """Require that the database opens, that each record is whole, and that what was answered is recorded."""
    db = sqlite3.connect(folder / FILE)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    problems = {PROBLEM.format(index) for index in range(1000)}
    with Records(folder) as records:
        for one in records.list(owner=None, limit=MOST).entries:
            kept = records.get(one.id, owner=None)
            assert kept is not None
            assert kept.record.problem in problems
            assert kept.record.examples or kept.record.fallback
            assert kept.extra["texts"][0].strip() == kept.record.text
        for index, reply in told:
            kept = records.get(reply["id"], owner=None)
            assert kept is not None
            assert kept.record.problem == PROBLEM.format(index)
            assert kept.record.text == reply["choices"][0]["message"]["content"]
            assert [e.text for e in kept.record.examples] == [e["text"] for e in reply["mass"]["practice"]]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.timeout(1800)
def test_kills_cost_no_record_and_no_start(tmp_path: Path) -> None:
    rng, first = random.Random(), list[str]()
    for _ in range(KILLS):
        told = killed_under_load(tmp_path, rng)
        first.append(told[0][1]["choices"][0]["message"]["content"])
        require_whole(tmp_path, told)
    assert set(first) == {first[0]}, "each start answers as the one before"
