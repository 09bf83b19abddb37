"""`mass gate`: measure when a checkpoint should practise, and keep the bounds in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mass.cli import console, options
from mass.config import to_dict
from mass.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from mass.evaluation.gating import Bounds

EXAMPLES = (
    "mass gate",
    "mass gate --model Qwen/Qwen2.5-7B-Instruct --checkpoint runs/first --tasks validation.jsonl",
    "mass gate --checkpoint runs/first --tasks gsm8k --tasks.split train --tasks.size 300 --no_write",
)


def run(arguments: Sequence[str]) -> int:
    """Run `mass gate` and return its exit code."""
    given = options.parse(_parser(), arguments)
    if given.print_config:
        options.print_given(given)
        return 0
    from mass.adaptation.checkpoint import set_gate
    from mass.evaluation import gating
    from mass.model import load

    if given.stack < 1:
        raise ConfigError(f"--stack is {given.stack}; expected at least 1")
    tasks, _ = options.load_tasks(given)
    with console.working("loading the model"):
        model = load(given.model.name, given.checkpoint, **options.loading(given))
    console.notes(model.notes)
    if model.checkpoint is None and not given.no_write:
        raise ConfigError(
            "an untrained model has no checkpoint to keep the bounds in; give --no_write, and put what is printed "
            "under adapt: in a --config file"
        )
    with console.working(f"practising on {len(tasks)} problems"):
        measured = gating.measure(model, tasks, given.seed, given.stack)
    found = gating.bounds(measured, model.config.gate)
    console.note(_summary(found))
    options.print_yaml({"gate": to_dict(found.gate)})
    if model.checkpoint is not None and not given.no_write:
        console.note(f"kept in {set_gate(Path(model.checkpoint), found.gate)}")
    return 0


def _summary(found: Bounds) -> str:
    return (
        f"{found.problems} problems: {found.right} right without practice; practice helped {found.helped}, hurt "
        f"{found.hurt}. {found.skipped} are certain enough to be answered without it. A right answer is the more "
        f"certain one in {found.certain_right:.0%} of pairs, and one on which practice does not help in "
        f"{found.certain_unhelped:.0%}."
    )


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "gate",
        "[options]",
        "Measure on validation problems with gold when practice is worth its time and when an update has gone astray, "
        "and keep the bounds in the checkpoint. `--adapt.gate.enabled true` decides by them.",
        EXAMPLES,
    )
    options.add_model_options(parser, checkpoint="A run folder of mass train; a shipped model's own by default.")
    options.add_task_options(parser, default="minimath-terms", split="validation")
    parser.set_defaults({"tasks.size": 400})
    parser.add_argument("--seed", type=int, default=0, help="Every random draw is a function of it.")
    parser.add_argument("--stack", type=int, default=32, help="Problems practised on side by side.")
    parser.add_argument("--no_write", action="store_true", help="Print the bounds, and keep nothing.")
    return parser
