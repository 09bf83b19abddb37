"""The server as replicas on a Ray cluster: each is a whole server, and Ray Serve spreads requests over them.

    serve.run(application("tiny-terms"))

Nothing is shared by replicas: each has a base, a batch, records and learned examples of its own. What that means is in
docs/guides/beyond-one-machine.md.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mass.config import ServeConfig
from mass.config.checks import require
from mass.errors import ConfigError
from mass.serving.keys import Keys, keys_of
from mass.serving.naming import checkpoint_folders

if TYPE_CHECKING:
    from fastapi import FastAPI

    from mass.serving.loading import Parts

NAME = "mass"
"""Name of the deployment."""


def application(
    model: str = "tiny-terms",
    config: ServeConfig | None = None,
    *,
    checkpoints: Mapping[str, str] | None = None,
    replicas: tuple[int, int] = (1, 4),
    target_requests: float = 8.0,
    gpus: float | None = None,
    **loading: Any,
) -> Any:
    """Return an application for `serve.run`.

    Keys are read here, from the environment variables that `config` names; replicas get their hashes.

    Args:
        model: Model that each replica loads with `mass.load`.
        config: Bounds of a replica; `host` and `port` are Ray's business. With `records`, each replica writes into a
            folder of its own below that one.
        checkpoints: Folders by name, as `--checkpoint NAME=FOLDER`; every machine must find them.
        replicas: Fewest and most replicas.
        target_requests: Requests that a replica has on average, waiting ones included, beyond which more are started.
        gpus: GPUs of a replica; None: one, where the cluster has any.
        loading: Further arguments of `mass.load`.

    Raises ConfigError for values that cannot be used, and where Ray is not installed.
    """
    ray, serve = _ray()
    config, (fewest, most) = config or ServeConfig(), replicas
    require(0 <= fewest <= most and most >= 1, "replicas", replicas, "the fewest and the most, at least one")
    require(target_requests > 0, "target_requests", target_requests, "a number above 0")
    keys = keys_of(config)
    folders = checkpoint_folders([f"{name}={folder}" for name, folder in (checkpoints or {}).items()])
    if gpus is None:
        if not ray.is_initialized():
            ray.init()
        gpus = float(ray.cluster_resources().get("GPU", 0) > 0)

    def build() -> FastAPI:
        return replica(config, keys, lambda own: _parts(model, loading, folders, own))

    return serve.deployment(
        name=NAME,
        max_ongoing_requests=config.max_queue,
        max_queued_requests=config.max_queue,
        autoscaling_config={
            "min_replicas": fewest,
            "max_replicas": most,
            "target_ongoing_requests": target_requests,
        },
        ray_actor_options={"num_gpus": gpus},
        graceful_shutdown_timeout_s=config.drain_s,
    )(serve.ingress(build)()).bind()


def replica(config: ServeConfig, keys: Keys, load: Callable[[ServeConfig], Parts]) -> FastAPI:
    """Return the application of one replica, which loads its model before its first request."""
    from mass.serving import run
    from mass.serving.app import create_app
    from mass.serving.service import Service, Serving

    _, serve = _ray()
    if config.records is not None:
        own = Path(config.records).expanduser() / str(serve.get_replica_context().replica_tag)
        config = replace(config, records=str(own))
    serving = Serving()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        parts, records = await asyncio.to_thread(run.loaded, lambda: load(config), config)
        with nullcontext() if records is None else records:
            service = Service(config, parts.models, parts.decoders, parts.canaries, records)
            serving.service = service
            pruning = asyncio.create_task(run.prune(records, config.keep_days))
            try:
                yield
            finally:
                pruning.cancel()
                await service.drain(config.drain_s)
                await asyncio.to_thread(run.close, parts, [service])

    return create_app(serving, config, keys, lifespan)


def _parts(model: str, loading: Mapping[str, Any], folders: Mapping[str, str], config: ServeConfig) -> Parts:
    from mass.model import load
    from mass.serving.loading import parts_of

    return parts_of(load(model, **loading), folders, config)


def _ray() -> tuple[Any, Any]:
    """Return the packages `ray` and `ray.serve`. Raises ConfigError where they are not installed."""
    try:
        return importlib.import_module("ray"), importlib.import_module("ray.serve")
    except ImportError as error:
        raise ConfigError(
            f"mass.serving.ray needs the package {error.name!r}, which is not installed; expected the extra ray; run "
            "`pip install 'mass-adapt[ray]'`"
        ) from error
