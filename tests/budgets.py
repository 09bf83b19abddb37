"""Memory budgets: the smallest that is enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mass.errors import ConfigError


def least(run: Callable[[float], Any]) -> float:
    """The smallest budget, as errors tell it."""
    budget = 1e-9
    for _ in range(3):
        try:
            run(budget)
        except ConfigError as error:
            budget = needed(error)
        else:
            return budget
    raise AssertionError(f"the amount that was asked for, {budget}, is not enough")


def needed(error: ConfigError) -> float:
    assert "\n" not in str(error)
    return float(re.search(r"need ([\d.e+-]+);", str(error))[1])
