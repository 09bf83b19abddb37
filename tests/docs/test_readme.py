"""The README stays short, and tells no number of the study that the page of results does not have."""

from __future__ import annotations

import re

from reading import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.encode()) < 9_000


def test_its_results_are_those_of_the_page() -> None:
    told = README[README.index("## Results") : README.index("## Your model")]
    told = re.sub(r"^1,000 problems.*?:$", "", told, flags=re.M | re.S)  # the size of the model
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\d+\.\d+", told))
    assert len(numbers) > 30
    assert numbers - set(re.findall(r"\d+\.\d+", page)) == set()


def test_each_row_of_its_table_is_a_row_of_the_page() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*?`?([\w-]+)`?\)? \| (\d\S* \[.*?\]) \| (.*?) ?\| (\S+) \|$", README, re.M)
    assert [name for name, *_ in rows] == ["base", "tt-ss", "tt-ss-likelihood", "solver-grpo", "solver-sft", "mass"]
    known = [line.replace("*", "") for line in page.splitlines()]
    for name, greedy, gain, tokens in rows:
        assert any(line.startswith(f"| {name} | {greedy} | {gain}") and f" {tokens} |" in line for line in known), name
