"""Find the packages and build the compiled loops. pyproject.toml declares everything else.

The environment variable ``UNIFIEDLOSS_BUILD`` says what is built:

- "auto" (default): the loops, where a trial compilation works; else a pure package, which gives the
  same results and is slower;
- "required": the loops, and an error where they cannot be built;
- "pure": no loops.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("unifiedloss/compiled")
MODULE = "unifiedloss.compiled._loops"
BUILD = os.environ.get("UNIFIEDLOSS_BUILD") or "auto"
WINDOWS = sys.platform == "win32"
"""There clang-cl builds the loops, because Microsoft's compiler has no vector types. The tag of the
wheel and the loops are the same; this way has not been run."""
# No contraction of products and sums, because error-free transforms need every operation rounded.
FLAGS = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
LINK = ["-s", "-pthread"] if sys.platform == "linux" else []
LEVELS = {
    "x86_64": {
        "v2": ["-march=x86-64-v2"],
        "v3": ["-march=x86-64-v3"],
        "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    },
    # The vectorizer of gcc 12 ends with an internal error on these loops, which use vectors anyway;
    # `make test-aarch64` builds them with it.
    "aarch64": {"neon": ["-fno-tree-loop-vectorize"]},
}
UNITS = ("module.c", "call.c", "parallel.c", "threads.c", "xla.c")
"""The files that are compiled once; level.c is compiled for every level."""
MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}.get(
    platform.machine().lower(), platform.machine().lower()
)
TRIAL = """
#include <Python.h>
typedef double doubles __attribute__((vector_size(32), aligned(8)));
doubles twice(doubles x) { return x + x; }
"""


def options_of(level: str) -> list[str]:
    """The compiler's options for a level, as its command line takes them."""
    options = [*FLAGS, *LEVELS[MACHINE][level]]
    return [f"/clang:{option}" for option in options] if WINDOWS else options


def compiler() -> str | None:
    """The command of the C compiler."""
    if os.environ.get("CC"):
        return os.environ["CC"]
    return shutil.which("clang-cl") if WINDOWS else sysconfig.get_config_var("CC")


def why_not() -> str:
    """Why the loops cannot be built here; empty where they can."""
    if MACHINE not in LEVELS:
        return f"they are written for {' and '.join(LEVELS)}, and this is {MACHINE}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "a Python without the GIL has no limited API"
    command = compiler()
    if not command:
        return "there is no C compiler, and CC is not set"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "trial.c")
        source.write_text(TRIAL, encoding="utf-8")
        options = options_of(list(LEVELS[MACHINE])[-1])
        includes = [f"-I{sysconfig.get_path('include')}"]
        link = ["-shared", "-fPIC", str(source), "-o", str(Path(folder, "trial.so"))]
        if WINDOWS:
            link = ["/c", str(source), f"/Fo{Path(folder, 'trial.obj')}"]
        if sys.platform == "darwin":
            link += ["-undefined", "dynamic_lookup"]
        try:
            done = subprocess.run(
                [*shlex.split(command), *options, *includes, *link],
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            return f"the compiler does not run: {error}"
        return done.stderr.strip() if done.returncode else ""


class BuildLevels(build_ext):
    """Compile the loops once for each level, and link them into the module."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension."""
        if WINDOWS:
            self.compiler.initialize()
            self.compiler.cc = compiler()
        for level in LEVELS[MACHINE]:
            ext.extra_objects += self.compiler.compile(
                [str(SOURCES / "level.c")],
                output_dir=str(Path(self.build_temp, level)),
                macros=[("LOOPS", f"loops_{level}")],
                extra_postargs=options_of(level),
                depends=ext.depends,
            )
        super().build_extension(ext)


def extension() -> dict[str, Any]:
    """The arguments of `setup` that build the loops."""
    if BUILD not in ("auto", "required", "pure"):
        sys.exit(f"UNIFIEDLOSS_BUILD is {BUILD!r}; write auto, required or pure.")
    reason = "UNIFIEDLOSS_BUILD is pure" if BUILD == "pure" else why_not()
    if reason and BUILD == "required":
        sys.exit(f"The compiled loops cannot be built: {reason}")
    if reason:
        sys.stderr.write(f"unifiedloss is built without compiled loops: {reason}\n")
        # An object of an earlier build would be packed and loaded.
        for old in (*SOURCES.glob("_loops*.so"), *Path("build").glob("**/_loops*.so")):
            old.unlink()
        return {}
    loops = Extension(
        MODULE,
        [str(SOURCES / name) for name in UNITS],
        define_macros=[("Py_LIMITED_API", "0x030b0000")],
        extra_compile_args=[f"/clang:{flag}" for flag in FLAGS] if WINDOWS else FLAGS,
        extra_link_args=LINK,
        depends=[str(path) for path in sorted(SOURCES.glob("*.[ch]"))],
        py_limited_api=True,
        optional=BUILD != "required",  # a compiler may fail at the loops, but not at the trial
    )
    return {
        "ext_modules": [loops],
        "cmdclass": {"build_ext": BuildLevels},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


def main() -> None:
    """Run setuptools."""
    # The folder adapters/ lies beside the core in the repository, to keep the two apart, but
    # installs as unifiedloss.adapters. Automatic discovery cannot express that.
    setup(
        package_dir={"unifiedloss": "unifiedloss", "unifiedloss.adapters": "adapters"},
        packages=[
            *find_packages(include=["unifiedloss", "unifiedloss.*"]),
            "unifiedloss.adapters",
            *(f"unifiedloss.adapters.{name}" for name in find_packages("adapters")),
        ],
        **extension(),
    )


if __name__ == "__main__":
    main()
