"""Apply LoRA parameters to a model without changing it, and read and write them as PEFT folders.

For a linear layer with weight W [out, in], an adapter adds `(alpha / r) B A x` to its output, A [r, in], B [out, r]
(Hu et al., arXiv 2106.09685). The parameters are kept outside the model, as a dict of tensors, and given to it for the
length of a `with` block (docs/adr/0002). A stack of G adapters has tensors [G, r, in] and [G, out, r]: block g of the
batch's rows uses adapter g.

Legend: G adapters in a stack, N rows of a batch, T tokens, r rank.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mass.config import LoraConfig
from mass.errors import ConfigError, ModelError, ShapeError
from mass.lm.lora_linear import add_delta_in_closed_form, has_closed_form
from mass.lm.lora_places import Places
from mass.types import Params

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_FUSED_LEAVES = ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")
"""Names of linear layers that PEFT mistakes for those of routed experts in a model with fused experts."""
_OTHER_KINDS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
"""Settings of a PEFT configuration with which an adapter is not plain LoRA."""


@dataclass(frozen=True)
class Site:
    """A linear layer that gets an adapter."""

    name: str
    """Path of the layer in the model, as in `named_modules`."""
    in_features: int
    out_features: int
    transposed: bool = False
    """True if the layer's weight is [in, out], as in GPT-2; the adapter has the same shapes then."""


@dataclass(frozen=True)
class InUse:
    """An adapter, or a stack, while it is in use."""

    params: Params
    scaling: float
    """The factor alpha / r."""
    rows: Tensor | Places | None
    """[N] the index of each row's adapter, or the places of rows that have one; None for one adapter, or equal
    consecutive blocks of rows."""

    def map(self, change: Callable[[Any], Any]) -> InUse:
        """Return a copy with `change` applied to each parameter."""
        return InUse({name: change(tensor) for name, tensor in self.params.items()}, self.scaling, self.rows)


