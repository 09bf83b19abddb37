"""A job and its outcome -> the JSON of a reply, or the chunks of a stream, as OpenAI's clients read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mass.serving.job import Job, Outcome, Practice, Text, Unadapted
from mass.types import Example, Sample

STOP, LENGTH = "stop", "length"


def whole(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Return the body of a reply that is not streamed."""
    chat = job.request.endpoint == "chat"
    make = _chat_choice if chat else _text_choice
    choices = [make(job, index, sample) for index, sample in enumerate(outcome.samples)]
    return {
        **_head(job, "chat.completion" if chat else "text_completion"),
        "choices": choices,
        "usage": usage(outcome),
        "mass": about(job, outcome),
    }


def chunk(job: Job, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Return one chunk of a stream."""
    kind = "chat.completion.chunk" if job.request.endpoint == "chat" else "text_completion"
    nothing = {"usage": None} if job.request.include_usage else {}
    return {**_head(job, kind), "choices": choices, **nothing, **more}


def opening(job: Job) -> list[dict[str, Any]]:
    """Return the first chunks of a stream, which tell the role of the answers."""
    if job.request.endpoint != "chat":
        return []
    first = {"role": "assistant", "content": ""}
    return [chunk(job, [_delta(index, first)]) for index in range(job.request.n)]


def part(job: Job, text: Text, shown: str) -> dict[str, Any]:
    """Return the chunk for a part of an answer."""
    logprobs = _logprobs(job, text.tokens, text.logprobs) if job.request.logprobs else None
    if job.request.endpoint == "chat":
        return chunk(job, [_delta(text.index, {"content": shown}, logprobs)])
    return chunk(job, [_text(text.index, shown, logprobs)])


def practice(job: Job, event: Practice | Unadapted) -> dict[str, Any]:
    """Return the chunk, without a choice, that tells of practice or of the unadapted answer."""
    if isinstance(event, Unadapted):
        return chunk(job, [], mass={"id": job.id, "stage": "unadapted", "unadapted": list(event.texts)})
    return chunk(job, [], mass={"id": job.id, "stage": event.stage, "practice": examples(event.examples)})


def ending(job: Job, outcome: Outcome) -> list[dict[str, Any]]:
    """Return the last chunks: why each answer ended, then the usage if it was asked for; the last one has `mass`."""
    chat = job.request.endpoint == "chat"
    empty = [_delta(i, {}) if chat else _text(i, "") for i in range(len(outcome.samples))]
    chunks = [
        chunk(job, [{**choice, "finish_reason": _reason(sample)}])
        for choice, sample in zip(empty, outcome.samples, strict=True)
    ]
    if job.request.include_usage:
        chunks.append({**chunk(job, []), "usage": usage(outcome)})
    chunks[-1]["mass"] = about(job, outcome)
    return chunks


def about(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Return the field `mass` of a reply: how the answer was obtained."""
    gate = outcome.gate
    found: dict[str, Any] = {
        "id": job.id,
        "model": job.served.name,
        "adapted": outcome.adapted,
        "gate": None
        if gate is None
        else {"adapt": gate.adapt, "reason": gate.reason, "measures": _finite(gate.measures)},
        "fallback": outcome.fallback or None,
        "seconds": {stage: round(value, 6) for stage, value in outcome.seconds.items()},
        "tokens": outcome.tokens,
        "seed": outcome.seed,
        "checkpoint": None,
    }
    if job.served.adapts:
        found["checkpoint"] = {"name": job.served.checkpoint, "hash": job.served.checkpoint_hash}
    if outcome.learned:
        found["examples"] = outcome.learned
    if job.request.mass.practice:
        found["practice"] = examples(outcome.examples)
        found["unadapted"] = [sample.text.strip() for sample in outcome.unadapted]
    return found


def examples(practice: Sequence[Example]) -> list[dict[str, Any]]:
    """Return practice examples as clients see them."""
    return [
        {
            "problem": one.problem,
            "solution": one.solution,
            "text": one.text,
            "rejected": one.rejected or None,
            "note": one.note or None,
            "weight": _number(one.weight),
            "loss_before": _number(one.loss_before),
            "loss_after": _number(one.loss_after),
        }
        for one in practice
    ]


def usage(outcome: Outcome) -> dict[str, int]:
    """Return the tokens of prompt and answers. Those of practice were not asked for, and are in `mass.tokens`."""
    answered = sum(len(sample.tokens) for sample in outcome.samples)
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": answered,
        "total_tokens": outcome.prompt_tokens + answered,
    }


def _head(job: Job, kind: str) -> dict[str, Any]:
    return {"id": job.id, "object": kind, "created": int(job.time), "model": job.served.name}


def _reason(sample: Sample) -> str:
    return STOP if sample.finished else LENGTH


def _chat_choice(job: Job, index: int, sample: Sample) -> dict[str, Any]:
    logprobs = _logprobs(job, sample.tokens, sample.logprobs) if job.request.logprobs else None
    message = {"role": "assistant", "content": sample.text.strip(), "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": _reason(sample)}


def _text_choice(job: Job, index: int, sample: Sample) -> dict[str, Any]:
    logprobs = _logprobs(job, sample.tokens, sample.logprobs) if job.request.logprobs else None
    text = sample.text.strip() if job.served.adapts else sample.text
    return {**_text(index, text, logprobs), "finish_reason": _reason(sample)}


def _delta(index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _text(index: int, text: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}


def _logprobs(job: Job, tokens: Sequence[int], logprobs: Sequence[float]) -> dict[str, Any]:
    """Return the log-probabilities of tokens, in the form of the endpoint."""
    texts = [job.served.mass.lm.tokenizer.decode([token]) for token in tokens]
    if job.request.endpoint == "completions":
        return {"tokens": texts, "token_logprobs": list(logprobs), "top_logprobs": None, "text_offset": []}
    content = [
        {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in zip(texts, logprobs, strict=False)
    ]
    return {"content": content, "refusal": None}


def _finite(measures: dict[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in measures.items()}


def _number(value: float | None) -> float | None:
    """Return a number that JSON has."""
    return value if value is not None and math.isfinite(value) else None
