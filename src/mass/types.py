"""The values that flow between stages, all frozen.

Stages exchange these and mutate nothing: a changed value is a new one (`dataclasses.replace`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Params = dict[str, Tensor]
"""Named parameters of an adapter. A tensor of one adapter has the shape of its matrix; a stack of B adapters has a
leading axis of length B."""


Pair = tuple[str, str]
"""An example: an input and the output that answers it."""


@dataclass(frozen=True)
class Task:
    """One problem `T`. Only `problem` and `examples` may reach synthesis and adaptation; the rest is gold."""

    problem: str
    solution: str = ""
    """The worked solution; empty where the data set has none."""
    answer: str = ""
    """The final answer alone, or the tests of a program: the text that the verifier compares with."""
    subject: str = ""
    level: int | None = None
    """Difficulty, from 1; None where the data set has no levels."""
    id: str = ""
    verifier: str = "math"
    """The verifier that judges an answer: a key of `mass.verify.VERIFIERS`, or one of a user's own
    (`mass.verify.own`)."""
    examples: tuple[Pair, ...] = ()
    """Solved examples of the same task, (input, output), that are given with the problem and may be learned from."""


@dataclass(frozen=True)
class Verdict:
    """The judgement of a verifier on one answer text."""

    correct: bool | None
    """True, False, or None: no verdict (the verifier timed out, crashed, or the task has no answer)."""
    reason: str = ""
    extracted: str | None = None
    """The final answer found in the text; None when there is none."""


@dataclass(frozen=True)
class Sample:
    """One sampled continuation."""

    tokens: tuple[int, ...]
    """Generated token ids, including the end token when it was reached."""
    text: str
    """The tokens decoded without special tokens."""
    finished: bool
    """True if the end token (or a stop text) was reached before the token limit."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each token under the sampling model at temperature 1; empty unless asked for."""


def shortened(text: str, length: int = 60) -> str:
    """The text on one line, cut to at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


@dataclass(frozen=True)
class Example:
    """One candidate practice example `y_i`, kept in the record whether or not it is used."""

    problem: str
    solution: str
    text: str = ""
    """The generator's text, verbatim."""
    tokens: tuple[int, ...] = ()
    """Token ids of `text`, including the end token."""
    rejected: str = ""
    """The reason for not using it: 'unparsed: ' and the reason, 'repeat', 'copy', 'too long', 'unfinished', and where
    practice is verified 'without tests', 'failed its tests', 'no agreement'; empty for a valid example."""
    score: float | None = None
    """The scorer's `s_i`; None for a rejected example."""
    weight: float = 0.0
    """The weight `w_i` of its loss in the inner loop; 0 for a rejected example."""
    loss_before: float | None = None
    """Mean negative log-likelihood of the solution before the update, in nats per token."""
    loss_after: float | None = None
    """Mean negative log-likelihood of the solution after the update."""
    attempt: bool = False
    """True if it is an attempt at the target itself: `problem` is the target, `text` and `tokens` are the
    solution's."""
    note: str = ""
    """A remark on how it was parsed, such as 'the first of 3 problems'."""
    logprobs: tuple[float, ...] = ()
    """Log-probability of each of `tokens`, where a sampling server sampled them for training; else empty."""
    agreement: float | None = None
    """Share of the model's own solutions of the practice problem that end in the answer of `solution`; None where none
    were compared."""
    resolved: bool = False
    """True if `solution` is not the one in `text` but a sampled one, which has the most frequent answer."""
    verification_tokens: int = 0
    """Generated tokens that verifying this example took."""

    @property
    def valid(self) -> bool:
        """True if nothing speaks against using it."""
        return not self.rejected


