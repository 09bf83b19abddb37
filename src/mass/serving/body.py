"""Bytes of a request -> a JSON object, or a `RequestError`: nothing that comes from outside raises anything else."""

from __future__ import annotations

import json
import re
from email.message import Message
from typing import Any, cast

from mass.serving.errors import RequestError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SHOWN = 80


def read_object(data: bytes, content_type: str | None) -> dict[str, Any]:
    """Return the JSON object in a body.

    NaN, infinities, keys that stand twice, and halves of surrogate pairs are refused: each of them would mean something
    else to another reader of the same bytes.
    """
    _require_json(content_type)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"the body is not UTF-8 (byte {error.start}); send JSON in UTF-8") from None
    try:
        value: Any = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_constant)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RequestError(
            "the body has half of a surrogate pair (\\ud800 to \\udfff); send whole characters"
        ) from None
    except RecursionError:
        raise RequestError("the body is nested too deeply; expected one flat object of OpenAI's form") from None
    except ValueError as error:
        raise RequestError(f"the body is no JSON ({str(error)[:_SHOWN]}); expected one object") from None
    if not isinstance(value, dict):
        raise RequestError(f"the body is {type(value).__name__}; expected a JSON object")
    return cast("dict[str, Any]", value)


def _require_json(content_type: str | None) -> None:
    """Refuse other content types. A browser sends JSON to another site only after asking it, so a page elsewhere cannot
    use this server through its visitors."""
    header = Message()
    header["content-type"] = (content_type or "").encode("ascii", "replace").decode()
    kind, charset = header.get_content_type(), header.get_content_charset("utf-8")
    if not content_type or not (kind == "application/json" or kind.endswith("+json")):
        given = "missing" if not content_type else f"{content_type[:_SHOWN]!r}"
        raise RequestError(f"the content type is {given}; expected 'Content-Type: application/json'", status=415)
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise RequestError(f"the charset is {charset[:_SHOWN]!r}; expected UTF-8", status=415)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, seen = "", set[str]()  # one pass: a body may have a hundred thousand keys
        for name, _ in pairs:
            if name in seen:
                twice = name
                break
            seen.add(name)
        raise ValueError(f"key {twice[:40]!r} stands twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
