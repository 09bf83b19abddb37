"""A document says what the stored results say, and nothing else; what is missing is told from what is wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from research.document.build import NAMES, PICTURES, fill
from research.results import Results, collect, difference, estimate, read, series
from research.results.estimates import Some

from mass.errors import DataError
from mass.report.svg import LIGHT, standalone
from study_folders import ABLATIONS, whole_study

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "docs" / "results.md.in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("paper")
    for part in whole_study(base / "runs").iterdir():
        collect(part, base / "results" / part.name)
    return base / "results"


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return read(folder)


def filled(results: Results, template: str) -> str:
    document = fill(results, template, "t.md.in", "pictures")
    assert document.missing == []
    return document.text


def shown(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f}".replace("-", "−")


def test_numbers_are_the_estimates(results: Results) -> None:
    found = results.parts["table"].evaluations["test"]
    mass, base = series(found, "mass"), series(found, "base")
    assert mass is not None
    assert base is not None
    accuracy, gain = estimate(mass), difference(mass, base)
    assert gain is not None
    low, high = accuracy.interval
    assert filled(results, '{{ accuracy("mass") }}') == f"{shown(accuracy.mean)}% [{shown(low)}, {shown(high)}]"
    low, high = gain.interval
    expected = f"{shown(gain.mean, '+')} points [{shown(low, '+')}, {shown(high, '+')}]"
    assert filled(results, '{{ gain("mass", "base") }}') == expected
    assert filled(results, '{{ gain("base", "mass") }}').startswith(shown(-gain.mean, "+"))
    assert filled(results, '{{ stands("mass", "base") }}') == "better than"
    assert filled(results, '{{ stands("base", "mass") }}') == "worse than"
    assert filled(results, '{{ stands("mass", "mass") }}') == "not distinguishable from"
    algebra = series(found, "mass", "0.6", Some(subject="Algebra"))
    assert algebra is not None
    said = filled(results, '{{ accuracy("mass", at="0.6", subject="Algebra") }}')
    assert said.startswith(f"{shown(estimate(algebra).mean)}%")
    assert (
        filled(results, '{{ tokens("mass") }} {{ label("maj@n") }} {{ seeds() }} {{ problems() }}') == "330 maj@9 3 150"
    )
    factor = float(filled(results, '{{ ratio("mass", "base") }}')[1:5])
    assert factor == pytest.approx(estimate(mass).mean / estimate(base).mean, abs=0.006)


def test_tables_hold_a_line_for_each_method_and_mark_what_excludes_zero(results: Results) -> None:
    lines = filled(results, "{{ table() }}").splitlines()
    assert lines[0].startswith(
        "| method | greedy, % | over base, points | T = 0.6, % | over base, points | tokens per answer |"
    )
    methods = [line.split(" | ")[0].strip("| ") for line in lines[2:]]
    assert methods == ["base", "tt-ss", "solver-grpo", "mass", "mass-unadapted", "maj@9"]
    mass = next(line for line in lines if line.startswith("| mass |"))
    assert re.search(r"\*\*\+\d+\.\d \[\+\d", mass)
    assert "**" not in next(line for line in lines if line.startswith("| tt-ss |")).split("|")[3]
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    own = filled(results, '{{ table(methods=["base", "mass"], against="mass") }}').splitlines()
    assert len(own) == 4
    assert "| mass |" in own[3]


def test_what_it_was_made_at_is_told(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    assert filled(results, "{{ commits() }}") == "0123456, 0123456+"
    assert filled(results, '{{ commits("hard") }}') == "0123456"
    monkeypatch.setattr("research.document.build.NAMED_COMMITS", 1)
    assert filled(results, "{{ commits() }}") == "2 commits"


def test_the_papers_margins_stand_beside_those_measured(results: Results) -> None:
    lines = filled(results, '{{ margins({"here": "table/test", "elsewhere": "table/equal-tokens"}) }}').splitlines()
    assert lines[0] == "|  | the paper | here | elsewhere |"
    over_base = next(line for line in lines if line.startswith("| mass over base, points |")).split(" | ")
    assert over_base[1] == "+15.4"
    assert f"{over_base[2].strip('*').split(' ')[0]} points" in filled(results, '{{ gain("mass", "base") }}')
    weakest = lines[-1].split(" | ")
    assert weakest[1] == "×1.92"
    assert weakest[2] == filled(results, '{{ ratio("mass", "base", subject=weakest()) }}')
    assert all(line.endswith("|  |") for line in lines[2:]), "nothing of the other place is stored"
    assert next(line for line in lines if line.startswith("| solver-grpo over tt-ss")).split(" | ")[1] == "+2.5"


def test_the_ablation_table_compares_with_its_reference(results: Results) -> None:
    lines = filled(results, "{{ ablations() }}").splitlines()
    names = [line.split(" | ")[0].strip("| ") for line in lines[2:]]
    assert names[:3] == ["full", "2-examples", "12-examples"]
    assert names[3:] == sorted(set(ABLATIONS) - set(names[:3]))
    full = lines[2].split(" | ")
    assert full[2] == ""
    assert "[" in full[3]
    assert full[4] == "80.0"
    assert lines[3].split(" | ")[4] == "–"


def test_the_safety_table_says_what_the_adaptation_does_elsewhere(results: Results) -> None:
    lines = [line.strip("| ").split(" | ") for line in filled(results, "{{ safety() }}").splitlines()]
    assert [line[0] for line in lines] == ["setting", "---", "without", "canary-0.1", "canary-0.3", "canary-1"]
    part = results.parts["safety"]
    rows, found = part.evaluations["canary-1"], part.practice["canary-1"]
    hurt = [
        ((e.rows["mass"].outcomes["greedy"] == 0) & (e.rows["mass-unadapted"].outcomes["greedy"] == 1)).mean()
        for e in rows.values()
    ]
    assert lines[5][4] == f"{100 * sum(hurt) / 3:.1f}"
    drift = sum(sum(one["after"]["drift"]) / 60 for one in found.values()) / 3
    assert lines[5][5].startswith(f"{drift:.4f} [")
    changes = [np.subtract(one["after"]["others_adapted"], one["after"]["others_unadapted"]) for one in found.values()]
    far = np.mean([np.mean(np.array(one["after"]["drift"]) > 0.1) for one in found.values()])
    assert lines[5][6].startswith(f"{100 * far:.1f}% [")
    assert lines[5][7].startswith(shown(np.mean(changes), "+"))
    assert lines[5][8] == "3"


def test_the_best_on_validation_problems_stands_at_its_rate(results: Results) -> None:
    assert filled(results, "{{ validation() }}").splitlines() == [
        "| right, % of validation problems | 0.0003 | 0.001 | 0.003 | 0.01 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| solver-sft | 45.0 | 55.0 | 60.0 | 40.0 |",
    ]
    assert fill(results, '{{ validation("table") }}', "t", "p").missing == ["table on validation problems"]


def test_data_efficiency_is_read_off(results: Results) -> None:
    said = filled(results, '{{ needs("mass", "solver-sft", 1000) }} / {{ fewer("mass", "solver-sft", 1000) }}')
    assert re.fullmatch(r"[\d,]+ \[.+, .+\] / \d+% fewer \[.+, .+\]", said)
    assert filled(results, '{{ needs("mass", "solver-sft", 30) }}').startswith("fewer than 30")
    assert "more than 3,000" in filled(results, '{{ needs("solver-sft", "mass", 3000) }}')
    lines = filled(results, "{{ data() }}").splitlines()
    assert lines[0] == "| right, %, by training problems | 30 | 100 | 300 | 1,000 | 3,000 |"
    assert len(filled(results, "{{ needed() }}").splitlines()) == 7


def test_practice_and_rooms_are_told(results: Results) -> None:
    assert re.match(r"\d+\.\d% \[", filled(results, '{{ practice("correct") }}'))
    assert re.match(r"[+−]\d\.\d{3} \[", filled(results, '{{ practice("weight and effect", "after") }}'))
    assert len(filled(results, "{{ practice_table() }}").splitlines()) > 10
    room = filled(results, '{{ room("room/base") }}')
    assert "| copies correct | 2 | +20.0 [+17.0, +23.0] (sgd 1, K = 1) |" in room
    assert "| own likely | 1 | −2.0 [−5.0, +1.0] (sgd 1, K = 1, sharpness 10) |" in room
    assert "of all samples one right: 70.0%" in room
    assert "own correct" not in room
    changes = filled(results, '{{ changes("mass", "mass-unadapted") }}').splitlines()
    assert len(changes) == 2 + 1 + 3 + 5


def test_every_kind_of_picture_is_drawn_and_stands_alone(results: Results) -> None:
    more = {"changes": ', method="mass", other="base"', "room": ', "room/base"'}
    template = "".join(f'{{{{ picture("{kind}"{more.get(kind, "")}) }}}}\n' for kind in PICTURES)
    document = fill(results, template, "t", "../there")
    assert document.missing == []
    assert len(document.pictures) == len(PICTURES)
    for name, svg in document.pictures.items():
        assert f"](../there/{name})" in document.text
        assert "var(" not in svg
        root = ElementTree.fromstring(svg)
        assert float(root.attrib["width"].removesuffix("pt")) > 300
    again = fill(results, template, "t", "../there")
    assert again.pictures == document.pictures
    assert again.text == document.text


def test_what_needs_no_training_problem_is_drawn_beside_what_does(results: Results) -> None:
    document = fill(results, '{{ picture("data", untrained={"tt-ss": "table/test"}) }}', "t", "p")
    assert "Dashed: tt-ss, which no training problem goes into." in document.text
    assert "Dashed" not in fill(results, '{{ picture("data") }}', "t", "p").text
    missing = fill(results, '{{ picture("data", untrained={"tt-ss": "table/other"}) }}', "t", "p").missing
    assert missing == ["table/other"]


def test_a_picture_of_its_own_has_colours_and_paper() -> None:
    found = standalone('<svg role="img" viewBox="0 0 20.5 10"><path fill="var(--s1)"/></svg>', "a < b")
    assert LIGHT["--s1"] in found
    assert 'viewBox="0 -24 20.5 34"' in found
    assert '<rect y="-24" width="20.5" height="34" fill="#ffffff"/>' in found
    assert "a &lt; b</text>" in found
    with pytest.raises(ValueError, match="viewBox"):
        standalone("<svg></svg>", "")


def test_what_is_not_measured_yet_is_said_in_the_text(results: Results) -> None:
    asked = {
        '{{ gain("mass", "mass-gold") }}': "table/test mass-gold",
        '{{ table("table/equal-tokens") }}': "table/equal-tokens",
        '{{ ablations("safety", "full") }}': "safety/full",
        '{{ safety(reference="with") }}': "safety/with",
        '{{ picture("room", "room/other") }}': "room/other",
        '{{ practice("correct", of="table/mass-gold") }}': "table/mass-gold",
        '{{ needs("self-sft", "mass", 30) }}': "data self-sft",
        '{{ accuracy("mass", at="0.7") }}': "table/test at 0.7",
    }
    for template, what in asked.items():
        document = fill(results, f"So: {template}.", "t", "p")
        assert document.text == f"So: *(not measured yet: {what})*."
        assert document.missing == [what]
    partly = fill(results, '{{ table(methods=["base", "mass-gold"]) }}', "t", "p")
    assert partly.missing == ["table/test mass-gold"]
    assert "| base |" in partly.text
    assert (
        fill(results, '{{ has("hard") }} {{ has("hard/other") }} {{ has("table/test") }}', "t", "p").text
        == "True False True"
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ('one\ntwo {{ accuracies("mass") }}', r"t, line 2: 'accuracies' is undefined"),
        ('\n\n{{ accuracy("masss") }}', r"t, line 3: table/test has no method 'masss'; did you mean 'mass'"),
        ('{{ accuracy("mass", of="tabel/test") }}', "part 'tabel' is unknown; did you mean 'table'"),
        ('{{ accuracy("mass", of="table") }}', "'table' names no place"),
        ('{{ accuracy("mass", at="gredy") }}', "table/test has no decoding 'gredy'; did you mean 'greedy'"),
        ('{{ accuracy("mass", subject="Algebr") }}', "no subject 'Algebr'; did you mean 'Algebra'"),
        ('{{ accuracy("mass", colour="red") }}', "unexpected keyword argument 'colour'"),
        ('{{ picture("pie") }}', "'pie' is not a kind of picture"),
        ('{{ practice("truth") }}', "'truth', 'after' is not a measure"),
        ("{{ accuracy( }}", "line 1"),
    ],
)
def test_what_no_results_could_hold_is_an_error(results: Results, template: str, expected: str) -> None:
    with pytest.raises(DataError, match=expected) as error:
        fill(results, template, "t", "p")
    assert "\n" not in str(error.value)


def test_the_template_asks_only_for_what_there_is(results: Results) -> None:
    """Of the whole study all but the rooms at temperature 1 and what the made-up study leaves out is there."""
    document = fill(results, TEMPLATE.read_text(), "results.md.in", "p")
    allowed = ("mass-maj@n", "best-of-n", "in-context", "table/equal-tokens", "at 1")
    allowed += ("table/test mass-gold", "table/test solver-sft", "code")
    assert [m for m in document.missing if not any(part in m for part in allowed)] == []
    assert len(document.pictures) >= 12
    used = set(re.findall(r"(\w+)\(", " ".join(re.findall(r"{{(.*?)}}", TEMPLATE.read_text(), re.S))))
    assert used <= set(NAMES)


def test_no_number_of_the_template_is_typed_by_hand() -> None:
    """Its prose, links aside, holds no measured number: no percentage, no decimal, no count of problems.

    The section on the real model, before the question, names the settings of its one measurement, which are numbers.
    """
    template = TEMPLATE.read_text()
    template = template[template.index("## Question") :]
    prose = re.sub(r"{{.*?}}|{#.*?#}|{%.*?%}|`[^`]*`|\]\([^)]*\)", "", template, flags=re.S)
    allowed = {"95%"}
    assert set(re.findall(r"\d+(?:\.\d+)?%|\d+\.\d+|\d{2,}%?", prose)) <= allowed


def test_the_document_is_written_checked_and_found_out_of_date(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from research.__main__ import main

    results, document = tmp_path / "results", tmp_path / "docs" / "results.md"
    shutil.copytree(folder, results)
    document.parent.mkdir()
    shutil.copy(TEMPLATE, f"{document}.in")
    command = ["document", str(results), "--document", str(document)]
    assert main([*command, "--check"]) == 2
    assert "is not there" in capsys.readouterr().err
    assert main(command) == 0
    assert "not measured yet: " in capsys.readouterr().err
    assert "](../results/report/accuracy.svg)" in document.read_text()
    assert main([*command, "--check"]) == 0
    document.write_text(document.read_text().replace("| mass |", "| best |", 1))
    assert main([*command, "--check"]) == 2
    said = capsys.readouterr().err
    assert "the results say '| mass |" in said
    assert "run python -m research document" in said
    assert main(command) == 0
    (results / "table" / "eval" / "test-1.json").unlink()
    assert main([*command, "--check"]) == 2
    assert main(["document", str(tmp_path / "docs")]) == 2
    assert "holds no stored results" in capsys.readouterr().err


def test_collect_says_what_it_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from research.__main__ import main

    runs = whole_study(tmp_path / "runs", problems=6, seeds=1)
    assert main(["collect", str(runs / "table"), "--into", str(tmp_path / "r" / "table")]) == 0
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == 7
    assert "7 runs stored in" in out.err
    assert main(["collect", str(runs / "table")]) == 2
    assert main(["collect", str(tmp_path / "nowhere"), "--into", "x"]) == 2


def test_stored_results_are_read_without_torch() -> None:
    modules = "research.document.build, research.cli.collect, research.results"
    code = f"import sys; import {modules}; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "False"


def test_the_results_of_this_repository_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    from research.__main__ import main

    if not (ROOT / "docs" / "results.md").is_file():
        pytest.skip("docs/results.md has not been written yet")
    monkeypatch.chdir(ROOT)
    assert main(["document", "results/minimath", "--check"]) == 0
