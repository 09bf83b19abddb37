"""Run the command that the arguments name. Exit codes: 0, 2 for a user's error, 130 after Ctrl-C."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mass import encoding
from mass.cli import allocator
from mass.cli.failures import guarded
from mass.errors import ConfigError, nearest

VERBS = {
    "solve": "practise on a problem, then answer it",
    "adapt": "learn a file of examples, and save the adapter",
    "train": "meta-train a checkpoint: how to practise, how to weight practice",
    "eval": "compare methods on a task set",
    "gate": "measure when a checkpoint should practise, and keep that in it",
    "lm-eval": "run lm-evaluation-harness with mass among its models",
    "doctor": "measure whether meta-gradients are exact on a model of yours",
    "serve": "answer requests in OpenAI's form over HTTP, each after practice",
    "report": "write the page of a run or comparison",
    "prompts": "print the prompts, to change them and give them back with --model.prompts",
    "demo": "watch the shipped model practise, then compare it with its baselines",
}
USAGE = """usage: mass VERB [options]

A language model practises on the one problem in front of it, then answers.

verbs:
{verbs}

options:
  -h, --help   this text; `mass VERB --help` for a verb's own
  --version    the version
  --debug      with any verb: show the traceback of an error

examples:
  mass demo
  mass solve "Find the malk of the vector (9, 7)."
  mass adapt --examples mine.jsonl --out adapter
  mass train --config recipes/minimath-terms/mass.yaml --out runs/first
  mass eval --methods base,tt-ss,mass --tasks minimath-terms --tasks.size 200
"""


@dataclass(frozen=True)
class CommandLine:
    """A program with several commands, each a module with a function `run(arguments) -> exit code`."""

    name: str
    package: str
    """The package that contains the modules of the commands."""
    verbs: Mapping[str, str]
    """The commands, each with a few words on what it does."""
    light: tuple[str, ...]
    """Commands that do not load torch."""
    usage: str
    """The text of `--help`, with {verbs} in the place of the list of commands."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run one command and return its exit code.

        Without arguments, as a console script calls it, it may restart the process once (see `mass.cli.allocator`);
        with a list of arguments it never does.
        """
        arguments = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in arguments
        arguments = [argument for argument in arguments if argument != "--debug"]
        return guarded(lambda: self._dispatch(arguments, may_restart=argv is None), debug=debug)

    def module_of(self, verb: str) -> str:
        """Return the name of the module of a command."""
        return f"{self.package}.{verb.replace('-', '_')}"

    def _dispatch(self, arguments: list[str], *, may_restart: bool) -> int:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(
                self.usage.format(verbs="\n".join(f"  {verb:<10} {text}" for verb, text in self.verbs.items())), end=""
            )
            return 0
        if arguments[0] == "--version":
            print(f"{self.name} {_version()}")
            return 0
        _check_text(arguments)
        verb, rest = arguments[0], arguments[1:]
        if verb not in self.verbs:
            raise ConfigError(f"{verb!r} is not a verb of {self.name}{nearest(verb, self.verbs)}")
        if verb not in self.light:
            if may_restart and not {"-h", "--help"} & set(rest):
                allocator.restart_with_kept_memory()
            _quiet_libraries()
            from mass.cli import console  # not imported for `--help`, which has to be fast

            console.show_package_notes()
        return importlib.import_module(self.module_of(verb)).run(rest)


MASS = CommandLine("mass", "mass.cli", VERBS, ("report", "prompts"), USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `mass` and return its exit code."""
    return MASS.main(argv)


def _check_text(arguments: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8 with a ConfigError.

    Python keeps their bytes as lone surrogates, which fail later, wherever they are written or tokenized.
    """
    for argument in arguments:
        try:
            encoding.decode(argument.encode("utf-8", "surrogateescape"))
        except ValueError as error:
            shown = argument.encode("utf-8", "replace").decode()[:60]
            raise ConfigError(f"the argument {shown!r} {error}; give it as UTF-8") from error


def module_of(verb: str) -> str:
    """Return the name of the module of a command of `mass`."""
    return MASS.module_of(verb)


def _quiet_libraries() -> None:
    """Turn off progress bars and advice of other libraries, which would look like ours. Set before these are
    imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "transformers" in sys.modules:  # already imported, when this is called from Python
        from transformers.utils import logging

        logging.set_verbosity_error()


def _version() -> str:
    try:
        return importlib.metadata.version("mass-adapt")
    except importlib.metadata.PackageNotFoundError:
        return f"{importlib.import_module('mass').__version__} (from source)"


if __name__ == "__main__":
    sys.exit(main())
