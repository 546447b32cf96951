"""Find the backend of a tensor from its type, without importing any framework."""

from __future__ import annotations

from typing import Any

from unifiedloss.errors import UnknownTensorError

ENTRY_POINTS = "unifiedloss.adapters"
"""The entry-point group in which other packages register their adapters.

The name of an entry is the name of the backend and the top-level module of its tensors' types.
"""

BUILT_IN = ("numpy", "torch", "tensorflow", "keras", "jax", "dask")
"""The adapters of this library, each in ``unifiedloss.adapters.<name>``. The extra that installs
the framework has the same name."""

_OWNERS = {**dict(zip(BUILT_IN, BUILT_IN, strict=True)), "jaxlib": "jax"}
"""Top-level module of a tensor's type -> backend."""

_PREDICTIONS = ("predictions", "logits")
"""The names of the argument whose type the result has."""

_IN_PIECES = ("xarray", "zarr", "h5py")
"""Top-level modules of arrays that dask reads in pieces. They belong to it as predictions; beside
the tensors of a framework NumPy reads them, as it reads columns of tables."""

by_type: dict[type, str] = dict.fromkeys((list, tuple, int, float, bool), "numpy")
"""Cache: type of a tensor -> backend. A type that no backend owns is not cached."""


def backend_of(x: Any, argument: str = "the argument") -> str:
    """The name of the backend that owns `x`.

    Args:
        x: a tensor, an array, or a Python number or list, which belong to NumPy.
        argument: the name of `x`, for an error message and for `is_host_data`.

    Raises:
        UnknownTensorError: no backend owns a tensor of this type.
    """
    cls = type(x)
    try:
        return by_type[cls]
    except KeyError:
        pass
    for base in cls.__mro__[:-1]:
        root = base.__module__.partition(".")[0]
        if root in _OWNERS or (root != "builtins" and entry_point(root) is not None):
            name = _OWNERS.get(root, root)
            by_type[cls] = name
            return name
        if root in _IN_PIECES and hasattr(cls, "dtype") and _belongs_to_dask(x, root, argument):
            return "dask"
    if is_host_data(x, argument):
        return "numpy"
    msg = (
        f"{argument} is a {cls.__module__}.{cls.__qualname__}, which no backend owns; known are "
        f"tensors of {', '.join(BUILT_IN)}, Python numbers and lists. Convert it, for example with "
        "numpy.asarray."
    )
    raise UnknownTensorError(msg)


def _belongs_to_dask(x: Any, root: str, argument: str) -> bool:
    # Not cached in `by_type`, because the answer depends on the argument, and on the array inside.
    return argument in _PREDICTIONS or (root == "xarray" and x.chunks is not None)


def is_host_data(x: Any, argument: str) -> bool:
    """Whether NumPy reads an argument whose type no backend owns, such as a pandas Series.

    Such data may accompany tensors. As predictions it is refused, because the result would be an
    array and not of its type.
    """
    # Not cached in `by_type`, because the answer depends on the argument.
    return argument not in _PREDICTIONS and hasattr(type(x), "__array__")


def entry_point(name: str) -> Any:
    """The entry point that another package registered under this name, or None."""
    # Imported here, because importing importlib.metadata takes 27 ms.
    from importlib.metadata import entry_points

    return next(iter(entry_points(group=ENTRY_POINTS, name=name)), None)


def is_adapters(cls: type) -> bool:
    """Whether a class belongs to an adapter: to one of this library, or to a registered package."""
    package, _, rest = cls.__module__.partition(".")
    if package == "unifiedloss":
        return rest.startswith("adapters.")
    from importlib.metadata import entry_points  # see `entry_point`

    # Not `entry.module`, which fails for an entry that is damaged.
    modules = [entry.value.partition(":")[0].strip() for entry in entry_points(group=ENTRY_POINTS)]
    return package in {module.partition(".")[0] for module in modules}
