"""`mass serve`: answer requests in OpenAI's form by a model that practises on each hard one first."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from mass.cli import console, options
from mass.config import ServeConfig
from mass.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from mass.serving.loading import Parts
    from mass.serving.service import Service

EXAMPLES = (
    "mass serve",
    "mass serve --model ./my-model --checkpoint math=runs/math --port 8000",
    "MASS_API_KEY=… mass serve --model Qwen/Qwen2.5-7B-Instruct --host 0.0.0.0 --records runs/records",
)


def run(arguments: Sequence[str]) -> int:
    """Run `mass serve` and return its exit code."""
    given = options.parse(_parser(), arguments)
    config = ServeConfig(**{field.name: getattr(given, field.name) for field in fields(ServeConfig)})
    if given.print_config:
        options.print_given(given)
        return 0
    _require_extra()
    from mass.serving.keys import keys_of
    from mass.serving.naming import checkpoint_folders

    keys, folders = keys_of(config), checkpoint_folders(given.checkpoint)
    from mass.serving import run as server

    bound = server.listen(config)
    host, port = bound.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    console.note(f"loading {given.model.name}; {address}/health says when it is ready")

    def ready(parts: Parts, _: Service) -> None:
        console.note(f"serving {', '.join(one.name for one in parts.models)} at {address}/v1; the page: {address}/")

    server.serve(config, keys, bound, lambda: _load(given, folders, config), ready)
    console.note("stopped; the base's weights are unchanged")
    return 0


def _load(given: Namespace, folders: dict[str, str], config: ServeConfig) -> Parts:
    from mass.model import load
    from mass.serving.loading import parts_of

    model = load(given.model.name, **options.loading(given))
    console.notes(model.notes)
    parts = parts_of(model, folders, config)
    console.notes(parts.notes)
    return parts


def _require_extra() -> None:
    try:
        for package in ("fastapi", "prometheus_client", "uvicorn"):
            importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"mass serve needs the package {error.name!r}, which is not installed; expected the extra serve; run "
            "`pip install 'mass-adapt[serve]'`"
        ) from error


def _parser() -> ArgumentParser:
    parser = options.make_parser(
        "serve",
        "[--model MODEL] [options]",
        "Answer requests in OpenAI's form over HTTP. For each problem the model practises first, unless it is certain "
        "of its answer, and discards what it learned; where practice fails, the unadapted answer is given.",
        EXAMPLES,
    )
    options.add_model_options(parser, checkpoint=None)
    parser.add_argument(
        "--checkpoint",
        type=str,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="A run folder of mass train, offered as MODEL+NAME; may be given several times.",
    )
    parser.add_class_arguments(ServeConfig)
    return parser
