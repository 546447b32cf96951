"""Build the wheel with the compiled loops and the pure one, and try both: ``make wheel``.

pip takes the first where it fits, and the pure one everywhere else. Both must give the same bits.
The wheels are left in dist/.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"

# Run in an environment that has NumPy and the wheel alone.
TRIAL = """
import hashlib, sys
import numpy as np
import unifiedloss as ul
from unifiedloss import compiled

rng = np.random.default_rng(0)
logits, labels = rng.normal(size=(64, 50)).astype(np.float32), rng.integers(50, size=64)
digest = hashlib.sha256()
for spec, targets in (
    (ul.CrossEntropyLoss(from_logits=True, rounding="exact"), labels),
    (ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact"), rng.random((64, 50))),
    (ul.MeanSquaredError(rounding="exact"), rng.normal(size=(64, 50))),
):
    for array in spec.value_and_grad(logits, targets):
        digest.update(np.asarray(array).tobytes())
print(compiled.level(), digest.hexdigest())
"""


def _run(*command: str | Path, folder: Path, **more: str) -> str:
    """Run a command without the PYTHON* variables, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=kept | more
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _build(kind: str, folder: Path) -> Path:
    """Build a wheel from a copy of the tree, so that no object of an earlier build is packed."""
    tree = folder / kind
    tree.mkdir()
    for name in ("unifiedloss", "adapters"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", DIST)
    before = set(DIST.iterdir())
    _run(sys.executable, *command, folder=tree, UNIFIEDLOSS_BUILD=kind)
    (wheel,) = set(DIST.iterdir()) - before
    return wheel


def _try(name: str, folder: Path, *options: str | Path) -> tuple[str, str]:
    """Install into a new environment, and return the level of the loops and the digest of bits."""
    environment = folder / f"environment-{name}"
    _run(sys.executable, "-m", "venv", environment, folder=folder)
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, "-c", ROOT / "constraints.txt", "numpy", folder=folder)
    _run(*pip, "--no-index", "--no-deps", *options, folder=folder)
    level, digest = _run(python, "-c", TRIAL, folder=folder).split()
    return level, digest


def main() -> None:
    """Build and try both wheels."""
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    with tempfile.TemporaryDirectory(prefix="unifiedloss-") as name:
        folder = Path(name)
        wheels = {kind: _build(kind, folder) for kind in ("required", "pure")}
        found = {kind: _try(kind, folder, wheel) for kind, wheel in wheels.items()}
        # pip chooses between the two by their tags.
        found["pip's choice"] = _try("choice", folder, "--find-links", DIST, "unifiedloss")
    for wheel in sorted(DIST.iterdir()):
        print(f"{wheel.name}: {wheel.stat().st_size / 1000:.0f} kB")
    for kind, (level, digest) in found.items():
        print(f"{kind}: loops {level}, bits {digest[:16]}")
    if len({digest for _, digest in found.values()}) > 1:
        sys.exit("The wheels do not give the same bits.")
    if found["pip's choice"][0] != found["required"][0] or found["pure"][0] != "numpy":
        sys.exit("pip does not choose the wheel with the loops, or the pure wheel has some.")
    print("Both wheels install, and give the same bits; pip chooses the one with the loops.")


if __name__ == "__main__":
    main()
