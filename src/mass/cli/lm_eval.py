"""`mass lm-eval`: run lm-evaluation-harness's own command, with `mass` among its models."""

from __future__ import annotations

from collections.abc import Sequence

USAGE = """usage: mass lm-eval [run] --model mass --model_args NAME=VALUE,... --tasks A,B,... [options of lm_eval]

Run lm-evaluation-harness (pip install 'mass-adapt[eval]') with `mass` among its models: practise on each document,
then answer it. All options are lm_eval's own: mass lm-eval run --help.

model arguments, with commas between:
{arguments}

examples:
  mass lm-eval --model mass --model_args pretrained=tiny-terms --tasks gsm8k --batch_size 8 --limit 100
  mass lm-eval --model mass --model_args pretrained=tiny-terms,checkpoint=untrained,adapt=false --tasks gsm8k
  mass lm-eval --model mass --model_args pretrained=tiny-terms,out=runs/practice --tasks gsm8k_local \\
    --include_path examples/lm_eval_tasks --log_samples --output_path runs/lm-eval
  torchrun --standalone --nproc_per_node 2 -m mass lm-eval --model mass --model_args pretrained=tiny-terms --tasks mmlu
"""


def run(arguments: Sequence[str]) -> int:
    """Run the harness and return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
        return 0
    from mass.cli import console
    from mass.cli.stages import watching
    from mass.evaluation.lm_eval import main
    from mass.training.distributed import at_start

    if not at_start().first:
        return main(arguments)
    with watching(lambda said: console.note(f"mass: {said}"), console.LINE_EVERY_S):
        return main(arguments)


def usage() -> str:
    """Return the text of `--help`."""
    return USAGE.format(arguments="\n".join(_documented()))


def _documented() -> list[str]:
    """Return each model argument with the docstring of its field."""
    from docstring_parser import parse_from_object

    from mass.evaluation.lm_eval.arguments import Arguments

    return [f"  {found.arg_name:<13} {found.description}" for found in parse_from_object(Arguments).params]
