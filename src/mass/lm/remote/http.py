"""Sample at a server that speaks vLLM's API, and check each sample.

    POST /v1/load_lora_adapter {lora_name, lora_path}    each adapter of the stack, under a name of its own
    POST /v1/completions {model: lora_name, prompt: token ids, seed, ...}    one for each prompt
    POST /v1/unload_lora_adapter {lora_name}    also after an error or Ctrl-C, and then the folder is deleted

A call returns all samples or none: a sample that is still missing or wrong after its retries raises EngineError, and
the run stops with what it has recorded. Leaving out the problems that a server fails on would favour short ones.

An adapter that one replica has loaded is unknown to the others, so a load balancer in front of several servers does not
work (vllm-project/vllm issue 12174). Give each process of a run a server of its own, by {rank} in its address.

References: https://docs.vllm.ai/en/latest/features/lora/ (adapters at run time);
https://docs.vllm.ai/en/latest/serving/openai_compatible_server/ (completions);
https://github.com/vllm-project/vllm/pull/22587 (return_token_ids).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx2

from mass.config import EngineConfig, SamplingConfig
from mass.errors import DataError, EngineError, MassError, ShapeError
from mass.lm.lora import changes_nothing, detach, pick
from mass.lm.remote.answers import Asked, read_completion, request_body
from mass.lm.remote.failures import Refused, UnknownAdapter
from mass.lm.remote.folder import SharedFolder, check_loadable, fresh_name, older_than
from mass.lm.remote.listing import Served, read_served
from mass.lm.remote.protocol import Local
from mass.lm.remote.transport import Transport, json_of
from mass.types import Params, Sample

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, None]]
LOAD, UNLOAD, COMPLETIONS, MODELS = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions", "/v1/models"
UNLOAD_S = 10.0
"""Most seconds that unloading an adapter may take, beyond the deadline of the call."""


@dataclass(frozen=True)
class Block:
    """The prompts of one adapter."""

    adapter: Params | None
    """The adapter; None for the plain base."""
    places: range
    """Indices of the prompts."""


class HttpEngine:
    """Samples at a server. Made by `connect`; each call has connections of its own, so threads may share an engine."""

    def __init__(self, local: Local, config: EngineConfig, served: Served) -> None:
        self.local, self.config, self.served = local, config, served
        self.context = min(local.context, served.context or local.context)
        self._transport = Transport(config)
        self._folder = SharedFolder(config)

    @classmethod
    def connect(cls, local: Local, config: EngineConfig) -> HttpEngine:
        """Find the base on the server, and remove adapters that killed processes left behind.

        Raises ConfigError for adapters that the server would not load; EngineError when it cannot be reached or does
        not serve the base.
        """
        check_loadable(local.sites, config)
        transport, folder = Transport(config), SharedFolder(config)

        async def look() -> Served:
            async with transport.session() as client:
                cards = await transport.ask(client, MODELS, None, json_of)
                served = read_served(cards, local.name, config)
                served = replace(served, version=await _version(transport, client))
                for name in older_than(served.adapters, config.orphan_hours):
                    await _unload(transport, client, name)
            for name in folder.orphans(config.orphan_hours):
                folder.delete(name)
            return served

        return cls(local, config, _run(look))

    @property
    def description(self) -> str:
        """Name and version of the server for records, without its address."""
        version = f", vLLM {self.served.version}" if self.served.version else ""
        return f"http {self.served.name}{version}"

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        config: SamplingConfig,
        seeds: Sequence[int],
        adapter: Params | None = None,
        *,
        with_logprobs: bool = False,
    ) -> list[Sample]:
        """Sample as `mass.lm.LM.sample` does, except that the server draws other random numbers and rounds otherwise.

        Raises:
            ShapeError: seeds or a stack that do not fit the prompts.
            DataError: a prompt that is too long for the server.
            EngineError: a sample that could not be obtained.
            ConfigError: an adapter without `model.engine.lora_dir`.
        """
        if len(seeds) != len(prompts):
            raise ShapeError(f"{len(seeds)} seeds for {len(prompts)} prompts; expected one each")
        if prompts and (longest := max(map(len, prompts))) >= self.context:
            raise DataError(
                f"a prompt of {longest} tokens; the server reads at most {self.context - 1}; shorten it or raise its "
                "--max-model-len"
            )
        blocks = _blocks(adapter, len(prompts))
        found: dict[int, Sample] = {}

        async def row(client: httpx2.AsyncClient, place: int, name: str) -> None:
            found[place] = await self.complete(
                client, name, prompts[place], config, seeds[place], with_logprobs=with_logprobs
            )

        _run(lambda: self._all(blocks, row))
        return [found[place] for place in range(len(prompts))]

    def session(self) -> httpx2.AsyncClient:
        """Make a client with connections of its own; use it as an asynchronous context manager."""
        return self._transport.session()

    async def complete(
        self,
        client: httpx2.AsyncClient,
        name: str,
        prompt: Sequence[int],
        config: SamplingConfig,
        seed: int,
        *,
        with_logprobs: bool = False,
        local: Local | None = None,
    ) -> Sample:
        """Request one completion and read it.

        Args:
            name: the base or a loaded adapter, by its name at the server.
            local: says what ends the text, where that is not as `self.local` has it.

        Raises:
            UnknownAdapter: the server does not know the adapter.
            EngineError: any other failure.
        """
        local = local or self.local
        names = self.served.names if name == self.served.name else frozenset({name})
        asked = Asked(tuple(prompt), min(config.max_new_tokens, self.context - len(prompt)), names, with_logprobs)
        body = request_body(name, asked, local, seed=seed, temperature=config.temperature, top_p=config.top_p)
        try:
            return await self._transport.ask(
                client, COMPLETIONS, body, lambda response: read_completion(response, asked, local)
            )
        except Refused as refused:
            if refused.status == 404 and name != self.served.name:
                raise UnknownAdapter(
                    f"{refused}; the adapter was loaded a moment ago; expected one server at model.engine.url, "
                    "not a load balancer before several: an adapter loaded at one is unknown to the others"
                ) from refused
            raise

    async def _all(
        self, blocks: Sequence[Block], row: Callable[[httpx2.AsyncClient, int, str], Coroutine[Any, Any, None]]
    ) -> None:
        """Run `row` for every prompt of every block, within the deadline. The first failure cancels the rest.

        Raises the first failure, or EngineError after the deadline.
        """
        failures: list[MassError] = []
        # Two limits: a server has slots for few adapters at a time, each of which serves many requests.
        side_by_side = anyio.CapacityLimiter(self.config.adapters)
        requests = anyio.CapacityLimiter(self.config.requests)
        with anyio.move_on_after(self.config.deadline_s) as deadline:
            async with self._transport.session() as client:

                async def guarded(limiter: anyio.CapacityLimiter, work: Work) -> None:
                    try:
                        async with limiter:
                            await work()
                    except MassError as failure:
                        failures.append(failure)
                        deadline.cancel()

                async def block(one: Block) -> None:
                    async with self.loaded(client, one.adapter) as name, anyio.create_task_group() as rows:
                        for place in one.places:
                            rows.start_soon(guarded, requests, lambda place=place: row(client, place, name))

                async with anyio.create_task_group() as group:
                    for one in blocks:
                        group.start_soon(guarded, side_by_side, lambda one=one: block(one))
        if failures:
            raise failures[0]
        if deadline.cancelled_caught:
            raise EngineError(
                f"{self.config.root}: not all is sampled after {self.config.deadline_s:g} s; raise "
                "model.engine.deadline_s, or ask for less at once"
            )

    @asynccontextmanager
    async def loaded(self, client: httpx2.AsyncClient, adapter: Params | None) -> AsyncGenerator[str, None]:
        """Load an adapter for the length of the block; yields the name to request, that of the base for None.

        However the block ends, the server unloads the adapter, and its files are deleted. Raises EngineError.
        """
        if adapter is None:
            yield self.served.name
            return
        name, asked = fresh_name(), False
        try:
            await anyio.to_thread.run_sync(self._folder.write, name, adapter, self.local.sites, self.local.name)
            asked = True
            await self._load(client, name)
            yield name
        finally:
            with anyio.CancelScope(shield=True):  # cleans up also where the call was cancelled
                if asked:
                    await _unload(self._transport, client, name)
                self._folder.delete(name)

    async def _load(self, client: httpx2.AsyncClient, name: str) -> None:
        """Load an adapter under a name. Raises EngineError.

        A request whose answer was lost is repeated. The name may then be loaded already, which is a success: the name
        is used for this adapter only.
        """
        body = {"lora_name": name, "lora_path": self._folder.path_at_server(name)}
        try:
            await self._transport.ask(client, LOAD, body, _nothing, once_more=_not_there_yet)
        except EngineError as error:
            if isinstance(error, Refused) and "already been loaded" in error.message:
                return
            raise EngineError(f"{error}{self._why_not_loaded(error)}") from error

    def _why_not_loaded(self, error: EngineError) -> str:
        """Return advice for the user, with the path of the folder, which vLLM hides in its own messages."""
        said = error.message if isinstance(error, Refused) else str(error)
        if "adapter " in said.lower() or "add_lora" in said:
            return (
                f"; expected it to load the adapter in {self._folder.there}, which is model.engine.lora_dir as "
                "the server sees it; change model.engine.lora_dir_on_server, --max-lora-rank or lora.target_modules"
            )
        if isinstance(error, Refused) and error.status in (404, 405):
            return (
                "; expected a server that loads adapters at run time; start vLLM with --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            )
        return ""


async def _version(transport: Transport, client: httpx2.AsyncClient) -> str:
    """Return the server's version; empty where it does not say."""
    try:
        return str((await transport.ask(client, "/version", None, json_of)).get("version", ""))[:40]
    except EngineError:  # other servers than vLLM may not have this address
        return ""


