"""The ways to run an adapter's framework, eager and compiled, for the conformance suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Mode(NamedTuple):
    """A way to run an adapter's framework, for the conformance suite.

    Attributes:
        run: ``run(function, *tensors)`` calls the function, compiled or not.
        raises: whether bad values raise in this mode. If not, they give NaN.
        whole_step: whether loss and gradient can be compiled as one function. If not, only the loss
            is compiled, and its gradient is taken through the compiled function.
        costly: whether compiling takes so long that only a small part of the cases is run.
        exact: whether every loss works with ``rounding="exact"`` in this mode. If not, the mode has
            no host callback, and a loss without a form in `unifiedloss.exact.graph.form` is
            refused.
        complete: whether the suite runs its complete set of cases in this mode, and not in the
            adapter's first one. Set it for a framework that compiles eager calls too: compiling a
            call and its gradient as one program is then the cheapest way to run them.
        missing: what this machine lacks for the mode, as a sentence without its full stop; None if
            the mode can run. The suite then reports the mode as not checked.
    """

    run: Callable[..., Any]
    raises: bool
    whole_step: bool = True
    costly: bool = False
    exact: bool = True
    complete: bool = False
    missing: str | None = None
