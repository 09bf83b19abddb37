"""What reading a generated text gives: `Reading`, whatever form the text has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """A practice example, or why the text holds none."""

    problem: str = ""
    solution: str = ""
    reason: str = ""
    """Why there is none; empty where there is one."""
    also: int = 0
    """Further problems in the text, which are left out."""
    closed: bool = False
    """Whether something of the text follows the solution, so that it is whole even where the text was cut off."""
