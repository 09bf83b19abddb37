"""Problems -> practice examples for each, from sources that an oracle has a hand in.

| source | practice |
| --- | --- |
| gold same | gold training problems like the target: of its kind (minimath), else of its subject |
| gold random | gold training problems drawn at random |
| gold nearest | the gold training problems whose text is nearest, the nearest first |
| own | what the model writes, all weighed alike |
| own likely | the same, weighed by how likely the model finds a solution, as sharply as `--sharpness` says |
| own scored | the same, weighed by the checkpoint's scorer: what an adapting method does |
| own verified | the same, what fails its own tests or finds no agreement left out: no oracle (`synthesis.verify`) |
| own correct | the same, only the examples whose solution is right |
| copies | the model's own sampled answers to the target itself |
| copies majority | the same, only those with the most frequent answer: no oracle |
| copies correct | the same, only the right ones |
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nearness
from research.appraisal import appraise, recogniser

from mass import tasks as task_sets
from mass.adaptation.synthesis import synthesise
from mass.adaptation.synthesis.verification import verified
from mass.config import SamplingConfig
from mass.errors import ConfigError
from mass.evaluation.answers import gold_example, training_examples
from mass.evaluation.contestants import Contestant
from mass.lm.prompts import CODE
from mass.runs.folder import replace_text
from mass.seeds import derive
from mass.tasks import minimath
from mass.types import Example, Groups, Task, example_of
from mass.verify import check_all
from mass.verify.votes import ballots

LIKELY, SCORED = "own likely", "own scored"
NEAREST, VERIFIED, MAJORITY = "gold nearest", "own verified", "copies majority"
SOURCES = ("gold same", NEAREST, "gold random", "own", LIKELY, SCORED, VERIFIED, "own correct", "copies", MAJORITY,
           "copies correct")  # fmt: skip
MINORITY = "another answer is more frequent"
WRONG = "wrong"
"""Why an oracle rejects an example."""


@dataclass(frozen=True)
class Problems:
    """What is practised for."""

    source: str
    tasks: list[Task]
    drawn: list[minimath.Problem]
    """Of minimath: the problems themselves, in the order of the tasks; empty for other sources."""
    pool: list[Task]
    """Training problems with worked solutions."""


def writes(source: str) -> bool:
    """Return True for a source whose practice problems the model writes."""
    return source.startswith("own")


def problems_of(args: Any, pool_size: int = 1000) -> Problems:
    """Return the problems of a file, or of one of minimath's sets by its name, with training problems beside them."""
    source, split, size, seed = args.tasks, args.split, args.size, args.seed
    if source not in minimath.SOURCES:
        part, train_part = (None if p is None else (p[0], p[1]) for p in (args.part, args.train_part))
        found = task_sets.load(source, size=size, seed=seed, part=part)
        pool = [] if args.train_tasks is None else task_sets.load(args.train_tasks, split="train", part=train_part)
        return Problems(source, found, [], pool)
    rng = random.Random(f"room:{source}:{split}:{seed}")
    cells = [(subject, level) for level in minimath.LEVELS for subject in minimath.SUBJECTS]
    drawn: dict[str, minimath.Problem] = {}
    while len(drawn) < size:
        for subject, level in cells[: size - len(drawn)]:
            problem = minimath.draw(rng, split, [subject], [level], source)
            drawn.setdefault(problem.text, problem)
    tasks = [problem.task(f"room-{split}-{seed}-{i}") for i, problem in enumerate(drawn.values())]
    return Problems(
        source, tasks, list(drawn.values()), task_sets.load(source, split="train", size=pool_size, seed=seed)
    )


