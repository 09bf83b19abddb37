"""Checks -> a report with its verdict: which attention is safe, in which precision, and the settings that say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True)
class Check:
    """One row: a number that was measured, and the bound it is held against."""

    name: str
    status: Status
    attention: str = ""
    """The implementation it was measured with; empty where attention plays no part."""
    measured: float | None = None
    """A relative error, unless `note` says what else."""
    bound: float | None = None
    note: str = ""
    """What was compared; for a fault, what was raised."""
    way_out: str = ""
    """For a fail: what to do, in one line."""
    needed: bool = True
    """Whether its attention is unsafe when it fails; otherwise an option of the engine is."""


@dataclass(frozen=True)
class Loaded:
    """What of the model was examined."""

    model: str
    architecture: str
    layers: int
    """The first so many, with their real weights; the smallest number that holds each kind of layer, at least 2."""
    total_layers: int
    kinds: tuple[str, ...]
    """Of layers."""
    vocabulary: int
    """Tokens that embeddings and head were cut to."""
    total_vocabulary: int
    parameters: int
    """Of what was loaded, after the cut."""
    memory_gb: float
    """Of these in float64, in units of 10^9 bytes."""
    dtype: str
    """The precision asked for."""


@dataclass(frozen=True)
class Reach:
    """What LoRA on all linear layers adapts, in the whole model."""

    layers: int
    """Linear layers that get an adapter."""
    names: tuple[str, ...]
    """Their names' last parts."""
    share: float
    """Parameters of these layers over all of the model's, embeddings included."""
    missed: tuple[str, ...]
    """Matrices that get none: fused experts, routers."""


@dataclass(frozen=True)
class Report:
    loaded: Loaded
    reach: Reach
    checks: tuple[Check, ...]
    seconds: float

    @property
    def safe(self) -> tuple[str, ...]:
        """Attention implementations of which every needed check passed."""
        return tuple(a for a in _attentions(self.checks) if _all_passed(self.checks, a))

    @property
    def verdict(self) -> str:
        """One line: what is safe to use, and the settings to pass."""
        if not self.safe or not _all_passed(self.checks, ""):
            return f"Nothing is safe to use with this model in {self.loaded.dtype}: see the way out beside each fail."
        extras = [name for name in (MICRO_BATCHES, CHECKPOINTING) if _passed(self.checks, self.safe[0], name)]
        good = [f"attention {' or '.join(self.safe)}", *extras]
        setting = f"--dtype {self.loaded.dtype} (mass train: --model.dtype)"
        loading = "" if "sdpa" in self.safe else f' and "attn_implementation": "{self.safe[0]}" in config.json'
        return f"Safe in {self.loaded.dtype}: {', '.join(good)}. Pass {setting}{loading}."

    @property
    def usable(self) -> bool:
        """Whether at least one configuration is safe."""
        return bool(self.safe) and _all_passed(self.checks, "")

    def to_dict(self) -> dict[str, Any]:
        computed = {"safe": self.safe, "usable": self.usable, "verdict": self.verdict}
        return {**dataclasses.asdict(self), **computed}


MICRO_BATCHES, CHECKPOINTING = "micro-batches", "layer checkpointing"


def _passed(checks: Sequence[Check], attention: str, name: str) -> bool:
    return [check.status for check in checks if check.name == name and check.attention == attention] == ["pass"]


def _attentions(checks: Sequence[Check]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check.attention for check in checks if check.attention))


def _all_passed(checks: Sequence[Check], attention: str) -> bool:
    needed = [check.status for check in checks if check.needed and check.attention == attention]
    return "fail" not in needed and (not attention or "pass" in needed)
