"""Run methods on tasks and judge every answer. Gold is used here, and only here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mass.config import EvalConfig
from mass.evaluation.answers import Attempt, Drawn, answer_adapted, answer_plain, training_examples
from mass.evaluation.contestants import Contestant
from mass.evaluation.given import Learners, sharing_of
from mass.evaluation.in_context import answer_in_context
from mass.evaluation.methods import ADAPTING, IN_CONTEXT, TT_SS, WAY_OF, Choice, choice_of
from mass.evaluation.table import Judged, Record, mean_tokens
from mass.evaluation.votes import Ballots, best_of, majority, vote
from mass.lm import room
from mass.lm.prompts import CODE, kind_of
from mass.types import Adaptation, Task, Verdict
from mass.verify import check_all

Progress = Callable[[str, int, int], None]
"""Called with (method, problems done, problems in total). The first call counts problems done before this process
began."""
Found = Mapping[str, Sequence[Record]]
"""The records of the methods that have run."""


@dataclass(frozen=True)
class Runner:
    """Tasks, contestants and settings that the methods of one comparison share."""

    tasks: list[Task]
    contestants: dict[str, Contestant]
    config: EvalConfig
    seeds: list[int]
    pool: list[Task]
    """The tasks that base-ttt draws from."""
    progress: Progress | None
    learning_seed: int = 0
    """Seed of choosing among, and learning, the examples that tasks bring."""
    ballots: dict[tuple[str, int], Ballots] = field(default_factory=dict[tuple[str, int], Ballots])
    """Answers that several methods choose among, by sampler and model (a checkpoint may have its own prompts)."""

    @cached_property
    def learners(self) -> Learners:
        """The models that learn the examples given with the tasks."""
        return Learners(self.config.learn, self.learning_seed, sharing_of(self.tasks))

    def check_lengths(self) -> None:
        """Check all problems before the first answer, not at the hundredth.

        Raises:
            DataError: The model cannot read a problem.
        """
        for name, contestant in self.contestants.items():
            for task in self.tasks:
                contestant.lm.solve_prompt(task.problem)
                if name in ADAPTING:
                    contestant.lm.synthesis_prompt(task.problem)

    def run(self, method: str, found: Found, first: int = 0) -> Iterator[list[Record]]:
        """Yield the records of one method as they come, from the task `first` on, where a stack begins."""
        self._tick(method, first)
        choice = choice_of(method)
        if choice is not None:
            if first == 0:
                yield self.judge(method, 0, self._choose(method, choice, found))
                self._tick(method, len(self.tasks))
            return
        stack = self.config.stack
        if method in ADAPTING:
            stack = room.stack_that_fits(self.contestants[method].lm, stack)
        for start in range(first, len(self.tasks), stack):
            part = slice(start, start + stack)
            problems = [task.problem for task in self.tasks[part]]
            yield self.judge(method, start, self._attempts(method, problems, part, found))
            self._tick(method, start + len(problems))

    def judge(self, method: str, start: int, attempts: Sequence[Attempt]) -> list[Record]:
        """Return records with verdicts for attempts at task `start` and the tasks after it."""
        tasks = self.tasks[start : start + len(attempts)]
        pairs = list(zip(tasks, attempts, strict=True))
        texts = [(i, text) for i, (_, attempt) in enumerate(pairs) for text in _texts(attempt)]
        # Equal texts are judged once: samples of one problem often repeat, and a verdict can take seconds.
        places = {key: place for place, key in enumerate(dict.fromkeys(texts))}
        verdicts = check_all([(tasks[i], text) for i, text in places])
        return [
            _judged(task, method, attempt, lambda text, i=i: verdicts[places[i, text]])
            for i, (task, attempt) in enumerate(pairs)
        ]

    def _attempts(self, method: str, problems: Sequence[str], part: slice, found: Found) -> list[Attempt]:
        contestant, seeds = self.contestants[method], self.seeds[part]
        if method in WAY_OF:
            return self.learners.answer(method, contestant, self.tasks[part])
        if method == IN_CONTEXT:
            written = [record.attempt for record in found["mass"][part]] if "mass" in found else None
            return answer_in_context(contestant, problems, seeds, self.config, written)
        if method not in ADAPTING:
            return answer_plain(contestant, problems, seeds, self.config)
        if method == "base-ttt":
            practice = training_examples(contestant.lm, self.pool, contestant.config.synthesis, seeds)
            return answer_adapted(contestant, problems, seeds, self.config, practice)
        known = self._known_practice(method, part, found) if method in TT_SS else []
        if len(known) != len(problems):
            return answer_adapted(contestant, problems, seeds, self.config)
        written_s = [adaptation.seconds["synthesis"] for adaptation in known]
        return answer_adapted(contestant, problems, seeds, self.config, [a.examples for a in known], written_s)

    def _known_practice(self, method: str, part: slice, found: Found) -> list[Adaptation]:
        """The adaptations of another untrained method that has answered these tasks: it wrote the same practice, from
        the same weights and seeds. Records whose tokens were not kept are left out: they do not say what it cost."""
        (other,) = (name for name in TT_SS if name != method)
        adaptations = [record.attempt.record for record in found.get(other, ())[part]]
        return [a for a in adaptations if a and sum(len(e.tokens) for e in a.examples) == a.tokens["synthesis"]]

    def _choose(self, method: str, choice: Choice, found: Found) -> list[Attempt]:
        contestant, config = self.contestants[method], self.config
        key = (choice.sampler, id(contestant.lm))
        if key not in self.ballots:
            sampling = dataclasses.replace(config.answer, temperature=config.vote_temperature)
            problems = [task.problem for task in self.tasks]
            verifiers = [task.verifier for task in self.tasks]
            self.ballots[key] = Ballots(
                contestant.lm, contestant.theta, problems, self.seeds, sampling, config.stack, verifiers
            )
        ballots, n = self.ballots[key], config.votes if choice.n is None else choice.n

        def tick(done: int) -> None:
            self._tick(method, done)

        if choice.n is None and "mass" in found:
            n = ballots.matching(mean_tokens(found["mass"]), tick)
        if choice.how == "majority":
            return vote(ballots, n, tick)
        return best_of(contestant, ballots, n, tick)

    def _tick(self, method: str, done: int) -> None:
        if self.progress is not None:
            self.progress(method, done, len(self.tasks))


def _texts(attempt: Attempt) -> list[str]:
    return [attempt.text, *(text for drawn in attempt.drawn for text in drawn.texts)]


def _judged(task: Task, method: str, attempt: Attempt, verdict_on: Callable[[str], Verdict]) -> Record:
    verdict = verdict_on(attempt.text)
    if attempt.record is not None:
        attempt = dataclasses.replace(attempt, record=dataclasses.replace(attempt.record, verdict=verdict))
    sampled = tuple(_judged_sample(task, drawn, verdict_on) for drawn in attempt.drawn)
    return Record(task, method, attempt, verdict, sampled)


def _judged_sample(task: Task, drawn: Drawn, verdict_on: Callable[[str], Verdict]) -> Judged:
    correct = tuple(verdict_on(text).correct for text in drawn.texts)
    most = None if kind_of(task) == CODE else correct[majority(drawn.texts, task.verifier)[0]]  # no vote among programs
    return Judged(drawn, correct, most)
