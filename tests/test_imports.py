"""Who may import whom, and what ``import unifiedloss`` costs.

The rules keep one question answerable for every line: does it name a framework? Then it lives in that framework's folder.
They are read from the syntax tree, so an import inside a function or under ``TYPE_CHECKING`` counts like any other.
"""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]

# The top-level packages each adapter may import beside NumPy: its own framework.
ADAPTERS = {
    "numpy": {"numpy", "ml_dtypes"},  # which gives NumPy its bfloat16
    "torch": {"torch"},
    "tensorflow": {"tensorflow"},
    "keras": {"keras"},
    "jax": {"jax", "jaxlib"},
}
# Libraries whose losses are read and written, and that are no backends.
SWITCHED = {
    "optax": {"optax", "jax", "jaxlib"},
    "sklearn": {"sklearn"},
    "onnx": {"onnx", "onnxruntime"},
}
FRAMEWORKS = set.union(*ADAPTERS.values(), *SWITCHED.values()) - ADAPTERS["numpy"]

IMPORT_BUDGET_MS = 15.0
# What NumPy itself takes there: processor time on the machine of docs/performance.md, nothing else running.
NUMPY_IMPORT_MS = 75.0


@dataclass(frozen=True)
class Import:
    """One imported name: the module it comes from or is, where it stands, and whether it waits for a call."""

    target: str
    line: int
    lazy: bool


@dataclass(frozen=True)
class Rule:
    """What a module may import: third-party packages, and modules of unifiedloss, each by prefix.

    `lazy` adds what is allowed inside a function or under ``TYPE_CHECKING``, so not when the module loads.
    """

    packages: frozenset[str] = frozenset()
    own: tuple[str, ...] = ()
    not_own: tuple[str, ...] = ()
    lazy: tuple[str, ...] = ()

    def allows(self, found: Import) -> bool:
        """Whether a module under this rule may have this import."""
        top = found.target.partition(".")[0]
        if top != "unifiedloss":
            return top in sys.stdlib_module_names or top in self.packages
        own = self.own + (self.lazy if found.lazy else ())
        return _under(found.target, own) and not _under(found.target, self.not_own)


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these modules or lies in one of them."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


# The core reaches adapters by name through the registry, and neither the suite nor the command line is a part of it.
OUTSIDE_THE_CORE = ("unifiedloss.adapters", "unifiedloss.conformance", "unifiedloss.cli")
CORE = Rule(packages=frozenset({"numpy"}), own=("unifiedloss",), not_own=OUTSIDE_THE_CORE)


def rule_for(module: str) -> Rule:
    """The rule of one module, by its dotted name; a core module that is not named here may use NumPy and the core."""
    if module in ("unifiedloss.errors", "unifiedloss.floats"):
        return Rule()
    if module == "unifiedloss.spec":
        # Calling a spec reaches the registry, and only then.
        return Rule(
            own=("unifiedloss.errors", "unifiedloss.floats"),
            lazy=("unifiedloss",),
            not_own=OUTSIDE_THE_CORE,
        )
    if module == "unifiedloss.reference":
        # The oracle: no array library, no framework and no adapter has a hand in it.
        return Rule(own=("unifiedloss.spec", "unifiedloss.errors", "unifiedloss.floats"))
    if _under(module, ("unifiedloss.conformance",)):
        # pytest, because the suite runs under it too.
        not_own = ("unifiedloss.adapters", "unifiedloss.cli")
        return Rule(packages=frozenset({"numpy", "pytest"}), own=("unifiedloss",), not_own=not_own)
    if module == "unifiedloss.cli":
        return Rule(
            packages=frozenset({"numpy", "typer", "rich"}),
            own=("unifiedloss",),
            not_own=("unifiedloss.adapters",),
        )
    if module == "unifiedloss.adapters":
        return Rule()
    if _under(module, ("unifiedloss.adapters",)):
        name = module.split(".")[2]
        others = tuple(
            f"unifiedloss.adapters.{other}" for other in ADAPTERS | SWITCHED if other != name
        )
        # Keras runs on another framework, and in exact mode hands its tensors to that framework's adapter.
        forbidden = (
            "unifiedloss.conformance",
            "unifiedloss.cli",
            *(() if name == "keras" else others),
        )
        # A folder without an entry above gets no framework at all.
        packages = frozenset({"numpy"} | (ADAPTERS | SWITCHED).get(name, set()))
        return Rule(packages=packages, own=("unifiedloss",), not_own=forbidden)
    return CORE


