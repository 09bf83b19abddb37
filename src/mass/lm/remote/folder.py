"""Write adapters as PEFT folders that the server can read, and find folders that killed processes left behind.

A name is never used twice: vLLM's prefix cache is keyed by the adapter's name, and would reuse results of an earlier
adapter for a later one with the same name (vllm-project/vllm issues 30931 and 42125). A name also contains the time at
which it was made, so that old folders can be recognised.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mass.config import EngineConfig
from mass.errors import ConfigError, EngineError
from mass.lm.lora import LoraSites, save_peft
from mass.types import Params

_NAME = re.compile(r"mass-([0-9a-f]{8})-[0-9a-f]{32}")


def fresh_name() -> str:
    """Return a new name: `mass-<seconds since 1970, in hex>-<a random UUID>`."""
    return f"mass-{int(time.time()):08x}-{uuid.uuid4().hex}"


def older_than(names: Iterable[str], hours: float) -> list[str]:
    """Return the names that `fresh_name` made more than `hours` ago; names made elsewhere are never among them."""
    before = time.time() - hours * 3600
    return [name for name in names if (match := _NAME.fullmatch(name)) and int(match[1], 16) < before]


class SharedFolder:
    """The folder `model.engine.lora_dir`, by its path here and by its path on the server."""

    def __init__(self, config: EngineConfig) -> None:
        self.here = None if config.lora_dir is None else Path(config.lora_dir).expanduser().resolve()
        self.there = config.lora_dir_on_server or (self.here and self.here.as_posix())

    def path_at_server(self, name: str) -> str:
        """Return the path of an adapter's folder on the server."""
        return str(PurePosixPath(self.there or "", name))

    def write(self, name: str, params: Params, sites: LoraSites, base: str) -> None:
        """Write an adapter. Raises ConfigError if no folder is configured, EngineError when it cannot be written."""
        folder = self._required() / name
        try:
            save_peft(params, sites, folder, base)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = error.strerror or type(error).__name__
            raise EngineError(
                f"the adapter cannot be written to {folder} ({reason}); give a folder that can in model.engine.lora_dir"
            ) from error

    def delete(self, name: str) -> None:
        """Delete an adapter's folder; names that were not made here are left alone."""
        if self.here is not None and _NAME.fullmatch(name):
            shutil.rmtree(self.here / name, ignore_errors=True)

    def orphans(self, hours: float) -> list[str]:
        """Return the names of folders that are older than `hours`, which killed processes left behind."""
        if self.here is None or not self.here.is_dir():
            return []
        return older_than((folder.name for folder in self.here.iterdir() if folder.is_dir()), hours)

    def _required(self) -> Path:
        if self.here is None:
            raise ConfigError(
                "an adapter is to be sampled from, but model.engine.lora_dir is not set; expected a folder that the "
                "server can read too; give one, and model.engine.lora_dir_on_server where it has another path there"
            )
        return self.here


def check_loadable(sites: LoraSites, config: EngineConfig) -> None:
    """Check that vLLM can load adapters of these layers and this rank. Raises ConfigError."""
    if sites.config.r > config.max_lora_rank:
        raise ConfigError(
            f"lora.r is {sites.config.r}, but the server takes at most {config.max_lora_rank}; start it with "
            f"--max-lora-rank {sites.config.r} (or the next that it knows) and set "
            "model.engine.max_lora_rank to the same"
        )
    if odd := [site.name for site in sites.sites if site.transposed]:
        raise ConfigError(
            f"layer {odd[0]} stores its weight transposed, as GPT-2 does; vLLM loads no adapter of such; leave "
            "model.engine.url out for this model"
        )
