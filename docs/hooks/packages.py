"""Folders of src/mass without an `__init__.py` -> packages to griffe, as they are to Python.

Griffe, which reads the docstrings, skips such a folder inside a package that has an `__init__.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import griffe


class FoldersArePackages(griffe.Extension):
    def on_module_instance(self, *, mod: griffe.Module, **_: Any) -> None:
        if not isinstance(mod.filepath, Path) or mod.filepath.name != "__init__.py":
            return
        for folder in sorted(path for path in mod.filepath.parent.iterdir() if path.is_dir()):
            if any(folder.rglob("*.py")) and not (folder / "__init__.py").exists():
                mod.set_member(folder.name, griffe.Module(folder.name, filepath=folder / "__init__.py", parent=mod))
