"""Turn checks into a report with a verdict: which attention is safe, in which precision, and with which settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["pass", "fail", "skipped"]


@dataclass(frozen=True)
class Check:
    """One row of the report: a measured number, and its bound."""

    name: str
    status: Status
    attention: str = ""
    """The attention implementation it was measured with; empty where attention plays no part."""
    measured: float | None = None
    """A relative error, unless `note` says otherwise."""
    bound: float | None = None
    note: str = ""
    """The comparison that was made; after an exception, its text."""
    way_out: str = ""
    """After a fail: what to do, in one line."""
    needed: bool = True
    """True if a fail makes the attention unsafe; False if it only makes an option of the engine unsafe."""


@dataclass(frozen=True)
class Loaded:
    """The part of the model that was examined."""

    model: str
    architecture: str
    layers: int
    """Number of first layers that were loaded with their real weights; by default as few as include each kind of
    layer, at least 2."""
    total_layers: int
    kinds: tuple[str, ...]
    """The kinds of layer among them."""
    vocabulary: int
    """Number of tokens to which embeddings and head were cut."""
    total_vocabulary: int
    parameters: int
    """Number of parameters that were loaded, after the cut."""
    weights_gb: float
    """Size of these in float64, in units of 10^9 bytes."""
    dtype: str
    """The precision asked for."""


@dataclass(frozen=True)
class Reach:
    """The part of the whole model that LoRA on all linear layers adapts."""

    layers: int
    """Number of linear layers that get an adapter."""
    names: tuple[str, ...]
    """The last parts of their names."""
    share: float
    """Parameters of these layers divided by all of the model's, embeddings included."""
    missed: tuple[str, ...]
    """Matrices that get no adapter, such as fused experts and routers."""


@dataclass(frozen=True)
class DoctorReport:
    """All checks of one model."""

    loaded: Loaded
    reach: Reach
    checks: tuple[Check, ...]
    seconds: float

    @property
    def safe(self) -> tuple[str, ...]:
        """The attention implementations for which every needed check passed."""
        return tuple(a for a in _attentions(self.checks) if _all_passed(self.checks, a))

    @property
    def verdict(self) -> str:
        """One line: what is safe to use, and the settings to pass."""
        if not self.safe or not _all_passed(self.checks, ""):
            return f"Nothing is safe to use with this model in {self.loaded.dtype}: see the way out beside each fail."
        extras = [name for name in (MICRO_BATCHES, CHECKPOINTING) if _passed(self.checks, self.safe[0], name)]
        good = [f"attention {' or '.join(self.safe)}", *extras]
        setting = f"--model.dtype {self.loaded.dtype}"
        loading = "" if "sdpa" in self.safe else f' and "attn_implementation": "{self.safe[0]}" in config.json'
        return f"Safe in {self.loaded.dtype}: {', '.join(good)}. Pass {setting}{loading}."

    @property
    def usable(self) -> bool:
        """True if at least one configuration is safe."""
        return bool(self.safe) and _all_passed(self.checks, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, with its verdict."""
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
