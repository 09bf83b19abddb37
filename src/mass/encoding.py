"""Bytes from outside (a file, standard input, an argument) -> their text. Everything that we read is UTF-8."""

from __future__ import annotations

import errno
import json
from pathlib import Path


def decode(data: bytes) -> str:
    r"""The text of UTF-8 bytes: without a byte-order mark at its start, and with `\n` as its line ends.

    Raises ValueError for other bytes. Its text says what they are, to stand behind the name of what was read: "is not
    UTF-8 (byte 0xe9 at 8)", or "is not UTF-8 but UTF-16", which is what Windows PowerShell redirects into a file.
    """
    encoding = json.detect_encoding(data)  # tells UTF-16 and UTF-32 from UTF-8, with a mark or without
    if not encoding.startswith("utf-8"):
        raise ValueError(f"is not UTF-8 but {encoding.upper()}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read(path: str | Path) -> str:
    """The text of a file. Raises OSError where it cannot be read; other bytes than UTF-8 are a reason too."""
    try:
        return decode(Path(path).expanduser().read_bytes())
    except ValueError as error:
        raise OSError(errno.EILSEQ, f"it {error}", str(path)) from None
