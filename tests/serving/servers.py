"""Start a server on loopback, in a thread of this process, and ask it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2

import mass
from mass.config import ServeConfig
from mass.serving import run
from mass.serving.keys import Keys
from mass.serving.loading import Parts, parts_of
from mass.serving.service import Service
from waiting import until as until

BASE, ADAPTING = "tiny-terms", "tiny-terms+mass"
PROBLEM = "Find the malk of the vector (9, 7)."
KEYS = {"MASS_API_KEY": "alice-key,bob-key", "MASS_ADMIN_KEY": "operator-key"}
WAIT_S = 120.0
"""How long a test waits for what must happen; no test waits for what must not."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    service: Service
    parts: Parts
    loop: asyncio.AbstractEventLoop

    def post(self, path: str = "/v1/chat/completions", key: str | None = None, **body: Any) -> httpx2.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.post(f"{self.url}{path}", json=body, headers=headers, timeout=WAIT_S)

    def get(self, path: str, key: str | None = None) -> httpx2.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.get(f"{self.url}{path}", headers=headers, timeout=WAIT_S)

    def ask(self, problem: str = PROBLEM, model: str = ADAPTING, **body: Any) -> dict[str, Any]:
        """Ask one problem; returns the whole reply."""
        found = self.post(model=model, messages=[{"role": "user", "content": problem}], **body)
        assert found.status_code == 200, found.text
        return found.json()


@contextmanager
def serving(
    model: mass.model.Mass, config: ServeConfig, keys: Keys | None = None, folders: dict[str, str] | None = None
) -> Generator[Running, None, None]:
    """Serve a loaded model while the block runs."""
    ready, failed, servers, found = threading.Event(), list[BaseException](), list[run.Server](), list[Any]()
    bound = run.listen(config)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"

    def told(parts: Parts, service: Service) -> None:
        found.extend([service, parts, asyncio.get_running_loop()])
        ready.set()

    def work() -> None:
        try:
            run.serve(
                config, keys or Keys(), bound, lambda: parts_of(model, folders or {}, config), told, servers.append
            )
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        if failed:
            raise failed[0]
        yield Running(url, *found)
    finally:
        servers[0].should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


def config(**values: Any) -> ServeConfig:
    """Return settings for a server of a test, on any free port."""
    return ServeConfig(port=0, **{"drain_s": 5.0, **values})
