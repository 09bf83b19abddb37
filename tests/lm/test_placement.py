"""A model spread over devices: here the CPU and `meta`, whose tensors have shapes and no values, and do not mix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mass.errors import ModelError
from mass.lm import LM
from mass.lm.layers import checkpoint_layers
from mass.lm.lora import add_delta, find_sites
from mass.lm.placement import bits_and_bytes, bring_inputs, moved, stay_in_place
from mass.metagrad import layerwise
from mass.types import Batch
from small_lms import make_lm, make_model, random_adapter

CPU, META = torch.device("cpu"), torch.device("meta")
PLACES = {"model.embed_tokens": CPU, "model.layers.0": CPU, "model.layers.1": META, "model.norm": META}


def rows_of(lm: LM) -> Batch:
    return lm.batch([lm.example_row("1 + 2", "3"), lm.example_row("1", "1, and more of it")])


@pytest.mark.parametrize("kind", ["Llama", "Gemma3", "Mistral", "Phi3"])
def test_each_layer_gets_its_inputs_and_its_adapter_where_it_is(kind: str) -> None:
    """Whatever had been left behind would end in an error: of two devices in one operation."""
    lm = make_lm(kind, torch.float32, tie_word_embeddings=False)
    batch, adapter = rows_of(lm), random_adapter(lm)
    with torch.no_grad(), lm.adapters.use(adapter):
        assert lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.device == CPU
        for part in ("model.layers.1", "model.norm", "lm_head"):
            lm.model.get_submodule(part).to(META)
        bring_inputs(lm.model, {**PLACES, "lm_head": META})
        logits = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert (logits.device, logits.shape[:2]) == (META, batch.input_ids.shape)


def test_bringing_inputs_changes_no_gradient_of_checkpointed_layers() -> None:
    lm = make_lm("Llama", torch.float64)
    batch, adapter = rows_of(lm), {name: t.requires_grad_() for name, t in random_adapter(lm).items()}

    def gradient() -> list[Tensor]:
        with layerwise.checkpointing(True):
            return list(torch.autograd.grad(lm.losses(batch, adapter).sum(), list(adapter.values())))

    before = gradient()
    bring_inputs(lm.model, dict.fromkeys(PLACES, CPU))
    assert all(torch.equal(one, two) for one, two in zip(before, gradient(), strict=True))


def test_a_mask_is_moved_once_for_all_layers_and_again_when_it_changes() -> None:
    mask, learned = torch.ones(2, 3), torch.ones(2, requires_grad=True)
    cache = DynamicCache()
    (one, two, kept), said = moved((mask, [mask, learned], cache), META), moved({"mask": mask}, META)
    assert one is two[0] is said["mask"]
    assert (one.device, two[1].device) == (META, META)
    assert kept is cache
    assert moved(mask, CPU) is mask
    mask.add_(1)
    assert moved(mask, META) is not one


def test_an_adapter_goes_to_the_layer_and_its_gradient_comes_back() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 5, 3)
    rows = torch.tensor([0, 1, 1])
    x, output = torch.zeros(3, 6, 4, device=META), torch.zeros(3, 6, 5, device=META)
    for params, index in (((a, b), rows), ((a[:1], b[:1]), None), ((a[0], b[0]), None)):
        assert add_delta(output, x, *params, 2.0, index).device == META


def test_a_part_left_on_the_cpu_is_refused() -> None:
    model = make_model("Llama")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "disk"}
    with pytest.raises(ModelError, match=r"does not fit the GPUs: 'model.layers.1' was left to the disk.*4bit"):
        stay_in_place(model, "big")
    model.hf_device_map = {"": "cpu"}
    stay_in_place(model, "small")


def test_hooks_of_accelerate_are_exchanged_for_our_own() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = make_model("Llama")
    for part in PLACES:
        hooks.add_hook_to_module(model.get_submodule(part), hooks.AlignDevicesHook())
    with pytest.raises(ModelError, match="was replaced on the object"):
        checkpoint_layers(model)
    model.hf_device_map = {**dict.fromkeys(PLACES, "meta"), "lm_head": "xpu:0"}
    stay_in_place(model, "spread")
    assert checkpoint_layers(model) == ["model.layers.0", "model.layers.1"]
    movers = [len(model.get_submodule(part)._forward_pre_hooks) for part in model.hf_device_map]
    assert movers == [1] * 5


# ------------------------------------------------------------------------------- fewer bits


class Linear4bit(nn.Linear):
    """As in bitsandbytes: a linear layer whose weight is packed, two values to a byte."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside, bias=False)
        self.weight = nn.Parameter(torch.zeros(inside * outside // 2, 1, dtype=torch.uint8), requires_grad=False)


def test_packed_layers_are_found_by_what_they_compute() -> None:
    model = nn.ModuleDict({"q_proj": Linear4bit(8, 6), "other": nn.LayerNorm(8)})
    (site,) = find_sites(model, ("all-linear",))
    assert (site.name, site.in_features, site.out_features) == ("q_proj", 8, 6)


def test_the_precision_is_not_that_of_packed_weights() -> None:
    lm = make_lm("Llama", torch.bfloat16)
    packed = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    lm.model._parameters = {"packed": packed, **lm.model._parameters}
    assert next(lm.model.parameters()) is packed
    assert lm.dtype == "bfloat16"


def test_four_bits_are_nf4_computed_in_bfloat16() -> None:
    described = bits_and_bytes("4bit").to_dict()
    assert (described["load_in_4bit"], described["bnb_4bit_quant_type"]) == (True, "nf4")
    assert (described["bnb_4bit_compute_dtype"], described["bnb_4bit_use_double_quant"]) == ("bfloat16", True)
    assert bits_and_bytes("8bit").load_in_8bit
