"""Stored results and a template -> a document in which no number was typed by hand, with its tables and pictures.

The template is Jinja: `{{ gain("mass", "base") }}` asks for a stored value by name. What is not measured yet says so in
the text; what no results could hold, and a name that does not exist, is an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mass import encoding
from mass.errors import DataError, RunError
from mass.report.figures import Plot
from mass.report.svg import standalone
from mass.report.words import amount
from research.document import pictures, sentences
from research.document import tables as tables
from research.document.asking import Answers, NotMeasured, Question
from research.results import Results
from research.results.data import curves, needed_as_many_as
from research.results.practice import MEASURES, measured
from research.results.stored import GREEDY

if TYPE_CHECKING:
    from jinja2 import Environment

TEST = "table/test"
"""Where a value is looked up when the template names no place."""
NAMED_COMMITS = 3
"""More than so many commits are counted, not named."""


@dataclass
class Document:
    """A filled template."""

    text: str = ""
    pictures: dict[str, str] = field(default_factory=dict[str, str])
    """File name -> SVG."""
    missing: list[str] = field(default_factory=list[str])
    """What the template asks for and the results do not hold yet."""


def fill(results: Results, template: str, name: str, pictures_at: str) -> Document:
    """Fill a template.

    Args:
        name: of the template, for errors.
        pictures_at: the folder of the pictures, as the document's links name it.

    Raises DataError for a placeholder that asks for what no results could hold, naming the line.
    """
    from jinja2 import TemplateSyntaxError, UndefinedError

    document = Document()
    environment = _environment(Asked(Answers(results), document, pictures_at))
    try:
        document.text = environment.from_string(template).render()
    except (UndefinedError, TemplateSyntaxError, DataError, TypeError) as error:
        raise DataError(f"{name}, line {_line(error)}: {error}; see mass report --help") from error
    return document


def _line(error: Exception) -> int:
    """Of the template, where an error came from."""
    if (line := getattr(error, "lineno", None)) is not None:
        return int(line)
    found, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def _environment(asked: Asked) -> Environment:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update({name: getattr(asked, name) for name in NAMES})
    return environment


def told(method: Callable[..., str]) -> Callable[..., str]:
    """What is not measured yet becomes a remark in the text."""

    @functools.wraps(method)
    def told(self: Asked, *args: Any, **kwargs: Any) -> str:
        try:
            return method(self, *args, **kwargs)
        except NotMeasured as missing:
            self.document.missing.append(str(missing))
            return f"*(not measured yet: {missing})*"

    return told


class Asked:
    """The names that a template can use."""

    def __init__(self, answers: Answers, document: Document, pictures_at: str) -> None:
        self.answers, self.document, self.pictures_at = answers, document, pictures_at

    # --- numbers in a sentence

    @told
    def accuracy(self, method: str, of: str = TEST, at: str = GREEDY, **group: Any) -> str:
        """`62.1% [60.0, 64.2]`. `group`: subject='Algebra' or level=3."""
        return sentences.accuracy_text(self.answers.accuracy(method, Question(of, at, **group)))

    @told
    def gain(self, method: str, other: str, of: str = TEST, at: str = GREEDY, **group: Any) -> str:
        """The paired difference: `+4.2 points [+1.0, +7.5]`."""
        return sentences.gain_text(self.answers.gain(method, other, Question(of, at, **group)))

    @told
    def gain_between(self, method: str, of: str, other: str, other_of: str, at: str = GREEDY) -> str:
        """The paired difference between methods of two places."""
        one, two = (method, Question(of, at)), (other, Question(other_of, at))
        return sentences.gain_text(self.answers.gain_over(one, two))

    @told
    def stands(self, method: str, other: str, of: str = TEST, at: str = GREEDY, **group: Any) -> str:
        """`better than`, `worse than` or `not distinguishable from`, by the interval of the paired difference."""
        return sentences.standing_text(self.answers.gain(method, other, Question(of, at, **group)))

    @told
    def ratio(self, method: str, other: str, of: str = TEST, at: str = GREEDY, **group: Any) -> str:
        """`×1.90 [1.50, 2.40]`."""
        return sentences.ratio_text(self.answers.ratio(method, other, Question(of, at, **group)))

    @told
    def weakest(self, method: str = "base", of: str = TEST, at: str = GREEDY) -> str:
        """The name of the subject that a method is worst at."""
        return self.answers.weakest(method, Question(of, at))

    @told
    def tokens(self, method: str, of: str = TEST, at: str = GREEDY) -> str:
        """Generated per answer."""
        return amount(tables.mean_of(self.answers.rows(of, method), "tokens", at))

    @told
    def seconds(self, method: str, of: str = TEST, at: str = GREEDY) -> str:
        """Per answer."""
        return amount(tables.mean_of(self.answers.rows(of, method), "seconds", at))

    @told
    def label(self, method: str, of: str = TEST) -> str:
        """`maj@9` of maj@n."""
        return tables.label_of(self.answers.rows(of, method))

    @told
    def seeds(self, of: str = TEST) -> str:
        return str(len(self.answers.evaluations(of)))

    @told
    def problems(self, of: str = TEST) -> str:
        return f"{max(len(e.levels) for e in self.answers.evaluations(of).values()):,}"

    @told
    def needs(self, method: str, reference: str, problems: int, of: str = "data", at: str = GREEDY) -> str:
        """How many problems a method takes for the accuracy that the reference has with so many."""
        return sentences.needed_text(self._needed(method, reference, problems, of, at))

    @told
    def fewer(self, method: str, reference: str, problems: int, of: str = "data", at: str = GREEDY) -> str:
        """How many fewer those are: `62% fewer [48%, 74%]`."""
        return sentences.fewer_text(self._needed(method, reference, problems, of, at), problems)

    def _needed(self, method: str, reference: str, problems: int, of: str, at: str):
        found = curves(self.answers.part(of), at)
        for name in (method, reference):
            if name not in found:
                raise NotMeasured(f"{of} {name}")
        if problems not in found[reference].problems:
            raise NotMeasured(f"{of} {reference} with {problems} problems")
        return needed_as_many_as(found[method], found[reference], problems)

    @told
    def practice(self, measure: str, when: str = "after", of: str = "table/mass") -> str:
        """A measure of the practice, before or after meta-training."""
        known = {m.name: m for m in MEASURES}
        if measure not in known or when not in ("before", "after"):
            raise DataError(
                f"{measure!r}, {when!r} is no measure of practice; expected {', '.join(known)}, before or after"
            )
        found = measured(self.answers.practice(of), when, measure)
        if found is None:
            raise NotMeasured(f"{of}: {measure}")
        return sentences.measure_text(found, known[measure].unit)

    def has(self, of: str) -> bool:
        """Whether a part or a place is stored, for `{% if has("hard") %}`."""
        part, _, name = of.partition("/")
        try:
            stored = self.answers.part(part)
        except NotMeasured:
            return False
        return not name or any(name in kind for kind in (stored.evaluations, stored.practice, stored.rooms))

    @told
    def commits(self, part: str = "") -> str:
        """Of the source, at which the runs of a part or all were made: by name, or how many where they are many."""
        parts = [self.answers.part(part)] if part else list(self.answers.results.parts.values())
        found: set[str] = set()
        for one in parts:
            found.update(commit for seeds in one.trainings.values() for t in seeds.values() for commit in t.commits)
            found.update(e.commit for seeds in one.evaluations.values() for e in seeds.values() if e.commit)
        if not found:
            raise NotMeasured("the commits of its runs")
        if len(found) > NAMED_COMMITS:
            return f"{len(found)} commits"
        return ", ".join(sorted(f"{commit[:7]}{'+' * commit.endswith('+')}" for commit in found))

    # --- tables

    def _methods(self, of: str, methods: Sequence[str] | None) -> list[str]:
        """Those that are stored; None: all."""
        if methods is None:
            return self.answers.methods(of)
        found: list[str] = []
        for method in methods:
            try:
                self.answers.rows(of, method)
                found.append(method)
            except NotMeasured as missing:
                self.document.missing.append(str(missing))
        return found

    @told
    def table(self, of: str = TEST, methods: Sequence[str] | None = None, against: str = "base") -> str:
        """Accuracy of each decoding, paired difference, cost."""
        return tables.main_table(self.answers, of, self._methods(of, methods), against)

    @told
    def margins(self, places: Mapping[str, str]) -> str:
        """The paper's margins, and those of places by their headings."""
        return tables.margins_table(self.answers, places)

    @told
    def costs(self, of: str = TEST, methods: Sequence[str] | None = None) -> str:
        """What training took, and what an answer takes."""
        return tables.cost_table(self.answers, of, self._methods(of, methods))

    @told
    def chances(self, of: str = TEST, methods: Sequence[str] | None = None) -> str:
        """pass@N and maj@N."""
        return tables.chances_table(self.answers, of, self._methods(of, methods))

    @told
    def by_subject(self, of: str = TEST, methods: Sequence[str] | None = None, at: str = GREEDY) -> str:
        return tables.group_table(self.answers, of, self._methods(of, methods), at, "subject")

    @told
    def by_level(self, of: str = TEST, methods: Sequence[str] | None = None, at: str = GREEDY) -> str:
        return tables.group_table(self.answers, of, self._methods(of, methods), at, "level")

    @told
    def changes(self, method: str, other: str, of: str = TEST, at: str = GREEDY) -> str:
        """Where a method helps over another, and where it hurts."""
        return tables.changes_table(self.answers, of, method, other, at)

    @told
    def ablations(
        self, part: str = "ablations", reference: str = "full", method: str = "mass", at: str = GREEDY
    ) -> str:
        return tables.ablation_table(self.answers, part, reference, method, at)

    @told
    def safety(self, part: str = "safety", reference: str = "without", method: str = "mass", at: str = GREEDY) -> str:
        """What a term against drift does: to accuracy, to answers hurt, and on problems of other subjects."""
        return tables.safety_table(self.answers, part, reference, method, at)

    @told
    def validation(self, part: str = "rates") -> str:
        """The best accuracy of each training on validation problems, by the number in its name."""
        return tables.validation_table(self.answers, part)

    @told
    def data(self, part: str = "data", at: str = GREEDY) -> str:
        """Accuracy against the number of training problems."""
        return tables.data_table(self.answers, part, at)

    @told
    def needed(self, part: str = "data", reference: str = tables.REFERENCE, at: str = GREEDY) -> str:
        """How many problems each method takes for the accuracy of the reference."""
        return tables.needs_table(self.answers, part, reference, at)

    @told
    def practice_table(self, of: str = "table/mass") -> str:
        return tables.practice_table(self.answers, of)

    @told
    def room(self, of: str) -> str:
        """The best point of each source of practice."""
        return tables.room_table(dict(self.answers.room(of)))

    # --- pictures

    @told
    def picture(self, kind: str, of: str = "", at: str = GREEDY, **more: Any) -> str:
        """A picture by its kind: accuracy, cost, subjects, levels, changes (method, other), data (untrained),
        learning (names), practice, practice-levels, practice-distances, weights, room."""
        plot = self._plot(kind, of, at, more)
        name = "-".join([kind, *(part for part in (of.replace("/", "-"), "" if at == GREEDY else at) if part)]) + ".svg"
        self.document.pictures[name] = standalone(str(plot.svg), plot.title)
        return f"![{plot.title}]({self.pictures_at}/{name})\n\n*{plot.title}. {plot.caption}*"

    def _plot(self, kind: str, of: str, at: str, more: dict[str, Any]) -> Plot:
        answers = self.answers
        if kind in pictures.TABLE:
            of = of or TEST
            return pictures.of_table(kind, answers, of, self._methods(of, more.pop("methods", None)), at, **more)
        if kind == "changes":
            return pictures.changes(answers, of or TEST, at=at, **more)
        if kind == "data":
            return pictures.data(answers, of or "data", at, more.pop("untrained", {}), **more)
        if kind == "learning":
            return pictures.learning(answers, of or "table", more.pop("names", ()), **more)
        if kind == "room":
            return pictures.room(answers, of, at, **more)
        practice = {
            "practice": pictures.practice,
            "practice-levels": pictures.practice_levels,
            "practice-distances": pictures.practice_distances,
            "weights": pictures.weights,
        }
        if kind not in practice:
            raise DataError(f"{kind!r} is no kind of picture; expected {', '.join([*PICTURES])}")
        return practice[kind](answers, of or "table/mass", **more)


