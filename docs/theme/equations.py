"""Turns the equations of a page into MathML when the site is built, so that reading them needs no script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\s*\\[(\[](?P<latex>.*?)\\[)\]]\s*</(?P=tag)>', re.DOTALL
)


def on_page_content(content: str, **_: Any) -> str:
    """Replace every equation of a rendered page; `on_page_content` is the name mkdocs calls."""
    return EQUATION.sub(_mathml, content)


def _mathml(equation: re.Match[str]) -> str:
    display = "block" if equation["tag"] == "div" else "inline"
    return convert(html.unescape(equation["latex"]), display=display)
