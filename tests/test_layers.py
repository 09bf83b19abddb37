"""Imports inside `mass` point down only; units of one band do not import each other (docs/adr/0001-layer-bands.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "mass"

BANDS: tuple[tuple[str, ...], ...] = (
    ("types", "errors", "seeds", "bootstrap", "encoding", "timing"),
    ("config",),
    ("metagrad",),
    ("inner", "verify"),
    ("tasks",),
    ("lm",),
    ("adaptation",),
    ("model",),
    ("runs",),
    ("training",),
    ("evaluation",),
    ("preflight",),
    ("report",),
    ("serving",),
    ("cli",),
    ("__init__", "__main__"),
)
BAND_OF = {unit: band for band, units in enumerate(BANDS) for unit in units}


def unit_of(path: Path, root: Path = ROOT) -> str:
    """A module's unit: its name, or that of the package right under `mass` that holds it."""
    return path.relative_to(root).with_suffix("").parts[0]


def imported_modules(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, dotted name as a tuple) of every import, wherever it stands; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield node.lineno, (*base, *module, alias.name)


def imported_units(source: str, package: tuple[str, ...], root: Path = ROOT) -> set[tuple[int, str]]:
    """(line, unit) of every import of something in `mass`. What is no unit comes from the package root; a module
    without a band is left out, as `violations` says so of the module itself."""
    found: set[tuple[int, str]] = set()
    for line, name in imported_modules(ast.parse(source), package):
        if name[0] != "mass":
            continue
        unit = name[1] if len(name) > 1 else "__init__"
        if unit in BAND_OF:
            found.add((line, unit))
        elif not (root / f"{unit}.py").exists() and not (root / unit).is_dir():
            found.add((line, "__init__"))
    return found


def violations(path: Path, root: Path = ROOT) -> list[str]:
    unit = unit_of(path, root)
    where = path.relative_to(root.parent)
    if unit not in BAND_OF:
        return [f"{where}: {unit!r} has no band; place it in BANDS here and in docs/adr/0001-layer-bands.md"]
    package = ("mass", *path.relative_to(root).parent.parts)
    return [
        f"{where}:{line}: {unit!r} (band {BAND_OF[unit]}) imports {other!r} (band {BAND_OF[other]}); imports point down"
        for line, other in sorted(imported_units(path.read_text(encoding="utf-8"), package, root))
        if other != unit and BAND_OF[other] >= BAND_OF[unit]
    ]


def test_imports_point_down() -> None:
    found = [line for path in sorted(ROOT.rglob("*.py")) for line in violations(path)]
    assert not found, "\n" + "\n".join(found)


def test_no_unit_is_listed_twice() -> None:
    assert len(BAND_OF) == sum(len(units) for units in BANDS)


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("lm/load.py", "from mass.types import Task", ""),
        ("lm/load.py", "import torch, mass_other", ""),
        ("tasks/jsonl.py", "from mass.tasks.minimath import make", ""),
        ("tasks/minimath/kinds.py", "from .words import name\nfrom ... import types", ""),
        ("lm/load.py", "from mass.training.trainer import train", "'training'"),
        ("lm/load.py", "import mass.training.trainer as t", "'training'"),
        ("lm/load.py", "from mass import evaluation", "'evaluation'"),
        ("lm/load.py", "from ..cli.main import main", "'cli'"),
        ("tasks/minimath/kinds.py", "from ... import lm", "'lm'"),
        ("verify/math.py", "from mass.tasks import load", "'tasks'"),
        ("metagrad/outer.py", "def f():\n    from mass.training.outer import Loss", ":2:"),
        ("inner.py", "if TYPE_CHECKING:\n    from mass.training.outer import Loss", "'training'"),
        ("evaluation/table.py", "from mass import Mass", "'__init__'"),
        ("cli/main.py", "import mass", "'__init__'"),
        ("misc.py", "", "'misc' has no band"),
    ],
)
def test_an_import_that_points_up_is_named(tmp_path: Path, name: str, source: str, expected: str) -> None:
    path = tmp_path / "mass" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    found = "\n".join(violations(path, tmp_path / "mass"))
    assert (expected in found) if expected else not found
