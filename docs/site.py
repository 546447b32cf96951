"""Extend MkDocs: render formulas as MathML, and document the fields of specs as arguments.

mkdocs.yml names this file twice, as a hook and as an extension of griffe, which reads the API. The
site does not publish it.
"""

from __future__ import annotations

import inspect
import re
from html import unescape
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

from unifiedloss import functional, losses
from unifiedloss.field import annotations_of
from unifiedloss.spec import LOSSES, Loss

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)


def on_page_content(html: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers render without a script from another server."""

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match["open"] == "[" else "inline"
        return convert(unescape(match["latex"]).strip(), display=display)

    return _FORMULA.sub(mathml, html)


class Specs(griffe.Extension):
    """Give griffe, which only reads source text, what `unifiedloss.field` generates."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Add the signatures and fields of the specs, and the signatures of the stub."""
        if pkg.path != "unifiedloss":
            return
        for cls in (Loss, *LOSSES.values()):
            documented = pkg[cls.__module__.removeprefix("unifiedloss.")].members[cls.__name__]
            assert documented.docstring is not None
            documented.docstring.value = inspect.getdoc(cls)
            documented.set_member("__init__", _constructor(cls))
        path = Path(functional.__file__).with_suffix(".pyi")
        stub = griffe.visit("functional", filepath=path, code=path.read_text(encoding="utf-8"))
        for name, overloads in stub.overloads.items():
            if name not in pkg["functional"].members:
                function = griffe.Function(
                    name, parameters=overloads[-1].parameters, returns=overloads[-1].returns
                )
                model = pkg["functional.softmax"].docstring
                function.docstring = griffe.Docstring(
                    overloads[0].docstring.value,
                    parent=function,
                    parser=model.parser,
                    parser_options=model.parser_options,
                )
                overloads[0].docstring = None
                function.overloads = overloads
                pkg["functional"].set_member(name, function)
        for row in losses.ROWS:
            cls = losses.spec_class(row)
            pkg.set_member(row.spec, griffe.Alias(row.spec, f"{cls.__module__}.{row.spec}"))
            function_path = f"{functional.__name__}.{row.function}"
            pkg.set_member(row.function, griffe.Alias(row.function, function_path))


def _constructor(cls: type[Loss]) -> griffe.Function:
    kind = griffe.ParameterKind.keyword_only
    defaults = {name: repr(field.default) for name, field in cls.declarations.items()}
    fields = [
        griffe.Parameter(name, annotation=annotation, kind=kind, default=defaults[name])
        for name, annotation in annotations_of(cls).items()
    ]
    self = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    return griffe.Function("__init__", parameters=griffe.Parameters(self, *fields))
