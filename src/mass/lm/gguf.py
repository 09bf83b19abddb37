"""Unpack a GGUF file once into an ordinary model folder of transformers: weights, tokenizer and chat template.

The blocks of 4 to 8 bits are unpacked by transformers (`gguf_file`) and written as bfloat16, which rounds by 0.4% at
most, while a 4-bit block rounds by several percent; plain floats keep their type. The folder is in a cache under the
SHA-256 of the file, so a file with other content is another model, and one that is moved or renamed is the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mass.errors import ConfigError, ModelError
from mass.lm.quiet import without_progress_bars

log = logging.getLogger(__name__)
_MAGIC, _FORMAT = b"GGUF", 1
"""First bytes of a GGUF file; and a version of the folders made here, to be raised when their content changes."""
_BLOCK = 1 << 22


def cache_folder() -> Path:
    """Return `$MASS_CACHE`, else the folder `mass` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    if given := os.environ.get("MASS_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mass"


def unpacked(file: Path, name: str) -> Path:
    """Return the folder of an unpacked GGUF file; if there is none yet, one process at a time makes it.

    Raises:
        ModelError: the file is incomplete, is not a language model, or is of a kind that transformers does not read.
        ConfigError: a required package is missing, or the cache cannot be written.
    """
    _require_gguf(file, name)
    root, key = cache_folder() / "gguf", _key(file)
    if (found := next(root.glob(f"*-{key}"), None)) is not None:  # the file may have had another name then
        return found
    folder = root / f"{_plain(file.stem)}-{key}"
    _require_packages(name)
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                _make(file, name, folder)
    except OSError as error:
        raise ConfigError(
            f"{name!r} cannot be unpacked into {folder.parent} ({error.strerror or error}); expected a folder that can "
            "be written, with room for its weights; free some, or set MASS_CACHE to another folder"
        ) from error
    return folder


def _make(file: Path, name: str, folder: Path) -> None:
    """Make the folder under another name, then rename it, so that a folder of this name is always complete.

    A killed process leaves its incomplete folder behind, which the next process removes.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    log.info("%s: unpacking its weights once into %s", name, folder)
    try:
        _convert(file, name, part)
        size = sum(one.stat().st_size for one in part.iterdir())
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    log.info("%s: unpacked, %.2f GB; remove the folder to free them", name, size / 1e9)


def _convert(file: Path, name: str, part: Path) -> None:
    """Write weights, configuration and tokenizer of a GGUF file into `part`. Raises ModelError."""
    where: dict[str, Any] = {"gguf_file": file.name}
    try:
        dtype = _kept_dtype(file, name)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
        config = AutoConfig.from_pretrained(file.parent, **where)
        with without_progress_bars():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, **where, config=config, dtype=dtype, output_loading_info=True, **_unpacking()
            )
        model, found = loaded
    except ModelError:
        raise
    except Exception as error:  # the readers raise many kinds of errors for damaged or unknown files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"GGUF file {name!r} cannot be read ({reason}); expected a whole file of a language model whose "
            "architecture and quantisation transformers reads; download it anew, or use another file of the model"
        ) from error
    if missing := sorted(found.get("missing_keys", ())):
        raise ModelError(
            f"GGUF file {name!r} lacks {len(missing)} of its model's weights, {missing[0]!r} among them; expected all "
            "of them; download it anew"
        )
    model = model.to(dtype)
    model.config.quantization_config = None
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False  # it is no longer quantised, and may be saved
    with without_progress_bars():
        model.save_pretrained(part)
    tokenizer.save_pretrained(part)


def _unpacking() -> dict[str, Any]:
    """Return the option that makes newer versions of transformers unpack: packed blocks have no derivative."""
    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def _kept_dtype(file: Path, name: str) -> torch.dtype:
    """Return the type of a file's plain floats, or bfloat16. Raises ModelError for an incomplete or other model."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    fields = (reader.fields.get(key) for key in ("general.type", "split.count"))
    kind, parts = (None if field is None else field.contents() for field in fields)
    if kind not in (None, "model"):
        raise ModelError(f"GGUF file {name!r} holds {kind!r}, no model; expected a whole language model; give its file")
    if parts and int(parts) > 1:
        raise ModelError(
            f"GGUF file {name!r} is one of {parts} parts; expected the whole model; join them with "
            "`llama-gguf-split --merge`, and give the result"
        )
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    if types == {"F32"}:
        return torch.float32
    return torch.float16 if types <= {"F32", "F16"} else torch.bfloat16


def _require_gguf(file: Path, name: str) -> None:
    with file.open("rb") as opened:
        start = opened.read(len(_MAGIC))
    if start != _MAGIC:
        raise ModelError(
            f"{name!r} is a file that does not begin as GGUF does; expected a GGUF file, or a folder with config.json; "
            "download it anew, or give its folder"
        )


def _require_packages(name: str) -> None:
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{name!r} is a GGUF file, which needs {package}, which is not installed; "
                "`pip install 'mass-adapt[gguf]'`"
            )


def _key(file: Path) -> str:
    """Return a hash of the file's content and of the version of what unpacks it."""
    digest = hashlib.sha256(f"{_FORMAT} {transformers.__version__}".encode())
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]


def _plain(stem: str) -> str:
    """Return a file name's stem without characters that are unsafe in a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", stem)[:80] or "model"
