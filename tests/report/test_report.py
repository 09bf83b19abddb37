"""A page says what the numbers say and no more, needs nothing outside itself, and shows foreign text as text."""

from __future__ import annotations

import copy
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mass.errors import DataError, RunError
from mass.evaluation.rows import rows_of
from mass.report import html_page, sampled_tables, terminal_table, training_page, write_html, write_page
from mass.report.curves import MAX_POINTS, curves_of, unit_of
from mass.report.figures import comparison_plots, looks_of
from mass.report.words import summary

HOSTILE = "<script>alert('x')</script> & $x_1$ \"q\""


def group(accuracy: float, n: int = 20) -> dict[str, Any]:
    return {"n": n, "accuracy": accuracy, "interval": [max(0, accuracy - 0.2), min(1, accuracy + 0.2)]}


def row(
    method: str, accuracy: float, difference: float, half: float = 0.05, tokens: float = 30.0, **more: Any
) -> dict[str, Any]:
    base = method == "base"
    values = {
        "method": method,
        "label": method,
        "n": 200,
        "no_verdict": 0,
        "accuracy": accuracy,
        "interval": [accuracy - 0.07, accuracy + 0.07],
        "difference": 0.0 if base else difference,
        "difference_interval": None if base else [difference - half, difference + half],
        "helped": None if base else 31,
        "hurt": None if base else 9,
        "unchanged": None if base else 160,
        "tokens_per_answer": tokens,
        "seconds_per_answer": 0.05,
        "fallbacks": 0,
        "by_subject": {"Algebra": group(accuracy), "Number Theory": group(accuracy / 2)},
        "by_level": {"1": group(accuracy), "2": group(accuracy / 2)},
    }
    return {**values, **more}


def sampled(temperature: float, accuracy: float, difference: float | None, half: float = 0.02) -> dict[str, Any]:
    return {
        "temperature": temperature,
        "samples": 8,
        "accuracy": accuracy,
        "interval": [accuracy - half, accuracy + half],
        "difference": difference,
        "difference_interval": None if difference is None else [difference - half, difference + half],
        "pass_at_n": 0.875,
        "maj_at_n": None,
        "tokens_per_answer": 41.25,
        "seconds_per_answer": 0.012,
    }


def comparison(*rows: dict[str, Any]) -> dict[str, Any]:
    practice = [
        {"problem": "5 + 6?", "solution": "11", "weight": 0.4, "loss_before": 0.9, "loss_after": 0.6, "rejected": ""},
        {"problem": "", "solution": "", "weight": 0.0, "loss_before": None, "loss_after": None, "rejected": "unparsed"},
    ]
    example = {
        "problem": "What is 3 + 4?",
        "answer": "7",
        "unadapted_text": "8",
        "text": "7",
        "correct": True,
        "unadapted_correct": None,
        "practice": practice,
    }
    return {
        "tasks": {"source": "minimath", "split": "test", "size": 200, "seed": 0, "hash": "c0ffee"},
        "model": "tiny",
        "config": {"inner": {"steps": 1}},
        "config_hash": "abc123",
        "seed": 0,
        "created": "2025-01-01T00:00:00+00:00",
        "version": "0.1.0",
        "rows": list(rows) or [row("base", 0.41, 0), row("tt-ss", 0.4, -0.01), row("mass", 0.54, 0.13, tokens=300)],
        "examples": [example],
        "notes": [],
    }


def words_of(data: dict[str, Any]) -> str:
    return summary(data, rows_of(data))


def printed(data: dict[str, Any], width: int = 80) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_table(data))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_sampled_answers_have_a_table_for_each_temperature() -> None:
    from rich.console import Console

    parts = {"sampled": [sampled(0.6, 0.45, None), sampled(1.0, 0.31, None)]}
    better = {"sampled": [sampled(0.6, 0.5, 0.05), sampled(1.0, 0.32, 0.01)]}
    data = comparison(row("base", 0.41, 0, **parts), row("mass", 0.54, 0.13, **better), row("maj@8", 0.6, 0.2))
    console = Console(file=io.StringIO(), width=80)
    tables = sampled_tables(data)
    for table in tables:
        console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert len(tables) == 2
    assert "sampled at temperature 0.6, 8 answers to each problem" in text
    assert re.search(r"mass +50.0 \[48.0, 52.0\] +\+5.0 \[\+3.0, \+7.0\] +87.5 +– +41.2 +0.012", text)
    assert re.search(r"base +31.0 \[29.0, 33.0\] +87.5", text)
    assert [table.row_count for table in tables] == [2, 2]  # maj@8 samples by itself
    page = html_page(data)
    Page(page)
    assert "Sampled at temperature 1, 8 answers to each problem" in page
    assert "pass@8, %" in page
    assert '<td class="better">+5.0' in page
    assert sampled_tables(comparison()) == []
    assert "Sampled at" not in html_page(comparison())


