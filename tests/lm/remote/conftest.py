"""A stand-in for a vLLM server, and a model that samples through it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_stand_in import StandIn

from mass.config import EngineConfig
from mass.lm import LM
from mass.lm.remote.connect import sample_at_server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries are a thousandth."""
    monkeypatch.setattr("mass.lm.remote.transport.FIRST_WAIT_S", 5e-4)


@pytest.fixture
def server(taught_base: Path) -> Iterator[StandIn]:
    with StandIn(taught_base, str(taught_base)) as running:
        yield running


@pytest.fixture
def engine_config(server: StandIn, tmp_path: Path) -> EngineConfig:
    (tmp_path / "adapters").mkdir()
    return EngineConfig(url=server.url, lora_dir=str(tmp_path / "adapters"), check=False, timeout_s=20.0)


@pytest.fixture
def remote(lm: LM, engine_config: EngineConfig) -> Callable[..., LM]:
    """`lm`, but sampling at the server, with changes to the engine's configuration."""

    def connect(**changes: Any) -> LM:
        there = copy.copy(lm)
        sample_at_server(there, dataclasses.replace(engine_config, **changes))
        return there

    return connect
