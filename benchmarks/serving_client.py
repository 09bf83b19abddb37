"""A `mass serve` of one's own on loopback, and clients that ask it: what the benchmarks of the server share."""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import httpx2

from mass.runs.folder import replace_text

MODEL = "tiny-terms"
CHAT = "/v1/chat/completions"
START_S = 300.0
REPLY_S = 600.0
STOP_S = 60.0
LOOK_S = 0.05
_ADDRESS = re.compile(r"serving .* at (http://\S+)/v1")
_SAMPLE = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    url: str
    pid: int
    ready_s: float
    """Seconds from the start of the process until it said that it serves."""


@dataclass
class Reply:
    """All that came back for one request."""

    status: int
    body: dict[str, Any]
    """The body of a reply; of a stream its last chunk with the field `mass`, or its error."""
    texts: list[str] = field(default_factory=list[str])
    logprobs: list[list[float]] = field(default_factory=list[list[float]])
    """Of each answer, where they were asked for."""
    seconds: float = 0.0
    whole: bool = True
    """False for a stream that ended before its end was told."""

    @property
    def mass(self) -> dict[str, Any]:
        return self.body.get("mass") or {}


@contextmanager
def served(*arguments: str, model: str = MODEL) -> Generator[Served, None, None]:
    """Serve a model on a free port while the block runs, in a process of its own that is stopped after it.

    Raises RuntimeError where it does not start, or where it does not end well: it checks the base's weights at its end.
    """
    command = [sys.executable, "-m", "mass", "serve", "--model", model, "--port", "0", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MASS_")}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or a benchmark that is stopped leaves its server behind
    with TemporaryFile("w+") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stderr=said, env=environment)
        try:
            url = _address(process, said)
            yield Served(url, process.pid, time.perf_counter() - began)
            process.terminate()
            if process.wait(STOP_S) != 0:
                raise RuntimeError(f"the server ended with {process.returncode}: {_all(said)}")
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], said: Any) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        if found := _ADDRESS.search(_all(said)):
            return found[1]
        time.sleep(LOOK_S)
    raise RuntimeError(f"the server did not start: {_all(said)}")


def _all(said: Any) -> str:
    return os.pread(said.fileno(), 1 << 20, 0).decode(errors="replace")


@asynccontextmanager
async def client_of(server: Served, connections: int) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """Yield a client with room for so many requests at once."""
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    async with httpx2.AsyncClient(base_url=server.url, timeout=REPLY_S, limits=limits) as client:
        yield client


async def ask(client: httpx2.AsyncClient, body: dict[str, Any], path: str = CHAT) -> Reply:
    """Ask once, as a stream or not, and return what came back."""
    began = time.perf_counter()
    reply = await (_streamed if body.get("stream") else _whole)(client, body, path)
    reply.seconds = time.perf_counter() - began
    return reply


async def _whole(client: httpx2.AsyncClient, body: dict[str, Any], path: str) -> Reply:
    found = await client.post(path, json=body)
    data = found.json()
    choices = data.get("choices", [])
    return Reply(found.status_code, data, [c["message"]["content"] for c in choices], [_logprobs(c) for c in choices])


async def _streamed(client: httpx2.AsyncClient, body: dict[str, Any], path: str) -> Reply:
    async with client.stream("POST", path, json=body) as found:
        if found.status_code != 200:
            return Reply(found.status_code, json.loads(await found.aread()))
        count = body.get("n", 1)
        reply = Reply(200, {}, [""] * count, [[] for _ in range(count)], whole=False)
        async for line in found.aiter_lines():
            if line == "data: [DONE]":
                reply.whole = True
            elif line.startswith("data: "):
                _add(reply, json.loads(line.removeprefix("data: ")))
        return reply


def _add(reply: Reply, chunk: dict[str, Any]) -> None:
    if "error" in chunk or "adapted" in (chunk.get("mass") or {}):
        reply.body = chunk
    for choice in chunk.get("choices", []):
        reply.texts[choice["index"]] += choice["delta"].get("content") or ""
        reply.logprobs[choice["index"]] += _logprobs(choice)


def _logprobs(choice: dict[str, Any]) -> list[float]:
    return [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or ()]


async def metrics(client: httpx2.AsyncClient) -> dict[str, float]:
    """Return the server's numbers, each summed over its labels."""
    found: dict[str, float] = {}
    for name, value in _SAMPLE.findall((await client.get("/metrics")).text):
        found[name] = found.get(name, 0.0) + float(value)
    return found


async def quiet(client: httpx2.AsyncClient) -> dict[str, float]:
    """Wait until the server has nothing to do, and return its numbers. Raises RuntimeError where that does not come."""
    end = time.monotonic() + STOP_S
    while time.monotonic() < end:
        now = await metrics(client)
        if now["mass_requests_running"] == now["mass_rows_running"] == now["mass_adapters"] == 0:
            return now
        await asyncio.sleep(LOOK_S)
    raise RuntimeError(f"nobody asks, and after {STOP_S:.0f} s the server is still busy: {now}")


def conversation(problem: str, model: str, **more: Any) -> dict[str, Any]:
    """Return the body of a request with one problem."""
    return {"model": model, "messages": [{"role": "user", "content": problem}], **more}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that is not below this share of all of them."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def machine() -> dict[str, Any]:
    """Return what a reader needs to know of the machine; the load is that before the measurement."""
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "niceness": os.nice(0),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def machine_sentence(about: dict[str, Any]) -> str:
    """Return the same as a sentence."""
    return (
        f"{about['cores']} cores, which the clients share with the server; load {about['load']:.1f} and niceness "
        f"{about['niceness']} at the start; {about['threads'] or 'all'} threads; Python {about['python']}, torch "
        f"{about['torch']}."
    )


def keep(folder: Path, name: str, data: dict[str, Any], shown: str) -> None:
    """Write NAME.json and NAME.md, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / f"{name}.json", json.dumps(data, indent=1) + "\n")
    replace_text(folder / f"{name}.md", shown + "\n")