class LoraSites:
    """The adapted layers of one model. Outside `use`, the model computes exactly what it did without this object.

    The adapter in use is a context variable: threads that serve different problems with one model do not see each
    other's adapters.
    """

    def __init__(self, model: nn.Module, config: LoraConfig, *, closed_form: bool = True) -> None:
        """Register hooks on the adapted layers. Raises ConfigError where no layer matches `config.target_modules`.

        With `closed_form`, derivatives are those of `mass.lm.lora_linear` where it applies; there are only two then.
        """
        self.config, self._closed_form = config, closed_form
        self.sites = find_sites(model, config.target_modules)
        self.beside_fused_experts = any("expert" in name and p.dim() == 3 for name, p in model.named_parameters())
        """True if the model has routed experts in fused tensors: PEFT then misreads the names of some other layers."""
        self._active: ContextVar[InUse | None] = ContextVar("adapter_in_use", default=None)
        for site in self.sites:
            model.get_submodule(site.name).register_forward_hook(self._hook(site.name))

    def init(
        self,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        rank: int | None = None,
    ) -> Params:
        """Make a new adapter that changes nothing: A uniform as in PEFT (Kaiming, a = sqrt 5), B zero."""
        generator = torch.Generator().manual_seed(seed)
        params: Params = {}
        for site in self.sites:
            bound = 1 / math.sqrt(site.in_features)
            a = torch.empty(rank or self.config.r, site.in_features, dtype=torch.float64).uniform_(
                -bound, bound, generator=generator
            )
            params[f"{site.name}.lora_A"] = a.to(device=device, dtype=dtype)
            params[f"{site.name}.lora_B"] = torch.zeros(
                site.out_features, rank or self.config.r, dtype=dtype, device=device
            )
        return params

    @contextmanager
    def use(self, params: Params | None, rows: Tensor | None = None) -> Generator[None, None, None]:
        """Within the block, add this adapter in the model's forward passes; None for the plain base.

        A stack without `rows` needs a batch of G equal consecutive blocks of rows; otherwise `rows` [N] int64 is the
        index of each row's adapter. Gradients flow to `params`. Raises ShapeError for parameters that do not fit.
        """
        if params is not None:
            self.check(params)
        with self.resume(None if params is None else self.in_use(params, rows)):
            yield

    def in_use(self, params: Params, rows: Tensor | Places | None = None) -> InUse:
        """Return what `resume` puts in use. `params` are not checked."""
        return InUse(params, self.config.lora_alpha / self.config.r, rows)

    def under(self, path: str) -> Callable[[], InUse | None]:
        """Return a function that returns what is in use at the sites under the module `path`; None for the plain base.

        Code that recomputes the module later, perhaps in another thread, puts it in use again with `resume`.
        """
        sites = (site.name for site in self.sites if f"{site.name}.".startswith(f"{path}."))
        names = [f"{name}.{half}" for name in sites for half in ("lora_A", "lora_B")]

        def in_use() -> InUse | None:
            active = self._active.get()
            return active and InUse({name: active.params[name] for name in names}, active.scaling, active.rows)

        return in_use

    @contextmanager
    def resume(self, active: InUse | None) -> Generator[None, None, None]:
        """Within the block, put in use what a function of `under` returned before, in place of anything else."""
        token = self._active.set(active)
        try:
            yield
        finally:
            self._active.reset(token)

    def check(self, params: Params) -> None:
        """Check that `params` are one adapter, or a stack, for these sites. Raises ShapeError."""
        for site in self.sites:
            a, b = params.get(f"{site.name}.lora_A"), params.get(f"{site.name}.lora_B")
            if a is None or b is None or a.dim() not in (2, 3) or a.shape[:-2] != b.shape[:-2]:
                given = "nothing" if a is None or b is None else f"{list(a.shape)} and {list(b.shape)}"
                raise ShapeError(f"layer {site.name}: adapter is {given}; expected A [r, in] and B [out, r], or stacks")
            if (a.shape[-1], b.shape[-2], a.shape[-2]) != (site.in_features, site.out_features, b.shape[-1]):
                raise ShapeError(
                    f"layer {site.name}: adapter is {list(a.shape)} and {list(b.shape)}; expected "
                    f"[r, {site.in_features}] and [{site.out_features}, r]; use an adapter made for this model"
                )

    def _hook(self, name: str):
        a_name, b_name = f"{name}.lora_A", f"{name}.lora_B"

        def add_lora(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            active = self._active.get()
            if active is None:
                return None
            a, b = active.params[a_name], active.params[b_name]
            # The closed form overwrites `output`, so it needs to know that nothing else uses or changes it.
            if isinstance(active.rows, Places):
                return active.rows.add_delta(output, args[0], a, b, active.scaling)
            if self._closed_form and has_closed_form(module, args[0], output, a, b):
                a, b = _for_rows(a, b, args[0], active.rows)
                return add_delta_in_closed_form(output, args[0], module.weight, a, b, active.scaling)  # pyright: ignore
            return add_delta(output, args[0], a, b, active.scaling, active.rows)

        return add_lora


def add_delta(
    output: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float = 1.0, rows: Tensor | None = None
) -> Tensor:
    """Return `output + scaling B A x` for x [N, T, in] (or [N T, in]), in the precision of the output.

    The adapter is a [r, in] and b [out, r], or stacks [G, r, in] and [G, out, r] whose adapters apply to G equal
    consecutive blocks of rows, or to the rows with their index in `rows` [N]. Raises ShapeError for other batches.

    Scaling and sum are part of the second product, so nothing else as large as the output is computed, or kept for a
    derivative. B is copied to the layout [r, out], so that its two derivatives are products over contiguous rows: on a
    CPU those are two to four times faster for a rank of 8. In a model spread over several devices, each layer gets a
    copy of its part of the adapter; the adapter itself stays on one device, for its norms and updates.
    """
    a, b = _for_rows(a.to(x.device, x.dtype), b.to(output.device, output.dtype), x, rows)
    if a.dim() == 2:
        low = (x.reshape(-1, x.shape[-1]) @ a.mT).to(output.dtype)
        flat = output.reshape(-1, output.shape[-1])
        return torch.addmm(flat, low, b.mT.contiguous(), alpha=scaling).view(output.shape)
    low = (x.reshape(a.shape[0], -1, x.shape[-1]) @ a.mT).to(output.dtype)
    blocks = output.reshape(a.shape[0], -1, output.shape[-1])
    return torch.baddbmm(blocks, low, b.mT, alpha=scaling).view(output.shape)


def _for_rows(a: Tensor, b: Tensor, x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return one adapter, or a stack for equal consecutive blocks of the rows of x. Raises ShapeError."""
    if a.dim() == 3 and a.shape[0] == 1:
        return a[0], b[0]
    if a.dim() == 3 and rows is not None:
        a, b = a[rows.to(a.device)], b[rows.to(b.device)]
    if a.dim() == 3 and x.shape[0] % a.shape[0]:
        raise ShapeError(f"a batch of {x.shape[0]} rows for a stack of {a.shape[0]} adapters; expected a multiple")
    return a, b


def find_sites(model: nn.Module, targets: Sequence[str]) -> tuple[Site, ...]:
    """Find the linear layers (also GPT-2's Conv1D) whose names end in one of `targets`; all-linear for all.

    The output head is never among them. In a model with a vision part (Gemma 3), only layers of its language model are
    used, as there are no images.

    Raises:
        ConfigError: no layer matches.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    under = _decoder_path(model)
    linear = [
        (n, m) for n, m in model.named_modules() if _features(m) is not None and m is not head and n.startswith(under)
    ]
    everything = "all-linear" in targets
    sites = tuple(
        Site(name, *features, transposed=not isinstance(module, nn.Linear))
        for name, module in linear
        if (features := _features(module)) and (everything or any(_matches(name, t) for t in targets))
    )
    if not sites:
        known = sorted({name.rsplit(".", 1)[-1] for name, _ in linear})
        raise ConfigError(
            f"lora.target_modules is {list(targets)}; no linear layer ends so; this model has {', '.join(known)}"
        )
    return sites


def _decoder_path(model: nn.Module) -> str:
    """Return the prefix of the decoder's names, as `model.language_model.`; empty where the model does not tell."""
    decoder = getattr(model, "get_decoder", lambda: None)()
    return next((f"{name}." for name, module in model.named_modules() if name and module is decoder), "")


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _features(module: nn.Module) -> tuple[int, int] | None:
    """Return (in, out) of a linear layer; None for any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2: weight is [in, out]
        return int(module.weight.shape[0]), int(module.weight.shape[1])  # type: ignore[union-attr]
    return None


def repeat(params: Params, count: int) -> Params:
    """Return a stack of `count` copies as views; gradients of the stack sum into `params`."""
    return {name: tensor.expand(count, *tensor.shape) for name, tensor in params.items()}


def pick(params: Params, index: int) -> Params:
    """Return adapter `index` of a stack."""
    return {name: tensor[index] for name, tensor in params.items()}


def changes_nothing(params: Params) -> bool:
    """Return True for an adapter, or a stack, whose B is zero throughout, as that of a fresh one is: it is the base."""
    return not any(bool(tensor.any()) for name, tensor in params.items() if name.endswith("lora_B"))


def laid_out(params: Params, dtype: torch.dtype) -> Params:
    """Return an adapter, or stack, laid out for many passes without a gradient.

    It is in the precision of the model, and B has the memory layout [r, out], so that `add_delta` does not convert them
    again in each pass.
    """
    cast = {name: tensor.detach().to(dtype) for name, tensor in params.items()}
    return {name: t.mT.contiguous().mT if name.endswith("lora_B") else t for name, t in cast.items()}


def detach(params: Params) -> Params:
    """Return the parameters without their graph."""
    return {name: tensor.detach() for name, tensor in params.items()}


def adapter_hash(params: Params) -> str:
    """Return the SHA-256 of names, shapes and bytes, which is equal only for bit-identical adapters."""
    digest = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_peft(params: Params, sites: LoraSites, folder: Path, base_name: str) -> None:
    """Write one adapter as a PEFT LoRA folder, which PEFT and vLLM load.

    Files are written under another name and renamed, so that a file is never incomplete. In a model with fused experts
    PEFT turns the names of dense layers and shared experts (`mlp.gate_proj`) into those of the fused tensors and drops
    the adapter; listed as parameters, `mlp.gate_proj.weight`, they are left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    modules = sorted({name.rsplit(".", 1)[0] for name in params})
    misread = [m for m in modules if sites.beside_fused_experts and m.rsplit(".", 1)[-1] in _FUSED_LEAVES]
    weights = {f"base_model.model.{name}.weight": t.detach().cpu().contiguous() for name, t in params.items()}
    save_file(weights, folder / f"{WEIGHTS_FILE}.tmp", metadata={"format": "pt"})
    (folder / f"{WEIGHTS_FILE}.tmp").replace(folder / WEIGHTS_FILE)
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": sites.config.r,
        "lora_alpha": sites.config.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(site.transposed for site in sites.sites),
        "inference_mode": True,
        "target_modules": [module for module in modules if module not in misread],
        **({"target_parameters": [f"{module}.weight" for module in misread]} if misread else {}),
    }
    (folder / f"{CONFIG_FILE}.tmp").write_text(json.dumps(description, indent=2))
    (folder / f"{CONFIG_FILE}.tmp").replace(folder / CONFIG_FILE)


def load_peft(folder: Path, sites: LoraSites) -> Params:
    """Read a PEFT LoRA folder written for these sites.

    Raises:
        ModelError: the folder is not a LoRA adapter, or its base, rank or layers are other ones.
    """
    if not (folder / WEIGHTS_FILE).is_file() or not (folder / CONFIG_FILE).is_file():
        raise ModelError(f"{folder} is not a PEFT adapter; expected {CONFIG_FILE} and {WEIGHTS_FILE} in it")
    try:
        description = dict[str, Any](json.loads((folder / CONFIG_FILE).read_text()))
        raw = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder} is a damaged PEFT adapter ({error}); copy or make it anew") from error
    if others := [key for key in _OTHER_KINDS if description.get(key)]:
        raise ModelError(f"{folder} is an adapter with {others[0]}; expected a plain LoRA; train it without")
    if (description.get("r"), description.get("lora_alpha")) != (sites.config.r, sites.config.lora_alpha):
        raise ModelError(
            f"{folder} has rank {description.get('r')} and alpha {description.get('lora_alpha')}; expected "
            f"{sites.config.r} and {sites.config.lora_alpha}; set lora.r and lora.lora_alpha to match"
        )
    params = {name.removeprefix("base_model.model.").removesuffix(".weight"): t for name, t in raw.items()}
    known = [f"{site.name}.{half}" for site in sites.sites for half in ("lora_A", "lora_B")]
    if set(params) != set(known):
        odd = sorted(set(params) ^ set(known))[0]
        raise ModelError(
            f"{folder} is an adapter of another base: layer {odd.rsplit('.', 1)[0]!r} does not match; "
            "use the base and lora.target_modules it was made with"
        )
    try:
        sites.check(params)
    except ShapeError as error:
        raise ModelError(f"{folder} is an adapter of another base: {error}") from error
    return {name: params[name] for name in known}
