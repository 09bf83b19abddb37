"""A JSON object in OpenAI's form -> an `AnswerRequest`, or a `RequestError` that names the field.

Three kinds of fields are no part of it. Those that cannot change the answer are accepted and ignored (`IGNORED`). Those
that would change it, and are not supported, are refused unless they ask for nothing (`NEUTRAL`). Unknown ones are
refused: a field that is ignored in silence is a wrong answer that nobody notices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from mass.config import ServeConfig
from mass.serving import fields
from mass.serving.errors import RequestError

Endpoint = Literal["chat", "completions"]
ADAPT = ("auto", "always", "never")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles of messages, with what they are here."""
DEFAULT_MODEL = "default"
"""Name of the model that an operator chooses at run time; a request without a model means it."""
MAX_STOPS, MAX_STOP_CHARACTERS, MAX_MESSAGES = 16, 256, 1024
MAX_SEED = (1 << 63) - 1

IGNORED = frozenset({
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
})  # fmt: skip
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that are not supported, each with the values that ask for nothing; null always does."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    """system, user or assistant."""
    text: str


@dataclass(frozen=True)
class MassOptions:
    """The field `mass` of a request."""

    adapt: str | None = None
    """auto, always or never; None: as the server is configured."""
    examples: tuple[tuple[str, str], ...] = ()
    """Solved problems to learn, (input, output)."""
    steps: int | None = None
    deadline_s: float | None = None
    seed: int | None = None
    practice: bool = False
    """True if the practice itself is to be told, as it is written, weighted and learned."""


@dataclass(frozen=True)
class AnswerRequest:
    """A request for answers, checked."""

    endpoint: Endpoint
    model: str
    messages: tuple[Message, ...]
    """The conversation; of completions one message of the user, the prompt."""
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    logprobs: bool = False
    mass: MassOptions = MassOptions()

    @property
    def problem(self) -> str:
        """The last message of the user, which practice is for."""
        return next(m.text for m in reversed(self.messages) if m.role == "user")

    @property
    def instruction(self) -> str:
        """The system messages, which precede every example and the question."""
        return "\n\n".join(m.text.strip() for m in self.messages if m.role == "system")

    @property
    def with_examples(self) -> tuple[Message, ...]:
        """The messages, with the examples as turns before the others."""
        turns = [m for pair in self.mass.examples for m in (Message("user", pair[0]), Message("assistant", pair[1]))]
        system = [m for m in self.messages if m.role == "system"]
        return (*system, *turns, *(m for m in self.messages if m.role != "system")) if turns else self.messages


def read_chat(body: Mapping[str, Any], bounds: ServeConfig) -> AnswerRequest:
    """Read the body of `chat/completions`."""
    values = _present(body, {*_COMMON, "messages", "max_completion_tokens"})
    if "messages" not in values:
        raise RequestError("messages is missing; expected a list of messages", param="messages", code="missing")
    messages = fields.items(values.pop("messages"), "messages", MAX_MESSAGES, _message)
    _require_question(messages)
    if "max_completion_tokens" in values:
        most = bounds.max_tokens
        values["max_tokens"] = fields.integer(values.pop("max_completion_tokens"), "max_completion_tokens", 1, most)
    options, kept = _mass(values, messages, bounds)
    logprobs = fields.boolean(values.get("logprobs", False), "logprobs")
    return AnswerRequest("chat", messages=kept, logprobs=logprobs, mass=options, **_shared(values, bounds))


def read_completions(body: Mapping[str, Any], bounds: ServeConfig) -> AnswerRequest:
    """Read the body of `completions`."""
    values = _present(body, {*_COMMON, "prompt"})
    if "prompt" not in values:
        raise RequestError("prompt is missing; expected a string", param="prompt", code="missing")
    prompt = values["prompt"]
    if isinstance(prompt, list) and len(cast("list[object]", prompt)) == 1:
        (prompt,) = cast("list[object]", prompt)
    if not isinstance(prompt, str):
        raise fields.wrong("prompt", prompt, "one string, or a list of one; tokens are not taken")
    if not prompt.strip():
        raise RequestError("prompt is empty; expected a text", param="prompt")
    messages = (Message("user", prompt),)
    options, _ = _mass(values, messages, bounds)
    logprobs = "logprobs" in values and values["logprobs"] is not False
    if logprobs:
        fields.integer(values["logprobs"], "logprobs", 0, 0)
    return AnswerRequest("completions", messages=messages, logprobs=logprobs, mass=options, **_shared(values, bounds))


_COMMON = {
    "logprobs", "mass", "max_tokens", "model", "n", "seed", "stop", "stream", "stream_options", "temperature", "top_p",
}  # fmt: skip


def _present(body: Mapping[str, Any], supported: set[str]) -> dict[str, Any]:
    """Return the fields that are supported and not null. Unknown and unsupported ones are refused."""
    fields.require_known(body, [*sorted(supported), *NEUTRAL, *IGNORED])
    for name, neutral in NEUTRAL.items():
        value = body.get(name)
        # A boolean equals 0 or 1 in Python, so kinds are compared too.
        if value is not None and not any(value == one and type(value) is type(one) for one in _both(neutral)):
            raise RequestError(
                f"{name} is not supported here, and would change the answer; leave it out",
                param=name,
                code="unsupported_parameter",
            )
    return {name: value for name, value in body.items() if name in supported and value is not None}


def _both(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values, with 0.0 beside 0: both are the same number in JSON."""
    return (*values, *(float(v) for v in values if type(v) is int))


