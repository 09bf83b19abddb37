"""`mass prompts`: print the prompts of a checkpoint, or the default ones, as a file to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mass.cli import console, options
from mass.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from mass.lm.prompts import PromptSet

EXAMPLES = (
    "mass prompts > mine.txt                      # change them, then: mass solve ... --model.prompts mine.txt",
    "mass prompts --form plain                    # for a base model, which has no chat template",
    "mass prompts --checkpoint runs/first         # those it was trained with",
    "mass prompts --check mine.txt",
)


def run(arguments: Sequence[str]) -> int:
    """Run `mass prompts` and return its exit code."""
    given = options.parse(_parser(), arguments)
    from mass.lm.prompts_file import read, write

    if given.print_config:
        options.print_yaml({name: getattr(given, name) for name in ("form", "checkpoint", "check")})
        return 0
    if given.check is not None:
        headings = [" ".join(filter(None, key)) for key in read(given.check)]
        console.say(f"{given.check} is whole; it sets: {', '.join(headings)}")
        return 0
    print(write(_prompts(given.form, given.checkpoint)), end="")
    return 0


def _prompts(form: str | None, checkpoint: str | None) -> PromptSet:
    from mass.lm.prompts import defaults

    if checkpoint is None:
        return defaults(chat=form != "plain")
    if form is not None:
        raise ConfigError("--form and --checkpoint are both given; expected one: a checkpoint brings its own prompts")
    from mass.adaptation.checkpoint import describe

    prompts = describe(Path(checkpoint)).prompts
    if prompts is None:
        raise ConfigError(
            f"checkpoint {checkpoint!r} does not say with which prompts it was trained; it was the default then; leave "
            "--checkpoint out"
        )
    return prompts


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "prompts",
        "[options]",
        "Print the prompts that ask a model for answers and for practice, as a text file to change. --model.prompts "
        "FILE gives it to solve, eval and train. Each kind of problem (math, code, choice, "
        "other) can have its own.",
        EXAMPLES,
    )
    parser.add_argument(
        "--form",
        type=Literal["chat", "plain"] | None,
        default=None,
        help="For a model with a chat template (the default) or without one.",
    )
    parser.add_argument("--checkpoint", type=str | None, default=None, help="A run folder of mass train: its prompts.")
    parser.add_argument("--check", type=str | None, default=None, help="Read this file and say what it sets.")
    return parser