def imports(source: str, module: str, *, package: bool) -> Iterator[Import]:
    """Every import in a source text, resolved to absolute dotted names.

    Args:
        source: The text of the module.
        module: Its dotted name, which relative imports start from.
        package: Whether it is a package's ``__init__``.
    """
    tree = ast.parse(source)
    lazy = set[ast.AST]()
    for node in ast.walk(tree):
        if isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ) or _is_type_checking(node):
            body = node.body if isinstance(node.body, list) else [node.body]
            lazy.update(child for statement in body for child in ast.walk(statement))
    for node in ast.walk(tree):
        for target in _targets(node, module, package=package):
            yield Import(target, node.lineno, node in lazy)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def _targets(node: ast.AST, module: str, *, package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = _absolute(node.module or "", node.level, module, package=package)
        # "from unifiedloss import cli" names a module, "from unifiedloss.cli import main" does not. Taking both for one is
        # right under rules that go by prefix: unifiedloss.cli.main lies in unifiedloss.cli.
        return [base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
        "import_module",
        "__import__",
    ):
        # Only what is spelt out can be read here; the registry's table of names is not.
        name = node.args[0] if node.args else None
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            level = len(name.value) - len(name.value.lstrip("."))
            return [_absolute(name.value[level:], level, module, package=package)]
    return []


def _absolute(name: str, level: int, module: str, *, package: bool) -> str:
    if not level:
        return name
    parts = module.split(".")
    base = parts[: len(parts) - level + (1 if package else 0)]
    return ".".join([*base, name] if name else base)


def violations(source: str, module: str, *, package: bool = False) -> list[str]:
    """The imports of a source text that its rule forbids, each as one line to read."""
    rule = rule_for(module)
    return [
        f"{module}, line {found.line}: imports {found.target}"
        for found in imports(source, module, package=package)
        if not rule.allows(found)
    ]


def modules() -> dict[str, Path]:
    """Every module of the package, by dotted name."""
    found = {}
    for top, name in (
        (ROOT / "unifiedloss", "unifiedloss"),
        (ROOT / "adapters", "unifiedloss.adapters"),
    ):
        for path in sorted(top.rglob("*.py")):
            parts = path.relative_to(top).with_suffix("").parts
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


def test_walk_reaches_every_part() -> None:
    """The rules hold nothing together if the files they are about are not found."""
    core = (
        "spec",
        "functional",
        "adapter",
        "registry",
        "errors",
        "reference",
        "cli",
        "conformance",
    )
    adapters = [
        f"adapters.{name}{part}"
        for name in ADAPTERS
        for part in ("", ".native", ".ops", ".objects")
    ]
    expected = {"unifiedloss", *(f"unifiedloss.{name}" for name in (*core, *adapters))}
    assert expected <= modules().keys()


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_what_it_may(module: str) -> None:
    """Every module keeps to its rule."""
    path = modules()[module]
    found = violations(path.read_text(encoding="utf-8"), module, package=path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unifiedloss.errors", "import numpy"),
        ("unifiedloss.errors", "from unifiedloss.spec import CrossEntropyLoss"),
        ("unifiedloss.spec", "import numpy as np"),
        ("unifiedloss.spec", "from unifiedloss import registry"),
        ("unifiedloss.spec", "def call():\n    import torch"),
        ("unifiedloss.spec", "def call():\n    from unifiedloss.adapters import torch"),
        ("unifiedloss.floats", "import numpy"),
        ("unifiedloss.reference", "import numpy"),
        ("unifiedloss.reference", "from . import functional"),
        ("unifiedloss.reference", "def f():\n    from unifiedloss.exact import kernel"),
        ("unifiedloss.functional", "import torch"),
        ("unifiedloss.functional", "import torch.nn.functional as F"),
        (
            "unifiedloss.functional",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor",
        ),
        ("unifiedloss.functional", "def f():\n    import jax.numpy as jnp"),
        ("unifiedloss.functional", "import scipy.special"),
        ("unifiedloss.functional", "from unifiedloss.cli import main"),
        ("unifiedloss.functional", "from unifiedloss import cli"),
        ("unifiedloss.functional", "from .adapters.numpy import native"),
        ("unifiedloss.registry", "import importlib\nimportlib.import_module('torch')"),
        (
            "unifiedloss.registry",
            "from importlib import import_module\nimport_module('.adapters.torch', 'unifiedloss')",
        ),
        ("unifiedloss.registry", "__import__('keras')"),
        ("unifiedloss.not_yet_written", "import tensorflow"),
        ("unifiedloss.exact.kernel", "import torch"),
        ("unifiedloss.exact.kernel", "from ..conformance import cases"),
        ("unifiedloss.conformance.cases", "import torch"),
        ("unifiedloss.conformance.cases", "from ..adapters.torch import native"),
        ("unifiedloss.conformance.cases", "from unifiedloss import cli"),
        ("unifiedloss.cli", "import torch"),
        ("unifiedloss.adapters", "from . import torch"),
        ("unifiedloss.adapters.torch.kernels", "import tensorflow as tf"),
        ("unifiedloss.adapters.torch.kernels", "import ml_dtypes"),
        ("unifiedloss.adapters.torch.kernels", "from ..jax import native"),
        ("unifiedloss.adapters.torch.kernels", "import unifiedloss.adapters.numpy.ops"),
        ("unifiedloss.adapters.torch.kernels", "from unifiedloss.conformance import cases"),
        ("unifiedloss.adapters.keras.exact", "import torch"),
        ("unifiedloss.adapters.mxnet.kernels", "import mxnet"),
        ("unifiedloss.adapters.onnx.switching", "import torch"),
        ("unifiedloss.switching.torch", "import torch"),
        ("unifiedloss.switching", "from unifiedloss.adapters.torch import switching"),
    ],
)
def test_violation_is_caught(module: str, source: str) -> None:
    """The checker itself can fail: each of these breaks a rule, and exactly one."""
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unifiedloss.errors", "from __future__ import annotations\nimport os.path"),
        ("unifiedloss.spec", "import json\nfrom .errors import ShapeError"),
        ("unifiedloss.spec", "def call():\n    from unifiedloss import registry"),
        (
            "unifiedloss.reference",
            "from decimal import Decimal\nfrom fractions import Fraction\nfrom . import spec",
        ),
        ("unifiedloss.functional", "import numpy as np\nfrom . import registry, spec"),
        (
            "unifiedloss.registry",
            "import importlib\nimportlib.import_module(name)\nTABLE = {'torch': 'x'}",
        ),
        (
            "unifiedloss.conformance.cases",
            "import numpy, pytest\nfrom .. import reference, registry\nfrom . import checks",
        ),
        (
            "unifiedloss.cli",
            "import typer\nfrom rich.table import Table\nfrom unifiedloss.conformance import report",
        ),
        (
            "unifiedloss.adapters.jax.kernels",
            "import jax.numpy\nimport numpy\nfrom . import ops\nfrom unifiedloss.exact import a",
        ),
        (
            "unifiedloss.adapters.keras.exact",
            "import keras\nfrom unifiedloss.adapters.torch import exact",
        ),
        (
            "unifiedloss.adapters.optax.switching",
            "import jax\nimport optax\nfrom unifiedloss.switching import calls",
        ),
        ("unifiedloss.switching", "from unifiedloss.switching import torch"),
    ],
)
def test_allowed_import_passes(module: str, source: str) -> None:
    """The checker lets through what the rules allow; one that flags everything would catch violations too."""
    assert violations(source, module) == []


