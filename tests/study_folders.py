"""Run folders as `mass eval`, `train`, `analyse` and `benchmarks/headroom.py` leave them, with made-up outcomes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

SUBJECTS = ("Algebra", "Geometry", "Number Theory")
Outcome = bool | None
COMMIT = "0123456789abcdef"


def write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def evaluation(
    folder: Path,
    seed: int,
    right: Mapping[str, Sequence[Outcome]],
    *,
    sampled: Mapping[str, Sequence[Sequence[Outcome]]] | None = None,
    training: Mapping[str, Mapping[str, Any]] | None = None,
    tasks: str = "c0ffee",
    tokens: Mapping[str, float] | None = None,
) -> Path:
    """`right` and `sampled` (at temperature 0.6): outcomes by method, of each problem."""
    sampled, tokens = sampled or {}, tokens or {}
    size = len(next(iter(right.values())))
    rows, lines = [], []
    for method, outcomes in right.items():
        draws = sampled.get(method)
        part = (
            {"temperature": 0.6, "samples": len(draws[0]), "tokens_per_answer": 11.0, "seconds_per_answer": 0.1}
            if draws
            else None
        )
        rows.append(
            {
                "method": method,
                "label": "maj@9" if method == "maj@n" else method,
                "fallbacks": 0,
                "tokens_per_answer": tokens.get(method, 12.5),
                "seconds_per_answer": 0.25,
                "sampled": [part] if part else [],
            }
        )
        for i, correct in enumerate(outcomes):
            line = {"method": method, "correct": correct, "subject": SUBJECTS[i % 3], "level": 1 + i % 5, "text": "..."}
            if draws:
                judged = [r for r in draws[i] if r is not None]
                vote = None if not judged else sum(judged) * 2 > len(judged)
                line["sampled"] = [{"temperature": 0.6, "correct": list(draws[i]), "majority": vote, "texts": []}]
            lines.append(json.dumps(line))
    write_json(
        folder / "comparison.json",
        {
            "seed": seed,
            "model": "tiny",
            "created": "2026-01-01",
            "version": "0",
            "commit": COMMIT,
            "config_hash": "abc",
            "notes": [],
            "tasks": {"source": "minimath", "split": "test", "size": size, "seed": 0, "hash": tasks},
            "config": {"training": dict(training or {})},
            "rows": rows,
        },
    )
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def training(folder: Path, seed: int, method: str, accuracies: Sequence[float], *, steps: int = 40) -> Path:
    write_json(
        folder / "config.json", {"train": {"method": method, "seed": seed, "steps": steps}, "tasks": {"size": None}}
    )
    write_json(folder / "provenance.json", [{"step": 0, "commit": None}, {"step": 3, "commit": f"{COMMIT}+"}])
    every = steps // (len(accuracies) - 1)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        row: dict[str, Any] = {"step": step}
        if step:
            row |= {"reward": 0.01 * step, "tokens": 1000, "seconds/synthesis": 2.0, "seconds/inner": 1.0, "loss": None}
        if step % every == 0:
            value = accuracies[step // every]
            row |= {"eval/accuracy": value, "eval/unadapted accuracy": value - 0.05}
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def practice(folder: Path, name: str, seed: int, problems: int = 60, m: int = 6) -> Path:
    """After meta-training more examples are right, and weights follow what helps."""
    rng = np.random.default_rng(seed)

    def columns(share_right: float, follow: float) -> dict[str, list[list[Any]]]:
        valid = rng.random((problems, m)) < 0.9
        correct, effect = rng.random((problems, m)) < share_right, rng.normal(0, 0.1, (problems, m))
        effect += 0.1 * correct
        scores = follow * effect + rng.normal(0, 0.1, (problems, m)) * (follow > 0)
        weight = np.where(valid, np.exp(10 * scores), 0)
        weight /= np.maximum(weight.sum(1, keepdims=True), 1e-9)
        distance = rng.integers(0, 20, (problems, m))
        found = {
            "valid": valid.astype(int),
            "recognised": valid.astype(int),
            "correct": correct.astype(int),
            "same_kind": (rng.random((problems, m)) < 0.8).astype(int),
            "same_subject": np.ones((problems, m), int),
            "level": rng.integers(-2, 3, (problems, m)),
            "distance": distance,
            "relative_distance": distance / 25,
            "weight": weight.round(4),
            "effect": effect.round(4),
            "verdict": rng.integers(-1, 2, (problems, m)),
        }
        unknown = {
            "recognised",
            "correct",
            "same_kind",
            "same_subject",
            "level",
            "distance",
            "relative_distance",
            "effect",
        }
        return {
            key: [
                [None if key in unknown and not v else x for x, v in zip(row, ok, strict=True)]
                for row, ok in zip(values.tolist(), valid.tolist(), strict=True)
            ]
            for key, values in found.items()
        }

    def elsewhere(drift: float) -> dict[str, list[Any]]:
        before, after = (rng.integers(0, 2, (problems, 2)).tolist() for _ in range(2))
        return {
            "drift": (drift * rng.random(problems)).tolist(), "others_unadapted": before, "others_adapted": after,
        }  # fmt: skip

    write_json(
        folder / "practice.json",
        {
            "name": name,
            "seed": seed,
            "model": "tiny",
            "near_copy": 2,
            "tasks": {"hash": "analysed"},
            "before": {"columns": columns(0.3, 0.0), **elsewhere(0.02)},
            "after": {"columns": columns(0.7, 1.0), **elsewhere(0.2)},
        },
    )
    return folder


def room(folder: Path) -> Path:
    def row(difference: float | None) -> dict[str, Any]:
        span = None if difference is None else [difference - 0.03, difference + 0.03]
        part = {
            "accuracy": 0.4 + (difference or 0),
            "interval": [0.3, 0.5],
            "difference": difference,
            "difference_interval": span,
        }
        return {
            **part,
            "by_subject": {"Algebra": 1},
            "sampled": [{**part, "temperature": 0.6, "pass_at_n": 0.7, "maj_at_n": 0.5}],
        }

    gains = {"gold same": 0.08, "own": -0.02, "copies correct": 0.2}
    points = {
        f"{source}, sgd {rate:g}": {
            "source": source,
            "optimizer": "sgd",
            "rate": rate,
            "steps": 1,
            "row": row(gain * rate),
            "update_norm": 0.01 * rate,
            "loss_before": 0.5,
            "loss_after": 0.4,
            "used": 1.0,
            "without_practice": 0.0,
        }
        for source, gain in gains.items()
        for rate in (0.3, 1.0)
    }
    points["own likely x 10, sgd 1"] = points["own, sgd 1"] | {"source": "own likely", "sharpness": 10.0}
    points["own correct"] = {"source": "own correct", "optimizer": "sgd", "rate": 1.0, "steps": 1, "skipped": "why"}
    write_json(
        folder / "headroom.json",
        {
            "settings": {"seed": 1, "size": 140, "model": "tiny", "checkpoint": "untrained"},
            "points": points,
            "unadapted": {"row": row(None), "best-of-n": row(0.01), "written": {"valid": 0.9}},
        },
    )
    return folder


def outcomes(rng: np.random.Generator, chance: np.ndarray) -> list[bool]:
    return [bool(right) for right in rng.random(len(chance)) < np.clip(chance, 0, 1)]


def samples(rng: np.random.Generator, chance: np.ndarray, n: int = 8) -> list[list[bool]]:
    return [[bool(r) for r in row] for row in rng.random((len(chance), n)) < np.clip(chance, 0, 1)[:, None]]


METHODS = {"base": 0.0, "tt-ss": -0.03, "solver-grpo": 0.2, "mass": 0.3, "mass-unadapted": 0.22, "maj@n": 0.12}
LEARNING = {"solver-sft": 0.0, "solver-grpo": -0.05, "mass-gold": 0.15, "mass": 0.1}
ABLATIONS = {
    "full": 0.3, "no-scorer": 0.25, "12-examples": 0.31, "2-examples": 0.2, "scorer-without-likelihood": 0.25,
    "sigmoid-weights": 0.2, "no-attribution-reward": 0.3, "frozen-generator": 0.3, "no-solver-term": 0.28,
    "first-order": 0.27, "fixed-rates": 0.3, "one-step": 0.33, "four-steps": 0.26, "fixed-start": 0.25,
    "from-likelihood": 0.32,
}  # fmt: skip
RATES = {"0.0003": 0.45, "0.001": 0.55, "0.003": 0.6, "0.01": 0.4}
TRAINED = ("solver-grpo", "mass", "mass-unadapted")


def whole_study(runs: Path, *, problems: int = 150, seeds: int = 3) -> Path:
    """A study with all its parts, each in a folder of its own."""
    easy = np.random.default_rng(0).uniform(0.1, 0.7, problems)
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 5])
        shift = rng.normal(0, 0.02, len(METHODS))
        of = {m: easy + gain + s for (m, gain), s in zip(METHODS.items(), shift, strict=True)}
        told = {
            m: {"run": f"{m.removesuffix('-unadapted')}-{seed}", "seed": seed, "steps": 40, "problems": 640}
            for m in TRAINED
        }
        evaluation(
            runs / "table" / "eval" / f"test-{seed}",
            seed,
            {m: outcomes(rng, c) for m, c in of.items()},
            training=told,
            sampled={m: samples(rng, c - 0.05) for m, c in of.items() if m != "maj@n"},
            tokens={"mass": 330.0, "maj@n": 340.0},
        )
        evaluation(
            runs / "rerun" / "eval" / f"test-{seed}",
            seed,
            {m: outcomes(rng, easy) for m in ("base", "solver-sft", "solver-grpo", "mass-gold", "mass")},
            training=told,
        )
        evaluation(
            runs / "hard" / "eval" / f"test-{seed}",
            seed,
            {"solver-sft": outcomes(rng, easy), **{m: outcomes(rng, c - 0.2) for m, c in of.items()}},
            training=told,
            tasks="hard",
        )
        for name in ("tuned", "tuned-equal-tokens"):
            evaluation(
                runs / "table" / "eval" / f"{name}-{seed}",
                seed,
                {"solver-sft": outcomes(rng, easy + 0.3), **{m: outcomes(rng, c) for m, c in of.items()}},
                training=told,
            )
        evaluation(
            runs / "table" / "eval" / f"likelihood-{seed}",
            seed,
            {m: outcomes(rng, easy) for m in ("base", "tt-ss-likelihood")},
        )
        for group in ("a", "b", "c", "tuned-a", "tuned-b", "tuned-c"):
            evaluation(
                runs / "unseen" / "eval" / f"{group}-{seed}",
                seed,
                {"solver-sft": outcomes(rng, easy), **{m: outcomes(rng, c) for m, c in of.items()}},
                training=told,
                tasks=f"unseen {group[-1]}",
            )
        for method, best in (("mass", 0.7), ("solver-grpo", 0.6)):
            curve = [0.4 + (best - 0.4) * t / 4 + rng.normal(0, 0.01) for t in range(5)]
            training(runs / "table" / "train" / f"{method}-{seed}", seed, method, curve)
        for name, gain in ABLATIONS.items():
            evaluation(
                runs / "ablations" / "eval" / f"{name}-{seed}",
                seed,
                training=told,
                right={"mass": outcomes(rng, easy + gain), "mass-unadapted": outcomes(rng, easy + 0.2)},
            )
        for size, step in ((30, 0), (100, 1), (300, 2), (1000, 3), (3000, 4)):
            evaluation(
                runs / "data" / "eval" / f"problems-{size}-{seed}",
                seed,
                {m: outcomes(rng, easy + gain + 0.05 * step) for m, gain in LEARNING.items()},
                training={
                    m: {"run": f"{m}-{size}-{seed}", "seed": seed, "steps": 40, "problems": size} for m in LEARNING
                },
            )
        for name in ("without", "canary-1", "canary-0.3", "canary-0.1"):
            evaluation(
                runs / "safety" / "eval" / f"{name}-{seed}",
                seed,
                training=told,
                right={"mass": outcomes(rng, easy + 0.3), "mass-unadapted": outcomes(rng, easy + 0.2)},
            )
            practice(runs / "safety" / "analyse" / f"{name}-{seed}", name, seed)
        evaluation(
            runs / "authors" / "eval" / f"test-{seed}",
            seed,
            {"solver-sft": outcomes(rng, easy + 0.3), **{m: outcomes(rng, c) for m, c in of.items()}},
            training=told,
            tasks="authors",
        )
        evaluation(
            runs / "authors" / "eval" / f"untrained-{seed}",
            seed,
            {m: outcomes(rng, easy) for m in ("base", "tt-ss", "tt-ss-likelihood")},
            tasks="authors",
        )
        for part, name in (("hard", "likelihood"), *(("unseen", f"likelihood-{group}") for group in "abc")):
            evaluation(
                runs / part / "eval" / f"{name}-{seed}",
                seed,
                {m: outcomes(rng, easy) for m in ("base", "tt-ss-likelihood")},
                tasks="hard" if part == "hard" else f"unseen {name[-1]}",
            )
        for part in ("table", "authors"):
            practice(runs / part / "analyse" / f"mass-{seed}", "mass", seed)
    for rate, best in RATES.items():
        training(runs / "rates" / "train" / f"solver-sft-{rate}-0", 0, "solver-sft", [0.4, best, best - 0.1])
    training(runs / "ablations" / "train" / "full-0", 0, "mass", [0.4, 0.8, 0.7])
    for base in ("base", "authors"):
        room(runs / "room" / f"{base}-1")
    return runs


def is_study(recipe: Path) -> bool:
    """Whether a recipe is one of `python -m research study`."""
    return "trainings" in yaml.safe_load(recipe.read_text())
