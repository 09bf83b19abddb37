"""What is given as a model or checkpoint and is none: one line that says what it is and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hybrid_lms import REFUSED, make_hybrid
from mass.adaptation.checkpoint import init_state, save
from mass.config import AdaptConfig, LoraConfig, ModelConfig
from mass.errors import ModelError
from mass.lm import LM, load_lm
from mass.lm.architecture import find_architecture
from mass.lm.lora import LoraSites, save_peft
from mass.model import load
from mass.preflight.doctor import examine
from small_lms import TEMPLATE, make_lm, make_model, tokenizer


def base(folder: Path, model: Any = None) -> Path:
    (model if model is not None else make_model("Llama", torch.float32)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def loaded(folder: Path | str, **options: Any) -> LM:
    return load_lm(ModelConfig(name=str(folder), **options), LoraConfig(r=2))


def refused(said: str, make: Callable[[], Any]) -> None:
    with pytest.raises(ModelError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def adapter(folder: Path) -> Path:
    lm = make_lm("Llama", torch.float32)
    save_peft(lm.init_adapter(0), lm.adapters, folder, "some/base")
    return folder


def half_written(folder: Path) -> Path:
    base(folder)
    (folder / "config.json").unlink()
    return folder


def with_gguf(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model-Q4_K.gguf").write_bytes(b"GGUF" * 500)
    return folder


def checkpoint(folder: Path) -> Path:
    lm = make_lm("Llama", torch.float32)
    save(folder, lm, init_state(lm, AdaptConfig(), 0), AdaptConfig(), "mass", 3)
    return folder


def pointer_in(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        base(folder)
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 269060552\n")
        return folder

    return make


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an adapter": (adapter, "is a PEFT adapter of 'some/base'; expected a whole model; give that base, or merge"),
    "an adapter beside a base": (lambda f: adapter(base(f)), "is a PEFT adapter of 'some/base'"),
    "nothing": (empty, "is empty; expected config.json, weights and a tokenizer"),
    "half a model": (half_written, "has no config.json, only .*copy or download the model anew"),
    "a GGUF file": (with_gguf, "has no config.json; give the GGUF file in it: .*model-Q4_K.gguf"),
    "a checkpoint": (
        checkpoint,
        "is a run or a checkpoint of `mass train`; expected a base; give it as",
    ),
    "pointers to weights": (pointer_in("model.safetensors"), "^model.safetensors of .* is a Git LFS pointer, .* bytes"),
    "pointers to a tokenizer": (
        pointer_in("tokenizer.json"),
        "^tokenizer.json of .* is a Git LFS pointer.*lfs pull",
    ),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_is_no_model_is_one_line_everywhere(tmp_path: Path, what: str) -> None:
    make, said = FOLDERS[what]
    folder = str(make(tmp_path / "m"))
    refused(said, lambda: loaded(folder))
    refused(said, lambda: examine(folder))
    refused(said, lambda: find_architecture(folder))


def test_an_adapter_given_as_a_checkpoint(tmp_path: Path) -> None:
    name = str(base(tmp_path / "base"))
    refused(
        "is a PEFT adapter, without scorer and learning rates; expected a run folder of `mass train`, or one of its "
        "checkpoints$",
        lambda: load(name, adapter(tmp_path / "a")),
    )
    inside = checkpoint(tmp_path / "run") / "adapter"
    refused(f"; give '{tmp_path / 'run'}', whose adapter it is$", lambda: load(name, inside))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    folder = base(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = "weight 'model.layers.1.mlp.up_proj.weight' of .* has NaN or infinite values; expected finite ones"
    refused(said, lambda: loaded(folder))
    refused(said, lambda: examine(str(folder)))


def test_a_template_s_token_beyond_the_embedding(tmp_path: Path) -> None:
    folder = base(tmp_path / "m")
    words = tokenizer()
    rows = len(words)
    shutil.rmtree(tmp_path / "w", ignore_errors=True)
    words.save_pretrained(tmp_path / "w")
    longer = transformers.AutoTokenizer.from_pretrained(tmp_path / "w")
    longer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|over|>"]})
    longer.chat_template = TEMPLATE.replace("<{{ m.role }}>", "<|turn|>").replace("</{{ m.role }}>", "<|over|>")
    longer.save_pretrained(folder)
    said = (
        rf"the chat template of .* is of another model: it writes token {rows + 1} .'<\|over\|>'., the model has {rows}"
    )
    refused(said, lambda: loaded(folder))
    model = make_model("Llama", torch.float32)
    model.resize_token_embeddings(rows + 2)
    model.save_pretrained(folder)
    assert loaded(folder).target_ids("5")[-1] == rows + 1


def test_what_is_no_decoder(tmp_path: Path) -> None:
    refused(
        "is a BertLMHeadModel that reads whole texts, an encoder",
        lambda: loaded(base(tmp_path / "b", make_hybrid("Bert"))),
    )
    t5 = transformers.T5Config(vocab_size=len(tokenizer()), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    folder = base(tmp_path / "t", transformers.T5ForConditionalGeneration(t5))
    for make in (lambda: loaded(folder), lambda: examine(str(folder)), lambda: find_architecture(str(folder))):
        refused(r"is an encoder with a decoder \(t5\); expected a causal language model", make)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_decoded_is_refused_when_it_is_loaded(tmp_path: Path, kind: str) -> None:
    refused(f"is a {kind}ForCausalLM, wh", lambda: loaded(base(tmp_path / "m", make_hybrid(kind))))


def test_an_adapter_loads_in_peft_beside_fused_experts(tmp_path: Path) -> None:
    """Dense layers, shared experts and routed ones of one model."""
    from peft import PeftModel

    ids = torch.tensor([[5, 9, 12, 40, 7, 33]])
    for kind in ("DeepseekV3", "Qwen3Moe", "Qwen2Moe", "Mixtral", "Llama"):

        def fresh(kind: str = kind) -> Any:
            return make_hybrid(kind) if kind == "DeepseekV3" else make_model(kind, torch.float32)

        model = fresh()
        sites = LoraSites(model, LoraConfig(r=2, lora_alpha=4.0))
        generator = torch.Generator().manual_seed(1)
        params = {n: 0.3 * torch.randn(t.shape, generator=generator) for n, t in sites.init(0).items()}
        save_peft(params, sites, tmp_path / kind, "base")
        with sites.use(params):
            ours = model(ids).logits
        theirs = PeftModel.from_pretrained(fresh(), str(tmp_path / kind))(ids).logits
        assert float((ours - model(ids).logits).abs().max()) > 0.1
        assert float((ours - theirs).abs().max()) < 1e-4, kind
        described = json.loads((tmp_path / kind / "adapter_config.json").read_text())
        assert ("target_parameters" in described) == (kind in ("DeepseekV3", "Qwen3Moe", "Qwen2Moe"))
