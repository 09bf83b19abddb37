from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mass.config import LoraConfig
from mass.errors import ConfigError, ModelError, ShapeError
from mass.lm import LM
from mass.lm.lora import (
    LoraSites,
    adapter_hash,
    add_delta,
    detach,
    find_sites,
    load_peft,
    pick,
    repeat,
    save_peft,
)
from small_lms import full_logits, make_lm, make_model, prompt_ids, random_adapter


def some_batch(lm: LM, count: int = 4):
    return lm.batch([(ids[:1], ids[1:]) for ids in prompt_ids(lm)[:count]])


def real(lm: LM, logits: Tensor) -> Tensor:
    return logits[some_batch(lm, len(logits)).attention_mask.bool()]


# ------------------------------------------------------------------------------- what it computes


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma2"])
def test_equals_peft(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    dtype, error = (torch.float32, 1e-4) if kind == "Gemma2" else (torch.float64, 1e-10)
    lm = make_lm(kind, dtype)
    adapter = random_adapter(lm)
    batch = some_batch(lm)
    ours = full_logits(lm, batch, adapter)
    save_peft(adapter, lm.adapters, tmp_path / "adapter", "base")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = PeftModel.from_pretrained(
            make_model(kind, dtype), str(tmp_path / "adapter"), autocast_adapter_dtype=False
        )
    with torch.no_grad():
        expected = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(real(lm, ours), real(lm, expected), rtol=error, atol=error)
    assert (ours - full_logits(lm, batch)).abs().max() > 0.01


def test_one_made_by_peft_loads(tmp_path: Path) -> None:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    lm = make_lm(rank=3, targets=("q_proj", "down_proj"))
    config = PeftConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    theirs = get_peft_model(make_model(), config, autocast_adapter_dtype=False).eval()
    theirs.save_pretrained(str(tmp_path))
    batch = some_batch(lm)
    with torch.no_grad():
        expected = theirs(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    ours = full_logits(lm, batch, load_peft(tmp_path, lm.adapters))
    torch.testing.assert_close(real(lm, ours), real(lm, expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("count", [None, 2])
def test_a_fresh_adapter_is_the_base_bit_for_bit(dtype: torch.dtype, count: int | None) -> None:
    lm = make_lm(dtype=dtype)
    batch = some_batch(lm)
    fresh = lm.init_adapter(3)
    assert {t.dtype for t in fresh.values()} == {torch.float64 if dtype == torch.float64 else torch.float32}
    stack = fresh if count is None else repeat(fresh, count)
    assert torch.equal(full_logits(lm, batch, stack), full_logits(lm, batch))


def test_fresh_adapters_follow_their_seed_and_peft_s_distribution() -> None:
    lm = make_lm(rank=64)
    one, same, other = lm.init_adapter(1), lm.init_adapter(1), lm.init_adapter(2)
    assert adapter_hash(one) == adapter_hash(same) != adapter_hash(other)
    for name, tensor in one.items():
        bound = tensor.shape[-1] ** -0.5
        if name.endswith("lora_B"):
            assert not tensor.any()
        else:
            assert 0.9 * bound < tensor.abs().max() <= bound
            assert abs(float(tensor.std()) / (bound / 3**0.5) - 1) < 0.1


def test_outside_use_the_model_is_untouched() -> None:
    plain, lm = make_model(), make_lm()
    batch, adapter = some_batch(lm), random_adapter(lm)
    weights = {name: t.clone() for name, t in lm.model.state_dict().items()}
    with torch.no_grad():
        expected = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    changed = full_logits(lm, batch, adapter)
    assert not torch.equal(changed, expected)
    assert torch.equal(full_logits(lm, batch), expected)
    with pytest.raises(RuntimeError, match="boom"), lm.adapters.use(adapter):
        raise RuntimeError("boom")
    assert torch.equal(full_logits(lm, batch), expected)
    with lm.adapters.use(adapter):
        with lm.adapters.use(None):
            assert torch.equal(full_logits(lm, batch), expected)
        assert torch.equal(lm.model(batch.input_ids, attention_mask=batch.attention_mask).logits, changed)
    assert all(torch.equal(t, weights[name]) for name, t in lm.model.state_dict().items())
    assert weights.keys() == plain.state_dict().keys()


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_a_stack_equals_the_loop(kind: str) -> None:
    lm = make_lm(kind)
    stack, batch = random_adapter(lm, count=2), some_batch(lm)
    blocks = full_logits(lm, batch, stack)
    one_by_one = [full_logits(lm, batch, pick(stack, g)) for g in range(2)]
    torch.testing.assert_close(blocks[:2], one_by_one[0][:2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(blocks[2:], one_by_one[1][2:], rtol=1e-12, atol=1e-12)
    rows = torch.tensor([1, 0, 0, 0])
    mixed = full_logits(lm, batch, stack, rows)
    for i, g in enumerate(rows.tolist()):
        torch.testing.assert_close(mixed[i], one_by_one[g][i], rtol=1e-12, atol=1e-12)


def test_gradients_of_a_stack_equal_those_of_the_loop() -> None:
    lm = make_lm()
    stack, batch = random_adapter(lm, count=3), some_batch(lm, 5)
    rows = torch.tensor([2, 0, 2, 1, 0])
    leaves = {name: t.requires_grad_() for name, t in stack.items()}
    lm.losses(batch, leaves, rows).sum().backward()
    for g in range(3):
        own = {name: t.requires_grad_() for name, t in detach(pick(stack, g)).items()}
        lm.losses(batch.select((rows == g).nonzero()[:, 0]), own).sum().backward()
        for name, tensor in own.items():
            torch.testing.assert_close(leaves[name].grad[g], tensor.grad, rtol=1e-10, atol=1e-12)


def test_threads_do_not_see_each_other_s_adapters() -> None:
    lm = make_lm()
    batch = some_batch(lm)
    adapters = [None, *(random_adapter(lm, seed) for seed in range(3))]
    expected = [full_logits(lm, batch, adapter) for adapter in adapters]
    inside, wrong = threading.Barrier(len(adapters)), []

    def work(i: int) -> None:
        with torch.no_grad(), lm.adapters.use(adapters[i]):
            for _ in range(5):
                inside.wait(timeout=60)
                logits = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
                if not torch.equal(logits, expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(adapters))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_delta_of_a_flat_batch_and_of_a_single_stack() -> None:
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    a, b = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 3).double()
    torch.testing.assert_close(add_delta(y, x, a[0], b[0], 0.5), y + 0.5 * x @ (b[0] @ a[0]).T)
    torch.testing.assert_close(add_delta(y, x, a[:1], b[:1]), y + x @ (b[0] @ a[0]).T)
    expected = torch.cat([x[:3] @ (b[0] @ a[0]).T, x[3:] @ (b[1] @ a[1]).T])
    torch.testing.assert_close(add_delta(y, x, a, b, 2.0), y + 2.0 * expected)
    with pytest.raises(ShapeError, match="5 rows for a stack of 2"):
        add_delta(y[:5], x[:5], a, b)


# ------------------------------------------------------------------------------- where it goes


def test_sites_are_all_linear_layers_but_the_head() -> None:
    llama = {site.name for site in find_sites(make_model(), ["all-linear"])}
    assert llama == {
        f"model.layers.{i}.{part}"
        for i in (0, 1)
        for part in [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    }
    (site, *_) = find_sites(make_model("GPT2"), ["c_attn"])
    assert (site.in_features, site.out_features, site.transposed) == (16, 48, True)
    assert {s.name.rsplit(".", 1)[1] for s in find_sites(make_model(), ["q_proj", "mlp.up_proj"])} == {
        "q_proj",
        "up_proj",
    }


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"lora.target_modules is \['proj_q'\].*down_proj, gate_proj, k_proj"
    ) as error:
        find_sites(make_model(), ["proj_q"])
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- dicts of tensors


def test_repeat_and_pick() -> None:
    lm = make_lm()
    one = {name: t.requires_grad_() for name, t in random_adapter(lm).items()}
    stack = repeat(one, 3)
    assert all(stack[n].shape == (3, *t.shape) and stack[n].data_ptr() == t.data_ptr() for n, t in one.items())
    assert adapter_hash(pick(stack, 2)) == adapter_hash(one)
    name = next(iter(one))
    (stack[name] * torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)).sum().backward()
    assert torch.equal(one[name].grad, torch.full_like(one[name], 7.0))
    assert not any(t.requires_grad for t in detach(one).values())


def test_the_hash_tells_bits_names_shapes_and_types_apart() -> None:
    one = {"x": torch.arange(6.0).view(2, 3), "y": torch.ones(2)}
    others = [
        {**one, "y": torch.tensor([1.0, 1.0000001])},
        {"z": one["x"], "y": one["y"]},
        {**one, "x": one["x"].view(3, 2)},
        {**one, "x": one["x"].double()},
    ]
    assert adapter_hash(one) == adapter_hash({"y": one["y"], "x": one["x"].T.contiguous().T})
    assert len({adapter_hash(p) for p in [one, *others]}) == 5


def test_shapes_that_do_not_fit() -> None:
    lm = make_lm()
    good = lm.init_adapter(0)
    name = next(iter(good))
    for bad, match in [
        ({**good, name: good[name][:, :-1]}, r"adapter is \[2, 15\].*expected \[r, 16\]"),
        ({k: v for k, v in good.items() if k != name}, "adapter is nothing"),
        ({**good, name: repeat(good, 2)[name]}, "or stacks"),
    ]:
        with pytest.raises(ShapeError, match=match), lm.adapters.use(bad):
            pass
    with lm.adapters.use(lm.adapters.init(0, rank=5)):  # another rank is another adapter, not an error
        pass


# ------------------------------------------------------------------------------- files


def test_files_round_trip_bit_for_bit(tmp_path: Path) -> None:
    for kind in ("Llama", "GPT2"):
        lm = make_lm(kind)
        adapter = random_adapter(lm)
        save_peft(adapter, lm.adapters, tmp_path / kind, "base")
        loaded = load_peft(tmp_path / kind, lm.adapters)
        assert adapter_hash(loaded) == adapter_hash(adapter)
        assert list(loaded) == list(adapter)
        assert not list((tmp_path / kind).glob("*.tmp"))


def edited(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_adapters_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    lm = make_lm()
    folder = tmp_path / "adapter"

    def refused(match: str, sites: LoraSites = lm.adapters) -> None:
        with pytest.raises(ModelError, match=match) as error:
            load_peft(folder, sites)
        assert "\n" not in str(error.value)

    def fresh() -> None:
        save_peft(random_adapter(lm), lm.adapters, folder, "base")

    refused("is not a PEFT adapter; expected adapter_config.json")
    fresh()
    refused("adapter of another base: layer", make_lm("GPT2").adapters)
    refused("adapter of another base: layer.*16", make_lm(hidden_size=32).adapters)
    refused("adapter of another base: layer", make_lm(num_hidden_layers=1).adapters)
    refused("adapter of another base: layer", make_lm(targets=("q_proj",)).adapters)
    refused("has rank 2 and alpha 4.0; expected 4 and 8.0", make_lm(rank=4).adapters)
    refused("has rank 2 and alpha 4.0; expected 2 and 9.0", LoraSites(make_model(), LoraConfig(r=2, lora_alpha=9.0)))
    edited(folder, use_rslora=True)
    refused("with use_rslora; expected a plain LoRA")
    fresh()
    edited(folder, r=None)
    refused("has rank None")
    (folder / "adapter_config.json").write_text("[1, 2")
    refused("damaged")
    fresh()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused("damaged")
