"""Check that a sampling server serves the same model as this process, and applies adapters in the same way.

Samples of a server are only right if they come from the same weights. Another base, another precision, a tokenizer of
another version, and above all an adapter that the server loads without an error and does not apply
(vllm-project/vllm issue 34186: names of layers that do not match) all give text that looks correct. So two short
samples are drawn before the first real request, and the log-probability of each token is compared with the one computed
here: under the base, and under a test adapter strong enough to change log-probabilities by one nat on average.
"""

from __future__ import annotations

import torch

from mass.config import SamplingConfig
from mass.errors import EngineError
from mass.lm.remote.answers import mean_difference
from mass.lm.remote.http import HttpEngine
from mass.lm.remote.protocol import Local
from mass.types import Params

PROBE = SamplingConfig(max_new_tokens=24, temperature=1.0)
EFFECT = 1.0
"""Least change of log-probabilities by the test adapter, in nats per token."""
DOUBLINGS = 24
"""Number of times that the test adapter is made twice as strong before giving up."""


def check_agreement(engine: HttpEngine) -> None:
    """Compare the server with the model here.

    Raises EngineError for a difference of more than `model.engine.agreement`.
    """
    local, config = engine.local, engine.config
    (base,) = engine.sample([local.prompt], PROBE, [1], with_logprobs=True)
    difference = mean_difference(base.logprobs, local.logprobs(local.prompt, base.tokens, None))
    if not difference <= config.agreement:
        raise EngineError(
            f"the server's {engine.served.name!r} gives its tokens other log-probabilities than {local.name!r} here, "
            f"by {difference:.3g} nats per token; expected at most {config.agreement:g}; serve the same weights in the "
            "same precision, without another quantisation (or raise model.engine.agreement)"
        )
    if config.lora_dir is not None:
        _check_adapter(engine, strong_adapter(local, base.tokens))


def _check_adapter(engine: HttpEngine, adapter: Params) -> None:
    """Compare log-probabilities under the test adapter. Raises EngineError."""
    local, allowed = engine.local, engine.config.agreement
    (sample,) = engine.sample([local.prompt], PROBE, [2], adapter, with_logprobs=True)
    adapted, plain = (local.logprobs(local.prompt, sample.tokens, one) for one in (adapter, None))
    difference, effect = mean_difference(sample.logprobs, adapted), mean_difference(adapted, plain)
    # Rounding is magnified by so strong an adapter, so an eighth of its effect is allowed too; an adapter that is not
    # applied differs by its whole effect.
    if difference <= max(allowed, effect / 8) and difference < effect / 2:
        return
    ignored = mean_difference(sample.logprobs, plain) < difference
    what = "does not apply a test adapter that it loaded" if ignored else "applies a test adapter in another way"
    raise EngineError(
        f"the server {what}: its log-probabilities are {difference:.3g} nats per token from those here, of an effect "
        f"of {effect:.3g}; expected at most {allowed:g}; update vLLM, or leave out "
        "of lora.target_modules the layers it skips"
    )


def strong_adapter(local: Local, tokens: tuple[int, ...]) -> Params:
    """Make a random adapter just strong enough to change the log-probabilities of `tokens` by `EFFECT` on average.

    Raises EngineError where no adapter changes them.
    """
    plain = local.logprobs(local.prompt, tokens, None)
    generator = torch.Generator().manual_seed(0)
    start = local.init_adapter(0)
    noise = {
        name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
        for name, t in start.items()
        if name.endswith("lora_B")
    }
    for doubling in range(DOUBLINGS):
        adapter = {name: noise[name] * 1e-4 * 2**doubling if name in noise else t for name, t in start.items()}
        if mean_difference(local.logprobs(local.prompt, tokens, adapter), plain) >= EFFECT:
            return adapter
    raise EngineError(
        "no test adapter changes the model's log-probabilities, so the server cannot be compared; set "
        "model.engine.check to false, or widen lora.target_modules"
    )
