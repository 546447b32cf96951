"""What the site needs beyond MkDocs' own: formulas as MathML, and the specs' fields as their arguments.

Named in mkdocs.yml twice, as a hook and as an extension of the reader of the API; no page, and not published.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import griffe
from latex2mathml.converter import convert

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def on_page_content(html: str, **_: Any) -> str:
    """Turn formulas into MathML when the site is built: browsers show that themselves, without a script from elsewhere."""

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match["open"] == "[" else "inline"
        return convert(unescape(match["latex"]).strip(), display=display)

    return _FORMULA.sub(mathml, html)


class Specs(griffe.Extension):
    """Tell griffe, which knows dataclasses by their decorator alone, that ``@_spec`` makes one."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give a class decorated with ``_spec`` the decorator behind it."""
        if any(decorator.callable_path == "unifiedloss.spec._spec" for decorator in cls.decorators):
            call = griffe.ExprCall(
                griffe.ExprName("dataclass", parent=cls.module),
                [griffe.ExprKeyword("frozen", "True"), griffe.ExprKeyword("kw_only", "True")],
            )
            cls.decorators.append(griffe.Decorator(call, lineno=cls.lineno, endlineno=cls.lineno))
