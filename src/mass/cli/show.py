"""Show a `Solution` in a terminal: the practice, its weights, and both answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mass.adaptation.synthesis.reasons import rejected_shares
from mass.types import Adaptation, Example, GateDecision, Solution, Task, Verdict

MAX_PRACTICE_CHARS = 180
MAX_ANSWER_CHARS = 1200


def solution(problem: str | Task, found: Solution) -> RenderableType:
    """Return all that `mass solve` shows for one answer."""
    text = problem.problem if isinstance(problem, Task) else problem
    parts: list[RenderableType] = [_heading("Problem"), Padding(Text(text.strip()), (0, 0, 1, 2))]
    record = found.adaptation
    if record is None:
        return Group(*parts, _heading("Answer, without practice"), _padded(Text(_shortened(found.text))))
    parts += [_practice(record), _answers(record)]
    if isinstance(problem, Task) and problem.answer:
        parts.append(Text(f"  right answer: {problem.answer}", style="dim"))
    if record.fallback:
        parts.append(Text(f"  Fell back to the unadapted answer: {record.fallback}.", style="bold yellow"))
    if record.gate is not None:
        parts.append(_gate(record.gate))
    return Group(*parts, Padding(Text(_timing(record), style="dim"), (0, 0, 0, 2)))


def _gate(decision: GateDecision) -> Text:
    """Return one line with the gate's decision and what it measured."""
    measures = " · ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in decision.measures.items())
    return Text.assemble(f"  gate: {decision.reason}", (f"  {measures}" if measures else "", "dim"))


def tally(pairs: Sequence[tuple[Verdict | None, Verdict | None]]) -> Text:
    """Return one line on several problems with gold, from their (unadapted, adapted) verdicts."""
    judged = [(u.correct, a.correct) for u, a in pairs if u is not None and a is not None]
    before, after = sum(u is True for u, _ in judged), sum(a is True for _, a in judged)
    helped, hurt = sum(a is True and u is False for u, a in judged), sum(a is False and u is True for u, a in judged)
    return Text(
        f"{len(judged)} problems: {before} right unadapted, {after} right adapted "
        f"(practice helped {helped}, hurt {hurt})"
    )


def _heading(text: str) -> Text:
    return Text(text, style="bold")


def _padded(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 1, 2))


def _practice(record: Adaptation) -> RenderableType:
    valid = sorted((e for e in record.examples if e.valid), key=lambda e: -e.weight)
    rejected = [e for e in record.examples if not e.valid]
    steps = _steps(record.config)
    heading = Text.assemble(
        ("Practice", "bold"),
        f"  {len(record.examples)} written, {len(valid)} used"
        + (f" ({_why(record.examples)})" if rejected else "")
        + (f" for {steps} gradient step{'s' * (steps != 1)}" if steps is not None and valid else ""),
    )
    parts: list[RenderableType] = [heading]
    if valid:
        parts.append(_padded(_examples(valid)))
    if rejected:
        parts.append(_padded(_rejected(rejected)))
    return Group(*parts)


def _why(examples: Sequence[Example]) -> str:
    """Count the rejected examples by reason, for example `2 unfinished, 1 copy`."""
    shares = rejected_shares(examples)
    return ", ".join(f"{round(share * len(examples))} {reason}" for reason, share in shares.items())


def _steps(config: Mapping[str, Mapping[str, int]]) -> int | None:
    return config.get("inner", {}).get("steps")


def _examples(valid: Sequence[Example]) -> Table:
    table = _table()
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column("practice problem", ratio=1)
    table.add_column("its solution", ratio=1)
    table.add_column("loss before → after", justify="right", no_wrap=True)
    for example in valid:
        table.add_row(
            Text(f"{example.weight:.3f}"),
            Text(_shortened(example.problem, MAX_PRACTICE_CHARS) + (f" ({example.note})" if example.note else "")),
            Text(_shortened(example.solution, MAX_PRACTICE_CHARS)),
            _losses(example),
        )
    return table


def _losses(example: Example) -> Text:
    before, after = example.loss_before, example.loss_after
    if before is None or after is None:
        return Text("")
    style = "green" if after < before else "red" if after > before else ""
    return Text.assemble(f"{before:.3f} → ", (f"{after:.3f}", style))


def _rejected(examples: Sequence[Example]) -> Table:
    table = _table()
    table.add_column("not used", no_wrap=True)
    table.add_column("what was written", ratio=1)
    for example in examples:
        table.add_row(
            Text(example.rejected, style="yellow"), Text(_shortened(example.text, MAX_PRACTICE_CHARS), style="dim")
        )
    return table


def _answers(record: Adaptation) -> RenderableType:
    table = _table(header_style="")
    if record.unadapted_text is not None:
        table.add_column(_answer_heading("Unadapted answer", record.unadapted_verdict), ratio=1)
    adapted = "Answer (nothing adapted)" if record.fallback else "Adapted answer"
    table.add_column(_answer_heading(adapted, record.verdict), ratio=1)
    texts = [record.text] if record.unadapted_text is None else [record.unadapted_text, record.text]
    table.add_row(*(Text(_shortened(text, MAX_ANSWER_CHARS) or "(empty)") for text in texts))
    return _padded(table)


def _answer_heading(title: str, verdict: Verdict | None) -> Text:
    return Text.assemble((title, "bold"), " ", _mark(verdict))


def base_answer(text: str, verdict: Verdict) -> Text:
    """Return one line with the answer of the base alone."""
    return Text.assemble("  the base alone answers: ", _shortened(" ".join(text.split()), 60), " ", _mark(verdict))


def _mark(verdict: Verdict | None) -> Text:
    if verdict is None:
        return Text("")
    if verdict.correct is None:
        return Text(f"? no verdict: {verdict.reason}" if verdict.reason else "? no verdict", style="yellow")
    return Text("✓ right", style="bold green") if verdict.correct else Text("✗ wrong", style="bold red")


def _timing(record: Adaptation) -> str:
    stages = [f"{name} {seconds:.2f} s" for name, seconds in record.seconds.items()]
    norm = f"update {record.update_norm:.2g} of the adapter's norm" if math.isfinite(record.update_norm) else ""
    total = f"in all {sum(record.seconds.values()):.2f} s"
    return " · ".join(filter(None, [*stages, total, norm]))


def _table(header_style: str = "dim") -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=header_style, expand=True)


def _shortened(text: str, limit: int = MAX_ANSWER_CHARS) -> str:
    """Cut a text at `limit`, with an ellipsis where it was cut; practice is put on one line."""
    text = " ".join(text.split()) if limit == MAX_PRACTICE_CHARS else text.strip()
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