async def _unload(transport: Transport, client: httpx2.AsyncClient, name: str) -> None:
    """Unload an adapter, ignoring failures: the samples are valid anyway, and a later start removes what was left."""
    with anyio.move_on_after(UNLOAD_S):
        try:
            await transport.ask(client, UNLOAD, {"lora_name": name}, _nothing)
        except EngineError:
            return


def _not_there_yet(refused: Refused) -> bool:
    """Return True where the server has not found the folder, which may take a moment to appear on a network drive."""
    return refused.status == 404 and "adapter" in refused.message.lower()


def _nothing(response: httpx2.Response) -> None:
    """Ignore the body of an answer: vLLM sends `Success: ...`, other servers something else; the status is enough."""


def _blocks(adapter: Params | None, count: int) -> list[Block]:
    """Return which prompts use which adapter. An adapter that changes nothing (all of B is zero) counts as the base.

    Raises ShapeError for a number of prompts that the stack does not divide.
    """
    if count == 0:
        return []
    if adapter is None or changes_nothing(adapter):
        return [Block(None, range(count))]
    adapter = detach(adapter)
    tensors = list(adapter.values())
    if tensors[0].dim() == 2:
        return [Block(adapter, range(count))]
    if all(t.stride(0) == 0 or len(t) == 1 for t in tensors):  # one adapter, expanded to a stack by `repeat`
        return [Block(pick(adapter, 0), range(count))]
    many = len(tensors[0])
    if count % many:
        raise ShapeError(f"{count} prompts for a stack of {many} adapters; expected a multiple")
    height = count // many
    return [Block(pick(adapter, g), range(g * height, (g + 1) * height)) for g in range(many)]


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in an event loop and a thread of its own, and return its result.

    So it also works where a loop already runs, as in a notebook. Ctrl-C cancels the work and waits for its clean-up.
    """
    with anyio.from_thread.start_blocking_portal() as portal:
        return portal.call(work)
