"""Names of models for clients, and folders of checkpoints by name."""

from __future__ import annotations

import os
from pathlib import Path

from mass.errors import ConfigError


def base_name(name: str) -> str:
    """Return a base's name for clients: a local folder or file by its last part, so that no path is told."""
    # Unlike `Path.exists`, this takes any text: a name of thousands of characters is no file either.
    return Path(name).name if Path(name).is_absolute() or os.path.exists(name) else name


def checkpoint_folders(given: list[str]) -> dict[str, str]:
    """Return folders by name from `NAME=FOLDER` each. Raises ConfigError."""
    found: dict[str, str] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        usable = bool(equals and folder) and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
        if not usable or not name.isascii():
            raise ConfigError(f"--checkpoint is {one!r}; expected NAME=FOLDER, as in math=runs/math")
        if name in found:
            raise ConfigError(f"--checkpoint names {name!r} twice; expected a name for each folder; choose another")
        found[name] = folder
    return found
