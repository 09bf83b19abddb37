"""Checkpoints on the Hugging Face hub: upload a folder, download a repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mass.errors import ModelError
from mass.lm.source import hub_answers

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
CARD = "README.md"
FILES = ["mass.json", "scorer.safetensors", CARD, "adapter/*"]
"""The files of a checkpoint that are shared; the state of the optimizer, which a run keeps beside them, is not."""


def is_name(text: str) -> bool:
    """True for a name such as 'owner/name'."""
    return _NAME.fullmatch(text) is not None


def push(folder: Path, repo_id: str, *, private: bool, message: str) -> str:
    """Upload the checkpoint in a folder, in one commit; return the address of that commit. Raises ModelError."""
    if not is_name(repo_id):
        raise ModelError(f"the repository is {repo_id!r}; expected 'owner/name', as in 'me/qwen-math'; name one")
    import huggingface_hub as library

    files = {p.relative_to(folder).as_posix(): p for pattern in FILES for p in sorted(folder.glob(pattern))}
    kept_in = folder.resolve().parent
    if CARD not in files and kept_in.name == "checkpoints" and (card := kept_in.parent / CARD).is_file():
        files[CARD] = card  # the card of the run, which describes its best checkpoint
    try:
        api: Any = library.HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        added = [library.CommitOperationAdd(name, path) for name, path in files.items()]
        found = api.create_commit(repo_id, added, commit_message=message)
    except Exception as error:  # errors of the library, of its HTTP client, and of the system
        raise ModelError(
            f"the hub did not take {repo_id!r} ({_said(error)}); expected a repository that you may write to; log in "
            "with `hf auth login`"
        ) from error
    return str(getattr(found, "commit_url", found))


def pull(repo_id: str) -> Path:
    """Download a checkpoint, or find it in the cache; return its folder. Raises ModelError."""
    import huggingface_hub as library

    try:
        return Path(library.snapshot_download(repo_id, allow_patterns=FILES, local_files_only=not hub_answers()))
    except Exception as error:
        raise ModelError(
            f"checkpoint {repo_id!r} is not a folder here, and the hub gave none ({_said(error)}); give a run folder "
            "of `mass train`, or an 'owner/name' of the hub"
        ) from error


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
