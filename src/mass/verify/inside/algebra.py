"""Decide by algebra whether two formulas in LaTeX are equal. Runs in a worker process; imports nothing from mass.

latex2sympy, math-verify's parser, reads them; math-verify's `verify` takes sets, intervals, equations and matrices
apart. Its two comparisons of expressions are replaced: they set to zero what is below 1e-15 and round decimals to six
places, so that 10^{-30} would equal 2·10^{-30}. Here exact values are equal where their difference is proved to be
zero, or, if SymPy can neither prove nor refute that, is zero in `PROOF_DIGITS` digits. A decimal with six digits or
more stands for any value that rounds to it, by its own last digit; a shorter one is exact.
"""

from __future__ import annotations

import functools
import importlib
import re
from typing import Any

SHORT_DIGITS, PROOF_DIGITS = 40, 200
ROUNDED_DIGITS = 6
SAMPLES = ("0.6180339887", "1.7320508076", "-2.2360679775", "3.6055512755", "-0.4142135624", "5.3851648071")
"""Values for the variables, to refute an identity quickly: of both signs, and none of them special."""

_PRODUCT = (
    # A number before a bracket, and brackets before a number, are products; the parser would read mixed numbers.
    (re.compile(r"(?<![\w.^\\{_])([0-9]+)\s*(?=\()"), r"\1\\cdot "),
    (re.compile(r"(?<=\))\s*(?=[0-9(]|\\frac)"), r"\\cdot "),
    (re.compile(r"(\\frac\{[0-9]+\}\{[0-9]+\})\s*(?=[0-9(]|\\frac)"), r"\1\\cdot "),
)
_MIXED = re.compile(r"(?<![\w.^\\{_}])([0-9]+)\s?\\frac\{([0-9]+)\}\{([0-9]+)\}")
_PRIMES = re.compile(r"(?<=[A-Za-z])'{1,4}")
_DECIMAL = re.compile(r"[0-9]*\.([0-9]+)")
_OR = re.compile(r"(?<![A-Za-z\\])or(?![A-Za-z])")


def equal(gold: str, answer: str) -> bool:
    """Return True if `answer` equals `gold`; pass on any exception of the comparison."""
    grader = _grader()
    try:
        one, other = parsed(gold), parsed(answer)
    except Exception:  # the parser raises many types: all mean that it cannot read the text
        return False
    sympy: Any = importlib.import_module("sympy")
    if any(side.has(sympy.nan, sympy.zoo) for side in (one, other) if isinstance(side, sympy.Basic)):
        return False
    tolerance = _tolerance(gold) + _tolerance(answer)

    def same_value(a: Any, b: Any, *_places: int) -> bool:
        return _same_value(a, b, tolerance)

    # math-verify looks these functions up in its own module at each call, so replacing them there is enough. The
    # tolerance changes with each pair.
    grader.sympy_numeric_eq = grader.sympy_symbolic_eq = grader.sympy_compare_symbols = same_value
    # `x < 2` against an interval: compare both as sets. Symbols of the set are constants, not the unknown.
    if _is_set(one) != _is_set(other):
        constants = (one if _is_set(one) else other).free_symbols
        one, other = _as_set(one, gold, constants), _as_set(other, answer, constants)
    options = {"timeout_seconds": None, "raise_on_error": True, "allow_set_relation_comp": True}
    if grader.verify(one, other, **options):
        return True
    if one.has(*_inequalities()) and other.has(*_inequalities()):
        return bool(grader.verify(_as_set(one, gold, set()), _as_set(other, answer, set()), **options))
    return False


@functools.cache
def _grader() -> Any:
    """Return math-verify's grader, changed in one point: as it comes, it takes any two equations without real
    solutions as equal."""
    sympy: Any = importlib.import_module("sympy")
    grader: Any = importlib.import_module("math_verify.grader")
    grader.INVERSE_RELATIONS[sympy.Ne] = sympy.Ne
    by_solutions = grader.sympy_solve_and_compare

    def solve_and_compare(gold: Any, answer: Any, *places: int) -> bool:
        return bool(sympy.solve(gold, gold.free_symbols)) and by_solutions(gold, answer, *places)

    grader.sympy_solve_and_compare = solve_and_compare
    return grader


