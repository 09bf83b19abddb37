"""YAML file + dotted overrides -> one frozen dataclass per stage. A string under each field says what it means.

The resolved configuration is saved with every run and hashed into every record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from mass.config.adapt import (
    STEP_PATTERN,
    AdaptConfig,
    InnerConfig,
    PracticeConfig,
    SamplingConfig,
    ScoringConfig,
    SynthesisConfig,
    VerifyConfig,
)
from mass.config.engine import EngineConfig
from mass.config.evaluate import EvalConfig
from mass.config.examples import ExamplesConfig
from mass.config.gate import GateConfig
from mass.config.model import LoraConfig, ModelConfig
from mass.config.serve import ServeConfig
from mass.config.train import AtTestConfig, OuterConfig, RunConfig, TasksConfig, TrainConfig, at_test

__all__ = [
    "STEP_PATTERN",
    "AdaptConfig",
    "AtTestConfig",
    "EngineConfig",
    "EvalConfig",
    "ExamplesConfig",
    "GateConfig",
    "InnerConfig",
    "LoraConfig",
    "ModelConfig",
    "OuterConfig",
    "PracticeConfig",
    "RunConfig",
    "SamplingConfig",
    "ScoringConfig",
    "ServeConfig",
    "SynthesisConfig",
    "TasksConfig",
    "TrainConfig",
    "VerifyConfig",
    "at_test",
    "config_hash",
    "to_dict",
]


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: Any) -> str:
    """First 12 hex digits of the SHA-256 of the configuration's canonical JSON."""
    data = config if isinstance(config, dict) else to_dict(config)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]