class Page(HTMLParser):
    """Tags, ids and text of a page; fails on a tag that is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


# --- words


@pytest.mark.parametrize(
    ("difference", "half", "phrase"),
    [
        (0.10, 0.05, "Better than base, beyond the 95% interval of the paired difference: mass (+10.0 points, +5.0 to"),
        (0.10, 0.10, "Not distinguishable from base, as that interval covers 0: mass (+10.0 points, +0.0 to +20.0)"),
        (0.10, 0.15, "Not distinguishable from base, as that interval covers 0: mass (+10.0 points, −5.0 to +25.0)"),
        (-0.1, 0.05, "Worse than base, beyond that interval: mass (−10.0 points, −15.0 to −5.0)"),
    ],
)
def test_the_summary_claims_what_the_interval_allows(difference: float, half: float, phrase: str) -> None:
    text = words_of(comparison(row("base", 0.4, 0), row("mass", 0.4 + difference, difference, half)))
    assert phrase in text
    assert sum(claim in text for claim in ("Better than", "Not distinguishable", "Worse than")) == 1


def test_the_summary_names_the_levels_and_subjects_that_were_chosen() -> None:
    data = comparison()
    assert "minimath (test split, seed 0) with" in words_of(data)
    data["tasks"] |= {"levels": [5], "subjects": ["Algebra", "Geometry"]}
    assert "minimath (test split, seed 0, level 5, subjects Algebra, Geometry) with" in words_of(data)


def test_the_summary_tells_cost_changes_fallbacks_and_missing_verdicts() -> None:
    mass = row("mass", 0.5, 0.09, tokens=300, fallbacks=3, no_verdict=2, hurt=1)
    text = words_of(comparison(row("base", 0.41, 0, tokens=30), mass))
    assert "31 wrong answers right and 1 right answer wrong" in text
    assert "300 tokens per answer, 10.0 times the 30 of base" in text
    assert "fell back to the unadapted answer on 3 of 200 problems" in text
    assert "On 2 answers the verifier gave no verdict" in text


def test_the_summary_warns_of_many_comparisons() -> None:
    rows = [row(f"m{i}", 0.4, 0.0) for i in range(3)]
    assert "not corrected for comparing 3" in words_of(comparison(row("base", 0.4, 0), *rows))
    assert "not corrected" not in words_of(comparison(row("base", 0.4, 0), rows[0]))


def test_without_base_nothing_is_compared() -> None:
    lone = {"label": "mass", "method": "mass", "n": 200, "accuracy": 0.5}
    text = words_of(comparison(lone))
    assert "nothing is compared" in text
    assert "Better" not in text


# --- terminal


def test_the_terminal_table_fits_80_columns() -> None:
    rows = [row("base", 0.41, 0), row("solver-grpo", 0.5, 0.09, tokens=1234, no_verdict=2), row("mass", 0.54, 0.131)]
    text = printed(comparison(*rows))
    assert "…" not in text
    assert re.search(
        r"^mass +54\.0 \[47\.0, 61\.0\] +\+13\.1 \[\+8\.1, \+18\.1\] +31/9 +30 +0\.05 *$", text, re.MULTILINE
    )
    assert re.search(r"^base +41\.0 \[34\.0, 48\.0\] +30 +0\.05 *$", text, re.MULTILINE)
    assert "No verdict: solver-grpo 2." in text
    assert "200 problems of minimath" in text


def test_unequal_sizes_get_a_column_and_labels_are_no_markup() -> None:
    text = printed(comparison(row("base", 0.4, 0), row("x", 0.4, 0, n=150, label="[red]x[/red]")), 120)
    assert "[red]x[/red]" in text
    assert re.search(r"\b150\b", text)


# --- page


def test_the_page_is_well_formed_and_needs_nothing_outside() -> None:
    text = html_page(comparison())
    page = Page(text)
    assert page.tags.count("svg") == page.tags.count("figure") == 5
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"\bsrc=|@import|url\((?!#)", text)
    assert set(re.findall(r"https?://[^/\"]+", text)) <= {"http://www.w3.org"}
    assert len(text) < 150_000


def test_svg_ids_are_unique_on_the_page_and_every_reference_resolves() -> None:
    text = html_page(comparison())
    ids = Page(text).ids
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text)) <= set(ids)


def test_plots_take_their_colours_from_the_page() -> None:
    text = html_page(comparison())
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert {"--s0", "--s1", "--ink", "--grid"} <= used
    for scheme in re.findall(r":root \{(.*?)\}", text, re.DOTALL):
        assert used <= set(re.findall(r"(--\w+):", scheme))
    for plot in comparison_plots(rows_of(comparison())):
        assert "#0" not in re.sub(r"(?:href=\"|url\()#", "", plot.svg)


def test_each_plot_is_valid_xml_and_says_its_numbers() -> None:
    plots = {plot.title: plot for plot in comparison_plots(rows_of(comparison()))}
    texts = {title: "|".join(ElementTree.fromstring(plot.svg).itertext()) for title, plot in plots.items()}
    assert "54.0" in texts["Accuracy by method"]
    assert "31" in texts["Answers that changed, against base"]
    assert "log scale" in texts["Accuracy against cost"]
    assert "n = 20" in texts["Accuracy by subject"]
    assert "Number Theory" in texts["Accuracy by subject"]
    assert all("200 problems" in plot.caption.lower() for plot in plots.values())
    assert sum("95% interval" in plot.caption for plot in plots.values()) == 4


def test_the_reference_row_is_named_wherever_something_is_compared() -> None:
    worse = {"is_reference": False, "difference": -0.1, "difference_interval": [-0.15, -0.05], "helped": 3, "hurt": 23}
    data = comparison(
        row("base", 0.4, 0.0) | worse,
        row("mass-unadapted", 0.5, 0.0, is_reference=True),
        row("mass", 0.6, 0.1, is_reference=False, sampled=[sampled(0.6, 0.5, 0.1)]),
    )
    page, table = html_page(data), printed(data, 120)
    for text in (page, table):
        assert "gainst mass-unadapted" in text
        assert "gainst base" not in text
    assert "Worse than mass-unadapted" in page
    assert "Against mass-unadapted, mass turned 31 wrong answers right" in page
    assert "The dashed line is mass-unadapted." in page


def test_dollars_in_a_label_are_no_formula() -> None:
    for plot in comparison_plots(rows_of(comparison(row("base", 0.4, 0), row("mass", 0.5, 0.1, label="$x_1$ & <b>")))):
        assert "$x_1$ & <b>" in "|".join(ElementTree.fromstring(plot.svg).itertext())


def test_a_narrow_range_of_costs_is_not_logarithmic() -> None:
    plots = comparison_plots(rows_of(comparison(row("base", 0.4, 0, tokens=30), row("mass", 0.5, 0.1, tokens=60))))
    assert not any("log scale" in plot.svg for plot in plots)


def test_text_from_outside_is_escaped_everywhere() -> None:
    data = comparison(row("base", 0.4, 0), row("mass", 0.5, 0.1, label=HOSTILE, by_subject={HOSTILE: group(0.5)}))
    data["model"] = data["tasks"]["source"] = data["config"]["name"] = HOSTILE
    data["notes"] = [HOSTILE]
    example = data["examples"][0]
    for key in ("problem", "answer", "unadapted_text", "text"):
        example[key] = HOSTILE
    example["practice"][0] |= {"problem": HOSTILE, "solution": HOSTILE}
    text = html_page(data)
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) >= 11
    assert "<script" not in text.lower()
    assert "<script" not in training_page(
        [{"step": 1, HOSTILE: 1.0}, {"step": 2, HOSTILE: 2.0}], {"a": HOSTILE}, HOSTILE
    )


def test_examples_show_verdicts_practice_and_what_was_rejected() -> None:
    page = Page(html_page(comparison()))
    text = " ".join(page.text.split())
    assert "(no verdict before, right after)" in text
    assert "0.9 → 0.6" in text
    assert "not used: unparsed" in text
    data = comparison()
    data["examples"] *= 30
    assert Page(html_page(data)).tags.count("details") == 21


def test_the_same_comparison_gives_the_same_page() -> None:
    assert html_page(comparison()) == html_page(copy.deepcopy(comparison()))


@pytest.mark.parametrize(
    "rows",
    [
        [row("base", 0.4, 0)],
        [{"label": "base", "n": 3, "accuracy": 0.4}],
        [row("base", 0.0, 0, interval=[0, 0]), row("mass", 1.0, 1.0, 0, interval=[1, 1], helped=0, hurt=0)],
        [row("base", 0.4, 0), {"label": "x", "n": 0, "accuracy": None, "tokens_per_answer": float("nan")}],
        [row("base", 0.4, 0), row("mass", 0.5, 0.1, by_subject={"A": {"n": 0, "accuracy": None}}, by_level={})],
        [row(f"method {i} of a long name", 0.4, 0.0) for i in range(20)],
    ],
)
def test_what_may_be_missing_is_left_out(rows: list[dict[str, Any]]) -> None:
    data = {"rows": rows}
    Page(html_page(data))
    assert rows[0]["label"][:10] in printed(data)


def test_no_verdicts_get_a_column_only_when_there_are_any() -> None:
    assert "Noverdict" not in Page(html_page(comparison())).text
    assert "Noverdict" in Page(html_page(comparison(row("base", 0.4, 0, no_verdict=1)))).text


def test_methods_differ_in_colour_or_marker() -> None:
    looks = looks_of(rows_of({"rows": [row(name, 0.4, 0) for name in ["base", "mass", *"abcdefghijkl"]]}))
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize(
    ("data", "message"),
    [({}, "no list 'rows'"), ({"rows": [{"label": "base", "n": 3}]}, "row 0 of the comparison has no 'accuracy'")],
)
def test_what_is_no_comparison_is_refused_on_one_line(data: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        html_page(data)
    assert "\n" not in str(caught.value)


# --- files


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path = write_html(comparison(), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == html_page(comparison())
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_failed_write_leaves_the_old_page_and_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(_self: Path, _: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left") as caught:
        write_page("new", path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_path_below_a_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write the report"):
        write_page("page", tmp_path / "file" / "report.html")


# --- training


def metrics(steps: int = 30) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"step": s, "loss/outer": 2.0 - s / 100, "accuracy": s / 100, "seconds/inner": 0.5, "note": "text", "ok": True}
        for s in range(1, steps + 1)
    ]
    return [*rows, {"step": 10, "eval/mass/accuracy": 0.3}, {"step": 20, "eval/mass/accuracy": 0.4}]


def test_a_training_page_has_one_plot_per_group_and_unit_held_out_first() -> None:
    rows = [{**r, "loss/kl": 0.01} if "loss/outer" in r else {**r, "eval/base/accuracy": 0.3} for r in metrics()]
    text = training_page(rows, {"lr": 0.1}, "A run")
    page = Page(text)
    titles = re.findall(r"<h3>(.*?)</h3>", text)
    assert titles == [
        "eval (share, 0 to 1)",
        "loss",
        "accuracy (share, 0 to 1)",
        "seconds",
        "loss (divergence, nats per token)",
    ]
    assert page.tags.count("svg") == 5
    assert "mass/accuracy" in text
    assert "loss/outer went from 1.98 to 1.71" in page.text
    assert "eval/mass/accuracy went from 0.300 (step 10) to 0.400 (step 20)" in page.text
    assert "fresh problems" in page.text
    assert "note" not in titles


def test_a_resumed_run_keeps_the_later_value_and_drops_what_is_not_finite() -> None:
    rows = [{"step": 2, "a": 1.0}, {"step": 1, "a": 5.0}, {"step": 2, "a": 3.0}, {"step": 3, "a": float("nan")}]
    (curve,) = curves_of(rows)
    assert (curve.steps, curve.values) == ((1.0, 2.0), (5.0, 3.0))


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [{"loss": 1.0}], [{"step": 1, "loss": None}]])
def test_a_run_that_has_hardly_begun_still_has_a_page(rows: list[dict[str, Any]]) -> None:
    Page(training_page(rows, {}, "A run"))


def test_long_runs_are_averaged_and_many_curves_are_summarised() -> None:
    many = {f"rate/{i}": 0.1 + i for i in range(9)}
    text = training_page([{"step": s, **many} for s in range(3 * MAX_POINTS)], {}, "A run")
    assert "9 curves; the coloured one has the middle last value (rate/4)" in text
    assert "mean of 3 recorded steps" in text
    assert len(text) < 100_000


@pytest.mark.parametrize(
    ("key", "unit"),
    [
        ("seconds/synthesis", "seconds"),
        ("eval/mass/accuracy", "share, 0 to 1"),
        ("solver_nll", "nats per token"),
        ("rate/layers.0.q.A", "learning rate"),
        ("entropy", ""),
    ],
)
def test_units_come_from_the_last_telling_word(key: str, unit: str) -> None:
    assert unit_of(key) == unit


# --- manners


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    html_page(comparison())
    assert dict(matplotlib.rcParams) == before


def test_importing_reports_is_cheap_and_drawing_has_no_global_figures() -> None:
    code = (
        "import sys, mass.report as r; assert not {'matplotlib', 'jinja2', 'rich', 'torch'} & set(sys.modules);"
        "r.html_page({'rows': [{'label': 'base', 'n': 3, 'accuracy': 0.4}]});"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
