"""Load the first layers of a model with their real weights, small enough for a laptop.

For an 8 B model these are 2 of 32 layers, and embeddings and output head with the rows of a few thousand tokens only:
0.4 B parameters, 3.6 GB in float64. Everything that can make a derivative wrong is in them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from mass.errors import ConfigError, MassError, ModelError
from mass.lm.dtype import choose, device_asked, own_dtype
from mass.lm.free_memory import total_bytes
from mass.lm.load import require_finite
from mass.lm.lora import find_sites
from mass.lm.source import find_source
from mass.preflight.doctor.report import Loaded, Reach

VOCABULARY = 2048
TEXTS = (("3+4", "7"), ("9+1", "=10."), ("5+4", "=9."))
"""Two practice examples of different lengths, and the target. They are short, since time grows with each token and a
wrong derivative shows on a few tokens as well as on many."""


@dataclass(frozen=True)
class Base:
    """The first layers of a model in the precision asked for, and a description of the rest."""

    model: Any
    tokenizer: Any
    loaded: Loaded
    reach: Reach
    rows: tuple[tuple[list[int], int], ...]
    """For each text its token ids in the cut vocabulary, and how many of them belong to the problem."""


def load(name: str, layers: int | None, dtype: str, seed: int) -> Base:
    """Load the layers to examine.

    Raises:
        ModelError: The model cannot be built or loaded.
        ConfigError: The model is quantised, or too large for this machine.
    """
    source = find_source(name)
    config = source.configuration()
    dtype = str(choose(dtype, own_dtype(config, source.place), device_asked("auto"))[0]).removeprefix("torch.")
    _require_plain_weights(config, name)
    kinds = layer_kinds(config)
    total, vocabulary = len(kinds), int(config.get_text_config().vocab_size)
    reach = _reach(_skeleton(config))
    count = _cut_layers(config, kinds, layers)
    _require_memory(config, name)
    tokenizer = source.make("tokenizer", AutoTokenizer)
    model = source.make("model", AutoModelForCausalLM, config=config, dtype=getattr(torch, dtype))
    model.eval().requires_grad_(False)
    require_finite(model, name)
    texts = [_tokens(tokenizer, *text) for text in TEXTS]
    kept = _kept_tokens([ids for ids, _ in texts], vocabulary, seed)
    _cut_vocabulary(model, kept)
    places = {token: place for place, token in enumerate(kept.tolist())}
    labels = tuple(dict.fromkeys(kind.label for kind in kinds[:count] if kind.label))
    size = sum(p.numel() for p in model.parameters())
    loaded = Loaded(
        model=name,
        architecture=type(model).__name__,
        layers=count,
        total_layers=total,
        kinds=labels,
        vocabulary=len(kept),
        total_vocabulary=vocabulary,
        parameters=size,
        weights_gb=8e-9 * size,
        dtype=dtype,
    )
    rows = tuple(([places[token] for token in ids], problem) for ids, problem in texts)
    return Base(model, tokenizer, loaded, reach, rows)


def _require_plain_weights(config: Any, name: str) -> None:
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"model {name!r} is quantised; expected weights in float32, bfloat16 or float16, of which float64 can be "
            "made; give the model that it was quantised from"
        )


# ------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class ModelKind:
    """A description that is equal for layers of the same construction."""

    label: str
    structure: frozenset[tuple[str, torch.Size]]
    """Names and shapes of the parameters."""


def layer_kinds(config: Any) -> list[ModelKind]:
    """Return the kind of each decoder layer: its kind of attention, and whether it has experts."""
    layers = _decoder_layers(_skeleton(config))
    attention = getattr(config.get_text_config(), "layer_types", None) or [""] * len(layers)
    return [_kind(str(kind), layer) for kind, layer in zip(attention, layers, strict=True)]


def _kind(attention: str, layer: nn.Module) -> ModelKind:
    experts = any("expert" in name for name, _ in layer.named_modules())
    label = f"{attention.replace('_', ' ')}{' with experts' if experts else ''}".strip()
    return ModelKind(label, frozenset((name, p.shape) for name, p in layer.named_parameters()))


def _skeleton(config: Any) -> nn.Module:
    """Build the whole model on the meta device, without memory for its weights."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"no model can be built from the configuration ({reason}); expected a causal language model of transformers"
        ) from error


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ModelError("the model has no list of layers; expected a decoder of transformers")
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters())))


