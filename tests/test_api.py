"""The names that a user types first."""

from __future__ import annotations

from pathlib import Path

import pytest

import mass
from mass.errors import ConfigError

PROBLEM = "Find the dot product of (3, 4) and (2, 5)."


def test_what_a_notebook_shows_fits_a_few_lines() -> None:
    model = mass.load()
    solution, adapted = model.solve(PROBLEM, return_adapted=True)
    shown = repr(solution)
    assert solution.answer is not None
    assert (len(shown) < 600, shown.count("\n")) == (True, 1)
    assert repr(model).startswith("Mass('tiny-terms', float32 on cpu")
    assert PROBLEM[:20] in repr(adapted)
    assert adapted.sample([PROBLEM]) == [solution.text]


def test_the_adapted_model_is_not_given_where_nothing_adapts() -> None:
    with pytest.raises(ConfigError, match="return_adapted"):
        mass.load().solve(PROBLEM, adapt=False, return_adapted=True)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", [name for name in mass.__all__])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(mass, name) is not None


def test_a_recipe_is_read_as_the_command_line_reads_it() -> None:
    recipe = Path(__file__).parents[1] / "recipes" / "minimath" / "mass.yaml"
    config = mass.RunConfig.from_yaml(recipe)
    assert (config.train.method, config.tasks.source) == ("mass", "minimath")


def test_the_files_name_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "adapt.yaml"
    path.write_text("synthesis: {examples: 3}\ninner: {steps: 2}\n")
    config = mass.AdaptConfig.from_yaml(path)
    assert (config.synthesis.examples, config.inner.steps) == (3, 2)
    assert config.scoring == mass.AdaptConfig().scoring
    path.write_text("votes: 4\n")
    assert mass.EvalConfig.from_yaml(path).votes == 4


@pytest.mark.parametrize("text", ["votess: 4", "votes: 0", "votes: [", "- 1"])
def test_a_file_that_is_none_is_a_one_line_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        mass.EvalConfig.from_yaml(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        mass.EvalConfig.from_yaml(tmp_path / "missing.yaml")


def test_a_former_key_is_answered_with_todays(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("outer: {sampling: {max_tokens: 4}}\n")
    with pytest.raises(ConfigError, match=r"'outer.sampling.max_tokens' is now called 'outer.sampling.max_new_tokens'"):
        mass.RunConfig.from_yaml(path)


def test_loading_shows_no_bars_and_leaves_the_users_setting(capfd: pytest.CaptureFixture[str], tiny_base: Path) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    mass.load(str(tiny_base))
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()
