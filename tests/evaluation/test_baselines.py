"""Each method: who takes part, from which checkpoint, what it practises on, and how votes are counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mass.adaptation import answer, checkpoint
from mass.config import (
    AdaptConfig,
    EvalConfig,
    InnerConfig,
    LoraConfig,
    RunConfig,
    SamplingConfig,
    SynthesisConfig,
    TasksConfig,
    TrainConfig,
    to_dict,
)
from mass.errors import ConfigError, DataError, ModelError
from mass.evaluation import answers
from mass.evaluation.answers import answer_adapted, answer_plain, training_examples, training_pool
from mass.evaluation.contestants import contestants
from mass.evaluation.methods import METHODS, TRAINED
from mass.lm.lora import pick
from mass.model import Mass, load
from mass.seeds import derive
from mass.tasks import minimath
from mass.types import Task
from small_lms import small_sums

SHORT = SamplingConfig(max_new_tokens=12, temperature=0.0)
CONFIG = EvalConfig(answer=SHORT, ttt=InnerConfig(learning_rate=5.0))
ADAPT = AdaptConfig(SynthesisConfig(examples=3, sampling=SamplingConfig(max_new_tokens=12)))
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
    adapt = replace(ADAPT, answer=SamplingConfig(max_new_tokens=99))
    checkpoint.save(folder, model.lm, replace(state, theta=theta), adapt, method, step)
    return folder


# --- methods and checkpoints


@pytest.mark.parametrize("method", [*TRAINED, "mass-gold-unadapted", "mass-unadapted"])
def test_a_missing_checkpoint_says_which_and_how_to_give_it(model: Mass, method: str) -> None:
    name = method.removesuffix("-unadapted")
    with pytest.raises(ConfigError) as error:
        contestant(model, method)
    text = str(error.value)
    assert f"'{name}' needs a checkpoint" in text
    assert f"checkpoints={{'{name}': DIR}}" in text
    assert f"--checkpoints {name}=DIR" in text
    assert "\n" not in text


def test_a_checkpoint_for_no_method_or_of_no_folder_is_refused(model: Mass, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'mass-golf'; did you mean 'mass-gold'"):
        contestant(model, "base", {"mass-golf": tmp_path})
    with pytest.raises(ConfigError, match="not a folder"):
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
    texts = [a.text for a in answer_plain(found, PROBLEMS, SEEDS, CONFIG)]
    base = [a.text for a in answer_plain(contestant(model, "base"), PROBLEMS, SEEDS, CONFIG)]
    assert texts != base


def test_the_given_model_is_its_own_checkpoint(tiny_base: Path, model: Mass, tmp_path: Path) -> None:
    trained = load(str(tiny_base), checkpoint=saved(model, tmp_path / "c", method="mass-gold"))
    found = contestant(trained, "mass-gold")
    assert found.state is trained.state
    with pytest.raises(ConfigError, match="'mass' needs"):
        contestant(trained, "mass")


def test_a_checkpoint_of_another_lora_shape_gets_its_own_base(tiny_base: Path, model: Mass, tmp_path: Path) -> None:
    other = load(str(tiny_base), config=ADAPT, lora=LoraConfig(r=2, target_modules=("q_proj",)))
    folder = saved(other, tmp_path / "c")
    found = contestants(model, ["base", "mass", "mass-unadapted"], CONFIG, {"mass": folder}, seed=0)
    assert found["base"].lm is model.lm
    assert found["mass"].lm is not model.lm
    assert found["mass-unadapted"].lm is found["mass"].lm
    assert found["mass"].lm.adapters.config == other.lm.adapters.config
    texts = [a.text for a in answer_plain(found["mass"], PROBLEMS, SEEDS, CONFIG)]
    assert texts == [a.text for a in answer_plain(contestant(other, "mass", {"mass": folder}), PROBLEMS, SEEDS, CONFIG)]


# --- answers


def test_plain_answers_are_those_of_the_base_and_count_their_tokens(model: Mass) -> None:
    attempts = answer_plain(contestant(model, "base"), PROBLEMS, SEEDS, CONFIG)
    prompts = [model.lm.solve_prompt(problem) for problem in PROBLEMS]
    samples = model.lm.sample(prompts, SHORT, SEEDS)
    assert [a.text for a in attempts] == [s.text.strip() for s in samples]
    assert [a.tokens for a in attempts] == [len(s.tokens) for s in samples]
    assert all(a.record is None and a.seconds > 0 for a in attempts)


def test_adapting_at_rate_0_answers_as_the_base_and_at_a_high_rate_does_not(model: Mass) -> None:
    pool = training_pool(None, 0, PROBLEMS)
    base = [a.text for a in answer_plain(contestant(model, "base"), PROBLEMS, SEEDS, CONFIG)]
    for rate, same in ((0.0, True), (50.0, False)):
        config = EvalConfig(answer=SHORT, ttt=InnerConfig(learning_rate=rate, steps=2, max_update_norm=1e9))
        found = contestant(model, "base-ttt", config=config)
        practice = training_examples(found.lm, pool, found.config.synthesis, SEEDS)
        attempts = answer_adapted(found, PROBLEMS, SEEDS, config, practice)
        assert ([a.text for a in attempts] == base) is same
        record = attempts[0].record
        assert record is not None
        assert not record.fallback
        assert [e.weight for e in record.examples] == pytest.approx([1 / 3] * 3)


def test_practice_counts_as_generated_only_when_the_model_wrote_it(model: Mass) -> None:
    found = contestant(model, "tt-ss")
    own = answer_adapted(found, PROBLEMS[:2], SEEDS[:2], CONFIG)
    for attempt in own:
        record = attempt.record
        assert record is not None
        assert attempt.tokens == sum(len(e.tokens) for e in record.examples) + record.tokens["answer"]
        assert attempt.tokens > record.tokens["answer"]
        assert record.unadapted_text is None
    pool = training_pool(None, 0, PROBLEMS)
    given = answer_adapted(
        found, PROBLEMS[:2], SEEDS[:2], CONFIG, training_examples(found.lm, pool, ADAPT.synthesis, SEEDS[:2])
    )
    assert all(a.record is not None and a.tokens == a.record.tokens["answer"] for a in given)


def test_practice_weighed_by_likelihood_is_that_of_tt_ss_in_other_weights(taught_base: Path) -> None:
    practice = SynthesisConfig(examples=3, sampling=SamplingConfig(max_new_tokens=32))
    model, problems = load(str(taught_base), config=AdaptConfig(practice)), [t.problem for t in small_sums()[:5]]

    def weights(method: str, sharpness: float) -> list[list[float]]:
        found = contestant(model, method, config=replace(CONFIG, sharpness=sharpness))
        records = [a.record for a in answer_adapted(found, problems, SEEDS, CONFIG)]
        texts.append([[e.solution for e in record.examples] for record in records if record is not None])
        return [[e.weight for e in record.examples] for record in records if record is not None]

    texts: list[list[list[str]]] = []
    alike, flat, sharp = weights("tt-ss", 5.0), weights("tt-ss-likelihood", 0.0), weights("tt-ss-likelihood", 5.0)
    assert texts[0] == texts[1] == texts[2]
    valid = [some for some in alike if sum(w > 0 for w in some) > 1]
    assert valid, "some practice to choose among"
    assert all(one == pytest.approx(other) for one, other in zip(alike, flat, strict=True))
    assert any(max(some) > 1.05 * max(even) for some, even in zip(sharp, alike, strict=True))
    assert all(sum(some) == pytest.approx(sum(even)) for some, even in zip(sharp, alike, strict=True))


def test_one_adaptation_serves_the_greedy_answer_and_all_sampled_ones(
    model: Mass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sampled answer is that of the adapted weights with its own seed, and costs the practice and itself."""
    config = replace(
        CONFIG, samples=3, temperatures=(0.6, 1.0), ttt=InnerConfig(learning_rate=50.0, max_update_norm=1e9)
    )
    found = contestant(model, "base-ttt", config=config)
    practice = training_examples(found.lm, training_pool(None, 0, PROBLEMS), found.config.synthesis, SEEDS)
    adaptations: list[Any] = []

    def answer_all(*args: Any, **kwargs: Any) -> Any:
        adaptations.append(answer.answer_all(*args, **kwargs))
        return adaptations[-1]

    monkeypatch.setattr(answers, "answer_all", answer_all)
    attempts = answer_adapted(found, PROBLEMS, SEEDS, config, practice)
    ((records, adapted),) = adaptations
    assert [a.text for a in attempts] == [r.text for r in records]
    assert [a.text for a in attempts] == [a.text for a in answer_adapted(found, PROBLEMS, SEEDS, CONFIG, practice)]
    for i, attempt in enumerate(attempts):
        assert [d.temperature for d in attempt.drawn] == [0.6, 1.0]
        before = attempt.tokens - records[i].tokens["answer"]
        before_s = attempt.seconds - records[i].seconds["answer"]
        for drawn in attempt.drawn:
            seeds = [derive(SEEDS[i], "sampled", f"{drawn.temperature:g}", j) for j in range(3)]
            sampling = SamplingConfig(12, drawn.temperature)
            prompts = [found.lm.solve_prompt(PROBLEMS[i])] * 3
            alone = found.lm.sample(prompts, sampling, seeds, pick(adapted.stack, i))
            assert drawn.texts == tuple(s.text.strip() for s in alone)
            assert drawn.tokens == pytest.approx(before + sum(len(s.tokens) for s in alone) / 3)
            assert before_s < drawn.seconds
    plain = answer_plain(contestant(model, "base"), PROBLEMS, SEEDS, config)
    assert [d.texts for a in plain for d in a.drawn] != [d.texts for a in attempts for d in a.drawn]


