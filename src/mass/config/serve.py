"""How `mass serve` behaves, and what bounds a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mass.config.checks import require, require_known, require_numbers


@dataclass(frozen=True)
class ServeConfig:
    """How the server behaves, and what bounds a request."""

    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs a key."""
    port: int = 8080
    """Port to listen at; 0: any free one."""
    api_key_env: str = "MASS_API_KEY"
    """Environment variable with the keys of clients, several with commas between. Without it only this machine is
    served."""
    admin_key_env: str = "MASS_ADMIN_KEY"
    """Environment variable with the operator's key, which switches the model called default."""
    adapt_default: Literal["auto", "always", "never"] = "auto"
    """Practice for requests that do not say; auto: where the model is not certain of its own answer."""
    deadline_s: float | None = None
    """Seconds for a request that does not say, after which the unadapted answer is given; null: no deadline."""
    records: str | None = None
    """Folder for a record of each adaptation; null: no text of a request is kept anywhere."""
    keep_days: float | None = None
    """Days after which a record is removed; null: never."""
    canaries: str | None = None
    """File of prompts on which adapted weights must still refuse."""
    max_queue: int = 256
    """Requests that wait or are answered at most; one more is refused with 429."""
    max_adapting: int = 64
    """Requests that practise side by side at most; the others wait."""
    max_stack: int = 16
    """Inner loops that run as one stack at most."""
    max_practice_share: float = 0.75
    """Share of the sequences sampled side by side that practice may take; the rest is kept for answers."""
    max_body_kb: int = 1024
    """Size of a request's body at most."""
    max_tokens: int = 4096
    """Largest max_tokens of a request."""
    max_n: int = 16
    """Answers to one request at most."""
    max_examples: int = 256
    """Examples that come with a request at most."""
    max_steps: int = 16
    """Most inner steps that a request may ask for."""
    max_deadline_s: float = 3600.0
    """Longest deadline that a request may ask for."""
    learned_budget_s: float | None = 60.0
    """Seconds for choosing how to use a request's examples and learning them; null: as many as it takes."""
    learned_sets: int = 64
    """Adapters learned from examples that are kept at most."""
    learned_mb: float = 256.0
    """Memory of these adapters at most."""
    learned_minutes: float = 60.0
    """Minutes without use after which such an adapter is dropped."""
    comment_s: float = 5.0
    """Seconds between two comments in a stream while it practises."""
    drain_s: float = 30.0
    """Seconds in which requests may finish after the server was asked to stop."""

    def __post_init__(self) -> None:
        require_known(self, "")
        require(bool(self.host), "host", self.host, "an address, as in 127.0.0.1")
        require(0 <= self.port < 65536, "port", self.port, "0 to 65535")
        for name in ("max_queue", "max_adapting", "max_stack", "max_body_kb", "max_tokens", "max_n", "max_examples"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("max_steps", "learned_sets"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require_numbers(self, "", ("max_deadline_s", "learned_minutes", "comment_s"), above=0)
        require_numbers(self, "", ("learned_mb", "drain_s"), least=0)
        require(0 < self.max_practice_share <= 1, "max_practice_share", self.max_practice_share, "a share above 0")
        for name in ("deadline_s", "keep_days", "learned_budget_s"):
            value: float | None = getattr(self, name)
            require(value is None or 0 < value < float("inf"), name, value, "a number above 0, or null")
