"""Find a library's losses, and read and build those that are plain functions.

The adapters of the libraries use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce
from typing import Any

from unifiedloss.errors import UnsupportedError
from unifiedloss.interop.arrays import plain
from unifiedloss.interop.library_loss import LIBRARY_LOSSES, Call, find
from unifiedloss.interop.unchanged import foreign_part, refuse_changed

_PACKAGES = {"optax": ("optax", "chex")}
"""The packages that define the losses of a library, if it is not the library alone."""


class Losses(Mapping[str, Any]):
    """The classes and functions that a library's table names, by canonical name.

    What stands in the place of one is not among them, as after ``torch.nn.MSELoss = Mine``.
    """

    def __init__(self, library: str, module: Any) -> None:
        """Find them. `module` is the library's package."""
        self._packages = _PACKAGES.get(library, (library,))
        self._losses = {
            name: reduce(getattr, name.split(".")[1:], module)
            for name, library_loss in LIBRARY_LOSSES.items()
            if library_loss.library == library
        }

    def __getitem__(self, name: str) -> Any:
        """The loss of this name.

        Raises:
            UnsupportedError: it is not the library's own, or a method of it is not.
        """
        loss = self._losses[name]
        part = foreign_part(loss, self._packages)
        if part is not None:
            msg = (
                f"{name} is not the one of the library: {part} was put in its place, and may "
                "compute anything. Undo it before the losses of the library are run."
            )
            raise UnsupportedError(msg)
        return loss

    def __contains__(self, name: object) -> bool:
        return name in self._losses  # the default would look at the loss

    def __iter__(self) -> Iterator[str]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)

    def name_of(self, loss: Any) -> str | None:
        """The name of a class or function, or None if it is not one of the library's own.

        Raises:
            SpecTypeError: it is one whose methods were replaced.
        """
        name = next((name for name, each in self._losses.items() if each is loss), None)
        part = None if name is None else foreign_part(loss, self._packages)
        if name is None or part in (loss.__name__, type(loss).__name__):
            return None
        if part is not None:
            refuse_changed(name, f"a {part} that {self._packages[0]} does not define")
        return name


def call_with(name: str, arguments: Mapping[str, Any], backend: str | None = None) -> Call:
    """Return the call of a loss, with its arguments converted from the library's types."""
    return Call(
        name, find(name).bind([], {key: plain(value) for key, value in arguments.items()}), backend
    )


def read_function(functions: Losses, obj: Any, arguments: Mapping[str, Any]) -> Call | None:
    """Return the call of `obj` with `arguments`, or None if `obj` is not one of `functions`."""
    name = functions.name_of(obj)
    return None if name is None else call_with(name, arguments)


def with_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any]
) -> Callable[..., Any]:
    """Return the function, with its arguments bound if there are any."""
    return partial(function, **arguments) if arguments else function
