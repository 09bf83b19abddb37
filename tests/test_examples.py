"""The examples run as they stand, and say what they claim."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_meta_gradient_of_a_quadratic_and_of_the_shipped_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["meta_gradient.py"])
    runpy.run_path(str(EXAMPLES / "meta_gradient.py"))
    quadratic, target, gradients = capsys.readouterr().out.splitlines()
    ours, closed = re.findall(r"-?\d+\.\d+", quadratic)
    assert ours == closed
    before, after = map(float, re.findall(r"\d+\.\d+", target))
    assert after < before
    assert "Compute 6 + 4." in gradients
