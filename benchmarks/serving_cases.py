"""Requests of mixed kinds, and a judge of their replies by what the same requests got alone.

Each adapted case is a problem and a seed, and for each problem there are two seeds. What marks a case as its own is its
practice, the text of its answer and the log-probabilities of its tokens, which are not those of the other seed: that is
seen before the run. So a reply with another's practice or weights is known, whatever it says.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving_client import Reply, conversation

PLAIN, SAMPLED, STREAMED = "plain", "n = 3", "plain stream"
ADAPTED, ADAPTED_STREAM, AUTO, EXAMPLES = "adapted", "adapted stream", "auto", "examples"
LEFT, LEFT_ADAPTING, BAD = "left", "left while adapting", "bad"
SHARES = {
    PLAIN: 30,
    SAMPLED: 10,
    STREAMED: 10,
    ADAPTED: 12,
    ADAPTED_STREAM: 6,
    AUTO: 8,
    EXAMPLES: 6,
    LEFT: 4,
    LEFT_ADAPTING: 4,
    BAD: 10,
}
"""Parts in a hundred requests."""
SAME = 1e-3
"""Log-probabilities that differ by less are those of the same weights in another batch."""
OWN, OTHERS, DIFFERS, LOST = "own", "another's", "differs", "lost"
SEEDS = 2
BAD_BODIES: tuple[tuple[dict[str, Any], int], ...] = (
    ({"messages": []}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "mass": {"adopt": "always"}}, 400),
    ({"model": "nobody", "messages": [{"role": "user", "content": "x"}]}, 404),
    ({"messages": [{"role": "user", "content": "x" * 100_000}], "mass": {"adapt": "always"}}, 400),
    ({"messages": [{"role": "user", "content": "x"}], "n": 10_000}, 400),
)


@dataclass(frozen=True)
class Case:
    """A request that is asked again and again."""

    kind: str
    body: dict[str, Any]
    status: int = 200

    @property
    def leaves(self) -> bool:
        """True where the client goes away before the answer."""
        return self.kind in (LEFT, LEFT_ADAPTING)

    @property
    def marked(self) -> bool:
        """True where the reply tells of the practice that is its own."""
        return self.kind in (ADAPTED, ADAPTED_STREAM, AUTO)

    @property
    def practises(self) -> bool:
        return self.kind in (ADAPTED, ADAPTED_STREAM, AUTO, EXAMPLES)


@dataclass(frozen=True)
class Known:
    """What a case got alone."""

    texts: tuple[str, ...]
    logprobs: tuple[float, ...]
    practice: tuple[str, ...]
    adapted: bool

    @staticmethod
    def of(reply: Reply) -> Known:
        logprobs = tuple(value for one in reply.logprobs for value in one)
        practice = tuple(str(one["text"]) for one in reply.mass.get("practice", ()))
        return Known(tuple(reply.texts), logprobs, practice, bool(reply.mass.get("adapted")))

    def is_like(self, other: Known) -> bool:
        """True if the same weights gave both, after the same practice."""
        return self.practice == other.practice and self.is_answered_like(other)

    def is_answered_like(self, other: Known) -> bool:
        """True if the same weights gave both answers."""
        answers, others = (
            (self.texts, self.adapted, len(self.logprobs)),
            (other.texts, other.adapted, len(other.logprobs)),
        )
        return answers == others and all(abs(a - b) < SAME for a, b in zip(self.logprobs, other.logprobs, strict=True))


def cases(model: str, problems: Sequence[str], examples: Sequence[list[tuple[str, str]]]) -> list[Case]:
    """Return all cases, of which those of one kind take turns.

    Args:
        model: the name of the base.
        problems: what is asked.
        examples: sets of solved problems, each of which is learned once.
    """
    adapting, found = f"{model}+mass", list[Case]()
    for problem in problems:
        plain = conversation(problem, model)
        found += [
            Case(PLAIN, plain),
            Case(STREAMED, {**plain, "stream": True}),
            Case(AUTO, marked(adapting, problem, 0, "auto")),
        ]
        found.append(Case(SAMPLED, {**plain, "n": 3, "temperature": 1, "seed": 5}))
        for seed in range(SEEDS):
            body = marked(adapting, problem, seed, "always")
            found += [Case(ADAPTED, body), Case(ADAPTED_STREAM, {**body, "stream": True})]
        found.append(Case(LEFT, {**plain, "stream": True, "n": 8, "temperature": 2, "max_tokens": 200}))
        found.append(Case(LEFT_ADAPTING, {**marked(adapting, problem, 7, "always"), "stream": True}))
    for solved in examples:
        found.append(Case(EXAMPLES, conversation(problems[0], adapting, logprobs=True, mass={"examples": solved})))
    return [*found, *(Case(BAD, body, status) for body, status in BAD_BODIES)]


def marked(model: str, problem: str, seed: int, adapt: str) -> dict[str, Any]:
    told = {"adapt": adapt, "seed": seed, "include": ["practice"]}
    return conversation(problem, model, logprobs=True, mass=told)


def verdict(case: Case, reply: Reply, known: Mapping[int, Known], all_cases: Sequence[Case], index: int) -> str:
    """Return whose reply this is: the case's own, another's, one that is like nobody's, or none at all."""
    if reply.status != case.status or not reply.whole:
        return LOST
    if case.kind == BAD:
        return OWN if "message" in reply.body.get("error", {}) else LOST
    if case.leaves:
        return OWN
    got, own = Known.of(reply), known[index]
    if got.is_like(own):
        return OWN
    others = [other for at, other in known.items() if _identity(all_cases[at]) != _identity(case) != ""]
    return OTHERS if any(_is_of(got, own, other) for other in others) else DIFFERS


def _identity(case: Case) -> str:
    """Return what is to be learned, the same for a stream and a whole reply; empty where nothing is."""
    if not case.practises:
        return ""
    mass = case.body["mass"]
    return json.dumps([mass["examples"]] if case.kind == EXAMPLES else [case.body["messages"], mass["seed"]])


def _is_of(got: Known, own: Known, other: Known) -> bool:
    """True if a part of the practice is the other's alone, or the other's weights gave the answer."""
    if set(got.practice) & (set(other.practice) - set(own.practice)):
        return True
    return got.adapted and got.is_answered_like(other)


def alike(known: Mapping[int, Known], all_cases: Sequence[Case]) -> int:
    """Return how many pairs of cases, which learn two things for one problem, have replies that are alike."""
    learned = [at for at in known if all_cases[at].kind in (ADAPTED, EXAMPLES)]
    pairs = [
        (known[a], known[b])
        for a, b in itertools.combinations(learned, 2)
        if all_cases[a].body["messages"] == all_cases[b].body["messages"]
    ]
    return sum(one.is_like(other) for one, other in pairs)
