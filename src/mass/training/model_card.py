"""Write the model card of a run's checkpoint: what it is, how it was made, what was measured, how to use it.

All content is read from the run: its configuration, its provenance and its metrics. The format is that of the Hugging
Face hub, Markdown after YAML (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mass.adaptation import hub
from mass.adaptation.checkpoint import Description, describe
from mass.bootstrap import wilson
from mass.config import RunConfig, to_dict
from mass.lm.source import DEFAULT_MODEL
from mass.runs.folder import RunFolder, replace_text
from mass.tasks import known

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2603.03524"
HOW = {
    "mass": "meta-trained by MASS: practice that the model writes itself is weighed and learned from in an inner loop, "
    "and the loss of verified answers after it is differentiated back through that loop",
    "mass-gold": "meta-trained by MASS with gold solutions: the loss of the worked solution after the inner loop is "
    "differentiated back through that loop",
    "solver-grpo": "trained by reinforcement learning on verified answers; it does not adapt",
    "solver-sft": "trained on the worked solutions; it does not adapt",
    "self-sft": "trained on practice that the base wrote, neither weighed nor verified; it does not adapt",
}
MOST_ROWS = 12
"""Most evaluations in the table; of more, the first, the last, this checkpoint's own, and some between are shown."""


def write_card(run: RunFolder, config: RunConfig, folder: Path | None = None) -> None:
    """Write the card of a run's best or latest checkpoint into the run's folder, or that of the checkpoint `folder`.

    The card of a checkpoint goes into its own folder. The file is written under another name and renamed.
    """
    place = run.path if folder is None else folder
    replace_text(place / CARD, card(run, to_dict(config), describe(place)))


def card(run: RunFolder, config: Mapping[str, Any], checkpoint: Description) -> str:
    """Return the text of the card of a checkpoint; `config` is the run's configuration in plain values."""
    sessions, metrics = run.sessions(), run.metrics()
    sections = (
        _what(config, checkpoint),
        _use(run, config, checkpoint),
        _measured(config, checkpoint, metrics, sessions),
        _made(config, checkpoint, sessions),
        _limits(),
    )
    return f"---\n{_metadata(config, checkpoint)}---\n\n" + "\n".join("\n".join(section) + "\n" for section in sections)


def _metadata(config: Mapping[str, Any], checkpoint: Description) -> str:
    """Return the YAML that the hub reads. A base or data set that the hub does not have is left out."""
    found: dict[str, Any] = {"library_name": "mass-adapt", "pipeline_tag": "text-generation"}
    if _is_hub_name(checkpoint.base):
        found |= {"base_model": checkpoint.base, "base_model_relation": "adapter"}
    sets = [known.find(config[kind]["source"]) for kind in ("tasks", "validation")]
    if ids := list(dict.fromkeys(one[1].hub for one in sets if one)):
        found["datasets"] = ids
    tags = ("mass", checkpoint.method, "test-time-training", "meta-learning", "lora", "peft")
    found["tags"] = list(dict.fromkeys(tags))
    return yaml.safe_dump(found, sort_keys=False)


def _is_hub_name(name: str) -> bool:
    return hub.is_name(name) and not name.startswith(".") and not Path(name).exists()


def _what(config: Mapping[str, Any], checkpoint: Description) -> Iterator[str]:
    lora = checkpoint.lora
    yield f"# {checkpoint.method} on {_name(checkpoint.base)}\n"
    yield f"A LoRA adapter of {_name(checkpoint.base)}, {HOW[checkpoint.method]} ([paper]({PAPER})).\n"
    yield f"- base: `{_name(checkpoint.base)}`, fingerprint `{checkpoint.fingerprint}`; it is not part of this folder"
    yield f"- adapter: rank {lora.r}, alpha {lora.lora_alpha:g}, on {', '.join(lora.target_modules)}"
    yield f"- checkpoint: step {checkpoint.step} of {config['train']['steps']}"


def _use(run: RunFolder, config: Mapping[str, Any], checkpoint: Description) -> Iterator[str]:
    name, folder, dtype = config["model"]["name"], run.path, checkpoint.dtype or config["model"]["dtype"]
    model = "" if name == DEFAULT_MODEL else f" --model {name} --model.dtype {dtype}"
    yield "\n## Use\n"
    yield "```"
    yield f'mass solve "Your problem"{model} --checkpoint {folder}'
    method = checkpoint.method
    both = f"{method},{method}-unadapted" if config["train"]["method"] in ("mass", "mass-gold") else method
    yield f"mass eval{model} --checkpoint {folder} --methods base,{both} --tasks problems.jsonl"
    yield "```\n"
    yield "```python"
    yield "import mass\n"
    arguments = "" if name == DEFAULT_MODEL else f"{name!r}, "
    precision = "" if name == DEFAULT_MODEL else f", dtype={dtype!r}"
    yield f'model = mass.load({arguments}checkpoint="{folder}"{precision})'
    yield 'print(model.solve("Your problem").text)'
    yield "```\n"
    yield (
        "`adapter/` is an ordinary PEFT folder, which PEFT and vLLM load: the starting point of every adaptation, "
        "without the adaptation."
    )


