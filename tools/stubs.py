"""Write the stubs of `unifiedloss` and `unifiedloss.functional` for type checkers.

Both modules collect the losses at run time from the rows of `unifiedloss.losses`, so type checkers
find neither their names nor their signatures in the source. ``make stubs`` runs this module, and
tests/test_stubs.py checks that the files are up to date.
"""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import unifiedloss
from unifiedloss import functional, losses
from unifiedloss.field import annotations_of, described

_PACKAGE_HEAD = '''\
"""Written by ``make stubs`` from the rows of unifiedloss.losses; do not edit."""

'''

_HEAD = '''\
"""Written by ``make stubs`` from the fields of the specs; do not edit."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from unifiedloss.inputs import Numbers, Tensor, TensorT
from unifiedloss.spec import (
    ClassWeighting,
    ComputedIn,
    Divisor,
    Epsilon,
    Bound,
    Loss,
    OnEmpty,
    Reduction,
    Renormalize,
    Rounding,
)

_Scalar = TypeVar("_Scalar", bound=np.generic)

'''

_OVERLOAD = """\
@overload
def {name}(
    predictions: {predictions},
    targets: object,
    *,
    sample_weight: object = None,
    mask: object = None,
    {fields},
) -> {result}:
    {body}
"""


def stubs() -> dict[Path, str]:
    """Return the formatted text of each stub by its path."""
    functions = [*map(_spec_function_stub, _spec_functions()), *_source_function_stubs()]
    texts = {
        unifiedloss: _PACKAGE_HEAD + _package_imports(),
        functional: _HEAD + "".join(functions),
    }
    return {
        Path(str(module.__file__)).with_suffix(".pyi"): _formatted(text)
        for module, text in texts.items()
    }


def _formatted(text: str) -> str:
    for command in (["check", "--select", "I", "--fix"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", "stub.pyi", "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


def _package_imports() -> str:
    """Return an import of each public name of the package, from the module that defines it."""
    modules = {
        alias.name: str(node.module)
        for node in ast.parse(inspect.getsource(unifiedloss)).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is None
    }
    modules |= unifiedloss._LAZY  # noqa: SLF001
    for row in losses.ROWS:
        modules |= {
            row.spec: f"unifiedloss.losses.{row.name}.spec",
            row.function: functional.__name__,
        }
    names = sorted(set(unifiedloss.__all__) - {"__version__"})
    imports = "".join(f"from {modules[name]} import {name} as {name}\n" for name in names)
    return f"{imports}\n__version__: str\n__all__ = {sorted(unifiedloss.__all__)}\n"


def _spec_functions() -> list[Any]:
    return [function for function in vars(functional).values() if hasattr(function, "loss_class")]


def documentation(function: Any) -> str:
    """Return the docstring of a function built from a spec, with each field described."""
    cls = function.loss_class
    short = f"    {', '.join(cls.declarations)}: see `{cls.__name__}`."
    assert short in function.__doc__
    text: str = function.__doc__.replace(short, described(cls.declarations))
    return text


def _spec_function_stub(function: Any) -> str:
    """Return the overloads of a function built from a spec."""
    declarations = function.loss_class.declarations
    # The functions also take the number that the mean divides by.
    annotations = annotations_of(function.loss_class) | {"divisor": "Divisor | float | Tensor"}
    fields = ",\n    ".join(
        f"{name}: {annotation} = {declarations[name].default!r}"
        for name, annotation in annotations.items()
    )
    doc = textwrap.indent(documentation(function), "    ").strip()
    return "".join(
        _OVERLOAD.format(
            name=function.__name__, predictions=predictions, fields=fields, result=result, body=body
        )
        for predictions, result, body in (
            ("NDArray[_Scalar]", "NDArray[_Scalar] | _Scalar", f'r"""{doc}\n    """'),
            ("TensorT", "TensorT", "..."),
            ("Numbers", "Any", "..."),
        )
    )


def _source_function_stubs() -> list[str]:
    """Return the functions that the source defines, with docstrings instead of bodies."""
    nodes = ast.parse(inspect.getsource(functional)).body
    public = [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]
    stubs = []
    for name in dict.fromkeys(node.name for node in public):
        *overloads, implementation = [node for node in public if node.name == name]
        doc: list[ast.stmt] = implementation.body[:1]
        for node in overloads or [implementation]:
            node.decorator_list = [ast.Name("overload")] if overloads else []
            node.body = doc
            doc = [ast.Expr(ast.Constant(...))]
            stubs.append(f"{ast.unparse(node)}\n")
    return stubs


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text, encoding="utf-8")
