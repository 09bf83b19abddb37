"""Pack outcomes by problem into one short text, so that thousands of answers are a few kilobytes of JSON.

A problem's outcome is a count: how many of its N answers are right. It is written in hexadecimal, with as many digits
as N needs, or as dashes where no answer was judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mass.bootstrap import Values
from mass.errors import DataError


def pack(counts: Sequence[int | None], most: int = 1) -> str:
    """Return the packed counts; `most` is N, the largest possible count."""
    width = _width(most)
    return "".join("-" * width if count is None else f"{count:0{width}x}" for count in counts)


def unpack(text: str, most: int = 1) -> Values:
    """Return [P] counts, NaN where nothing was judged.

    Raises:
        DataError: The text was not written by `pack`.
    """
    width = _width(most)
    parts = [text[i : i + width] for i in range(0, len(text), width)]
    try:
        values = [np.nan if part == "-" * width else float(int(part, 16)) for part in parts]
    except ValueError as error:
        raise DataError(f"outcomes hold {text[:20]!r}...; expected hexadecimal counts or dashes") from error
    if len(text) % width or any(value > most for value in values):
        raise DataError(f"outcomes of {most} answers hold {text[:20]!r}...; expected counts of {width} digits up to it")
    return np.array(values)


def _width(most: int) -> int:
    return len(f"{most:x}")
