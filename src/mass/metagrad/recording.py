"""Record the passes of a function for inputs of one shape, as lists of tensor operations.

The second-order pass of `mass.metagrad.passes` is recorded once, below autograd, and in-place operations are replaced
by plain ones. As nothing in the record has side effects, every part of a pass can be cut out of it: the operations that
its outputs depend on.

Legend: n examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from mass.errors import ConfigError, MassError
from mass.metagrad.check import random_direction, relative_error
from mass.metagrad.objective import Objective
from mass.metagrad.passes import Passes, Wanted
from mass.types import Params

Function = Callable[..., Tensor]
"""(params, *rows) -> losses [n]; each tensor of rows has n entries along its first axis."""
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Relative error above which a pass is rejected."""
_COARSE = 0.1
"""Tolerance for other precisions."""


class Inputs(NamedTuple):
    """The inputs of a pass."""

    params: Params
    weights_n: Tensor
    rows: tuple[Tensor, ...]

    @property
    def flat(self) -> list[Tensor]:
        """All tensors in the order of the record's inputs."""
        return [t.detach() for t in (*self.params.values(), self.weights_n, *self.rows)]

    def directions(self, u: Params) -> list[Tensor]:
        """Return u in the order and precision of the parameters."""
        return [u[name].detach().to(p.dtype) for name, p in self.params.items()]


class Recording:
    """The recorded passes for inputs of one shape."""

    def __init__(
        self, function: Function, autocast: dict[str, Any], inputs: Inputs, compile_options: dict[str, Any] | None
    ) -> None:
        self._compile_options = compile_options
        self._record = _Record(function, autocast, inputs)
        self._parts: dict[str, _Part] = {}

    def gradient(self, inputs: Inputs) -> Params:
        """Return ∇_θ Σ_i w_i ℓ_i."""
        record = self._record
        found = self._run("gradient", (record.inputs, record.grads), inputs.flat)
        return dict(zip(inputs.params, found, strict=True))

    def second_order(self, inputs: Inputs, u: Params, wanted: Wanted) -> tuple[Params, Params, Tensor | None]:
        """Return the gradient, H u and J u [n]; the latter two only where wanted."""
        record, flat = self._record, [*inputs.flat, *inputs.directions(u)]
        nodes = [*record.inputs, *record.directions], [*record.grads, *record.products(wanted)]
        found = iter(self._run(f"second order, {_name(wanted)}", nodes, flat))
        grads = {name: next(found) for name in inputs.params}
        return grads, *_products(inputs, found, wanted)

    def begin(self, inputs: Inputs) -> tuple[Params, list[Tensor]]:
        """Return the gradient, and the tensors to keep for `finish`."""
        record = self._record
        found = self._run("begin", (record.inputs, [*record.grads, *record.kept]), inputs.flat)
        return dict(zip(inputs.params, found, strict=False)), list(found[len(inputs.params) :])

    def finish(self, kept: Sequence[Tensor], inputs: Inputs, u: Params, wanted: Wanted) -> tuple[Params, Tensor | None]:
        """Return H u and J u [n] where wanted, from the tensors that `begin` kept."""
        record, flat = self._record, [*inputs.flat, *inputs.directions(u), *kept]
        nodes = [*record.inputs, *record.directions, *record.kept], record.products(wanted)
        return _products(inputs, iter(self._run(f"finish, {_name(wanted)}", nodes, flat)), wanted)

    def _run(self, name: str, nodes: tuple[list[fx.Node], list[fx.Node]], tensors: list[Tensor]) -> Sequence[Tensor]:
        if name not in self._parts:
            self._parts[name] = _Part(self._record.part(*nodes), self._compile_options)
        return self._parts[name](tensors)


def _name(wanted: Wanted) -> str:
    return f"H u {wanted.params}, J u {wanted.weights}"


def _products(inputs: Inputs, found: Iterator[Tensor], wanted: Wanted) -> tuple[Params, Tensor | None]:
    products = {name: next(found) for name in inputs.params} if wanted.params else {}
    return products, next(found) if wanted.weights else None


class _Part:
    """Some operations of a record, compiled on their first run and then compared with the uncompiled operations."""

    def __init__(self, module: fx.GraphModule, compile_options: dict[str, Any] | None) -> None:
        self._module, self._checked = module, compile_options is None
        self._run: Any = module if compile_options is None else torch.compile(module, **compile_options)

    @torch.no_grad()
    def __call__(self, tensors: list[Tensor]) -> Sequence[Tensor]:
        found: Sequence[Tensor] = self._run(*tensors)
        if not self._checked:
            _hold(found, self._module(*tensors), "use traced(.., compiled=False)")
            self._checked = True
        return found


