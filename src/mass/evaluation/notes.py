"""Write the sentences below a comparison's table: what the methods are, what was left out, what the intervals are."""

from __future__ import annotations

from collections.abc import Sequence

from mass.adaptation.synthesis.reasons import sentence as usable_sentence
from mass.config import EvalConfig
from mass.evaluation.folder import ComparisonFolder
from mass.evaluation.methods import (
    IN_CONTEXT,
    choice_of,
)
from mass.evaluation.runner import Found, Runner
from mass.evaluation.table import Record, label_of, mean_tokens
from mass.lm.prompts import kind_of
from mass.model import Mass
from mass.runs.data import note_of_golds
from mass.types import Example


def sessions_note(folder: ComparisonFolder) -> list[str]:
    """Return a note if the comparison was interrupted, with the commits if there were several."""
    sessions, commits = folder.sessions(), folder.commits()
    if len(sessions) < 2:
        return []
    begun = ", ".join(str(session["step"]) for session in sessions[1:])
    at = f" At commits {', '.join(commit[:7] for commit in commits)}." if len(commits) > 1 else ""
    return [f"Answered in {len(sessions)} sessions; interrupted after {begun} answers.{at}"]


def notes_of(runner: Runner, found: Found, pool: str, model: Mass, against: str) -> list[str]:
    """Return the notes of a comparison."""
    config, notes = runner.config, list[str]()
    for name, contestant in runner.contestants.items():
        if contestant.origin:
            notes.append(f"{name}: {contestant.origin}.")
    if "base-ttt" in found:
        m = runner.contestants["base-ttt"].config.synthesis.examples
        notes.append(f"base-ttt adapts to {m} problems with worked solutions, drawn for each answer from {pool}.")
    notes += [f"{name}: {said}." for name in found if (said := usable_sentence(_written(found[name])))]
    notes += [_choice_note(name, found, config) for name in found if choice_of(name) is not None]
    if IN_CONTEXT in found:
        notes.append(_in_context_note(found[IN_CONTEXT]))
    notes += model.notes
    if len(kinds := {kind_of(task) for task in runner.tasks}) > 1:
        notes.append(
            f"The tasks are of several kinds ({', '.join(sorted(kinds))}); all were asked as '{model.lm.kind}'."
        )
    notes += filter(None, [note_of_golds(runner.tasks)])
    if any(record.verdict.correct is None for records in found.values() for record in records):
        notes.append("Answers without a verdict are left out of the accuracies, not counted as wrong.")
    notes.append(
        f"Intervals are 95%: Wilson's for accuracies; for differences from {against} the percentile bootstrap over the "
        f"same problems, {config.resamples:,} resamples."
    )
    return notes


def _written(records: Sequence[Record]) -> list[Example]:
    """Return the practice that a model wrote for these answers."""
    adaptations = (record.attempt.record for record in records)
    return [example for a in adaptations if a is not None for example in a.examples if example.tokens]


def _choice_note(name: str, found: Found, config: EvalConfig) -> str:
    choice, label = choice_of(name), label_of(name, found[name])
    assert choice is not None
    whose = "base answers" if choice.sampler == "base" else "answers of the unadapted checkpoint of mass"
    how = "majority vote of" if choice.how == "majority" else "the one that the scorer of mass likes most of"
    said = f"{label}: {how} that many {whose} sampled at temperature {config.vote_temperature:g}"
    if choice.n is not None:
        return f"{said}."
    if "mass" not in found:
        return f"{said}; n is configured (votes), as mass was not compared."
    cost = f"{mean_tokens(found[name]):.1f} against {mean_tokens(found['mass']):.1f}"
    return f"{said}; n was chosen to generate at least as many tokens per problem as mass ({cost})."


def _in_context_note(records: Sequence[Record]) -> str:
    left_out = sum(record.attempt.left_out for record in records)
    return (
        f"{IN_CONTEXT}: the valid practice that mass writes stands before each problem instead of changing weights; "
        f"{left_out} examples at {sum(record.attempt.left_out > 0 for record in records)} of {len(records)} problems "
        "did not fit the context and were left out."
    )
