"""Ways to sample from one model -> tokens per second, time to the first token, peak memory; and their ratios.

    OMP_NUM_THREADS=2 python benchmarks/decode.py --model FOLDER --out results/decode [--gguf FILE] [--vllm URL]

Points: 1 row, 6 rows of one prompt, 96 rows (16 prompts, 6 rows each), all of the same number of new tokens, at
temperature 1, with nothing that ends a row early. Prompts are synthesis prompts for problems of minimath. Every point
of every way is a process of its own, and the ways take turns in each round; a ratio compares two of one round. `mass`
is `LM.sample`; `mass, 16 adapters` gives each prompt an adapter of its own. transformers runs the same weights by
`generate` (also called once for each row, and with `num_return_sequences`) and by `generate_batch`, its continuous
batching. vLLM is a server that is running already; llama.cpp needs the package llama-cpp-python, and reads its own
4-bit file. What a way cannot do is said in the table.

Memory is the peak of the process (VmHWM), with the weights. Writes decode.json and decode.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research.models import TINY

from mass.cli.allocator import restart_with_kept_memory
from mass.runs.folder import replace_text

OURS, ADAPTED = "mass", "mass, 16 adapters"
CALLS, BATCH, CONTINUOUS = "generate, a call a row", "generate", "generate_batch"
VLLM, LLAMA = "vLLM", "llama.cpp"
WAYS: dict[int, tuple[str, ...]] = {
    1: (OURS, BATCH, CONTINUOUS, VLLM, LLAMA),
    6: (OURS, CALLS, BATCH, CONTINUOUS, VLLM, LLAMA),
    96: (OURS, ADAPTED, BATCH, CONTINUOUS, VLLM),
}
"""By rows. `generate` has `num_return_sequences` = 6 at 6 rows, and the whole batch at 96."""
TARGETS = ((1, OURS, BATCH, 1.0), (6, OURS, CALLS, 2.5), (6, OURS, BATCH, 1.0), (96, OURS, BATCH, 1.0),
           (96, ADAPTED, BATCH, 0.6))  # fmt: skip
PER_PROMPT = 6
PAGE = 256
"""Tokens of a block of the paged cache of `generate_batch`, which left to itself takes nine tenths of the memory."""
Run = Callable[[int], float]
"""Samples so many new tokens of each row; returns the seconds to the first."""


@dataclass(frozen=True)
class Point:
    """What one process measures."""

    way: str
    rows: int
    tokens: int
    model: str
    dtype: str
    prompts: str
    """A file of prompts."""
    gguf: str
    vllm: str

    def ids(self) -> list[list[int]]:
        """One prompt a row; the rows of a prompt are neighbours."""
        known = json.loads(Path(self.prompts).read_text())
        return [known[row // PER_PROMPT] for row in range(self.rows)]


class Unavailable(Exception):
    """Why a way cannot be measured here."""


# --- the ways


def prepare_mass(point: Point) -> Run:
    import torch

    from mass import timing
    from mass.config import LoraConfig, ModelConfig, SamplingConfig
    from mass.lm import load_lm
    from mass.lm.model import LM
    from mass.lm.sampling import StopStrings, sample_rows

    class Endless(LM):
        end_ids = frozenset()  # pyright: ignore[reportAssignmentType]

    lm = load_lm(ModelConfig(name=point.model, device="cpu", dtype=point.dtype), LoraConfig())  # pyright: ignore
    lm.__class__ = Endless
    prompts, adapter = point.ids(), None
    if point.way == ADAPTED:
        count, generator = point.rows // PER_PROMPT, torch.Generator().manual_seed(0)
        shapes = {name: tensor.shape for name, tensor in lm.init_adapter(0).items()}
        adapter = {name: 0.01 * torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}

    class First:
        seconds = 0.0

        def stage(self, name: str) -> None: ...

        def decoding(self, state: timing.Decoding) -> None:
            self.seconds = self.seconds or state.seconds

    def run(tokens: int) -> float:
        first, config = First(), SamplingConfig(max_new_tokens=tokens, temperature=1.0)
        with timing.listening(first):
            found = sample_rows(lm, prompts, config, range(len(prompts)), adapter, StopStrings(lm.tokenizer, ()))
        _check([len(sample.tokens) for sample in found], tokens)
        return first.seconds

    return run


def prepare_generate(point: Point) -> Run:
    import torch
    from transformers import StoppingCriteria

    model = _plain_model(point)
    prompts = point.ids()
    returned = PER_PROMPT if point.way == BATCH and point.rows == PER_PROMPT else 1
    calls = [[prompt] for prompt in prompts] if point.way == CALLS else [prompts[:1] if returned > 1 else prompts]

    class First(StoppingCriteria):
        at: float | None = None

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:  # noqa: ARG002
            self.at = self.at or time.perf_counter()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def run(tokens: int) -> float:
        first, start = First(), time.perf_counter()
        for rows in calls:
            longest = max(map(len, rows))
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            found = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=returned, min_new_tokens=tokens, max_new_tokens=tokens, eos_token_id=None,
                pad_token_id=0, stopping_criteria=[first],
            )  # fmt: skip
            _check([found.shape[1] - longest], tokens)
        return (first.at or start) - start

    return run


def prepare_continuous(point: Point) -> Run:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model = _plain_model(point)
    prompts = point.ids()
    blocks = sum(1 + (len(prompt) + point.tokens) // PAGE for prompt in prompts) + 8
    within = ContinuousBatchingConfig(page_size=PAGE, num_blocks=blocks, max_batch_tokens=4096)

    def run(tokens: int) -> float:
        config = GenerationConfig(
            max_new_tokens=tokens, do_sample=True, temperature=1.0, top_k=0, eos_token_id=-1, pad_token_id=0
        )
        found = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=within)
        _check([len(one.generated_tokens) for one in found.values()], tokens)
        return float("nan")

    return run


def prepare_vllm(point: Point) -> Run:
    if not point.vllm:
        raise Unavailable("no --vllm")
    with urllib.request.urlopen(f"{point.vllm}/v1/models") as answer:
        served = json.load(answer)["data"][0]["id"]
    prompts = point.ids()
    asked = {"model": served, "prompt": prompts, "temperature": 1.0, "ignore_eos": True, "stream": True}

    def run(tokens: int) -> float:
        body = json.dumps({**asked, "max_tokens": tokens, "min_tokens": tokens}).encode()
        request = urllib.request.Request(f"{point.vllm}/v1/completions", body, {"Content-Type": "application/json"})
        start, first = time.perf_counter(), None
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if first is None and line.startswith(b"data:"):
                    first = time.perf_counter() - start
        return first or float("nan")

    return run


def prepare_llama(point: Point) -> Run:
    if not point.gguf:
        raise Unavailable("no --gguf")
    try:
        from llama_cpp import Llama  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Unavailable("llama-cpp-python is not installed") from error
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    llama: Any = Llama(model_path=point.gguf, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    prompts = point.ids()

    def run(tokens: int) -> float:
        start, first = time.perf_counter(), None
        llama.reset()
        for prompt in prompts:
            for count, _ in enumerate(llama.generate(prompt, temp=1.0, top_k=0, top_p=1.0, min_p=0.0)):
                first = first or time.perf_counter() - start
                if count + 1 == tokens:
                    break
        return first or float("nan")

    return run


PREPARE = {OURS: prepare_mass, ADAPTED: prepare_mass, CALLS: prepare_generate, BATCH: prepare_generate,
           CONTINUOUS: prepare_continuous, VLLM: prepare_vllm, LLAMA: prepare_llama}  # fmt: skip


def _plain_model(point: Point) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(point.model, dtype=getattr(torch, point.dtype))
    return model.eval().requires_grad_(False)


def _check(lengths: Sequence[int], tokens: int) -> None:
    if set(lengths) != {tokens}:
        raise RuntimeError(f"rows of {sorted(set(lengths))} new tokens; expected {tokens}: the work is not the same")


# --- one process


def measure(point: Point) -> dict[str, Any]:
    try:
        run = PREPARE[point.way](point)
        run(2)
    except Unavailable as reason:
        return {"unavailable": str(reason)}
    except Exception as error:  # a peer that fails in code of its own: what does not run is said
        if point.way in (OURS, ADAPTED):
            raise
        return {"unavailable": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]}
    start = time.perf_counter()
    first = run(point.tokens)
    seconds = time.perf_counter() - start
    peak = None if point.way == VLLM else _resident("VmHWM") / 1e6
    return {"tokens_per_s": point.rows * point.tokens / seconds, "first_s": first, "peak_mb": peak}


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def write_prompts(model: str, path: Path) -> None:
    from mass import tasks
    from mass.config import LoraConfig, ModelConfig
    from mass.lm import load_lm

    lm = load_lm(ModelConfig(name=model, device="cpu"), LoraConfig())
    path.write_text(json.dumps([lm.synthesis_prompt(t.problem) for t in tasks.load("minimath", size=16, seed=0)]))


# --- all of them


def run_point(point: Point) -> dict[str, Any]:
    command = [sys.executable, __file__, "--point", json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"unavailable": f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}"[:160]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    given = _arguments()
    if given.point is not None:
        print(json.dumps(measure(Point(**json.loads(given.point)))))
        return
    if given.write_prompts is not None:
        write_prompts(given.model, Path(given.write_prompts))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        prompts = f"{folder}/prompts.json"
        command = [sys.executable, __file__, "--model", given.model, "--write_prompts", prompts]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        found: list[dict[str, Any]] = []
        for turn in range(given.rounds):
            for rows in given.rows:
                for way in (way for way in WAYS[rows] if not given.ways or way in given.ways):
                    point = Point(way, rows, given.tokens, given.model, given.dtype, prompts, given.gguf, given.vllm)
                    found.append({"round": turn, "rows": rows, "way": way, **run_point(point)})
                    print(json.dumps(found[-1]), file=sys.stderr, flush=True)
                    _write(given, found)
    print((given.out / "decode.md").read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=str(TINY), help="A folder that transformers and mass read.")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("results/decode"))
    parser.add_argument("--rows", type=int, nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--ways", nargs="+", default=[], choices=list(PREPARE))
    parser.add_argument("--tokens", type=int, default=64, help="New tokens of each row.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gguf", default="", help="The model's file for llama.cpp.")
    parser.add_argument("--vllm", default="", help="Where a vLLM serves the model, as http://127.0.0.1:8000.")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--write_prompts", help=argparse.SUPPRESS)
    return parser.parse_args()


def _write(given: argparse.Namespace, found: Sequence[dict[str, Any]]) -> None:
    settings = {name: getattr(given, name) for name in ("model", "dtype", "tokens", "rounds")}
    settings["threads"] = os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))
    replace_text(given.out / "decode.json", json.dumps({**settings, "found": found}, indent=1))
    replace_text(given.out / "decode.md", "\n".join([*_table(found), "", *_ratios(found)]) + "\n")


def _table(found: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| rows | way | tokens/s | first token, s | peak, MB |", "| ---: | --- | ---: | ---: | ---: |"]
    for rows, way in dict.fromkeys((one["rows"], one["way"]) for one in found):
        own = [one for one in found if (one["rows"], one["way"]) == (rows, way)]
        if (why := next((one["unavailable"] for one in own if "unavailable" in one), None)) is not None:
            lines.append(f"| {rows} | {way} | {why} | | |")
            continue
        cells = [_spread([one[name] for one in own]) for name in ("tokens_per_s", "first_s", "peak_mb")]
        lines.append(f"| {rows} | {way} | {' | '.join(cells)} |")
    return lines


def _ratios(found: Sequence[dict[str, Any]]) -> list[str]:
    """Of tokens per second in the same round."""
    lines = ["| rows | ratio of tokens/s | median (range) | to reach |", "| ---: | --- | ---: | ---: |"]
    for rows, way, other, least in TARGETS:
        rates = {(one["round"], one["way"]): one.get("tokens_per_s") for one in found if one["rows"] == rows}
        turns = sorted({turn for turn, _ in rates if rates.get((turn, way)) and rates.get((turn, other))})
        if turns:
            ratios = [rates[turn, way] / rates[turn, other] for turn in turns]
            lines.append(f"| {rows} | {way} / {other} | {_spread(ratios)} | {least:g} |")
    return lines


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and value == value]
    if not known:
        return "-"
    written = f"{statistics.median(known):.3g}"
    return written if len(known) == 1 else f"{written} ({min(known):.3g} to {max(known):.3g})"


if __name__ == "__main__":
    restart_with_kept_memory()
    main()
