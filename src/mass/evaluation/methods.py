"""Define the methods of a comparison: which weights each uses, adapted or not, with votes or ranking.

| method | adapter | practice |
| --- | --- | --- |
| base | none | none |
| base-ttt | untrained | random training problems with their worked solutions |
| tt-ss | untrained | written by the model itself, all weighted equally |
| tt-ss-likelihood | untrained | the same, weighted by how likely the model finds its solutions |
| tt-ss-verified | untrained | the same, what fails its own tests or finds no agreement rejected |
| solver-grpo, solver-sft, self-sft | trained | none |
| mass-gold, mass | meta-trained | written and weighted by the model itself |
| mass-gold-unadapted, mass-unadapted | the same checkpoint | none |
| maj@n, mass-maj@n | none; that of mass | none: majority vote of n sampled answers |
| base-best-of-n, best-of-n | none; that of mass | none: of n sampled answers, the one that mass's scorer rates highest
|
| in-context | that of mass | the practice that mass writes, put before the problem instead of into the weights |
| examples | the state's start | solved examples that come with the problem, used as held-out ones say is best |
| examples-zero-shot, examples-in-context, examples-adapted, examples-adapted-in-context | the same | the same, unused,
in the prompt, in the weights, or both |

n is chosen to generate as many tokens as mass; a number may stand in its place: maj@8, best-of-8.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mass.errors import ConfigError, nearest

Way = Literal["auto", "zero-shot", "in-context", "adapted", "adapted-in-context"]

TT_SS_LIKELIHOOD = "tt-ss-likelihood"
TT_SS = ("tt-ss", TT_SS_LIKELIHOOD)
"""Untrained methods with practice of their own, which differ in its weights alone."""
TT_SS_VERIFIED = "tt-ss-verified"
UNTRAINED_METHODS = ("base-ttt", *TT_SS, TT_SS_VERIFIED)
ADAPTING = (*UNTRAINED_METHODS, "mass-gold", "mass")
PLAIN_TRAINED = ("solver-grpo", "solver-sft", "self-sft")
"""Methods that are trained, and answered with the trained weights as they are."""
TRAINED = (*PLAIN_TRAINED, "mass-gold", "mass")
"""Methods that use a checkpoint."""
IN_CONTEXT = "in-context"
WAY_OF: dict[str, Way] = {
    "examples": "auto",
    "examples-zero-shot": "zero-shot",
    "examples-in-context": "in-context",
    "examples-adapted": "adapted",
    "examples-adapted-in-context": "adapted-in-context",
}
"""Methods for problems that bring solved examples -> `ExamplesConfig.method`."""
METHODS = (
    "base",
    *UNTRAINED_METHODS,
    *TRAINED,
    "mass-gold-unadapted",
    "mass-unadapted",
    "maj@n",
    "mass-maj@n",
    "base-best-of-n",
    "best-of-n",
    IN_CONTEXT,
    *WAY_OF,
)
_UNADAPTED = "-unadapted"
_CHOICE = re.compile(r"(?:(mass-)?maj@|(base-)?best-of-)(n|[1-9][0-9]{0,4})")


@dataclass(frozen=True)
class Choice:
    """A method that chooses among n sampled answers."""

    how: Literal["majority", "scorer"]
    sampler: Literal["base", "mass"]
    """The model that samples the answers: the base, or the checkpoint of mass with the adaptation switched off."""
    n: int | None
    """Number of samples; None: as many as it takes to generate at least the tokens of mass."""

    def label(self, n: int) -> str:
        """Return the method's name once n is known, such as `maj@9`."""
        if self.how == "majority":
            return f"{'mass-' * (self.sampler == 'mass')}maj@{n}"
        return f"{'base-' * (self.sampler == 'base')}best-of-{n}"


def choice_of(method: str) -> Choice | None:
    """Parse a method such as 'maj@n' or 'best-of-8'; None for a method that does not choose."""
    match = _CHOICE.fullmatch(method)
    if match is None:
        return None
    majority = "maj@" in method
    of_mass = bool(match[1]) if majority else not match[2]
    n = None if match[3] == "n" else int(match[3])
    return Choice("majority" if majority else "scorer", "mass" if of_mass else "base", n)


def checkpoint_of(method: str) -> str | None:
    """Return the trained method whose checkpoint a method uses; None where it needs none."""
    choice = choice_of(method)
    if method == IN_CONTEXT or (choice is not None and (choice.sampler == "mass" or choice.how == "scorer")):
        return "mass"
    name = method.removesuffix(_UNADAPTED)
    return name if name in TRAINED else None


def check_methods(methods: Sequence[str]) -> list[str]:
    """Return the methods without repeats.

    Raises:
        ConfigError: A method is unknown, or there is none.
    """
    for method in methods:
        if method not in METHODS and choice_of(method) is None:
            raise ConfigError(f"method {method!r} is unknown{nearest(method, METHODS)}")
    if not methods:
        raise ConfigError(f"no methods given; expected some of {', '.join(METHODS)}")
    return list(dict.fromkeys(methods))


def check_against(against: str | None, methods: Sequence[str]) -> str:
    """Return the method that the others are compared with: base where none is chosen.

    Raises:
        ConfigError: The chosen one is not among the methods.
    """
    if against is not None and against not in methods:
        raise ConfigError(
            f"against is {against!r}, which is not compared{nearest(against, methods)}; add it to the methods, or "
            "choose another"
        )
    return against or "base"


def in_order(methods: Sequence[str]) -> list[str]:
    """Return the methods in an order in which they can run: base first, then those that others are measured by, then
    those that choose."""

    def place(method: str) -> tuple[bool, bool]:
        return (choice_of(method) is not None or method == IN_CONTEXT, method != "base")

    return sorted(methods, key=place)
