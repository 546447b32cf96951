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
from unifiedloss.evaluation.sums import Counts

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
    for module, packages in _PACKAGES.items():
        for package in packages if module in modules else ():
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return found


def named_in(text: str) -> set[str]:
    """The modules that a text names, such as "keras (jax)"; with Keras that on which it runs."""
    words = {"tensorflow" if word == "tf" else word for word in re.findall(r"[a-z]+", text)}
    keras = sys.modules.get("keras")
    if "keras" in words and keras is not None:
        words.add(keras.config.backend())
    return words & _PACKAGES.keys()


def system() -> dict[str, str]:
    """The versions of this library and of Python, and the machine."""
    return {
        "unifiedloss": __version__,
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def now() -> str:
    """The date and the time, in UTC."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def command() -> str:
    """The command line of this process, quoted for a shell."""
    program, *arguments = sys.argv
    name = Path(program).name
    first = ["python", "-m", "unifiedloss"] if name == "__main__.py" else [name]
    return " ".join(map(_quoted, [*first, *arguments]))


def _quoted(argument: str) -> str:
    """An argument as a shell reads it, in double quotes if it has single ones alone."""
    if "'" in argument and not set('"$`\\!') & set(argument):
        return f'"{argument}"'
    return shlex.quote(argument)


def counts(counted: Counts | None) -> str:
    """How many positions the loss has, and how many of them do not count."""
    if counted is None:
        return "unknown"
    said = "none" if not counted.dropped else f"{counted.dropped:,}"
    return f"{counted.positions:,}, of which {said} dropped"
