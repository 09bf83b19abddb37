"""The site: built strictly, without a network, with every public name and every option in it."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from reading import ROOT

from mass.cli.main import VERBS, module_of

SOURCE = ROOT / "src"
INSIDE = ("mass.verify.inside",)
"""Programs of the sandbox, which nobody imports."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built by a process that can reach nothing, whose warnings are errors."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, **nowhere, "PYTHONPATH": str(SOURCE), "NO_MKDOCS_2_WARNING": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def public_names() -> Iterator[tuple[str, str]]:
    """(module, name) of every `__all__`."""
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            listed = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            if listed and not module.startswith(INSIDE):
                yield from ((module, name) for name in ast.literal_eval(node.value))


def homes(module: str, name: str) -> set[str]:
    """The anchors under which the reference may have a name: where it is imported from, and where it is defined."""
    value = getattr(importlib.import_module(module), name)
    if inspect.ismodule(value):
        return {value.__name__}
    defined = f"{getattr(value, '__module__', module)}.{getattr(value, '__qualname__', name)}"
    return {f"{module}.{name}", defined}


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    anchors = set(re.findall(r'id="(mass[\w.]*)"', pages))
    names = list(public_names())
    missing = [f"{module}.{name}" for module, name in names if not homes(module, name) & anchors]
    assert missing == [], "write a docstring, and a line '::: MODULE' in a page of docs/reference"
    assert len(names) > 50


@pytest.mark.slow
def test_every_option_of_every_verb_is_in_the_page_of_commands(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for verb in set(VERBS) - {"lm-eval"}:
        section = re.split(r"<h2 ", page[page.index(f'id="{verb}"') :])[0]
        parser = importlib.import_module(module_of(verb))._parser()
        groups = {action.dest for action in parser._actions if f"{action.dest}." in str(parser.format_help())}
        shown = {a.option_strings[0] for a in parser._actions if a.option_strings and a.dest not in {*groups, "help"}}
        assert [name for name in sorted(shown) if f"<code>{name}</code>" not in section] == [], verb


@pytest.mark.slow
def test_a_reader_fetches_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=[\"']?(https?:)?//[^>]*>")
    found = [f"{page.name}: {m[0]}" for page in site.rglob("*.html") for m in loads.finditer(page.read_text("utf-8"))]
    assert [line for line in found if 'rel="canonical"' not in line] == []
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?https?://[^)]+\)", styles) == []


@pytest.mark.slow
def test_formulas_are_drawn_by_the_browser(site: Path) -> None:
    page = (site / "engine.html").read_text(encoding="utf-8")
    assert page.count("<math") >= 4
    assert "arithmatex" not in page


@pytest.mark.slow
def test_every_link_and_anchor_inside_the_site_leads_somewhere(site: Path) -> None:
    """Also to the anchors of the reference, which MkDocs cannot see before they are made."""
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if page.name != "404.html"}
    anchors = {page: set(re.findall(r'(?:id|name)="([^"]+)"', text)) for page, text in pages.items()}
    dead, seen = list[str](), 0
    for page, text in pages.items():
        for path, anchor in re.findall(r'<a [^>]*?href="(?!https?:|mailto:)([^"#]*)#?([^"]*)"', text):
            target = (page.parent / unquote(path)).resolve() if path else page
            known = anchors.get(target / "index.html" if target.is_dir() else target)
            seen += 1
            if not target.exists() or (anchor and known is not None and unquote(anchor) not in known):
                dead.append(f"{page.relative_to(site)} -> {path}#{anchor}")
    assert sorted(set(dead)) == []
    assert seen > 1000


def test_a_formula_that_is_none_is_an_error() -> None:
    import mathematics
    from mkdocs.exceptions import PluginError

    assert "<mi>x</mi>" in mathematics.on_page_content('<span class="arithmatex">\\(x\\)</span>')
    with pytest.raises(PluginError, match="is no TeX"):
        mathematics.on_page_content('<span class="arithmatex">\\(\\frac{\\)</span>')


@pytest.mark.slow
def test_a_dead_link_a_dead_anchor_or_a_name_that_is_none_stops_the_build(site: Path, tmp_path: Path) -> None:
    wrong = {
        "a link to nothing": ("[x](nowhere.md)", "nowhere.md"),
        "an anchor to nothing": ("[x](engine.md#no-such-part)", "no-such-part"),
        "a name to nothing": ("::: mass.metagrad.no_such_name", "no_such_name"),
    }
    assert site.is_dir()
    for what, (text, said) in wrong.items():
        build_with(tmp_path / what.replace(" ", "-"), text, said)


def build_with(folder: Path, text: str, said: str) -> None:
    """A site of two pages, the first with `text`, must not be built, for the reason `said`."""
    docs = folder / "docs"
    docs.mkdir(parents=True)
    (docs / "index.md").write_text(f"# Page\n\n{text}\n")
    (docs / "engine.md").write_text("# Engine\n")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = re.sub(r"^nav:\n(?:  .*\n)+", "", config, flags=re.M)
    config = re.sub(r"^hooks:\n(?:  .*\n)+", "", config, flags=re.M).replace("paths: [src, .]", f"paths: [{SOURCE}]")
    config = config.replace("docs/hooks/packages.py", str(ROOT / "docs" / "hooks" / "packages.py"))
    (folder / "mkdocs.yml").write_text(config.replace("extra_css: [pictures/site.css]\n", ""))
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode != 0
    assert said in ran.stderr, ran.stderr
