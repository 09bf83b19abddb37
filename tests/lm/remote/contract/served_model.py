"""A server with the model that it must equal, and transformers' and PEFT's own to judge by."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mass.config import EngineConfig
from mass.lm import LM
from mass.lm.lora import save_peft
from mass.lm.remote.connect import sample_at_server
from mass.types import Params

VLLM_ROUNDING, STAND_IN_ROUNDING = 0.1, 1e-3
"""Of a real vLLM in bfloat16, and of the stand-in in float32."""


@dataclass(frozen=True)
class Contract:
    """A server, and the model that it must equal."""

    rounding: float
    """Nats per token by which the server's log-probabilities may differ on average from those in float32."""
    url: str
    base: Path
    lm: LM
    """In float32, sampling here."""
    folder: Path
    """Shared with the server."""
    _judge: list[Any] = field(default_factory=list)

    def connect(self, **changes: Any) -> LM:
        """The same model, sampling at the server."""
        there = copy.copy(self.lm)
        config = {"url": self.url, "lora_dir": str(self.folder / "in use"), "check": False, **changes}
        sample_at_server(there, EngineConfig(**config))
        return there

    def write(self, name: str, adapter: Params, lm: LM | None = None) -> Path:
        """A PEFT folder of our own making, beside those of the client."""
        lm = lm or self.lm
        save_peft(adapter, lm.adapters, self.folder / name, str(self.base))
        return self.folder / name

    def judge(self, name: str | None = None) -> Any:
        """Transformers' own model in float32, or, from here to the next call, with the adapter in folder `name` as PEFT
        loads it: one model for all, to be light."""
        if not self._judge:
            model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
            self._judge.append(PeftModel.from_pretrained(model, str(self.folder / "one"), adapter_name="one").eval())
        (model,) = self._judge
        if name is None:
            model.base_model.disable_adapter_layers()
            return model
        if name not in model.peft_config:
            model.load_adapter(str(self.folder / name), adapter_name=name)
        model.base_model.enable_adapter_layers()
        model.set_adapter(name)
        return model

    def post(self, path: str, body: Any) -> httpx2.Response:
        return httpx2.post(f"{self.url}{path}", json=body, timeout=120, trust_env=False)

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", timeout=120, trust_env=False)

    def loaded(self) -> list[str]:
        return [card["id"] for card in self.get("/v1/models").json()["data"] if card["parent"]]
