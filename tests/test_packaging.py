"""The wheel that users install: build it, install it in an empty environment, and use it there."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import setup

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"unifiedloss": ROOT / "unifiedloss", "unifiedloss/adapters": ROOT / "adapters"}
LARGEST_LOOPS = 420_000  # bytes of the wheel; the Python files take some 720,000
ADAPTERS = ("numpy", "torch", "tensorflow", "keras", "jax", "dask")

# Libraries that are no backends: their folders only read and write the losses of the library.
SWITCHED = ("onnx", "optax", "sklearn")
# A file name means the same job in every adapter, so who has read one adapter finds the way in all.
ADAPTER_FILES = {"__init__.py", "kernels.py", "ops.py", "objects.py"}
# interop.py reads and writes the losses of the framework. TensorFlow needs shapes.py, because only
# it traces with unknown shapes and ranks. JAX and TensorFlow have exact mode in compiled programs
# (graph.py, program.py), and JAX calls the host from there (callback.py), or the compiled loops
# (ffi.py). NumPy takes large calls in blocks (blocks.py), which the other frameworks do themselves,
# and native losses by compiled loops (native.py). Eager PyTorch and TensorFlow hand their memory to
# the loops (direct.py). The three that differentiate have further derivatives of exact mode
# (derivatives.py, primitives.py, further.py). Operators (operators.py), calls of the host
# (callback.py) and the ways to evaluate (evaluation.py, native.py) have files where one file would
# have two jobs. TensorFlow pads batches of unknown size for XLA (padding.py). PyTorch has operators
# for exact totals (pieces.py), a choice of "auto" that torch.compile need not trace (auto.py),
# specs as text for both (spec_text.py), and losses of DTensors (distributed.py, layout.py,
# local.py, split_ops.py); engine.py splits the cases of the suite.
# Keras has no exact.py, because it uses the adapter of the backend that it runs on. The adapter of
# dask cuts arrays (grid.py) and computes no loss, so it lacks kernels.py and ops.py.
MORE_FILES = {
    "numpy": {"blocks.py", "exact.py", "native.py"},
    "torch": {
        *{
            "auto.py",
            "derivatives.py",
            "direct.py",
            "exact.py",
            "interop.py",
            "operators.py",
            "pieces.py",
        },
        *{"distributed.py", "engine.py", "layout.py", "local.py", "processes.py", "split_ops.py"},
        "spec_text.py",
    },
    "tensorflow": {
        *{"direct.py", "exact.py", "graph.py", "program.py", "shapes.py", "interop.py"},
        *{"callback.py", "engine.py", "further.py", "padding.py", "replicas.py"},
    },
    "keras": {"interop.py"},
    "jax": {
        *{"callback.py", "exact.py", "exported.py", "ffi.py", "graph.py", "program.py"},
        *{"engine.py", "evaluation.py", "manual.py", "native.py", "primitives.py", "rows.py"},
    },
    "dask": {"grid.py"},
}
LACKING = {"dask": {"kernels.py", "ops.py"}}


def run(*command: str | Path, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command without the PYTHON* variables, which could put this checkout on its path.

    `more` are variables of its environment.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=kept | more, timeout=240
    )


def output(*command: str | Path, cwd: Path, **more: str) -> str:
    """Return what a command prints; if it fails, fail the test with all of its output."""
    done = run(*command, cwd=cwd, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(folder: Path, build: str, kind: str = "wheel") -> Path:
    """Build a wheel or an sdist without a network, from a copy of the tree, so that it stays clean.

    Args:
        folder: an empty folder.
        build: the value of UNIFIEDLOSS_BUILD.
        kind: "wheel" or "sdist".
    """
    for name in ("unifiedloss", "adapters"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder / file)
    if build != "pure":
        for old in folder.rglob("*.so"):
            old.unlink()
    command = ("-m", "build", f"--{kind}", "--no-isolation", "--outdir", "dist")
    output(sys.executable, *command, cwd=folder, UNIFIEDLOSS_BUILD=build)
    (file,) = (folder / "dist").iterdir()
    return file


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, with the compiled loops if this machine can build them."""
    pure = os.environ.get("UNIFIEDLOSS_BUILD") == "pure" or setup.why_not()
    return built(tmp_path_factory.mktemp("tree"), "pure" if pure else "required")


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of a new environment with the wheel installed.

    The environment that runs the tests lends NumPy and the other packages.
    """
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
    # Python does not read the .pth files of a folder that it got from a .pth file, so this does not
    # lend the editable install.
    target = output(
        interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    ).strip()
    Path(target, "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return interpreter


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Return a folder outside the repository, because Python looks first in the current folder."""
    return tmp_path


def test_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    """The wheel has every module and every data file, so pyproject.toml forgets none."""
    expected = {"unifiedloss/py.typed"}
    for name, folder in SOURCES.items():
        expected |= {
            f"{name}/{path.relative_to(folder).as_posix()}"
            for pattern in ("*.py", "*.pyi", "*.json", "*.html", "*.css")
            for path in folder.rglob(pattern)
        }
    names = set(zipfile.ZipFile(wheel).namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    loops = {name for name in packed if name.startswith("unifiedloss/compiled/_loops.")}
    loops -= {"unifiedloss/compiled/_loops.pyi"}
    assert packed - loops == expected
    pure = os.environ.get("UNIFIEDLOSS_BUILD") == "pure" or setup.why_not()
    assert len(loops) == (0 if pure else 1)
    assert wheel.name.endswith("-py3-none-any.whl") == (not loops)
    assert "-cp311-abi3-" in wheel.name or not loops
    sizes = {info.filename: info.compress_size for info in zipfile.ZipFile(wheel).infolist()}
    assert sum(sizes[name] for name in loops) < LARGEST_LOOPS
    assert "unifiedloss/adapters/torch/kernels.py" in packed
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_pure_wheel_has_no_loops(tmp_path: Path) -> None:
    """A pure build leaves out the loops, also where the tree holds those of an earlier build."""
    old = tmp_path / "unifiedloss" / "compiled" / "_loops.abi3.so"
    assert not old.exists()
    file = built(tmp_path, "pure")
    assert file.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(file).namelist() if name.endswith(".so")]
    assert not old.exists()


