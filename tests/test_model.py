"""What a user calls: load, solve, adapted, replay."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import mass
from mass.adaptation import checkpoint
from mass.adaptation.answer import answer_all
from mass.config import AdaptConfig, InnerConfig, LoraConfig, SamplingConfig, ScoringConfig, SynthesisConfig
from mass.errors import ConfigError, DataError, ModelError
from mass.model import AdaptedModel, load, load_for
from mass.types import Adaptation, Task
from small_lms import full_logits, random_adapter

CONFIG = AdaptConfig(
    SynthesisConfig(examples=3, sampling=SamplingConfig(max_new_tokens=40)),
    ScoringConfig(hidden=8),
    InnerConfig(learning_rate=1.0, steps=2),
    SamplingConfig(max_new_tokens=24, temperature=0.7),
)
LORA = LoraConfig(r=2, lora_alpha=4.0)
PROBLEM = "Compute 1 + 2."


@pytest.fixture(scope="module")
def model(taught_base: Path) -> mass.Mass:
    return mass.load(str(taught_base), config=CONFIG, lora=LORA)


@pytest.fixture(scope="module")
def trained(model: mass.Mass, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose adapter is not that of an untrained model."""
    folder = tmp_path_factory.mktemp("checkpoint") / "c"
    state = dataclasses.replace(model.state, theta=random_adapter(model.lm, 9, scale=0.02))
    checkpoint.save(folder, model.lm, state, CONFIG, "mass", 3)
    return folder


def test_the_same_seed_gives_the_same_answer(model: mass.Mass) -> None:
    one, two, other = (model.solve(PROBLEM, seed=seed) for seed in (0, 0, 1))
    assert one.adaptation.fallback == ""
    assert one.text == one.adaptation.text
    assert one.answer == one.adaptation.answer == mass.verify.final_answer(one.text)
    assert (one.text, one.adaptation.adapter_hash) == (two.text, two.adaptation.adapter_hash)
    assert other.adaptation.adapter_hash != one.adaptation.adapter_hash
    without_time = [dataclasses.replace(s.adaptation, seconds={}) for s in (one, two)]
    assert without_time[0] == without_time[1]


def test_unadapted_answers_are_those_of_the_checkpoint(model: mass.Mass) -> None:
    plain = model.solve(PROBLEM, adapt=False, seed=4)
    assert plain.adaptation is None
    assert plain.text == model.solve(PROBLEM, seed=4).adaptation.unadapted_text
    assert plain.answer == mass.verify.final_answer(plain.text)


def test_a_task_brings_a_verdict_and_its_gold_stays_out(model: mass.Mass) -> None:
    task = Task(PROBLEM, "the gold", "3", verifier="exact")
    solved = model.solve(task, seed=2)
    assert solved.adaptation.verdict == mass.verify.check(task, solved.text)
    assert solved.adaptation.unadapted_verdict == mass.verify.check(task, solved.adaptation.unadapted_text)
    other = model.solve(Task(PROBLEM, "another gold", "77", verifier="exact"), seed=2)
    assert other.text == solved.text
    assert other.adaptation.adapter_hash == solved.adaptation.adapter_hash
    assert "gold" not in json.dumps(solved.adaptation.to_dict())
    assert model.solve(PROBLEM, seed=2).adaptation.verdict is None


def test_untrained_practice_can_be_weighed_by_likelihood(taught_base: Path) -> None:
    """The likelier a solution, the heavier; and the record says all that it takes to do it again."""
    config = dataclasses.replace(CONFIG, scoring=ScoringConfig(sharpness=20.0))
    found = mass.load(str(taught_base), config=config, lora=LORA)
    solved = found.solve(PROBLEM)
    weighed = sorted((e.score, e.weight) for e in solved.adaptation.examples if e.valid)
    assert len(weighed) > 1, "something to choose among"
    assert weighed[0][1] < weighed[-1][1]
    assert all(score < 0 for score, _ in weighed), "a log-probability"
    assert [weight for _, weight in weighed] == sorted(weight for _, weight in weighed)
    again = mass.load(str(taught_base), lora=LORA).replay(through_json(solved.adaptation))
    assert (again.text, again.adaptation.adapter_hash) == (solved.text, solved.adaptation.adapter_hash)


# ------------------------------------------------------------------------------- replay


def through_json(record: Adaptation) -> Adaptation:
    again = Adaptation.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again == record
    return again


