"""Links to files of the repository outside docs/ -> links to copies of them in the site.

Pages are written so that their links work in the repository: `[README](../README.md)`. Every such file becomes a page
under `repository/` (Markdown as it is, code in a box, a folder as the list of its files), or a plain copy (pictures,
data). A link to what is not there is left alone: MkDocs warns of it, and a strict build fails.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS, COPIES, ADR = "docs", "repository", "docs/adr"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".txt": "text", ".in": "text"}
"""Files shown in a box. Those without a suffix are shown as text."""
CODE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*$|(?P<tick>`+)(?!`).+?(?<!`)(?P=tick)(?!`)", re.M | re.S)
TARGET = re.compile(r"\]\((?P<path>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")


def links(markdown: str) -> Iterator[re.Match[str]]:
    """Inline links and pictures outside code: groups `path` (empty for the page itself) and `anchor`."""
    masked = CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), markdown)
    return (m for m in TARGET.finditer(masked) if not re.match(r"[a-z]+:|/", m["path"]))


def resolve(source: str, path: str) -> str:
    """What a link on the page of repository path `source` names, as a repository path."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), path)) if path else source


def site_path(target: str, root: Path) -> str | None:
    """Where the site has a file or folder of the repository; None where neither is there."""
    if target.startswith(".."):
        return None
    path = root / target
    inside = target.removeprefix(f"{DOCS}/") if target.startswith(f"{DOCS}/") else f"{COPIES}/{target}"
    if path.is_dir():
        return f"{inside}/index.md"
    if not path.is_file():
        return None
    boxed = inside.startswith(f"{COPIES}/") and path.suffix in (*LANGUAGES, "")
    return f"{inside}.md" if boxed else inside


def text_of(target: str, root: Path) -> str | None:
    """A file or folder of the repository as Markdown; None for what is copied as it is."""
    path = root / target
    if path.is_dir():
        return _listing(target, root)
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    if path.suffix in LANGUAGES or not path.suffix:
        language = LANGUAGES.get(path.suffix, "text")
        return f"# {target}\n\n````{language}\n{path.read_text(encoding='utf-8')}\n````\n"
    return None


def _listing(target: str, root: Path) -> str:
    """A folder's files as links, by their titles where they are Markdown."""
    names = sorted(
        p.name for p in (root / target).iterdir() if not p.name.startswith(("_", ".")) and p.name != "index.md"
    )
    title = "Decisions" if target == ADR else target
    return f"# {title}\n\n" + "\n".join(
        f"- [{_title(root / target / n)}]({posixpath.basename(target)}/{n})" for n in names
    )


def _title(path: Path) -> str:
    found = re.search(r"^# (.+)$", path.read_text(encoding="utf-8"), re.M) if path.suffix == ".md" else None
    return found[1] if found else path.name


def copies(pages: list[str], root: Path) -> dict[str, str]:
    """Repository paths that the pages lead to, directly or through each other -> their places in the site.

    Pages are repository paths of Markdown in docs/; what lies in docs/ itself is left to MkDocs, but for folders.
    """
    found: dict[str, str] = {}
    queue = [*pages]
    while queue:
        source = queue.pop()
        text = text_of(source, root)
        for link in links(text or ""):
            target = resolve(source, link["path"])
            place = site_path(target, root)
            in_docs = target.startswith(f"{DOCS}/") and not (root / target).is_dir()
            if place is None or target in found or in_docs or (root / DOCS / place).is_file():
                continue
            found[target] = place
            queue.append(target)
    return found


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    pages = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()]
    for target, place in copies([*pages, "README.md", ADR], root).items() | {(ADR, "adr/index.md")}:
        text = text_of(target, root)
        if text is None:
            files.append(File.generated(config, place, abs_src_path=os.fspath(root / target)))
        else:
            files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """The page with each link to a file of the repository turned to its place in the site."""
    root = Path(config.config_file_path).parent
    return relinked(markdown, page.file.src_uri, root)


def relinked(markdown: str, place: str, root: Path) -> str:
    source = repository_path(place, root)
    here, parts, last = posixpath.dirname(place), [], 0
    for link in links(markdown):
        found = site_path(resolve(source, link["path"]), root) if link["path"] else None
        if found is None:
            continue
        parts += [markdown[last : link.start()], f"]({posixpath.relpath(found, here or '.')}{link['anchor'] or ''})"]
        last = link.end()
    return "".join([*parts, markdown[last:]])


def repository_path(place: str, root: Path) -> str:
    """The repository path behind a page of the site: the inverse of `site_path`."""
    target = place.removeprefix(f"{COPIES}/") if place.startswith(f"{COPIES}/") else f"{DOCS}/{place}"
    if target.endswith("/index.md") and not (root / target).is_file():
        return target.removesuffix("/index.md")
    return target if (root / target).is_file() else target.removesuffix(".md")
