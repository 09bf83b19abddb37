"""A small model in a folder, and what the doctor says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mass.preflight.doctor import DoctorReport, examine
from small_lms import make_model, tokenizer


def saved(folder: Path, kind: str = "Llama", **changes: Any) -> Path:
    make_model(kind, torch.float32, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def examined(folder: Path, *attentions: str, dtype: str = "float64") -> DoctorReport:
    """Float64 leaves the check of precision out."""
    return examine(str(folder), attentions=attentions or ("eager",), dtype=dtype)


def failed(report: DoctorReport) -> set[tuple[str, str]]:
    return {(check.attention, check.name) for check in report.checks if check.status == "fail"}
