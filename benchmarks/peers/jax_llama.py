"""The same Llama with LoRA in JAX: weights copied from the torch model, losses of rows of tokens.

Written as a JAX user would: einsum and softmax, float32 throughout; a layer can recompute itself (`jax.checkpoint`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from metagrad_problem import Problem

LINEAR = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
Tree = Any


def base_of(problem: Problem) -> Tree:
    """The frozen weights."""
    state = {name: jnp.asarray(p.detach().cpu().numpy()) for name, p in problem.model.state_dict().items()}
    layers = [
        {
            "norm_1": state[f"model.layers.{i}.input_layernorm.weight"],
            "norm_2": state[f"model.layers.{i}.post_attention_layernorm.weight"],
            **{name: state[f"model.layers.{i}.{name}.weight"] for name in LINEAR},
        }
        for i in range(problem.setting.layers)
    ]
    rotary = problem.model.model.rotary_emb.inv_freq.cpu().numpy()
    angle = np.outer(np.arange(problem.setting.length, dtype=np.float32), rotary)
    angle = np.concatenate([angle, angle], -1)
    return {
        "embed": state["model.embed_tokens.weight"],
        "head": state["lm_head.weight"],
        "norm": state["model.norm.weight"],
        "layers": layers,
        "cos": jnp.asarray(np.cos(angle), jnp.float32),
        "sin": jnp.asarray(np.sin(angle), jnp.float32),
    }


def adapter_of(problem: Problem) -> Tree:
    """LoRA parameters in the tree that `losses` reads."""
    values = {name: jnp.asarray(p.detach().cpu().numpy()) for name, p in problem.params.items()}
    return [
        {name: tuple(values[f"model.layers.{i}.{name}.lora_{half}"] for half in "AB") for name in LINEAR}
        for i in range(problem.setting.layers)
    ]


def names_of(tree: Tree) -> dict[str, Any]:
    """The tree's arrays by the names they have in torch."""
    return {
        f"model.layers.{i}.{name}.lora_{half}": layer[name]["AB".index(half)]
        for i, layer in enumerate(tree)
        for name in LINEAR
        for half in "AB"
    }


def losses(problem: Problem, base: Tree, adapter: Tree, tokens: Any, remat: bool) -> Any:
    """Mean cross-entropy of each row [N]."""
    heads, scaling = problem.setting.heads, problem.sites.config.lora_alpha / problem.sites.config.r
    eps = float(problem.model.config.rms_norm_eps)

    def one_layer(x: Any, frozen: Tree, lora: Tree) -> Any:
        return _layer(x, frozen, lora, base["cos"], base["sin"], heads, scaling, eps)

    layer = jax.checkpoint(one_layer) if remat else one_layer
    x = base["embed"][tokens]
    for frozen, lora in zip(base["layers"], adapter, strict=True):
        x = layer(x, frozen, lora)
    logits = _norm(x, base["norm"], eps)[:, :-1] @ base["head"].T
    logprobs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logprobs, tokens[:, 1:, None], -1)[..., 0].mean(1)


def _layer(x: Any, frozen: Tree, lora: Tree, cos: Any, sin: Any, heads: int, scaling: float, eps: float) -> Any:
    def linear(x: Any, name: str) -> Any:
        a, b = lora[name]
        return x @ frozen[name].T + scaling * ((x @ a.T) @ b.T)

    def split(x: Any) -> Any:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def rotate(x: Any) -> Any:
        half = x.shape[-1] // 2
        return x * cos + jnp.concatenate([-x[..., half:], x[..., :half]], -1) * sin

    y = _norm(x, frozen["norm_1"], eps)
    q, k, v = (split(linear(y, f"self_attn.{part}_proj")) for part in "qkv")
    scores = rotate(q) @ rotate(k).swapaxes(-1, -2) * (q.shape[-1] ** -0.5)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    mixed = jax.nn.softmax(jnp.where(causal, scores, jnp.finfo(scores.dtype).min)) @ v
    x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), "self_attn.o_proj")
    y = _norm(x, frozen["norm_2"], eps)
    return x + linear(jax.nn.silu(linear(y, "mlp.gate_proj")) * linear(y, "mlp.up_proj"), "mlp.down_proj")


def _norm(x: Any, weight: Any, eps: float) -> Any:
    return weight * (x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps))
