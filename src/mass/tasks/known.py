"""Load known data sets from the hub, with the ids, configurations and splits that other evaluations use.

They are loaded through `datasets` (extra `data`). The same rows in a local file are recognised by their fields.

References: lm-evaluation-harness 0.4.13, lm_eval/tasks/{hendrycks_math,minerva_math,gsm8k,aime,humaneval,
mbpp,mmlu,bbh}.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mass.errors import DataError, nearest
from mass.tasks import arrow, files
from mass.types import Task

NEEDS_DATASETS = "data sets of the hub need `datasets`; install it with `pip install 'mass-adapt[data]'`"


@dataclass(frozen=True)
class Known:
    """The place of a data set on the hub."""

    hub: str
    configs: tuple[str | None, ...] = (None,)
    """Configurations, loaded one after the other."""
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    """Our split names -> the hub's."""
    subjects: bool = False
    """True if each configuration is one subject, which its rows do not name."""


_MATH = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

_BIG_BENCH_HARD = (
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
)

KNOWN: dict[str, Known] = {
    "math": Known("EleutherAI/hendrycks_math", _MATH),
    "math500": Known("HuggingFaceH4/MATH-500", splits={"test": "test"}),
    "gsm8k": Known("openai/gsm8k", ("main",)),
    "aime": Known("gneubig/aime-1983-2024", splits={"test": "train", "train": "train"}),
    "aime24": Known("Maxwell-Jia/AIME_2024", splits={"test": "train"}),
    "aime25": Known("math-ai/aime25", splits={"test": "test"}),
    "svamp": Known("ChilleD/SVAMP"),
    "humaneval": Known("openai/openai_humaneval", splits={"test": "test"}),
    "mbpp": Known(
        "google-research-datasets/mbpp",
        ("full",),
        {"train": "train", "validation": "validation", "test": "test", "prompt": "prompt"},
    ),
    "mmlu": Known(
        "cais/mmlu", ("all",), {"train": "auxiliary_train", "validation": "validation", "dev": "dev", "test": "test"}
    ),
    "bbh": Known("lukaemon/bbh", _BIG_BENCH_HARD, {"test": "test"}, subjects=True),
}
"""Our name for a data set -> its place on the hub."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")


def find(source: str) -> tuple[str, Known] | None:
    """Return the data set that `source` names: a key of `KNOWN`, its hub id, or any `owner/name` or
    `owner/name:config`; else None."""
    for name, known in KNOWN.items():
        if source in (name, known.hub):
            return name, known
    if not _HUB_ID.fullmatch(source):
        return None
    hub, _, config = source.partition(":")
    return hub.partition("/")[2], Known(hub, (config or None,), {})


def load(
    name: str, known: Known, split: str, fields: Mapping[str, str] | None = None, verifier: str | None = None
) -> list[Task]:
    """Return all rows of a split.

    Raises:
        DataError: The split cannot be loaded, or a row is not a task.
    """
    theirs = known.splits.get(split) if known.splits else split
    if theirs is None:
        raise DataError(f"{name} has no split {split!r}{nearest(split, known.splits)}")
    found = files.tasks_of(_rows(known, theirs), f"{known.hub}, row", f"{name}-{split}", fields, verifier)
    if not found:
        raise DataError(f"{known.hub} has no rows in its split {theirs!r}")
    return found


def _rows(known: Known, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError:
        raise DataError(f"{known.hub}: {NEEDS_DATASETS}, or give the path of a file of its rows") from None
    number = 0
    for config in known.configs:
        try:
            loaded = library.load_dataset(known.hub, config, split=split)
        except Exception as error:  # from many libraries: no connection, data set or split, or access is restricted
            raise DataError(
                f"{known.hub} cannot be loaded from the hub ({type(error).__name__}: {_line(error)}); download it "
                f"where there is a connection (`hf download --repo-type dataset {known.hub}`) or give the path "
                "of a .jsonl or .parquet file of its rows"
            ) from error
        for row in arrow.rows_of(loaded) if hasattr(loaded, "with_format") else loaded:
            number += 1
            yield number, {"subject": config, **row} if known.subjects else row


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
