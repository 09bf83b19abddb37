"""Names of models for clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from mass.serving.naming import base_name


def test_a_local_base_is_told_without_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert [base_name(name) for name in ("runs/one", "/runs/two", "runs/three")] == ["one", "two", "runs/three"]


@pytest.mark.parametrize("name", ["x" * 9000, "a\0b"])
def test_a_name_that_no_file_can_have_is_itself(name: str) -> None:
    assert base_name(name) == name
