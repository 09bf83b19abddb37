"""A model's name -> where its files are, and what transformers makes of them, with errors of one line."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from transformers import AutoConfig

from mass.errors import ModelError

TINY, TINY_TERMS = "tiny", "tiny-terms"
SHIPPED_MODELS = {TINY: "minimath", TINY_TERMS: "minimath-terms"}
"""Models that ship with the package, and the built-in problems that each has learned."""
HUB_TIMEOUT_S = 5.0


def shipped_folder(model: str) -> Path | None:
    """The folder of a model that ships with the package: its base and its checkpoints; None for any other."""
    return Path(str(importlib.resources.files("mass"))) / "models" / model if model in SHIPPED_MODELS else None


@dataclass(frozen=True)
class Source:
    """A model that is there."""

    name: str
    """As the user calls it."""
    place: str
    """Its folder, or its name on the hub."""
    local: bool
    """Whether its files are here: in a folder, or in the hub's cache while the hub cannot be reached."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run."""

    def make(self, what: str, kind: Any, **options: Any) -> Any:
        """`kind.from_pretrained`; raises ModelError, which calls it `what`, when that fails."""
        try:
            return kind.from_pretrained(self.place, **self._options(), **options)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError, ImportError) as error:
            raise self._cannot_load(what, error) from error

    def require_configuration(self) -> None:
        """Raises ModelError when the configuration, which every model has, is neither here nor to be had."""
        try:
            AutoConfig.from_pretrained(self.place, **self._options())
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            if self.local and not Path(self.place).is_dir():
                raise ModelError(
                    f"model {self.name!r} is no folder here, is not in the hub's cache, and the hub cannot be reached; "
                    "give a folder with config.json, 'tiny' or 'tiny-terms', or go online"
                ) from error
            raise self._cannot_load("configuration", error) from error

    def _options(self) -> dict[str, Any]:
        options = {"local_files_only": self.local, "trust_remote_code": self.trust_remote_code}
        return options if self.revision is None else {**options, "revision": self.revision}

    def _cannot_load(self, what: str, error: Exception) -> ModelError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            return ModelError(
                f"{what} of {self.name!r} is Python code that comes with the model, expected one that transformers "
                "knows; read the code, then set model.trust_remote_code (--trust-remote-code)"
            )
        if what == "tokenizer":
            return ModelError(
                f"the tokenizer of {self.name!r} cannot be loaded ({reason[:120]}); expected the model's own, "
                "tokenizer.json or tokenizer.model and tokenizer_config.json beside its configuration; copy them there"
            )
        return ModelError(
            f"{what} of {self.name!r} cannot be loaded ({reason[:200]}); expected a folder or hub name of a causal "
            "language model; check the name, or the files in the folder"
        )


def find_source(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Source:
    """Raises ModelError for a folder that does not exist, or a model without a configuration."""
    shipped = shipped_folder(name)
    place = name if shipped is None else str(shipped / "base")
    folder = Path(place).is_dir()
    if _looks_local(place) and not folder:
        raise ModelError(
            f"model folder {name!r} does not exist; give a folder with config.json, a hub name, 'tiny' or 'tiny-terms'"
        )
    source = Source(name, place, folder or not hub_answers(), revision, trust_remote_code)
    source.require_configuration()
    return source


def _looks_local(place: str) -> bool:
    """A hub name is `name` or `owner/name`; anything with a leading dot, slash or tilde, or deeper, is a path."""
    return place.startswith((".", "/", "~")) or place.count("/") > 1 or Path(place).exists()


def hub_answers() -> bool:
    """One short request, through the user's proxy; the library's own would be tried for most of a minute."""
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:  # of whichever HTTP library this version of the hub's client uses, or offline mode
        return False
    return True
