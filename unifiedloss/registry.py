"""Find the adapter of a backend, by name or by the tensors of a call, and import it when needed."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from unifiedloss import owners
from unifiedloss.errors import AdapterError, MissingBackendError, MixedBackendsError
from unifiedloss.messages import foreign
from unifiedloss.owners import BUILT_IN, ENTRY_POINTS, backend_of, by_type
from unifiedloss.spec import Loss
from unifiedloss.suggestion import suggestion
from unifiedloss.text import quoted, shortened

if TYPE_CHECKING:
    from unifiedloss.adapter import Adapter

_adapters: dict[str, Adapter] = {}


def adapter_for(
    predictions: Any, targets: Any, sample_weight: Any = None, mask: Any = None
) -> Adapter:
    """Return the adapter for the tensors of one call.

    NumPy arrays, Python numbers and lists may accompany the tensors of any framework. If there are
    such tensors, their framework evaluates the call.

    Raises:
        UnknownTensorError: no known backend owns a tensor of this type.
        MixedBackendsError: the tensors belong to two frameworks.
    """
    try:
        first, second = by_type[type(predictions)], by_type[type(targets)]
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
            raise MixedBackendsError(foreign(argument, name, chosen))
    return owner


def adapter(name: str) -> Adapter:
    """Return the adapter of a backend by its name, and import the framework if necessary.

    Raises:
        MissingBackendError: the framework is not installed, or the name is unknown.
        AdapterError: another package's adapter does not fulfil the contract.
    """
    try:
        return _adapters[name]
    except KeyError:
        pass
    _adapters[name] = loaded = built_in(name) if name in BUILT_IN else _third_party(name)
    return loaded


def built_in(name: str) -> Adapter:
    """Import a built-in adapter, without registering it."""
    try:
        module = _imported(name)
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


def _imported(name: str) -> Any:
    """The module of a built-in adapter."""
    if name == "torch":
        # torch.compile runs an import statement while it traces, and refuses import_module. With
        # the statement, the first use of a loss may be in a compiled function
        # (test_first_use_in_a_compiled_function).
        import unifiedloss.adapters.torch as module

        return module
    return importlib.import_module(f"unifiedloss.adapters.{name}")


def _third_party(name: str) -> Adapter:
    entry = owners.entry_point(name)
    if entry is None:
        msg = (
            f"There is no backend {quoted(name)}; known are {', '.join(BUILT_IN)}, and what other "
            f"packages register under the entry-point group {ENTRY_POINTS!r}."
            f"{suggestion(name, BUILT_IN)}"
        )
        raise MissingBackendError(msg)
    from unifiedloss.adapter import Adapter  # not needed until an adapter is imported

    try:
        cls = entry.load()
    except (Exception, SystemExit) as error:  # the package of someone else may raise anything
        raise AdapterError(_broken(entry, "imported", error)) from error
    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        mismatch: str | None = (
            f"the entry point must name a class derived from it, got {quoted(cls)}."
        )
    else:
        mismatch = cls.contract_mismatch(name)
    if mismatch is not None:
        msg = (
            f"The adapter {name!r} does not fill the contract of unifiedloss.adapter.Adapter: "
            f"{mismatch}"
        )
        raise AdapterError(msg)
    try:
        loaded: Adapter = cls()
    except Exception as error:
        raise AdapterError(_broken(entry, "made", error)) from error
    return loaded


def _broken(entry: Any, what: str, error: BaseException) -> str:
    return (
        f"The adapter {entry.name!r} cannot be {what} from {shortened(entry.value)}: "
        f"{type(error).__name__}: {shortened(str(error))}. Repair or remove the package."
    )


def interop() -> Any:
    """Import and return the module that reads and writes losses of other libraries."""
    return importlib.import_module("unifiedloss.interop")


def backends() -> dict[str, str]:
    """Return the installed backends with the versions of their frameworks.

    This imports each framework. One that is not installed is left out; one that is installed but
    broken raises.
    """
    from importlib.metadata import entry_points

    names = [*BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINTS))]
    versions = {}
    for name in names:
        try:
            versions[name] = adapter(name).version()
        except MissingBackendError:
            continue
    return versions


Loss._registry = sys.modules[__name__]  # noqa: SLF001 - Loss declares it for this module
