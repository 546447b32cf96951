"""What users install: the wheel, built from the tree, installed into an empty environment and used from another folder."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"unifiedloss": ROOT / "unifiedloss", "unifiedloss/adapters": ROOT / "adapters"}
ADAPTERS = ("numpy", "torch", "tensorflow", "keras", "jax")

# The same file name is the same job in every adapter, so whoever has read one knows his way about the others.
# Those of backends also read and write the losses of their framework, which is all that the other folders do.
SWITCHED = ("onnx", "optax", "sklearn")
ADAPTER_FILES = {"__init__.py", "kernels.py", "ops.py", "objects.py"}
# NumPy differentiates nothing itself; only TensorFlow traces with extents, and even ranks, that it does not know; JAX and TensorFlow
# have exact mode in compiled programs, and JAX a way from there to the host; Keras hands exact mode to the adapter of the backend
# it runs on.
MORE_FILES = {
    "numpy": {"exact.py", "gradient.py"},
    "torch": {"exact.py", "switching.py"},
    "tensorflow": {"exact.py", "graph.py", "program.py", "shapes.py", "switching.py"},
    "keras": {"switching.py"},
    "jax": {"callback.py", "exact.py", "graph.py", "program.py"},
}


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without what would let this checkout or another Python in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=kept, timeout=240
    )


def output(*command: str | Path, cwd: Path) -> str:
    """What a command prints; one that fails fails the test with everything it said."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy of the tree, which a build would otherwise litter."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("unifiedloss", "adapters"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy / file)
    output(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel in it; NumPy and the rest are lent by the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    output(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = (
        "-m",
        "pip",
        "--python",
        interpreter,
        "--disable-pip-version-check",
        "install",
        "--no-deps",
        "--no-index",
    )
    output(sys.executable, *install, wheel, cwd=folder)
    # A folder that a .pth file names has its own .pth files left alone, so the editable install is not lent with it.
    target = output(
        interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).strip()
    Path(target, "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return interpreter


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder outside the repository; the current folder is where Python looks first."""
    return tmp_path


def test_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    """Every module is in the wheel under its installed name: a package that pyproject.toml forgot would be missing."""
    expected = {"unifiedloss/py.typed"}
    for name, folder in SOURCES.items():
        expected |= {
            f"{name}/{path.relative_to(folder).as_posix()}"
            for path in (*folder.rglob("*.py"), *folder.rglob("*.pyi"))
        }
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == expected
    assert "unifiedloss/adapters/torch/kernels.py" in packed
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_depends_on_numpy_alone(wheel: Path) -> None:
    """Every framework is an extra."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    requirements = metadata.get_all("Requires-Dist")
    assert requirements is not None
    needed = [re.split(r"[^\w-]", line)[0] for line in requirements if "extra ==" not in line]
    assert needed == ["numpy"]
    extras = {"torch", "tensorflow", "tensorflow-cpu", "keras", "jax", "cli", "all", "dev"}
    assert set(metadata.get_all("Provides-Extra") or ()) == extras


def test_installed_package_is_the_wheel(python: Path, elsewhere: Path) -> None:
    """A loss computed from another folder comes from the installed files, adapters included, and not from the tree."""
    code = """
import json
import unifiedloss
import unifiedloss.adapters.numpy
loss = unifiedloss.mean_squared_error([1.0, 2.0], [1.0, 4.0])
print(json.dumps([unifiedloss.__file__, unifiedloss.adapters.numpy.__file__, float(loss)]))
"""
    core, adapter, loss = json.loads(output(python, "-c", code, cwd=elsewhere))
    environment = python.parents[1]
    assert Path(core).is_relative_to(environment)
    assert Path(adapter) == Path(core).parent / "adapters" / "numpy" / "__init__.py"
    assert loss == 2.0


def test_no_top_level_adapters(python: Path, elsewhere: Path) -> None:
    """The bare name ``adapters`` belongs to another project: installing this one must not bring it."""
    done = run(python, "-c", "import adapters", cwd=elsewhere)
    assert done.returncode != 0
    assert "No module named 'adapters'" in done.stderr


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import adapters", "adapters"),
        ("import adapters.numpy", "adapters"),
        (
            "import sys; sys.path.insert(0, 'adapters'); import importlib as i; i.import_module('__init__')",
            "__init__",
        ),
    ],
)
def test_adapters_refuse_another_name(code: str, name: str) -> None:
    """In the repository, where Python finds the folder, it says what it is instead of loading a second time."""
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.returncode != 0
    assert (
        f"ImportError: this folder is the package 'unifiedloss.adapters', but it was imported as '{name}'"
        in done.stderr
    )


def test_adapters_load_in_the_repository() -> None:
    """In the same folder the right name works, with the editable install or without the wheel."""
    assert output(
        sys.executable, "-c", "import unifiedloss.adapters as a; print(a.__name__)", cwd=ROOT
    ).split() == ["unifiedloss.adapters"]


def test_command_is_installed(python: Path, elsewhere: Path) -> None:
    """The console script starts and knows its subcommand."""
    command = python.with_name("unifiedloss.exe" if os.name == "nt" else "unifiedloss")
    assert "conform" in output(command, "--help", cwd=elsewhere)


def test_one_version(python: Path, elsewhere: Path) -> None:
    """The version is a literal, so that reading it costs nothing, and the same in the metadata and in pyproject.toml."""
    tree = ast.parse((ROOT / "unifiedloss" / "__init__.py").read_text(encoding="utf-8"))
    literals = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert literals == [declared]
    code = "import importlib.metadata as m, unifiedloss as u; print(m.version('unifiedloss'), u.__version__)"
    assert output(python, "-c", code, cwd=elsewhere).split() == [declared, declared]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_have_the_same_files(adapter: str) -> None:
    """Every adapter's folder holds the same files; one that needs another says so above, with the reason."""
    assert {
        path.name for path in (ROOT / "adapters" / adapter).glob("*.py")
    } == ADAPTER_FILES | MORE_FILES.get(adapter, set())


@pytest.mark.parametrize("library", SWITCHED)
def test_libraries_that_are_no_backends(library: str) -> None:
    """Their folders hold what reads and writes their losses."""
    assert {path.name for path in (ROOT / "adapters" / library).glob("*.py")} == {
        "__init__.py",
        "switching.py",
    }


def test_adapters_are_all_known() -> None:
    """No adapter escapes the test above."""
    assert {path.parent.name for path in (ROOT / "adapters").glob("*/__init__.py")} == {
        *ADAPTERS,
        *SWITCHED,
    }


def test_pins_cover_what_is_declared() -> None:
    """Every package that pyproject.toml names has an exact pin, and one that its own range admits."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    checked = 0
    for requirement in map(Requirement, declared):
        # The plain TensorFlow is for other platforms than the one the pins are for; "all" names this project's extras.
        if requirement.name not in ("unifiedloss", "tensorflow"):
            assert requirement.specifier.contains(pins[requirement.name]), requirement
            checked += 1
    assert checked > 20
