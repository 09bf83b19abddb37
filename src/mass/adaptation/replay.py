"""A record and what its replay gave -> an error where the two differ."""

from __future__ import annotations

import math

from mass.adaptation.checkpoint import fingerprint
from mass.errors import ModelError
from mass.lm import LM
from mass.types import Adaptation


def require_same_base(record: Adaptation, lm: LM) -> None:
    """Check that a record was made on this base, in this precision. Raises ModelError."""
    found = fingerprint(lm)
    if record.base_fingerprint and (record.base_fingerprint, record.dtype) != (found, lm.dtype):
        raise ModelError(
            f"the record was made on base {record.model!r} in {record.dtype} ({record.base_fingerprint}), not on "
            f"{lm.name!r} in {lm.dtype} ({found}); replay with the base of the record"
        )


def require_same_result(again: Adaptation, record: Adaptation, sampled_by: str) -> None:
    """Check that a replay gave the recorded update and text, on the sampling server named (or on none).

    Raises:
        ModelError: They differ, beyond rounding where the problem was adapted side by side with others.
    """
    same = again.adapter_hash == record.adapter_hash
    if not same and not (record.stacked > 1 and _equal_but_for_rounding(again, record)):
        start = "the shipped one" if record.checkpoint is None else repr(record.checkpoint)
        raise ModelError(
            f"the replayed update differs from the recorded one (adapter {again.adapter_hash[:12]}, recorded "
            f"{record.adapter_hash[:12]}); replay with the model {record.model!r} and checkpoint ({start}) of the "
            "record, on the machine that made it"
        )
    if again.text != record.text and record.engine != sampled_by:
        before, now = record.engine or "transformers", sampled_by or "transformers"
        raise ModelError(
            f"the same update gave another text: {before!r} sampled the record, now {now!r} did, which rounds "
            "otherwise; replay with the engine of the record"
        )
    if again.text != record.text:
        raise ModelError(
            "the same update gave another text than the record has; replay an unchanged record, on the machine "
            "that made it"
        )


def _equal_but_for_rounding(one: Adaptation, other: Adaptation) -> bool:
    """Return True if both have the same losses before and after the update, and the same size of update, to 5
    digits."""

    def measures(record: Adaptation) -> list[float]:
        losses = [(e.loss_before or 0.0, e.loss_after or 0.0) for e in record.examples]
        return [record.update_norm, *(loss for pair in losses for loss in pair)]

    pairs = zip(measures(one), measures(other), strict=True)
    return one.update_norm > 0 and all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs)
