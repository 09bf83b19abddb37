"""Run the command line in process, as the user's arguments and what they see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mass.cli.main import main


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Run = Callable[..., Ran]

SHORT = (
    "--adapt.synthesis.examples=2",
    "--adapt.synthesis.sampling.max_tokens=8",
    "--adapt.answer.max_tokens=8",
)
"""A random model has nothing to say; let it say little."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def fails(run: Run) -> Callable[..., str]:
    """Run a command that must fail with one line on standard error and code 2; returns that line."""

    def fails(*arguments: str | Path) -> str:
        ran = run(*arguments)
        assert ran.code == 2, ran
        assert ran.out == ""
        assert ran.err.count("\n") == 1, ran.err
        assert ran.err.startswith("error: ")
        return ran.err.strip()

    return fails


@pytest.fixture
def solve(run: Run, tiny_base: Path) -> Run:
    """`mass solve` with the random model, untrained."""
    return lambda *arguments: run("solve", *arguments, "--model", tiny_base, *SHORT)


@pytest.fixture
def checkpoint(tiny_base: Path, tmp_path: Path) -> Path:
    """An untrained checkpoint of the random model, configured for 3 inner steps and little text."""
    from mass.adaptation.checkpoint import init_state, save
    from mass.config import AdaptConfig, InnerConfig, LoraConfig, ModelConfig, SamplingConfig, SynthesisConfig
    from mass.lm import load_lm

    lm = load_lm(ModelConfig(name=str(tiny_base)), LoraConfig(rank=2, alpha=4.0))
    short = SamplingConfig(max_tokens=8)
    adapt = AdaptConfig(SynthesisConfig(examples=2, sampling=short), inner=InnerConfig(steps=3), answer=short)
    save(tmp_path / "checkpoint", lm, init_state(lm, adapt, 0), adapt, "mass", 1)
    return tmp_path / "checkpoint"
