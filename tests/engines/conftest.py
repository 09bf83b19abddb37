"""A stand-in for a vLLM server, and a model that samples through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_stand_in import StandIn
from mass.config import EngineConfig, LoraConfig, ModelConfig
from mass.lm import LM, load_lm

LORA = LoraConfig(rank=2, alpha=4.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries are a thousandth."""
    monkeypatch.setattr("mass.engines.transport.FIRST_WAIT_S", 5e-4)


@pytest.fixture
def server(taught_base: Path) -> Iterator[StandIn]:
    with StandIn(taught_base, str(taught_base)) as running:
        yield running


@pytest.fixture
def engine_config(server: StandIn, tmp_path: Path) -> EngineConfig:
    (tmp_path / "adapters").mkdir()
    return EngineConfig(url=server.url, lora_dir=str(tmp_path / "adapters"), check=False, timeout_s=20.0)


@pytest.fixture
def remote(taught_base: Path, engine_config: EngineConfig) -> Callable[..., LM]:
    """The model that samples at the server, with changes to the engine's configuration."""

    def load(lora: LoraConfig = LORA, **changes: Any) -> LM:
        engine = dataclasses.replace(engine_config, **changes)
        return load_lm(ModelConfig(name=str(taught_base), engine=engine), lora)

    return load
