"""Each method: who takes part, from which checkpoint, what it practises on, and how votes are counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mass import checkpoint
from mass.baselines import (
    METHODS,
    answer_adapted,
    answer_plain,
    check_methods,
    contestants,
    elect,
    training_examples,
    training_pool,
    vote,
)
from mass.config import AdaptConfig, EvalConfig, InnerConfig, LoraConfig, SamplingConfig, SynthesisConfig
from mass.errors import ConfigError, DataError, ModelError
from mass.model import Mass, load
from mass.tasks import minimath
from mass.types import Sample, Task

SHORT = SamplingConfig(max_tokens=12, temperature=0.0)
CONFIG = EvalConfig(answer=SHORT, ttt=InnerConfig(learning_rate=5.0))
ADAPT = AdaptConfig(SynthesisConfig(examples=3, sampling=SamplingConfig(max_tokens=12)))
PROBLEMS = [task.problem for task in minimath.load("test", 5, 0)]
SEEDS = [11, 12, 13, 14, 15]


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Mass:
    return load(str(tiny_base), config=ADAPT)


def contestant(model: Mass, method: str, checkpoints: dict[str, Any] | None = None, config: EvalConfig = CONFIG) -> Any:
    return contestants(model, [method], config, checkpoints or {}, seed=0)[method]


def saved(model: Mass, folder: Path, method: str = "mass", step: int = 7, seed: int = 5) -> Path:
    """A checkpoint of `method` whose adapter changes the answers."""
    state = checkpoint.init_state(model.lm, ADAPT, seed)
    theta = {n: t + 0.3 if n.endswith("lora_B") else t for n, t in state.theta.items()}
    adapt = replace(ADAPT, answer=SamplingConfig(max_tokens=99))
    checkpoint.save(folder, model.lm, replace(state, theta=theta), adapt, method, step)
    return folder


# --- methods and checkpoints


def test_unknown_methods_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'mas' is unknown; did you mean 'mass'"):
        check_methods(["base", "mas"])
    for wrong in ("maj@0", "maj@", "maj@x", "maj@-3"):
        with pytest.raises(ConfigError, match="unknown"):
            check_methods([wrong])
    with pytest.raises(ConfigError, match="no methods"):
        check_methods([])
    assert check_methods(["mass", "base", "maj@9", "mass"]) == ["mass", "base", "maj@9"]


@pytest.mark.parametrize("method", ["mass", "mass-gold", "solver-grpo", "mass-unadapted"])
def test_a_missing_checkpoint_says_which_and_how_to_give_it(model: Mass, method: str) -> None:
    name = method.removesuffix("-unadapted")
    with pytest.raises(ConfigError) as error:
        contestant(model, method)
    text = str(error.value)
    assert f"'{name}' needs a checkpoint" in text
    assert f"checkpoints={{'{name}': DIR}}" in text
    assert f"--checkpoint-of {name}=DIR" in text
    assert "\n" not in text


def test_a_checkpoint_for_no_method_or_of_no_folder_is_refused(model: Mass, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'mass-golf'; did you mean 'mass-gold'"):
        contestant(model, "base", {"mass-golf": tmp_path})
    with pytest.raises(ConfigError, match="no folder"):
        contestant(model, "mass", {"mass": tmp_path / "nowhere"})
    with pytest.raises(ModelError, match="no checkpoint"):
        contestant(model, "mass", {"mass": tmp_path})


def test_a_checkpoint_brings_its_state_and_configuration_but_not_its_answer_sampling(
    model: Mass, tmp_path: Path
) -> None:
    found = contestant(model, "mass", {"mass": saved(model, tmp_path / "c")})
    assert found.lm is model.lm
    assert found.config == replace(ADAPT, answer=SHORT)
    assert "7 steps of mass" in found.origin
    assert found.recorded["checkpoint"] == str(tmp_path / "c")
    assert contestant(model, "tt-ss").recorded == model.origin
    texts = [a.text for a in answer_plain(found, PROBLEMS, SEEDS, SHORT)]
    base = [a.text for a in answer_plain(contestant(model, "base"), PROBLEMS, SEEDS, SHORT)]
    assert texts != base


def test_the_given_model_is_its_own_checkpoint(tiny_base: Path, model: Mass, tmp_path: Path) -> None:
    trained = load(str(tiny_base), checkpoint=saved(model, tmp_path / "c", method="mass-gold"))
    found = contestant(trained, "mass-gold")
    assert found.state is trained.state
    with pytest.raises(ConfigError, match="'mass' needs"):
        contestant(trained, "mass")


def test_a_checkpoint_of_another_lora_shape_gets_its_own_base(tiny_base: Path, model: Mass, tmp_path: Path) -> None:
    other = load(str(tiny_base), config=ADAPT, lora=LoraConfig(rank=2, targets=("q_proj",)))
    folder = saved(other, tmp_path / "c")
    found = contestants(model, ["base", "mass", "mass-unadapted"], CONFIG, {"mass": folder}, seed=0)
    assert found["base"].lm is model.lm
    assert found["mass"].lm is not model.lm
    assert found["mass-unadapted"].lm is found["mass"].lm
    assert found["mass"].lm.adapters.config == other.lm.adapters.config
    texts = [a.text for a in answer_plain(found["mass"], PROBLEMS, SEEDS, SHORT)]
    assert texts == [a.text for a in answer_plain(contestant(other, "mass", {"mass": folder}), PROBLEMS, SEEDS, SHORT)]


# --- answers


def test_plain_answers_are_those_of_the_base_and_count_their_tokens(model: Mass) -> None:
    attempts = answer_plain(contestant(model, "base"), PROBLEMS, SEEDS, SHORT)
    prompts = [model.lm.solve_prompt(problem) for problem in PROBLEMS]
    samples = model.lm.sample(prompts, SHORT, SEEDS)
    assert [a.text for a in attempts] == [s.text.strip() for s in samples]
    assert [a.tokens for a in attempts] == [len(s.tokens) for s in samples]
    assert all(a.record is None and a.seconds > 0 for a in attempts)


def test_adapting_at_rate_0_answers_as_the_base_and_at_a_high_rate_does_not(model: Mass) -> None:
    pool = training_pool(None, 0, PROBLEMS)
    base = [a.text for a in answer_plain(contestant(model, "base"), PROBLEMS, SEEDS, SHORT)]
    for rate, same in ((0.0, True), (50.0, False)):
        config = EvalConfig(answer=SHORT, ttt=InnerConfig(learning_rate=rate, steps=2, max_update_norm=1e9))
        found = contestant(model, "base-ttt", config=config)
        practice = training_examples(found.lm, pool, found.config.synthesis, SEEDS)
        attempts = answer_adapted(found, PROBLEMS, SEEDS, practice)
        assert ([a.text for a in attempts] == base) is same
        record = attempts[0].record
        assert record is not None
        assert not record.fallback
        assert [e.weight for e in record.examples] == pytest.approx([1 / 3] * 3)


def test_practice_counts_as_generated_only_when_the_model_wrote_it(model: Mass) -> None:
    found = contestant(model, "tt-ss")
    own = answer_adapted(found, PROBLEMS[:2], SEEDS[:2])
    for attempt in own:
        record = attempt.record
        assert record is not None
        assert attempt.tokens == sum(len(e.tokens) for e in record.examples) + record.tokens["answer"]
        assert attempt.tokens > record.tokens["answer"]
        assert record.unadapted_text is None
    pool = training_pool(None, 0, PROBLEMS)
    given = answer_adapted(
        found, PROBLEMS[:2], SEEDS[:2], training_examples(found.lm, pool, ADAPT.synthesis, SEEDS[:2])
    )
    assert all(a.record is not None and a.tokens == a.record.tokens["answer"] for a in given)


def test_training_examples_are_a_draw_of_each_seed_and_never_a_problem_to_answer(model: Mass) -> None:
    tasks = minimath.load("train", 30, 3)
    held_out = [task.problem for task in tasks[:20]]
    pool = training_pool([*tasks, Task("no solution", answer="1")], 0, held_out)
    assert pool == tasks[20:]
    groups = training_examples(model.lm, pool, ADAPT.synthesis, SEEDS)
    assert groups == training_examples(model.lm, pool, ADAPT.synthesis, SEEDS)
    assert groups[2:] == training_examples(model.lm, pool, ADAPT.synthesis, SEEDS[2:])
    assert len(set(groups)) > 1
    solutions = {task.problem: task.solution for task in pool}
    for group in groups:
        assert len({e.problem for e in group}) == 3
        assert all(solutions[e.problem] == e.solution and e.valid for e in group)
    with pytest.raises(DataError, match="base-ttt has 20 training tasks, none"):
        training_pool(tasks[:20], 0, held_out)


def test_a_training_task_too_long_to_learn_from_is_rejected(model: Mass) -> None:
    long = Task("1 + 1? " * 3000, "2", "2")
    longish = Task("1 + 1?", "2 " * 100, "2")
    config = SynthesisConfig(examples=2, max_example_tokens=50)
    (group,) = training_examples(model.lm, [long, longish], config, [0])
    assert [e.rejected for e in group] == ["too long"] * 2


def test_every_method_is_known_to_the_roster(model: Mass, tmp_path: Path) -> None:
    folders = {n: saved(model, tmp_path / n, n) for n in ("mass", "mass-gold", "solver-grpo")}
    assert set(contestants(model, METHODS, CONFIG, folders, 0)) == set(METHODS)


# --- the vote


def sample(text: str, tokens: int = 3) -> Sample:
    return Sample(tuple(range(tokens)), text, finished=True)


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
    assert attempt.tokens == 3 * len(texts)
    assert attempt.samples == len(texts)


@dataclass
class Scripted:
    """Stands in for a language model: sample j of a problem has `lengths[j]` tokens, then the last length."""

    lengths: tuple[int, ...]
    drawn: int = 0

    def solve_prompt(self, problem: str) -> list[int]:
        return [len(problem)]

    def sample(self, prompts: list[list[int]], config: SamplingConfig, seeds: list[int]) -> list[Sample]:
        assert config.temperature == 1
        assert len(prompts) == len(seeds)
        assert len(set(seeds)) == len(seeds)
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
    attempts = vote(lm, ["a", "b"], [1, 2], SamplingConfig(), votes=99, tokens=tokens)
    assert [a.samples for a in attempts] == [n, n]
    assert all(a.tokens >= tokens for a in attempts)


def test_votes_do_not_depend_on_how_they_are_batched(model: Mass) -> None:
    sampling = SamplingConfig(max_tokens=8, temperature=1.0)
    together = vote(model.lm, PROBLEMS, SEEDS, sampling, votes=4, stack=5)
    done: list[int] = []
    apart = vote(model.lm, PROBLEMS, SEEDS, sampling, votes=4, stack=2, tick=done.append)
    assert [a.votes for a in apart] == [a.votes for a in together]
    assert [a.text for a in apart] == [a.text for a in together]
    assert done == [2, 4, 5]
    assert all(a.samples == 4 for a in apart)
