"""`mass train --dry_run`: print the forecast for a run as a table, with a line for each thing that prevents it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mass.cli import console
from mass.cli.failures import USER_ERROR
from mass.config import RunConfig
from mass.errors import ConfigError
from mass.timing import duration

if TYPE_CHECKING:
    from jsonargparse import Namespace
    from rich.table import Table

    from mass.preflight.dryrun import Rehearsal
    from mass.preflight.dryrun.duration import Duration

Line = tuple[str, str, str]
"""A subject, its value, and a remark."""
FIRST_CHARACTERS = 400
"""Number of characters of a prompt that are shown."""


def rehearse(config: RunConfig, given: Namespace) -> int:
    """Print the forecast for a run, and return 2 where something prevents the run, else 0.

    Processes after the first print nothing.
    """
    from mass.preflight import dryrun as rehearsal
    from mass.training.distributed import at_start

    ranks = at_start()
    if not ranks.first:
        return 0
    for name in ("device_tflops", "device_gbps", "device_gb"):
        if (value := given[name]) is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value:g}; expected a finite number above 0")
    device = None
    if given.device_tflops is not None:
        device = rehearsal.told(given.device_tflops, given.device_gbps, given.device_gb)
    with console.working("building the architecture without weights and counting its bytes"):
        found = rehearsal.rehearse(config, device, device_gb=given.device_gb, ranks=ranks.size)
    if given.json:
        print(json.dumps(found.to_dict()))
    else:
        console.stdout().print(_table(found, ranks.size))
        for text in _texts(found):
            console.say(text)
    for problem in found.problems:
        console.note(f"error: {' '.join(problem.split())}")
    return USER_ERROR if found.problems else 0


def _table(found: Rehearsal, ranks: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="dry run: nothing was trained or written", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    sections = (_model(found), _data(found), _tokens(found), _memory(found), _time(found, ranks), _verdict(found))
    for section in sections:
        for line in section:
            table.add_row(*(Text(part) for part in line))
        table.add_row("", "", "")
    return table


def _model(found: Rehearsal) -> Iterator[Line]:
    model = found.model
    yield "model", model.name, f"{model.kind}, {_count(model.parameters)} parameters"
    yield "its architecture", "without weights", f"from {model.source}"
    yield "adapter", f"{_count(model.adapter)} parameters", f"on {model.sites} layers"


def _count(number: int) -> str:
    return f"{number / 1e9:.3g} B" if number >= 1e9 else f"{number / 1e6:.3g} M"


def _data(found: Rehearsal) -> Iterator[Line]:
    for one in found.data.sets:
        rows = f"{one.rows:,} rows" if one.rows else "endless"
        golds = f"{one.checked - len(one.refused)} of {one.checked} golds accepted by their verifier"
        yield one.kind, f"{one.source}: {rows}", golds + (f", hash {one.hash}" if one.hash else "")
    if len(found.data.sets) == 2:
        yield "in both", f"{found.data.shared:,} problems", ""


def _tokens(found: Rehearsal) -> Iterator[Line]:
    usual, most = found.usual, found.at_most
    yield "tokens", "usually", "at most" if found.counted else "at most (guessed from characters)"
    yield "  solver prompt", str(usual.solve), str(most.solve)
    yield "  synthesis prompt", str(usual.synthesis), str(most.synthesis)
    yield "  practice written", str(usual.written), str(most.written)
    yield "  sampled solution", str(usual.answer), str(most.answer)
    yield "  worked solution", str(usual.gold), str(most.gold)


def _memory(found: Rehearsal) -> Iterator[Line]:
    memory = found.memory
    if memory is None:
        return
    yield "memory of a process", f"{memory.peak / 1e9:.3g} GB at the peak", "at the longest rows"
    for part in memory.stays:
        yield f"  {part.name}", _gb(part.bytes), "stays"
    for part in memory.stages:
        yield f"  {part.name}", _gb(part.bytes), "the peak" if part is memory.largest else ""
    if memory.inner is not None:
        schedule = memory.inner.schedule
        checkpointed = ", layers checkpointed" if schedule.checkpoint else ""
        kept = f", {schedule.kept} graphs kept" if schedule.kept else ""
        yield "  inner loop's passes", f"{len(schedule.chunks)} micro-batches a step{checkpointed}{kept}", ""


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def _time(found: Rehearsal, ranks: int) -> Iterator[Line]:
    if found.usually is None or found.longest is None:
        return
    device = found.device
    how = "measured" if device.measured else "as told"
    rates = (
        f"{device.flops / 1e12:.3g} TFLOP/s, {device.bytes_per_s / 1e9:.3g} GB/s, {device.memory / 1e9:.3g} GB, {how}"
    )
    yield "device", device.name, rates + ("" if ranks == 1 else f"; each of {ranks} processes")
    yield "time", "usually", "where all texts run to their limits"
    for stage, seconds in found.usually.stages.items():
        yield f"  {stage}", duration(seconds), duration(found.longest.stages[stage])
    yield "  a step", duration(found.usually.step), duration(found.longest.step)
    if found.usually.evaluations:
        yield "  an evaluation", duration(found.usually.evaluation), duration(found.longest.evaluation)
    yield "  the run", _run(found.usually), _run(found.longest)


def _run(one: Duration) -> str:
    evaluations = f" and {one.evaluations} evaluations" if one.evaluations else ""
    return f"{duration(one.run)}: {one.steps} steps{evaluations}"


def _verdict(found: Rehearsal) -> Iterator[Line]:
    fits = found.memory is not None and not any("does not fit" in problem for problem in found.problems)
    ways = f"{len(found.problems)} in its way, see below" if found.problems else "nothing is in its way"
    yield "verdict", "fits" if fits else "does not fit", ways


def _texts(found: Rehearsal) -> Iterator[str]:
    """Yield what is too long for a table."""
    for prompt in found.prompts:
        text = prompt.text if len(prompt.text) <= FIRST_CHARACTERS else f"{prompt.text[:FIRST_CHARACTERS]}…"
        tokens = "tokens unknown" if prompt.tokens is None else f"{prompt.tokens} tokens"
        yield f"{prompt.kind} prompt of the first problem ({tokens}):\n{text}\n"
    for note in found.notes:
        yield f"note: {note}"