def test_a_record_replays_bit_for_bit(model: mass.Mass, taught_base: Path) -> None:
    """Also by a model that is configured otherwise: what the record says counts."""
    other = dataclasses.replace(CONFIG, synthesis=SynthesisConfig(), answer=SamplingConfig())
    task = Task(PROBLEM, answer="3", verifier="exact")
    for solved in (model.solve(PROBLEM, seed=0), model.solve(task, seed=1)):
        record = through_json(solved.adaptation)
        for who in (model, mass.load(str(taught_base), config=other, lora=LORA)):
            again = who.replay(record)
            assert again.text == solved.text
            assert again.adaptation.adapter_hash == record.adapter_hash
            assert again.adaptation.examples == record.examples
            assert again.adaptation.tokens == record.tokens
            assert again.adaptation.config_hash == record.config_hash


def test_records_of_problems_solved_side_by_side_replay(model: mass.Mass, trained: Path, taught_base: Path) -> None:
    """Their updates differ from those of each alone in the last bits."""
    problems = [PROBLEM, "Compute 3 + 3.", "Compute 2 + 3."]
    records, _ = answer_all(model.lm, model.state, problems, CONFIG, [0, 1, 2])
    assert any(model.solve(r.problem, seed=r.seed).adaptation.adapter_hash != r.adapter_hash for r in records)
    for record in records:
        assert model.replay(through_json(record)).text == record.text
        with pytest.raises(ModelError, match="differs from the recorded one"):
            load(str(taught_base), trained).replay(record)


def test_losses_a_thousandth_apart_are_no_replay(model: mass.Mass) -> None:
    """Neither of a record that was made alone, nor of one of several."""
    record = model.solve(PROBLEM).adaptation
    for changed in (
        dataclasses.replace(record, adapter_hash="0" * 64),
        dataclasses.replace(record, adapter_hash="0" * 64, stacked=3, update_norm=1.0005 * record.update_norm),
    ):
        with pytest.raises(ModelError, match="update differs from the recorded one"):
            model.replay(changed)
    assert model.replay(dataclasses.replace(record, adapter_hash="0" * 64, stacked=3)).adaptation.stacked == 3
    with pytest.raises(ModelError, match="another text than the record has"):
        model.replay(dataclasses.replace(record, text=record.text + "."))


def test_a_record_finds_its_own_weights(taught_base: Path, trained: Path) -> None:
    """Those of a checkpoint, or an untrained start of any rate, seed and shape."""
    hot = dataclasses.replace(CONFIG, inner=dataclasses.replace(CONFIG.inner, learning_rate=3.0))
    untrained = load(str(taught_base), config=hot, lora=LoraConfig(r=3), seed=5)
    for model, checkpoint_name, seed in (
        (load(str(taught_base), trained), str(trained), None),
        (untrained, "untrained", 5),
    ):
        solved = model.solve(PROBLEM, seed=1)
        record = through_json(solved.adaptation)
        assert (record.checkpoint, record.state_seed, record.stacked) == (checkpoint_name, seed, 1)
        assert record.base_fingerprint == checkpoint.fingerprint(model.lm)
        again = load_for(record).replay(record)
        assert dataclasses.replace(again.adaptation, seconds={}) == dataclasses.replace(
            record, seconds={}, unadapted_text=again.adaptation.unadapted_text
        )
    other_rate = load(str(taught_base), lora=LoraConfig(r=3), seed=6)
    assert other_rate.replay(record).text == record.text, "an untrained start is made anew from the record"


def test_a_record_of_another_base_says_so(model: mass.Mass, tiny_base: Path) -> None:
    record = model.solve(PROBLEM).adaptation
    with pytest.raises(ModelError, match=r"was made on base .* in float32 .*, not on .* replay with the base") as error:
        load(str(tiny_base), lora=LORA).replay(record)
    assert "\n" not in str(error.value)


