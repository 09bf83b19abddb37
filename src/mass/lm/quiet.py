"""Loading without the progress bars of transformers, which a user would take for ours."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def without_progress_bars() -> Generator[None]:
    """Switch the bars of transformers off within the block, and on again after it where they were."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
