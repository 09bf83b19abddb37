"""Show the metrics of each training step: a live table with the time left, or one line per step where there is no
terminal."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mass.adaptation.synthesis.reasons import REASONS
from mass.cli.console import LINE_EVERY_S, REFRESH_EVERY_S, Pace
from mass.cli.stages import watching
from mass.timing import duration

SHOWN = (
    ("outer loss", "outer loss", "{:.4f}"),
    ("practice loss", "practice loss", "{:.4f}"),
    ("reward", "reward", "{:.3f}"),
    ("valid", "valid practice", "{:.0%}"),
    ("weight", "mean weight", "{:.3f}"),
    ("inner rate", "inner rate", "{:.4g}"),
    ("tokens", "tokens", "{:,.0f}"),
)
ABOVE_ZERO = (
    ("generator KL", "generator KL", "{:.4f}"),
    ("canary KL", "canary KL", "{:.4f}"),
    *((reason, f"practice {reason}", "{:.0%}") for reason in REASONS),
    ("no verdict", "no verdict", "{:.1%}"),
    ("not finite", "not finite", "{:.1%}"),
    ("clipped", "problems clipped", "{:.1%}"),
    ("skipped updates", "skipped updates", "{:.0f}"),
)
"""Metrics that are shown only where they are above zero."""
EVALUATED = (
    ("eval/accuracy", "held-out accuracy, adapted", "{:.1%}"),
    ("eval/unadapted accuracy", "held-out accuracy, unadapted", "{:.1%}"),
    ("eval/helped", "answers helped by the update", "{:.0f}"),
    ("eval/hurt", "answers hurt by it", "{:.0f}"),
    ("eval/sampled accuracy", "held-out accuracy, adapted, sampled", "{:.1%}"),
    ("eval/unadapted sampled accuracy", "held-out accuracy, unadapted, sampled", "{:.1%}"),
)
SKIPPED = ("skipped tasks", "skipped validation tasks")
REFRESH_PER_SECOND = 2


class Monitor:
    """Shows the progress of a run. Use it as a context manager; `step` is the last step seen."""

    def __init__(self, steps: int, console: Console) -> None:
        self.step: int | None = None
        self._steps, self._console, self._pace = steps, console, Pace(steps)
        self._evaluated: dict[str, float] = {}
        self._live: Live | None = None
        self._shown: RenderableType = Text("loading the model and evaluating it before the first step", style="dim")
        self._hold = ExitStack()

    def __enter__(self) -> Monitor:
        every_s = LINE_EVERY_S
        if self._console.is_terminal:
            self._live = Live(self._shown, console=self._console, refresh_per_second=REFRESH_PER_SECOND)
            self._hold.enter_context(self._live)
            every_s = REFRESH_EVERY_S
        self._hold.enter_context(watching(self._on_stage, every_s))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hold.__exit__(kind, error, trace)

    def _on_stage(self, said: str) -> None:
        if self._live is not None:
            self._live.update(Group(self._shown, Text(said, style="dim")))
            return
        now = "before the first step" if self.step is None else f"after step {self.step}/{self._steps}"
        self._console.print(f"{now}: {said}", markup=False)

    def on_step(self, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step."""
        self.step = int(metrics["step"])
        left_s = self._pace.left_s(self.step)
        for key in SKIPPED:
            if key in metrics:
                said = (
                    f"{metrics[key]:.0f} {key.removeprefix('skipped ')} left out: they do not fit the model's context"
                )
                self._console.print(said, markup=False)
        self._evaluated |= {f"{key}@": metrics["step"] for key, _, _ in EVALUATED if key in metrics}
        self._evaluated |= {key: metrics[key] for key, _, _ in EVALUATED if key in metrics}
        if self._live is None:
            self._console.print(plain_line(metrics, self._steps, left_s), markup=False)
        else:
            self._shown = _panel(metrics, self._evaluated, self._steps, left_s)
            self._live.update(self._shown)


def plain_line(metrics: Mapping[str, float], steps: int, left_s: float | None) -> str:
    """Write a line such as `step 3/100  outer loss 0.1234  reward 0.250 ...`."""
    parts = [f"step {int(metrics['step'])}/{steps}"]
    shown = [*_shown(metrics), *(row for row in EVALUATED if row[0] in metrics)]
    parts += [f"{label} {_written(shape, metrics[key])}" for key, label, shape in shown]
    stages = _stages(metrics)
    if stages:
        parts.append(f"{sum(stages.values()):.1f} s")
    if left_s is not None and left_s > 0:
        parts.append(f"left {duration(left_s)}")
    return "  ".join(parts)


def _panel(
    metrics: Mapping[str, float], evaluated: Mapping[str, float], steps: int, left_s: float | None
) -> RenderableType:
    step = int(metrics["step"])
    bar = Table.grid(padding=(0, 2))
    left = f"left {duration(left_s)}" if step < steps else "done"
    bar.add_row(f"step {step}/{steps}", ProgressBar(total=steps, completed=step, width=40), left)
    numbers = Table.grid(padding=(0, 2))
    numbers.add_column(no_wrap=True)
    numbers.add_column(justify="right")
    for key, label, shape in _shown(metrics):
        numbers.add_row(Text(label, style="dim"), _written(shape, metrics[key]))
    for key, label, shape in EVALUATED:
        if key in evaluated:
            at = Text(f" at step {evaluated[f'{key}@']:.0f}", style="dim")
            numbers.add_row(Text(label, style="dim"), Text.assemble(shape.format(evaluated[key]), at))
    times = Table.grid(padding=(0, 2))
    times.add_column(no_wrap=True)
    times.add_column(justify="right")
    for stage, seconds in _stages(metrics).items():
        times.add_row(Text(stage, style="dim"), f"{seconds:.2f} s")
    side = Table.grid(padding=(0, 6))
    side.add_row(numbers, times)
    return Group(bar, side)


def _shown(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    always = [row for row in SHOWN if row[0] in metrics]
    return [*always, *(row for row in ABOVE_ZERO if metrics.get(row[0], 0) > 0)]


def _written(shape: str, value: float) -> str:
    """Format a value; a zero has no sign."""
    text = shape.format(value)
    return text.removeprefix("-") if not text.strip("-0.%") else text


def _stages(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key.removeprefix("seconds/"): value for key, value in metrics.items() if key.startswith("seconds/")}