def test_what_ships_with_the_package_is_recorded_by_its_place_in_it(
    trained: Path, taught_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = "tiny-terms"
    for module in ("mass.model", "mass.adaptation.origin", "mass.lm.source"):
        monkeypatch.setattr(f"{module}.shipped_folder", lambda name: tmp_path if name == shipped else None)
    shutil.copytree(taught_base, tmp_path / "base")
    assert load(shipped).solve(PROBLEM).adaptation.checkpoint == "untrained"
    shutil.copytree(trained, tmp_path / "mass")
    shutil.copytree(trained, tmp_path / "mass-gold")
    by_folder = load(str(tmp_path / "base"), tmp_path / "mass-gold").solve(PROBLEM).adaptation
    assert by_folder.checkpoint == f"{shipped}/mass-gold"
    for name, recorded in ((None, None), (tmp_path / "mass-gold", f"{shipped}/mass-gold"), (f"{shipped}/mass", None)):
        record = load(shipped, name).solve(PROBLEM).adaptation
        assert record.checkpoint == recorded
        assert str(tmp_path) not in json.dumps(record.to_dict())
        assert load_for(record).replay(record).text == record.text


@pytest.mark.parametrize(
    ("problem", "match"), [("", "is empty"), (" \n", "is empty"), (None, "is NoneType"), (3, "is int")]
)
def test_what_is_no_problem_is_a_one_line_error(model: mass.Mass, problem: object, match: str) -> None:
    for ask in (model.solve, lambda p: model.solve(p, adapt=False), lambda p: model.adapted(p).__enter__()):
        with pytest.raises(DataError, match=match) as error:
            ask(problem)
        assert "\n" not in str(error.value)


def test_how_the_base_is_loaded(taught_base: Path) -> None:
    small = load(str(taught_base), dtype="bfloat16", decode_rows=3, config=CONFIG)
    assert (small.lm.dtype, small.lm.decode_rows) == ("bfloat16", 3)
    assert small.solve(PROBLEM).adaptation.dtype == "bfloat16"
    refused("model.dtype is 'float33'; expected one of.*bfloat16", str(taught_base), dtype="float33", kind=ConfigError)
    refused("model.decode_rows is 0", str(taught_base), decode_rows=0, kind=ConfigError)


def test_a_fallback_replays(model: mass.Mass) -> None:
    tiny = dataclasses.replace(CONFIG, inner=dataclasses.replace(CONFIG.inner, max_update_norm=1e-9))
    solved = dataclasses.replace(model, config=tiny).solve(PROBLEM)
    assert solved.adaptation.fallback == "exploding update"
    assert solved.text == solved.adaptation.unadapted_text
    assert model.replay(through_json(solved.adaptation)).text == solved.text


def test_another_checkpoint_cannot_replay(model: mass.Mass, trained: Path, taught_base: Path) -> None:
    record = model.solve(PROBLEM).adaptation
    other = load(str(taught_base), trained)
    with pytest.raises(ModelError, match="replayed update differs from the recorded one") as error:
        other.replay(record)
    assert "\n" not in str(error.value)


def test_a_record_with_unknown_keys_is_refused(model: mass.Mass) -> None:
    record = model.solve(PROBLEM).adaptation.to_dict()
    with pytest.raises(TypeError, match="unknown"):
        Adaptation.from_dict({**record, "unknown": 1})


# ------------------------------------------------------------------------------- the adapted model


def test_the_adapted_model_lasts_for_the_block(model: mass.Mass, tmp_path: Path) -> None:
    batch = model.lm.batch([(model.lm.solve_prompt(PROBLEM), model.lm.target_ids("3"))])
    before = full_logits(model.lm, batch)
    solved = model.solve(PROBLEM, seed=3)
    with model.adapted(PROBLEM, seed=3) as lm:
        assert isinstance(lm, AdaptedModel)
        assert lm.adaptation.adapter_hash == solved.adaptation.adapter_hash
        assert (lm.adaptation.text, lm.adaptation.tokens.keys()) == ("", {"synthesis"}), "no answer was asked for"
        assert lm.adaptation.seconds.keys() == {"synthesis", "scoring", "inner loop", "practice losses"}
        answers = lm.sample(["Compute 2 + 2.", "Compute 3 + 1."], temperature=0.0)
        assert len(answers) == 2
        assert answers == lm.sample(["Compute 2 + 2.", "Compute 3 + 1."], temperature=0.0)
        assert lm.sample([PROBLEM] * 8, seed=1) == lm.sample([PROBLEM] * 8, seed=1) != lm.sample([PROBLEM] * 8, seed=2)
        assert torch.equal(full_logits(model.lm, batch), before)
        adapted = full_logits(model.lm, batch, lm.adapter)
        assert not torch.equal(adapted, before)
        lm.save(tmp_path / "peft")
    assert torch.equal(full_logits(model.lm, batch), before)

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model.lm.name), str(tmp_path / "peft"))
    with torch.no_grad():
        logits = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(logits, adapted, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------- loading


def test_a_checkpoint_brings_its_adapter_and_configuration(trained: Path, taught_base: Path, model: mass.Mass) -> None:
    loaded = load(str(taught_base), trained)
    assert (loaded.config, loaded.method, loaded.checkpoint) == (CONFIG, "mass", str(trained))
    assert loaded.lm.adapters.config == LORA
    assert all(torch.equal(t, random_adapter(model.lm, 9, scale=0.02)[n]) for n, t in loaded.state.theta.items())
    other = dataclasses.replace(CONFIG, answer=SamplingConfig(max_new_tokens=2))
    assert load(str(taught_base), trained, config=other).config == other
    untrained = load(str(taught_base), "untrained", config=CONFIG)
    assert (untrained.method, untrained.checkpoint) == ("untrained", None)


def refused(match: str, *args: object, kind: type = ModelError, **options: object) -> None:
    with pytest.raises(kind, match=match) as error:
        load(*args, **options)
    assert "\n" not in str(error.value)


def test_what_cannot_be_loaded_is_a_one_line_error(
    taught_base: Path, tiny_base: Path, trained: Path, tmp_path: Path
) -> None:
    refused("model folder './nowhere' does not exist; give a folder", "./nowhere")
    refused("model folder .* is empty; expected config.json, weights", str(tmp_path))
    refused("checkpoint folder 'nowhere' does not exist", str(taught_base), "nowhere")
    refused("holds no checkpoint", str(taught_base), tmp_path)
    refused("load it with its own base", str(tiny_base), trained)
    refused("model.device is 'tpu9'", str(taught_base), device="tpu9", kind=ConfigError)
    if not torch.cuda.is_available():
        refused("this machine has no CUDA device; use auto or cpu", str(taught_base), device="cuda", kind=ConfigError)
    refused("lora.target_modules", str(taught_base), lora=LoraConfig(target_modules=("nothing",)), kind=ConfigError)


def damaged(base: Path, folder: Path, file: str, text: str | None) -> str:
    shutil.copytree(base, folder)
    if text is None:
        (folder / file).unlink()
    elif file.endswith("safetensors"):
        (folder / file).write_bytes((folder / file).read_bytes()[:200])
    else:
        (folder / file).write_text(text)
    return str(folder)


def test_damaged_model_folders_are_one_line_errors(taught_base: Path, tmp_path: Path) -> None:
    for i, (file, text) in enumerate(
        [
            ("config.json", None),
            ("config.json", "{"),
            ("config.json", '{"model_type": "no-such-model"}'),
            ("model.safetensors", None),
            ("model.safetensors", ""),
            ("tokenizer.json", "{"),
        ]
    ):
        said = "has no config.json, only" if (file, text) == ("config.json", None) else "cannot be loaded"
        refused(said, damaged(taught_base, tmp_path / str(i), file, text))


def without(base: Path, folder: Path, token: str, file: str = "tokenizer_config.json") -> Path:
    if not folder.exists():
        shutil.copytree(base, folder)
    config = json.loads((folder / file).read_text())
    config.pop(token)
    (folder / file).write_text(json.dumps(config))
    return folder


def test_without_a_padding_token_answers_are_the_same(model: mass.Mass, taught_base: Path, tmp_path: Path) -> None:
    """What fills the places beside a row is never seen."""
    bare = load(str(without(taught_base, tmp_path / "m", "pad_token")), config=CONFIG, lora=LORA)
    assert bare.lm.tokenizer.pad_token_id is None
    assert bare.lm.pad_id == bare.lm.tokenizer.eos_token_id
    one, two = model.solve(PROBLEM, seed=3).adaptation, bare.solve(PROBLEM, seed=3).adaptation
    assert (one.adapter_hash, one.text) == (two.adapter_hash, two.text)
    rows = [bare.lm.example_row("1", "1"), bare.lm.example_row("1 + 2", "3 and more")]
    batch = bare.lm.batch(rows)
    ends = (batch.input_ids == bare.lm.pad_id) & batch.target_mask
    assert ends.sum(1).tolist() == [1, 1], "the end token of a row counts; those beside it do not"


def test_a_tokenizer_without_an_end_takes_the_models_or_is_refused(taught_base: Path, tmp_path: Path) -> None:
    folder = without(taught_base, tmp_path / "m", "eos_token")
    config = json.loads((folder / "generation_config.json").read_text())
    assert load(str(folder)).lm.target_ids("x")[-1] == config["eos_token_id"]
    for file in ("generation_config.json", "config.json"):
        without(taught_base, folder, "eos_token_id", file)
    refused("has no end token", str(folder))


def test_float64_keeps_the_adapter_in_float64(taught_base: Path) -> None:
    wide = load(str(taught_base), dtype="float64", config=CONFIG, lora=LORA)
    assert {t.dtype for p in (wide.state.theta, wide.state.eta) for t in p.values()} == {torch.float64}
    assert wide.solve(PROBLEM).adaptation.fallback == ""


def test_names_of_the_package() -> None:
    assert set(mass.__all__) <= {*dir(mass), *mass._HOMES, *mass._MODULES}
    assert mass.tasks.load("minimath", size=2)[0].problem
    with pytest.raises(AttributeError, match="module 'mass' has no attribute 'nothing'"):
        mass.nothing  # noqa: B018
