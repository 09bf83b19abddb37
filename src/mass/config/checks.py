"""A value of a configuration -> nothing, or a ConfigError that names the option, the value and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mass.errors import ConfigError


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise ConfigError unless the condition holds. `expected` completes the sentence 'expected ...'."""
    if not condition:
        raise ConfigError(
            f"{name} is {value!r}; expected {expected}; change it in the --config file or on the command line"
        )


def require_numbers(
    config: Any, prefix: str, names: Sequence[str], *, least: float = -math.inf, above: float | None = None
) -> None:
    """Require that each is a finite number of at least `least`, or more than `above`."""
    for name in names:
        value = getattr(config, name)
        enough = value >= least if above is None else value > above
        expected = f"{least:g} or more" if above is None else f"more than {above:g}"
        require(enough and value < math.inf, f"{prefix}{name}", value, f"a finite number, {expected}")


def require_shares(config: Any, prefix: str, names: Sequence[str]) -> None:
    """Require that each is a share between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        require(0 <= value <= 1, f"{prefix}{name}", value, "a share between 0 and 1")


def require_known(config: Any, prefix: str) -> None:
    """Require that each word is one that its type allows; the command line checks this too, a Python caller may not."""
    for name, kind in get_type_hints(type(config)).items():
        known, value = get_args(kind), getattr(config, name)
        if get_origin(kind) is Literal and value not in known:
            raise ConfigError(f"{prefix}{name} is {value!r}; expected one of: {', '.join(known)}")
