from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from research.models import TINY

from mass.adaptation import checkpoint
from mass.adaptation.checkpoint import MetaState, fingerprint, init_state
from mass.config import AdaptConfig, InnerConfig, ScoringConfig
from mass.errors import ModelError
from mass.lm import LM
from mass.lm.lora import adapter_hash
from mass.lm.source import shipped_folder
from small_lms import make_lm, random_adapter

ADAPT = AdaptConfig(scoring=ScoringConfig(hidden=4, lora_rank=1), inner=InnerConfig("adamw", 0.02, steps=3))


@pytest.fixture(scope="module")
def lm() -> LM:
    return make_lm()


def trained(lm: LM) -> MetaState:
    fresh = init_state(lm, ADAPT, 0)
    eta = {n: t + 0.1 * i for i, (n, t) in enumerate(fresh.eta.items())}
    rates = {n: t - 0.01 * i for i, (n, t) in enumerate(fresh.log_rates.items())}
    return MetaState(random_adapter(lm), eta, rates)


def test_round_trip_bit_for_bit_in_the_order_of_a_fresh_state(lm: LM, tmp_path: Path) -> None:
    state, fresh = trained(lm), init_state(lm, ADAPT, 0)
    checkpoint.save(tmp_path / "c", lm, state, ADAPT, "mass", 7)
    loaded, description = checkpoint.load(tmp_path / "c", lm)
    for name in ("theta", "eta", "log_rates"):
        got, expected, initial = getattr(loaded, name), getattr(state, name), getattr(fresh, name)
        assert list(got) == list(initial), "an optimiser's state belongs to places, not to names"
        assert all(torch.equal(t, expected[n]) and t.dtype == expected[n].dtype for n, t in got.items())
    assert (description.method, description.step, description.base) == ("mass", 7, "small Llama")
    assert description.adapt == ADAPT
    assert description.lora == lm.adapters.config


def test_a_fresh_state_changes_nothing_and_follows_its_seed(lm: LM) -> None:
    one, same, other = (init_state(lm, ADAPT, seed) for seed in (1, 1, 2))
    assert adapter_hash(one.theta) == adapter_hash(same.theta) != adapter_hash(other.theta)
    assert all(torch.equal(one.eta[n], same.eta[n]) for n in one.eta)
    assert not torch.equal(one.eta["head.w1"], other.eta["head.w1"])
    assert {round(float(t.exp()), 9) for t in one.log_rates.values()} == {0.02}
    assert one.log_rates.keys() == one.theta.keys()
    frozen = init_state(lm, AdaptConfig(inner=InnerConfig(learning_rate=0.0)), 0)
    assert all(bool(t.isfinite()) for t in frozen.log_rates.values())


def refused(folder: Path, lm: LM, match: str) -> None:
    with pytest.raises(ModelError, match=match) as error:
        checkpoint.load(folder, lm)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_base_is_refused(lm: LM, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", lm, trained(lm), ADAPT, "mass", 1)
    other = make_lm(seed=1)
    assert fingerprint(other) != fingerprint(lm) == fingerprint(make_lm())
    refused(tmp_path / "c", other, "was trained on base 'small Llama' .* not on 'small Llama' .* load it with its own")
    refused(tmp_path / "c", make_lm("GPT2"), "load it with its own base")


def test_a_base_is_the_same_one_in_every_precision_it_is_loaded_in() -> None:
    """But for float16, whose own rounding is finer than bfloat16's."""
    found = {fingerprint(make_lm(dtype=dtype)) for dtype in (torch.float64, torch.float32, torch.bfloat16)}
    assert len(found) == 1


def test_damaged_checkpoints_are_refused(lm: LM, tmp_path: Path) -> None:
    folder = tmp_path / "c"

    def fresh() -> None:
        checkpoint.save(folder, lm, trained(lm), ADAPT, "mass", 1)

    refused(tmp_path, lm, "holds no checkpoint; expected a run folder of `mass train`")
    fresh()
    (folder / "mass.json").write_text("{")
    refused(folder, lm, "is not a checkpoint description")
    fresh()
    description = json.loads((folder / "mass.json").read_text())
    (folder / "mass.json").write_text(json.dumps({**description, "unknown": 1}))
    refused(folder, lm, "is not a checkpoint description .*unknown")
    fresh()
    scorer = folder / "scorer.safetensors"
    scorer.write_bytes(scorer.read_bytes()[:50])
    refused(folder, lm, "cannot be read .* copy the checkpoint anew")
    scorer.unlink()
    refused(folder, lm, "cannot be read")
    fresh()
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    refused(folder, lm, "is not a PEFT adapter")


def test_a_scorer_file_without_all_rates_is_refused(lm: LM, tmp_path: Path) -> None:
    state = trained(lm)
    rates = dict(list(state.log_rates.items())[1:])
    checkpoint.save(tmp_path / "c", lm, MetaState(state.theta, state.eta, rates), ADAPT, "mass", 1)
    refused(tmp_path / "c", lm, "holds no rate")


def test_a_run_folder_stands_for_its_best_or_latest_checkpoint(lm: LM, tmp_path: Path) -> None:
    def write(name: str, step: int) -> None:
        checkpoint.save(tmp_path / "checkpoints" / name, lm, trained(lm), ADAPT, "mass", step)

    write("step-000009", 9)
    write("step-000010", 10)
    write(".step-000011.tmp", 11)
    assert checkpoint.describe(tmp_path).step == 10
    write("best", 5)
    assert checkpoint.describe(tmp_path).step == 5
    assert checkpoint.describe(tmp_path / "checkpoints" / "step-000009").step == 9


def test_a_checkpoint_of_before_the_likelihood_says_that_its_scorer_has_none() -> None:
    new = shipped_folder("tiny-terms")
    assert new is not None
    assert not checkpoint.describe(TINY.with_name("mass")).adapt.scoring.likelihood
    assert checkpoint.describe(new / "mass").adapt.scoring.likelihood
