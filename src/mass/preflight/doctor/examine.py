"""Load the first layers of a model, make each check with each attention implementation, and report.

The first attention is compared with central differences. Each later one is compared with the first that is proven:
equal numbers at the same point, in float64, are proven too, and the comparison is much cheaper. Where they differ, the
later one is compared with central differences as well, which tell whose numbers are wrong.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mass.config import LoraConfig
from mass.errors import ModelError
from mass.lm.attention import always_fused
from mass.lm.logprobs import always_chunked
from mass.lm.lora import LoraSites
from mass.lm.prompts import PLAIN
from mass.metagrad.check import gradient, relative_error
from mass.preflight.doctor import precision
from mass.preflight.doctor.derivatives import Around, meta_gradient, meta_gradients_at_once
from mass.preflight.doctor.loading import Base, load
from mass.preflight.doctor.problem import BilevelProblem, Point, make_point, make_problem
from mass.preflight.doctor.report import CHECKPOINTING, MICRO_BATCHES, Check, DoctorReport
from mass.preflight.doctor.text import CutVocabulary, differing_texts
from mass.preflight.doctor.weights import SharedWeights
from mass.preflight.doctor.wide import widen
from mass.types import Params

EXACT_ATTENTIONS = ("eager", "sdpa")
"""Attention implementations that `mass.lm` can differentiate twice."""
EXACT, SAME = 1e-6, 1e-9
"""Bounds on relative errors: against central differences; and between two ways to the same number in float64."""
OTHER_ATTENTION = "try another --attention; where the model has kernels of its own, replace them by plain PyTorch"
NO_SECOND = 'use another --attention, or adapt(..., mode="finite_difference") in float32'
STATEFUL = "turn dropout off (model.eval()); a layer that keeps something between calls has to go"
NO_LAYERS = "this model's layers cannot be checkpointed"


def examine(
    name: str,
    *,
    layers: int | None = None,
    attentions: Sequence[str] = ("eager", "sdpa"),
    dtype: str = "auto",
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> DoctorReport:
    """Load the first layers of a model and measure on them, in float64, what the engine relies on; then in `dtype`.

    Args:
        name: A model as `mass.load` takes it.
        layers: How many layers to load. None: as many as are needed to include each kind of layer, at least 2.
        attentions: Implementations, named as in transformers.
        dtype: The precision the model will run in. auto: the one that `mass.load` would choose here.
        seed: Seed of adapter and directions.
        progress: Called with a description of each thing that is done.

    Raises:
        ModelError: The model cannot be loaded.
        ConfigError: An option does not fit the model or the machine.
    """
    began = time.monotonic()
    progress(f"loading {name}")
    base = load(name, layers, dtype, seed)
    bench = Bench(base, seed, progress)
    checks, known = [_tokenizer(base.tokenizer), _same_text(bench, attentions)], list[Findings]()
    for attention in attentions:
        with always_fused(), always_chunked():
            rows, found = examine_attention(bench, attention, known)
        checks += rows
        if found is not None:
            checks += _agreement(known, found)
            known.append(found)
    return DoctorReport(base.loaded, base.reach, tuple(checks), time.monotonic() - began)


class Bench:
    """A loaded model, with the values that all attentions share."""

    def __init__(self, base: Base, seed: int, progress: Callable[[str], None]) -> None:
        self.base, self.seed, self.progress = base, seed, progress
        self.dtype: torch.dtype = getattr(torch, base.loaded.dtype)
        self.explained: float | None = None
        """The error that rounding to `dtype` makes: it depends on the modules, not on the attention."""

    @functools.cached_property
    def _wide(self) -> SharedWeights:
        return SharedWeights(self.base.model, torch.float64)

    def problem(self, attention: str, dtype: torch.dtype) -> BilevelProblem:
        """Return the test problem on the model with this attention. In float64 its experts are plain: grouped
        kernels have no float64."""
        if attention not in EXACT_ATTENTIONS:  # refused before transformers looks for kernels on the hub
            raise ModelError(f"attention {attention!r} has no exact second derivative; expected eager or sdpa")
        weights = self._wide if dtype == torch.float64 else SharedWeights(self.base.model, dtype)
        model = weights.copy()
        model.set_attn_implementation(attention)
        if dtype == torch.float64 and self.has_grouped_experts:
            model.set_experts_implementation("eager")
        sites = LoraSites(model, LoraConfig(r=4, lora_alpha=8.0))
        lm = CutVocabulary(model, self.base.tokenizer, self.base.loaded.model, PLAIN, sites)
        if dtype == torch.float64:
            widen(model)
        return make_problem(lm, self.base.rows)

    @property
    def has_grouped_experts(self) -> bool:
        return getattr(self.base.model.config, "_experts_implementation", None) not in (None, "eager")


@dataclass(frozen=True)
class Findings:
    """The results of one attention, with which others are compared."""

    attention: str
    at: Point
    gradient: Params
    product: Params
    """H u of the practice losses; only if it is proven."""
    meta: Point
    """The meta-gradients."""
    proven: bool
    """True if every needed check passed."""


def _tokenizer(tokenizer: Any) -> Check:
    missing = [name for name in ("pad_token", "eos_token") if getattr(tokenizer, f"{name}_id") is None]
    way_out = f"tokenizer.{missing[0]} = ...; tokenizer.save_pretrained(folder)" if missing else ""
    note = f"has no {' and no '.join(missing)}" if missing else "has padding and end tokens"
    return Check("tokenizer", "fail" if missing else "pass", note=note, way_out=way_out)


def _same_text(bench: Bench, attentions: Sequence[str]) -> Check:
    """Compare decoded texts, with the first attention that the model accepts: the content of the cache does not
    depend on which."""
    name, note = "same text as generate", "share of three unequal prompts in one batch"
    way_out = "use a decoder whose layers are attention; its answers would be wrong text"
    bench.progress(name)
    last: Check | None = None
    for attention in attentions:
        try:
            share = differing_texts(bench.problem(attention, torch.float64).lm, bench.seed)
        except Exception as error:  # any exception is a result to report
            last = Check(name, "fail", note=_one_line(error), way_out=way_out)
            continue
        good = share == 0
        return Check(name, "pass" if good else "fail", "", share, 0.0, note, "" if good else way_out)
    return last or Check(name, "skipped", note="no attention to decode with")


def examine_attention(bench: Bench, attention: str, known: Sequence[Findings]) -> tuple[list[Check], Findings | None]:
    """Make all checks with this attention. Return them, and its results if meta-gradients could be computed."""
    rows, proof = _Rows(attention, bench.progress), next((found for found in known if found.proven), None)
    bench.progress(f"{attention}: preparing float64")
    try:
        problem = bench.problem(attention, torch.float64)
        if known:
            at, slope = known[0].at, gradient(problem.practice_loss, known[0].at.start)
        else:
            at, slope = make_point(problem, bench.seed)
    except Exception as error:  # any exception of a model or kernel is a result to report
        return [rows.check("runs", "fail", note=_one_line(error), way_out="use another --attention")], None
    around = Around(problem, at, slope, bench.seed + 100)
    found = [rows.check("runs", "pass"), _repeats(rows, problem, at), *_derivatives(rows, around, proof)]
    meta = rows.attempt("meta-gradient", functools.partial(problem.meta_gradients, at))
    if isinstance(meta, Check):
        return [*found, replace(meta, way_out=NO_SECOND)], None
    found += _meta_gradients(rows, problem, at, meta, proof, bench.seed + 300)
    found += _economies(rows, problem, around)
    proven = all(row.status != "fail" for row in found if row.needed)
    found.append(_precision(rows, bench, problem, at, meta))
    return found, Findings(attention, at, slope, around.product if proven else {}, meta, proven)


@dataclass(frozen=True)
class _Rows:
    """Makes the rows of the report for one attention."""

    attention: str
    progress: Callable[[str], None]

    def check(self, name: str, status: Any, **fields: Any) -> Check:
        return Check(name, status, self.attention, **fields)

    def attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, or a failed check with the exception it raised."""
        self.progress(f"{self.attention}: {name}")
        try:
            return make()
        except Exception as error:  # any exception is a result to report
            return self.check(name, "fail", note=_one_line(error))

    def error(
        self, name: str, bound: float, note: str, way_out: str, make: Callable[[], float], *, needed: bool = True
    ) -> Check:
        """Return a check of a relative error."""
        measured = self.attempt(name, make)
        if isinstance(measured, Check):
            return replace(measured, bound=bound, way_out=way_out, needed=needed)
        good = measured <= bound
        return self.check(
            name, "pass" if good else "fail", measured=measured, bound=bound, note=note,
            way_out="" if good else way_out, needed=needed,
        )  # fmt: skip


