"""TeX in a page -> MathML, which browsers draw themselves: no script, no font, no network.

Arithmatex marks what stands between dollars; a formula that latex2mathml cannot read stops the build with its text.
"""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', re.S)


def on_page_content(content: str, **_: object) -> str:
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    tex = html.unescape(found["tex"]).strip()
    try:
        return convert(tex, display="block" if found["tag"] == "div" else "inline")
    except Exception as error:  # latex2mathml raises many kinds; each is a mistake in the page
        raise PluginError(
            f"the formula {tex!r} is no TeX that becomes MathML ({error}); mend it in the page"
        ) from error
