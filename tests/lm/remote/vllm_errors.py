"""What vLLM 0.32 answers when it does not do what it was asked: status codes and messages, word for word."""

from __future__ import annotations

import re
from typing import Any


class Wrong(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> None:
        message = re.sub(r"/(?:home|usr|opt|var|tmp|root|lib|mnt|srv)(?:/[\w.\-]+)+", "<path>", message)
        super().__init__(message)
        self.status = status
        self.body: Any = {"error": {"message": message, "type": kind, "param": param, "code": status}}


class DetailOnly(Wrong):
    """As FastAPI answers where vLLM has no route."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.body = {"detail": detail}


class Aborted(Exception):
    """Whoever asked has closed the connection; vLLM then drops the request, wherever in its queue it is."""


def worker_failed(reason: str) -> Wrong:
    """What loading an adapter answers, for whatever the worker could not do with it."""
    text = f"Worker failed with error '{reason}', please check the stack trace above for the root cause"
    return Wrong(500, f"Call to add_lora method failed: {text}", "InternalServerError")


def out_of_range(name: str, value: int, text: str) -> Wrong:
    return Wrong(400, f"{text} (parameter={name}, value={value})", param=name)


def required(body: dict[str, Any], field: str) -> Any:
    """Raises Wrong as vLLM's validation does."""
    if field not in body:
        where = f"body.{field}"
        text = (
            f"{{'type': 'missing', 'loc': '{where}', 'msg': 'Field required', 'input': '<dict of {len(body)} items>'}}"
        )
        raise Wrong(400, f"1 validation error:\n  {text}", "Bad Request", where)
    return body[field]
