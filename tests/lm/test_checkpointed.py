"""Models with checkpointed layers and fused attention: their meta-gradients are those of the plain model."""

from __future__ import annotations

import copy
import gc
import threading
from contextlib import nullcontext
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mass.config import LoraConfig
from mass.errors import ConfigError, ModelError
from mass.lm import LM, attention, layers
from mass.lm.attention import NAME
from mass.lm.layers import checkpoint_layers
from mass.lm.lora import LoraSites
from mass.lm.prompts import PLAIN
from mass.metagrad import SGD, adapt
from mass.metagrad.layerwise import checkpoint, checkpointing
from mass.types import Batch, Params
from small_lms import (
    ARCHITECTURES,
    float64_throughout,
    make_lm,
    make_model,
    prompt_ids,
    random_adapter,
    sample,
    tokenizer,
)

ROWS = [("Compute 3 + 4.", "3+4=7."), ("x", "5"), ("A longer problem of 12 words", "Answer: 12 34")]


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the short sequences here."""
    monkeypatch.setattr(attention, "FUSED_FROM", {})


def batch_of(lm: LM) -> Batch:
    return lm.batch([lm.example_row(*pair) for pair in ROWS])


def lm_of(kind: str, kernel: str = "sdpa", **changes: Any) -> LM:
    if kind == "Gemma2":  # its scores are capped, which fused kernels do not do
        kernel = "eager"
    return float64_throughout(make_lm(kind, attn_implementation=kernel, **changes))


def meta_gradient(lm: LM, *, checkpointed: bool) -> list[Tensor]:
    """Of the outer loss, for the weights and the start."""
    batch = batch_of(lm)
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    start = {name: p.requires_grad_() for name, p in random_adapter(lm, scale=0.1).items()}

    def losses(params: Params, index: Tensor | None) -> Tensor:
        with checkpointing(checkpointed):
            return lm.losses(batch if index is None else batch.select(index), params)

    adapted = adapt(losses, start, weights, SGD(lr=0.05), 2)
    outer = losses(adapted, torch.tensor([2, 0])).sum()
    return [outer.detach(), *torch.autograd.grad(outer, (weights, *start.values()), materialize_grads=True)]


def assert_equal(ours: list[Tensor], plain: list[Tensor], error: float = 1e-9) -> None:
    for a, b in zip(ours, plain, strict=True):
        assert float((a - b).detach().norm()) <= error * float(b.detach().norm())


# ------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_meta_gradients_are_those_of_the_plain_model(kind: str) -> None:
    plain = meta_gradient(lm_of(kind, "eager"), checkpointed=False)
    assert any(bool(g.any()) for g in plain[2:])
    for kernel, checkpointed in product(("sdpa", "eager"), (False, True)):
        assert_equal(meta_gradient(lm_of(kind, kernel), checkpointed=checkpointed), plain)


def test_every_layer_of_every_family_is_checkpointed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    original = layers._call
    monkeypatch.setattr(layers, "_call", lambda layer, *rest: (calls.append(layer), original(layer, *rest))[1])
    for kind in ARCHITECTURES:
        lm = make_lm(kind)
        adapter = {name: p.requires_grad_() for name, p in random_adapter(lm).items()}
        with checkpointing(True):
            lm.losses(batch_of(lm), adapter)
            lm.hidden_states(batch_of(lm), adapter)
        assert len(calls) == 4, kind
        calls.clear()


def functional_gradient(kind: str, kernel: str, *, wrapped: bool) -> list[Tensor]:
    """All weights of a model are learned in the inner loop, through `functional_call`; no LoRA of ours."""
    lm = float64_throughout(make_lm(kind, attn_implementation=kernel, initializer_range=0.1))
    model, batch = lm.model, batch_of(lm)
    start = {name: p.detach().requires_grad_() for name, p in model.named_parameters() if p.is_floating_point()}
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64, requires_grad=True)

    def losses(params: Params, index: Tensor | None) -> Tensor:
        ids = batch.input_ids if index is None else batch.input_ids[index]
        with checkpointing(wrapped):
            logits = torch.func.functional_call(model, params, kwargs={"input_ids": ids, "use_cache": False}).logits
        return -logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).mean((1, 2))

    adapted = adapt(losses, start, weights, SGD(lr=0.02), 2)
    outer = losses(adapted, None).sum()
    return [outer.detach(), *torch.autograd.grad(outer, (weights, *start.values()), materialize_grads=True)]


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma3", "Qwen3Moe"])
def test_a_model_under_functional_call_too(kind: str) -> None:
    assert_equal(functional_gradient(kind, "sdpa", wrapped=True), functional_gradient(kind, "eager", wrapped=False))


def test_frozen_tensors_under_functional_call_are_those_of_the_call() -> None:
    """The model's own weights differ from the frozen ones that stand in for them, and are back at recomputation."""
    model = make_model("Llama")
    checkpoint_layers(model)
    others = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    name = "model.layers.0.mlp.up_proj.weight"
    ids = torch.arange(12).reshape(2, 6)

    def gradient(wrapped: bool) -> Tensor:
        others[name].requires_grad_()
        with checkpointing(wrapped):
            logits = torch.func.functional_call(model, others, kwargs={"input_ids": ids, "use_cache": False}).logits
        return torch.autograd.grad(logits.square().sum(), others[name])[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-10, atol=1e-10)


