"""What a reviewer asks first: versions, the date, the data and the command."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from unifiedloss import __version__
from unifiedloss.described import Described
from unifiedloss.evaluation.sums import Counts
from unifiedloss.reports.model import Column, Table

_PACKAGES = {
    "numpy": ("numpy",),
    "torch": ("torch",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly"),
    "keras": ("keras",),
    "jax": ("jax",),
    "optax": ("optax",),
    "sklearn": ("scikit-learn",),
    "onnxruntime": ("onnxruntime",),
}
"""The packages on PyPI, one of which is installed, of each module."""


def versions(modules: Iterable[str]) -> dict[str, str]:
    """The versions of those among some modules that are known and installed, without an import."""
    found = {}
    for module in _PACKAGES:
        if module not in modules:
            continue
        for package in _PACKAGES[module]:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return found


def named_in(text: str) -> set[str]:
    """The modules that a text names, such as "keras (jax)"."""
    return set(re.findall(r"[a-z]+", text.lower())) & _PACKAGES.keys()


def loaded() -> set[str]:
    """The known modules that this process has imported."""
    return _PACKAGES.keys() & sys.modules.keys()


def system() -> dict[str, str]:
    """The versions of this library and of Python, and the machine."""
    return {
        "unifiedloss": __version__,
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def now() -> str:
    """The date and the time, in UTC."""
    return datetime.now(UTC).isoformat(sep=" ", timespec="seconds")


def command() -> str:
    """The command line of this process, quoted for a shell."""
    program, *arguments = sys.argv
    name = Path(program).name
    first = ["python", "-m", "unifiedloss"] if name == "__main__.py" else [name]
    return shlex.join([*first, *arguments])


def counts(counted: Counts | None) -> str:
    """How many positions the loss has, and how many of them do not count."""
    if counted is None:
        return "unknown"
    said = "none" if not counted.dropped else f"{counted.dropped:,}"
    return f"{counted.positions:,}, of which {said} dropped"


def table_of(arrays: Iterable[Described], why_no_hash: str = "") -> Table:
    """The data as a table.

    Args:
        arrays: the arrays.
        why_no_hash: what stands in place of a hash that was not computed.
    """
    columns = (Column("array"), Column("shape"), Column("dtype"), Column("SHA-256", code=True))
    rows = tuple(
        (each.name, str(each.shape), each.dtype, each.sha256 or why_no_hash) for each in arrays
    )
    return Table(columns, rows)
