"""Check the oldest versions that the extras admit: ``make test-oldest``.

Each framework gets its own environment, with the lowest version that pyproject.toml names, and runs
the eager cases there in both roundings. The status is 1 if anything differs or nothing is compared.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

ENVIRONMENTS = {
    "numpy": ("numpy",),
    "jax": ("numpy", "jax"),
    # Keras 3.8 imports JAX for its NumPy backend.
    "keras (numpy)": ("numpy", "keras", "jax"),
    "tensorflow": ("numpy", "tensorflow-cpu"),
}
"""For each row of the report, the packages whose oldest version is installed."""

NOT_RUN = {"torch": "package indexes have no CPU build of so old a version for this platform"}


def oldest() -> dict[str, str]:
    """The lowest version of each package that pyproject.toml declares, as a requirement."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    pinned = {}
    for requirement in map(Requirement, lines):
        for specifier in requirement.specifier:
            if specifier.operator == ">=":
                pinned[requirement.name] = f"{requirement.name}=={specifier.version}.*"
    return pinned


def check(row: str, packages: list[str]) -> bool:
    """Create the environment, run the eager cases, and return whether nothing differs."""
    folder = ROOT / "build" / "oldest" / "".join(c if c.isalnum() else "-" for c in row)
    venv.create(folder, with_pip=True, clear=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    print(f"\n{row}: {', '.join(packages)}", flush=True)
    subprocess.run([*pip, *packages, "typer", "rich"], check=True)
    subprocess.run([*pip, "--no-deps", "-e", str(ROOT)], check=True)
    command = [python, "-m", "unifiedloss", "conform"]
    statuses = [
        subprocess.run(
            [*command, "--backend", row, "--mode", "eager", "--rounding", rounding],
            check=False,
            cwd=folder,
        ).returncode
        for rounding in ("native", "exact")
    ]
    return statuses == [0, 0]


def main() -> None:
    """Check every environment, or only those named on the command line."""
    known = oldest()
    wanted = sys.argv[1:] or list(ENVIRONMENTS)
    results = {row: check(row, [known[name] for name in ENVIRONMENTS[row]]) for row in wanted}
    print()
    for row, passed in results.items():
        print(f"{row}: {'passed' if passed else 'FAILED'}")
    for name, why in NOT_RUN.items():
        print(f"{name}: not run, {why}")
    if not all(results.values()):
        sys.exit("Oldest versions: something differs.")
    print("Oldest versions: nothing differs.")


if __name__ == "__main__":
    main()
