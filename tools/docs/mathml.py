"""A hook of mkdocs: formulae become MathML when the site is built, so that no script has to."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return str(convert(html.unescape(match["latex"]), display=display))


def on_page_content(content: str, **_: Any) -> str:
    return _FORMULA.sub(_mathml, content)
