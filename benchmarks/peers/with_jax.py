"""The meta-gradient in JAX, compiled: reverse-mode unrolls, and MixFlow-MG's forward-over-reverse recursion.

MixFlow-MG (Kemaev et al., arXiv 2505.00793): the backward of an inner step is written by hand as a Jacobian-vector
product of the inner gradient, `jvp(grad(L))`, so that no graph of a gradient is kept. L's gradient for (θ, w) is
(∇L, ℓ), and its derivative along u in θ is (H u, J u): both products in one pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from metagrad_problem import Gradients, Problem, Unavailable


@dataclass(frozen=True)
class Compiled:
    """A compiled meta-gradient."""

    run: Callable[[], Any]
    compile_s: float
    temporary_bytes: int
    """What XLA plans to allocate beyond arguments and results."""

    def __call__(self) -> Gradients:
        return self.run()


def prepare(problem: Problem, way: str, remat: bool = False) -> Compiled:
    """`way`: "unroll", "unroll checkpointed" (per inner step) or "mixflow"; `remat` recomputes each layer too."""
    try:
        import jax
    except Exception as error:
        raise Unavailable(f"jax does not import: {type(error).__name__}: {error}") from error
    platform = "gpu" if problem.setting.device == "cuda" else "cpu"
    try:
        device = jax.devices(platform)[0]
    except RuntimeError as error:
        raise Unavailable(f"this jax has no {platform}: install jax[cuda]") from error
    with jax.default_device(device):
        return _compile(problem, way, remat)


def _compile(problem: Problem, way: str, remat: bool) -> Compiled:
    import jax
    import jax.numpy as jnp

    from peers import jax_llama as llama

    start, base = llama.adapter_of(problem), llama.base_of(problem)
    weights = jnp.asarray(problem.weights.cpu().numpy())
    practice, target = (jnp.asarray(tokens.cpu().numpy()) for tokens in (problem.practice, problem.target))
    rate, steps = problem.setting.rate, problem.setting.steps

    def inner(theta: Any, weights: Any, base: Any, practice: Any) -> Any:
        return jnp.dot(weights, llama.losses(problem, base, theta, practice, remat))

    def outer(theta: Any, base: Any, target: Any) -> Any:
        return llama.losses(problem, base, theta, target, remat).sum()

    recursion = _mixflow if way == "mixflow" else _reverse
    function = recursion(inner, outer, rate, steps, way == "unroll checkpointed")
    began = time.perf_counter()
    compiled = jax.jit(function).lower(start, weights, base, practice, target).compile()
    compile_s = time.perf_counter() - began

    def run() -> Gradients:
        theta_bar, w_bar = jax.block_until_ready(compiled(start, weights, base, practice, target))
        named = {"w": w_bar, **llama.names_of(theta_bar)}
        return {name: torch.from_dlpack(value) for name, value in named.items()}

    return Compiled(run, compile_s, int(compiled.memory_analysis().temp_size_in_bytes))


def _reverse(inner: Callable[..., Any], outer: Callable[..., Any], rate: float, steps: int, checkpointed: bool) -> Any:
    """Reverse mode through a scan of steps; each step recomputed when checkpointed."""
    import jax

    def meta_loss(theta: Any, weights: Any, base: Any, practice: Any, target: Any) -> Any:
        def step(theta: Any, _: None) -> tuple[Any, None]:
            grads = jax.grad(inner)(theta, weights, base, practice)
            return jax.tree.map(lambda p, g: p - rate * g, theta, grads), None

        theta, _ = jax.lax.scan(jax.checkpoint(step) if checkpointed else step, theta, length=steps)
        return outer(theta, base, target)

    return jax.grad(meta_loss, argnums=(0, 1))


def _mixflow(inner: Callable[..., Any], outer: Callable[..., Any], rate: float, steps: int, _: bool) -> Any:
    """The adjoint recursion over a tape of θ_j, forward over reverse at each step."""
    import jax
    import jax.numpy as jnp

    def meta_gradient(theta: Any, weights: Any, base: Any, practice: Any, target: Any) -> Any:
        def step(theta: Any, _: None) -> tuple[Any, Any]:
            grads = jax.grad(inner)(theta, weights, base, practice)
            return jax.tree.map(lambda p, g: p - rate * g, theta, grads), theta

        def back(carry: Any, theta: Any) -> tuple[Any, None]:
            theta_bar, w_bar = carry
            u = jax.tree.map(lambda bar: -rate * bar, theta_bar)
            gradient = jax.grad(lambda p, w: inner(p, w, base, practice), argnums=(0, 1))
            _, (hessian_u, jacobian_u) = jax.jvp(lambda p: gradient(p, weights), (theta,), (u,))
            return (jax.tree.map(jnp.add, theta_bar, hessian_u), w_bar + jacobian_u), None

        theta, tape = jax.lax.scan(step, theta, length=steps)
        theta_bar = jax.grad(outer)(theta, base, target)
        carry, _ = jax.lax.scan(back, (theta_bar, jnp.zeros_like(weights)), tape, reverse=True)
        return carry

    return meta_gradient
