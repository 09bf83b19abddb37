"""The failures of a server as `EngineError`s: those after which a request is repeated, and those that are final."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from mass.errors import EngineError

SHOWN = 300
"""Most characters of a server's own message that an error repeats."""


class Passing(EngineError):
    """A failure that may pass on repetition: the server is busy or unreachable, or its answer is malformed."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Refused(EngineError):
    """A refusal: the server understood the request and rejected it, so repeating does not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the server answered {status}: {message}")
        self.status, self.message = status, message


class UnknownAdapter(EngineError):
    """An adapter that was loaded, and that the server does not know now: it was started anew, or is another one."""


def message_of(body: str) -> str:
    """Return a server's error as one line: vLLM's `error.message` (older: `message`), FastAPI's `detail`, or a page."""
    try:
        data: Any = json.loads(body)
    except ValueError:
        return _one_line(_of_page(body)) or "nothing"
    if isinstance(data, dict):
        found: Any = data.get("error", data.get("message", data.get("detail", data)))
        data = found.get("message", found) if isinstance(found, dict) else found
    return _one_line(data if isinstance(data, str) else json.dumps(data))


def _of_page(body: str) -> str:
    """Return the title or text of an HTML page; other text as it is."""
    if not re.search(r"<(?:!doctype|html|head|body|h1)\b", body, re.IGNORECASE):
        return body
    title = re.search(r"<title>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
    return f"an HTML page, {html.unescape(title[1] if title else re.sub('<[^>]*>', ' ', body)).strip()!r}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
