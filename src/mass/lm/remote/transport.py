"""Send requests to a server, with timeouts, retries with growing waits, and one-line errors.

A request is repeated after a refused, lost or slow connection, after the status codes 408, 425, 429 and 5xx (from a
load balancer, or a vLLM that is starting or overloaded), and after a malformed answer. Any other answer, a redirect
included, is final. The waits double from half a second to half a minute. Each is shortened at random, so that many
clients do not return at the same time; a `Retry-After` of the server is respected.
"""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import cached_property
from time import time
from typing import Any, TypeVar

import anyio
import httpx2

from mass.config import EngineConfig
from mass.errors import EngineError
from mass.lm.remote.failures import Passing, Refused, message_of

T = TypeVar("T")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
LONGEST_RETRY_AFTER_S = 300.0
BUSY = (408, 425, 429)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Transport:
    """Sends requests to one server. It holds no connection: each `session` has its own."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config

    @cached_property
    def _ssl(self) -> ssl.SSLContext | bool:
        return httpx2.create_ssl_context() if self.config.root.startswith("https") else False

    def session(self) -> httpx2.AsyncClient:
        """Make a client with connections of its own; use it as an asynchronous context manager.

        The user's proxy is used, except for a server on this machine. Redirects are not followed, because they would
        send the key to another server.
        """
        config, key = self.config, self._key()
        return httpx2.AsyncClient(
            base_url=config.root,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(config.timeout_s, connect=config.connect_timeout_s, pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=config.requests),
            verify=self._ssl,
            trust_env=httpx2.URL(config.root).host not in LOOPBACK,
        )

    async def ask(
        self,
        client: httpx2.AsyncClient,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[httpx2.Response], T],
        *,
        once_more: Callable[[Refused], bool] = lambda _: False,
    ) -> T:
        """Send a POST of `body`, or a GET if it is None, and return what `read` makes of the answer.

        Args:
            read: raises `Passing` for a malformed answer.
            once_more: returns True for a refusal after which the request is repeated.

        Raises EngineError when all tries fail, or the server refuses.
        """
        for attempt in range(self.config.retries + 1):
            try:
                return read(await self._once(client, path, body))
            except Refused as refused:
                if attempt == self.config.retries or not once_more(refused):
                    raise
                failure = Passing(str(refused))
            except Passing as passing:
                failure = passing
            if attempt < self.config.retries:
                await anyio.sleep(max(wait_s(attempt), failure.retry_after_s))
                continue
            raise EngineError(
                f"{self.config.root}{path}: {failure} ({attempt + 1} tries); look at the server's log, and at "
                "model.engine.retries, model.engine.timeout_s and model.engine.requests"
            )
        raise AssertionError("unreachable")

    async def _once(self, client: httpx2.AsyncClient, path: str, body: dict[str, Any] | None) -> httpx2.Response:
        """Send one request. Raises Passing or Refused."""
        config = self.config
        # The client's timeout is for each phase of a request; `fail_after` limits the whole of it.
        try:
            with anyio.fail_after(config.timeout_s):
                response = await client.request("GET" if body is None else "POST", path, json=body)
        except TimeoutError as error:
            raise Passing(f"no whole answer within {config.timeout_s:g} s") from error
        except httpx2.ConnectTimeout as error:
            raise Passing(f"no connection within {config.connect_timeout_s:g} s") from error
        except httpx2.RequestError as error:
            raise Passing(f"{type(error).__name__}, {str(error) or 'the connection was lost'}") from error
        return self._checked(response)

    def _checked(self, response: httpx2.Response) -> httpx2.Response:
        """Return a response with status 200. Raises Passing or Refused for another."""
        status = response.status_code
        if status == 200:
            return response
        message = self._without_key(message_of(response.text))
        if status in BUSY or status >= 500:
            raise Passing(f"the server answered {status}: {message}", _retry_after_s(response))
        raise Refused(status, message)

    def _key(self) -> str:
        return os.environ.get(self.config.key_variable, "").strip()

    def _without_key(self, text: str) -> str:
        """Return a text without the key, which a server may repeat in its message."""
        key = self._key()
        return text.replace(key, "(the key)") if key else text


def wait_s(attempt: int) -> float:
    """Return the seconds to wait before try number `attempt` + 2, at random between half and all of the full wait."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1.0)


def json_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the JSON object of an answer. Raises Passing for anything else: an incomplete one, or a proxy's page."""
    try:
        data: Any = response.json()
    except ValueError as error:
        raise Passing(f"the answer is not JSON: {message_of(response.text)}") from error
    if not isinstance(data, dict):
        raise Passing(f"the answer is JSON, but no object: {message_of(response.text)}")
    return data


def _retry_after_s(response: httpx2.Response) -> float:
    """Return the seconds that the server asks to wait, from its `Retry-After`; 0 without a valid one."""
    given = response.headers.get("retry-after", "")
    try:
        seconds = float(given) if not given.endswith("GMT") else parsedate_to_datetime(given).timestamp() - time()
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S) if seconds == seconds else 0.0
