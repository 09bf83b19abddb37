"""`document`: fill a document from a folder of stored results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mass.cli import console, options
from mass.errors import RunError
from research import PROGRAM
from research.results.stored import is_results

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLES = (
    "python -m research document results/minimath",
    "python -m research document results/minimath --check",
)
DOCUMENT, PICTURES = "docs/results.md", "report"


def run(arguments: Sequence[str]) -> int:
    """Run `document` and return its exit code."""
    given = options.parse(_parser(), arguments)
    if given.print_config:
        options.print_given(given)
        return 0
    folder, document = Path(given.folder), Path(given.document)
    if not is_results(folder):
        raise RunError(
            f"{given.folder!r} holds no stored results; expected a folder of python -m research collect; give one"
        )
    return write_document(folder, document, Path(given.template or f"{document}.in"), check=given.check)


def write_document(folder: Path, document: Path, template: Path, *, check: bool = False) -> int:
    """Fill the template from stored results, draw its pictures, and print what is missing.

    Raises:
        RunError: With `check`, the document differs from what the results give. Nothing is written then.
    """
    from mass.report import write_page
    from research.document.build import build, out_of_date
    from research.results import read

    pictures = folder / PICTURES
    built = build(read(folder), template, pictures, document)
    if check:
        if stale := out_of_date(built, document, pictures):
            raise RunError(f"{stale}; run python -m research document {folder}")
        console.say(f"{document} is up to date")
        return 0
    for name, svg in built.pictures.items():
        write_page(svg, pictures / name)
    write_page(built.text, document)
    if built.missing:
        console.note(f"not measured yet: {'; '.join(dict.fromkeys(built.missing))}")
    console.say(f"{document}\n{len(built.pictures)} pictures in {pictures}")
    return 0


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "document",
        "FOLDER [options]",
        "Fill a document from a folder of stored results, so that no number in it is typed by hand.",
        EXAMPLES,
        PROGRAM,
    )
    parser.add_argument("folder", type=str, help="A folder of stored results.")
    parser.add_argument("--document", type=str, default=DOCUMENT, help="The document to write.")
    parser.add_argument("--template", type=str | None, default=None, help="Its template; DOCUMENT.in by default.")
    parser.add_argument("--check", action="store_true", help="Say whether the document is up to date; write nothing.")
    return parser