@dataclass(frozen=True)
class Batch:
    """Token sequences of N rows, right-padded to length L, with a mask of the tokens that count."""

    input_ids: Tensor
    """[N, L] int64."""
    attention_mask: Tensor
    """[N, L] int64, 1 on real tokens."""
    target_mask: Tensor
    """[N, L] bool, True on the tokens whose log-probability counts (never position 0)."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def select(self, index: Tensor | None) -> Batch:
        """Return the rows `index` [n], cut to the longest of them; all rows if it is None, which is how
        `mass.metagrad.Losses` are called."""
        if index is None:
            return self
        mask = self.attention_mask[index]
        length = int(mask.sum(1).max())
        return Batch(self.input_ids[index, :length], mask[:, :length], self.target_mask[index, :length])


@dataclass(frozen=True)
class GateDecision:
    """The gate's decision on one problem; see `mass.adaptation.gate`."""

    adapt: bool
    """True if the adapted weights may answer."""
    reason: str
    """The first test that failed, in the words of `mass.adaptation.gate`; 'passed' where none did."""
    measures: dict[str, float] = field(default_factory=dict[str, float])
    """What was measured, by name: certainty, update_norm, least_loss, surprise,
    held_out_rise, drift."""

    @staticmethod
    def from_dict(data: dict[str, Any]) -> GateDecision:
        """Return the decision that `dataclasses.asdict` wrote, also after storage as JSON, where a number that is not
        finite became null."""
        measures = {name: math.nan if value is None else value for name, value in data["measures"].items()}
        return GateDecision(data["adapt"], data["reason"], measures)


