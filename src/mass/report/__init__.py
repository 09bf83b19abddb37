"""Show a comparison, or a run's metrics, as a terminal table or as one self-contained HTML page.

The comparison is the JSON of `mass eval` as a dict; `mass.evaluation.rows` says which keys are read.
"""

from __future__ import annotations

from mass.report.page import html_page, training_page, write_html, write_page
from mass.report.table import sampled_tables, terminal_table

__all__ = ["html_page", "sampled_tables", "terminal_table", "training_page", "write_html", "write_page"]