def _shared(values: Mapping[str, Any], bounds: ServeConfig) -> dict[str, Any]:
    """Return the fields that both endpoints have, by their names in `AnswerRequest`."""
    readers: dict[str, Callable[[object, str], Any]] = {
        "model": _model,
        "stream": fields.boolean,
        "max_tokens": lambda v, p: fields.integer(v, p, 1, bounds.max_tokens),
        "temperature": lambda v, p: fields.number(v, p, 0, 2),
        "top_p": lambda v, p: fields.number(v, p, 0, 1, above=True),
        "stop": _stops,
        "seed": lambda v, p: fields.integer(v, p, -MAX_SEED - 1, MAX_SEED),
        "n": lambda v, p: fields.integer(v, p, 1, bounds.max_n),
    }
    found: dict[str, Any] = {name: read(values[name], name) for name, read in readers.items() if name in values}
    found.setdefault("model", DEFAULT_MODEL)
    if "stream_options" in values:
        found["include_usage"] = _stream_options(values["stream_options"], streams=found.get("stream", False))
    return found


def _model(value: object, param: str) -> str:
    name = fields.text(value, param)
    if not name:
        raise fields.wrong(param, value, "the name of a model; GET /v1/models lists them")
    return name


def _stops(value: object, param: str) -> tuple[str, ...]:
    def one(item: object, at: str) -> str:
        text = fields.text(item, at)
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise fields.wrong(at, item, f"1 to {MAX_STOP_CHARACTERS} characters")
        return text

    return (one(value, param),) if isinstance(value, str) else fields.items(value, param, MAX_STOPS, one)


def _stream_options(value: object, *, streams: bool) -> bool:
    options = fields.mapping(value, "stream_options")
    if not streams:
        raise RequestError("stream_options is given without stream; set 'stream': true", param="stream_options")
    fields.require_known(options, ("include_usage", "include_obfuscation"), "stream_options.")
    return fields.boolean(options.get("include_usage") or False, "stream_options.include_usage")


def _message(value: object, param: str) -> Message:
    message = fields.mapping(value, param)
    fields.require_known(message, ("role", "content", "name", "refusal", "annotations"), f"{param}.")
    role = ROLES[fields.choice(message.get("role"), f"{param}.role", ROLES)]
    return Message(role, _content(message.get("content"), f"{param}.content"))


