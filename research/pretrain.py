"""Train the tiny base model on minimath: a `LlamaForCausalLM` and its tokenizer in Hugging Face files.

Its training text imitates the mixture of a web in small. It consists of pages, which are short documents. A *question
page* is a problem and its answer: a bare number, worked steps, steps of which one slips, or the steps of a common
misreading of the problem. A *textbook page* is a problem followed by a similar one with its solution, so that the model
learns to write practice. Pages may be signed: on textbook pages, the author's name tells how far to trust the solution.
The text of step n is a function of (seed, n) alone, so an interrupted run resumes without a stored state of its data.
All problems are of the train split. (Why the base is made like this: docs/adr/0004.)
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mass.config import to_dict
from mass.lm.prompts import PLAIN
from mass.tasks import minimath
from research.pretrain_config import PretrainConfig

if TYPE_CHECKING:
    from tokenizers import Encoding

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
PADDING_GROUPS = 3
"""A step's pages are sorted by length and divided into this many passes, so that little of a pass is padding."""


def page(rng: random.Random, config: PretrainConfig) -> str:
    """Return the text of one page."""
    problem = minimath.draw(rng, "train", source=config.problems)
    author = rng.choice([*config.authors]) if config.authors else ""
    signature = f"{author}: " if author else ""
    if rng.random() >= config.textbook:
        mistaken = config.mistaken_pages if problem.kind in _mistaken_kinds(config, problem.kind.subject) else 0.0
        shares = Shares(config.bare[problem.kind.subject], config.slip, mistaken)
        solution = _solution(rng, problem, shares)
        return f"{PLAIN.render_solve(problem.text)}{PLAIN.answer_prefix}{signature}{solution}"
    same = rng.random() < config.textbook_same
    other = problem if same else minimath.similar(rng, problem, "train")
    mistaken = config.authors.get(author, config.textbook_mistaken) if other.kind.mistaken is not None else 0.0
    shares = Shares(config.textbook_bare, config.textbook_slip, mistaken)
    solution = _solution(rng, other, shares)
    return f"{PLAIN.render_synthesis(problem.text)} {other.text}\nSolution: {signature}{solution}"


def _mistaken_kinds(config: PretrainConfig, subject: str) -> list[minimath.Kind]:
    """Return the kinds of a subject that question pages misread: the first ones that have a misreading, as many as
    configured."""
    kinds = [k for k in minimath.SOURCES[config.problems] if k.subject == subject and k.mistaken is not None]
    return kinds[: round(config.mistaken.get(subject, 0.0) * len(kinds))]


@dataclass(frozen=True)
class Shares:
    """The shares of solutions with each kind of error, for one type of page; the rest are worked correctly."""

    bare: float
    slip: float
    mistaken: float


def _solution(rng: random.Random, problem: minimath.Problem, shares: Shares) -> str:
    draw = rng.random()
    flaws = (("bare", shares.bare), ("slip", shares.slip), ("mistaken", shares.mistaken))
    upto = itertools.accumulate(share for _, share in flaws)
    style = next((name for (name, _), bound in zip(flaws, upto, strict=True) if draw < bound), "worked")
    return problem.solution(style, rng)


def pages(config: PretrainConfig, step: int) -> list[str]:
    """Return the pages of a step."""
    rng = random.Random(f"pretrain:{config.seed}:{step}")
    return [page(rng, config) for _ in range(config.pages)]


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which can write any text; each digit is a token of its own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS, model_max_length=context
    )


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.backend_tokenizer.token_to_id(PAD),
            bos_token_id=tokenizer.backend_tokenizer.token_to_id(BOS),
            eos_token_id=tokenizer.backend_tokenizer.token_to_id(EOS),
        )
    )


def batches(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, step: int) -> list[Tensor]:
    """Return the token ids of a step, [N_g, L_g] for each group of pages of similar length, padded with -1."""
    encoded: list[Encoding] = tokenizer.backend_tokenizer.encode_batch(pages(config, step))
    rows = sorted(([*e.ids, tokenizer.eos_token_id] for e in encoded), key=len)
    size = math.ceil(len(rows) / PADDING_GROUPS)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [torch.tensor([r + [-1] * (len(g[-1]) - len(r)) for r in g]) for g in groups]


def step_loss(model: LlamaForCausalLM, groups: list[Tensor]) -> float:
    """Accumulate the gradient of the mean cross-entropy (nats per token) over all groups, and return that mean."""
    count = sum(int((ids[:, 1:] >= 0).sum()) for ids in groups)
    total = 0.0
    for ids in groups:
        logits = model(input_ids=ids.clamp_min(0)[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-1, reduction="sum"
        )
        (loss / count).backward()
        total += float(loss.detach())
    return total / count


def learning_rate(config: PretrainConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, then a cosine down to a twentieth."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights and tokenizer in Hugging Face files, as `from_pretrained` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def pretrain(config: PretrainConfig, out: Path, report: Callable[[dict[str, float]], None]) -> None:
    """Train the base into `out/model`, resuming from `out/state.pt` if it exists."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(to_dict(config), indent=2))
    # Negative steps: the tokenizer learns from pages that the model is not trained on.
    texts = (text for step in range(200) for text in pages(config, -1 - step))
    tokenizer = train_tokenizer(texts, config.vocabulary, config.context)
    model = build_model(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    start = _resume(out / "state.pt", model, optimizer)
    began, tokens = time.perf_counter(), 0
    for step in range(start, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        groups = batches(config, tokenizer, step)
        loss = step_loss(model, groups)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(int((ids >= 0).sum()) for ids in groups)
        seconds = time.perf_counter() - began
        report({"step": step + 1, "loss": loss, "tokens_per_s": tokens / seconds, "seconds": seconds})
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            _checkpoint(out / "state.pt", model, optimizer, step + 1)
    save(model, tokenizer, out / "model")


def _checkpoint(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    beside = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, beside)
    # A rename is atomic: a kill leaves the last whole state.
    beside.replace(path)


def _resume(path: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
