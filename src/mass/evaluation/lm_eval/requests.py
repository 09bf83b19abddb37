"""Group the requests of lm-evaluation-harness by document, and read how each is to be continued.

A document may be asked several times (once for each choice, or sampled repeatedly); practice happens once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mass.config import SamplingConfig
from mass.errors import ConfigError, DataError, nearest
from mass.evaluation.lm_eval.problem import FRAMES, cut, unframed

Key = tuple[str, int]
"""A document: the name of its task, and its number there."""


class HarnessRequest(Protocol):
    """The parts of the harness's `Instance` that are read here. `doc` holds the gold; it is only passed on to the
    document's own task."""

    @property
    def args(self) -> tuple[Any, ...]: ...
    @property
    def doc(self) -> Any: ...
    @property
    def task_name(self) -> str | None: ...
    @property
    def doc_id(self) -> int | None: ...


class AsksText(Protocol):
    """The part of the harness's `Task` that is used here."""

    def doc_to_text(self, doc: Any) -> Any: ...


@dataclass(frozen=True)
class Document:
    """One document and its requests."""

    key: Key
    problem: str
    """The problem that practice is written for; empty where there is no practice."""
    places: tuple[int, ...]
    """Indices of its requests among all requests."""


@dataclass(frozen=True)
class Continuation:
    """The stop texts and the sampling of a request."""

    until: tuple[str, ...]
    """Texts at which the continuation ends."""
    sampling: SamplingConfig


def documents_of(
    requests: Sequence[HarnessRequest],
    tasks: Mapping[str, AsksText],
    frames: Sequence[str] = FRAMES,
    *,
    practise: bool = True,
) -> list[Document]:
    """Return the documents that are asked, in order of first appearance.

    Raises:
        ConfigError: A task is not known here.
        DataError: A document's own text is not in its request.
    """
    places: dict[Key, list[int]] = {}
    for place, request in enumerate(requests):
        places.setdefault(key_of(request), []).append(place)
    return [
        Document(key, _problem(requests[mine[0]], key, tasks, frames) if practise else "", tuple(mine))
        for key, mine in places.items()
    ]


def key_of(request: HarnessRequest) -> Key:
    """Return the document of a request."""
    return str(request.task_name), int(request.doc_id or 0)


def _problem(request: HarnessRequest, key: Key, tasks: Mapping[str, AsksText], frames: Sequence[str]) -> str:
    name, number = key
    if name not in tasks:
        raise ConfigError(
            f"the task {name!r} of a request is not known to mass; run the harness by `mass lm-eval`, or call "
            "mass.evaluation.lm_eval.register() before `evaluate` is imported from lm_eval"
        )
    text = tasks[name].doc_to_text(request.doc)
    if not isinstance(text, str):
        raise DataError(
            f"task {name!r} asks each document as several texts, one for each choice, and none is its problem; leave "
            "the task out, or set adapt=false"
        )
    found = cut(text, str(request.args[0]))
    if found is None:
        raise DataError(
            f"document {number} of task {name!r} is not in its request ({text[:40]!r}...); expected the text that its "
            "doc_to_text gives; leave the task out, or set adapt=false"
        )
    return unframed(found, frames)


_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_TAKEN = (*_LIMITS, "until", "do_sample", "temperature", "top_p")


def continuation_of(given: Mapping[str, Any], max_gen_toks: int) -> Continuation:
    """Read the harness's generation arguments as its own models do: greedy unless `do_sample` or a temperature says
    otherwise.

    Raises:
        ConfigError: An argument would change the answers and is not known here.
    """
    for name in given:
        if name not in _TAKEN:
            raise ConfigError(
                f"generation argument {name}={given[name]} is none that --model mass takes{nearest(name, _TAKEN)}"
            )
    until = given.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    limit = next((int(given[name]) for name in _LIMITS if given.get(name) is not None), max_gen_toks)
    temperature = float(given.get("temperature") or 0.0)
    samples = given.get("do_sample")
    if samples is None:
        samples = temperature > 0
    elif samples and not given.get("temperature"):
        temperature = 1.0
    config = SamplingConfig(limit, temperature if samples else 0.0, float(given.get("top_p") or 1.0))
    return Continuation(tuple(text for text in until if text), config)


def rounds(documents: Sequence[Document], kind: Callable[[int], Any]) -> Iterator[list[tuple[int, int]]]:
    """Yield groups of (document, request index) pairs: each document at most once in a group, and all of one `kind`."""
    for turn in range(max((len(document.places) for document in documents), default=0)):
        groups: dict[Any, list[tuple[int, int]]] = {}
        for number, document in enumerate(documents):
            if turn < len(document.places):
                place = document.places[turn]
                groups.setdefault(kind(place), []).append((number, place))
        yield from groups.values()
