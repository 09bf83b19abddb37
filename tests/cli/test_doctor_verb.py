"""mass doctor, as its user sees it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mass.preflight.doctor.loading import load
from mass.preflight.doctor.report import Check, DoctorReport, Loaded, Reach


def test_the_shipped_model_is_healthy(run: Callable) -> None:
    ran = run("doctor", "tiny-terms", "--attention", "sdpa", "--model.dtype", "bfloat16")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0] == "tiny-terms: LlamaForCausalLM"
    assert "the first 2 of 4 layers" in ran.out
    assert "28 linear layers (q_proj, " in ran.out
    assert all(
        any(line.startswith("pass") and name in line for line in lines) for name in ("first derivative", "in bf")
    )
    assert lines[-1].startswith("Safe in bfloat16: attention sdpa, ")
    assert "Pass --model.dtype bfloat16" in lines[-1]
    assert "doctor: sdpa: second derivative\n" in ran.err, "progress"
    assert "UNEXPECTED" not in ran.err, "the rest of the layers is no surprise"


def test_json_is_one_object(run: Callable, tiny_base: Path) -> None:
    ran = run("doctor", tiny_base, "--attention", "eager", "--json", "--seed", "3")
    assert ran.code == 0
    report = json.loads(ran.out)
    assert report["usable"] is True
    assert report["safe"] == ["eager"]
    assert {check["status"] for check in report["checks"]} == {"pass"}
    assert report["loaded"]["layers"] == 2


def test_nothing_safe_is_exit_code_1_with_a_way_out(
    run: Callable, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_training(*arguments: Any) -> Any:
        base = load(*arguments)
        base.model.model.layers[0].mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.1))
        return base

    monkeypatch.setattr(importlib.import_module("mass.preflight.doctor.examine"), "load", in_training)
    ran = run("doctor", tiny_base, "--attention", "eager", "--model.dtype", "float64")
    assert ran.code == 1
    assert "  fail: eager, same loss twice: " in ran.out
    assert "        -> turn dropout off" in ran.out
    assert ran.out.splitlines()[-1].startswith("Nothing is safe to use with this model in float64")


def test_what_was_not_finite_is_null_in_json(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Loaded("m", "M", 1, 1, (), 2, 2, 3, 0.0, "float32")
    check = Check("first derivative", "fail", "eager", float("inf"), 1e-6, "", "")
    report = DoctorReport(loaded, Reach(1, ("q",), 0.5, ()), (check,), 0.0)
    monkeypatch.setattr("mass.preflight.doctor.examine", lambda *_, **__: report)
    ran = run("doctor", "m", "--json")
    assert ran.code == 1
    assert "Infinity" not in ran.out
    assert json.loads(ran.out)["usable"] is False


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "no model is given"),
        (("./nowhere",), "does not exist"),
        (
            ("tiny",),
            "'tiny' no longer ships with the package, and is in research/models/tiny of the repository; give a ",
        ),
        (("tiny-terms", "--model.dtype", "bf16"), "--model.dtype is 'bf16'; expected one of auto, float32, bfloat16"),
        (("tiny-terms", "--attention", ","), "--attention is empty"),
        (("tiny-terms", "--layers", "0"), "--layers is 0"),
        (("tiny-terms", "--layers", "9"), "expected 1 to 4"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run: Callable, arguments: tuple[str, ...], text: str) -> None:
    ran = run("doctor", *arguments)
    assert ran.code == 2
    assert ran.out == ""
    error = [line for line in ran.err.splitlines() if not line.startswith("doctor: ")]
    assert len(error) == 1
    assert text in error[0]
