"""mass report: a run or comparison folder -> its HTML page; a folder of stored results -> a document."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mass import encoding
from mass.cli import console, options
from mass.errors import RunError
from mass.runs.folder import COMPARISON, CONFIG, METRICS

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

EXAMPLES = (
    "mass report runs/first",
    "mass report runs/eval-20260102-030405",
    "mass report results/minimath",
    "mass report results/minimath --check",
)
DOCUMENT, PICTURES = "docs/results.md", "report"
PAGE = "report.html"


def run(arguments: Sequence[str]) -> int:
    given = options.parse(_parser(), arguments)
    if given.print_config:
        options.print_given(given)
        return 0
    folder = Path(given.folder)
    if (folder / COMPARISON).is_file():
        page = write_comparison_page(folder)
    elif (folder / METRICS).is_file():
        page = write_training_page(folder)
    elif _is_results(folder):
        document = Path(given.document)
        return write_document(folder, document, Path(given.template or f"{document}.in"), check=given.check)
    else:
        raise RunError(
            f"{given.folder!r} holds neither {COMPARISON} nor {METRICS} nor stored results; give a folder of mass "
            "train, eval or collect"
        )
    console.say(str(page))
    return 0


def write_document(folder: Path, document: Path, template: Path, *, check: bool = False) -> int:
    """Fill the template from stored results, draw its pictures, and say what is missing.

    Raises RunError, with `check`, when the document is not what the results say; nothing is written then.
    """
    from mass.report import write_page
    from mass.report.paper import build, out_of_date
    from mass.results import read

    pictures = folder / PICTURES
    built = build(read(folder), template, pictures, document)
    if check:
        if stale := out_of_date(built, document, pictures):
            raise RunError(f"{stale}; run mass report {folder}")
        console.say(f"{document} is up to date")
        return 0
    for name, svg in built.pictures.items():
        write_page(svg, pictures / name)
    write_page(built.text, document)
    if built.missing:
        console.note(f"not measured yet: {'; '.join(dict.fromkeys(built.missing))}")
    console.say(f"{document}\n{len(built.pictures)} pictures in {pictures}")
    return 0


def _is_results(folder: Path) -> bool:
    from mass.results.stored import is_results

    return is_results(folder)


def write_comparison_page(folder: Path) -> Path:
    from mass.report import write_html

    return write_html(_json(folder / COMPARISON), folder / PAGE)


def write_training_page(folder: Path) -> Path:
    """Raises RunError when the run's files cannot be read. A last line that a kill cut short is left out."""
    from mass.report import training_page, write_page

    lines = _text(folder / METRICS).splitlines()
    rows = [row for i, line in enumerate(lines) if (row := _row(line, folder, i + 1, last=i + 1 == len(lines)))]
    return write_page(training_page(rows, _json(folder / CONFIG), f"Training run {folder.name}"), folder / PAGE)


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "report",
        "FOLDER [options]",
        "Write the HTML page of a run or comparison folder anew; or fill a document from a folder of stored results, "
        "so that no number in it is typed by hand.",
        EXAMPLES,
    )
    parser.add_argument("folder", type=str, help="A folder of mass train, eval or demo, or of stored results.")
    parser.add_argument("--document", type=str, default=DOCUMENT, help="Stored results: the document to write.")
    parser.add_argument("--template", type=str | None, default=None, help="Its template; DOCUMENT.in by default.")
    parser.add_argument("--check", action="store_true", help="Say whether the document is up to date; write nothing.")
    return parser


def _row(line: str, folder: Path, number: int, *, last: bool) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        if last:
            return {}
        raise RunError(f"{folder / METRICS}, line {number} is no JSON ({error}); mend or remove that line") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise RunError(f"{path} is no JSON ({error}); expected the file that mass wrote") from error


def _text(path: Path) -> str:
    try:
        return encoding.read(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); expected the file that mass wrote") from error
