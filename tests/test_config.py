from __future__ import annotations

import ast
import dataclasses
import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from research.pretrain_config import PretrainConfig

from mass import config
from mass.adaptation.checkpoint import adapt_config
from mass.config import (
    AdaptConfig,
    AtTestConfig,
    EvalConfig,
    InnerConfig,
    LoraConfig,
    ModelConfig,
    OuterConfig,
    PracticeConfig,
    RunConfig,
    SamplingConfig,
    ScoringConfig,
    SynthesisConfig,
    TasksConfig,
    TrainConfig,
    at_test,
    config_hash,
    to_dict,
)
from mass.errors import ConfigError
from mass.seeds import derive
from mass.tasks.minimath import SUBJECTS

ALL = [c for _, c in inspect.getmembers(config, dataclasses.is_dataclass)]


@pytest.mark.parametrize("kind", ALL)
def test_defaults_are_frozen_and_serialise(kind: type) -> None:
    made = kind()
    field = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, field, None)
    assert json.loads(json.dumps(to_dict(made))) == to_dict(made)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: LoraConfig(r=0), "lora.r is 0; expected at least 1"),
        (lambda: LoraConfig(lora_alpha=-1), "lora.lora_alpha is -1"),
        (lambda: SamplingConfig(max_new_tokens=0), "sampling.max_new_tokens is 0"),
        (lambda: SamplingConfig(temperature=-0.1), "sampling.temperature is -0.1"),
        (lambda: SamplingConfig(top_p=0), "sampling.top_p is 0"),
        (lambda: SamplingConfig(top_p=1.1), "sampling.top_p is 1.1"),
        (lambda: SynthesisConfig(examples=0), "synthesis.examples is 0"),
        (lambda: ScoringConfig(hidden=0), "scoring.hidden is 0"),
        (lambda: ScoringConfig(lora_rank=-1), "scoring.lora_rank is -1"),
        (lambda: ScoringConfig(sharpness=-1.0), "scoring.sharpness is -1.0"),
        (lambda: ScoringConfig(sharpness=float("inf")), "scoring.sharpness is inf"),
        (lambda: ScoringConfig(hidden=1, sharpness=3.0), "scoring.sharpness is 3.0"),
        (lambda: ScoringConfig(likelihood=False, sharpness=3.0), "scoring.sharpness is 3.0; expected 0, or likelihood"),
        (lambda: EvalConfig(sharpness=-1.0), "sharpness is -1.0; expected a finite number, 0 or more"),
        (lambda: EvalConfig(sharpness=float("inf")), "sharpness is inf"),
        (lambda: InnerConfig(steps=-1), "inner.steps is -1"),
        (lambda: InnerConfig(learning_rate=-1.0), "inner.learning_rate is -1.0"),
        (lambda: InnerConfig(learning_rate=float("nan")), "inner.learning_rate is nan"),
        (lambda: InnerConfig(micro_batch=0), "inner.micro_batch is 0"),
        (lambda: OuterConfig(samples=1), "outer.samples is 1; expected at least 2"),
        (lambda: TrainConfig(steps=0), "train.steps is 0"),
        (lambda: TrainConfig(stack=0), "train.stack is 0"),
        (lambda: TrainConfig(checkpoint_every=0), "train.checkpoint_every is 0"),
        (lambda: TrainConfig(eval_every=-1), "train.eval_every is -1"),
        (lambda: ModelConfig(decode_rows=0), "model.decode_rows is 0; expected at least 1"),
        (lambda: ModelConfig(dtype="bf16"), "model.dtype is 'bf16'; expected one of: auto, float32, bfloat16"),
        (lambda: SynthesisConfig(writer="eta"), "synthesis.writer is 'eta'; expected one of: theta, base"),
        (lambda: SynthesisConfig(max_example_tokens=0), "synthesis.max_example_tokens is 0"),
        (lambda: ScoringConfig(normalise="soft"), "scoring.normalise is 'soft'"),
        (lambda: InnerConfig("adam"), "inner.optimizer is 'adam'; expected one of: sgd, adamw"),
        (lambda: InnerConfig(learning_rate=float("inf")), "inner.learning_rate is inf"),
        (lambda: InnerConfig(momentum=1.0), r"inner.momentum is 1.0; expected a number in \[0, 1\)"),
        (lambda: InnerConfig(betas=(0.9, 1.0)), r"inner.betas is \(0.9, 1.0\); expected two numbers in \[0, 1\)"),
        (lambda: InnerConfig(betas=(0.9,)), "inner.betas"),
        (lambda: InnerConfig(eps_root=-1e-9), "inner.eps_root is -1e-09"),
        (lambda: InnerConfig(weight_decay=-1), "inner.weight_decay is -1"),
        (lambda: InnerConfig(max_update_norm=0), "inner.max_update_norm is 0; expected a finite number, more than 0"),
        (lambda: OuterConfig(micro_batch=0), "outer.micro_batch is 0; expected at least 1"),
        (lambda: TasksConfig(size=0), "tasks.size is 0; expected at least 1, or null"),
        (lambda: TrainConfig("maas"), "train.method is 'maas'; expected one of: mass, mass-gold, solver-grpo"),
        (lambda: TrainConfig(eval_size=0), "train.eval_size is 0"),
        (lambda: TrainConfig(warmup=-1), "train.warmup is -1"),
        *(
            (
                lambda name=name: TrainConfig(**{name: -1.0}),
                f"train.{name} is -1.0; expected a finite number, 0 or more",
            )
            for name in ("solver_lr", "scorer_lr", "rates_lr", "gamma", "generator", "generator_kl", "kl")
        ),
        (lambda: TrainConfig(solver_lr=float("nan")), "train.solver_lr is nan"),
        (lambda: TrainConfig(max_grad_norm=0), "train.max_grad_norm is 0; expected a finite number, more than 0"),
        (lambda: AtTestConfig(examples=0), "test.examples is 0"),
        (lambda: AtTestConfig(steps=-1), "test.steps is -1"),
        (lambda: PretrainConfig(width=30, heads=4), "width is 30; expected a multiple of 8"),
        (lambda: PretrainConfig(width=12, heads=4), "width is 12; expected a multiple of 8"),
        *(
            (lambda name=name: PretrainConfig(**{name: 0}), f"{name} is 0; expected at least 1")
            for name in ("layers", "heads", "mlp", "context", "steps", "pages", "checkpoint_every")
        ),
        (lambda: PretrainConfig(vocabulary=258), "vocabulary is 258; expected at least 259"),
        (lambda: PretrainConfig(warmup=-1), "warmup is -1"),
        (lambda: PretrainConfig(learning_rate=-1.0), "learning_rate is -1.0"),
        *(
            (lambda name=name: PretrainConfig(**{name: 1.1}), f"{name} is 1.1; expected a share between 0 and 1")
            for name in ("textbook", "slip", "textbook_bare", "textbook_slip")
        ),
        (lambda: PretrainConfig(bare={"Algebra": 2.0}), "bare.Algebra is 2.0; expected a share"),
        (lambda: PretrainConfig(bare={"Algbra": 0.2}), "bare names 'Algbra', .*; did you mean 'Algebra'"),
    ],
)
def test_values_that_cannot_be_used_are_one_line(make, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_tiny_base_keeps_the_habits_that_are_not_named() -> None:
    usual = PretrainConfig().bare
    assert PretrainConfig(bare={"Algebra": 0.9}).bare == {**usual, "Algebra": 0.9}
    assert usual.keys() == set(SUBJECTS)


def test_held_out_problems_are_adapted_as_in_training_but_for_what_test_says() -> None:
    """All that a scorer and inner rates were learned with holds when they are used."""
    trained = PracticeConfig(
        SynthesisConfig(9, SamplingConfig(33, 0.5), writer="base"),
        ScoringConfig("sigmoid", hidden=5, lora_rank=2),
        InnerConfig("adamw", 0.7, betas=(0.5, 0.6), steps=4, micro_batch=3),
    )
    answer = SamplingConfig(7, 0.0)
    got = at_test(RunConfig(adapt=trained, test=AtTestConfig(examples=2, steps=1, answer=answer)))
    assert got.synthesis == dataclasses.replace(trained.synthesis, examples=2)
    assert got.scoring == trained.scoring
    assert got.inner == dataclasses.replace(trained.inner, steps=1)
    assert got.answer == answer
    assert at_test(RunConfig()) == AdaptConfig()


def test_equal_configurations_have_equal_hashes() -> None:
    assert config_hash(RunConfig()) == config_hash(RunConfig()) == config_hash(to_dict(RunConfig()))
    other = dataclasses.replace(RunConfig(), train=TrainConfig(seed=1))
    assert config_hash(other) != config_hash(RunConfig())
    assert len(config_hash(RunConfig())) == 12
    turned = dict(reversed(to_dict(RunConfig()).items()))
    assert config_hash(turned) == config_hash(RunConfig())


@given(
    st.builds(
        AdaptConfig,
        st.builds(SynthesisConfig, st.integers(1, 20), st.builds(SamplingConfig, st.integers(1, 99), st.floats(0, 2))),
        st.builds(ScoringConfig, st.sampled_from(["softmax", "sigmoid", "uniform"]), st.integers(1, 9)),
        st.builds(InnerConfig, st.sampled_from(["sgd", "adamw"]), st.floats(0, 9), steps=st.integers(0, 9)),
    )
)
def test_a_record_s_configuration_comes_back_equal(made: AdaptConfig) -> None:
    again = adapt_config(json.loads(json.dumps(to_dict(made))))
    assert again == made
    assert config_hash(again) == config_hash(made)


def test_most_fields_say_what_they_mean() -> None:
    """A string under a field, which the command line shows as its help."""
    tree = ast.parse(inspect.getsource(config))
    bare: list[str] = []
    for node in [n for n in tree.body if isinstance(n, ast.ClassDef)]:
        after = [*node.body[1:], None]
        for field, following in zip(node.body, after, strict=True):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and not documented and "Config" not in ast.unparse(field.annotation):
                bare.append(f"{node.name}.{field.target.id}")
    obvious = {"TrainConfig.seed"}
    assert [name for name in bare if not name.startswith("PretrainConfig.") and name not in obvious] == []


# ------------------------------------------------------------------------------- seeds


@given(st.integers(), st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3))
def test_seeds_fit_a_torch_generator_and_repeat(seed: int, names: list) -> None:
    made = derive(seed, *names)
    assert 0 <= made < 2**63
    assert made == derive(seed, *names)


def test_seeds_differ_by_seed_name_and_place() -> None:
    found = {derive(s, n, i) for s in range(10) for n in ("answer", "solution") for i in range(50)}
    assert len(found) == 1000
    assert (derive(0, "answer"), derive(7, "synthesis", 3)) == (618152887452806732, 2683970325973689326), (
        "records of other machines and versions would not replay"
    )
