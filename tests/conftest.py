"""What several test files share: a base model of random weights, made once in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from mass.config import PretrainConfig
from mass.pretrain import build_model, pages, save, train_tokenizer


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained `LlamaForCausalLM` of width 32 and 2 layers, and its tokenizer."""
    config = PretrainConfig(layers=2, width=32, heads=2, mlp=64, vocabulary=300, pages=16)
    tokenizer = train_tokenizer((text for step in range(4) for text in pages(config, step)), 300, config.context)
    folder = tmp_path_factory.mktemp("tiny") / "base"
    save(build_model(config, tokenizer), tokenizer, folder)
    return folder