def _repeats(rows: _Rows, problem: BilevelProblem, at: Point) -> Check:
    """Check that the loss is the same bit for bit when it is computed twice.

    In between, the random state changes and the model is called with other parameters: dropout or stored state would
    show.
    """

    def difference() -> float:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            before = problem.losses(at.start)
            torch.manual_seed(2)
            problem.losses({name: 1.1 * p for name, p in at.start.items()})
            after = problem.losses(at.start)
        return float((after - before).abs().max() / before.abs().max())

    return rows.error("same loss twice", 0.0, "bit for bit: no dropout, no state", STATEFUL, difference)


def _derivatives(rows: _Rows, around: Around, proof: Findings | None) -> list[Check]:
    """Check the first and second derivative of the practice losses."""

    def row(name: str, note: str, way_out: str, make: Callable[[], float], same: Callable[[Findings], float]) -> Check:
        if proof is not None:
            check = rows.error(name, SAME, _proof_of(proof), way_out, functools.partial(same, proof))
            if check.status == "pass":
                return check
        return rows.error(name, EXACT, note, way_out, make)

    return [
        row(
            "first derivative", "central differences", OTHER_ATTENTION,
            around.first_derivative, lambda proof: relative_error(around.gradient, proof.gradient),
        ),
        row(
            "second derivative", "central differences of gradients", NO_SECOND,
            around.second_derivative, lambda proof: relative_error(around.product, proof.product),
        ),
    ]  # fmt: skip


