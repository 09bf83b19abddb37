"""Answer problems that bring solved examples, by the ways of using them; each set of examples is learned once.

The seconds and tokens of choosing and learning are divided among the problems of the comparison that share the set.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mass.adaptation.adapted import AdaptedModel
from mass.adaptation.examples.use import use
from mass.config import ExamplesConfig
from mass.errors import ConfigError
from mass.evaluation.answers import Attempt
from mass.evaluation.contestants import Contestant
from mass.evaluation.methods import WAY_OF
from mass.tasks import few_shot
from mass.types import Pair, Task

Key = tuple[str, str, tuple[Pair, ...]]


@dataclass
class Learners:
    """The models that have learned the sets of examples of one comparison, each made when it is first asked."""

    config: ExamplesConfig
    seed: int
    sharing: Counter[tuple[Pair, ...]]
    """Number of problems of each set."""
    known: dict[Key, AdaptedModel] = field(default_factory=dict[Key, AdaptedModel])

    def answer(self, method: str, contestant: Contestant, tasks: Sequence[Task]) -> list[Attempt]:
        """Answer the problems of the tasks. No gold reaches the model: only their problems and examples are used."""
        found: dict[int, Attempt] = {}
        sets: dict[tuple[tuple[Pair, ...], str], list[int]] = {}
        for i, task in enumerate(tasks):
            sets.setdefault((task.examples, task.verifier), []).append(i)
        for (examples, verifier), places in sets.items():
            model = self._model(method, contestant, examples, verifier)
            share = self.sharing[examples]
            once, spent = model.adaptation.seconds, model.adaptation.tokens
            for i, solution in zip(places, model.solve_all([tasks[i].problem for i in places]), strict=True):
                record = solution.adaptation
                assert record is not None
                seconds = {**{name: s / share for name, s in once.items()}, **record.seconds}
                tokens = record.tokens["answer"] + round(sum(spent.values()) / share)
                record = dataclasses.replace(record, seconds=seconds)
                found[i] = Attempt(solution.text, tokens, sum(seconds.values()), record)
        return [found[i] for i in range(len(tasks))]

    def _model(self, method: str, contestant: Contestant, examples: tuple[Pair, ...], verifier: str) -> AdaptedModel:
        if not examples:
            raise ConfigError(
                f"{method} uses solved examples, and the tasks have none; expected --tasks.shots N, which gives N of "
                "each file's rows with the others"
            )
        key = (method, verifier, examples)
        if key not in self.known:
            assert contestant.state is not None
            config = dataclasses.replace(self.config, method=WAY_OF[method])
            given = few_shot.of(examples, verifier)
            used = use(contestant.lm, contestant.state, given, config, contestant.config.scoring, self.seed)
            record = dataclasses.replace(used.record, **contestant.recorded)
            self.known[key] = AdaptedModel(used.lm, used.adapter, record, used.answer, used.shots, used.choice)
        return self.known[key]


def sharing_of(tasks: Sequence[Task]) -> Counter[tuple[Pair, ...]]:
    """Return how many of the tasks have each set of examples."""
    return Counter(task.examples for task in tasks)
