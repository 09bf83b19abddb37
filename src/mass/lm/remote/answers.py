"""A completion as the server sends it -> a `Sample`, or an error: nothing in between.

The server's token ids are what counts, as sampled; text, stops and end are worked out from them exactly as for text
sampled in this process, and must then agree with what the server says. vLLM keeps the tokens of a stop string among
the ids, and, stepping several tokens at a time, now and then a few more; what follows the stop is dropped here.
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
"""What vLLM writes for minus infinity."""
UNDECODED = "�"


@dataclass(frozen=True)
class Asked:
    """What one completion was asked for."""

    prompt: tuple[int, ...]
    limit: int
    """Tokens at most."""
    names: frozenset[str]
    """What the server may call the model that answers."""
    with_logprobs: bool


def read_completion(response: httpx2.Response, asked: Asked, local: Local) -> Sample:
    """The one sample of an answer.

    Raises Passing for an answer that cannot be one; EngineError for one of another model or tokenizer, which asking
    again would not mend.
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
    model = data.get("model")
    if model is None:
        raise Passing(f"the answer names no model: {message_of(response.text)}")
    if model not in asked.names:
        raise EngineError(
            f"the server answered with model {model!r}, asked for was {sorted(asked.names)[0]!r}; expected that one; "
            "name one server in engine.url, not a router that chooses among models"
        )


def _tokens(choice: dict[str, Any], data: dict[str, Any], asked: Asked, local: Local) -> tuple[int, ...]:
    """The ids, checked for number and range, and the prompt's, checked for having arrived as sent."""
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
    """Without what follows an end token, or the token that completes a stop string."""
    for place, token in enumerate(tokens):
        if token in local.end_ids:
            tokens = tokens[: place + 1]
            break
    if local.cut(local.text(tokens)) is None:
        return tokens
    low, high = 1, len(tokens)  # the shortest beginning whose text holds a stop
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if local.cut(local.text(tokens[:middle])) is not None else (middle + 1, high)
    return tokens[:low]


def _require_reason(choice: dict[str, Any], tokens: tuple[int, ...], finished: bool, asked: Asked) -> None:
    """Raises unless the answer ends as the server says: by an end token or a stop, or at the limit."""
    reason = choice.get("finish_reason")
    if reason == "length" and (finished or len(tokens) == asked.limit):
        return
    if reason == "length":
        raise Passing(f"cut off after {len(tokens)} tokens, expected {asked.limit} or an end token")
    if reason != "stop":
        raise Passing(f"the answer broke off: finish_reason is {reason!r}, expected 'stop' or 'length'")
    if not finished:
        raise EngineError(
            f"the server stopped at {choice.get('stop_reason') or tokens[-1]!r}, which is no end token and no stop of "
            "the model here; expected its end tokens alone; start the server with --generation-config vllm"
        )


def _require_text(choice: dict[str, Any], kept: tuple[int, ...], local: Local) -> None:
    """Raises unless the server's text is that of the tokens. Blanks do not count: decoders differ in them."""
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
    """What `/v1/completions` is sent. Everything that vLLM would else take from the model's generation_config.json is
    said, so that sampling is the plain softmax that the policy gradient assumes."""
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
    """Mean absolute difference, of equally many."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)
