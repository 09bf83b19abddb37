"""Use `mass` inside lm-evaluation-harness (extra `eval`): its tasks, prompts, filters and metrics, with our answers.

    mass lm-eval --model mass --model_args pretrained=…,checkpoint=… --tasks gsm8k,minerva_math500,mmlu

lm_eval finds model classes in a registry that installed packages cannot add to (0.4.13 has no entry points). So `mass
lm-eval` registers `mass` and then runs the harness's own command with the same arguments; in Python, `register()` does
it. See docs/lm-evaluation-harness.md.
"""

from __future__ import annotations

from mass.evaluation.lm_eval.registration import main, register

__all__ = ["main", "register"]
