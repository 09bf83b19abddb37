"""Names of methods: known ones, what they are made of, and the order they can run in."""

from __future__ import annotations

import pytest

from mass.errors import ConfigError
from mass.evaluation.methods import (
    METHODS,
    UNTRAINED_METHODS,
    WAY_OF,
    Choice,
    check_methods,
    checkpoint_of,
    choice_of,
    in_order,
)


def test_unknown_methods_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'mas' is unknown; did you mean 'mass'"):
        check_methods(["base", "mas"])
    for wrong in ("maj@0", "maj@", "maj@x", "maj@-3", "best-of-", "mass-best-of-n", "base-maj@n", "mass-gold-maj@n"):
        with pytest.raises(ConfigError, match="unknown"):
            check_methods([wrong])
    with pytest.raises(ConfigError, match="no methods"):
        check_methods([])
    assert check_methods(["mass", "base", "maj@9", "mass"]) == ["mass", "base", "maj@9"]


@pytest.mark.parametrize(
    ("method", "choice", "label"),
    [
        ("maj@n", Choice("majority", "base", None), "maj@5"),
        ("mass-maj@12", Choice("majority", "mass", 12), "mass-maj@5"),
        ("best-of-n", Choice("scorer", "mass", None), "best-of-5"),
        ("base-best-of-8", Choice("scorer", "base", 8), "base-best-of-5"),
    ],
)
def test_what_chooses_says_how_and_among_whose_answers(method: str, choice: Choice, label: str) -> None:
    assert choice_of(method) == choice
    assert choice.label(5) == label


def test_each_method_names_the_checkpoint_it_needs() -> None:
    needs = {method: checkpoint_of(method) for method in METHODS}
    assert {m for m, name in needs.items() if name is None} == {"base", *UNTRAINED_METHODS, *WAY_OF, "maj@n"}
    assert {m for m, name in needs.items() if name == "mass"} == {
        "mass", "mass-unadapted", "mass-maj@n", "best-of-n", "base-best-of-n", "in-context",
    }  # fmt: skip
    assert {m: needs[m] for m in ("mass-gold-unadapted", "solver-sft", "self-sft", "solver-grpo")} == {
        "mass-gold-unadapted": "mass-gold",
        "solver-sft": "solver-sft",
        "self-sft": "self-sft",
        "solver-grpo": "solver-grpo",
    }


def test_what_chooses_runs_after_what_it_is_measured_by() -> None:
    order = in_order(["best-of-n", "in-context", "mass", "maj@n", "base", "tt-ss"])
    assert order == ["base", "mass", "tt-ss", "best-of-n", "in-context", "maj@n"]
