"""The settings of a comparison of methods."""

from __future__ import annotations

from dataclasses import dataclass

from mass.config.adapt import InnerConfig, SamplingConfig, SynthesisConfig
from mass.config.checks import require, require_numbers
from mass.config.examples import ExamplesConfig
from mass.config.yaml_file import FromYaml


@dataclass(frozen=True)
class EvalConfig(FromYaml):
    """The settings of a comparison of methods."""

    answer: SamplingConfig = SamplingConfig(max_new_tokens=1024, temperature=0.0)
    """Sampling of the answer of every method; it replaces that of a checkpoint."""
    ttt: InnerConfig | None = None
    """Inner loop of the untrained methods, base-ttt and tt-ss; None: as the model's own configuration starts it."""
    sharpness: float = 10.0
    """For tt-ss-likelihood, whose weights are softmax(sharpness x the mean log-probability of a solution's tokens,
    nats) over the examples; 0 weights them equally."""
    synthesis: SynthesisConfig | None = None
    """Practice of the untrained methods; None: as the model's own configuration has it, so that all have as much."""
    examples: int | None = None
    """m of every adapting method; None: as its configuration or checkpoint has it."""
    steps: int | None = None
    """K of every adapting method; None: as its configuration or checkpoint has it."""
    samples: int = 0
    """Answers sampled for each problem, method and temperature, beside the one of `answer`; 0: none."""
    temperatures: tuple[float, ...] = (0.6, 1.0)
    """Temperatures at which `samples` are drawn, as in [0.6,1.0]. One adaptation of a problem serves all of them."""
    votes: int = 8
    """n of maj@n, best-of-n and the like when mass is not compared; otherwise as many samples as generate at least the
    tokens of mass."""
    vote_temperature: float = 1.0
    """Temperature of the samples that maj@n, best-of-n and the like choose among."""
    learn: ExamplesConfig = ExamplesConfig()
    """How the examples methods learn; their way of using the examples is the method's own."""
    stack: int = 32
    """Problems answered side by side. Memory grows with it; the result does not change but for rounding."""
    resamples: int = 10_000
    """Bootstrap resamples of an interval."""

    def __post_init__(self) -> None:
        for name in ("votes", "stack", "resamples"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require_numbers(self, "", ("sharpness",), least=0)
        require(self.vote_temperature > 0, "vote_temperature", self.vote_temperature, "more than 0")
        require(self.examples is None or self.examples >= 1, "examples", self.examples, "at least 1, or null")
        require(self.steps is None or self.steps >= 0, "steps", self.steps, "0 or more, or null")
        require(self.samples >= 0, "samples", self.samples, "0 or more")
        fit = bool(self.temperatures) and len(set(self.temperatures)) == len(self.temperatures)
        fit = fit and min(self.temperatures) > 0
        require(fit, "temperatures", self.temperatures, "numbers above 0, each once")
