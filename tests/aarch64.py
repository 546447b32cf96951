"""Run the tests of the compiled loops on aarch64, on another machine: ``make test-aarch64``.

Debian's cross compiler builds the module for aarch64, and qemu runs an aarch64 Python with it, so
what runs is the module that a wheel for aarch64 holds. Python comes from Debian's packages and
NumPy from its wheel, both under build/aarch64/; nothing of them is installed. The test says whether
the bits are right, and nothing about speed.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import setup

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "aarch64"
SYSTEM, SITE = FOLDER / "system", FOLDER / "site"

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
PYTHON = "python3.11"  # that of Debian 12
PACKAGES = (
    *(f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib", f"lib{PYTHON}-dev"),
    *("libbz2-1.0", "libc6", "libexpat1", "libffi8", "libgcc-s1", "liblzma5", "libssl3"),
    *("libstdc++6", "zlib1g"),
)
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
PURE = ("_pytest", "hypothesis", "iniconfig", "mpmath", "packaging", "pluggy", "pygments", "pytest")
PURE_FILES = ("_distutils_hack", "py.py", "pytest_timeout.py", "setuptools", "sortedcontainers")

NAMES = ("halves", "mixed", "probabilities", "rows", "wide")
TESTS = ["tests/test_compiled.py", *(f"tests/test_compiled_{name}.py" for name in NAMES)]
TESTS += ["tests/test_second_tier.py"]
"""All tests of the loops but those of threads, which qemu does not emulate faithfully."""

LEFT_OUT = (
    "test_variable_chooses_the_level",  # it starts a Python that is not emulated
    "test_every_level_conforms[numpy]",  # it runs no loop, and takes minutes
    "test_coefficients_are_those_derived",  # it runs no loop
)
"""Tests of tests/test_compiled.py that are not run. A test that needs PyTorch is skipped."""


def run(*command: str | Path) -> None:
    """Run a command, and end with its output if it fails."""
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def fetch_python() -> None:
    """Unpack Debian's Python for aarch64, from package lists of our own."""
    (FOLDER / "lists" / "partial").mkdir(parents=True)
    (FOLDER / "cache" / "archives" / "partial").mkdir(parents=True)
    options = ["APT::Architectures::=amd64", "APT::Architectures::=arm64"]
    options += [f"Dir::State::lists={FOLDER / 'lists'}", f"Dir::Cache={FOLDER / 'cache'}"]
    apt = ["apt-get", "-qq", *(x for option in options for x in ("-o", option))]
    run(*apt, "update")
    run(*apt, "download", *(f"{name}:arm64" for name in PACKAGES))
    for package in FOLDER.glob("*.deb"):
        run("dpkg", "-x", package, SYSTEM)


def fetch_numpy() -> None:
    """Unpack the wheels for aarch64 of the versions that are installed here, and link pytest."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "ml_dtypes")]
    target = [x for platform in PLATFORMS for x in ("--platform", platform)]
    target += ["--python-version", PYTHON.removeprefix("python"), "--implementation", "cp"]
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps")
    run(*pip, "--only-binary", ":all:", *target, "--dest", FOLDER / "wheels", *wanted)
    for wheel in (FOLDER / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(SITE)
    here = Path(importlib.metadata.distribution("pytest").locate_file(""))
    for name in (*PURE, *PURE_FILES):
        (SITE / name).symlink_to(here / name)


def build() -> None:
    """Build the module, and put it beside the package."""
    package = SITE / "unifiedloss"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "unifiedloss", package, ignore=ignored)
    shutil.copytree(ROOT / "adapters", package / "adapters", ignore=ignored)
    sources = ROOT / setup.SOURCES
    include = SYSTEM / "usr" / "include"
    flags = [*setup.FLAGS, "-fPIC", "-DPy_LIMITED_API=0x030b0000"]
    flags += [f"-I{include / PYTHON}", f"-I{include}"]
    objects = []
    for name in setup.UNITS:
        objects.append(FOLDER / f"{name}.o")
        run(COMPILER, *flags, "-c", sources / name, "-o", objects[-1])
    for level, options in setup.LEVELS["aarch64"].items():
        objects.append(FOLDER / f"{level}.o")
        more = [*options, f"-DLOOPS=loops_{level}", "-c", sources / "level.c", "-o", objects[-1]]
        run(COMPILER, *flags, *more)
    module = package / "compiled" / "_loops.abi3.so"
    run(COMPILER, "-shared", "-pthread", *objects, "-o", module)


def test(arguments: list[str]) -> int:
    """Run the tests in the emulated Python."""
    variables = {
        "PYTHONPATH": f"{SITE}:{ROOT}",  # the root has the tests, and the module of this machine
        "PYTHONSAFEPATH": "1",  # so that the root is not first
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "UNIFIEDLOSS_COMPILED": "neon",
    }
    emulated = [
        EMULATOR,
        "-L",
        SYSTEM,
        *(x for v in variables.items() for x in ("-E", "=".join(v))),
    ]
    python = [*emulated, SYSTEM / "usr" / "bin" / PYTHON]
    code = "from unifiedloss import compiled; assert compiled.level() == 'neon', compiled.levels()"
    run(*python, "-c", code)
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    pytest += ["-o", "pythonpath=", "-o", "timeout=0", *TESTS]
    pytest += [x for name in LEFT_OUT for x in ("--deselect", f"tests/test_compiled.py::{name}")]
    pytest += arguments
    return subprocess.run([*python, *pytest], cwd=ROOT, check=False).returncode


def main() -> int:
    """Build and test."""
    missing = [name for name in (COMPILER, EMULATOR, "apt-get", "dpkg") if not shutil.which(name)]
    if missing:
        sys.exit(
            f"There is no {' and no '.join(missing)} here, so the loops cannot be tested on "
            "aarch64; install gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user (Debian)."
        )
    shutil.rmtree(FOLDER, ignore_errors=True)
    SITE.mkdir(parents=True)
    fetch_python()
    fetch_numpy()
    build()
    return test(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
