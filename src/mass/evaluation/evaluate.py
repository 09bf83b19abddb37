"""Compare methods on the same tasks: a row for each method, every answer with its verdict, and all that repeats it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mass.adaptation.checkpoint import fingerprint, state_hash
from mass.config import EvalConfig, config_hash, to_dict
from mass.errors import ConfigError, DataError
from mass.evaluation.answers import answer_plain, training_pool
from mass.evaluation.contestants import Checkpoints, contestants
from mass.evaluation.folder import ComparisonFolder
from mass.evaluation.methods import (
    ADAPTING,
    TT_SS_LIKELIHOOD,
    TT_SS_VERIFIED,
    UNTRAINED_METHODS,
    check_against,
    check_methods,
    choice_of,
    in_order,
)
from mass.evaluation.notes import notes_of, sessions_note
from mass.evaluation.rows import Row
from mass.evaluation.runner import Found, Progress, Runner
from mass.evaluation.table import Record, row_of
from mass.lm.prompts import CODE, common_kind, kind_of, to_json
from mass.model import Mass
from mass.runs import provenance
from mass.runs.data import note_of_golds
from mass.runs.folder import held, json_values
from mass.seeds import derive
from mass.tasks import content_hash, minimath
from mass.types import Task

MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Comparison:
    """Methods side by side on the same problems. `to_dict` is what `mass.report` reads."""

    rows: list[Row]
    against: str
    """The method whose row the others are compared with."""
    tasks: dict[str, Any]
    model: str
    config: dict[str, Any]
    config_hash: str
    seed: int
    created: str
    version: str | None
    """Version of the package; None when it runs without being installed."""
    commit: str | None
    """Commit of the package's source when the comparison was last worked on, as in a training run's provenance."""
    examples: list[dict[str, Any]]
    notes: list[str]
    records: tuple[Record, ...]
    """Every answer, by method and then in the order of the tasks; not part of `to_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("rows", "records")}
        return json_values({**fields, "rows": [dataclasses.asdict(row) for row in self.rows]})


def evaluate(
    model: Mass,
    tasks: Iterable[Task],
    methods: Sequence[str] = ("base", "tt-ss", "mass"),
    *,
    checkpoints: Checkpoints | None = None,
    config: EvalConfig = EvalConfig(),  # noqa: B008 (frozen)
    seed: int = 0,
    train_tasks: Sequence[Task] | None = None,
    source: Mapping[str, Any] | None = None,
    out: Path | None = None,
    resume: bool = False,
    against: str | None = None,
    on_progress: Progress | None = None,
) -> Comparison:
    """Let methods answer the same tasks, and compare them.

    Args:
        tasks: The problems to answer, with their gold.
        methods: Names from `mass.evaluation.methods.METHODS`; also 'maj@8' for a number of votes of your own.
        checkpoints: Trained method -> run folder. A missing one is taken from the model, or from the package for its
            own models. 'untrained' runs the method from an untrained state.
        config: Settings of the comparison.
        seed: Seed of all sampling, practice and intervals.
        train_tasks: Tasks that base-ttt draws from. None: 1,000 problems of minimath's train split.
        source: Where the tasks come from (source, split, seed; levels and subjects where chosen), for the record.
        out: An empty or new folder. Each answer is written to `records.jsonl` as it comes, the table at the end.
        resume: Continue the interrupted comparison in `out`; all other arguments have to be the same.
        against: The method that the others are compared with, one of `methods`. None: base, where it is among them.
        on_progress: Called with (method, problems done, problems in total).

    Raises:
        ConfigError: A method is unknown, its checkpoint is missing, or `against` is not one of the methods.
        DataError: There are no tasks, none has an answer to judge by, or a problem is too long for the model.
        RunError: `out` is in use or cannot be written, or there is nothing in it to continue.
    """
    names, tasks = check_methods(methods), list(tasks)
    against = check_against(against, names)
    if not tasks:
        raise DataError("there are no tasks to answer; give at least one")
    _check_votes(names, tasks)
    note_of_golds(tasks)
    model = model.asking(common_kind(tasks))
    config = dataclasses.replace(config, synthesis=config.synthesis or model.config.synthesis)
    trained_from = _built_in(source)
    runner = Runner(
        tasks=tasks,
        contestants=contestants(model, names, config, checkpoints or {}, seed),
        config=config,
        seeds=[derive(seed, "eval", index) for index in range(len(tasks))],
        pool=training_pool(train_tasks, seed, [t.problem for t in tasks], trained_from) if "base-ttt" in names else [],
        progress=on_progress,
        learning_seed=derive(seed, "examples"),
    )
    # Before the folder is touched: a wrong input must not leave a folder that has to be deleted.
    runner.check_lengths()
    folder = None if out is None else ComparisonFolder(Path(out))
    with _held(folder, resume=resume):
        found = _opened(folder, runner, names, model, seed, resume=resume)
        # maj@n and best-of-n take n from the tokens of mass, and in-context takes its practice, so mass runs first.
        for name in in_order(names):
            so_far = found.setdefault(name, [])
            for records in runner.run(name, found, len(so_far)):
                so_far += records
                if folder is not None:
                    folder.write(records)
        pool = f"{trained_from}'s train split" if train_tasks is None else "the training tasks given"
        ordered = {name: found[name] for name in names}
        comparison = _comparison(runner, ordered, model, seed, source, pool, against)
        if folder is not None:
            comparison = dataclasses.replace(comparison, notes=[*comparison.notes, *sessions_note(folder)])
            folder.finish(comparison.to_dict())
    return comparison


def _held(folder: ComparisonFolder | None, *, resume: bool) -> AbstractContextManager[None]:
    if folder is None:
        return nullcontext()
    folder.check(resume=resume)
    return held(folder.path)


def _opened(
    folder: ComparisonFolder | None, runner: Runner, names: Sequence[str], model: Mass, seed: int, *, resume: bool
) -> dict[str, list[Record]]:
    """Begin or resume the folder, and return the records that it already has, by method."""
    if folder is None:
        if resume:
            raise ConfigError("resume is set without out; expected the folder of the comparison to go on with")
        return {}
    asked, found = _asked(runner, names, model, seed), dict[str, list[Record]]()
    if resume:
        found = folder.resume(asked, runner.tasks, in_order(names), runner.config.stack)
    else:
        folder.begin(asked)
    folder.note(provenance.session(model.lm, sum(map(len, found.values()))))
    return found


def _asked(runner: Runner, names: Sequence[str], model: Mass, seed: int) -> dict[str, Any]:
    """Return all that the answers and verdicts depend on, except the versions in the provenance.

    Values that an option sets come first, then those that follow from them: the first difference found on resuming is
    then one that the user can change.
    """
    states = {name: runner.contestants[name].state for name in names}
    return {
        "seed": seed,
        "methods": list(names),
        "model": {
            "name": model.lm.name,
            "fingerprint": fingerprint(model.lm),
            "dtype": model.lm.dtype,
            "quantization": model.lm.quantization,
            "sampled by": model.lm.sampled_by,
        },
        "tasks": {"size": len(runner.tasks), "hash": content_hash(runner.tasks), "gold": _gold_hash(runner.tasks)},
        "practice of base-ttt": {"hash": content_hash(runner.pool), "gold": _gold_hash(runner.pool)},
        **_configuration(runner, names, model),
        "weights": {name: state_hash(state) for name, state in states.items() if state is not None},
    }


def _gold_hash(tasks: Sequence[Task]) -> str:
    return config_hash({"gold": [[task.answer, task.solution, task.verifier, *task.examples] for task in tasks]})


def _check_votes(names: Sequence[str], tasks: Sequence[Task]) -> None:
    """Refuse a vote on programs with a ConfigError: no two programs are equal, so the first would always win."""
    for name in names:
        choice = choice_of(name)
        if choice is not None and choice.how == "majority" and any(kind_of(task) == CODE for task in tasks):
            raise ConfigError(
                f"{name} votes on final answers, and a program has none; expected tasks with answers; leave {name} "
                "out, or use best-of-n, or --samples for pass@n"
            )


def _comparison(
    runner: Runner,
    found: Found,
    model: Mass,
    seed: int,
    source: Mapping[str, Any] | None,
    pool: str,
    against: str,
) -> Comparison:
    reference, resamples = found.get(against), runner.config.resamples
    rows = [
        row_of(name, records, reference, resamples, derive(seed, "bootstrap", name), against)
        for name, records in found.items()
    ]
    given = dict(source or {})
    config = _configuration(runner, list(found), model)
    return Comparison(
        rows=rows,
        against=against,
        tasks={
            "source": given.get("source", "unnamed"),
            "split": given.get("split"),
            "size": len(runner.tasks),
            "seed": given.get("seed"),
            **{name: given[name] for name in ("levels", "subjects") if given.get(name) is not None},
            "hash": content_hash(runner.tasks),
        },
        model=model.lm.name,
        config=config,
        config_hash=config_hash(config),
        seed=seed,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=provenance.versions().get("mass-adapt"),
        commit=provenance.commit(),
        examples=_examples(runner, found),
        notes=notes_of(runner, found, pool, model, against),
        records=tuple(record for records in found.values() for record in records),
    )


def _configuration(runner: Runner, names: Sequence[str], model: Mass) -> dict[str, Any]:
    return {
        "prompts": {"kind": model.lm.kind, **to_json({"asked": model.lm.prompts})},
        "eval": to_dict(runner.config),
        "adapt": {name: to_dict(runner.contestants[name].config) for name in names if name in ADAPTING},
        "training": {name: training for name in names if (training := runner.contestants[name].training)},
    }


def _built_in(source: Mapping[str, Any] | None) -> str:
    """Return the built-in source that the tasks come from, else minimath."""
    name = str((source or {}).get("source") or "")
    return name if name in minimath.SOURCES else minimath.MINIMATH


def _examples(runner: Runner, found: Found) -> list[dict[str, Any]]:
    """Return the first tasks with their practice and the answers before and after, for the main adapting method."""
    method = next(
        (
            name
            for name in ("mass", "mass-gold", "tt-ss", TT_SS_VERIFIED, TT_SS_LIKELIHOOD, "base-ttt")
            if name in found
        ),
        None,
    )
    if method is None:
        return []
    same = "base" if method in UNTRAINED_METHODS else f"{method}-unadapted"
    before = list(found.get(same, ()))[:MAX_EXAMPLES]
    if not before:
        problems = [task.problem for task in runner.tasks[:MAX_EXAMPLES]]
        config = dataclasses.replace(runner.config, samples=0)
        plain = answer_plain(runner.contestants[method], problems, runner.seeds[:MAX_EXAMPLES], config)
        before = runner.judge(method, 0, plain)
    return [_example(after, plain) for after, plain in zip(found[method], before, strict=False)]


def _example(after: Record, before: Record) -> dict[str, Any]:
    adaptation = after.attempt.record
    assert adaptation is not None
    shown = ("problem", "solution", "weight", "loss_before", "loss_after", "rejected")
    return {
        "problem": after.task.problem,
        "answer": after.task.answer,
        "unadapted_text": before.attempt.text,
        "text": after.attempt.text,
        "correct": after.verdict.correct,
        "unadapted_correct": before.verdict.correct,
        "practice": [{name: getattr(example, name) for name in shown} for example in adaptation.examples],
    }
