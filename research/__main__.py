"""`python -m research VERB`: the commands that produce docs/results.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mass.cli.main import CommandLine
from research import PROGRAM

USAGE = """usage: python -m research VERB [options]

Makes what docs/results.md reports: the tiny bases, the studies with all their runs, what is stored of them, the page.

verbs:
{verbs}

options:
  -h, --help   this text; `python -m research VERB --help` for a verb's own
  --debug      with any verb: show the traceback of an error

examples:
  python -m research study --config recipes/minimath-terms/table.yaml --out runs/table --parallel 2
  python -m research document results/minimath --check
"""
VERBS = {
    "pretrain": "make a tiny base model from minimath",
    "study": "run the trainings and evaluations of a study, seed by seed",
    "analyse": "what a checkpoint's practice is like, and what each example is worth",
    "collect": "store what finished runs measured in a few kilobytes each",
    "document": "fill a document from stored results, so that no number in it is typed by hand",
}
RESEARCH = CommandLine(PROGRAM, "research.cli", VERBS, ("collect", "document"), USAGE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, `sys.argv` by default."""
    return RESEARCH.main(argv)


if __name__ == "__main__":
    sys.exit(main())
