"""The result of parsing a generated text (`Reading`), whatever form the text has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """A practice example, or the reason why the text holds none."""

    problem: str = ""
    solution: str = ""
    reason: str = ""
    """The reason why there is no example; empty if there is one."""
    also: int = 0
    """Number of further problems in the text, which are left out."""
    closed: bool = False
    """True if more text follows the solution, so that the solution is complete even where the text was cut off."""