class _Record:
    """The second-order pass as a graph of operations without side effects."""

    def __init__(self, function: Function, autocast: dict[str, Any], inputs: Inputs) -> None:
        names, count = tuple(inputs.params), len(inputs.params)

        def second_order(*flat: Tensor) -> tuple[Tensor, ...]:
            params, u = (dict(zip(names, part, strict=True)) for part in (flat[:count], flat[-count:]))
            rows = flat[count + 1 : -count]
            passes = Passes(Objective(lambda params, _: function(params, *rows), autocast))
            grads, products, bar_n = passes.second_order(
                params, flat[count], None, u, Wanted(inspection=True), checkpoint=False
            )
            return (*grads.values(), *products.values(), bar_n)

        # Random and not zero, so that the comparison below also tests H u and J u.
        u = random_direction({name: torch.ones_like(p) for name, p in inputs.params.items()}, seed=0)
        flat = [*inputs.flat, *inputs.directions(u)]
        self._module = _without_side_effects(_recorded(second_order, flat), flat)
        _hold(self._module(*flat), second_order(*flat), "make the function depend on its arguments alone")

        graph = self._module.graph
        placeholders = graph.find_nodes(op="placeholder")
        outputs: list[Any] = list(graph.output_node().args[0])  # pyright: ignore
        self.inputs, self.directions = placeholders[:-count], placeholders[-count:]
        self.grads, self._hessian, self._jacobian = outputs[:count], outputs[count:-1], outputs[-1:]
        self.kept = _crossing(graph, self.grads, outputs[count:])

    def products(self, wanted: Wanted) -> list[fx.Node]:
        """Return the nodes of H u and J u, where wanted."""
        return [*(self._hessian if wanted.params else []), *(self._jacobian if wanted.weights else [])]

    def part(self, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.GraphModule:
        """Return a module of the operations that lead from `inputs` to `outputs`."""
        needed, part, copies = _behind(outputs, inputs), fx.Graph(), dict[fx.Node, fx.Node]()
        for node in inputs:
            copies[node] = part.placeholder(node.name)
        for node in self._module.graph.nodes:
            if node in needed and node not in copies:
                copies[node] = part.node_copy(node, copies.__getitem__)
        part.output(tuple(copies[node] for node in outputs))
        return fx.GraphModule(self._module, part)


def _recorded(function: Callable[..., Any], flat: Sequence[Tensor]) -> fx.GraphModule:
    """Record the operations of a function. Raises ConfigError where the function looks at values."""
    try:
        # Fake tensors have shapes and no values, so a function that looks at values fails here.
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*flat)
    except MassError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"losses cannot be recorded ({type(error).__name__}: {reason}), expected a function that looks at shapes "
            "and not at values; take branches and indices that depend on values out of it, or do not use traced"
        ) from error


def _without_side_effects(module: fx.GraphModule, flat: Sequence[Tensor]) -> fx.GraphModule:
    """Record once more with in-place operations replaced, and drop operations that no output depends on."""
    pure = _recorded(functionalize(module), flat)
    pure.graph.eliminate_dead_code()
    pure.recompile()
    return pure


def _behind(outputs: Iterable[fx.Node], stop: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """Return `outputs` and the nodes that they depend on, without those behind `stop`."""
    seen, stack, ends = set[fx.Node](), list(outputs), set(stop)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend([] if node in ends else node.all_input_nodes)
    return seen


def _crossing(graph: fx.Graph, grads: Sequence[fx.Node], products: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the results of the gradient's operations that the products need.

    A view is not kept but made again from its tensor, so that one tensor is not kept twice.
    """
    first, found, seen, stack = _behind(grads), set[fx.Node](), set[fx.Node](), list(products)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in first and node.op == "call_function" and not _is_view(node):
            found.add(node)
        else:
            stack.extend(node.all_input_nodes)
    return [node for node in graph.nodes if node in found]


def _is_view(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target.is_view


def _hold(found: Sequence[Tensor], expected: Sequence[Tensor], advice: str) -> None:
    """Check that two results are the same except for rounding. Raises ConfigError, whose text ends with `advice`."""
    error = relative_error(*({str(i): t.detach() for i, t in enumerate(tensors)} for tensors in (found, expected)))
    finite = all(bool(e.isfinite().all()) for e in expected)
    if finite and not error <= max(_TOLERANCE.get(e.dtype, _COARSE) for e in expected):
        raise ConfigError(f"traced losses gave derivatives that are {error:.1e} off, expected autograd's; {advice}")
