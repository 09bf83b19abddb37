"""benchmarks/serving_soak.py: whose reply it is, what counts as a fault; benchmarks/serving.py: its numbers."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import serving_soak
from serving_cases import (
    ADAPTED,
    BAD,
    DIFFERS,
    EXAMPLES,
    LEFT,
    LOST,
    OTHERS,
    OWN,
    PLAIN,
    SHARES,
    Known,
    alike,
    cases,
    verdict,
)
from serving_client import Reply, percentile

import serving

ALL = cases("m", ["one", "two"], [[("a", "b")], [("c", "d")]])


def reply_to(index: int, text: str | None = None, learned: int | None = None) -> Reply:
    """Return the reply of a made-up server, which tells by its log-probabilities what it has learned."""
    case, mark = ALL[index], float(index if learned is None else learned)
    practice = [{"text": f"practice of {mark}"}] if case.marked else []
    mass: dict[str, Any] = {"id": "x", "adapted": case.practises, "practice": practice}
    return Reply(case.status, {"mass": mass}, [f"answer {index}" if text is None else text], [[-mark - 1]])


KNOWN = {i: Known.of(reply_to(i)) for i, case in enumerate(ALL) if not case.leaves and case.kind != BAD}
AT = {kind: [i for i, case in enumerate(ALL) if case.kind == kind] for kind in SHARES}


def judged(index: int, reply: Reply) -> str:
    return verdict(ALL[index], reply, KNOWN, ALL, index)


def test_each_kind_is_asked() -> None:
    assert all(AT.values())
    assert sum(SHARES.values()) == 100


@pytest.mark.parametrize("kind", [kind for kind in SHARES if kind != BAD])
def test_a_reply_as_alone_is_its_own(kind: str) -> None:
    assert {judged(i, reply_to(i)) for i in AT[kind]} == {OWN}


def test_the_practice_of_another_is_seen_whatever_the_answer() -> None:
    one, other = AT[ADAPTED][:2]
    assert ALL[one].body["messages"] == ALL[other].body["messages"]
    assert judged(one, reply_to(one, learned=other)) == OTHERS


def test_the_weights_of_another_are_seen_beside_own_practice() -> None:
    one, other = AT[ADAPTED][:2]
    reply = replace(reply_to(other), body=reply_to(one).body)
    assert judged(one, reply) == OTHERS


def test_the_examples_of_another_are_seen() -> None:
    one, other = AT[EXAMPLES]
    assert judged(one, reply_to(other)) == OTHERS


def test_what_is_like_nobody_differs() -> None:
    assert judged(AT[PLAIN][0], reply_to(AT[PLAIN][0], "else")) == DIFFERS
    assert judged(AT[ADAPTED][0], reply_to(AT[ADAPTED][0], learned=99)) == DIFFERS


def test_what_does_not_come_is_lost() -> None:
    plain, bad = AT[PLAIN][0], AT[BAD][0]
    assert judged(plain, replace(reply_to(plain), whole=False)) == LOST
    assert judged(plain, Reply(503, {"error": {"message": "stopping"}})) == LOST
    assert judged(AT[LEFT][0], Reply(0, {})) == LOST
    assert judged(bad, Reply(ALL[bad].status, {})) == LOST
    assert judged(bad, Reply(ALL[bad].status, {"error": {"message": "expected …"}})) == OWN


def test_cases_whose_replies_are_alike_are_counted() -> None:
    assert alike(KNOWN, ALL) == 0
    one, other = AT[ADAPTED][:2]
    assert alike({**KNOWN, other: KNOWN[one]}, ALL) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.verdicts[PLAIN].update([LOST]), "1 requests lost"),
        (lambda found: found.verdicts[ADAPTED].update([OTHERS, OTHERS]), "2 replies with another's practice"),
        (lambda found: found.verdicts[PLAIN].update([DIFFERS]), "1 plain answers that differ"),
        (lambda found: setattr(found, "changed", 3), "3 plain answers that changed"),
        (lambda found: setattr(found, "memory", [100.0, 90.0, 106.0]), "memory grew by 6.0%"),
        (lambda found: found.records.update(missing=1), "1 adaptations without their record"),
    ],
)
def test_a_fault_is_said(change: Any, said: str) -> None:
    found = serving_soak.Found({})
    found.memory, found.records = [100.0, 104.0], {"told": 5, "missing": 0, "wrong": 0}
    assert found.faults() == []
    change(found)
    assert found.faults() == [said]


def test_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    assert percentile([3, 1, 2, 4], 0.95) == 4
    assert percentile(list(range(1, 101)), 0.95) == 95
    assert percentile([5.0], 0.5) == 5


def test_the_share_that_is_not_the_models_is_of_all_seconds() -> None:
    spent = [{"other": 1.0, "queue": 2.0, "total": 4.0}, {"other": 1.0, "waiting": 3.0, "total": 16.0}]
    replies = [Reply(200, {"mass": {"seconds": seconds, "adapted": True}}, seconds=1.0) for seconds in spent]
    found = serving.crowd(8, replies, took_s=4.0)
    assert (found.other, found.queue, found.waiting, found.per_s) == (0.1, 0.1, 0.15, 0.5)