PICTURES = (*pictures.TABLE, "changes", "data", "learning", "practice", "practice-levels",
            "practice-distances", "weights", "room")  # fmt: skip


NAMES = tuple(name for name in vars(Asked) if not name.startswith("_"))
"""What a template can ask for."""


# --- files


def build(results: Results, template: Path, pictures_folder: Path, document: Path) -> Document:
    """Fill a template file for a document at its own place. Raises DataError, and RunError for a missing template."""
    import os

    try:
        text = encoding.read(template)
    except OSError as error:
        raise RunError(f"the template {template} cannot be read ({error.strerror}); write it first") from error
    link = Path(os.path.relpath(pictures_folder, document.parent)).as_posix()
    return fill(results, text, str(template), link)


def out_of_date(built: Document, document: Path, pictures_folder: Path) -> str:
    """The first thing in which a document differs from what would be built now; empty when it is up to date."""
    try:
        lines = document.read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{document} is not there"
    for number, (now, then) in enumerate(zip(built.text.splitlines(), lines, strict=False), start=1):
        if now != then:
            return f"{document}, line {number} is {then[:60]!r}, the results say {now[:60]!r}"
    if len(lines) != len(built.text.splitlines()):
        return f"{document} has {len(lines)} lines, the results say {len(built.text.splitlines())}"
    lost = [name for name in built.pictures if not (pictures_folder / name).is_file()]
    return f"{pictures_folder / lost[0]} is not there" if lost else ""
