"""Loading without the progress bars of transformers, which a user would take for ours."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging


@contextmanager
def without_progress_bars() -> Generator[None]:
    """Switch the bars of transformers off within the block, and on again after it where they were."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    # The reader of GGUF files makes a bar of its own, which the switch of transformers does not reach.
    reader: Any = modeling_gguf_pytorch_utils
    bar, reader.tqdm = reader.tqdm, partial(reader.tqdm, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar
        if shown:
            logging.enable_progress_bar()
