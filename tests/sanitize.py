"""Run the compiled loops under ASan and UBSan: ``make test-sanitize``.

The C files are built once more, with the sanitizers, under build/sanitize/. The tests of the loops
and the fuzz of their levels then run with that module. A read or write outside of an array, and
undefined behaviour, end the process, and the status is 1.

gcc does this, and clang too where it is installed. `UNIFIEDLOSS_SANITIZE` names one compiler.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODULE = "unifiedloss.compiled._loops"
SANITIZE = ["-fsanitize=address,undefined"]
# gcc takes minutes for a level with more optimization, or with the places of all variables.
COMPILE = [*SANITIZE, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g1"]
LINK = {"gcc": SANITIZE, "clang": [*SANITIZE, "-shared-libsan"]}
RUNTIMES = {"gcc": ("libasan.so", "libubsan.so"), "clang": ("libclang_rt.asan-x86_64.so",)}

TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        *("compiled", "compiled_halves", "compiled_mixed", "compiled_probabilities"),
        *("compiled_rows", "compiled_wide", "second_tier"),
    )
)
LEFT_OUT = "not flush_to_zero and not variable_chooses and not of_torch"
"""Importing torch takes minutes here, and a process of its own would load the usual module."""

FUZZ = ("--elements", "1e6", "--most", "3000", "--seed", "5000000")


def build(compiler: str) -> Path:
    """Build the module with the sanitizers and return its file."""
    folder = ROOT / "build" / "sanitize" / compiler
    shutil.rmtree(folder, ignore_errors=True)
    code = f"import setup; setup.FLAGS += {COMPILE}; setup.LINK[:] = {LINK[compiler]}; setup.main()"
    places = ["--build-lib", str(folder), "--build-temp", str(folder / "objects")]
    subprocess.run(
        [sys.executable, "-c", code, "-q", "build_ext", *places],
        env=os.environ | {"CC": compiler, "UNIFIEDLOSS_BUILD": "required"},
        cwd=ROOT,
        check=True,
    )
    (built,) = folder.glob("**/_loops*.so")
    return built


def runtimes(compiler: str) -> str:
    """The sanitizers' libraries, which have to be loaded before Python."""
    found = []
    for name in RUNTIMES[compiler]:
        done = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        )
        found.append(done.stdout.strip())
        if not Path(found[-1]).is_absolute():
            sys.exit(f"{compiler} has no {name}; install the package of its sanitizers.")
    return " ".join(found)


def run(compiler: str) -> bool:
    """Build with a compiler and run the tests and the fuzz; return whether nothing is wrong."""
    print(f"\n{compiler}: building", flush=True)
    built = build(compiler)
    environment = os.environ | {
        "LD_PRELOAD": runtimes(compiler),
        # Python frees little at its end, which would be reported as leaks.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    python = [sys.executable, "-m", "tests.sanitize", str(built)]
    return all(
        subprocess.run([*python, part], env=environment, cwd=ROOT, check=False).returncode == 0
        for part in ("tests", "fuzz")
    )


def inside(built: str, part: str) -> int:
    """Run the tests or the fuzz in this process, with the module that was built."""
    spec = importlib.util.spec_from_file_location(MODULE, built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[MODULE] = module
    from unifiedloss import compiled

    if Path(compiled._loops.__file__ or "") != Path(built):
        sys.exit(f"the loops come from {compiled._loops.__file__} and not from {built}")
    if part == "tests":
        import pytest

        return int(pytest.main(["-q", "-n", "0", "-k", LEFT_OUT, *TESTS]))
    from tests.fuzz import levels

    sys.argv[1:] = FUZZ
    return levels.main()


def main() -> int:
    """Run every compiler there is."""
    wanted = os.environ.get("UNIFIEDLOSS_SANITIZE")
    if wanted and wanted not in LINK:
        sys.exit(f"UNIFIEDLOSS_SANITIZE is {wanted!r}; write {' or '.join(LINK)}.")
    compilers = [wanted] if wanted else [name for name in LINK if shutil.which(name)]
    if not compilers:
        sys.exit("The sanitizers need gcc or clang, and neither is installed.")
    wrong = [compiler for compiler in compilers if not run(compiler)]
    print("\n" + (f"not clean under: {', '.join(wrong)}" if wrong else "the sanitizers are silent"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(inside(*sys.argv[1:]) if len(sys.argv) == 3 else main())