def test_sampled_answers_do_not_depend_on_how_problems_are_batched(model: Mass) -> None:
    config = replace(CONFIG, samples=2)
    found = contestant(model, "base", config=config)
    together = answer_plain(found, PROBLEMS, SEEDS, config)
    apart = [a for p, s in zip(PROBLEMS, SEEDS, strict=True) for a in answer_plain(found, [p], [s], config)]
    assert [[d.texts for d in a.drawn] for a in together] == [[d.texts for d in a.drawn] for a in apart]
    assert len({text for a in together for d in a.drawn for text in d.texts}) > 10


def test_the_comparison_sets_m_and_k_of_every_adapting_method(model: Mass, tmp_path: Path) -> None:
    config = replace(CONFIG, examples=5, steps=3)
    found = contestants(model, ["tt-ss", "mass"], config, {"mass": saved(model, tmp_path / "c")}, seed=0)
    for method in ("tt-ss", "mass"):
        adapt = found[method].config
        assert (adapt.synthesis.examples, adapt.inner.steps, adapt.answer) == (5, 3, SHORT)
    kept = contestants(model, ["mass"], CONFIG, {"mass": tmp_path / "c"}, seed=0)["mass"].config
    assert (kept.synthesis.examples, kept.inner.steps) == (3, 1)


def test_a_checkpoint_of_a_run_says_how_it_was_trained(model: Mass, tmp_path: Path) -> None:
    config = RunConfig(tasks=TasksConfig(size=30), train=TrainConfig(steps=10, tasks_per_step=8, seed=4))
    folder = saved(model, tmp_path / "run-a" / "checkpoints" / "best")
    known = {"method": "mass", "step": 7}
    assert contestant(model, "mass", {"mass": folder}).training == known
    (tmp_path / "run-a" / "config.json").write_text(json.dumps(to_dict(config)))
    known |= {"run": "run-a", "seed": 4, "steps": 10, "problems": 30}
    assert contestant(model, "mass", {"mass": folder}).training == known
    assert contestant(model, "mass", {"mass": tmp_path / "run-a"}).training == known
    endless = replace(config, tasks=TasksConfig())
    (tmp_path / "run-a" / "config.json").write_text(json.dumps(to_dict(endless)))
    assert contestant(model, "mass", {"mass": folder}).training["problems"] == 80


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
    folders = {n: saved(model, tmp_path / n, n) for n in TRAINED}
    assert set(contestants(model, METHODS, CONFIG, folders, 0)) == set(METHODS)
