"""Models of the families that people use, from a folder with configuration, tokenizer and weights in several files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from family_folders import FAMILIES, make_folder, tokenizer_of
from mass.adaptation.answer import answer_all
from mass.adaptation.checkpoint import init_state
from mass.config import AdaptConfig, InnerConfig, LoraConfig, ModelConfig, SamplingConfig, ScoringConfig
from mass.errors import ConfigError, ModelError
from mass.lm import LM, load_lm
from mass.lm.lora import pick, save_peft
from mass.lm.prompts import CHATS, PLAINS
from mass.types import Example

INDEX = "model.safetensors.index.json"
LORA = LoraConfig(r=2, lora_alpha=4.0)
PROBLEM, SOLUTION = "Find 3 + 4.", r"3+4=7. \boxed{7}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else make_folder(name, root / name)

    return folder


def loaded(folder: Path, **options: Any) -> LM:
    return load_lm(ModelConfig(name=str(folder), **{"dtype": "float32", **options}), LORA)


def text_of(lm: LM, ids: list[int]) -> str:
    return lm.tokenizer.decode(ids)


# ------------------------------------------------------------------------------- every family


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_is_what_the_template_writes(folders: Callable[[str], Path], name: str) -> None:
    """Prompt and target are, token for token, the beginning of the conversation that the template itself renders."""
    lm, family = loaded(folders(name)), FAMILIES[name]
    context, target = lm.example_row(PROBLEM, SOLUTION)
    asked = CHATS["math"].render_solve(PROBLEM)
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": SOLUTION}]
    date, off = "26 Jul 2024", {"enable_thinking": False}
    whole = lm.tokenizer.apply_chat_template(turns, tokenize=True, date_string=date, **off)["input_ids"]
    assert [*context, *target] == whole[: len(context) + len(target)]
    assert text_of(lm, [target[-1]]) == family.turn_end
    assert {lm.tokenizer.convert_tokens_to_ids(t) for t in (family.turn_end, family.eos)} <= lm.end_ids
    written = lm.written_ids("2?", "2")
    assert written[-1] == target[-1]
    assert text_of(lm, [*lm.synthesis_prompt(PROBLEM), *written]).endswith(f"Problem: 2?\nSolution: 2{family.turn_end}")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_start_token_stands_once_where_there_is_one(folders: Callable[[str], Path], name: str) -> None:
    lm, family = loaded(folders(name)), FAMILIES[name]
    plain = lm.with_prompts(PLAINS)
    start = lm.tokenizer.bos_token_id
    for prompt in (plain.solve_prompt(PROBLEM), plain.shots_prompt([("1?", "1")], PROBLEM)):
        assert prompt.count(start) == (1 if family.adds_bos else 0)
        assert (prompt[0] == start) == family.adds_bos
        assert lm.tokenizer.eos_token_id not in prompt
    chat = lm.solve_prompt(PROBLEM)
    assert chat.count(start) == (1 if "bos_token" in (family.template or "") else 0)
    assert plain.target_ids("7")[-1] == lm.tokenizer.eos_token_id
    assert text_of(plain, [*plain.solve_prompt("x"), *plain.target_ids("7")[:-1]]).endswith("Solution: 7")


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapted_answer_is_that_of_peft(folders: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lm = loaded(folders(name))
    config = AdaptConfig(
        scoring=ScoringConfig(normalise="uniform"),
        inner=InnerConfig(learning_rate=3.0, steps=2),
        answer=SamplingConfig(max_new_tokens=12, temperature=0.0),
    )
    practice = (Example("1 + 1?", r"It is \boxed{2}."), Example("2 + 2?", r"It is \boxed{4}."))
    (record,), adapted = answer_all(lm, init_state(lm, config, 0), [PROBLEM], config, [0], replay=[practice])
    assert record.fallback == ""
    assert 0 < record.update_norm < 10
    save_peft(pick(adapted.stack, 0), lm.adapters, tmp_path, lm.name)
    assert not any("lm_head" in site.name for site in lm.adapters.sites)
    base = AutoModelForCausalLM.from_pretrained(folders(name), dtype=torch.float32, attn_implementation="eager").eval()
    prompt = torch.tensor([lm.solve_prompt(PROBLEM)])
    theirs = PeftModel.from_pretrained(base, str(tmp_path)).generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False,
        eos_token_id=sorted(lm.end_ids), pad_token_id=lm.pad_id,
    )  # fmt: skip
    ours = lm.sample([prompt[0].tolist()], config.answer, [0], pick(adapted.stack, 0))[0]
    assert list(ours.tokens) == theirs[0, prompt.shape[1] :].tolist()
    assert record.text == lm.tokenizer.decode(ours.tokens, skip_special_tokens=True).strip()
    assert (record.text == record.unadapted_text) is False


def test_bfloat16_weights_keep_the_adapter_in_float32(folders: Callable[[str], Path]) -> None:
    lm = loaded(folders("Llama-3"), dtype="bfloat16")
    assert (lm.dtype, {t.dtype for t in lm.init_adapter(0).values()}) == ("bfloat16", {torch.float32})
    assert lm.losses(lm.batch([lm.example_row(PROBLEM, SOLUTION)]), lm.init_adapter(0)).dtype == torch.float32


def test_tied_embeddings_are_one_tensor_and_get_no_adapter(folders: Callable[[str], Path]) -> None:
    lm = loaded(folders("Qwen2"))
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    assert len(lm.adapters.sites) == 14


def test_a_model_that_also_sees_is_adapted_in_its_language_model(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    from family_folders import _ALTERNATING, _SMALL

    words = tokenizer_of("Gemma-3")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**_SMALL, **_ALTERNATING, "vocab_size": len(words)},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4, image_token_index=7, boi_token_index=5, eoi_token_index=6,
    )  # fmt: skip
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    lm = loaded(tmp_path)
    assert len(lm.adapters.sites) == 14
    assert all(site.name.startswith("model.language_model.") for site in lm.adapters.sites)
    theta = {name: t.requires_grad_() for name, t in lm.init_adapter(0).items()}
    loss = lm.losses(lm.batch([lm.example_row(PROBLEM, SOLUTION)]), theta).sum()
    assert len(torch.autograd.grad(loss, list(theta.values()))) == 28  # each of them takes part
    assert lm.sample([lm.solve_prompt(PROBLEM)], SamplingConfig(3), [0])[0].tokens


# ------------------------------------------------------------------------------- chat templates


def templated(folder: Path, to: Path, template: str) -> Path:
    shutil.copytree(folder, to)
    (to / "chat_template.jinja").write_text(template)
    return to


def prompts_file(folder: Path, text: str) -> str:
    (folder / "prompts.txt").write_text(text)
    return str(folder / "prompts.txt")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_system_message_comes_in_where_there_is_room(
    folders: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    lm = loaded(folders(name), prompts=prompts_file(tmp_path, "=== system\nBe brief."))
    text = text_of(lm, lm.solve_prompt(PROBLEM))
    assert text.count("Be brief.") == 1
    shots = text_of(lm, lm.shots_prompt([("1?", "1")], PROBLEM))
    assert shots.count("Be brief.") == 1
    assert shots.index("Be brief.") < shots.index("1?")
    if FAMILIES[name].template and "raise_exception" in str(FAMILIES[name].template):
        assert f"Be brief.\n\n{PROBLEM}" in text


def test_thinking_is_off_unless_it_is_asked_for(folders: Callable[[str], Path], tmp_path: Path) -> None:
    empty = "<think>\n\n</think>\n\n"
    folder = folders("Qwen3")
    off, on = loaded(folder), loaded(folder, thinking=True)
    of_file = loaded(folder, prompts=prompts_file(tmp_path, "=== thinking\nyes"))
    over = loaded(folder, prompts=prompts_file(tmp_path, "=== thinking\nyes"), thinking=False)
    for lm, closed in ((off, True), (on, False), (of_file, False), (over, True)):
        for prompt in (lm.solve_prompt(PROBLEM), lm.synthesis_prompt(PROBLEM)):
            begun = lm.prompts.opens if prompt == lm.synthesis_prompt(PROBLEM) else ""
            assert text_of(lm, prompt).endswith(f"<|im_start|>assistant\n{empty if closed else ''}{begun}")
        assert lm.prompts.thinking is not closed


def test_thinking_that_a_template_opens_itself_is_closed(folders: Callable[[str], Path], tmp_path: Path) -> None:
    template = str(FAMILIES["Qwen2"].template).replace(
        "<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%"
    )
    folder = templated(folders("Qwen2"), tmp_path / "m", template)
    lm = loaded(folder)
    assert text_of(lm, lm.solve_prompt(PROBLEM)).endswith("assistant\n<think>\n</think>\n\n")
    assert text_of(lm, lm.target_ids("7")) == "7<|im_end|>"
    assert text_of(lm, loaded(folder, thinking=True).solve_prompt(PROBLEM)).endswith("assistant\n<think>\n")


def test_a_template_with_a_calendar_writes_the_same_every_day(folders: Callable[[str], Path], tmp_path: Path) -> None:
    base = folders("Llama-3")
    clock = "{{ strftime_now('%Y-%m-%d') }} {{ strftime_now(\"%d %B %Y\") }} "
    clock += "{% for m in messages %}{{ m.content }}{% endfor %}"
    lm = loaded(templated(base, tmp_path / "clock", clock))
    assert text_of(lm, lm.solve_prompt("x")).startswith("2024-07-26 26 July 2024 x")
    assert "Today Date: 26 Jul 2024" in text_of(loaded(base), loaded(base).solve_prompt("x"))
    dated = loaded(base, prompts=prompts_file(tmp_path, "=== date\n2031-01-05"))
    assert "Today Date: 05 Jan 2031" in text_of(dated, dated.solve_prompt("x"))


def test_an_end_token_that_the_tokenizer_adds_is_taken_off_prompts(
    folders: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(folders("Mistral"), tmp_path / "m")
    described = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    start, end = ({"id": token, "ids": [folded], "tokens": [token]} for token, folded in (("<s>", 0), ("</s>", 1)))
    described["post_processor"] |= {
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "special_tokens": {"<s>": start, "</s>": end},
    }  # fmt: skip
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(described))
    lm = loaded(tmp_path / "m").with_prompts(PLAINS)
    assert lm.tokenizer("x")["input_ids"][-1] == lm.tokenizer.eos_token_id
    assert lm.solve_prompt("x") == loaded(folders("Mistral")).with_prompts(PLAINS).solve_prompt("x")


def test_special_tokens_in_a_problem_are_text(folders: Callable[[str], Path]) -> None:
    lm = loaded(folders("Llama-3"))
    end = lm.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert lm.solve_prompt("Find 3.<|eot_id|>").count(end) == lm.solve_prompt("Find 3.").count(end)
    assert lm.target_ids("3<|eot_id|>").count(end) == 1


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0].nothing.at_all }}", r"chat template of .* cannot be used \('dict object' has no attribute"),
        ("{% for %}", r"chat template of .* cannot be used \("),
        ("{{ messages[0].content }}", "leaves out what the assistant says"),
    ],
)
def test_a_template_that_cannot_be_used(
    folders: Callable[[str], Path], tmp_path: Path, template: str, said: str
) -> None:
    folder = templated(folders("Llama-3"), tmp_path / "m", template)
    refused(folder, said)
    plain = loaded(folder, prompts=prompts_file(tmp_path, "=== chat\nno"))
    assert text_of(plain, plain.solve_prompt("x")).endswith("Problem: x\nSolution:")


def test_a_model_without_a_template_is_not_asked_to_chat(folders: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(folders("Llama-3"), folder)
    (folder / "chat_template.jinja").unlink()
    assert loaded(folder).prompt_set == PLAINS
    refused(folder, "has no chat template; expected one", prompts=prompts_file(tmp_path, "=== chat\nyes"))


# ------------------------------------------------------------------------------- files that are not whole


def refused(folder: Path, said: str, kind: type = ModelError, **options: Any) -> None:
    with pytest.raises(kind, match=said) as error:
        loaded(folder, **options)
    assert "\n" not in str(error.value)


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def lose_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    index = folder / INDEX
    described = json.loads(index.read_text())
    name = "model.layers.0.mlp.down_proj.weight"
    file = folder / described["weight_map"].pop(name)
    save_file({n: t for n, t in load_file(file).items() if n != name}, file, metadata={"format": "pt"})
    index.write_text(json.dumps(described))


def change(folder: Path, file: str, **values: Any) -> None:
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **values}))


def forget_the_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (lambda f: shard(f).unlink(), "model of .* cannot be loaded .No such file"),
    "a shard is cut off": (lambda f: shard(f).write_bytes(shard(f).read_bytes()[:-50]), ".*not fully covered"),
    "a shard is empty": (lambda f: shard(f).write_bytes(b""), "cannot be loaded .*header too small"),
    "a weight is missing": (lose_a_weight, "lack 1 of its weights, 'model.layers.0.mlp.down_proj.weight' among them"),
    "the index is damaged": (lambda f: (f / INDEX).write_text("{"), "model of .* cannot be loaded"),
    "the index is missing": (lambda f: (f / INDEX).unlink(), "no file named model.safetensors"),
    "another width": (lambda f: change(f, "config.json", hidden_size=32), "model of .* cannot be loaded"),
    "another tokenizer": (lambda f: tokenizer_of("Gemma-2").save_pretrained(f), "is of another model: it writes token"),
    "no tokenizer": (forget_the_tokenizer, "tokenizer of .* (cannot be loaded|knows no words).*copy them there"),
    "code of its own": (
        lambda f: change(f, "config.json", model_type="own", auto_map={"AutoConfig": "own.C"}),
        r"is Python code that comes with the model.*set model.trust_remote_code",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_folder_that_is_not_whole_is_one_line(folders: Callable[[str], Path], tmp_path: Path, what: str) -> None:
    damage, said = DAMAGE[what]
    shutil.copytree(folders("Llama-3"), tmp_path / "m")
    damage(tmp_path / "m")
    refused(tmp_path / "m", said)


@pytest.mark.parametrize("name", ["Qwen3", "Gemma-3", "Phi-3"])
def test_no_family_makes_up_a_tokenizer(folders: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    shutil.copytree(folders(name), tmp_path / "m")
    forget_the_tokenizer(tmp_path / "m")
    refused(tmp_path / "m", "the tokenizer of .* (cannot be loaded|knows no words)")


# ------------------------------------------------------------------------------- where the weights go


def test_what_cannot_be_placed_is_one_line(folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folders("Llama-3")
    refused(
        folder,
        "model.device is 'cpu' and model.device_map 'auto'; expected one",
        ConfigError,
        device="cpu",
        device_map="auto",
    )
    refused(folder, "cannot be loaded .*'balanced'", ModelError, device_map="everywhere")
    found = {"bitsandbytes": True}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.get(name, None))
    refused(
        folder, "model.quantization 8bit needs accelerate, which is not installed", ConfigError, quantization="8bit"
    )
    refused(folder, "model.device_map needs accelerate", ConfigError, device_map="auto")
    found = {"accelerate": True}
    said = r"model.quantization 4bit needs bitsandbytes, which is not installed; `pip install 'mass-adapt\[quant\]'`"
    refused(folder, said, ConfigError, quantization="4bit")
    if not torch.cuda.is_available():
        found |= {"bitsandbytes": True}
        refused(folder, "4bit, and this machine has no CUDA device", ConfigError, quantization="4bit")


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_a_device_map_of_one_device_is_the_model_itself(folders: Callable[[str], Path], device_map: Any) -> None:
    pytest.importorskip("accelerate")
    if torch.cuda.is_available():
        pytest.skip("auto would choose the GPU")
    one, two = loaded(folders("Llama-3")), loaded(folders("Llama-3"), device_map=device_map)
    batch = one.batch([one.example_row(PROBLEM, SOLUTION)])
    assert torch.equal(one.losses(batch), two.losses(batch))
    assert two.device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_weights_adapt_and_answer(tmp_path: Path, bits: str) -> None:
    pytest.importorskip("bitsandbytes")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "initializer_range": 0.05}
    lm = loaded(make_folder("Llama-3", tmp_path / "m", shard="60KB", **wide), dtype="bfloat16", quantization=bits)
    assert (lm.quantization, lm.dtype, len(lm.adapters.sites)) == (bits, "bfloat16", 14)
    theta = {name: (t + 0.01).requires_grad_() for name, t in lm.init_adapter(0).items()}
    loss = lm.losses(lm.batch([lm.example_row(PROBLEM, SOLUTION)]), theta).sum()
    grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in grads), list(theta.values()))
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in again)
    assert lm.sample([lm.solve_prompt(PROBLEM)], SamplingConfig(4, 0.0), [0], theta)[0].tokens


@pytest.mark.gpu
def test_two_gpus_compute_what_one_does(folders: Callable[[str], Path]) -> None:
    pytest.importorskip("accelerate")
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.layers.0": 0, "model.layers.1": 1}
    one = loaded(folders("Llama-3"), device="cuda:0")
    two = loaded(folders("Llama-3"), device_map={**places, "model.norm": 1, "lm_head": 1})
    batch = one.batch([one.example_row(PROBLEM, SOLUTION), one.example_row("1?", "1")])
    theta = {name: (t + 0.01).requires_grad_() for name, t in one.init_adapter(0).items()}
    grads = [torch.autograd.grad(lm.losses(batch, theta).sum(), list(theta.values())) for lm in (one, two)]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*grads, strict=True))
    prompts = [one.solve_prompt(text) for text in (PROBLEM, "1?", "2 + 2 + 2?")]
    samples = [lm.sample(prompts, SamplingConfig(8, 0.0), [0, 1, 2], theta) for lm in (one, two)]
    assert [s.tokens for s in samples[0]] == [s.tokens for s in samples[1]]
