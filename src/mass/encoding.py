"""Decode text from outside (a file, standard input, an argument), all of it UTF-8; make values fit for JSON."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any, cast


def decode(data: bytes) -> str:
    r"""Return the text of UTF-8 bytes, without a byte-order mark at the start and with `\n` as line ends.

    Raises:
        ValueError: The bytes are something else. The message completes a sentence that starts with a name: "is not
            UTF-8 (byte 0xe9 at 8)", or "is not UTF-8 but UTF-16", which Windows PowerShell writes when output is
            redirected to a file.
    """
    encoding = json.detect_encoding(
        data
    )  # distinguishes UTF-16 and UTF-32 from UTF-8, with or without a byte-order mark
    if not encoding.startswith("utf-8"):
        raise ValueError(f"is not UTF-8 but {encoding.upper()}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read(path: str | Path) -> str:
    """Return the text of a file.

    Raises:
        OSError: It cannot be read, or it is not UTF-8.
    """
    try:
        return decode(Path(path).expanduser().read_bytes())
    except ValueError as error:
        raise OSError(errno.EILSEQ, f"it {error}", str(path)) from None


def finite(value: Any) -> Any:
    """Return nested dicts and sequences with None for each number that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in cast("list[Any]", value)]
    return value