def test_unknown_build_is_refused(tmp_path: Path) -> None:
    """A value of UNIFIEDLOSS_BUILD that means nothing is an error that lists the values."""
    done = run(sys.executable, ROOT / "setup.py", "--version", cwd=tmp_path, UNIFIEDLOSS_BUILD="C")
    assert done.returncode != 0
    assert "write auto, required or pure" in done.stderr


def test_required_build_without_a_compiler_fails(tmp_path: Path) -> None:
    """Without a compiler a required build is an error, and the default build is pure."""
    setup_py = (sys.executable, ROOT / "setup.py", "--version")
    done = run(*setup_py, cwd=tmp_path, UNIFIEDLOSS_BUILD="required", CC="no-such-compiler")
    assert done.returncode != 0
    assert "no-such-compiler" in done.stderr
    done = run(*setup_py, cwd=tmp_path, UNIFIEDLOSS_BUILD="auto", CC="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "without compiled loops" in done.stderr


def test_sdist_holds_the_loops(tmp_path: Path) -> None:
    """The source distribution has what the loops are built from."""
    with tarfile.open(built(tmp_path, "auto", "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("unifiedloss/*/*.[ch]")}
    assert sources
    assert names >= sources


def test_wheel_depends_on_numpy_alone(wheel: Path) -> None:
    """NumPy is the only requirement; each framework is an extra."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = Parser().parsestr(archive.read(name).decode())
    requirements = metadata.get_all("Requires-Dist")
    assert requirements is not None
    needed = [re.split(r"[^\w-]", line)[0] for line in requirements if "extra ==" not in line]
    assert needed == ["numpy"]
    frameworks = {"torch", "tensorflow", "tensorflow-cpu", "keras", "jax", "dask"}
    extras = {*frameworks, "cli", "files", "report", "all", "trainers", "dev"}
    assert set(metadata.get_all("Provides-Extra") or ()) == extras


def test_installed_package_is_the_wheel(python: Path, elsewhere: Path) -> None:
    """A loss computed in another folder uses the installed files, adapters included."""
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
    """The wheel does not install a package ``adapters``: another project has that name."""
    done = run(python, "-c", "import adapters", cwd=elsewhere)
    assert done.returncode != 0
    assert "No module named 'adapters'" in done.stderr


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import adapters", "adapters"),
        ("import adapters.numpy", "adapters"),
        (
            (
                "import sys; sys.path.insert(0, 'adapters'); "
                "import importlib as i; i.import_module('__init__')"
            ),
            "__init__",
        ),
    ],
)
def test_adapters_refuse_another_name(code: str, name: str) -> None:
    """In the repository, where Python finds the folder by another name, the import is an error."""
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.returncode != 0
    assert (
        "ImportError: this folder is the package 'unifiedloss.adapters', "
        f"but it was imported as '{name}'" in done.stderr
    )


def test_adapters_load_in_the_repository() -> None:
    """In the root of the repository, unifiedloss.adapters can be imported under its own name."""
    assert output(
        sys.executable, "-c", "import unifiedloss.adapters as a; print(a.__name__)", cwd=ROOT
    ).split() == ["unifiedloss.adapters"]


def test_command_is_installed(python: Path, elsewhere: Path) -> None:
    """The console script starts and knows its subcommand."""
    command = python.with_name("unifiedloss.exe" if os.name == "nt" else "unifiedloss")
    assert "conform" in output(command, "--help", cwd=elsewhere)


def test_one_version(python: Path, elsewhere: Path) -> None:
    """The version is a literal, so that reading it is free, and is the same in all three places."""
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
    code = (
        "import importlib.metadata as m, unifiedloss as u; "
        "print(m.version('unifiedloss'), u.__version__)"
    )
    assert output(python, "-c", code, cwd=elsewhere).split() == [declared, declared]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_have_the_same_files(adapter: str) -> None:
    """Each adapter has the same files, and those that MORE_FILES lists with a reason."""
    files = ADAPTER_FILES | MORE_FILES.get(adapter, set())
    assert {
        path.name for path in (ROOT / "adapters" / adapter).glob("*.py")
    } == files - LACKING.get(adapter, set())


@pytest.mark.parametrize("library", SWITCHED)
def test_libraries_that_are_no_backends(library: str) -> None:
    """The folder of a library that is no backend has only interop.py."""
    assert {path.name for path in (ROOT / "adapters" / library).glob("*.py")} == {
        "__init__.py",
        "interop.py",
    }


def test_adapters_are_all_known() -> None:
    """The lists above name every folder of adapters, so none escapes the tests of its files."""
    assert {path.parent.name for path in (ROOT / "adapters").glob("*/__init__.py")} == {
        *ADAPTERS,
        *SWITCHED,
    }


def test_pins_cover_what_is_declared() -> None:
    """Each package that pyproject.toml names has an exact pin within the range given there."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    checked = 0
    for requirement in map(Requirement, declared):
        # The pins are for a platform with tensorflow-cpu, and "all" names extras of unifiedloss.
        if requirement.name not in ("unifiedloss", "tensorflow"):
            assert requirement.specifier.contains(pins[requirement.name]), requirement
            checked += 1
    assert checked > 20
