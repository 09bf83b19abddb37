"""Loggers of a training run: TensorBoard, trackio and Weights & Biases, each through its own library.

`metrics.jsonl` in the run's folder is always written. A logger is a callback of `mass.train` beside it that is closed
when the run ends:

    with open_loggers(["tensorboard"], "runs/first", config) as loggers:
        mass.train(config, "runs/first", callbacks=loggers)
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from mass.config import RunConfig, to_dict
from mass.errors import ConfigError, nearest

PROJECT = "mass"
"""The project that a run is filed under at trackio and Weights & Biases; their own variables name another."""


class Logger(Protocol):
    """Receives the metrics of each step, in their order, and is closed once."""

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Log the metrics of the step `metrics["step"]`."""
        ...

    def close(self) -> None:
        """Write out what is still held."""
        ...


class TensorBoard:
    """Event files in the folder `tensorboard` of the run; `tensorboard --logdir RUN` shows them."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        library = _library("tensorboard", "torch.utils.tensorboard")
        self._writer = library.SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("config", "```json\n" + _json(config) + "\n```")

    def __call__(self, metrics: Mapping[str, float]) -> None:
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A run of trackio, named after the folder; `trackio show` shows it."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._library = _library("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._library.init(project=project, name=folder.name, config=to_dict(config), resume="allow", embed=False)

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self._library.log(_numbers(metrics), step=int(metrics["step"]))

    def close(self) -> None:
        self._library.finish()


class WeightsAndBiases:
    """A run of Weights & Biases in the run's folder: offline unless WANDB_MODE says otherwise; see `wandb sync`."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        library = _library("wandb")
        self._run = library.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            dir=str(folder),
            config=to_dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=library.Settings(silent=True, console="off"),
        )

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self._run.log(_numbers(metrics), step=int(metrics["step"]))

    def close(self) -> None:
        self._run.finish()


LOGGERS: Mapping[str, Callable[[Path, RunConfig], Logger]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
}


def check_loggers(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that is not a logger, or one whose library is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(f"{name!r} is not a logger{nearest(name, LOGGERS)}")
        _library(name)


@contextmanager
def open_loggers(
    names: Sequence[str], folder: str | Path, config: RunConfig
) -> Generator[list[Callable[[Mapping[str, float]], None]], None, None]:
    """The loggers of these names for a run in `folder`, as callbacks; closed at the end of the block.

    Each is opened with the first metrics, when the run has made its folder. Raises ConfigError as `check_loggers` does.
    """
    check_loggers(names)
    found = [_Late(LOGGERS[name], Path(folder), config) for name in names]
    with ExitStack() as stack:
        for logger in found:
            stack.callback(logger.close)
        yield [*found]


class _Late:
    """A logger that is opened when there is something to log."""

    def __init__(self, make: Callable[[Path, RunConfig], Logger], folder: Path, config: RunConfig) -> None:
        self._make = lambda: make(folder, config)
        self._logger: Logger | None = None

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self._logger = self._logger or self._make()
        self._logger(metrics)

    def close(self) -> None:
        if self._logger is not None:
            self._logger.close()


def _library(name: str, module: str = "") -> Any:
    try:
        importlib.import_module(name)
        return importlib.import_module(module or name)
    except ImportError as error:
        raise ConfigError(
            f"the logger {name!r} needs a package that is not installed ({error}); install it: "
            f"pip install 'mass-adapt[{name}]'"
        ) from error


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "step" and isinstance(value, int | float)}


def _json(config: RunConfig) -> str:
    return json.dumps(to_dict(config), indent=1)
