"""The place where text is sampled: in this process, or by a server that speaks vLLM's HTTP API (docs/engines.md)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from mass.config.checks import require, require_numbers
from mass.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    url: str | None = None
    """Address of a server that speaks vLLM's API, as in http://127.0.0.1:8000: it samples, with adapters loaded at run
    time; gradients stay here. {rank} in it becomes the number of the process that torchrun started, as in http://gpu:800{rank}.
    None: transformers samples, in this process."""
    model: str | None = None
    """The base's name at the server; None: as model.name is called, or the only base it serves."""
    key_variable: str = "MASS_ENGINE_KEY"
    """Environment variable that holds the server's API key, if it wants one. The key itself is written nowhere."""
    lora_dir: str | None = None
    """Folder that the server can read too; adapters are put there for as long as they are used. None: only the base can
    be sampled."""
    lora_dir_on_server: str | None = None
    """The same folder as the server sees it; None: under the same path."""
    max_lora_rank: int = 16
    """The --max-lora-rank that the server was started with."""
    adapters: int = 8
    """Adapters loaded side by side at most; no more than the server's --max-cpu-loras."""
    requests: int = 64
    """Sequences asked for side by side at most."""
    connect_timeout_s: float = 10.0
    """Seconds until the server must have taken a connection."""
    timeout_s: float = 600.0
    """Seconds until one answer must be whole, however slowly it drips."""
    deadline_s: float = 3600.0
    """Seconds for all that is sampled in one go, retries included."""
    retries: int = 5
    """Further tries after a lost connection, a busy or failing server, or an answer that cannot be one."""
    orphan_hours: float = 24.0
    """Adapters that a killed process left behind are removed when they are older; longer than any deadline_s in use."""
    check: bool = True
    """True if the server is first compared with the model here, by log-probabilities of the base and of a test
    adapter."""
    agreement: float = 0.25
    """Largest mean difference of these log-probabilities (nats per token) that is taken for rounding."""

    def __post_init__(self) -> None:
        if self.url is not None:
            _require_url(self.url)
        for name in ("max_lora_rank", "adapters", "requests"):
            require(getattr(self, name) >= 1, f"model.engine.{name}", getattr(self, name), "at least 1")
        require(self.retries >= 0, "model.engine.retries", self.retries, "0 or more")
        positive = ("connect_timeout_s", "timeout_s", "deadline_s", "orphan_hours", "agreement")
        require_numbers(self, "model.engine.", positive, above=0)
        long_enough = self.orphan_hours * 3600 > self.deadline_s
        require(long_enough, "model.engine.orphan_hours", self.orphan_hours, "more than model.engine.deadline_s / 3600")

    @property
    def root(self) -> str:
        """The server's address for this process, without /v1 and a last slash."""
        url = (self.url or "").replace("{rank}", os.environ.get("RANK", "0"))
        return url.rstrip("/").removesuffix("/v1")


def _require_url(url: str) -> None:
    """Raise ConfigError for a text that is not an address, without repeating a password in it."""
    try:
        parts = urlsplit(url.replace("{rank}", "0"))
        secret, whole = "@" in parts.netloc, parts.scheme in ("http", "https") and bool(parts.hostname)
        whole = whole and parts.port != 0
    except ValueError:
        secret, whole, parts = "@" in url, False, urlsplit("")
    if secret:
        raise ConfigError(
            "model.engine.url has a user name or password in it; expected http://HOST:PORT; put the server's API key "
            "into the environment variable that model.engine.key_variable names"
        )
    require(whole and not (parts.query or parts.fragment), "model.engine.url", url, "http://HOST:PORT or https://HOST")
