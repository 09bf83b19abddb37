"""Run the K steps of the inner loop with a tape, and pull a cotangent of θ_K back to weights, rates and start.

Forward: g_j = ∇_θ Σ_i w_{j,i} ℓ_i(θ_j),  (θ_{j+1}, s_{j+1}) = U(θ_j, clip(g_j), s_j, r_j),  j = 0..K-1.
Backward, from the last step to the first (docs/engine.md): through U alone, then the second-order pass in direction u.

Legend: K steps, m examples, P parameter tensors.

References: arXiv 2603.03524 (the method); Franceschi et al. 2017, arXiv 1703.01785 (reverse hyper-gradients);
Pearlmutter 1994 (Hessian-vector products); Shaban et al. 2019, arXiv 1810.10667 (truncation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mass.errors import ConfigError
from mass.metagrad.arguments import Mode
from mass.metagrad.differences import central_differences, owners
from mass.metagrad.memory import Chunks, Schedule
from mass.metagrad.objective import Sum, leaves
from mass.metagrad.optimizers import State, adapter_norms, wide
from mass.metagrad.passes import Begun, Passes, Wanted
from mass.metagrad.update import Step, Update, pull, pull_through_update
from mass.types import Params

Watch = Callable[[int, Params], None]
"""Called after each step of the forward with the number of steps done and the parameters."""


@dataclass(frozen=True)
class Plan:
    """The parts of an adaptation that are not tensors."""

    passes: Passes
    update: Update
    names: tuple[str, ...]
    mode: Mode
    schedule: Schedule
    watch: Watch | None = None

    def differentiated(self, steps: int) -> range:
        """Return the steps that the backward goes through."""
        return range(max(0, steps - self.mode.last) if self.mode.last is not None else 0, steps)


@dataclass
class Tape:
    """The record that the forward leaves for the backward."""

    steps: list[Step] = field(default_factory=list[Step])
    """One entry, of the size of the adapter, for each step that is differentiated."""
    graphs: dict[tuple[int, int], Begun] = field(default_factory=dict[tuple[int, int], Begun])
    """Graphs that the memory budget let the forward keep, by (step, micro-batch)."""


def run(plan: Plan, weights_Km: Tensor, rates_KP: Tensor, params: Params, tape: Tape | None = None) -> Params:
    """Return θ_K, and write the tape if one is given."""
    if len(weights_Km) == 0:
        return {name: p.detach().clone() for name, p in params.items()}
    differentiated = plan.differentiated(len(weights_Km))
    params = {name: p.detach() for name, p in params.items()}
    state = plan.update.optimizer.init(params)
    for j, weights_m in enumerate(weights_Km.detach()):
        chunks = plan.schedule.gradient_chunks if tape is not None else _weighted(plan.schedule, weights_m)
        grads, graphs = _gradient(plan, params, weights_m, chunks, _kept(plan, j, len(weights_Km), tape))
        if tape is not None and j in differentiated:
            tape.steps.append(Step(params, grads, state))
            tape.graphs |= {(j, c): graph for c, graph in graphs.items()}
        params, state = plan.update(params, grads, state, rates_KP[j].detach(), j)
        if plan.watch is not None:
            plan.watch(j + 1, params)
        del grads, graphs  # so that only the tape keeps them alive during the next step
    return params


def _kept(plan: Plan, j: int, steps: int, tape: Tape | None) -> frozenset[int]:
    """Return the micro-batches of step j whose graphs are kept.

    Kept are the last ones of the last steps: the backward uses them first, and frees them before it recomputes others.
    """
    if tape is None:
        return frozenset()
    chunks = len(plan.schedule.chunks)
    kept = plan.schedule.kept - chunks * (steps - 1 - j)
    return frozenset(range(max(0, chunks - kept), chunks)) if j in plan.differentiated(steps) else frozenset()


def _weighted(schedule: Schedule, weights_m: Tensor) -> Chunks:
    """Return the micro-batches with a weight other than 0: the others add nothing to a gradient that has no graph.

    At least one is returned, so that there is a gradient, of zeros, where all weights are 0.
    """
    used = (weights_m != 0).cpu()
    chunks = schedule.gradient_chunks
    found = tuple(index for index in chunks if index is None or bool(used[index.cpu()].any()))
    return found or chunks[:1]


def _gradient(
    plan: Plan, params: Params, weights_m: Tensor, chunks: Chunks, keep: frozenset[int]
) -> tuple[Params, dict[int, Begun]]:
    """Return g = ∇_θ Σ_i w_i ℓ_i(θ), one micro-batch at a time, and the graphs of the micro-batches `keep`."""
    schedule, total, graphs = plan.schedule, Sum(), dict[int, Begun]()
    # A kept graph belongs to a micro-batch of second-order passes, so then the step is cut as those are.
    for c, index in enumerate(schedule.chunks if keep else chunks):
        if c in keep:
            graphs[c] = plan.passes.begin(params, weights_m, index, checkpoint=schedule.checkpoint)
            part = graphs[c].grads
        else:
            part = plan.passes.gradient(params, weights_m, index, checkpoint=schedule.checkpoint_gradient)
        total.add(part)
        del part  # so that two micro-batches' gradients are never alive together
    return total.value, graphs


def pull_back(
    plan: Plan,
    weights_Km: Tensor,
    rates_KP: Tensor,
    tape: Tape,
    cotangents: Sequence[Tensor],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Pull the cotangents of θ_K back to (weights, rates, *θ_0); None for those that are not needed.

    For j = K-1 .. 0: through the update alone, which gives the cotangent u of the gradient g_j, then through g_j, which
    adds H_j u to the cotangent of θ_j and gives J_j u, the gradient in the weights of step j.
    """
    needs_weights, needs_params = needs[0], any(needs[2:])
    differentiated = plan.differentiated(len(weights_Km))
    bar_weights, bar_rates = torch.zeros_like(weights_Km), torch.zeros_like(rates_KP)
    bar_params = {name: bar.to(wide(bar)) for name, bar in zip(plan.names, cotangents, strict=True)}
    bar_state: State = {}  # nothing uses the optimiser state after the last step
    scale = max((norm(step.grads) for step in tape.steps), default=0.0)
    owners_m = _owners(plan, tape, bar_weights, needs_weights=needs_weights)
    for j in reversed(differentiated):
        at = tape.steps[j - differentiated.start]
        bar_params, u, bar_state, bar_rates[j] = pull_through_update(
            plan.update, at, rates_KP[j], j, bar_params, bar_state
        )
        # Below the first differentiated step the update counts as θ_{j+1} = θ_j + constant.
        wants_params = plan.mode.hessian != "dropped" and (j > differentiated.start or needs_params)
        products: Params = {}
        if plan.mode.hessian == "difference" and (wants_params or needs_weights):
            products, bar_weights[j] = central_differences(
                plan.passes.objective, plan.schedule, at.params, weights_Km[j], u, owners_m, plan.mode.step
            )
        elif wants_params or needs_weights:
            graphs = {c: tape.graphs.pop((j, c)) for c in range(len(plan.schedule.chunks)) if (j, c) in tape.graphs}
            # Every step runs the same operations, so the graph is inspected at the first one visited only.
            wanted = Wanted(wants_params, needs_weights, inspection=j == differentiated[-1])
            products, bar_weights[j] = second_order_pass(plan, at, weights_Km[j], u, wanted, graphs, scale)
        if wants_params:
            bar_params = {name: bar + products.pop(name) for name, bar in bar_params.items()}
    # With truncation the initial state lies before the differentiated steps, so no gradient passes through it.
    if needs_params and tape.steps and differentiated.start == 0:
        bar_params = _pull_through_init(plan, tape.steps[0].params, bar_params, bar_state)
    starts = (bar_params[name].to(bar.dtype) for name, bar in zip(plan.names, cotangents, strict=True))
    grads = (bar_weights, bar_rates, *starts)
    return tuple(grad if needed else None for grad, needed in zip(grads, needs, strict=True))


