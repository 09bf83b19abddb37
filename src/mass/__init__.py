"""MASS: a language model practises on the one problem in front of it, then answers (arXiv 2603.03524).

    import mass
    model = mass.load()
    print(model.solve("Find the malk of the vector (9, 7).").text)

Names are loaded when they are first used, so `import mass` is immediate and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mass import tasks as tasks
    from mass import verify as verify
    from mass.config import AdaptConfig as AdaptConfig
    from mass.config import EvalConfig as EvalConfig
    from mass.config import RunConfig as RunConfig
    from mass.evaluation.evaluate import evaluate as evaluate
    from mass.model import AdaptedModel as AdaptedModel
    from mass.model import Mass as Mass
    from mass.model import load as load
    from mass.training.trainer import train as train
    from mass.types import Adaptation as Adaptation
    from mass.types import Example as Example
    from mass.types import Solution as Solution
    from mass.types import Task as Task
    from mass.types import Verdict as Verdict

__version__ = "0.1.0"

_HOMES = {
    "load": "mass.model",
    "Mass": "mass.model",
    "AdaptedModel": "mass.model",
    "train": "mass.training.trainer",
    "RunConfig": "mass.config",
    "AdaptConfig": "mass.config",
    "EvalConfig": "mass.config",
    "evaluate": "mass.evaluation.evaluate",
    "Adaptation": "mass.types",
    "Example": "mass.types",
    "Solution": "mass.types",
    "Task": "mass.types",
    "Verdict": "mass.types",
}
_MODULES = ("tasks", "verify", "inner")

__all__ = [
    "AdaptConfig",
    "Adaptation",
    "AdaptedModel",
    "EvalConfig",
    "Example",
    "Mass",
    "RunConfig",
    "Solution",
    "Task",
    "Verdict",
    "evaluate",
    "load",
    "tasks",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"mass.{name}")
    raise AttributeError(f"module 'mass' has no attribute {name!r}")
