"""The errors of the API, in the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID = "invalid_request_error"


class RequestError(Exception):
    """An error that a request is answered with: a status, and an error object of OpenAI's form."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.kind, self.param, self.code = message, status, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the reply."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def unauthorised() -> RequestError:
    """Return the error for a request without a valid key. It does not say which part was wrong."""
    return RequestError(
        "the API key is missing or wrong; expected 'Authorization: Bearer KEY'",
        status=401,
        code="invalid_api_key",
        headers={"WWW-Authenticate": 'Basic realm="mass", charset="UTF-8"'},
    )


def forbidden(message: str) -> RequestError:
    """Return the error for a request that its key, or its origin, does not allow."""
    return RequestError(message, status=403, kind="permission_error", code="forbidden")


def not_found(message: str, code: str = "not_found", param: str | None = None) -> RequestError:
    """Return the error for something that does not exist."""
    return RequestError(message, status=404, param=param, code=code)


def other_version() -> RequestError:
    """Return the error for a record that this version cannot read."""
    return RequestError(
        "the record was written by another version of mass, and this one cannot read it; use the version that wrote it",
        status=409,
        code="other_version",
    )


def too_large(message: str) -> RequestError:
    """Return the error for a body beyond the limit."""
    return RequestError(message, status=413, code="request_too_large")


def too_busy(retry_after_s: int) -> RequestError:
    """Return the error for a full queue."""
    return RequestError(
        f"the queue is full; try again in {retry_after_s} s",
        status=429,
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(retry_after_s)},
    )


def unavailable(message: str, code: str, retry_after_s: int = 1) -> RequestError:
    """Return the error of a server that is loading, or stopping."""
    headers = {"Retry-After": str(retry_after_s)}
    return RequestError(message, status=503, kind="service_unavailable_error", code=code, headers=headers)


def internal() -> RequestError:
    """Return the error for a fault of ours. It tells nothing of the request, nor of the fault."""
    return RequestError("the server met an error of its own", status=500, kind="server_error", code="internal_error")
