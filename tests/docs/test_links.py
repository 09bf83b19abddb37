"""Links of the public pages to files of the repository lead somewhere, on the page's own path and in the site."""

from __future__ import annotations

from pathlib import Path

import pytest
import reading
from reading import PAGES, ROOT, repository

MADE = {"docs/reference/commands.md", "docs/results.md"}
"""Pages that are made: by the site's build, and by `python -m research document`."""


@pytest.mark.parametrize("page", PAGES, ids=reading.name_of)
def test_links_lead_to_files(page: Path) -> None:
    source = reading.name_of(page)
    targets = {repository.resolve(source, link["path"]) for link in repository.links(page.read_text(encoding="utf-8"))}
    assert [target for target in sorted(targets - MADE) if not (ROOT / target).exists()] == []


def test_there_are_links_to_check() -> None:
    found = [link["path"] for link in repository.links((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert "docs/engine.md" in found
    assert len(found) > 10


def test_the_first_page_leads_to_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = {repository.resolve("docs/index.md", link["path"]) for link in repository.links(index)}
    pages = {reading.name_of(page) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    inside = {page for page in pages if page.startswith(("docs/adr/", "docs/reference/"))}
    assert pages - inside - named == {"docs/index.md"}
    assert {"docs/adr", "docs/reference/index.md"} <= named


def test_the_reference_leads_to_each_of_its_pages() -> None:
    index = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    named = {link["path"] for link in repository.links(index)}
    assert {page.name for page in (ROOT / "docs" / "reference").glob("*.md")} - named == {"index.md"}


def test_links_in_code_and_to_other_hosts_are_no_links_of_ours() -> None:
    text = "`[a](b)` [c](d.md#e) [f](https://g/h)\n```\n[i](j)\n```\n![k](l.png)"
    assert [link["path"] for link in repository.links(text)] == ["d.md", "l.png"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with a page in docs/ that leads outside, and on from there."""
    (tmp_path / "docs" / "adr").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[a](../README.md#x) [r](../recipes) [d](adr) [gone](../gone.md)")
    (tmp_path / "docs" / "adr" / "0001-one.md").write_text("# 1. One")
    (tmp_path / "README.md").write_text("# Read\n[i](docs/index.md) ![p](p.png) [m](Makefile)")
    (tmp_path / "recipes" / "one.yaml").write_text("steps: 1\n")
    (tmp_path / "p.png").write_bytes(b"\x89PNG")
    (tmp_path / "Makefile").write_text("all:\n")
    return tmp_path


def test_what_pages_lead_to_is_brought_into_the_site(small: Path) -> None:
    assert repository.copies(["docs/index.md"], small) == {
        "README.md": "repository/README.md",
        "recipes": "repository/recipes/index.md",
        "recipes/one.yaml": "repository/recipes/one.yaml.md",
        "docs/adr": "adr/index.md",
        "p.png": "repository/p.png",
        "Makefile": "repository/Makefile.md",
    }
    assert "steps: 1" in repository.text_of("recipes/one.yaml", small)
    assert "[1. One](adr/0001-one.md)" in repository.text_of("docs/adr", small)
    assert repository.text_of("p.png", small) is None, "copied as it is"


def test_links_are_turned_to_their_places_and_a_dead_one_is_left_for_the_build_to_refuse(small: Path) -> None:
    def turned(place: str, target: str) -> str:
        return repository.relinked(repository.text_of(target, small) or "", place, small)

    index = turned("index.md", "docs/index.md")
    assert index == "[a](repository/README.md#x) [r](repository/recipes/index.md) [d](adr/index.md) [gone](../gone.md)"
    assert "[i](../index.md) ![p](p.png) [m](Makefile.md)" in turned("repository/README.md", "README.md")
    assert "[one.yaml](one.yaml.md)" in turned("repository/recipes/index.md", "recipes")
    assert "[1. One](0001-one.md)" in turned("adr/index.md", "docs/adr")
