"""Register the model class `mass` with lm_eval, and run lm_eval's own command."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mass.errors import ConfigError

if TYPE_CHECKING:
    from mass.evaluation.lm_eval.requests import AsksText

NAME = "mass"
NEEDS_LM_EVAL = "lm-evaluation-harness is not installed; install it with `pip install 'mass-adapt[eval]'`"


def register() -> type[Any]:
    """Make `mass` a model of lm_eval, and return its class. A second call changes nothing.

    The harness's `evaluate` is wrapped too: it hands its tasks to a model of this class before it asks. That is how a
    document's own text is separated from the examples around it (docs/adr/0012 gives the reasons).

    Raises:
        ConfigError: lm_eval is not installed.
    """
    api, registry = _library("lm_eval.api.model"), _library("lm_eval.api.registry")
    _library("lm_eval.models")
    from mass.evaluation.lm_eval.model import MassModel

    known = registry.model_registry.get(NAME, None)
    if known is not None:
        return known
    made = type("MassLM", (MassModel, api.LM), {"__doc__": MassModel.__doc__, "__module__": __name__})
    registry.register_model(NAME)(made)
    _hand_over_tasks(_library("lm_eval.evaluator"))
    return made


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        raise ConfigError(NEEDS_LM_EVAL) from None


def _hand_over_tasks(evaluator: Any) -> None:
    from mass.evaluation.lm_eval.model import MassModel

    asked = evaluator.evaluate

    @functools.wraps(asked)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        lm = kwargs.get("lm", args[0] if args else None)
        inner = vars(lm).get("lm", lm)  # the harness's cache of answers wraps the model
        if isinstance(inner, MassModel):
            inner.tasks = tasks_of(kwargs.get("task_dict", args[1] if len(args) > 1 else {}))
        return asked(*args, **kwargs)

    evaluator.evaluate = evaluate


def tasks_of(tree: Mapping[Any, Any]) -> dict[str, AsksText]:
    """Return the tasks in the harness's tree of groups, by the names that their requests have."""
    found: dict[str, AsksText] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= tasks_of(value)
        elif hasattr(value, "doc_to_text"):
            found[str(getattr(value.config, "task", None) or name)] = value
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the harness's own command line, in the processes that torchrun started or alone.

    Raises:
        ConfigError: lm_eval is not installed. Errors of `mass` are passed on.
        SystemExit: As the harness's parser does.
    """
    register()
    from mass.training.distributed import joined

    sys.argv = ["lm-eval", *arguments]
    with joined("auto"):
        _library("lm_eval.__main__").cli_evaluate()
    return 0
