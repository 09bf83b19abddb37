"""Loggers of a training, each at the boundary of its own library, and a run that is logged while it trains."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mass.cli.main import main
from mass.config import RunConfig
from mass.errors import ConfigError
from mass.training.loggers import open_loggers

METRICS = {"step": 3, "loss": 0.5, "eval/mass/accuracy": 0.25}


class Library(ModuleType):
    """Notes what it is called with, and can be imported by a name."""

    def __init__(self, name: str, calls: list[tuple[str, Any]]) -> None:
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*given: Any, **named: Any) -> Library:
            self.calls.append((name, (*given, *named.items())))
            return self

        return called


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name in ("trackio", "wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, Library(name, found))
    return found


@pytest.mark.parametrize(("name", "logs"), [("trackio", "log"), ("wandb", "log"), ("tensorboard", "add_scalar")])
def test_each_logger_gets_the_numbers_of_a_step_and_is_closed(
    name: str, logs: str, calls: list[tuple[str, Any]], tmp_path: Path
) -> None:
    with open_loggers([name], tmp_path, RunConfig()) as (logger,):
        assert calls == []  # nothing is written before the run has its folder
        logger(METRICS)
        logger({**METRICS, "step": 4, "loss": None})
    logged = [given for called, given in calls if called == logs]
    values = {"loss": 0.5, "eval/mass/accuracy": 0.25}
    if name == "tensorboard":
        assert logged[:2] == [(key, value, 3) for key, value in values.items()]
        assert logged[2:] == [("eval/mass/accuracy", 0.25, 4)]
    else:
        assert logged == [(values, ("step", 3)), ({"eval/mass/accuracy": 0.25}, ("step", 4))]
    assert calls[-1][0] == ("close" if name == "tensorboard" else "finish")


def test_one_that_is_unknown_or_not_installed_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(ConfigError, match=r"'tensorbord' is not a logger.*tensorboard"),
        open_loggers(["tensorbord"], tmp_path, RunConfig()),
    ):
        pass
    monkeypatch.setitem(sys.modules, "wandb", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'mass-adapt\[wandb\]'"),
        open_loggers(["wandb"], tmp_path, RunConfig()),
    ):
        pass


def test_a_training_of_the_command_line_logs_every_step(
    calls: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mass.training import trainer

    def train(config: RunConfig, out: Path, resume: bool, callbacks: list[Any]) -> None:
        del config, resume
        out.mkdir()
        (out / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        (out / "config.json").write_text("{}")
        step: Mapping[str, float] = {"step": 1, "loss": 2.0}
        for callback in callbacks:
            callback(step)

    monkeypatch.setattr(trainer, "train", train)
    assert main(["train", "--out", str(tmp_path / "run"), "--log", "wandb,trackio"]) == 0
    assert [given for called, given in calls if called == "log"] == [({"loss": 2.0}, ("step", 1))] * 2
    assert main(["train", "--out", str(tmp_path / "run"), "--log", "tensorbord"]) == 2