def test_a_recomputation_that_forgets_the_lora_parameters_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient() -> list[Tensor]:
        lm = lm_of("Llama")
        adapter = {name: p.requires_grad_() for name, p in random_adapter(lm).items()}
        with checkpointing(True):
            loss = lm.losses(batch_of(lm), adapter).sum()
        return list(torch.autograd.grad(loss, list(adapter.values()), allow_unused=True, materialize_grads=True))

    right = gradient()
    monkeypatch.setattr(layers, "_lora_of", lambda sites, name: lambda: (sites.under(name)(), nullcontext))
    wrong = gradient()
    with pytest.raises(AssertionError):
        assert_equal(wrong, right, error=0.1)


def test_recomputation_inside_the_use_of_another_adapter() -> None:
    lm = lm_of("Llama")
    batch, adapter = batch_of(lm), {name: p.requires_grad_() for name, p in random_adapter(lm).items()}
    expected = torch.autograd.grad(lm.losses(batch, adapter).sum(), list(adapter.values()))
    with checkpointing(True):
        loss = lm.losses(batch, adapter).sum()
    with lm.adapters.use(random_adapter(lm, seed=5)):
        assert_equal(list(torch.autograd.grad(loss, list(adapter.values()))), list(expected), 1e-12)


def test_stacks_and_rows_of_adapters() -> None:
    lm = lm_of("Llama")
    batch = batch_of(lm)
    stack = {name: p.requires_grad_() for name, p in random_adapter(lm, count=2).items()}
    results = []
    for flag in (False, True):
        with checkpointing(flag):
            loss = lm.losses(batch, stack, torch.tensor([1, 0, 1])).sum()
        first = torch.autograd.grad(loss, list(stack.values()), create_graph=True)
        results.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), list(stack.values()))])
    assert_equal(*results, error=1e-11)


# ------------------------------------------------------------------------------- memory


class Saved:
    """A tensor that a graph holds; counts bytes of different storages at once, those that last apart."""

    live: ClassVar[dict[int, int]] = {}
    peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.size = tensor.numel() * tensor.element_size()
        Saved.live[id(self)] = self.size
        Saved.peak = max(Saved.peak, sum(Saved.live.values()))

    def __del__(self) -> None:
        Saved.live.pop(id(self), None)


def peak_bytes(depth: int, *, checkpointed: bool) -> int:
    lm = make_lm("Llama", torch.float32, num_hidden_layers=depth, targets=("q_proj",))
    batch, adapter = batch_of(lm), {name: p.requires_grad_() for name, p in random_adapter(lm).items()}
    gc.collect()
    Saved.live, Saved.peak = {}, 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor), checkpointing(checkpointed):
        loss = lm.losses(batch, adapter).sum()
        first = torch.autograd.grad(loss, list(adapter.values()), create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), list(adapter.values()))
    return Saved.peak


def test_saved_bytes_grow_with_depth_by_the_inputs_of_layers_alone() -> None:
    growth = {
        flag: (peak_bytes(10, checkpointed=flag) - peak_bytes(4, checkpointed=flag)) / 6 for flag in (True, False)
    }
    lm = make_lm("Llama", torch.float32)
    hidden = batch_of(lm).input_ids.numel() * lm.width * 4
    lora = 4 * 2 * (16 + 16)
    assert growth[True] <= 3 * hidden + 4 * lora, "its input, the same again and its cotangent in the double backward"
    assert growth[False] > 10 * growth[True]


# ------------------------------------------------------------------------------- neighbours


def test_two_models_in_two_threads_with_an_adapter_each() -> None:
    lms = [lm_of("Llama", seed=seed) for seed in (0, 1)]
    shared = [*lms, lms[0]]
    adapters = [{n: p.requires_grad_() for n, p in random_adapter(lm, seed=i).items()} for i, lm in enumerate(shared)]

    def gradient(i: int) -> list[Tensor]:
        lm, values = shared[i], list(adapters[i].values())
        with checkpointing(i != 1):
            first = torch.autograd.grad(lm.losses(batch_of(lm), adapters[i]).sum(), values, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), values)]

    alone = [gradient(i) for i in range(3)]
    together: list[list[list[Tensor]]] = [[], [], []]
    start = threading.Barrier(3)

    def run(i: int) -> None:
        start.wait()
        together[i].extend(gradient(i) for _ in range(4))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, together, strict=True):
        assert len(results) == 4
        assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


