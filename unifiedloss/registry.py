"""Which adapter owns a tensor, told by the tensor's type, without importing a framework the caller has not imported.

The built-in adapters stand in a table of strings and are imported when a tensor of theirs arrives, or by name. A third party's
adapter is found through the entry-point group ``unifiedloss.adapters``, where the entry's name is the backend's name and the
top-level module its tensor types come from.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from unifiedloss.errors import (
    AdapterError,
    MissingBackendError,
    MixedBackendsError,
    UnknownTensorError,
)
from unifiedloss.spec import Loss, suggestion

if TYPE_CHECKING:
    from unifiedloss.adapter import Adapter

ENTRY_POINTS = "unifiedloss.adapters"

BUILT_IN = ("numpy", "torch", "tensorflow", "keras", "jax")
"""The adapters of this library, each in ``unifiedloss.adapters.<name>``, whose extra has the same name."""

_OWNERS = {
    "numpy": "numpy",
    "torch": "torch",
    "tensorflow": "tensorflow",
    "keras": "keras",
    "jax": "jax",
    "jaxlib": "jax",
}
"""Top-level module of a tensor's type -> backend."""

_adapters: dict[str, Adapter] = {}
_by_type: dict[type, str] = dict.fromkeys((list, tuple, int, float, bool), "numpy")


def adapter_for(
    predictions: Any, targets: Any, sample_weight: Any = None, mask: Any = None
) -> Adapter:
    """The adapter for the tensors of one call.

    NumPy arrays, Python numbers and lists may accompany any framework's tensors; the framework with a tensor in the call carries it
    out.

    Raises:
        UnknownTensorError: no known backend owns a tensor of this type.
        MixedBackendsError: the tensors belong to two frameworks.
    """
    try:
        first, second = _by_type[type(predictions)], _by_type[type(targets)]
        if first == second and sample_weight is None and mask is None:
            return _adapters[first]
    except KeyError:
        pass
    optional = {"sample_weight": sample_weight, "mask": mask}
    arguments = {"predictions": predictions, "targets": targets}
    arguments |= {name: x for name, x in optional.items() if x is not None}
    return _choose(arguments)


def _choose(arguments: dict[str, Any]) -> Adapter:
    names = {argument: backend_of(x, argument) for argument, x in arguments.items()}
    chosen = names["predictions"]
    for name in names.values():
        if name not in (chosen, "numpy") and (chosen == "numpy" or adapter(name).accepts(chosen)):
            chosen = name
    owner = adapter(chosen)
    for argument, name in names.items():
        if name != chosen and not owner.accepts(name):
            from unifiedloss.adapter import foreign

            raise MixedBackendsError(foreign(argument, name, chosen))
    return owner


def backend_of(x: Any, argument: str = "the argument") -> str:
    """The name of the backend that owns `x`, by its type."""
    cls = type(x)
    try:
        return _by_type[cls]
    except KeyError:
        pass
    for base in cls.__mro__[:-1]:
        root = base.__module__.partition(".")[0]
        if root in _OWNERS or (root != "builtins" and _entry_point(root) is not None):
            name = _OWNERS.get(root, root)
            _by_type[cls] = name
            return name
    msg = (
        f"{argument} is a {cls.__module__}.{cls.__qualname__}, which no backend owns; known are tensors of "
        f"{', '.join(BUILT_IN)}, Python numbers and lists. Convert it, for example with numpy.asarray."
    )
    raise UnknownTensorError(msg)


def adapter(name: str) -> Adapter:
    """The adapter of a backend, by name; its framework is imported now, if it was not yet.

    Raises:
        MissingBackendError: the framework is not installed, or the name is unknown.
        AdapterError: a third party's adapter does not fill the contract.
    """
    try:
        return _adapters[name]
    except KeyError:
        pass
    _adapters[name] = loaded = _built_in(name) if name in BUILT_IN else _third_party(name)
    return loaded


def _built_in(name: str) -> Adapter:
    try:
        module = importlib.import_module(f"unifiedloss.adapters.{name}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "unifiedloss":
            raise
        msg = (
            f"The backend {name!r} needs the module {error.name!r}, which is not installed; "
            f"install it with: pip install 'unifiedloss[{name}]'."
        )
        raise MissingBackendError(msg) from error
    loaded: Adapter = module.ADAPTER
    return loaded


def _entry_point(name: str) -> Any:
    # importlib.metadata costs 27 ms to import, so only a call that needs it pays.
    from importlib.metadata import entry_points

    found = entry_points(group=ENTRY_POINTS, name=name)
    return next(iter(found), None)


def _third_party(name: str) -> Adapter:
    entry = _entry_point(name)
    if entry is None:
        msg = (
            f"There is no backend {name!r}; known are {', '.join(BUILT_IN)}, and what other packages register "
            f"under the entry-point group {ENTRY_POINTS!r}.{suggestion(name, BUILT_IN)}"
        )
        raise MissingBackendError(msg)
    cls = entry.load()
    _check_contract(name, cls)
    loaded: Adapter = cls()
    return loaded


def _check_contract(name: str, cls: Any) -> None:
    """Say which member of a third party's adapter does not fit, when it is loaded and not when it is used."""
    from unifiedloss.adapter import Adapter

    def refuse(what: str) -> None:
        msg = f"The adapter {name!r} does not fill the contract of unifiedloss.adapter.Adapter: {what}"
        raise AdapterError(msg)

    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        refuse(f"the entry point must name a class derived from it, got {cls!r}.")
    if cls.__abstractmethods__:
        refuse(f"the methods {', '.join(sorted(cls.__abstractmethods__))} are missing.")
    for member in ("name", "tensor_type", "ops", "native"):
        if not hasattr(cls, member):
            refuse(f"the attribute {member!r} is missing.")
    if cls.name != name:
        refuse(
            f"its name is {cls.name!r}, and the entry point is called {name!r}; the two must be the same."
        )
    from unifiedloss.pipeline import Native, Ops

    for member, protocol in (("ops", Ops), ("native", Native)):
        wanted = [function for function in vars(protocol) if not function.startswith("_")]
        missing = [
            function
            for function in wanted
            if not callable(getattr(getattr(cls, member), function, None))
        ]
        if missing:
            refuse(f"{member!r} has no {', '.join(missing)}.")


def backends() -> dict[str, str]:
    """The backends that are installed here, with the versions of their frameworks.

    Imports each framework to ask it. A framework that is missing is left out; one that is installed and broken raises.
    """
    from importlib.metadata import entry_points

    names = [*BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINTS))]
    found = {}
    for name in names:
        try:
            found[name] = adapter(name).version()
        except MissingBackendError:
            continue
    return found


Loss._registry = sys.modules[__name__]  # noqa: SLF001 - the place it keeps for this module
