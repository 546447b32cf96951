"""What the site needs beyond MkDocs' own: formulas as MathML, and the specs' fields as their arguments.

Named in mkdocs.yml twice, as a hook and as an extension of the reader of the API; no page, and not published.
"""

from __future__ import annotations

import inspect
import re
from html import unescape
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

from unifiedloss import functional
from unifiedloss.spec import LOSSES, Loss

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
    """Show griffe, which reads source text alone, what `unifiedloss.field` makes of the specs."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Give specs their signature and described fields, and functions the stub's signature."""
        if pkg.path != "unifiedloss":
            return
        for cls in LOSSES.values():
            shown = pkg["spec"].members[cls.__name__]
            assert shown.docstring is not None
            shown.docstring.value = inspect.getdoc(cls)
            shown.set_member("__init__", _constructor(cls))
        path = Path(functional.__file__).with_suffix(".pyi")
        stub = griffe.visit("functional", filepath=path, code=path.read_text(encoding="utf-8"))
        for name, overloads in stub.overloads.items():
            if isinstance(pkg["functional"].members[name], griffe.Attribute):
                function = griffe.Function(
                    name, parameters=overloads[-1].parameters, returns=overloads[-1].returns
                )
                known = pkg["functional.softmax"].docstring
                function.docstring = griffe.Docstring(
                    overloads[0].docstring.value,
                    parent=function,
                    parser=known.parser,
                    parser_options=known.parser_options,
                )
                overloads[0].docstring = None
                function.overloads = overloads
                pkg["functional"].set_member(name, function)


def _constructor(cls: type[Loss]) -> griffe.Function:
    types: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        types |= inspect.get_annotations(base)
    kind = griffe.ParameterKind.keyword_only
    fields = [
        griffe.Parameter(name, annotation=types[name], kind=kind, default=repr(field.default))
        for name, field in cls.declarations.items()
    ]
    own = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    return griffe.Function("__init__", parameters=griffe.Parameters(own, *fields))
