"""The controls: how votes are counted, how many there are, what the scorer chooses, what stands in the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mass.adaptation import scoring
from mass.adaptation.synthesis import synthesise
from mass.adaptation.synthesis.reading import read
from mass.config import AdaptConfig, EvalConfig, SamplingConfig, SynthesisConfig
from mass.evaluation.answers import Attempt, answer_adapted, answer_plain
from mass.evaluation.contestants import Contestant
from mass.evaluation.in_context import answer_in_context
from mass.evaluation.votes import Ballots, best_of, best_places, elect, majority, vote
from mass.model import Mass, load
from mass.tasks import minimath
from mass.types import Adaptation, Example, Params, Sample
from small_lms import make_lm

SHORT = SamplingConfig(max_new_tokens=12, temperature=0.0)
CONFIG = EvalConfig(answer=SHORT)
ADAPT = AdaptConfig(SynthesisConfig(examples=3, sampling=SamplingConfig(max_new_tokens=40)), answer=SHORT)
PROBLEMS = [task.problem for task in minimath.load("test", 5, 0)]
SEEDS = [11, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Mass:
    return load(str(tiny_base), config=ADAPT)


@pytest.fixture(scope="module")
def taught(taught_base: Path) -> Contestant:
    """A model that writes practice that parses."""
    loaded = load(str(taught_base), config=ADAPT)
    return Contestant(loaded.lm, loaded.state, ADAPT)


def ballots(model: Mass, temperature: float = 1.0, stack: int = 5) -> Ballots:
    return Ballots(model.lm, None, PROBLEMS, SEEDS, SamplingConfig(8, temperature), stack)


# --- the vote


def sample(text: str, tokens: int = 3, finished: bool = True) -> Sample:
    return Sample(tuple(range(tokens)), text, finished=finished)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["Answer: 1", "Answer: 2", "so. Answer: 2"], "Answer: 2"),
        (["Answer: 3", "Answer: 4", "Answer: 4", "Answer: 3"], "Answer: 3"),
        (["Answer: 1", "Answer: 0.5", "Answer: 1/2"], "Answer: 0.5"),
        (["no idea", "who knows", "Answer: 7"], "Answer: 7"),
        (["no idea", "who knows"], "no idea"),
        (["Answer: Cat", "Answer: dog", "Answer: cat"], "Answer: Cat"),
    ],
)
def test_the_majority_answers_and_ties_go_to_the_first_seen(texts: list[str], expected: str) -> None:
    attempt = elect([sample(f" {text}\n") for text in texts])
    assert attempt.text == expected
    assert texts[majority(texts)[0]] == expected
    assert attempt.tokens == 3 * len(texts)
    assert attempt.samples == len(texts)


@dataclass
class Scripted:
    """Stands in for a language model: sample j of a problem has `lengths[j]` tokens, then the last length."""

    lengths: tuple[int, ...]
    drawn: int = 0

    def solve_prompt(self, problem: str) -> list[int]:
        return [len(problem)]

    def sample(self, prompts: list[list[int]], config: SamplingConfig, seeds: list[int], _: Any) -> list[Sample]:
        assert config.temperature == 1
        assert len(prompts) == len(seeds) == len(set(seeds))
        count = len(prompts) // 2
        lengths = [self.lengths[min(self.drawn + j, len(self.lengths) - 1)] for j in range(count)]
        self.drawn += count
        return [sample("Answer: 1", n) for _ in range(2) for n in lengths]


@pytest.mark.parametrize(
    ("lengths", "tokens", "n"),
    [
        ((10,), 90.0, 9),
        ((10,), 91.0, 10),
        ((10,), 3.0, 1),
        ((10, 8), 40.0, 5),  # 4 by the first samples' length; 10 + 3 x 8 falls short
        ((10, 1), 30.0, 21),
        ((4, 9), 20.0, 5),
    ],
)
def test_votes_are_as_many_as_the_tokens_ask_for(lengths: tuple[int, ...], tokens: float, n: int) -> None:
    lm: Any = Scripted(lengths)
    drawn = Ballots(lm, None, ["a", "b"], [1, 2], SamplingConfig())
    assert drawn.matching(tokens) == n
    assert lm.drawn == n
    assert drawn.matching(tokens) == n  # and not more because more are known
    attempts = vote(drawn, n)
    assert [a.samples for a in attempts] == [n, n]
    assert all(a.tokens >= tokens for a in attempts)
    assert lm.drawn == n


def test_votes_do_not_depend_on_how_they_are_batched_or_when_they_are_drawn(model: Mass) -> None:
    together = vote(ballots(model), 4)
    done: list[int] = []
    apart = vote(ballots(model, stack=2), 4, done.append)
    assert [a.votes for a in apart] == [a.votes for a in together]
    assert [a.text for a in apart] == [a.text for a in together]
    assert done == [2, 4, 5]
    assert all(a.samples == 4 for a in apart)
    grown = ballots(model)
    first = grown.first(2)
    assert [samples[:2] for samples in grown.first(4)] == first
    assert grown.first(4) == ballots(model).first(4)
    assert 0 < grown.seconds(2) == pytest.approx(grown.seconds(4) / 2)


# --- the scorer's choice


def scorer_that_likes(lm: Any, wanted: str, texts: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of real examples, as the scorer would be asked for them, that prefer one text."""

    def score(_: Any, __: Params, problems: Sequence[str], examples: Sequence[Example], *___: Any) -> torch.Tensor:
        for problem, example in zip(problems, examples, strict=True):
            assert example.problem == problem
            found = read(lm.tokenizer.decode(example.tokens, skip_special_tokens=True))
            assert (found.problem, found.solution) == (problem, example.solution)
            assert example.tokens[-1] == lm.tokenizer.eos_token_id
            assert example.solution in texts
        return torch.tensor([float(example.solution == wanted) for example in examples])

    monkeypatch.setattr(scoring, "score", score)


