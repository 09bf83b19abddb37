"""A problem -> practice -> adapted weights, for one request: blocking, in a thread of its own.

The practice is sampled with that of other requests, in the decoder that all share; the inner loops of requests that
wait at the same time run as one stack (`mass.serving.inner_loops`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mass.adaptation import synthesis
from mass.adaptation.adapt import practise
from mass.adaptation.canaries import Canaries
from mass.config import AdaptConfig, config_hash, to_dict
from mass.lm import room
from mass.lm.continuous import check_cancelled
from mass.lm.lora import pick
from mass.serving.inner_loops import InnerLoops, Learned, Lesson
from mass.serving.models import Served
from mass.timing import Clock
from mass.types import Example, Params


@dataclass(frozen=True)
class Course:
    """What one request practises."""

    served: Served
    canaries: Canaries | None
    problem: str
    seed: int
    config: AdaptConfig
    cancelled: Callable[[], bool]
    wrote: Callable[[tuple[Example, ...]], None]
    """Called with the practice once it is written."""


def practised(course: Course, loops: InnerLoops) -> Learned:
    """Write practice and learn it; return the record, without answers, and the adapted weights.

    The record says in `fallback` why its weights must not answer. Raises Cancelled.
    """
    served, clock = course.served, Clock()
    with clock.stage("synthesis"):
        (examples,) = synthesis.synthesise(
            served.mass.lm, [course.problem], course.config.synthesis, [course.seed], served.mass.state.theta
        )
    course.wrote(examples)
    check_cancelled()
    # The way to answer is the request's own, and no part of what is learned: requests that differ in it share a stack.
    learned_with = dataclasses.replace(course.config, answer=served.mass.config.answer)
    lesson = Lesson((served.name, learned_with), course.problem, examples, course.seed, course.cancelled)
    with clock.stage("waiting"):
        record, adapter = loops.learn(lesson, lambda lessons: _learn(course, learned_with, lessons))
    seconds = {**clock.seconds, **record.seconds}
    seconds["waiting"] = max(0.0, seconds["waiting"] - sum(record.seconds.values()))
    description = to_dict(course.config)
    return dataclasses.replace(
        record, seconds=seconds, config=description, config_hash=config_hash(description), **served.mass.origin
    ), adapter


def _learn(course: Course, config: AdaptConfig, lessons: Sequence[Lesson]) -> list[Learned]:
    """Learn the lessons as stacks, as many at once as the memory has room for."""
    mass, found = course.served.mass, list[Learned]()
    size = room.stack_that_fits(mass.lm, len(lessons))
    for at in range(0, len(lessons), size):
        some, clock = lessons[at : at + size], Clock()
        records, adapted = practise(
            mass.lm,
            mass.state,
            [lesson.problem for lesson in some],
            config,
            [lesson.seed for lesson in some],
            clock,
            [lesson.examples for lesson in some],
            canaries=course.canaries,
        )
        seconds = {stage: spent for stage, spent in clock.seconds.items() if stage != "synthesis"}
        found += [
            (dataclasses.replace(record, seconds=seconds), _own(pick(adapted.stack, i)))
            for i, record in enumerate(records)
        ]
    return found


def _own(adapter: Params) -> Params:
    """Return a copy of one adapter of a stack, so that the others are freed when their requests end."""
    return {name: tensor.clone() for name, tensor in adapter.items()}