def _meta_gradients(
    rows: _Rows, problem: BilevelProblem, at: Point, exact: Point, proof: Findings | None, seed: int
) -> list[Check]:
    """Check the meta-gradients by differences: all parts at once, and each part separately only where that fails."""
    parts = list(at.parts())
    if proof is not None:
        errors = [relative_error(exact.parts()[part], proof.meta.parts()[part]) for part in parts]
        if max(errors) <= SAME:
            same = functools.partial(rows.check, status="pass", bound=SAME, note=_proof_of(proof))
            return [same(f"meta-gradient of {part}", measured=e) for part, e in zip(parts, errors, strict=True)]

    def row(part: str, measure: Callable[[], float]) -> Check:
        return rows.error(f"meta-gradient of {part}", EXACT, "central differences, K = 2", NO_SECOND, measure)

    together = row(parts[0], lambda: meta_gradients_at_once(problem, at, exact, seed))
    if together.status == "pass":
        return [replace(together, name=f"meta-gradient of {part}") for part in parts]
    return [row(part, functools.partial(meta_gradient, problem, at, part, exact, seed)) for part in parts]


def _economies(rows: _Rows, problem: BilevelProblem, around: Around) -> list[Check]:
    """Check that ways of saving memory do not change numbers: both ways at once, and each separately only where that
    fails."""
    sizes = rows.attempt(CHECKPOINTING, lambda: [problem.saved_bytes(around.at, flag) for flag in (False, True)])
    share = 1.0 if isinstance(sizes, Check) else sizes[1] / sizes[0]
    # Checkpointing that works makes the graph much smaller; otherwise its layers cannot be checkpointed.
    wrapped = share < 0.9

    def row(name: str, note: str, option: str, *, one_by_one: bool, checkpoint: bool) -> Check:
        make = functools.partial(around.with_economies, one_by_one=one_by_one, checkpoint=checkpoint)
        return rows.error(name, SAME, note, f"leave {option} unset", make, needed=False)

    notes = "gradient, H u of all at once", f"none; its graph is {share:.2f} as large"
    micro = row(MICRO_BATCHES, notes[0], "micro_batch", one_by_one=True, checkpoint=wrapped)
    if wrapped and micro.status == "pass":
        return [micro, replace(micro, name=CHECKPOINTING, note=notes[1])]
    if wrapped:
        micro = row(MICRO_BATCHES, notes[0], "micro_batch", one_by_one=True, checkpoint=False)
        return [micro, row(CHECKPOINTING, notes[1], "checkpoint", one_by_one=False, checkpoint=True)]
    if isinstance(sizes, Check):
        return [micro, replace(sizes, needed=False, way_out="leave checkpoint unset")]
    return [micro, rows.check(CHECKPOINTING, "skipped", note=NO_LAYERS, needed=False)]


def _precision(rows: _Rows, bench: Bench, wide: BilevelProblem, at: Point, exact: Point) -> Check:
    """Check the meta-gradients in the precision asked for against float64 with the same weights."""
    name = f"in {bench.base.loaded.dtype}"
    if bench.dtype == torch.float64:
        return rows.check(name, "skipped", note="is the reference itself")
    way_out = f"--model.dtype {'float32' if bench.dtype != torch.float32 else 'float64'}"
    if bench.has_grouped_experts:
        way_out = f'"experts_implementation": "eager" in config.json, or {way_out}'
    check = rows.error(
        name, precision.FINEST, "float64", way_out,
        lambda: precision.error_of(bench.problem(rows.attention, bench.dtype), at, exact),
    )  # fmt: skip
    if check.measured is None or check.status == "pass":
        return check
    allowed = bench.explained
    if allowed is None:
        eager = wide if rows.attention == "eager" else None
        allowed = rows.attempt(
            name, lambda: precision.explained(eager or bench.problem("eager", torch.float64), at, exact, bench.dtype)
        )
    if isinstance(allowed, Check):
        return replace(allowed, way_out="give --model.dtype float64 to leave this out")
    bench.explained = allowed
    bound = precision.bound_of(allowed)
    good = check.measured <= bound
    return replace(
        check, status="pass" if good else "fail", bound=bound, note=f"float64; rounding explains {allowed:.1g}",
        way_out="" if good else way_out,
    )  # fmt: skip


def _agreement(known: Iterable[Findings], found: Findings) -> list[Check]:
    for other in known:
        error = _difference(found.meta, other.meta)
        status, way_out = ("pass", "") if error <= SAME else ("fail", "use the one whose other checks pass")
        note = f"meta-gradients with {other.attention}"
        return [Check("same as others", status, found.attention, error, SAME, note, way_out, False)]
    return []


def _proof_of(found: Findings) -> str:
    return f"the same with {found.attention}, which is proven above"


def _difference(got: Point, expected: Point) -> float:
    parts = expected.parts()
    return max(relative_error(got.parts()[part], parts[part]) for part in parts)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:159]}…"
