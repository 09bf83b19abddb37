"""Checkpoints that go to the hub and come back, at the boundary of `huggingface_hub`."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

import mass
from mass.errors import ModelError
from mass.lm.source import shipped_folder


class Hub:
    """Repositories in a folder; what `huggingface_hub` is called with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: dict[str, bool] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.private[repo_id] = private

    def create_commit(self, repo_id: str, operations: list[Any], *, commit_message: str) -> Any:
        assert commit_message
        for operation in operations:
            path = self.root / repo_id / operation.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(operation.path_or_fileobj, path)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert not local_files_only
        if not (self.root / repo_id).is_dir():
            raise OSError("404: no such repository")
        assert "mass.json" in allow_patterns
        return str(self.root / repo_id)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    monkeypatch.setattr("mass.adaptation.hub.hub_answers", lambda: True)
    return found


def test_a_checkpoint_that_was_pushed_is_loaded_by_its_name(hub: Hub, tmp_path: Path) -> None:
    shipped = shipped_folder("tiny-terms")
    assert shipped is not None
    run = tmp_path / "run" / "checkpoints" / "best"
    shutil.copytree(shipped / "mass", run)
    (run.parents[1] / "README.md").write_text("the card")
    (run / "optimizer.pt").write_text("not for sharing")
    model = mass.load(checkpoint=run.parents[1])
    assert model.push_to_hub("me/tiny-mass", private=True) == "https://hub/me/tiny-mass/commit/1"
    pushed = hub.root / "me/tiny-mass"
    assert {p.relative_to(pushed).as_posix() for p in pushed.rglob("*") if p.is_file()} == {
        "README.md",
        "mass.json",
        "scorer.safetensors",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert (hub.private["me/tiny-mass"], (pushed / "README.md").read_text()) == (True, "the card")
    again = mass.load(checkpoint="me/tiny-mass")
    assert again.solve("Find the dot product of (3, 4) and (2, 5).").text == (
        model.solve("Find the dot product of (3, 4) and (2, 5).").text
    )


def test_only_the_card_of_a_run_goes_with_its_checkpoint(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint copied elsewhere, given by a relative name, takes no README that happens to lie above it."""
    shipped = shipped_folder("tiny-terms")
    assert shipped is not None
    (tmp_path / "README.md").write_text("about something else")
    shutil.copytree(shipped / "mass", tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path / "models")
    mass.load(checkpoint="mine").push_to_hub("me/tiny-mass")
    assert not (hub.root / "me/tiny-mass" / "README.md").exists()


def test_a_name_that_is_nowhere_is_a_one_line_error(hub: Hub) -> None:  # noqa: ARG001
    with pytest.raises(ModelError, match=r"'me/nothing' is not a folder here, and the hub gave none \(404"):
        mass.load(checkpoint="me/nothing")
    with pytest.raises(ModelError, match=r"'tiny/mass' no longer ships with the package"):
        mass.load(checkpoint="tiny/mass")


def test_what_cannot_be_pushed_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="untrained"):
        mass.load(checkpoint="untrained").push_to_hub("me/tiny")
    model = mass.load()
    with pytest.raises(ModelError, match="expected 'owner/name'"):
        mass.load(checkpoint="tiny-terms/mass").push_to_hub("tiny")

    def refused(*_: Any, **__: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(hub, "create_repo", refused)
    with pytest.raises(ModelError, match=r"did not take 'me/tiny' \(401"):
        mass.load(checkpoint="tiny-terms/mass").push_to_hub("me/tiny")
    assert len(repr(model)) < 200
