"""`mass.preflight.doctor`: healthy models pass, planted faults fail in the row that names them."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import DynamicCache

from examined import examined, failed, saved
from hybrid_lms import make_hybrid
from mass.errors import ConfigError, MassError, ModelError
from mass.lm import attention
from mass.preflight.doctor import Check, examine
from mass.preflight.doctor.loading import TEXTS, load
from small_lms import ARCHITECTURES, MIXTURES, tokenizer

examining = importlib.import_module("mass.preflight.doctor.examine")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("llama"))


# ------------------------------------------------------------------------------- healthy models


def test_a_healthy_model_passes_every_check(llama: Path) -> None:
    report = examined(llama, "eager", "sdpa", dtype="float32")
    assert failed(report) == set()
    assert report.usable
    assert report.safe == ("eager", "sdpa")
    assert report.verdict == (
        "Safe in float32: attention eager or sdpa, micro-batches, layer checkpointing. Pass --model.dtype float32."
    )
    exact = [c for c in report.checks if "derivative" in c.name or "meta-gradient" in c.name]
    assert len(exact) == 10
    assert max(c.measured for c in exact) < 1e-7, "ten times below the bound"
    assert all(check.measured is None or check.bound is not None for check in report.checks)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_family_passes(tmp_path: Path, kind: str) -> None:
    report = examined(saved(tmp_path, kind), "eager", "sdpa", dtype="float32")
    refused = {("sdpa", "runs")} if kind == "Gemma2" else set()
    assert failed(report) == refused
    assert report.safe == (("eager",) if refused else ("eager", "sdpa"))
    assert bool(report.reach.missed) == (kind in MIXTURES)


def test_the_report_repeats_and_is_json(llama: Path) -> None:
    one, two = (dataclasses.replace(examined(llama), seconds=0.0) for _ in range(2))
    assert one == two
    assert json.loads(json.dumps(one.to_dict()))["verdict"] == one.verdict


# ------------------------------------------------------------------------------- planted faults


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Any], None]], None]:
    """Change the model after it was loaded."""

    def plant(change: Callable[[Any], None]) -> None:
        def changed(*arguments: Any) -> Any:
            base = load(*arguments)
            change(base.model)
            return base

        monkeypatch.setattr(examining, "load", changed)

    return plant


def activation(module: nn.Module) -> Callable[[Any], None]:
    """In place of the last layer's."""

    def change(model: Any) -> None:
        model.model.layers[-1].mlp.act_fn = module

    return change


class OffBackward(torch.autograd.Function):
    """The identity, with a backward 1% too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # noqa: ARG004
        return 1.01 * g


class SiluOnce(torch.autograd.Function):
    """SiLU with a right first derivative that counts as constant for the second."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return silu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.detach().sigmoid()
        return g * (s * (1 + x.detach() * (1 - s)))


