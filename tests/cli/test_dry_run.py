"""`mass train --dry_run`: what it prints, what it refuses, and that it writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chat_folders import chat_folder, sum_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("model") / "small", "Llama")


DRY = ("--dry_run", "--lora.r=2", "--device_tflops=1", "--train.tasks_per_step=2", "--train.stack=2")


def test_a_dry_run_writes_nothing_and_says_what_to_lower(run: Callable, folder: Path, tmp_path: Path) -> None:
    train = sum_rows(tmp_path / "train.jsonl", [str(i) for i in range(20)])
    held_out = sum_rows(tmp_path / "held_out.jsonl", [str(i) for i in range(100, 110)], 100)
    before = sorted(tmp_path.rglob("*"))
    given = [f"--model.name={folder}", f"--tasks.source={train}", f"--validation.source={held_out}", *DRY]
    ran = run("train", *given, "--device_gb=80")
    assert ran.code == 0, ran.err
    for expected in ("20 rows", "20 of 20 golds accepted", "0 problems", "solve prompt of the first problem", "fits"):
        assert expected in ran.out
    assert run("train", *given, "--dry_run", "--device_gb=80").out == ran.out, "both spellings"
    small = run("train", *given, "--device_gb=0.01")
    assert small.code == 2
    assert "error: does not fit: " in small.err
    assert "lower " in small.err
    assert "does not fit" in small.out
    assert sorted(tmp_path.rglob("*")) == before


def test_an_inner_budget_that_holds_no_example_is_said(run: Callable, folder: Path, tmp_path: Path) -> None:
    train = sum_rows(tmp_path / "train.jsonl", [str(i) for i in range(20)])
    ran = run("train", f"--model.name={folder}", f"--tasks.source={train}", "--train.eval_every=0", *DRY,
              "--adapt.inner.memory_gb=0.001")  # fmt: skip
    assert ran.code == 2
    assert "error: adapt.inner: memory_gb = 0.001, but one example and the tape need " in ran.err


def test_options_of_a_dry_run_that_cannot_be_used(fails: Callable, folder: Path) -> None:
    assert "--device_tflops is -1; expected a finite number above 0" in fails(
        "train", "--model.name", folder, "--dry_run", "--device_tflops=-1"
    )
    assert "only those of the recipes are known" in fails("train", "--model.name=./nowhere", "--dry_run")
