"""A configuration read from a YAML file, checked as the command line checks it."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mass import encoding
from mass.config.names import new_name
from mass.errors import ConfigError

C = TypeVar("C", bound="FromYaml")


@dataclass(frozen=True)  # jsonargparse spreads out the fields only where every base is a dataclass
class FromYaml:
    """A configuration that a YAML file can hold; the file names only what differs from the defaults."""

    @classmethod
    def from_yaml(cls: type[C], path: str | Path) -> C:
        """Read the configuration that a YAML file holds, as `--config` takes it.

        Raises ConfigError for a file that cannot be read, an unknown key, or a value that is not allowed.
        """
        from jsonargparse import ArgumentParser  # not at the top, where `import mass` would pay for it

        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        try:
            given: Any = parser.instantiate(parser.parse_string(encoding.read(path)))
        except OSError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be read ({error.strerror}); expected a YAML file; give one"
            ) from error
        except argparse.ArgumentError as error:
            said = " ".join(str(error).split())
            unknown = re.search(r"Group '([^']+)' does not accept option '([^']+)'", said)
            known = {action.dest for action in parser._actions}  # pyright: ignore[reportPrivateUsage]
            if unknown and (new := new_name(".".join(unknown.groups()), known)):
                old = ".".join(unknown.groups())
                raise ConfigError(f"{str(path)!r}: {old!r} is now called {new!r}; change the name there") from error
            raise ConfigError(f"{str(path)!r} cannot be read as {cls.__name__}: {said}; correct the file") from error
        return cls(**dict(given.items()))
