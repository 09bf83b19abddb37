"""Setting -> the one meta-gradient that every route computes: a Llama with LoRA, practice, weights and a target.

K steps of SGD on Σ_i w_i ℓ_i from θ_0; the loss of one target row at θ_K is differentiated for the weights w and for
θ_0. ℓ_i is the mean cross-entropy of the tokens of row i. Model, tokens, adapter and weights are functions of the seed.

Legend: m examples, T tokens of a row, K inner steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from mass.config import LoraConfig
from mass.lm.attention import use_exact_attention
from mass.lm.elementwise import use_closed_forms
from mass.lm.layers import checkpoint_layers
from mass.lm.lora import LoraSites

Params = dict[str, Tensor]
Gradients = dict[str, Tensor]
"""The gradient of the weights under "w", that of each parameter under its name."""
MetaGradient = Callable[[], Gradients]


class Unavailable(Exception):
    """A route cannot run here; the text says why."""


@dataclass(frozen=True)
class Setting:
    """What a point measures. The defaults are the study's model."""

    steps: int = 8
    examples: int = 6
    length: int = 128
    width: int = 256
    layers: int = 4
    device: str = "cpu"
    vocabulary: int = 1000
    rank: int = 8
    rate: float = 0.1
    seed: int = 0

    @property
    def key(self) -> str:
        return f"K{self.steps}-m{self.examples}-T{self.length}-{self.width}x{self.layers}-{self.device}"

    @property
    def heads(self) -> int:
        return max(1, self.width // 32)

    @property
    def intermediate(self) -> int:
        return -(-self.width * 8 // 3 // 16) * 16

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Problem:
    setting: Setting
    model: Any
    sites: LoraSites
    params: Params
    """The start θ_0: A as PEFT draws it, B small and not zero, so that every part of the gradient counts."""
    weights: Tensor
    practice: Tensor
    """Tokens [m, T]."""
    target: Tensor
    """Tokens [1, T]."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Problem:
        """Itself: a copied module shares the frozen base."""
        return self

    @property
    def wide(self) -> bool:
        return self.weights.dtype == torch.float64

    def losses(self, params: Params, index: Tensor | None = None) -> Tensor:
        """ℓ_i at `params` of the examples `index`, of all m when it is None."""
        return self.losses_of(params, self.practice if index is None else self.practice[index])

    def outer(self, params: Params) -> Tensor:
        return self.losses_of(params, self.target).sum()

    def losses_of(self, params: Params, tokens: Tensor) -> Tensor:
        """Those of the rows `tokens` [n, T]."""
        with self.sites.use(params), _attention(self.wide):
            logits = self.model(input_ids=tokens, use_cache=False).logits
        return cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)

    def leaves(self) -> tuple[Params, Tensor]:
        """θ_0 and w as new leaves of a graph."""
        params = {name: p.clone().requires_grad_() for name, p in self.params.items()}
        return params, self.weights.clone().requires_grad_()


def make_problem(setting: Setting, dtype: torch.dtype = torch.float32, *, prepared: bool = False) -> Problem:
    """The problem of a setting. In float64 the same numbers, and nothing inside computes in less.

    The model is as transformers builds it, with eager attention; or `prepared`, as `mass.lm` does it.
    """
    wide = dtype == torch.float64
    model = _model(setting, "sdpa" if wide or prepared else "eager")
    if wide:
        _widen_norms(model)
    model = model.to(setting.device, dtype).eval().requires_grad_(False)
    if prepared:
        use_exact_attention(model)
        use_closed_forms(model)
    sites = LoraSites(model, LoraConfig(r=setting.rank, lora_alpha=2.0 * setting.rank), closed_form=prepared)
    checkpoint_layers(model, sites)
    generator = torch.Generator().manual_seed(setting.seed + 1)
    params = {
        name: p if name.endswith("lora_A") else 0.02 * torch.randn(p.shape, generator=generator)
        for name, p in sites.init(setting.seed).items()
    }
    weights = (0.5 + torch.rand(setting.examples, generator=generator)) / setting.examples
    tokens = torch.randint(0, setting.vocabulary, (setting.examples + 1, setting.length), generator=generator)
    tokens = tokens.to(setting.device)
    return Problem(
        setting,
        model,
        sites,
        {name: p.to(setting.device, dtype) for name, p in params.items()},
        weights.to(setting.device, dtype),
        tokens[:-1],
        tokens[-1:],
    )


def _model(setting: Setting, attention: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(setting.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=setting.vocabulary,
            hidden_size=setting.width,
            intermediate_size=setting.intermediate,
            num_hidden_layers=setting.layers,
            num_attention_heads=setting.heads,
            num_key_value_heads=setting.heads,
            max_position_embeddings=max(512, setting.length),
            attn_implementation=attention,
            initializer_range=1.0 / setting.width**0.5,
        )
    )


def _attention(wide: bool) -> AbstractContextManager[Any]:
    """Eager attention has a float32 softmax inside; SDPA's plain form has not, and a second derivative too."""
    return sdpa_kernel(SDPBackend.MATH) if wide else nullcontext()


class _WideNorm(nn.Module):
    """RMSNorm in the precision of its input; that of transformers goes through float32."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.weight, self.eps = like.weight, like.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


def _widen_norms(model: Any) -> None:
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _WideNorm(module))


def errors(got: Gradients, reference: Gradients) -> dict[str, float | None]:
    """Relative error and cosine, for the weights and for θ_0; None where the route does not give the gradient."""
    names = [name for name in reference if name != "w"]
    found: dict[str, float | None] = {}
    for part, members in (("w", ["w"]), ("theta", names)):
        given = all(name in got for name in members)
        found[f"error_{part}"] = _relative(got, reference, members) if given else None
        found[f"cosine_{part}"] = _cosine(got, reference, members) if given else None
    return found


def _flat(gradients: Gradients, names: list[str]) -> Tensor:
    return torch.cat([gradients[name].detach().cpu().double().flatten() for name in names])


def _relative(got: Gradients, reference: Gradients, names: list[str]) -> float:
    expected = _flat(reference, names)
    return float((_flat(got, names) - expected).norm() / expected.norm())


def _cosine(got: Gradients, reference: Gradients, names: list[str]) -> float:
    return float(torch.cosine_similarity(_flat(got, names), _flat(reference, names), dim=0))