@dataclass(frozen=True)
class Practice:
    """Practice of each source for the same problems, each written once."""

    contestant: Contestant
    problems: Problems
    examples: int
    seed: int
    answer_tokens: int
    stack: int
    nearest: str
    """What 'gold nearest' compares: 'words' or 'states'."""
    out: Path
    """Folder where what was written is kept, so that a run that goes on does not write again."""

    def groups(self, source: str) -> Groups:
        """Raises ConfigError for a source that these problems cannot have, and says why."""
        makers: dict[str, Callable[[], Groups]] = {
            "gold same": self._gold_same,
            "gold random": lambda: training_examples(
                self.contestant.lm, self._pool(), self._synthesis, self._seeds("gold random")
            ),
            NEAREST: self._gold_nearest,
            "own": lambda: self.own,
            LIKELY: lambda: self.own,
            SCORED: lambda: self.own,
            VERIFIED: lambda: self._kept("verified", self._own_verified),
            "own correct": self._own_correct,
            "copies": lambda: self.copies,
            MAJORITY: self._copies_majority,
            "copies correct": self._copies_correct,
        }
        return makers[source]()

    @property
    def _synthesis(self):
        return dataclasses.replace(self.contestant.config.synthesis, examples=self.examples)

    def _seeds(self, name: str) -> list[int]:
        return [derive(self.seed, name, i) for i in range(len(self.problems.tasks))]

    def _pool(self) -> list[Task]:
        texts = {task.problem for task in self.problems.tasks}
        pool = [task for task in self.problems.pool if task.solution.strip() and task.problem not in texts]
        if self.contestant.lm.kind == CODE:
            pool = [dataclasses.replace(task, solution=fenced(task.solution)) for task in pool]
        if not pool:
            raise ConfigError("gold practice needs training problems with worked solutions; give --train_tasks")
        return pool

    def _gold_same(self) -> Groups:
        if self.problems.drawn:
            rngs = [random.Random(seed) for seed in self._seeds("gold same")]
            found = [
                [minimath.similar(rng, problem, "train") for _ in range(self.examples)]
                for rng, problem in zip(rngs, self.problems.drawn, strict=True)
            ]
            return [tuple(Example(p.text, p.solution()) for p in group) for group in found]
        if not all(task.subject for task in self.problems.tasks):
            raise ConfigError("'gold same' needs problems that name their subject")
        by_subject: dict[str, list[Task]] = {}
        for task in self._pool():
            by_subject.setdefault(task.subject, []).append(task)
        seeds, groups = self._seeds("gold same"), Groups()
        for task, seed in zip(self.problems.tasks, seeds, strict=True):
            some = by_subject.get(task.subject, self._pool())
            groups += training_examples(self.contestant.lm, some, self._synthesis, [seed])
        return groups

    def _gold_nearest(self) -> Groups:
        pool, problems = self._pool(), [task.problem for task in self.problems.tasks]
        texts = [task.problem for task in pool]
        likeness = nearness.WAYS[self.nearest](self.contestant.lm, problems, texts)
        # As many as fit are taken from the nearest on, so that one too long problem does not leave a place empty.
        groups = Groups()
        for row in likeness:
            order = sorted(range(len(pool)), key=lambda i, row=row: -row[i])[: 4 * self.examples]
            examples = [gold_example(self.contestant.lm, pool[i], self._synthesis) for i in order]
            groups.append(tuple([e for e in examples if e.valid][: self.examples]))
        return groups

    def _own_verified(self) -> Groups:
        lm, groups, seeds = self.contestant.lm, Groups(), self._seeds("verified")
        for part in _parts(len(seeds), self.stack):
            groups += verified(lm, self.own[part], self._synthesis, seeds[part], self.contestant.theta)
        return groups

    def _kept(self, name: str, make: Callable[[], Groups]) -> Groups:
        """Return what was made before and is kept in a file, else make and keep it."""
        file = self.out / f"practice-{name}.json"
        if file.is_file():
            return [tuple(example_of(e) for e in group) for group in json.loads(file.read_text())]
        groups = make()
        self.out.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps([[dataclasses.asdict(e) for e in group] for group in groups]) + "\n")
        return groups

    @cached_property
    def own(self) -> Groups:
        """What the model writes."""
        return self._kept("own", self._write)

    def _write(self) -> Groups:
        lm, groups, seeds = self.contestant.lm, Groups(), self._seeds("own")
        for part in _parts(len(seeds), self.stack):
            texts = [task.problem for task in self.problems.tasks[part]]
            groups += synthesise(lm, texts, self._synthesis, seeds[part], self.contestant.theta)
        return groups

    def _own_correct(self) -> Groups:
        recognise = recogniser(self.problems.source)
        if recognise is None:
            raise ConfigError(f"nobody can say which practice for {self.problems.source!r} is correct; use minimath")

        def right(task: Task, example: Example) -> bool:
            return appraise(task, example, recognise).correct is True

        return [
            tuple(e if not e.valid or right(task, e) else dataclasses.replace(e, rejected=WRONG) for e in group)
            for task, group in zip(self.problems.tasks, self.own, strict=True)
        ]

    @cached_property
    def copies(self) -> Groups:
        """The model's own answers to the target, as examples of it; those that did not end are not used."""
        return self._kept("copies", self._attempts)

    def _attempts(self) -> Groups:
        lm, m, groups, seeds = self.contestant.lm, self.examples, Groups(), self._seeds("copies")
        sampling = SamplingConfig(self.answer_tokens, 1.0)
        for part in _parts(len(seeds), self.stack):
            texts = [task.problem for task in self.problems.tasks[part]]
            prompts = [lm.solve_prompt(text) for text in texts for _ in range(m)]
            row_seeds = [derive(seed, j) for seed in seeds[part] for j in range(m)]
            samples = lm.sample(prompts, sampling, row_seeds, self.contestant.theta)
            for i, text in enumerate(texts):
                mine = samples[i * m : (i + 1) * m]
                groups.append(
                    tuple(Example(text, s.text.strip(), rejected="" if s.finished else "unfinished") for s in mine)
                )
        return groups

    def _copies_majority(self) -> Groups:
        if self.contestant.lm.kind == CODE:
            raise ConfigError("no two programs are equal, so there is no majority among attempts")
        groups = Groups()
        for task, group in zip(self.problems.tasks, self.copies, strict=True):
            answers = ballots([e.solution if e.valid else "" for e in group], task.verifier)
            tally = Counter(answer for answer in answers if answer is not None)
            most = max(tally, key=lambda answer, tally=tally: tally[answer], default=None)
            pairs = zip(group, answers, strict=True)
            groups.append(
                tuple(
                    e if not e.valid or (most is not None and a == most) else dataclasses.replace(e, rejected=MINORITY)
                    for e, a in pairs
                )
            )
        return groups

    def _copies_correct(self) -> Groups:
        pairs = [
            (task, e.solution) for task, group in zip(self.problems.tasks, self.copies, strict=True) for e in group
        ]
        right = iter(check_all(pairs))
        return [
            tuple(
                e if next(right).correct is True or not e.valid else dataclasses.replace(e, rejected=WRONG)
                for e in group
            )
            for group in self.copies
        ]

    def written(self) -> dict[str, float]:
        """Shares among all that the model wrote: valid, and among the valid ones correct, of the kind, copies."""
        recognise = recogniser(self.problems.source)
        found = [appraise(t, e, recognise) for t, g in zip(self.problems.tasks, self.own, strict=True) for e in g]
        valid = [a for a in found if a.valid]
        shares: dict[str, Sequence[bool | None]] = {
            "correct": [a.correct for a in valid],
            "same kind": [a.same_kind for a in valid],
            "copies": [a.copy for a in valid],
        }
        known = {name: [v for v in values if v is not None] for name, values in shares.items()}
        return {"valid": len(valid) / len(found), **{n: sum(v) / len(v) for n, v in known.items() if v}}


def fenced(code: str) -> str:
    """Return a program as the solver's prompt asks for it, so that practice on golds does not teach another form."""
    code = code.replace("\r\n", "\n").expandtabs(4).strip()
    return code if "```" in code else f"```python\n{code}\n```"


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
