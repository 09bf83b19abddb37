"""Load tasks of reasoning-gym's procedural data sets (`reasoning_gym:NAME`, extra `gym`), endless and seeded.

Options of a data set follow a question mark: `reasoning_gym:chain_sum?min_terms=3&max_terms=5`. The id of a task says
how it was made, so that its verifier can make it again and let the data set itself score an answer.

References: reasoning-gym, https://github.com/open-thought/reasoning-gym
"""

from __future__ import annotations

import importlib
import json
from typing import Any
from urllib.parse import parse_qsl

from mass.errors import DataError, nearest
from mass.types import Task

PREFIX = "reasoning_gym:"
VERIFIER = "reasoning-gym"
DEFAULT_SIZE = 500


def load(source: str, size: int | None, seed: int) -> list[Task]:
    """Return `size` tasks (500 by default); the same seed gives the same tasks.

    Raises:
        DataError: The data set or an option is unknown.
    """
    name, _, query = source.removeprefix(PREFIX).partition("?")
    options = {key: _value(text) for key, text in parse_qsl(query, keep_blank_values=True)}
    try:
        library: Any = importlib.import_module("reasoning_gym")
    except ImportError:
        message = "needs reasoning-gym; install it with `pip install 'mass-adapt[gym]'`"
        raise DataError(f"{source} {message}") from None
    known = sorted(importlib.import_module("reasoning_gym.factory").DATASETS)
    if name not in known:
        raise DataError(f"reasoning-gym has no data set {name!r}{nearest(name, known)}")
    try:
        made = library.create_dataset(name, seed=seed, size=size or DEFAULT_SIZE, **options)
        entries = [made[i] for i in range(size or DEFAULT_SIZE)]
    except Exception as error:  # of the data set's own: an option that it does not have, or not with this value
        raise DataError(f"{source} cannot be made ({type(error).__name__}: {error}); correct its options") from error
    return [_task(entry, name, options, seed, index) for index, entry in enumerate(entries)]


def _task(entry: dict[str, Any], name: str, options: dict[str, Any], seed: int, index: int) -> Task:
    answer = str(entry["answer"])
    return Task(
        problem=str(entry["question"]),
        solution=f"<answer>{answer}</answer>",
        answer=answer,
        subject=name,
        id=f"{PREFIX}{json.dumps({'name': name, 'seed': seed, 'index': index, 'options': options})}",
        verifier=VERIFIER,
    )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
