"""A small server that behaves as vLLM 0.32 does, with a real model and real PEFT inside.

It answers /v1/models, /v1/completions, /v1/load_lora_adapter, /v1/unload_lora_adapter and /health with vLLM's status
codes and messages; tests/lm/remote/contract holds it and a real vLLM to the same tests. Adapters are loaded by PEFT
from the folder that it is given. Two habits that a client must live with are imitated on purpose: what was computed for
a prompt is kept under the adapter's *name*, also after it was unloaded (vllm-project/vllm issues 30931, 42125), and an
adapter that lost its place is read again from its folder (--max-cpu-loras): where that is gone, the server is dead for
everybody. Its decoder is written for this file: no cache, one row at a time.

Faults are queued by path: the next request there meets the first of them.
"""

from __future__ import annotations

import copy
import functools
import json
import select
import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_errors import Aborted, DetailOnly, Wrong, out_of_range, required, worker_failed

Answer = dict[str, Any]
ENGINE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."


@functools.cache
def _loaded(base: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return AutoTokenizer.from_pretrained(base), model


class Fault:
    """What happens to one request instead of, or on top of, its answer."""

    def __init__(
        self,
        *,
        status: int | None = None,
        body: str = "",
        headers: dict[str, str] | None = None,
        drop: bool = False,
        wait_s: float = 0.0,
        drip_s: float = 0.0,
        cut: float = 1.0,
        change: Callable[[Answer], Any] | None = None,
        after: bool = False,
    ) -> None:
        self.status, self.body, self.headers, self.drop = status, body, headers or {}, drop
        self.wait_s, self.drip_s, self.cut, self.change = wait_s, drip_s, cut, change
        self.after = after
        """Whether the request is carried out before its connection is dropped, or its answer replaced."""


class StandIn:
    """Use as a context manager; `url` is where it listens."""

    def __init__(self, base: Path, name: str = "base", *, max_model_len: int = 256, max_lora_rank: int = 16) -> None:
        self.base, self.name = base, name
        self.names = [name]
        self.max_model_len, self.max_lora_rank, self.max_cpu_loras = max_model_len, max_lora_rank, 2
        self.tokenizer, self.model = _loaded(base)
        self.runtime_updating, self.enable_lora, self.api_key = True, True, ""
        self.ignores_adapters, self.adds_token = False, None
        self.mixes_base = False
        """Whether rows of the base get an adapter that is loaded, as on a CPU (vllm issue 48421)."""
        self.unsupported_modules: set[str] = set()
        self.paths: dict[str, Path] = {}
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.requests: list[tuple[str, Answer, dict[str, str]]] = []
        self.busiest = self.most_adapters = 0
        self.dead = False
        self.running = 0
        self._models: dict[str, Any] = {}
        self._first_logits: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
        self._lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = False  # closing waits for them: none may compute while the interpreter ends
        self._closing = threading.Event()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> StandIn:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def asked(self, path: str) -> list[Answer]:
        return [body for where, body, _ in self.requests if where == path]

    # --- what it does

    def carry_out(self, path: str, body: Any, gone: Callable[[], bool] = lambda: False) -> Any:
        """The answer to a POST of `body`, or to a GET where it is None.

        Raises Wrong, or Aborted where `gone` says that nobody waits for the answer.
        """
        if path == "/health":
            return ""
        if path == "/version":
            return {"version": "0.0.stand-in"}
        if path == "/v1/models":
            return self._cards()
        loads = path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter") and self.runtime_updating
        if body is None and (loads or path == "/v1/completions"):
            raise DetailOnly(405, "Method Not Allowed")
        if path == "/v1/completions":
            return self._complete(body, gone)
        if loads:
            with self._lock:
                if gone():  # its unloading may have come first: vLLM keeps to their order
                    raise Aborted
                return self._load(body) if path.endswith("/load_lora_adapter") else self._unload(body)
        raise DetailOnly(404, "Not Found")

    def _cards(self) -> Answer:
        def card(name: str, root: str, parent: str | None, length: int | None) -> Answer:
            return {"id": name, "object": "model", "root": root, "parent": parent, "max_model_len": length}

        bases = [card(name, str(self.base), None, self.max_model_len) for name in self.names]
        loras = [card(name, str(path), self.name, None) for name, path in self.paths.items()]
        return {"object": "list", "data": [*bases, *loras]}

    def _load(self, body: Answer) -> str:
        name, path = required(body, "lora_name"), required(body, "lora_path")
        if not name or not path:
            raise Wrong(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name in self.names:
            raise Wrong(400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput")
        if name in self.paths:
            raise Wrong(
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True.",
                "InvalidUserInput",
            )
        if not self.enable_lora:
            raise Wrong(500, "Call to add_lora method failed: LoRA is not enabled.", "InternalServerError")
        try:
            self._examine(Path(path))
            self._place(name, Path(path))
        except (OSError, ValueError) as error:
            text = f"Loading lora {name} failed: No adapter found for {path}"
            raise Wrong(404, text, "NotFoundError") from error
        self.paths[name] = Path(path)
        self.most_adapters = max(self.most_adapters, len(self.paths))
        return f"Success: LoRA adapter '{name}' added successfully."

    def _examine(self, folder: Path) -> None:
        """Raises Wrong for what vLLM's worker does not load, FileNotFoundError where there is no configuration."""
        try:
            config = json.loads((folder / "adapter_config.json").read_text())
        except json.JSONDecodeError as error:
            raise worker_failed(str(error)) from error
        try:
            weights = load_file(folder / "adapter_model.safetensors")
        except FileNotFoundError as error:
            raise worker_failed(f"{folder} doesn't contain tensors") from error
        except SafetensorError as error:
            raise worker_failed(str(error)) from error
        modules = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in weights}
        if config.get("use_dora"):
            raise worker_failed("vLLM does not yet support DoRA.")
        if config["r"] > self.max_lora_rank:
            raise worker_failed(f"LoRA rank {config['r']} is greater than max_lora_rank {self.max_lora_rank}.")
        known = {name.rsplit(".", 1)[-1] for name, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)}
        known -= self.unsupported_modules
        if odd := sorted(module for module in modules if module.rsplit(".", 1)[-1] not in known):
            raise worker_failed(f"While loading {folder}, expected target modules in {known} but received {odd}.")

    def _unload(self, body: Answer) -> str:
        name = required(body, "lora_name")
        if not name:
            raise Wrong(400, "'lora_name' needs to be provided to unload a LoRA adapter.", "InvalidUserInput")
        if name not in self.paths:
            raise Wrong(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.paths[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _place(self, name: str, folder: Path) -> Any:
        """The adapted model; the least recently used makes way, and is read from its folder when it is needed again."""
        if name not in self._models:
            fresh = copy.deepcopy(_loaded(self.base)[1])
            self._models[name] = PeftModel.from_pretrained(fresh, str(folder)).eval()
        self._models[name] = self._models.pop(name)
        while len(self._models) > self.max_cpu_loras:
            del self._models[next(iter(self._models))]
        return self._models[name]

    def _applied(self, name: str) -> str | None:
        """The adapter that a row gets; None for the base."""
        if self.ignores_adapters or name not in self.names:
            return None if self.ignores_adapters else name
        return next(reversed(self.paths), None) if self.mixes_base else None

    def _place_again(self, name: str) -> Any:
        """For a request. vLLM's engine ends where the folder is gone by then."""
        try:
            return self._place(name, self.paths[name])
        except (OSError, ValueError) as error:
            self.dead = True
            raise Wrong(500, ENGINE_DEAD, "InternalServerError") from error

    def _complete(self, body: Answer, gone: Callable[[], bool]) -> Answer:
        name, prompt = body["model"], list(body["prompt"])
        with self._lock:
            if gone():
                raise Aborted
            if name not in self.names and name not in self.paths:
                valid = ", ".join([*self.names, *self.paths])
                text = f"The model `{name}` does not exist. Valid aliases: {valid}"
                raise Wrong(404, text, "NotFoundError", "model")
            if self.dead:
                raise Wrong(500, ENGINE_DEAD, "InternalServerError")
            applied = self._applied(name)
            model = self.model if applied is None else self._place_again(applied)
        if self.adds_token is not None:
            prompt = [self.adds_token, *prompt]
        body = {**body, "max_tokens": self._room(len(prompt), body["max_tokens"])}
        if prompt and (largest := max(prompt)) >= self.model.config.vocab_size:
            raise Wrong(400, f"Token id {largest} is out of vocabulary")
        if not prompt:
            raise Wrong(400, "You must pass at least one prompt")
        with self._lock:
            tokens, logprobs, reason = self._decode(model, name, prompt, body, gone)
        return self._answer(body, name, prompt, tokens, logprobs, reason)

    def _room(self, length: int, wanted: int) -> int:
        """How many tokens are sampled: no more than the context has places left. Raises Wrong where it has none."""
        most = self.max_model_len
        if wanted > most:
            text = (
                f"max_tokens={wanted} cannot be greater than max_model_len={most}. Please request fewer output tokens."
            )
            raise out_of_range("max_tokens", wanted, text)
        if length > most:
            text = (
                f"This model's maximum context length is {most} tokens. However, your prompt contains {length} input "
                "tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
                "input prompt."
            )
            raise out_of_range("input_tokens", length, text)
        if (granted := min(wanted, most - length)) < 1:
            raise out_of_range("max_tokens", granted, f"max_tokens must be at least 1, got {granted}.")
        return granted

    @torch.no_grad()
    def _decode(
        self, model: Any, name: str, prompt: list[int], body: Answer, gone: Callable[[], bool]
    ) -> tuple[list[int], list[float], str]:
        generator = torch.Generator().manual_seed(body["seed"])
        tokens, logprobs = list[int](), list[float]()
        while len(tokens) < body["max_tokens"]:
            if gone():
                raise Aborted
            key = (name, (*prompt, *tokens))
            if key not in self._first_logits or tokens:
                self._first_logits[key] = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].float()
            logits = self._first_logits[key]
            chosen = int(logits.argmax())
            if body["temperature"]:
                weights = nucleus(torch.softmax(logits / body["temperature"], -1), body.get("top_p", 1.0))
                chosen = int(torch.multinomial(weights, 1, generator=generator))
            tokens.append(chosen)
            logprobs.append(float(torch.log_softmax(logits, -1)[chosen]))
            if chosen in body["stop_token_ids"] or chosen == self.tokenizer.eos_token_id:
                return tokens, logprobs, "stop"
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if any(stop in text for stop in body["stop"]):
                return tokens, logprobs, "stop"
        return tokens, logprobs, "length"

    def _answer(
        self, body: Answer, name: str, prompt: list[int], tokens: list[int], logprobs: list[float], reason: str
    ) -> Answer:
        ended = tokens[-1] in [*body["stop_token_ids"], self.tokenizer.eos_token_id]
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens, skip_special_tokens=True)
        for stop in body["stop"]:
            text = text.split(stop)[0]
        given = {"tokens": ["?"] * len(tokens), "token_logprobs": logprobs} if body.get("logprobs") else None
        choice = {"index": 0, "text": text, "logprobs": given, "finish_reason": reason}
        choice["stop_reason"] = self._stop_reason(body, tokens, reason)
        if body.get("return_token_ids"):
            choice |= {"token_ids": tokens, "prompt_token_ids": prompt}
        shown = self.names[0] if name in self.names else name
        counted = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
        return {"id": "cmpl-1", "object": "text_completion", "model": shown, "choices": [choice], "usage": counted}

    def _stop_reason(self, body: Answer, tokens: list[int], reason: str) -> int | str | None:
        """The stop token or text; None for the model's own end token, and at the limit."""
        if reason != "stop" or tokens[-1] == self.tokenizer.eos_token_id:
            return None
        if tokens[-1] in body["stop_token_ids"]:
            return tokens[-1]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return next(stop for stop in body["stop"] if stop in text)

    def sleeps(self, seconds: float) -> bool:
        """Whether the server is closed meanwhile."""
        return self._closing.wait(seconds)

    def enters(self, path: str) -> Fault | None:
        with self._lock:
            self.running += path == "/v1/completions"
            self.busiest = max(self.busiest, self.running)
            return self.faults[path].pop(0) if self.faults[path] else None

    def leaves(self, path: str) -> None:
        with self._lock:
            self.running -= path == "/v1/completions"


def nucleus(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities [V] -> the same where they belong to the smallest set that has `top_p` of them, else 0."""
    ordered, places = weights.sort(descending=True)
    ordered[(ordered.cumsum(0) - ordered) >= top_p] = 0
    return torch.zeros_like(weights).scatter(0, places, ordered)


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # seconds that an idle connection is kept

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._serve(None)

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _serve(self, body: Answer | None) -> None:
            stand_in.requests.append((self.path, body or {}, dict(self.headers)))
            fault = stand_in.enters(self.path)
            try:
                self._answer(body, fault)
            except (BrokenPipeError, ConnectionResetError, Aborted):
                self.close_connection = True
            finally:
                stand_in.leaves(self.path)

        def _is_gone(self) -> bool:
            ready, _, _ = select.select([self.connection], [], [], 0)
            return bool(ready) and not self.connection.recv(1, socket.MSG_PEEK)

        def _answer(self, body: Answer | None, fault: Fault | None) -> None:
            if fault and fault.wait_s and stand_in.sleeps(fault.wait_s):
                return
            if fault and (fault.drop or fault.status) and not fault.after:
                self._fail(fault)
                return
            if stand_in.api_key and self.headers.get("Authorization") != f"Bearer {stand_in.api_key}":
                given = self.headers.get("Authorization", "")
                self._send(401, json.dumps({"error": f"Unauthorized: {given}"}))
                return
            try:
                answer = stand_in.carry_out(self.path, body, self._is_gone)
            except Wrong as wrong:
                self._send(wrong.status, json.dumps(wrong.body))
                return
            if fault and (fault.drop or fault.status):
                self._fail(fault)
                return
            if fault and fault.change:
                answer = fault.change(answer)
            text = answer if isinstance(answer, str) else json.dumps(answer)
            self._send(200, text, fault)

        def _fail(self, fault: Fault) -> None:
            if fault.drop:
                self.close_connection = True
                return
            self._send(fault.status or 500, fault.body, fault)

        def _send(self, status: int, text: str, fault: Fault | None = None) -> None:
            data = text.encode()
            self.send_response(status)
            for name, value in (fault.headers if fault else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if fault and fault.drip_s:
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    if stand_in.sleeps(fault.drip_s):
                        return
                return
            self.wfile.write(data[: int(len(data) * fault.cut)] if fault else data)
            self.close_connection = self.close_connection or (fault is not None and fault.cut < 1)

    return Handler
