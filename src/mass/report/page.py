"""Write a comparison, or a run's metrics, as one HTML page that needs no other file, for light and dark screens."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mass.errors import RunError
from mass.evaluation.rows import Row, rows_of
from mass.report import words
from mass.report.curves import curves_of, training_plots, training_summary
from mass.report.figures import comparison_plots

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_EXAMPLES = 20


def html_page(comparison: Mapping[str, Any]) -> str:
    """Return the page of a comparison, given as in `Comparison.to_dict` or `comparison.json`."""
    rows = rows_of(comparison)
    return _render(
        title=f"MASS: {words.task_text(comparison)}, model {comparison.get('model', 'unnamed')}",
        summary=words.summary(comparison, rows),
        rows=[_cells(row) for row in rows],
        against=words.against(rows),
        sampled=[_sampled(rows, *key) for key in words.temperatures(rows)],
        some_no_verdict=any(row.no_verdict for row in rows),
        plots=comparison_plots(rows),
        notes=[str(note) for note in comparison.get("notes") or ()],
        examples=list(comparison.get("examples") or ())[:MAX_EXAMPLES],
        config=_json(comparison.get("config")),
        facts=_facts(comparison),
    )


def training_page(metrics: Sequence[Mapping[str, Any]], config: Mapping[str, Any], title: str) -> str:
    """Return the page with the curves of a meta-training run, from the rows of its metrics file."""
    curves = curves_of(metrics)
    return _render(
        title=title,
        summary=training_summary(curves),
        rows=[],
        against="",
        sampled=[],
        some_no_verdict=False,
        plots=training_plots(curves),
        notes=[],
        examples=[],
        config=_json(config),
        facts={"metric rows": len(metrics)},
    )


def write_html(comparison: Mapping[str, Any], path: str | Path) -> Path:
    """Write the page of a comparison, and return its path.

    Raises:
        RunError: The folder cannot be written.
    """
    return write_page(html_page(comparison), path)


def write_page(page: str, path: str | Path) -> Path:
    """Write a page, and return its path.

    It is written to another file first and then renamed, so a reader finds either the old page or the whole new one.

    Raises:
        RunError: The folder cannot be written.
    """
    path = Path(path)
    # With the process id: two processes may write the same page at once.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(page, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise RunError(f"cannot write the report {path}: {error.strerror}; give a path in a writable folder") from error
    return path


def _render(**values: Any) -> str:
    return _environment().get_template("report.html.j2").render(**values)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mass", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(amount=words.amount, verdict=_verdict)
    return environment


def _cells(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "n": row.n,
        "accuracy": words.percent(row.accuracy),
        "interval": words.percent_interval(row.interval),
        "difference": "" if row.is_reference else words.points(row.difference),
        "difference_interval": words.points_interval(row.difference_interval),
        "standing": {1: "better", -1: "worse"}.get(words.standing(row) or 0, ""),
        "helped": "" if row.helped is None else row.helped,
        "hurt": "" if row.hurt is None else row.hurt,
        "tokens": words.amount(row.tokens_per_answer),
        "seconds": words.amount(row.seconds_per_answer),
        "fallbacks": row.fallbacks,
        "no_verdict": row.no_verdict,
    }


def _sampled(rows: Sequence[Row], temperature: float, samples: int) -> dict[str, Any]:
    """Return the table for one temperature."""
    lines = [
        {
            "label": row.label,
            "accuracy": words.percent(part.accuracy),
            "interval": words.percent_interval(part.interval),
            "difference": "" if part.difference is None else words.points(part.difference),
            "difference_interval": words.points_interval(part.difference_interval),
            "standing": {1: "better", -1: "worse"}.get(words.standing(part) or 0, ""),
            "pass_at_n": words.percent(part.pass_at_n),
            "maj_at_n": words.percent(part.maj_at_n),
            "tokens": words.amount(part.tokens_per_answer),
            "seconds": words.amount(part.seconds_per_answer),
        }
        for row, part in words.at_temperature(rows, temperature)
    ]
    return {"title": words.sampled_title(temperature, samples).capitalize(), "n": samples, "rows": lines}


def _facts(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts needed to repeat the comparison, which are shown in small print."""
    tasks: Mapping[str, Any] = comparison.get("tasks") or {}
    facts = {
        "made": comparison.get("created"),
        "mass": comparison.get("version"),
        "commit": comparison.get("commit"),
        "seed": comparison.get("seed"),
        "configuration": comparison.get("config_hash"),
        "problems": tasks.get("hash"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _verdict(correct: bool | None) -> str:
    return "no verdict" if correct is None else "right" if correct else "wrong"


def _json(config: Any) -> str:
    return json.dumps(config, indent=2, ensure_ascii=False, default=str) if config else ""