def _measured(
    config: Mapping[str, Any],
    checkpoint: Description,
    metrics: Sequence[Mapping[str, Any]],
    sessions: Sequence[Mapping[str, Any]],
) -> Iterator[str]:
    rows = [row for row in metrics if row.get("eval/accuracy") is not None]
    yield "\n## Measured\n"
    if not rows:
        yield "No evaluation on held-out problems was part of the run."
        return
    problems = next((s["validation"]["rows"] for s in reversed(sessions) if s.get("validation")), None)
    count = "its" if problems is None else f"{problems}"
    yield (
        f"On {count} held-out problems of {_source(config['validation'])}, in training, one answer each; shares with "
        "95% intervals (Wilson) over problems. The checkpoint kept as the best was chosen on these same problems, so "
        "its number flatters it: for one that does not, evaluate on others.\n"
    )
    yield "| step | adapted | unadapted | helped | hurt |"
    yield "| --- | --- | --- | --- | --- |"
    for row in _some(rows, checkpoint.step):
        mark = " (this checkpoint)" if row["step"] == checkpoint.step else ""
        adapted, plain = (_share(row.get(f"eval/{key}"), problems) for key in ("accuracy", "unadapted accuracy"))
        yield f"| {row['step']}{mark} | {adapted} | {plain} | {_number(row, 'helped')} | {_number(row, 'hurt')} |"


def _some(rows: Sequence[Mapping[str, Any]], step: int) -> list[Mapping[str, Any]]:
    if len(rows) <= MOST_ROWS:
        return list(rows)
    every = len(rows) / MOST_ROWS
    chosen = {int(i * every) for i in range(MOST_ROWS)} | {len(rows) - 1}
    return [row for i, row in enumerate(rows) if i in chosen or row["step"] == step]


def _share(share: float | None, problems: int | None) -> str:
    if share is None:
        return "not measured"
    interval = None if problems is None else wilson(round(share * problems), problems)
    if interval is None:
        return f"{share:.1%}"
    low, high = interval
    return f"{share:.1%} ({round(share * (problems or 0))} of {problems}) [{low:.1%}, {high:.1%}]"


def _number(row: Mapping[str, Any], key: str) -> str:
    value = row.get(f"eval/{key}")
    return "" if value is None else f"{value:.0f}"


def _made(config: Mapping[str, Any], checkpoint: Description, sessions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    train, inner, synthesis = config["train"], config["adapt"]["inner"], config["adapt"]["synthesis"]
    last = sessions[-1] if sessions else {}
    yield "\n## How it was made\n"
    yield f"- method `{train['method']}`, seed {train['seed']}, {train['tasks_per_step']} problems a step"
    if train["method"] in ("mass", "mass-gold"):
        yield (
            f"- in training {synthesis['examples']} practice examples and {inner['steps']} inner steps "
            f"({inner['optimizer']}, started at rate {inner['learning_rate']:g}); at test "
            f"{checkpoint.adapt.synthesis.examples} and {checkpoint.adapt.inner.steps}"
        )
    for kind, key in (("tasks", "training"), ("validation", "validation")):
        yield f"- {key}: {_source(config[kind])}{_rows(last.get(key))}"
    yield f"- base weights in {config['model']['dtype']}"
    for one in sessions:
        at = f"from step {one['step']}" if one["step"] else "from the start"
        versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        commit = f"; commit `{one['commit']}`" if one["commit"] else ""
        yield f"- {at}: {one['processes']} × {one['device']}, Python {one['python']}, {versions}{commit}"
    yield "- every setting: `config.json`; every step: `metrics.jsonl`; what it was made with: `provenance.json`"


def _source(tasks: Mapping[str, Any]) -> str:
    """Return a data set's name, with its split, or its file name."""
    path = Path(tasks["source"])
    file = path.suffix in (".jsonl", ".gz", ".parquet")
    chosen = "".join(f", {name} {tasks[name]}" for name in ("part", "levels", "subjects") if tasks.get(name))
    return (f"`{path.name}`" if file else f"`{tasks['source']}` ({tasks['split']})") + chosen


def _rows(found: Mapping[str, Any] | None) -> str:
    return f", {found['rows']} problems, SHA-256 `{found['hash'][:16]}`" if found else ", endless or not recorded"


def _limits() -> Iterator[str]:
    yield "\n## Limits\n"
    yield (
        "It was trained and measured on the sets above and on nothing else. An adapted answer costs many times the "
        "tokens of a plain one. Adapting can hurt (column `hurt`); an update that is not finite or explodes is "
        "discarded and the answer says so. The base's own limits and licence hold."
    )


def _name(base: str) -> str:
    """Return a base's hub name, or the last part of its folder: a card should not publish paths of a machine."""
    return base if _is_hub_name(base) else Path(base).name