@dataclass(frozen=True, repr=False)
class Adaptation:
    """The record of one adaptation: enough to see what was learned, to repeat it, and to switch it off."""

    problem: str
    model: str
    seed: int
    config: dict[str, Any]
    """The resolved test-time configuration."""
    config_hash: str
    checkpoint: str | None = None
    """The starting point: a folder as given to `mass.load`, 'tiny-terms/NAME' for a checkpoint in the package, or
    'untrained'; None for the default checkpoint of a model in the package."""
    state_seed: int | None = None
    """Seed of an untrained start; None for a trained one."""
    base_fingerprint: str = ""
    """Distinguishes one base from another; see `mass.adaptation.checkpoint.fingerprint`."""
    dtype: str = "float32"
    """Precision of the base."""
    lora: dict[str, Any] = field(default_factory=dict[str, Any])
    """Shape of the adapter; the default where it is empty."""
    quantization: str = "none"
    """Quantization of the base weights: none, 4bit or 8bit."""
    kind: str = "math"
    """Kind of the problem, which decides how an answer must end; see `mass.lm.prompts`."""
    prompts: dict[str, Any] = field(default_factory=dict[str, Any])
    """The prompts for practice and answers; the model's default where it is empty."""
    engine: str = ""
    """The sampling server, with its model and version, as in 'http meta-llama/Llama-3.1-8B-Instruct, vLLM 0.11.0';
    empty where this process sampled."""
    stacked: int = 1
    """Number of problems adapted side by side. A problem adapted alone replays bit for bit, others up to rounding."""
    examples: tuple[Example, ...] = ()
    """All practice examples, used or rejected."""
    fallback: str = ""
    """The reason for answering with the unadapted weights: 'no valid example', 'non-finite update', 'exploding
    update', or a reason of the gate; empty when the adapted weights answered."""
    gate: GateDecision | None = None
    """The gate's decision; None where the gate was off."""
    adapter_hash: str = ""
    """SHA-256 of the adapted parameters; of the starting ones after a fallback."""
    update_norm: float = 0.0
    """Euclidean norm of (adapted - starting) parameters divided by that of the starting ones, over all tensors."""
    unadapted_text: str | None = None
    """The answer of the unadapted weights; None if it was not asked for."""
    text: str = ""
    """The answer text."""
    answer: str | None = None
    """The final answer found in `text`; None where there is none."""
    verdict: Verdict | None = None
    """The verdict on `text`, where the gold is known."""
    unadapted_verdict: Verdict | None = None
    tokens: dict[str, int] = field(default_factory=dict[str, int])
    """Generated tokens of each stage."""
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """Wall-clock time of each stage."""

    def __repr__(self) -> str:
        used = sum(example.valid for example in self.examples)
        outcome = f"fell back: {self.fallback}" if self.fallback else f"update_norm={self.update_norm:.3g}"
        seconds = sum(self.seconds.values())
        return (
            f"Adaptation({shortened(self.problem)!r}, model={self.model!r}, {used} of {len(self.examples)} examples "
            f"used, {outcome}, {sum(self.tokens.values())} tokens, {seconds:.1f} s)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as nested dicts and tuples."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Adaptation:
        """Return the record that `to_dict` wrote, also after storage as JSON, where a norm that is not finite became
        null.

        Raises:
            TypeError: A key is unknown.
        """
        values = dict(data)
        if values.get("update_norm", 0.0) is None:
            values["update_norm"] = math.nan
        values["examples"] = tuple(example_of(e) for e in values.get("examples", ()))
        for key in ("verdict", "unadapted_verdict"):
            if values.get(key) is not None:
                values[key] = Verdict(**values[key])
        if values.get("gate") is not None:
            values["gate"] = GateDecision.from_dict(values["gate"])
        return Adaptation(**values)


def example_of(data: dict[str, Any]) -> Example:
    """Return the example that `dataclasses.asdict` wrote, also after storage as JSON."""
    values = dict[str, Any]({**data, **{name: tuple(data.get(name, ())) for name in ("tokens", "logprobs")}})
    return Example(**values)


@dataclass(frozen=True, repr=False)
class Solution:
    """An answer and how it was obtained."""

    text: str
    answer: str | None
    """The final answer found in `text`; None where there is none."""
    adaptation: Adaptation | None = None
    """The record of the adaptation; None for an answer without one."""

    def __repr__(self) -> str:
        lines = [f"Solution(answer={self.answer!r}, text={shortened(self.text)!r}"]
        if self.adaptation is not None:
            lines.append(f" adaptation={self.adaptation!r}")
        return ",\n".join(lines) + ")"


@dataclass(frozen=True)
class Candidate:
    """One way to use given examples, judged by answers to examples that were held out."""

    method: str
    """zero-shot, in-context, adapted or adapted-in-context; see `mass.config.ExamplesConfig.method`."""
    learning_rate: float | None = None
    """Rate of the inner loop; None where nothing is learned."""
    epochs: int | None = None
    """Passes over the examples; None where nothing is learned."""
    right: tuple[bool | None, ...] = ()
    """For each example, whether it was answered rightly when it was held out; None: no verdict."""
    loss: float | None = None
    """Mean over the examples of the negative log-likelihood of the held-out output, in nats per token."""
    seconds: float = 0.0
    """Seconds that trying it took."""

    @property
    def adapts(self) -> bool:
        """True if the examples go into the weights."""
        return self.method.startswith("adapted")

    @property
    def shows(self) -> bool:
        """True if the examples stand before each question."""
        return self.method.endswith("in-context")

    @property
    def correct(self) -> int:
        """Number of held-out examples that were answered rightly."""
        return sum(one is True for one in self.right)

    @property
    def judged(self) -> int:
        """Number of held-out examples with a verdict."""
        return sum(one is not None for one in self.right)

    @property
    def name(self) -> str:
        """The method with its settings, such as `adapted, rate 0.0005, 8 epochs`."""
        settings = (
            f", rate {self.learning_rate:g}, {self.epochs} epoch{'s' * (self.epochs != 1)}"
            if self.learning_rate is not None
            else ""
        )
        return self.method.replace("-in-context", " and in context").replace("in-context", "in context") + settings


@dataclass(frozen=True)
class Choice:
    """How given examples are used, and what was tried before that was chosen."""

    chosen: Candidate
    tried: tuple[Candidate, ...] = ()
    """All that was tried, in this order; empty where the method was given or nothing could be held out."""
    reason: str = ""
    """One sentence on why it was chosen, with the uncertainty of so few examples."""
    folds: int = 0
    """Parts into which the examples were divided, each held out once."""
    notes: tuple[str, ...] = ()
    """Remarks on the examples: repeated, contradictory or too long ones, weights of labels."""


Groups = list[tuple[Example, ...]]
"""The practice examples of each of B problems."""
