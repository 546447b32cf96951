"""Pickle specs, and what `to` makes of them, in the version that is installed here: ``python tests/golden/pickles.py VERSION``.

The files show that newer code reads what this version wrote, so they are made once for a version and never renewed. Each
holds a dictionary: the JSON of a spec, and the object that was made of it. The script reads `specs.json` beside it and
imports nothing else of the tests, so that an older version can run it.
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import unifiedloss as ul

FOLDER = Path(__file__).parent

BACKENDS = ("numpy", "torch", "tensorflow", "jax")
"""Their objects are pickled. Keras' loss is not: Keras saves it in its own format."""

_EVERY = 6
"""One spec of so many is bound to a framework."""


def main() -> None:
    """Write the files of this version."""
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