def test_the_scorer_chooses_among_answers_that_ended_and_reads_them_as_examples(
    taught: Contestant, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["1. Answer: 1", "2. Answer: 2", "3. Answer: 3"]
    scorer_that_likes(taught.lm, texts[2], texts, monkeypatch)
    group = [sample(f" {text}") for text in texts]
    unfinished = [*group[:2], sample(texts[2], finished=False)]
    none = [sample("", finished=True), sample(texts[1], finished=False)]
    assert best_places(taught, ["Compute 1 + 2.", "b?", "c?"], [group, unfinished, none]) == [2, 0, 0]


def test_an_untrained_scorer_likes_all_alike_and_a_trained_one_is_its_argmax(taught: Contestant) -> None:
    problems = ["Compute 1 + 2.", "Compute 3 + 3."]
    drawn = Ballots(taught.lm, None, problems, [1, 2], SamplingConfig(16, 1.0))
    assert [a.text for a in best_of(taught, drawn, 4)] == [s[0].text.strip() for s in drawn.first(4)]
    state = taught.state
    assert state is not None
    generator = torch.Generator().manual_seed(3)
    eta = {**state.eta, "head.w2": torch.randn(state.eta["head.w2"].shape, generator=generator)}
    trained = replace(taught, state=replace(state, eta=eta))
    attempts = best_of(trained, drawn, 6)
    different = 0
    for problem, samples, attempt in zip(problems, drawn.first(6), attempts, strict=True):
        ended = [s for s in samples if s.finished]
        examples = [Example(problem, s.text, tokens=tuple(taught.lm.written_ids(problem, s.text))) for s in ended]
        scores = [float(scoring.score(taught.lm, eta, [problem], [example])) for example in examples]
        best = ended[max(range(len(ended)), key=scores.__getitem__)]
        assert attempt.text == best.text.strip()
        assert attempt.tokens == sum(len(s.tokens) for s in samples)
        assert attempt.samples == 6
        different += attempt.text != samples[0].text.strip()
    assert different > 0


def test_what_the_scorer_reads_is_written_as_the_generator_writes(taught: Contestant) -> None:
    problems = ["Compute 1 + 2.", "Compute 3 + 3.", "Compute 2 + 2."]
    config = replace(ADAPT.synthesis, examples=8)
    written = [e for group in synthesise(taught.lm, problems, config, [1, 2, 3], None) for e in group if e.valid]
    assert len(written) >= 6
    same = sum(tuple(taught.lm.written_ids(e.problem, e.solution)) == e.tokens for e in written)
    assert same >= 0.8 * len(written)  # a sampled text may be cut into other tokens than the tokenizer's


def test_a_chat_model_reads_an_answer_in_the_form_it_is_asked_for() -> None:
    lm = make_lm(chat=True)
    text = lm.tokenizer.decode(lm.written_ids(" What is {solution}? ", " It is {problem}. "), skip_special_tokens=True)
    assert lm.prompts.opens + text == "Problem: What is {solution}?\nSolution: It is {problem}."


# --- practice in the context


def test_practice_stands_before_the_problem_in_the_solve_format(taught: Contestant) -> None:
    lm = taught.lm
    shots = [("Compute 1 + 1.", " 1+1=2. Answer: 2 "), ("Compute 1 + 2.", "1+2=3. Answer: 3")]
    assert lm.tokenizer.decode(lm.shots_prompt(shots, "Compute 2 + 2."), skip_special_tokens=True) == (
        "Problem: Compute 1 + 1.\nSolution: 1+1=2. Answer: 2\n\n"
        "Problem: Compute 1 + 2.\nSolution: 1+2=3. Answer: 3\n\n"
        "Problem: Compute 2 + 2.\nSolution:"
    )
    assert lm.shots_prompt([], "Compute 2 + 2.") == lm.solve_prompt("Compute 2 + 2.")
    chat = make_lm(chat=True)
    ask = chat.prompts.render_solve
    assert chat.tokenizer.decode(chat.shots_prompt([("1?", "one")], "2?")) == (
        f"<user>{ask('1?')}</user><assistant>one</assistant><user>{ask('2?')}</user><assistant>"
    )
    assert chat.shots_prompt([], "2?") == chat.solve_prompt("2?")


def test_in_context_answers_use_the_practice_of_mass_and_pay_for_it(taught: Contestant) -> None:
    problems, seeds, config = ["Compute 1 + 2.", "Compute 3 + 3."], [5, 6], replace(CONFIG, samples=2)
    mass = answer_adapted(taught, problems, seeds, config)
    given = answer_in_context(taught, problems, seeds, config, mass)
    written = answer_in_context(taught, problems, seeds, config)
    assert [a.text for a in given] == [a.text for a in written]
    assert [a.tokens for a in given] == [a.tokens for a in written]
    for problem, seed, attempt, adapted in zip(problems, seeds, given, mass, strict=True):
        record = adapted.record
        assert record is not None
        shots = [(e.problem, e.solution) for e in record.examples if e.valid]
        assert shots
        (text,) = taught.lm.sample([taught.lm.shots_prompt(shots, problem)], SHORT, [seed])
        assert attempt.text == text.text.strip()
        assert attempt.tokens == record.tokens["synthesis"] + len(text.tokens)
        assert attempt.seconds > record.seconds["synthesis"]
        assert all(d.tokens > record.tokens["synthesis"] for d in attempt.drawn)
        assert attempt.left_out == 0


def test_practice_that_does_not_fit_is_left_out_and_counted(taught: Contestant) -> None:
    lm = taught.lm
    short = Example("Compute 1 + 1.", "1+1=2. Answer: 2")
    long = Example("Compute 1 + 1. " * 15, "1+1=2. Answer: 2")
    rejected = replace(short, rejected="repeat")
    record = Adaptation("", "", 0, {}, "", examples=(long, short, long, rejected, short),
                        tokens={"synthesis": 9}, seconds={"synthesis": 1.0})  # fmt: skip
    room = len(lm.shots_prompt([("Compute 1 + 1.", "1+1=2. Answer: 2")] * 2, "2?")) + 4
    room = lm.context - max(room, len(lm.shots_prompt([], "2?")))
    config = replace(CONFIG, answer=SamplingConfig(room, 0.0))
    (attempt,) = answer_in_context(taught, ["2?"], [0], config, [Attempt("", 0, 0.0, record)])
    assert attempt.left_out == 2
    config = replace(CONFIG, answer=SamplingConfig(lm.context, 0.0))
    (attempt,) = answer_in_context(taught, ["2?"], [0], config, [Attempt("", 0, 0.0, record)])
    (plain,) = answer_plain(taught, ["2?"], [0], config)
    assert (attempt.text, attempt.left_out) == (plain.text, 4)
