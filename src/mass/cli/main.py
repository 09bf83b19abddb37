"""argv -> the verb it names -> exit code: 0, 2 for an error of the user's, 130 after Ctrl-C."""

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
    "train": "meta-train a checkpoint: how to practise, how to weight practice",
    "eval": "compare methods on a task set",
    "lm-eval": "run lm-evaluation-harness with mass among its models",
    "doctor": "measure whether meta-gradients are exact on a model of yours",
    "report": "write the page of a run or comparison",
    "prompts": "print the prompts, to change them and give them back with --prompts",
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
  mass solve "Find the dot product of (3, 4) and (2, 5)."
  mass train --config recipes/minimath/mass.yaml --out runs/first
  mass eval --methods base,tt-ss,mass --tasks minimath --size 200
"""


@dataclass(frozen=True)
class Program:
    """A command with verbs, each a module with a function `run(arguments) -> exit code`."""

    name: str
    package: str
    """Where the modules of its verbs are."""
    verbs: Mapping[str, str]
    """What each does, in a few words."""
    light: tuple[str, ...]
    """Verbs that do not load torch."""
    usage: str
    """What `--help` prints, with {verbs} in the place of their list."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run one command. Without arguments, as a console script calls it, it may restart the process once (see
        `mass.cli.allocator`); with a list it never does."""
        arguments = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in arguments
        arguments = [argument for argument in arguments if argument != "--debug"]
        return guarded(lambda: self._dispatch(arguments, may_restart=argv is None), debug=debug)

    def module_of(self, verb: str) -> str:
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
            raise ConfigError(f"{verb!r} is no verb of {self.name}{nearest(verb, self.verbs)}")
        if verb not in self.light:
            if may_restart and not {"-h", "--help"} & set(rest):
                allocator.restart_with_kept_memory()
            _quiet_libraries()
            from mass.cli import console  # not for `--help`, which is to be quick

            console.show_package_notes()
        return importlib.import_module(self.module_of(verb)).run(rest)


MASS = Program("mass", "mass.cli", VERBS, ("report", "prompts"), USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `mass`."""
    return MASS.main(argv)


def _check_text(arguments: Sequence[str]) -> None:
    """Python keeps bytes of an argument that are no text as lone surrogates, which fail later, in whatever writes or
    tokenizes them. Raises ConfigError."""
    for argument in arguments:
        try:
            encoding.decode(argument.encode("utf-8", "surrogateescape"))
        except ValueError as error:
            shown = argument.encode("utf-8", "replace").decode()[:60]
            raise ConfigError(f"the argument {shown!r} {error}; give it as UTF-8") from error


def module_of(verb: str) -> str:
    """The module of a verb of `mass`."""
    return MASS.module_of(verb)


def _quiet_libraries() -> None:
    """Progress bars and advice of third parties, which would be read as ours. Set before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "transformers" in sys.modules:  # a caller in process has imported it already
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()


def _version() -> str:
    try:
        return importlib.metadata.version("mass-adapt")
    except importlib.metadata.PackageNotFoundError:
        return f"{importlib.import_module('mass').__version__} (from source)"


if __name__ == "__main__":
    sys.exit(main())
