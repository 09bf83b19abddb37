"""The names that options, keys and models had before, with those they have today."""

from __future__ import annotations

from collections.abc import Collection

_OF_THE_MODEL = (
    "device", "dtype", "decode_rows", "prompts", "thinking", "device_map", "quantization", "revision",
    "trust_remote_code", "engine",
)  # fmt: skip
_OF_THE_TASKS = ("split", "size", "fields", "verifier", "levels", "subjects")
_MOVED = {
    **{name: f"model.{name}" for name in _OF_THE_MODEL},
    **{name: f"tasks.{name}" for name in _OF_THE_TASKS},
    "tasks_seed": "tasks.seed",
    "train_levels": "train_tasks.levels",
    "train_subjects": "train_tasks.subjects",
    "checkpoint_of": "checkpoints",
}
"""Former first part of a dotted name -> what stands in its place."""
NEW_NAMES = {
    "rank": "r",
    "alpha": "lora_alpha",
    "targets": "target_modules",
    "max_tokens": "max_new_tokens",
}
"""Former last part of a dotted name -> today's, which is that of PEFT or transformers."""

FORMER_MODELS = {"tiny": "research/models/tiny of the repository"}
"""Models that shipped with the package -> where they are today."""


def new_name(old: str, known: Collection[str]) -> str | None:
    """Return the name among `known` that an option of former times has today, or None where there is none.

    Options were spelled with hyphens, and those of the model and the tasks had no group: `decode-rows` is now
    `model.decode_rows`.
    """
    first, dot, rest = old.replace("-", "_").partition(".")
    group, last_dot, last = (_MOVED.get(first, first) + dot + rest).rpartition(".")
    candidates = (f"{group}{last_dot}{NEW_NAMES.get(last, last)}", old.replace("-", "_"))
    return next((name for name in candidates if name != old and name in known), None)
