"""What a server answers to each request that our client sends or might: the same of the stand-in as of a real vLLM."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from served_model import Contract

from mass.config import LoraConfig
from small_lms import random_adapter

LOAD, UNLOAD, COMPLETE, MODELS = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/completions",
    "/v1/models",
)


def completion(contract: Contract, **changes: Any) -> dict[str, Any]:
    """As our client asks (`mass.lm.remote.answers.request_body`), greedily for four tokens."""
    lm = contract.lm
    plain = {
        "model": str(contract.base), "prompt": lm.solve_prompt("Compute 1 + 1."), "max_tokens": 4, "n": 1, "seed": 1,
        "temperature": 0.0, "top_p": 1.0, "top_k": -1, "stop": [], "stop_token_ids": sorted(lm.end_ids),
        "return_token_ids": True, "logprobs": 1,
    }  # fmt: skip
    return {**plain, **changes}


def edited(contract: Contract, name: str, edit: Callable[[Path], None]) -> Path:
    """A copy of adapter `one`, changed."""
    folder = contract.folder / name
    shutil.copytree(contract.folder / "one", folder, dirs_exist_ok=True)
    edit(folder)
    return folder


def with_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def cut_short(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def renamed(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({key.replace("down_proj", "sideways_proj"): t for key, t in load_file(file).items()}, file)


def test_loading_and_unloading_an_adapter(contract: Contract) -> None:
    folder = contract.folder / "one"
    answer = contract.post(LOAD, {"lora_name": "mine", "lora_path": str(folder)})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'mine' added successfully.")
    base, card = contract.get(MODELS).json()["data"]
    assert (card["id"], card["root"], card["parent"]) == ("mine", str(folder), base["id"])
    again = contract.post(LOAD, {"lora_name": "mine", "lora_path": str(folder)})
    assert again.status_code == 400
    assert "'mine' has already been loaded." in again.json()["error"]["message"]
    assert contract.post(COMPLETE, completion(contract, model="mine")).json()["model"] == "mine"
    gone = contract.post(UNLOAD, {"lora_name": "mine"})
    assert (gone.status_code, gone.text) == (200, "Success: LoRA adapter 'mine' removed successfully.")
    assert contract.loaded() == []
    answer = contract.post(COMPLETE, completion(contract, model="mine"))
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("The model `mine` does not exist.")


ADAPTERS: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "no such folder": (shutil.rmtree, 404, "Loading lora x failed: No adapter found for "),
    "no configuration": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        404,
        "Loading lora x failed: No adapter found for ",
    ),
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        500,
        "Call to add_lora method failed: Worker failed with error '.*doesn't contain tensors'",
    ),
    "half the weights": (cut_short, 500, "Worker failed with error 'Error while deserializing header"),
    "half the configuration": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        500,
        "Worker failed with error 'Expecting property name enclosed in double quotes",
    ),
    "another kind": (with_config(use_dora=True), 500, "Worker failed with error 'vLLM does not yet support DoRA.'"),
    "too wide": (with_config(r=32), 500, "Worker failed with error 'LoRA rank 32 is greater than max_lora_rank 16.'"),
    "an unknown layer": (renamed, 500, "expected target modules in {.*} but received .*sideways_proj"),
}


@pytest.mark.parametrize("wrong", ADAPTERS)
def test_an_adapter_that_it_does_not_load(contract: Contract, wrong: str) -> None:
    edit, status, said = ADAPTERS[wrong]
    folder = edited(contract, f"wrong {wrong}".replace(" ", "-"), edit)
    answer = contract.post(LOAD, {"lora_name": "x", "lora_path": str(folder)})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == status
    assert re.search(said, error["message"])
    assert str(folder) not in error["message"]  # vLLM hides paths: our own error must name it
    assert contract.loaded() == []


def test_a_rank_that_is_no_power_of_two_is_loaded(contract: Contract) -> None:
    odd = contract.lm.with_lora(LoraConfig(r=12, lora_alpha=16.0))
    folder = contract.write("odd", random_adapter(odd, scale=0.01), odd)
    assert contract.post(LOAD, {"lora_name": "odd", "lora_path": str(folder)}).status_code == 200
    assert contract.post(UNLOAD, {"lora_name": "odd"}).status_code == 200


def refusals(contract: Contract) -> dict[str, tuple[str, Any, int, str]]:
    """Path, body, status, message."""
    context = contract.get(MODELS).json()["data"][0]["max_model_len"]
    beyond, base = int(contract.lm.model.config.vocab_size), str(contract.base)

    def ask(**changes: Any) -> dict[str, Any]:
        return completion(contract, **changes)

    return {
        "load without a name": (LOAD, {"lora_path": "/x"}, 400, "'loc': 'body.lora_name', 'msg': 'Field required'"),
        "load an empty name": (LOAD, {"lora_name": "", "lora_path": "/x"}, 400, "must be provided."),
        "load as the base": (LOAD, {"lora_name": base, "lora_path": "/x"}, 400, "conflicts with a served base model."),
        "unload the unknown": (UNLOAD, {"lora_name": "u"}, 404, "The lora adapter 'u' cannot be found."),
        "unload nothing": (UNLOAD, {}, 400, "'loc': 'body.lora_name', 'msg': 'Field required'"),
        "unload an empty name": (UNLOAD, {"lora_name": ""}, 400, "needs to be provided to unload"),
        "unknown model": (COMPLETE, ask(model="u"), 404, "The model `u` does not exist. Valid aliases: "),
        "no prompt": (COMPLETE, ask(prompt=[]), 400, "You must pass at least one prompt"),
        "unknown token": (COMPLETE, ask(prompt=[5, beyond]), 400, f"Token id {beyond} is out of vocabulary"),
        "no tokens": (COMPLETE, ask(max_tokens=0), 400, "max_tokens must be at least 1, got 0."),
        "more than the context": (
            COMPLETE,
            ask(max_tokens=context + 1),
            400,
            f"max_tokens={context + 1} cannot be greater than max_model_len={context}.",
        ),
        "a prompt of the context": (COMPLETE, ask(prompt=[5] * context), 400, "max_tokens must be at least 1, got 0."),
        "a prompt beyond": (
            COMPLETE,
            ask(prompt=[5] * (context + 99)),
            400,
            f"This model's maximum context length is {context} tokens. However, your prompt contains {context + 99} "
            "input tokens",
        ),
    }


def test_what_it_refuses(contract: Contract) -> None:
    for case, (path, body, status, said) in refusals(contract).items():
        answer = contract.post(path, body)
        assert (case, answer.status_code) == (case, status)
        assert said in answer.json()["error"]["message"]
    assert contract.get("/v1/nothing").json() == {"detail": "Not Found"}
    assert contract.get(COMPLETE).status_code == 405


def test_what_a_completion_holds(contract: Contract) -> None:
    body = completion(contract)
    answer = contract.post(COMPLETE, body).json()
    (choice,) = answer["choices"]
    assert answer["model"] == str(contract.base)
    assert choice["prompt_token_ids"] == body["prompt"]
    assert len(choice["token_ids"]) == len(choice["logprobs"]["token_logprobs"]) == 4
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert choice["text"] == contract.lm.tokenizer.decode(choice["token_ids"])
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["usage"]["prompt_tokens"] == len(body["prompt"])
    without = contract.post(COMPLETE, completion(contract, logprobs=None, return_token_ids=False)).json()["choices"][0]
    assert without["logprobs"] is None
    assert without.get("token_ids") is None


def test_why_it_stopped(contract: Contract) -> None:
    (whole,) = contract.post(COMPLETE, completion(contract)).json()["choices"]
    third, text = whole["token_ids"][2], whole["text"].strip()[-1]
    assert third not in whole["token_ids"][:2]
    (by_token,) = contract.post(COMPLETE, completion(contract, stop_token_ids=[third])).json()["choices"]
    assert (by_token["finish_reason"], by_token["stop_reason"]) == ("stop", third)
    assert by_token["token_ids"] == whole["token_ids"][:3]
    (by_text,) = contract.post(COMPLETE, completion(contract, stop=[text])).json()["choices"]
    assert (by_text["finish_reason"], by_text["stop_reason"]) == ("stop", text)
    assert by_text["token_ids"] == whole["token_ids"][: len(by_text["token_ids"])]
    assert text not in by_text["text"]


def test_at_the_end_of_the_context_it_gives_what_there_is_room_for(contract: Contract) -> None:
    context = contract.get(MODELS).json()["data"][0]["max_model_len"]
    body = completion(contract)
    prompt = (body["prompt"] * 99)[: context - 2]
    (choice,) = contract.post(COMPLETE, {**body, "prompt": prompt, "stop_token_ids": []}).json()["choices"]
    assert 1 <= len(choice["token_ids"]) <= 2
    assert choice["finish_reason"] == "length" or len(choice["token_ids"]) == 1