def _content(value: object, param: str) -> str:
    """Return the text of a message, which is a string or a list of parts that are texts."""
    if isinstance(value, str):
        return value

    def part(item: object, at: str) -> str:
        found = fields.mapping(item, at)
        if found.get("type") != "text":
            raise fields.wrong(f"{at}.type", found.get("type"), "text, as this model reads nothing else")
        fields.require_known(found, ("type", "text"), f"{at}.")
        return fields.text(found.get("text"), f"{at}.text")

    if not isinstance(value, list):
        raise fields.wrong(param, value, "a string, or a list of parts of type text")
    return "".join(fields.items(cast("list[object]", value), param, MAX_MESSAGES, part))


def _require_question(messages: tuple[Message, ...]) -> None:
    """Refuse a conversation without a question to answer."""
    if not messages or messages[-1].role == "assistant":
        given = "of role assistant" if messages else "missing"
        raise RequestError(f"the last message is {given}; expected one of role user", param="messages")
    last = next((m for m in reversed(messages) if m.role == "user"), None)
    if last is None or not last.text.strip():
        given = "missing" if last is None else "empty"
        raise RequestError(f"the message of role user is {given}; expected a problem to answer", param="messages")


def _mass(
    values: Mapping[str, Any], messages: tuple[Message, ...], bounds: ServeConfig
) -> tuple[MassOptions, tuple[Message, ...]]:
    """Return the options of the field `mass`, and the messages without those that are examples."""
    given = fields.mapping(values.get("mass", {}), "mass")
    fields.require_known(given, ("adapt", "deadline_s", "examples", "include", "seed", "steps"), "mass.")
    given = {name: value for name, value in given.items() if value is not None}
    examples: tuple[tuple[str, str], ...] = ()
    if given.get("examples") == "messages":
        examples, messages = _examples_of(messages, bounds)
    elif "examples" in given:
        examples = _pairs(given["examples"], bounds)
    readers: dict[str, Callable[[object, str], Any]] = {
        "adapt": lambda v, p: fields.choice(v, p, ADAPT),
        "steps": lambda v, p: fields.integer(v, p, 0, bounds.max_steps),
        "deadline_s": lambda v, p: fields.number(v, p, 0, bounds.max_deadline_s, above=True),
        "seed": lambda v, p: fields.integer(v, p, -MAX_SEED - 1, MAX_SEED),
    }
    found: dict[str, Any] = {name: read(given[name], f"mass.{name}") for name, read in readers.items() if name in given}
    included = fields.items(
        given.get("include", []), "mass.include", 1, lambda item, at: fields.choice(item, at, ("practice",))
    )
    return MassOptions(examples=examples, practice=bool(included), **found), messages


def _pairs(value: object, bounds: ServeConfig) -> tuple[tuple[str, str], ...]:
    def pair(item: object, at: str) -> tuple[str, str]:
        texts = fields.items(item, at, 2, fields.text)
        if len(texts) != 2 or not all(t.strip() for t in texts):
            raise fields.wrong(at, item, "two texts, [input, output]")
        return texts[0], texts[1]

    if not isinstance(value, list) or not value:
        raise fields.wrong("mass.examples", cast("object", value), "'messages', or a list of [input, output]")
    return fields.items(cast("list[object]", value), "mass.examples", bounds.max_examples, pair)


def _examples_of(
    messages: tuple[Message, ...], bounds: ServeConfig
) -> tuple[tuple[tuple[str, str], ...], tuple[Message, ...]]:
    """Return the earlier turns as examples, and the messages that are left: system messages and the question."""
    system = tuple(m for m in messages if m.role == "system")
    turns = [m for m in messages if m.role != "system"]
    roles = [m.role for m in turns]
    if len(turns) < 3 or roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise RequestError(
            "mass.examples is 'messages', and the messages are no examples; expected turns of user and assistant in "
            "alternation, and then the question of the user",
            param="mass.examples",
        )
    pairs = tuple((turns[i].text, turns[i + 1].text) for i in range(0, len(turns) - 1, 2))
    if len(pairs) > bounds.max_examples:
        raise RequestError(
            f"messages has {len(pairs)} examples; expected at most {bounds.max_examples}", param="messages"
        )
    if not all(text.strip() for pair in pairs for text in pair):
        raise RequestError("an example among the messages is empty; expected texts", param="messages")
    return pairs, (*system, turns[-1])
