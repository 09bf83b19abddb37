"""Prompts and kinds of problems through loading, training, comparing and replaying."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import mass
from mass.adaptation import checkpoint
from mass.config import (
    AdaptConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    RunConfig,
    SamplingConfig,
    SynthesisConfig,
    TasksConfig,
    TrainConfig,
)
from mass.errors import ConfigError, RunError
from mass.evaluation.contestants import contestants
from mass.evaluation.runner import Runner
from mass.lm import load_lm
from mass.lm.prompts import CHATS, KINDS, PLAIN, PLAINS
from mass.runs.data import read_problems
from mass.runs.folder import RunFolder
from mass.training.trainer import Trainer
from mass.types import Task
from small_lms import make_lm

LORA = LoraConfig(r=2, lora_alpha=4.0)
SHORT = AdaptConfig(SynthesisConfig(examples=1, sampling=SamplingConfig(4)), answer=SamplingConfig(4, 0.0))
OWN = dataclasses.replace(PLAIN, solve="Mine: {problem}\nSo:")
BY_KIND = {kind: dataclasses.replace(PLAIN, solve=f"{kind}: {{problem}}\nSo:") for kind in KINDS}


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> mass.Mass:
    return mass.load(str(tiny_base), lora=LORA, config=SHORT, prompts=BY_KIND)


def asked(lm: mass.model.LM, problem: str = "x") -> str:
    return lm.tokenizer.decode(lm.solve_prompt(problem), skip_special_tokens=True)


def test_load_takes_prompts_as_a_file_as_one_and_by_kind(tiny_base: Path, tmp_path: Path, model: mass.Mass) -> None:
    (tmp_path / "own.txt").write_text("=== solve\nMine: {problem}\nSo:")
    from_file = mass.load(str(tiny_base), lora=LORA, prompts=tmp_path / "own.txt")
    assert from_file.lm.prompt_set == dict.fromkeys(KINDS, OWN)
    assert mass.load(str(tiny_base), lora=LORA, prompts=OWN, kind="code").lm.prompts == OWN
    assert model.lm.prompts == BY_KIND["math"]
    assert model.asking("choice").lm.prompts == BY_KIND["choice"]
    assert mass.load(str(tiny_base), lora=LORA).lm.prompt_set == PLAINS
    with pytest.raises(ConfigError, match=r"prompts is \['math'\]; expected one for each of math, code"):
        mass.load(str(tiny_base), prompts={"math": OWN})
    with pytest.raises(ConfigError, match="kind is 'maths'; expected one of math"):
        mass.load(str(tiny_base), kind="maths")


def test_a_task_is_asked_as_its_kind(model: mass.Mass) -> None:
    for verifier, kind in (("math", "math"), ("choice", "choice"), ("mine:judge", "other")):
        task = Task("2 + 2?", verifier=verifier)
        with model.adapted(task) as adapted:
            assert (adapted.adaptation.kind, adapted.adaptation.prompts["solve"]) == (kind, BY_KIND[kind].solve)
            assert asked(adapted.lm).startswith(f"{kind}: x")
    assert asked(model.lm) == "math: x\nSo:", "the model itself is as it was"


def test_the_same_base_takes_adapters_of_another_shape() -> None:
    lm = make_lm("Llama")
    other = lm.with_lora(LoraConfig(r=3, target_modules=("q_proj",)))
    assert (lm.with_lora(lm.adapters.config), other.model) == (lm, lm.model)
    batch = lm.batch([lm.example_row("1", "2")])
    before = lm.losses(batch)
    theta = {name: t + 0.3 for name, t in other.init_adapter(0).items()}
    assert len(theta) == 4
    assert not other.losses(batch, theta).equal(before)
    assert lm.losses(batch).equal(before)
    assert other.losses(batch).equal(before)


def test_a_checkpoint_is_compared_as_it_was_trained(model: mass.Mass, tiny_base: Path, tmp_path: Path) -> None:
    lm = model.lm.with_prompts(dict.fromkeys(KINDS, OWN))
    checkpoint.save(tmp_path / "c", lm, model.state, SHORT, "mass", 1)
    assert checkpoint.describe(tmp_path / "c").prompts == dict.fromkeys(KINDS, OWN)
    plain = mass.load(str(tiny_base), lora=LORA, config=SHORT)
    found = contestants(plain, ["base", "mass"], EvalConfig(), {"mass": tmp_path / "c"}, 0)
    assert found["mass"].lm.prompts == OWN
    assert found["base"].lm.prompts == PLAIN
    assert "its own prompts" in found["mass"].origin
    assert found["mass"].lm.model is plain.lm.model, "the base is not loaded again"
    given = contestants(model, ["mass"], EvalConfig(), {"mass": tmp_path / "c"}, 0)
    assert given["mass"].lm.prompts == BY_KIND["math"]
    loaded = mass.load(str(tiny_base), tmp_path / "c")
    assert (loaded.lm.prompts, loaded.notes) == (OWN, ())
    (note,) = mass.load(str(tiny_base), tmp_path / "c", prompts=PLAIN).notes
    assert note == f"The prompts are not those that {tmp_path / 'c'} was trained with."


def test_training_asks_as_its_tasks_are_and_goes_on_with_the_same_prompts(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"question": "Which?", "choices": ["1", "2"], "answer": 1}\n')
    (tmp_path / "own.txt").write_text("=== solve\nMine: {problem}\nSo:")
    config = RunConfig(
        ModelConfig(str(tiny_base), prompts=str(tmp_path / "own.txt")),
        LORA,
        TasksConfig(str(tmp_path / "t.jsonl")),
        train=TrainConfig(method="solver-sft", eval_every=0),
    )
    lm = load_lm(config.model, config.lora)
    problems = read_problems(lm, config)
    assert problems.kind == "choice"
    run = RunFolder(tmp_path / "run")
    trainer = Trainer(lm.asking(problems.kind), config, problems, run)
    trainer.save({})
    description = checkpoint.describe(tmp_path / "run")
    assert (description.kind, description.prompts) == ("choice", dict.fromkeys(KINDS, OWN))
    Trainer(lm, config, problems, run).start(resume=True)
    with pytest.raises(RunError, match=r"was trained with other prompts than .*own.txt has now"):
        Trainer(lm.with_prompts(PLAINS), config, problems, run).start(resume=True)


def test_a_model_spread_over_devices_is_one_processs() -> None:
    from mass.training.distributed import Ranks
    from mass.training.trainer import _placed

    model = ModelConfig(device_map="auto")
    assert _placed(model, "cuda:1", Ranks()) is model
    assert _placed(ModelConfig(), "cuda:1", Ranks()).device == "cuda:1"
    with pytest.raises(ConfigError, match=r"model.device_map is 'auto' with 2 processes"):
        _placed(model, "cuda:0", Ranks(0, 2))


def test_sampled_programs_have_no_majority() -> None:
    from mass.evaluation.answers import Attempt, Drawn

    runner = Runner([Task("p", answer="assert True", verifier="code")], {}, EvalConfig(), [0], [], None)
    attempt = Attempt("x", 1, 0.0, drawn=(Drawn(1.0, ("1", "2"), 1.0, 0.0),))
    from mass.evaluation import runner as running

    assert running._judged_sample(runner.tasks[0], attempt.drawn[0], lambda _: mass.Verdict(True)).majority is None
    assert running._judged_sample(Task("p"), attempt.drawn[0], lambda _: mass.Verdict(True)).majority is True


def test_the_chat_prompts_of_a_kind_reach_the_model() -> None:
    lm = make_lm(chat=True).with_prompts(CHATS)
    texts = {kind: asked(lm.asking(kind), "P") for kind in KINDS}
    assert len(set(texts.values())) == 4
    assert r"\boxed" in texts["math"]
    assert not any(r"\boxed" in texts[kind] for kind in KINDS if kind != "math")
    assert lm.asking("code").asking("math").solve_prompt("P") == lm.solve_prompt("P")