def test_a_cache_of_keys_and_values_is_never_recomputed() -> None:
    lm = make_lm()
    adapter = {name: p.requires_grad_() for name, p in random_adapter(lm).items()}
    ids = batch_of(lm).input_ids
    with (
        checkpointing(True),
        lm.adapters.use(adapter),
        pytest.raises(ConfigError, match="call the model with use_cache=False") as error,
    ):
        lm.model(input_ids=ids, use_cache=True)
    assert "\n" not in str(error.value)
    plain = sample(lm, prompt_ids(lm), adapter)
    with checkpointing(True):
        assert sample(lm, prompt_ids(lm), adapter) == plain


def test_sampling_is_that_of_the_untouched_model() -> None:
    lm, untouched = make_lm("Llama", torch.float32), make_model("Llama", torch.float32)
    ids = torch.tensor([[1, 5, 9]])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(lm.model.generate(ids, **settings), untouched.generate(ids, **settings))


def test_nothing_of_ours_is_saved(tmp_path: Any) -> None:
    lm, untouched = make_lm("Llama"), make_model("Llama")
    lm.model.save_pretrained(tmp_path / "ours")
    untouched.save_pretrained(tmp_path / "theirs")
    assert lm.model.config._attn_implementation == NAME
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    again = type(lm.model).from_pretrained(tmp_path / "ours")
    assert again.config._attn_implementation == "sdpa"
    assert {type(m).__name__ for m in lm.model.modules()} == {type(m).__name__ for m in untouched.modules()}


def test_a_copy_of_a_wrapped_model_is_a_model_of_its_own() -> None:
    model = make_model("Llama")
    assert checkpoint_layers(model) == ["model.layers.0", "model.layers.1"]
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.add_(0.1).requires_grad_()
    ids = torch.arange(12).reshape(2, 6)
    grads = []
    for flag in (True, False):
        with checkpointing(flag):
            loss = twin(input_ids=ids, use_cache=False).logits.square().sum()
        grads.append(list(torch.autograd.grad(loss, list(twin.parameters()))))
    assert_equal(*grads, error=1e-12)


# ------------------------------------------------------------------------------- what cannot be used


def test_an_attention_without_an_exact_second_derivative_is_refused() -> None:
    for name in ("flash_attention_2", "flex_attention"):
        model = make_model("Llama")
        model.config._attn_implementation_internal = name
        with pytest.raises(ModelError, match=f"attn_implementation='{name}'.*'eager'") as error:
            LM(model, None, "small", None, LoraSites(model, LoraConfig()))  # pyright: ignore
        assert "\n" not in str(error.value)


def test_attention_of_a_kind_sdpa_cannot_do_is_refused() -> None:
    lm = make_lm("Gemma2")
    assert lm.model.config._attn_implementation == "eager"
    lm.model.config._attn_implementation_internal = NAME
    adapter = {name: p.requires_grad_() for name, p in random_adapter(lm).items()}
    with pytest.raises(ModelError, match=r"softcap.*eager"):
        lm.losses(batch_of(lm), adapter)


def test_models_whose_layers_cannot_be_wrapped_are_refused() -> None:
    with pytest.raises(ModelError, match="no layers to checkpoint"):
        checkpoint_layers(torch.nn.Linear(2, 2))
    model = make_model("Llama")
    model.model.layers[1].forward = model.model.layers[1].forward
    with pytest.raises(ModelError, match=r"'model.layers.1' was replaced"):
        checkpoint_layers(model)


def test_a_model_whose_layers_cannot_be_wrapped_works_and_refuses_to_checkpoint_them() -> None:
    """Asked for, it is an error and not silence; a budget that would need it says what it needs without."""
    model = make_model("Llama")
    model.model.layers[1].forward = model.model.layers[1].forward
    lm = LM(model, tokenizer(), "small", PLAIN, LoraSites(model, LoraConfig(r=2)))
    batch, start, weights = batch_of(lm), random_adapter(lm), torch.full((3,), 0.3, dtype=torch.float64)

    def run(**options: Any) -> Params:
        return adapt(
            lambda params, index: lm.losses(batch.select(index), params), start, weights, SGD(lr=0.1), **options
        )

    with pytest.raises(ConfigError, match="checkpoint=True, but losses ran no layer") as error:
        run(checkpoint=True)
    assert "\n" not in str(error.value)
    plain = run()
    for options in ({"checkpoint": False}, {"memory_gb": 1.0}):
        assert all(torch.equal(run(**options)[name], p) for name, p in plain.items())
    with pytest.raises(ConfigError, match="memory_gb"):
        run(memory_gb=1e-6)


def test_layers_that_losses_of_a_users_own_checkpoint_count_as_such() -> None:
    def losses(params: Params, index: Tensor | None) -> Tensor:
        x = torch.ones(3, dtype=torch.float64) if index is None else torch.ones(len(index), dtype=torch.float64)
        with checkpointing(True):  # on their own account, too
            return checkpoint(lambda a: x * a.sin().sum(), params["a"])

    start = {"a": torch.ones(2, dtype=torch.float64)}
    adapted = adapt(losses, start, torch.ones(3, dtype=torch.float64), SGD(lr=0.1), checkpoint=True)
    assert torch.equal(adapted["a"], 1 - 0.3 * start["a"].cos())