class Applied(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Stateful(nn.Module):
    """Drifts by a part in 10^9 with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return silu(x) * (1 + 1e-9 * self.calls)


def test_an_attention_whose_backward_is_one_percent_off(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    right = modeling_llama.eager_attention_forward

    def wrong(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        mixed, scores = right(*args, **kwargs)
        return OffBackward.apply(mixed), scores

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", wrong)
    report = examined(llama, "eager", "sdpa")
    found = failed(report)
    assert ("eager", "first derivative") in found
    assert '"attn_implementation"' not in report.verdict, "sdpa is what transformers chooses"
    assert ("sdpa", "same as others") in found, "they differ, whichever is wrong"
    assert {attention for attention, name in found if name != "same as others"} == {"eager"}
    assert report.safe == ("sdpa",)
    assert "attention sdpa," in report.verdict


def test_an_operation_whose_second_derivative_is_wrong(llama: Path, plant: Callable) -> None:
    plant(activation(Applied(SiluOnce.apply)))
    report = examined(llama)
    found = {name for _, name in failed(report)}
    assert {"second derivative", "meta-gradient of start"} <= found
    assert not {"first derivative", "same loss twice"} & found
    assert not report.usable
    assert report.verdict.startswith("Nothing is safe")
    assert all(check.way_out for check in report.checks if check.status == "fail")


def test_a_second_derivative_that_is_silently_missing(llama: Path, plant: Callable) -> None:
    """`once_differentiable` raises only where autograd walks to it, which `torch.autograd.grad` does not."""

    class Once(SiluOnce):
        backward = staticmethod(torch.autograd.function.once_differentiable(SiluOnce.backward))

    plant(activation(Applied(Once.apply)))
    assert ("eager", "second derivative") in failed(examined(llama))


def test_a_kernel_without_a_second_derivative(llama: Path, plant: Callable) -> None:
    def fused(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True)[:, 0]

    plant(activation(Applied(fused)))
    report = examined(llama)
    rows = {check.name: check for check in report.checks}
    assert rows["first derivative"].status == "pass"
    assert rows["second derivative"].status == "fail"
    assert "is not implemented" in rows["second derivative"].note
    assert "finite_difference" in rows["second derivative"].way_out
    assert not report.usable


def test_a_layer_that_keeps_state(llama: Path, plant: Callable) -> None:
    plant(activation(Stateful()))
    assert ("eager", "same loss twice") in failed(examined(llama))


def test_dropout_that_is_on(llama: Path, plant: Callable) -> None:
    plant(activation(nn.Sequential(nn.SiLU(), nn.Dropout(0.01)).train()))
    report = examined(llama)
    assert ("eager", "same loss twice") in failed(report)
    assert not report.usable


def test_a_layer_in_which_rows_mix_makes_only_micro_batches_unsafe(llama: Path, plant: Callable) -> None:
    plant(activation(Applied(lambda x: silu(x) + 1e-6 * x.mean(0, keepdim=True))))
    report = examined(llama)
    assert failed(report) == {("eager", "micro-batches")}
    assert report.usable
    assert "micro" not in report.verdict


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_kernel_that_is_wrong_in_low_precision(llama: Path, plant: Callable, dtype: str) -> None:
    assert failed(examined(llama, dtype=dtype)) == set()
    plant(activation(Applied(lambda x: silu(x) if x.dtype == torch.float64 else 1.5 * silu(x))))
    report = examined(llama, dtype=dtype)
    assert failed(report) == {("eager", f"in {dtype}")}
    assert not report.usable


def test_an_attention_without_a_second_derivative_is_refused_in_a_row(llama: Path) -> None:
    report = examined(llama, "flash_attention_2", "eager")
    assert failed(report) == {("flash_attention_2", "runs")}
    assert report.safe == ("eager",)
    (row,) = [check for check in report.checks if check.attention == "flash_attention_2"]
    assert "no exact second derivative" in row.note


# ------------------------------------------------------------------------------- what is loaded


def test_the_first_layers_come_with_their_real_weights(tmp_path: Path) -> None:
    folder = saved(tmp_path, num_hidden_layers=4, tie_word_embeddings=False)
    base = load(str(folder), None, "float32", 0)
    assert (base.loaded.layers, base.loaded.total_layers) == (2, 4)
    weights = load_file(folder / "model.safetensors")
    named = dict(base.model.named_parameters())
    same = [name for name in named if "layers" in name]
    assert len(same) == 18
    assert all(torch.equal(named[name], weights[name]) for name in same)
    head, embeddings = named["lm_head.weight"], named["model.embed_tokens.weight"]
    for ids, _ in base.rows:
        assert all(any(torch.equal(embeddings[i], row) for row in weights["model.embed_tokens.weight"]) for i in ids)
    assert head.shape == embeddings.shape
    assert head is not embeddings
    assert base.reach.layers == 28


def test_a_large_vocabulary_is_cut_to_the_tokens_in_use_and_some_more(tmp_path: Path) -> None:
    folder = saved(tmp_path, vocab_size=5000)
    base = load(str(folder), None, "float32", 0)
    assert (base.loaded.vocabulary, base.loaded.total_vocabulary) == (2048, 5000)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    words = tokenizer()
    tokens = words(f"{TEXTS[0][0]}\n")["input_ids"]
    ids, context = base.rows[0]
    assert torch.equal(base.model.get_input_embeddings().weight[ids[:context]], table[tokens])
    assert base.model.get_output_embeddings().weight is base.model.get_input_embeddings().weight, "tied as before"


KINDS = {
    "sliding and full": ("Gemma3", ["sliding_attention"] * 4 + ["full_attention"] + ["sliding_attention"], {}, 5),
    "dense, then experts": ("Qwen3Moe", None, {"mlp_only_layers": [0, 1, 2], "num_hidden_layers": 6}, 4),
    "alike": ("Qwen3", None, {"num_hidden_layers": 5}, 2),
}


@pytest.mark.parametrize("name", KINDS)
def test_as_many_layers_as_hold_each_kind(tmp_path: Path, name: str) -> None:
    kind, types, changes, expected = KINDS[name]
    if types:
        changes = {"layer_types": types, "num_hidden_layers": len(types)}
    folder = saved(tmp_path, kind, **changes)
    base = load(str(folder), None, "float32", 0)
    assert base.loaded.layers == expected
    assert len(base.model.model.layers) == expected
    assert load(str(folder), 1, "float32", 0).loaded.layers == 1


def test_a_tokenizer_that_cannot_pad_is_a_row(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    report = examined(folder)
    (row,) = [check for check in report.checks if check.status == "fail"]
    assert (row.name, row.note) == ("tokenizer", "has no pad_token")
    assert not report.usable


@pytest.mark.parametrize("kind", ["Gemma2", "Qwen3Next", "FalconH1"])
def test_text_is_that_of_generate_and_a_wrong_cache_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One whose recurrent states stay as they are when rows leave the batch, or that knows no recurrent layers."""
    make_hybrid(kind).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    base = load(str(tmp_path), None, "auto", 0)
    row = examining._same_text(examining.Bench(base, 0, lambda _: None), ["eager"])
    assert (row.name, row.status, row.measured, row.bound) == ("same text as generate", "pass", 0.0, 0.0)
    if kind == "Gemma2":
        return
    monkeypatch.setattr("mass.lm.sampling.new_cache", lambda _: DynamicCache())
    row = examining._same_text(examining.Bench(base, 0, lambda _: None), ["eager"])
    assert row.status == "fail"
    assert row.way_out


def test_a_model_that_cannot_be_decoded_is_not_called_safe(tmp_path: Path) -> None:
    make_hybrid("Mamba2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    report = examined(tmp_path)
    row = next(check for check in report.checks if check.name == "same text as generate")
    assert row.status == "fail"
    assert "keeps what it has read in a form of its own" in row.note
    assert not report.usable
    assert "Nothing is safe" in report.verdict


def test_experts_without_adapter_are_named(tmp_path: Path) -> None:
    base = load(str(saved(tmp_path, "Mixtral")), None, "float32", 0)
    assert base.reach.missed == ("mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    assert set(base.reach.names) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert 0 < base.reach.share < 0.2


def quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_causal_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))


@pytest.mark.parametrize(
    ("spoil", "layers", "kind", "text"),
    [
        (quantised, None, ConfigError, "is quantised"),
        (without_weights, None, ModelError, "cannot be loaded"),
        (no_causal_model, None, ModelError, "no model can be built"),
        (lambda _: None, 3, ConfigError, "expected 1 to 2"),
    ],
)
def test_what_cannot_be_examined_is_one_line(
    tmp_path: Path, spoil: Callable, layers: int | None, kind: type[MassError], text: str
) -> None:
    folder = saved(tmp_path)
    spoil(folder)
    with pytest.raises(kind, match=text) as caught:
        examine(str(folder), layers=layers)
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist() -> None:
    with pytest.raises(ModelError, match="does not exist"):
        examine("./nowhere")


# ------------------------------------------------------------------------------- the verdict


def test_one_row_that_fails_makes_its_attention_unsafe(llama: Path) -> None:
    report = examined(llama)
    for index, check in enumerate(report.checks):
        spoiled = dataclasses.replace(check, status="fail")
        checks: list[Check] = [*report.checks[:index], spoiled, *report.checks[index + 1 :]]
        assert dataclasses.replace(report, checks=tuple(checks)).usable is not check.needed


def test_a_fault_in_the_fused_attention_is_found_though_the_texts_are_short(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attention._second_derivative

    def wrong(*args: Any) -> Any:
        return tuple(None if g is None else 1.01 * g for g in right(*args))

    monkeypatch.setattr(attention, "_second_derivative", wrong)
    report = examined(llama, "eager", "sdpa", dtype="float32")
    assert report.safe == ("eager",)
    assert ("sdpa", "second derivative") in failed(report)
