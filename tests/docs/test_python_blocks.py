"""The pages' Python: every block compiles; those of a page run in their order, and print what the page says they print.

A block under `<!-- not run: REASON -->` is compiled only. A block of text right below a Python block is its output.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest
import reading
from reading import PAGES, Block


def python_of(page: Path) -> list[Block]:
    return [block for block in reading.blocks(page) if block.language == "python"]


WITH_PYTHON = [page for page in PAGES if python_of(page)]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=reading.name_of)
def test_python_compiles(page: Path) -> None:
    for block in python_of(page):
        compile(block.text, str(block), "exec")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in WITH_PYTHON if any(b.not_run is None for b in python_of(p))], ids=reading.name_of
)
def test_python_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace: dict[str, object] = {"__name__": "page"}
    found = reading.blocks(page)
    for block, below in zip(found, [*found[1:], None], strict=True):
        if block.language == "python" and block.not_run is None:
            printed = run(block, namespace)
            if below is not None and is_output(block, below):
                assert printed == below.text, f"{block} prints otherwise"


def run(block: Block, namespace: dict[str, object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, str(block), "exec"), namespace)
    return out.getvalue()


def is_output(block: Block, below: Block) -> bool:
    """Whether the block below is text that follows with no word between."""
    end = block.line + block.text.count("\n")
    between = block.page.read_text(encoding="utf-8").splitlines()[end : below.line - 2]
    return below.language == "text" and re.fullmatch(r"\s*", "".join(between)) is not None
