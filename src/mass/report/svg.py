"""Turn matplotlib figures into SVG for an HTML page, with the page's CSS variables as colours.

The figure is drawn in placeholder colours, which are then replaced by `var(--name)`. So the same plot is readable on a
light page, on a dark one and on paper. Text stays text: small, searchable, in the page's own font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN = 5.0
FONT = "system-ui, Segoe UI, Roboto, Helvetica Neue, DejaVu Sans, sans-serif"
INK, MUTED, GRID, PANEL, BACKGROUND = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = tuple(f"#0a0a{index:02x}" for index in range(8))
"""Placeholder colours for `--s0` (base, grey) to `--s7`."""
MARKERS = ("s", "o", "^", "D", "v", "p", "<", ">")

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PANEL: "--panel",
    BACKGROUND: "--background",
    **{colour: f"--s{index}" for index, colour in enumerate(SERIES)},
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.0,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Canvas:
    """A figure with one set of axes, to draw on within `drawing`."""

    axes: Axes
    figure: Figure
    name: str
    description: str

    def legend(self, columns: int) -> None:
        """Add a legend for the labelled artists, below the plot."""
        handles, labels = self.axes.get_legend_handles_labels()
        if handles:
            self.figure.legend(handles, labels, loc="outside lower left", ncols=columns)

    def svg(self) -> Markup:
        """Return the figure as SVG."""
        return inline(self.figure, self.name, self.description)


@contextmanager
def drawing(name: str, height_in: float, description: str) -> Generator[Canvas, None, None]:
    """Provide a canvas of `height_in` inches; matplotlib has the page's style while the block runs."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A fixed salt gives the same ids in every run, so a page that is written again does not change.
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasSVG(figure)
        yield Canvas(figure.subplots(), figure, name, description)


def inline(figure: Figure, name: str, description: str) -> Markup:
    """Return the SVG of a figure without prolog, metadata and fixed size. Its ids begin with `name`, and screen
    readers read `description`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Several plots share one page, where equal ids would refer to each other's parts.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r'\b(?:d|x|y|points|transform)="[^"]*"', _rounded, text)
    text = re.sub(r">\s+<", "><", text)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return Markup(text)


LIGHT = {
    "--ink": "#1c1f24",
    "--muted": "#5b6470",
    "--grid": "#d9dde3",
    "--panel": "#f4f5f7",
    "--background": "#ffffff",
    **{
        f"--s{index}": colour
        for index, colour in enumerate(
            ("#6b7280", "#0b62b0", "#cf5500", "#00875f", "#8250b4", "#a87400", "#c2185b", "#0f7f8f")
        )
    },
}
"""The colours of a light page, for a picture that is not inside a page."""


TITLE_PT = 24
"""Height of the title line above such a picture, in points."""


def standalone(svg: str, title: str) -> str:
    """Return an inline picture as a file of its own: fixed colours, a font, its title, and a background for dark
    pages."""
    text = re.sub(r"var\((--[a-z0-9]+)\)", lambda match: LIGHT[match[1]], svg)
    box = re.search(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', text)
    if box is None:
        raise ValueError("the picture has no viewBox; expected what `inline` made")
    width, height = float(box[1]), float(box[2]) + TITLE_PT
    text = text.replace(box[0], f'viewBox="0 {-TITLE_PT} {width:g} {height:g}"')
    size = f'width="{width:g}pt" height="{height:g}pt" font-family="{FONT}"'
    paper = f'<rect y="{-TITLE_PT}" width="{width:g}" height="{height:g}" fill="{LIGHT["--background"]}"/>'
    said = f'<text x="4" y="-8" font-size="11" font-weight="bold" fill="{LIGHT["--ink"]}">{escape(title)}</text>'
    start = text.index(">", text.index("<svg"))
    return f"{text[:start]} {size}>{paper}{said}{text[start + 1 :]}\n"


def _rounded(attribute: re.Match[str]) -> str:
    """Shorten coordinates to a hundredth of a point, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]))
