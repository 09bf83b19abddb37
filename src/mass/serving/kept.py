"""An answered request -> the entry of its adaptation among the records, and back to the request that it came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mass.adaptation import checkpoint as checkpoint_files
from mass.config import AdaptConfig, ExamplesConfig, SamplingConfig, config_hash, to_dict
from mass.errors import MassError
from mass.lm.prompts import to_json
from mass.serving.answering import Answering
from mass.serving.errors import other_version
from mass.serving.examples import AnsweringByExamples
from mass.serving.job import Outcome
from mass.serving.models import Served
from mass.serving.naming import base_name
from mass.serving.protocol import AnswerRequest, MassOptions, Message
from mass.serving.records import Entry
from mass.types import Adaptation
from mass.verify import final_answer


def entry_of(answering: Answering, outcome: Outcome) -> Entry:
    """Return the entry of a request that was answered after practice, or that was to be."""
    job, request = answering.job, answering.job.request
    unadapted = outcome.unadapted or outcome.samples
    text = outcome.samples[0].text
    record = dataclasses.replace(
        answering.record or _without_practice(answering),
        fallback=outcome.fallback,
        gate=outcome.gate,
        text=text.strip(),
        answer=final_answer(text),
        unadapted_text=unadapted[0].text.strip(),
        tokens=outcome.tokens,
        seconds=outcome.seconds,
    )
    extra: dict[str, Any] = {
        "request": dataclasses.asdict(request),
        "texts": [sample.text for sample in outcome.samples],
        "answer_seed": answering.answer_seed,
        "sampling": to_dict(answering.config.answer),
        "learned": _learned(answering),
    }
    entry = Entry.of(
        record,
        id=job.id,
        owner=job.owner,
        checkpoint=job.served.checkpoint,
        checkpoint_hash=job.served.checkpoint_hash,
        time=job.time,
        extra=extra,
    )
    return dataclasses.replace(
        entry, summary=dataclasses.replace(entry.summary, model=job.served.name, adapted=outcome.adapted)
    )


def _learned(answering: Answering) -> dict[str, Any] | None:
    """Return how the examples of a request were learned, as options of `ExamplesConfig`; None where none were."""
    choice = answering.choice if isinstance(answering, AnsweringByExamples) else None
    if choice is None:
        return None
    used = choice.chosen
    rates = () if used.learning_rate is None else (used.learning_rate,)
    epochs = () if used.epochs is None else (used.epochs,)
    given = {"learning_rates": rates, "epochs": epochs}
    return {"method": used.method, **{name: value for name, value in given.items() if value}}


@dataclass(frozen=True)
class Recorded:
    """What an entry says of how its request was answered."""

    request: AnswerRequest
    config: AdaptConfig | None
    """How the practice is learned again; None where given examples were learned."""
    sampling: SamplingConfig
    answer_seed: int
    texts: list[str]
    learned_by: ExamplesConfig | None
    """How the examples of the request are learned again; None where none were given, or they were not learned."""


def recorded(entry: Entry) -> Recorded:
    """Read an entry whole, before anything of it is answered again. Raises a `RequestError` of status 409 for one that
    another version wrote."""
    extra = entry.extra
    try:
        learned_by = _learned_by(extra["learned"])
        return Recorded(
            _request(extra["request"]),
            checkpoint_files.adapt_config(entry.record.config) if learned_by is None else None,
            SamplingConfig(**extra["sampling"]),
            int(extra["answer_seed"]),
            [str(text) for text in extra["texts"]],
            learned_by,
        )
    except (AttributeError, KeyError, TypeError, ValueError, MassError) as error:
        raise other_version() from error


def _learned_by(given: dict[str, Any] | None) -> ExamplesConfig | None:
    if given is None:
        return None
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return ExamplesConfig(**values)


def _without_practice(answering: Answering) -> Adaptation:
    """Return the record of a request whose practice was never learned."""
    mass, request = answering.job.served.mass, answering.job.request
    config = to_dict(answering.config)
    return Adaptation(
        problem=request.problem,
        model=mass.lm.name,
        seed=answering.seed,
        config=config,
        config_hash=config_hash(config),
        kind=mass.lm.kind,
        prompts=to_json({mass.lm.kind: mass.lm.prompts})[mass.lm.kind],
        **mass.origin,
    )


def _request(given: dict[str, Any]) -> AnswerRequest:
    values = dict(given)
    options = dict[str, Any](values["mass"])
    options["examples"] = tuple((one, other) for one, other in options["examples"])
    values["mass"] = MassOptions(**options)
    values["messages"] = tuple(Message(**message) for message in values["messages"])
    values["stop"] = tuple(values["stop"])
    values |= {"stream": False, "include_usage": False}
    return AnswerRequest(**values)


def shown(entry: Entry, served: Served | None) -> dict[str, Any]:
    """Return an entry for its owner: without paths of this machine, by the names of the API instead."""
    record = entry.record.to_dict()
    record["model"] = served.base if served is not None else base_name(entry.record.model)
    record["checkpoint"] = entry.summary.checkpoint
    gate = record["config"].get("gate") or {}
    if gate.get("canaries"):
        gate["canaries"] = base_name(gate["canaries"])
    return {**summary(entry), "record": record, "request": entry.extra.get("request")}


def summary(entry: Entry) -> dict[str, Any]:
    """Return an entry as lists show it."""
    return listed(entry.summary)


def listed(one: Any) -> dict[str, Any]:
    """Return a summary as JSON. The owner's hash is its own business."""
    values = dataclasses.asdict(one)
    del values["owner"]
    return {**values, "gate": values["gate"] or None, "fallback": values["fallback"] or None}
