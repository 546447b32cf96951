"""A loss function of somebody else: named by "package.module:function", or an object that pickles.

Only a worker process imports it, because its module may run anything.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unifiedloss.conformance.cases_of_spec import KEYWORDS
from unifiedloss.errors import SpecTypeError, SpecValueError
from unifiedloss.text import quoted, shortened


@dataclass(frozen=True)
class OwnFunction:
    """A function ``(predictions, targets)`` that returns a loss, before it is imported.

    Attributes:
        name: how reports call it.
        text: "package.module:function"; None for an object.
        pickled: the object; None for a name.
        code: lines of code that make it, with the name `function`.
        folder: the folder in which the module may lie too.
    """

    name: str
    text: str | None
    pickled: bytes | None
    code: str
    folder: str

    @classmethod
    def of(cls, function: Any) -> OwnFunction:
        """The function of this name, or this object.

        Raises:
            SpecTypeError: the object cannot be called, or does not pickle.
            SpecValueError: the name has another form.
        """
        folder = os.getcwd()  # noqa: PTH109 - text, for the path of another process
        if isinstance(function, str):
            module, colon, name = function.partition(":")
            parts = (*module.split("."), *name.split("."))
            if not colon or not all(part.isidentifier() for part in parts):
                msg = (
                    f"a loss function is named as 'package.module:function', got {quoted(function)}"
                    "."
                )
                raise SpecValueError(msg)
            return cls(function, function, None, _import(module, name), folder)
        if not callable(function):
            msg = (
                "the loss must be a function (predictions, targets), or its name as "
                f"'package.module:function', got {quoted(function)}."
            )
            raise SpecTypeError(msg)
        name = str(getattr(function, "__qualname__", type(function).__qualname__))
        module = str(getattr(function, "__module__", ""))
        advice = (
            "It is sent to another process, so that a crash of it ends only that: define it at "
            "the top of a module, or pass 'package.module:function'."
        )
        if module == "__main__":
            msg = f"{name} is defined in the program itself, which nobody imports. {advice}"
            raise SpecTypeError(msg)
        try:
            pickled = pickle.dumps(function)
        except Exception as error:
            why = shortened(f"{type(error).__name__}: {error}")
            msg = f"{name} does not pickle ({why}). {advice}"
            raise SpecTypeError(msg) from error
        importable = getattr(sys.modules.get(module), name, None) is function
        code = (
            _import(module, name)
            if importable
            else f"function = ...  # {shortened(repr(function))}"
        )
        return cls(f"{module}:{name}", None, pickled, code, folder)

    def load(self) -> Callable[..., Any]:
        """Import or unpickle it, in the worker.

        Raises:
            Exception: whatever the module raises.
        """
        # At the end, so that no file there takes the place of an installed package.
        if self.folder not in sys.path:
            sys.path.append(self.folder)
        if self.pickled is not None:
            # The parent process pickled it, so unpickling is safe.
            function = pickle.loads(self.pickled)  # noqa: S301
        else:
            assert self.text is not None
            module, _, name = self.text.partition(":")
            function = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
        if not callable(function):
            msg = f"it is {shortened(repr(function))}, and no function"
            raise TypeError(msg)
        loaded: Callable[..., Any] = function
        return loaded


def keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Which of "sample_weight" and "mask" a function takes by keyword, as its signature says."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function of C may have no signature
        return ()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(
        name for name in KEYWORDS if name in parameters and parameters[name].kind in by_name
    )


def _import(module: str, name: str) -> str:
    first, *rest = name.split(".")
    if not rest:
        return f"from {module} import {name} as function"
    return f"from {module} import {first}\n\nfunction = {name}"
