"""Count the reasons for which practice examples were rejected, as shares of all that were written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from mass.types import Example

UNFINISHED, UNPARSED, REPEAT, COPY, TOO_LONG, UNTESTED, FAILED, DISAGREED = REASONS = (
    "unfinished",
    "unparsed",
    "repeat",
    "copy",
    "too long",
    "without tests",
    "failed its tests",
    "no agreement",
)
"""The reasons with which `Example.rejected` can begin."""


def reason_of(example: Example) -> str:
    """Return the one of `REASONS` for which an example was rejected; empty for a valid one."""
    return next((reason for reason in REASONS if example.rejected.startswith(reason)), example.rejected)


def rejected_shares(examples: Iterable[Example]) -> dict[str, float]:
    """Return the share of all examples that were rejected for each reason, the commonest reason first."""
    every = list(examples)
    counts = Counter(reason_of(example) for example in every if not example.valid)
    return {reason: count / len(every) for reason, count in counts.most_common()}


def sentence(examples: Iterable[Example]) -> str:
    """Return for example '91% of 96 practice examples usable (5% unfinished, 4% copy)'; empty without examples."""
    every = list(examples)
    if not every:
        return ""
    shares = rejected_shares(every)
    why = ", ".join(f"{share:.0%} {reason}" for reason, share in shares.items())
    usable = 1 - sum(shares.values())
    return f"{usable:.0%} of {len(every)} practice examples usable" + (f" ({why})" if why else "")