def test_relative_imports_in_a_package() -> None:
    """In a package's ``__init__`` one dot is the package itself, in a module it is the package around it."""
    source = "from .native import loss"
    (found,) = imports(source, "unifiedloss.adapters.torch", package=True)
    assert found.target == "unifiedloss.adapters.torch.kernels.loss"
    (found,) = imports(source, "unifiedloss.adapters.torch.exact", package=False)
    assert found.target == "unifiedloss.adapters.torch.kernels.loss"


def _in_a_new_process(code: str, folder: Path) -> str:
    """What a fresh interpreter prints for this code, run where no source tree lies beside it."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment,
        timeout=120,
    )
    return done.stdout


def test_import_brings_no_framework(tmp_path: Path) -> None:
    """``import unifiedloss`` loads NumPy at most: beside NumPy, what NumPy loads itself, and the standard library, nothing."""
    code = """
import json, sys
import numpy
before = set(sys.modules)
import unifiedloss
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules.keys() - before})))
"""
    loaded = set(json.loads(_in_a_new_process(code, tmp_path)))
    assert "unifiedloss" in loaded
    assert not loaded & FRAMEWORKS
    # An editable install adds finders of its own making, named after the package.
    foreign = {
        name
        for name in loaded
        if name not in sys.stdlib_module_names and not name.startswith("__editable__")
    }
    assert foreign <= {"unifiedloss", "numpy"}


def test_import_is_quick(tmp_path: Path) -> None:
    """After NumPy, ``import unifiedloss`` stays within its budget: the best of several processes, compiled files in place.

    Processor time, because the wall clock also measures what else the machine does; and many tries, because a shared machine
    has slow seconds in that too. The budget is for a machine that imports NumPy in `NUMPY_IMPORT_MS`; a slower one, told by NumPy's
    import in the same process, has as much more.
    """
    code = """
import time
start = time.process_time()
import numpy
between = time.process_time()
import unifiedloss
print(1000 * (time.process_time() - between), 1000 * (between - start))
"""
    _in_a_new_process(code, tmp_path)
    shares: list[float] = []
    while len(shares) < 40 and min(shares, default=math.inf) > 1:
        ours, numpys = map(float, _in_a_new_process(code, tmp_path).split())
        shares.append(ours / (IMPORT_BUDGET_MS * max(1.0, numpys / NUMPY_IMPORT_MS)))
    assert min(shares) <= 1, f"took {', '.join(f'{share:.2f}' for share in shares)} of what it may"
