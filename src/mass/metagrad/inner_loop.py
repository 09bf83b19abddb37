"""Run the inner loop as one node of the autograd graph (`adapt`).

Legend: K steps, m examples, B adapters of a stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mass.errors import ConfigError
from mass.metagrad import memory
from mass.metagrad.arguments import Mode, check, ordinary, rates_per_step, weights_per_step
from mass.metagrad.compiled import TracedLosses, TracedPasses
from mass.metagrad.layerwise import refuse_derivative
from mass.metagrad.objective import Losses, Objective, autocast_state
from mass.metagrad.optimizers import Optimizer
from mass.metagrad.passes import Passes
from mass.metagrad.recursion import Plan, Tape, Watch, pull_back, run
from mass.metagrad.update import Step, Update
from mass.types import Params

_TWICE = (
    "the gradient of mass.inner.adapt was differentiated again, expected one backward only; "
    "detach it, or unroll the inner loop by hand with create_graph=True"
)


class SecondDerivativeError(ConfigError, RuntimeError):
    """The gradient of an adaptation was itself differentiated."""


def adapt(
    losses: Losses,
    params: Params,
    weights: Float[Tensor, " m"] | Float[Tensor, "K m"],
    optimizer: Optimizer,
    steps: int = 1,
    micro_batch: int | None = None,
    *,
    mode: str = "exact",
    stacked: bool = False,
    memory_gb: float | None = None,
    checkpoint: bool | None = None,
    spare_gb: float | None = None,
    watch: Watch | None = None,
) -> Params:
    """Return the parameters after `steps` steps of `optimizer` on Σ_i w_i ℓ_i, as one autograd node.

    Gradients flow to `weights`, to `params` and to rate tensors; NOT to other tensors that `losses` captures. Where
    none of the three requires grad, the call costs K plain gradient passes and keeps nothing; a micro-batch whose
    weights are all 0 in a step is not computed then, so that weights [K, m] may give each step examples of its own.
    With 0 steps it is the identity.

    The forward keeps K copies of (θ, g, state) and no graph, unless `memory_gb` leaves space for graphs. The backward
    calls `losses` again, so it must be the same function then: no dropout, and captured tensors unchanged. The
    autocast state of the forward is restored; any other context that `losses` needs belongs inside it. Losses must be
    finite where the weight is 0 too: the gradient of that weight depends on them.

    Args:
        losses: (params, index) -> losses of the examples `index`, or of all m examples for None. With `memory_gb` or
            `spare_gb` it is also called to measure its memory: such a call may be interrupted, and `index` may repeat
            an example.
        params: the start θ_0; with `stacked` each tensor has a leading axis of B adapters.
        weights: of the examples, [m] for all steps or [K, m] with a row for each step.
        optimizer: SGD or AdamW of `mass.metagrad.optimizers`, or an update rule of your own. A learning rate is one
            number for all steps, or [K]; with `stacked` also [1, B] or [K, B], a rate for each adapter.
        steps: K.
        micro_batch: number of examples in one pass, in forward and backward; the memory is that of their graphs. None
            for all at once, or as many as `memory_gb` allows.
        mode: what the backward computes. "exact"; "truncated(n)": only the last n steps, the earlier ones count as
            θ + constant (n = 0: only the start gets a gradient, as in first-order MAML); "first_order": H u left out;
            "finite_difference": H u and J u as central differences, for losses without a second derivative.
        stacked: True for B adapters that do not interact. A stack is B·m examples to the rest of the engine, as the
            gradient of the sum separates; clipping and the steps of finite differences use each adapter's own norms.
        memory_gb: memory that one adaptation may hold in addition to its inputs, in units of 10^9 bytes. From it the
            engine chooses `micro_batch` unless that is given, layer checkpointing, and how many graphs the forward
            keeps for the backward (with all of them, nothing is computed twice). It measures the last example, so put
            the largest one there.
        checkpoint: layer checkpointing in layers that `mass.metagrad.layerwise` wrapped; None for only where
            `memory_gb` needs it. True is an error with losses that run no such layer.
        spare_gb: memory that the device can spare (`mass.lm.free_memory`), used without `memory_gb`. Nothing changes
            where it is enough for the passes as they are; otherwise smaller micro-batches and layer checkpointing are
            chosen.
        watch: called after each step of the forward with the number of steps done and the parameters, detached.

    Raises ConfigError or ShapeError for arguments that cannot be used; SecondDerivativeError (from the second backward)
    when the meta-gradient itself is differentiated.
    """
    check(params, weights, steps, micro_batch, stacked=stacked, memory_gb=memory_gb, spare_gb=spare_gb)
    how, graph = Mode.parse(mode), torch.is_grad_enabled()
    # The inner loop takes gradients, also where the caller is in inference mode, in which autograd records nothing.
    with torch.inference_mode(False), torch.set_grad_enabled(graph):
        params = {name: ordinary(p) for name, p in params.items()}
        weights_Km = weights_per_step(ordinary(weights), steps)
        rates_KP = rates_per_step(optimizer.lr, params, steps, stacked=stacked)
        tensors = (weights_Km, rates_KP, *params.values())
        graph = graph and any(t.requires_grad for t in tensors)
        autocast = autocast_state(next(iter(params.values())).device.type)
        objective = Objective(losses, autocast, wants_layers=bool(checkpoint))
        request = memory.PlanRequest(micro_batch, memory_gb, bool(checkpoint), checkpoint is None, graph, spare_gb)
        update = Update(optimizer, stacked)
        schedule = memory.choose(objective, params, weights_Km.detach(), update, how, request)
        passes = TracedPasses(objective, losses) if isinstance(losses, TracedLosses) else Passes(objective)
        plan = Plan(passes, update, tuple(params), how, schedule, watch)
        if graph:
            return dict(zip(params, _apply(_Adaptation, plan, *tensors), strict=True))
        with torch.no_grad():
            return run(plan, weights_Km, rates_KP, params)


class _Adaptation(torch.autograd.Function):
    """(weights, rates, θ_0) -> θ_K, with the recursion of `mass.metagrad.recursion` as its backward."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, weights_Km: Tensor, rates_KP: Tensor, *params: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore
        tape = Tape()
        adapted = run(plan, weights_Km, rates_KP, dict(zip(plan.names, params, strict=True)), tape)
        # Tensors go through save_for_backward: autograd then frees them, and notices when one is changed in place.
        ctx.plan, ctx.graphs = plan, tape.graphs
        ctx.keys = [[tuple(part) for part in step] for step in tape.steps]
        flat = [tensor for step in tape.steps for part in step for tensor in part.values()]
        ctx.save_for_backward(weights_Km, rates_KP, *params, *flat)
        return tuple(adapted.values())

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        plan: Plan = ctx.plan
        weights_Km, rates_KP, *rest = ctx.saved_tensors
        tape = Tape(_unpack(rest[len(plan.names) :], ctx.keys), ctx.graphs)
        with torch.no_grad():
            grads = pull_back(plan, weights_Km, rates_KP, tape, cotangents, ctx.needs_input_grad[1:])
        if torch.is_grad_enabled():  # create_graph=True: otherwise a second derivative would silently be left out
            return (None, *refuse_derivative(grads, SecondDerivativeError(_TWICE)))
        return (None, *grads)


def _unpack(flat: Sequence[Tensor], keys: Sequence[Sequence[tuple[str, ...]]]) -> list[Step]:
    """Rebuild the steps of the tape from the flat list of tensors that autograd saved."""
    stream = iter(flat)
    return [Step(*({key: next(stream) for key in part} for part in step)) for step in keys]


def _apply(function: Any, *inputs: Any) -> tuple[Tensor, ...]:
    return function.apply(*inputs)  # `apply` is untyped
