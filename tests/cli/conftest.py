"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def checkpoint(tiny_base: Path, tmp_path: Path) -> Path:
    """An untrained checkpoint of the random model, configured for 3 inner steps and little text."""
    from mass.adaptation.checkpoint import init_state, save
    from mass.config import AdaptConfig, InnerConfig, LoraConfig, ModelConfig, SamplingConfig, SynthesisConfig
    from mass.lm import load_lm

    lm = load_lm(ModelConfig(name=str(tiny_base)), LoraConfig(r=2, lora_alpha=4.0))
    short = SamplingConfig(max_new_tokens=8)
    adapt = AdaptConfig(SynthesisConfig(examples=2, sampling=short), inner=InnerConfig(steps=3), answer=short)
    save(tmp_path / "checkpoint", lm, init_state(lm, adapt, 0), adapt, "mass", 1)
    return tmp_path / "checkpoint"
