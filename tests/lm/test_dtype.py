"""The precision of the base weights: what was asked for, what the files have, and what the device is fast at."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import mass.lm.dtype
from family_folders import make_folder
from mass.adaptation.checkpoint import describe, init_state, save
from mass.config import AdaptConfig, LoraConfig, ModelConfig
from mass.lm import load_lm
from mass.lm.architecture import PUBLISHED, find_architecture
from mass.lm.dtype import bfloat16_speed_of_cpu, choose, is_fast, own_dtype
from mass.model import load
from small_lms import make_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def speed(monkeypatch: pytest.MonkeyPatch, times_as_fast: float) -> None:
    monkeypatch.setattr(mass.lm.dtype, "bfloat16_speed_of_cpu", lambda: times_as_fast)


def test_what_is_asked_for_is_given_without_a_word() -> None:
    for name in ("float32", "bfloat16", "float16", "float64"):
        assert choose(name, torch.bfloat16, CPU) == (getattr(torch, name), "")


@pytest.mark.parametrize("own", [None, torch.float32])
def test_float32_files_stay_as_they_are_without_a_word(own: torch.dtype | None) -> None:
    assert choose("auto", own, CPU) == choose("auto", own, CUDA) == (torch.float32, "")


def test_a_cpu_keeps_bfloat16_where_it_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    speed(monkeypatch, 2.3)
    dtype, why = choose("auto", torch.bfloat16, CPU)
    assert dtype == torch.bfloat16
    assert why == "base weights in bfloat16, as its files have them, 2.3 times as fast as float32 here (dtype auto)"
    speed(monkeypatch, 1.1)
    dtype, why = choose("auto", torch.bfloat16, CPU)
    assert dtype == torch.float32
    assert "in float32: bfloat16, its files' own, is no faster here" in why
    speed(monkeypatch, 9.0)
    assert choose("auto", torch.float16, CPU)[0] == torch.float32


@pytest.mark.parametrize(
    ("capability", "dtype", "fast"),
    [((7, 5), torch.bfloat16, False), ((8, 0), torch.bfloat16, True), ((9, 0), torch.bfloat16, True),
     ((7, 0), torch.float16, True), ((6, 1), torch.float16, False)],
)  # fmt: skip
def test_a_gpu_is_fast_from_its_generation_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, fast: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert is_fast(CUDA, dtype) is fast


def test_the_speed_of_this_cpu_is_measured_once() -> None:
    bfloat16_speed_of_cpu.cache_clear()
    first = bfloat16_speed_of_cpu()
    assert 0.01 < first < 100
    assert bfloat16_speed_of_cpu() == first


def test_files_say_their_own_precision_where_the_configuration_does_not(tmp_path: Path) -> None:
    class Silent:
        dtype = None

        def get_text_config(self, **_: Any) -> Any:
            return self

    assert own_dtype(Silent(), "some/hub-name") is None
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        save_file({"norm": torch.ones(3), "w": torch.ones(2, 2, dtype=dtype)}, tmp_path / "model.safetensors")
        assert own_dtype(Silent(), str(tmp_path)) == dtype
    (tmp_path / "model.safetensors").write_bytes(b"short")
    assert own_dtype(Silent(), str(tmp_path)) is None


def test_a_model_is_loaded_so_and_that_is_said_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_folder("Llama-3", tmp_path / "m")  # bfloat16 files
    speed(monkeypatch, 2.0)
    with caplog.at_level(logging.INFO, "mass"):
        model = load(str(folder), lora=LoraConfig(r=2))
    assert (model.lm.dtype, model.lm.adapter_dtype) == ("bfloat16", torch.float32)
    assert caplog.text.count(f"{folder}: base weights in bfloat16") == 1
    assert model.origin["dtype"] == "bfloat16"
    save(tmp_path / "kept", model.lm, init_state(model.lm, AdaptConfig(), 0), AdaptConfig(), "mass", 0)
    assert describe(tmp_path / "kept").dtype == "bfloat16"
    speed(monkeypatch, 0.5)
    slow = load(str(folder), tmp_path / "kept")  # the same base: a checkpoint holds on a machine that is slow at it
    assert slow.lm.dtype == "float32"


def test_the_shipped_models_are_float32() -> None:
    assert load_lm(ModelConfig(), LoraConfig()).dtype == "float32"


def test_a_dry_run_counts_what_would_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder("Llama-3", tmp_path / "m")
    architecture = find_architecture(str(folder))
    for fast, expected in ((2.0, "bfloat16"), (0.5, "float32")):
        speed(monkeypatch, fast)
        assert architecture.build(ModelConfig(name=str(folder)), LoraConfig()).dtype == expected
    assert architecture.build(ModelConfig(name=str(folder)), LoraConfig(), elsewhere=True).dtype == "bfloat16"
    assert architecture.dtype(ModelConfig(dtype="float16"), elsewhere=True) == torch.float16
    assert {one.values["dtype"] for one in PUBLISHED.values()} == {"bfloat16"}


def test_a_folder_whose_configuration_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from small_lms import tokenizer

    speed(monkeypatch, 2.0)
    make_model("Llama", torch.bfloat16).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described.pop("dtype", None)
    described.pop("torch_dtype", None)
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert load_lm(ModelConfig(name=str(tmp_path)), LoraConfig()).dtype == "bfloat16"
