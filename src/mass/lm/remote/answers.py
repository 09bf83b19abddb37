"""Read a server's completion as a `Sample`, or raise an error if anything in it is missing or wrong.

Only the server's token ids are used. Text, stop strings and end are computed from them exactly as for text sampled in
this process, and must then agree with the server's own. vLLM returns the tokens of a stop string too and, as it may
compute several tokens in one step, sometimes a few more; tokens after the stop string are dropped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from mass.errors import EngineError
from mass.lm.remote.failures import Passing, message_of
from mass.lm.remote.protocol import Local
from mass.lm.remote.transport import json_of
from mass.types import Sample

LEAST_LOGPROB = -9999.0
"""The number that vLLM writes for minus infinity."""
UNDECODED = "�"
"""The character that decoders write for an incomplete character."""


@dataclass(frozen=True)
class Asked:
    """The request for one completion."""

    prompt: tuple[int, ...]
    limit: int
    """Most tokens to generate."""
    names: frozenset[str]
    """Names that the server may give to the model that answers."""
    with_logprobs: bool


def read_completion(response: httpx2.Response, asked: Asked, local: Local) -> Sample:
    """Read the one sample of an answer.

    Raises Passing for an answer that is incomplete or malformed, so that the request is repeated; EngineError for one
    of another model or tokenizer, where repeating would not help.
    """
    data = json_of(response)
    _require_model(data, response, asked)
    choices = data.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        count = len(choices) if isinstance(choices, list) else "no"
        raise Passing(f"{count} choices in the answer, expected 1: {message_of(response.text)}")
    choice: dict[str, Any] = choices[0]
    tokens = _tokens(choice, data, asked, local)
    kept = _up_to_the_end(tokens, local)
    finished = kept[-1] in local.end_ids or local.cut(local.text(kept)) is not None
    _require_reason(choice, tokens, finished, asked)
    text = local.text(kept)
    cut = local.cut(text)
    _require_text(choice, kept, local)
    logprobs = _logprobs(choice, len(tokens))[: len(kept)] if asked.with_logprobs else ()
    return Sample(kept, text if cut is None else cut, finished, logprobs)


def _require_model(data: dict[str, Any], response: httpx2.Response, asked: Asked) -> None:
    """Check that the answer comes from the requested model or adapter. Raises Passing or EngineError."""
    model = data.get("model")
    if model is None:
        raise Passing(f"the answer names no model: {message_of(response.text)}")
    if model not in asked.names:
        raise EngineError(
            f"the server answered with model {model!r}, asked for was {sorted(asked.names)[0]!r}; expected that one; "
            "name one server in model.engine.url, not a router that chooses among models"
        )


def _tokens(choice: dict[str, Any], data: dict[str, Any], asked: Asked, local: Local) -> tuple[int, ...]:
    """Return the token ids, with their number and range checked, and check that the server read the prompt as sent.

    Raises Passing or EngineError.
    """
    given = choice.get("token_ids")
    if given is None and isinstance(choice.get("text"), str):
        raise EngineError(
            "the server returns no token_ids; expected one that knows return_token_ids, as vLLM 0.10.2 and later do"
        )
    if not isinstance(given, list) or not all(type(token) is int and token >= 0 for token in given):
        raise Passing(f"token_ids are {message_of(str(given))}, expected a list of token ids")
    tokens = tuple[int, ...](given)
    if tuple(choice.get("prompt_token_ids") or asked.prompt) != asked.prompt:
        raise EngineError(
            "the server read another prompt than it was sent (other prompt_token_ids); expected the very tokens; "
            "serve the model with its own tokenizer, and no proxy that adds to prompts"
        )
    if not 1 <= len(tokens) <= asked.limit:
        raise Passing(f"{len(tokens)} tokens in the answer, expected 1 to {asked.limit}")
    usage = data.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if counted is not None and counted != len(tokens):
        raise Passing(f"{len(tokens)} tokens in the answer, but the server counted {counted!r}")
    if (largest := max(tokens)) >= local.vocabulary:
        raise EngineError(
            f"the server sampled token {largest}, the model here has {local.vocabulary}; expected the same model; "
            "serve the one that model.name loads"
        )
    return tokens


def _up_to_the_end(tokens: tuple[int, ...], local: Local) -> tuple[int, ...]:
    """Return the tokens without those after an end token, or after the token that completes a stop string."""
    for place, token in enumerate(tokens):
        if token in local.end_ids:
            tokens = tokens[: place + 1]
            break
    if local.cut(local.text(tokens)) is None:
        return tokens
    low, high = 1, len(tokens)  # binary search for the shortest beginning whose text holds a stop string
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if local.cut(local.text(tokens[:middle])) is not None else (middle + 1, high)
    return tokens[:low]


def _require_reason(choice: dict[str, Any], tokens: tuple[int, ...], finished: bool, asked: Asked) -> None:
    """Check that the answer ends as the server says: by an end token or a stop string, or at the limit.

    Raises Passing or EngineError.
    """
    reason = choice.get("finish_reason")
    if reason == "length" and (finished or len(tokens) == asked.limit):
        return
    if reason == "length":
        raise Passing(f"cut off after {len(tokens)} tokens, expected {asked.limit} or an end token")
    if reason != "stop":
        raise Passing(f"the answer broke off: finish_reason is {reason!r}, expected 'stop' or 'length'")
    if not finished:
        raise EngineError(
            f"the server stopped at {choice.get('stop_reason') or tokens[-1]!r}, which is neither an end token nor "
            "a stop of the model here; expected its end tokens alone; start the server with --generation-config vllm"
        )


def _require_text(choice: dict[str, Any], kept: tuple[int, ...], local: Local) -> None:
    """Check that the server's text is that of the tokens. Blanks do not count, as decoders differ in them.

    Raises Passing or EngineError.
    """
    theirs = choice.get("text")
    if not isinstance(theirs, str):
        raise Passing(f"the answer's text is {theirs!r}, expected a string")
    ours = local.text(kept[:-1] if kept[-1] in local.end_ids else kept)
    cut = local.cut(ours)
    ours = ours if cut is None else cut
    if _letters(ours) != _letters(theirs):
        raise EngineError(
            f"the server's text {theirs[:60]!r} is not that of its tokens here, {ours[:60]!r}; expected the same "
            "tokenizer; serve the same model, with its own tokenizer"
        )


def _letters(text: str) -> str:
    return "".join(text.replace(UNDECODED, "").split())


def _logprobs(choice: dict[str, Any], count: int) -> tuple[float, ...]:
    """Return the log-probability of each token. Raises Passing where one is missing or cannot be one."""
    given = choice.get("logprobs")
    values = given.get("token_logprobs") if isinstance(given, dict) else None
    if not isinstance(values, list) or len(values) != count or not all(map(_is_logprob, values)):
        raise Passing(f"the answer has no log-probability for each of its {count} tokens")
    return tuple(float(value) for value in values)


def _is_logprob(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and LEAST_LOGPROB <= value <= 1e-3


def request_body(
    model: str, asked: Asked, local: Local, *, seed: int, temperature: float, top_p: float
) -> dict[str, Any]:
    """Return the body of a request to `/v1/completions`.

    It sets every option that vLLM would otherwise take from the model's generation_config.json, so that sampling is the
    plain softmax that the policy gradient assumes.
    """
    return {
        "model": model,
        "prompt": list(asked.prompt),
        "max_tokens": asked.limit,
        "n": 1,
        "seed": seed,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(local.stop),
        "stop_token_ids": sorted(local.end_ids),
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "return_token_ids": True,
        "stream": False,
        **({"logprobs": 1} if asked.with_logprobs else {}),
    }


def mean_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the mean absolute difference of two sequences of the same length."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