@functools.lru_cache(maxsize=256)
def parsed(text: str) -> Any:
    """Return `text` as an unevaluated SymPy object. Capital and small letters are different variables."""
    library: Any = importlib.import_module("latex2sympy2_extended.latex2sympy2")
    config = library.NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
    text = _MIXED.sub(_improper, text)
    for pattern, written in _PRODUCT:
        text = pattern.sub(written, text)
    # As an index, a prime stays part of the name: f' is not f.
    text = _PRIMES.sub(lambda match: "_{" + "prime" * len(match[0]) + "}", text)
    found = library.latex2sympy(
        library.normalize_latex(text, config),
        is_real=not _grader().should_treat_as_complex(text),
        normalization_config=None,
        conversion_config=library.ConversionConfig(lowercase_symbols=False),
    )
    sympy: Any = importlib.import_module("sympy")
    return found.xreplace({symbol: sympy.I for symbol in found.free_symbols if symbol.name == "i"})


def _improper(match: re.Match[str]) -> str:
    whole, top, bottom = map(int, match.groups())
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}"


# --- inequalities as sets


def _is_set(found: Any) -> bool:
    sympy: Any = importlib.import_module("sympy")
    if isinstance(found, sympy.FiniteSet):
        return not any(isinstance(element, _inequalities()) for element in found.args)
    if isinstance(found, sympy.Eq):
        return isinstance(found.rhs, sympy.Set)
    return isinstance(found, sympy.Set)


@functools.cache
def _inequalities() -> tuple[Any, ...]:
    sympy: Any = importlib.import_module("sympy")
    return sympy.Lt, sympy.Le, sympy.Gt, sympy.Ge, sympy.Ne


def _as_set(found: Any, text: str, constants: set[Any]) -> Any:
    """Return the set of values of one variable that inequalities allow; `constants` are not taken as that variable.

    In a list of inequalities any one may hold; with `and` between them, all must hold.
    """
    sympy: Any = importlib.import_module("sympy")
    if isinstance(found, sympy.Eq) and isinstance(found.rhs, sympy.Set):
        return found.rhs
    if isinstance(found, sympy.FiniteSet) and not _is_set(found):
        union = _OR.search(text) or not re.search(r"(?<![A-Za-z\\])and(?![A-Za-z])", text)
        return (sympy.Union if union else sympy.Intersection)(*(_as_set(each, "", constants) for each in found.args))
    if isinstance(found, sympy.And):
        return sympy.Intersection(*(_as_set(each, "", constants) for each in found.args))
    if isinstance(found, _inequalities()):
        return _solved(sympy, found, constants)
    return found


def _solved(sympy: Any, relation: Any, constants: set[Any]) -> Any:
    low, high = relation.lhs, relation.rhs
    if isinstance(relation, sympy.Ne):
        return sympy.Complement(sympy.Reals, sympy.FiniteSet(high)) if low.is_Symbol else relation
    strict = isinstance(relation, (sympy.StrictLessThan, sympy.StrictGreaterThan))
    if isinstance(relation, (sympy.StrictGreaterThan, sympy.GreaterThan)):
        low, high = high, low
    if low.is_Symbol and low not in constants:
        return sympy.Interval(-sympy.oo, high, True, strict)
    if high.is_Symbol and high not in constants:
        return sympy.Interval(low, sympy.oo, strict, True)
    return relation.func(relation.lhs.doit(), relation.rhs.doit()).as_set()


# --- one expression against another


def _tolerance(text: str) -> float:
    """Return the relative error that the rounded decimals in `text` allow."""
    found = 0.0
    for match in _DECIMAL.finditer(text):
        digits = match[0].replace(".", "").lstrip("0")
        if min(len(match[1]), len(digits)) >= ROUNDED_DIGITS:
            found += 0.500001 / int(digits)
    return found


