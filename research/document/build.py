"""Build a document from stored results and a template: no number in it, its tables or its pictures is typed by hand.

The template is Jinja: `{{ gain("mass", "base") }}` asks for a stored value by name. If a value is not measured yet, the
text says so. A value that no results could contain, or a name that does not exist, is an error.
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
"""The place where a value is looked up if the template names none."""
NAMED_COMMITS = 3
"""Up to this many commits are named; more are only counted."""


@dataclass
class Document:
    """A filled template."""

    text: str = ""
    pictures: dict[str, str] = field(default_factory=dict[str, str])
    """File name -> SVG."""
    missing: list[str] = field(default_factory=list[str])
    """Values that the template asks for and the results do not contain yet."""


def fill(results: Results, template: str, name: str, pictures_at: str) -> Document:
    """Fill a template.

    Args:
        results: The stored results.
        template: The text of the template.
        name: The template's name, for errors.
        pictures_at: The folder of the pictures, as written in the document's links.

    Raises:
        DataError: A placeholder asks for a value that no results could contain; the message gives its line.
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
    """Return the line of the template where an error occurred."""
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
    """Decorate a method so that a value which is not measured yet becomes a remark in the text."""

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
        """Return an accuracy such as `62.1% [60.0, 64.2]`. `group` is subject='Algebra' or level=3."""
        return sentences.accuracy_text(self.answers.accuracy(method, Question(of, at, **group)))

    @told
    def gain(self, method: str, other: str, of: str = TEST, at: str = GREEDY, **group: Any) -> str:
        """Return a paired difference such as `+4.2 points [+1.0, +7.5]`."""
        return sentences.gain_text(self.answers.gain(method, other, Question(of, at, **group)))

    @told
    def gain_between(self, method: str, of: str, other: str, other_of: str, at: str = GREEDY) -> str:
        """Return the paired difference between methods of two places."""
        one, two = (method, Question(of, at)), (other, Question(other_of, at))
        return sentences.gain_text(self.answers.gain_over(one, two))

    @told
    def stands(self, method: str, other: str, of: str = TEST, at: str = GREEDY, **group: Any) -> str:
        """Return `better than`, `worse than` or `not distinguishable from`, by the interval of the paired
        difference."""
        return sentences.standing_text(self.answers.gain(method, other, Question(of, at, **group)))

    @told
    def ratio(self, method: str, other: str, of: str = TEST, at: str = GREEDY, **group: Any) -> str:
        """Return a ratio such as `×1.90 [1.50, 2.40]`."""
        return sentences.ratio_text(self.answers.ratio(method, other, Question(of, at, **group)))

    @told
    def weakest(self, method: str = "base", of: str = TEST, at: str = GREEDY) -> str:
        """Return the name of the subject on which a method does worst."""
        return self.answers.weakest(method, Question(of, at))

    @told
    def tokens(self, method: str, of: str = TEST, at: str = GREEDY) -> str:
        """Return the generated tokens per answer."""
        return amount(tables.mean_of(self.answers.rows(of, method), "tokens", at))

    @told
    def seconds(self, method: str, of: str = TEST, at: str = GREEDY) -> str:
        """Return the seconds per answer."""
        return amount(tables.mean_of(self.answers.rows(of, method), "seconds", at))

    @told
    def label(self, method: str, of: str = TEST) -> str:
        """Return a method's name with its n, such as `maj@9` for maj@n."""
        return tables.label_of(self.answers.rows(of, method))

    @told
    def seeds(self, of: str = TEST) -> str:
        return str(len(self.answers.evaluations(of)))

    @told
    def problems(self, of: str = TEST) -> str:
        return f"{max(len(e.levels) for e in self.answers.evaluations(of).values()):,}"

    @told
    def needs(self, method: str, reference: str, problems: int, of: str = "data", at: str = GREEDY) -> str:
        """Return how many problems a method needs for the accuracy that the reference has with `problems` of them."""
        return sentences.needed_text(self._needed(method, reference, problems, of, at))

    @told
    def fewer(self, method: str, reference: str, problems: int, of: str = "data", at: str = GREEDY) -> str:
        """Return how many fewer those are, such as `62% fewer [48%, 74%]`."""
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
        """Return a measure of the practice, before or after meta-training."""
        known = {m.name: m for m in MEASURES}
        if measure not in known or when not in ("before", "after"):
            raise DataError(
                f"{measure!r}, {when!r} is not a measure of practice; expected {', '.join(known)}, before or after"
            )
        found = measured(self.answers.practice(of), when, measure)
        if found is None:
            raise NotMeasured(f"{of}: {measure}")
        return sentences.measure_text(found, known[measure].unit)

    def has(self, of: str) -> bool:
        """Return True if a part or a place is stored, for `{% if has("hard") %}`."""
        part, _, name = of.partition("/")
        try:
            stored = self.answers.part(part)
        except NotMeasured:
            return False
        return not name or any(name in kind for kind in (stored.evaluations, stored.practice, stored.rooms))

    @told
    def commits(self, part: str = "") -> str:
        """Return the commits of the source at which runs were made: by name, or only their number if there are many."""
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
        """Return those of the methods that are stored; None: all."""
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
        """Return a table of accuracies by decoding, paired differences and costs."""
        return tables.main_table(self.answers, of, self._methods(of, methods), against)

    @told
    def margins(self, places: Mapping[str, str]) -> str:
        """Return a table of the paper's margins, and those of places by their headings."""
        return tables.margins_table(self.answers, places)

    @told
    def costs(self, of: str = TEST, methods: Sequence[str] | None = None) -> str:
        """Return a table of the costs of training and of an answer."""
        return tables.cost_table(self.answers, of, self._methods(of, methods))

    @told
    def chances(self, of: str = TEST, methods: Sequence[str] | None = None) -> str:
        """Return a table of pass@N and maj@N."""
        return tables.chances_table(self.answers, of, self._methods(of, methods))

    @told
    def by_subject(self, of: str = TEST, methods: Sequence[str] | None = None, at: str = GREEDY) -> str:
        return tables.group_table(self.answers, of, self._methods(of, methods), at, "subject")

    @told
    def by_level(self, of: str = TEST, methods: Sequence[str] | None = None, at: str = GREEDY) -> str:
        return tables.group_table(self.answers, of, self._methods(of, methods), at, "level")

    @told
    def changes(self, method: str, other: str, of: str = TEST, at: str = GREEDY) -> str:
        """Return a table of where a method helps compared with another, and where it hurts."""
        return tables.changes_table(self.answers, of, method, other, at)

    @told
    def ablations(
        self, part: str = "ablations", reference: str = "full", method: str = "mass", at: str = GREEDY
    ) -> str:
        return tables.ablation_table(self.answers, part, reference, method, at)

    @told
    def safety(self, part: str = "safety", reference: str = "without", method: str = "mass", at: str = GREEDY) -> str:
        """Return a table of the effects of a term against drift: on accuracy, on answers hurt, and on problems of
        other subjects."""
        return tables.safety_table(self.answers, part, reference, method, at)

    @told
    def validation(self, part: str = "rates") -> str:
        """Return a table of each training's best accuracy on validation problems, by the number in its name."""
        return tables.validation_table(self.answers, part)

    @told
    def data(self, part: str = "data", at: str = GREEDY) -> str:
        """Return a table of accuracy against the number of training problems."""
        return tables.data_table(self.answers, part, at)

    @told
    def needed(self, part: str = "data", reference: str = tables.REFERENCE, at: str = GREEDY) -> str:
        """Return a table of how many problems each method needs for the accuracy of the reference."""
        return tables.needs_table(self.answers, part, reference, at)

    @told
    def practice_table(self, of: str = "table/mass") -> str:
        return tables.practice_table(self.answers, of)

    @told
    def room(self, of: str) -> str:
        """Return a table of the best point of each source of practice."""
        return tables.room_table(dict(self.answers.room(of)))

    # --- pictures

    @told
    def picture(self, kind: str, of: str = "", at: str = GREEDY, **more: Any) -> str:
        """Return the link to a picture, and keep the picture.

        Args:
            kind: accuracy, cost, subjects, levels, changes (method, other), data (untrained), learning (names),
                practice, practice-levels, practice-distances, weights, room.
        """
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
            raise DataError(f"{kind!r} is not a kind of picture; expected {', '.join([*PICTURES])}")
        return practice[kind](answers, of or "table/mass", **more)


PICTURES = (*pictures.TABLE, "changes", "data", "learning", "practice", "practice-levels",
            "practice-distances", "weights", "room")  # fmt: skip


NAMES = tuple(name for name in vars(Asked) if not name.startswith("_"))
"""The names that a template can use."""


# --- files


def build(results: Results, template: Path, pictures_folder: Path, document: Path) -> Document:
    """Fill a template file for a document at its own place.

    Raises:
        DataError: As `fill`.
        RunError: The template is missing.
    """
    import os

    try:
        text = encoding.read(template)
    except OSError as error:
        raise RunError(f"the template {template} cannot be read ({error.strerror}); write it first") from error
    link = Path(os.path.relpath(pictures_folder, document.parent)).as_posix()
    return fill(results, text, str(template), link)


def out_of_date(built: Document, document: Path, pictures_folder: Path) -> str:
    """Return the first difference between a document and what would be built now; empty when it is up to date."""
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