def _cut_layers(config: Any, kinds: Sequence[ModelKind], layers: int | None) -> int:
    """Shorten the configuration to the first layers, and return their number."""
    first_of_each = [kinds.index(kind) for kind in set(kinds)]
    count = min(len(kinds), max(2, max(first_of_each) + 1)) if layers is None else layers
    if not 1 <= count <= len(kinds):
        raise ConfigError(f"--layers is {layers}; expected 1 to {len(kinds)}, the layers that this model has")
    text = config.get_text_config()
    # Lists with an entry per layer (kinds of attention and the like) have to be shortened too.
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == len(kinds) and not name.startswith("_"):
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return count


def _require_memory(config: Any, name: str) -> None:
    """Refuse, with a ConfigError, a model that this machine cannot hold.

    The weights are needed twice: as stored, with the whole vocabulary, and in float64 with the cut one.
    """
    sizes = {n: p.numel() for n, p in _skeleton(config).named_parameters()}
    needed = 10e-9 * sum(sizes.values())
    there = 1e-9 * total_bytes(torch.device("cpu"))
    if needed > there:
        layers = config.get_text_config().num_hidden_layers
        raise ConfigError(
            f"{layers} layers of {name!r} need about {needed:.0f} GB, this machine has {there:.0f} GB; "
            "give fewer --layers, or a larger machine"
        )


def _reach(skeleton: nn.Module) -> Reach:
    try:
        sites = find_sites(skeleton, ("all-linear",))
    except MassError:
        sites = ()
    reached = {f"{site.name}.weight" for site in sites}
    sizes = {name: p.numel() for name, p in skeleton.named_parameters()}
    ends = (_weight(skeleton.get_input_embeddings()), _weight(skeleton.get_output_embeddings()))  # type: ignore[operator]
    missed = [
        name for name, p in skeleton.named_parameters()
        if p.dim() >= 2 and name not in reached and not any(p is end for end in ends) and _in_layers(name)
    ]  # fmt: skip
    names = tuple(dict.fromkeys(site.name.rsplit(".", 1)[-1] for site in sites))
    share = sum(size for name, size in sizes.items() if name in reached) / max(1, sum(sizes.values()))
    return Reach(len(sites), names, share, tuple(dict.fromkeys(_without_number(name) for name in missed)))


def _in_layers(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _without_number(name: str) -> str:
    """Return 'mlp.experts.gate_up_proj' for 'model.layers.3.mlp.experts.gate_up_proj'."""
    parts = name.split(".")
    return ".".join(parts[next(i for i, part in enumerate(parts) if part.isdigit()) + 1 :])


# ------------------------------------------------------------------------------- vocabulary


def _tokens(tokenizer: Any, problem: str, solution: str) -> tuple[list[int], int]:
    context = list(tokenizer(f"{problem}\n", add_special_tokens=True)["input_ids"])
    return [*context, *tokenizer(solution, add_special_tokens=False)["input_ids"]], len(context)


def _kept_tokens(texts: Sequence[Sequence[int]], vocabulary: int, seed: int) -> Tensor:
    """Return the tokens of the texts, then random others: the head's softmax stays one over many tokens."""
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(seed)).tolist()
    used = [token for text in texts for token in text]
    return torch.tensor(list(dict.fromkeys([*used, *order[:VOCABULARY]]))[: max(VOCABULARY, len(set(used)))])


def _cut_vocabulary(model: Any, kept: Tensor) -> None:
    """Keep only the rows `kept` of embeddings and output head; tied weights stay tied."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and _weight(head) is _weight(embeddings)
    embeddings.weight = nn.Parameter(embeddings.weight[kept].clone(), requires_grad=False)
    embeddings.num_embeddings, embeddings.padding_idx = len(kept), None
    if head is None:
        return
    head.weight = embeddings.weight if tied else nn.Parameter(head.weight[kept].clone(), requires_grad=False)
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(head.bias[kept].clone(), requires_grad=False)
    head.out_features = len(kept)


def _weight(module: Any) -> Tensor | None:
    return getattr(module, "weight", None)