def _same_value(one: Any, other: Any, tolerance: float) -> bool:
    sympy: Any = importlib.import_module("sympy")
    if isinstance(one, sympy.MatrixBase) or isinstance(other, sympy.MatrixBase):
        return _same_matrix(one, other, tolerance)
    one, other = _exact(one), _exact(other)
    if one == other:
        return True
    if not (isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)) or one.has(sympy.oo, -sympy.oo):
        return False
    if _has_bare_derivative(sympy, one) or _has_bare_derivative(sympy, other):
        return False
    told = _by_samples(one, other, tolerance)
    return _proved(one, other) if told is None else told


def _has_bare_derivative(sympy: Any, found: Any) -> bool:
    """Return True for an expression such as dy/dx with unknown y: evaluated, it would be zero."""
    return any(not derivative.expr.has(*derivative.variables) for derivative in found.atoms(sympy.Derivative))


def _same_matrix(one: Any, other: Any, tolerance: float) -> bool:
    if getattr(one, "shape", None) != getattr(other, "shape", ()):
        return False
    one, other = one.doit(), other.doit()
    return all(_same_value(a, b, tolerance) for a, b in zip(one, other, strict=True))


def _exact(found: Any) -> Any:
    """Return the expression with decimals as exact fractions and with integrals and sums evaluated."""
    sympy: Any = importlib.import_module("sympy")
    if not isinstance(found, sympy.Basic):
        return found
    found = found.xreplace({decimal: sympy.Rational(str(decimal)) for decimal in found.atoms(sympy.Float)})
    done = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative, sympy.UnevaluatedExpr)
    return found.doit() if found.has(*done) and not _has_bare_derivative(sympy, found) else found


def _by_samples(one: Any, other: Any, tolerance: float) -> bool | None:
    """Return False where the two differ at some values of their variables, True where they differ by rounding alone.

    Return None where they agree in `SHORT_DIGITS` digits, which proves nothing, and where they cannot be evaluated.
    """
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    rounded = False
    for start in range(3 if symbols else 1):
        values = [SAMPLES[(start + place) % len(SAMPLES)] for place in range(len(symbols))]
        difference = _difference(one, other, dict(zip(symbols, values, strict=True)), SHORT_DIGITS)
        if difference is None:
            return None
        if difference > tolerance:
            if difference > 10.0 ** (3 - SHORT_DIGITS):
                return False
        else:
            rounded = rounded or difference > 10.0 ** (3 - SHORT_DIGITS)
    return True if rounded else None


def _difference(one: Any, other: Any, values: dict[Any, str], digits: int) -> float | None:
    """Return |one - other| over the larger of the two, at the values; None where that is not a number."""
    sympy: Any = importlib.import_module("sympy")
    exact = {symbol: sympy.Rational(value) for symbol, value in values.items()}
    a, b = (side.xreplace(exact).evalf(digits) for side in (one, other))
    if not (a.is_number and b.is_number) or a.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    size = max(abs(a), abs(b))
    return 0.0 if size == 0 else float(abs(a - b) / size)


def _proved(one: Any, other: Any) -> bool:
    """Return True if the difference is zero: by algebra, else to `PROOF_DIGITS` digits at the samples."""
    sympy: Any = importlib.import_module("sympy")
    difference = sympy.simplify(one - other)
    if difference.is_zero is not None:
        return bool(difference.is_zero)
    if difference.is_number and (known := difference.equals(0)) is not None:
        return bool(known)
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    for start in range(3 if symbols else 1):
        values = {s: SAMPLES[(start + place) % len(SAMPLES)] for place, s in enumerate(symbols)}
        apart = _difference(one, other, values, PROOF_DIGITS)
        if apart is None or apart > 10.0 ** (10 - PROOF_DIGITS):
            return False
    return True
