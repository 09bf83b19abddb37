"""Routes of the records of past adaptations: list, show, replay, judge, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

from mass.config import ServeConfig

if TYPE_CHECKING:
    from mass.serving.app import Serving


def add_history(app: FastAPI, serving: Serving, config: ServeConfig) -> None:
    """Add the routes."""