def _owners(plan: Plan, tape: Tape, like_Km: Tensor, *, needs_weights: bool) -> Tensor | None:
    """Return the adapter of each example [m], for finite differences in a stack; None where it is not needed."""
    if not (plan.update.stacked and plan.mode.hessian == "difference" and tape.steps):
        return None
    if not needs_weights:  # only J u depends on the owners; zeros still say that there is a stack
        return torch.zeros_like(like_Km[0], dtype=torch.long)
    return owners(plan.passes.objective, plan.schedule.gradient_chunks, tape.steps[0].params, like_Km[0])


def _pull_through_init(plan: Plan, start: Params, bar_params: Params, bar_state: State) -> Params:
    """Add the cotangent that reaches θ_0 through an initial optimiser state that depends on it."""
    params = leaves({name: p.to(wide(p)) for name, p in start.items()})
    with torch.enable_grad():
        state = plan.update.optimizer.init(params)
    found = pull([(state[name], bar) for name, bar in bar_state.items() if name in state], list(params.values()))
    return {name: bar + part for (name, bar), part in zip(bar_params.items(), found, strict=True)}


def second_order_pass(
    plan: Plan,
    at: Step,
    weights_m: Tensor,
    u: Params,
    wanted: Wanted,
    graphs: dict[int, Begun],
    scale: float = 0.0,
) -> tuple[Params, Tensor]:
    """Return H_j u (empty unless wanted) and J_j u [m] (zeros unless wanted), one micro-batch at a time.

    `graphs` holds the micro-batches whose graphs the forward kept, and is emptied; the others are recomputed. Raises
    ConfigError where the recomputed gradient differs from the forward's.
    """
    products, bar_weights, again = Sum(), torch.zeros_like(weights_m), Sum()
    # Kept graphs are those of the last micro-batches. Used first, they are freed before another graph is recomputed.
    for c, index in reversed(list(enumerate(plan.schedule.chunks))):
        if (begun := graphs.pop(c, None)) is None:
            grads, chunk_products, chunk_weights = plan.passes.second_order(
                at.params, weights_m, index, u, wanted, checkpoint=plan.schedule.checkpoint
            )
        else:
            grads = begun.grads
            chunk_products, chunk_weights = plan.passes.finish(begun, u, wanted)
        again.add(grads)
        products.add(chunk_products)
        bar_weights = bar_weights + chunk_weights
        del begun, grads, chunk_products  # frees this micro-batch's graph before the next is made
    _check_same_gradient(again.value, at.grads, scale)
    return products.value, bar_weights


def _check_same_gradient(again: Params, taken: Params, scale: float = 0.0) -> None:
    """Check that the losses are those of the forward. Raises ConfigError.

    Losses that changed since (dropout, base weights updated in place) would silently give wrong gradients. `scale` is
    the largest gradient norm of all steps: a gradient a thousandth as long may be nothing but rounding, and is not
    compared on its own scale.
    """
    size, error = norm(taken), norm({name: g - taken[name] for name, g in again.items()})
    if error > 0.05 * max(size, 1e-3 * scale):
        raise ConfigError(
            f"losses gave a gradient in backward that is {error / size if size else error:.0%} off the forward's, "
            "expected the same; turn dropout off, and leave the tensors they capture unchanged until backward"
        )


def norm(params: Params) -> float:
    """Return the norm over all tensors."""
    return float(adapter_norms(params))
