"""Pickle specs and bound losses with the installed version.

Run ``python tests/golden/pickles.py VERSION``.

The files prove that newer code reads what this version wrote, so make them once for a version and
never renew them. Each file holds a dictionary from the JSON of a spec to the object made of it. The
script reads only `specs.json` and imports nothing from the tests, so that an older version can run
it.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import unifiedloss as ul

FOLDER = Path(__file__).parent

BACKENDS = ("numpy", "torch", "tensorflow", "jax")
"""The backends whose bound losses are pickled. Keras saves its loss in a format of its own."""

_EVERY = 6
"""One spec in this many is bound to a framework."""


def main() -> None:
    """Write the files of the version named on the command line."""
    version = sys.argv[1]
    rows = json.loads((FOLDER / "specs.json").read_text(encoding="utf-8"))
    specs = {row["json"]: ul.from_json(row["json"]) for row in rows.values()}
    _write(f"specs_{version}", specs)
    chosen = list(specs.items())[::_EVERY]
    for backend in BACKENDS:
        _write(f"{backend}_{version}", {text: spec.to(backend) for text, spec in chosen})
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Identity())
    model.loss = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1).to("torch")
    modules = {text: spec.to("torch") for text, spec in chosen}
    torch.save({"modules": modules, "model": model}, FOLDER / f"torch_{version}.pt")


def _write(name: str, objects: dict[str, object]) -> None:
    (FOLDER / f"{name}.pickle").write_bytes(pickle.dumps(objects, protocol=4))


if __name__ == "__main__":
    main()
