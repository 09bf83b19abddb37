"""The servers that the client must get on with, each with its model: the stand-in with a tiny one, and, in
`make test-vllm` alone, a real vLLM with SmolLM2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from real_vllm import NotStarted, RealVllm
from served_model import STAND_IN_ROUNDING, VLLM_ROUNDING, Contract
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_stand_in import StandIn

from mass.config import LoraConfig, ModelConfig
from mass.lm import LM, load_lm
from mass.types import Params

SMOLLM2 = Path(os.environ.get("MASS_MODELS", "~/.cache/mass-models")).expanduser() / "smollm2.gguf"
KINDS = ["stand-in", pytest.param("vLLM", marks=pytest.mark.vllm)]


@pytest.fixture(scope="session", params=KINDS)
def contract(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    real = request.param == "vLLM"
    base: Path = request.getfixturevalue("smollm2" if real else "taught_base")
    folder = tmp_path_factory.mktemp("shared")
    lm = load_lm(ModelConfig(name=str(base), dtype="float32"), LoraConfig(r=8, lora_alpha=16.0))
    server = _real(base, tmp_path_factory.mktemp("vllm")) if real else StandIn(base, str(base))
    with server:
        yield Contract(VLLM_ROUNDING if real else STAND_IN_ROUNDING, server.url, base, lm, folder)


def _real(base: Path, home: Path) -> RealVllm:
    server = RealVllm(Path(os.environ["MASS_VLLM"]).absolute(), base, home)
    try:
        server.start()
    except NotStarted as error:
        pytest.exit(str(error), returncode=1)
    return server


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file as an ordinary folder in bfloat16."""
    if "MASS_VLLM" not in os.environ:
        pytest.skip("needs a vLLM server's program in MASS_VLLM; `make test-vllm` installs one")
    if not SMOLLM2.is_file():
        pytest.skip(
            f"needs {SMOLLM2}; put SmolLM2-135M-Instruct there as a GGUF file, or name its folder in MASS_MODELS"
        )
    pytest.importorskip("gguf", reason="needs the package gguf, which reads the model's file")
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    where: dict[str, Any] = {"pretrained_model_name_or_path": SMOLLM2.parent, "gguf_file": SMOLLM2.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def adapters(contract: Contract) -> dict[str, Params]:
    """Two that change what the model says by a nat per token and more; written to the folders of their names."""
    made = {name: _strong(contract.lm, seed) for seed, name in enumerate(("one", "two"))}
    for name, adapter in made.items():
        contract.write(name, adapter)
    return made


def _strong(lm: LM, seed: int) -> Params:
    generator, start = torch.Generator().manual_seed(seed), lm.init_adapter(seed)
    noise = {name: torch.randn(t.shape, generator=generator) for name, t in start.items() if name.endswith("lora_B")}
    batch = lm.batch([lm.example_row("Compute 2 + 3.", "Adding 3 to 2 gives 5. Answer: 5")])
    with torch.no_grad():
        plain, _ = lm.token_logprobs(batch)
        for doubling in range(16):
            adapter = {name: noise[name] * 1e-3 * 2**doubling if name in noise else t for name, t in start.items()}
            if (lm.token_logprobs(batch, adapter)[0] - plain).abs().mean() >= 1:
                return adapter
    raise AssertionError("no adapter changes what the model says")
