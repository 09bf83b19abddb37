"""Rows in local files -> data sets for the tasks beside this file; MATH's functions are those of the harness itself.

The folder of the files is given as `--metadata data=FOLDER`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
from lm_eval.tasks.minerva_math import utils as minerva

DATA = "../shared/data"


def gsm8k(data: str = DATA, **_: Any) -> dict[str, datasets.Dataset]:
    return {"train": rows(data, "gsm8k_train"), "test": rows(data, "gsm8k_test")}


def math500(data: str = DATA, **_: Any) -> dict[str, datasets.Dataset]:
    return {"test": rows(data, "math500")}


def mmlu(data: str = DATA, **_: Any) -> dict[str, datasets.Dataset]:
    return {"test": rows(data, "mmlu_stem")}


def rows(folder: str, name: str) -> datasets.Dataset:
    """All rows of `name`.jsonl, in the order of the file."""
    file = Path(folder).expanduser() / f"{name}.jsonl"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is no file; expected rows of {name}; give its folder by --metadata data=FOLDER"
        )
    return datasets.Dataset.from_list([json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()])


doc_to_text, process_docs, process_results = minerva.doc_to_text, minerva.process_docs, minerva.process_results
shots = minerva.list_fewshot_samples
