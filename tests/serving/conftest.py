"""Servers that several test files ask, each started once."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from servers import BASE, KEYS, WAIT_S, Running, config, serving

import mass
from mass.serving.keys import keys_of


@pytest.fixture(scope="session")
def model() -> mass.model.Mass:
    """The shipped model with its checkpoint."""
    return mass.load(BASE)


@pytest.fixture(scope="session")
def judged(model: mass.model.Mass) -> mass.model.Mass:
    """The same, which practises on every problem, and judges each update as the server does."""
    return replace(model, config=replace(model.config, gate=replace(model.config.gate, enabled=True, certainty=None)))


@pytest.fixture(scope="session")
def server(model: mass.model.Mass, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running, None, None]:
    """A server without keys, with records."""
    with serving(model, config(records=str(tmp_path_factory.mktemp("records")))) as running:
        yield running


@pytest.fixture(scope="session")
def locked(model: mass.model.Mass, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running, None, None]:
    """A server with two clients and an operator, with records and two checkpoints."""
    settings = config(records=str(tmp_path_factory.mktemp("locked")))
    folder = Path(model.checkpoint or "")
    with serving(model, settings, keys_of(settings, KEYS), {"second": str(folder)}) as running:
        yield running


@pytest.fixture
def held(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> Generator[tuple[threading.Event, threading.Event], None, None]:
    """Two events: set when an inner loop has been asked for; set by the test to let it run."""
    asked, go = threading.Event(), threading.Event()
    loops = server.service._shop.loops
    right = loops.learn

    def learn(*arguments: Any) -> Any:
        asked.set()
        assert go.wait(WAIT_S)
        return right(*arguments)

    monkeypatch.setattr(loops, "learn", learn)
    yield asked, go
    go.set()
