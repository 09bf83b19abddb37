"""Folders with a small chat model of a recipe's architecture: random weights, a chat template, and rows to train on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from mass.types import Example
from small_lms import make_model, tokenizer

SHARED = next(
    (place for parent in Path(__file__).resolve().parents[2:] if (place := parent / "shared" / "data").is_dir()),
    Path(os.environ.get("MASS_DATA", "shared/data")),
)
"""Public rows, beside the repository or a folder above it."""
KINDS = {"llama-3.1-8b": "Llama", "qwen3-8b": "Qwen3", "qwen2.5-0.5b": "Qwen2"}
JUDGE = "def judge(task, text):\n    return len(text) % 2 == 0\n"
"""A verifier that a model without knowledge satisfies now and then."""

ROWS: dict[str, list[dict[str, Any]]] = {
    "math": [
        {
            "problem": f"Compute ${i} + 2$.",
            "solution": f"It is $\\boxed{{{i + 2}}}$.",
            "answer": str(i + 2),
            "type": "Algebra",
        }
        for i in range(40)
    ],
    "code": [
        {
            "text": f"Write a function f{i} that adds {i}.",
            "code": f"def f{i}(x):\n    return x + {i}",
            "test_list": [f"assert f{i}(1) == {i + 1}"],
        }
        for i in range(12)
    ],
    "mmlu": [
        {"question": f"What is {i} + 1?", "choices": [str(i), str(i + 1), "0.5", "x"], "answer": 1, "subject": "sums"}
        for i in range(12)
    ],
}
REAL = {"math": "math500.jsonl", "mmlu": "mmlu_stem.jsonl"}


def chat_folder(folder: Path, kind: str, context: int = 2048) -> Path:
    """A model that `mass train --model.name FOLDER` takes."""
    words = tokenizer(context, chat=True)
    make_model(kind, torch.float32, max_position_embeddings=context).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def two_files(folder: Path, name: str, *, real: bool) -> tuple[Path, Path]:
    """Training and held-out rows of a recipe's set: the public ones, short ones of them, or a few of our own."""
    rows = ROWS[name]
    if real and name in REAL:
        lines = (SHARED / REAL[name]).read_text(encoding="utf-8").splitlines()
        rows = sorted((json.loads(line) for line in lines), key=lambda row: len(json.dumps(row)))[:40]
    half = len(rows) // 2
    files = folder / f"{name}_train.jsonl", folder / f"{name}_held_out.jsonl"
    for file, some in zip(files, (rows[:half], rows[half:]), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return files


def practice(count: int) -> tuple[Example, ...]:
    """What a model that can write might write."""
    return tuple(
        Example(f"Now {i}.", f"It is {i}.", f"Problem: Now {i}.\nSolution: It is {i}.", tuple(range(5, 12 + i)))
        for i in range(count)
    )


def sum_rows(file: Path, answers: list[str], first: int = 0) -> Path:
    """A file of sums whose solutions are right, with these answers."""
    lines = [
        json.dumps({"problem": f"Compute {first + i} + 0.", "solution": f"\\boxed{{{first + i}}}", "answer": answer})
        for i, answer in enumerate(answers)
    ]
    file.write_text("\n".join(lines))
    return file
