"""Compare specs, messages, exact bits, old pickles, explanations and names with tests/golden.

After a deliberate change of words or names, renew the files with ``python -m tests.golden.renew``
and review the difference. Never renew the bits of exact mode, because they are promised not to
change between versions, nor the pickles, because an older version wrote them.
"""

from __future__ import annotations

import difflib
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tests.golden import bits, messages, renew, specs, texts
from unifiedloss.conformance.cases import all_cases

GROUPS = [
    pytest.param(name, marks=pytest.mark.framework("torch", "jax"))
    if name == "torch and jax"
    else name
    for name in messages.groups()
]

BOUND = [
    "numpy",
    *(
        pytest.param(name, marks=pytest.mark.framework(name))
        for name in ("torch", "tensorflow", "jax")
    ),
]

PICKLES = "c2dfe2f"
"""The version that wrote the pickles."""


def read(name: str) -> str:
    """Return the text of a golden file."""
    return (renew.FOLDER / name).read_text(encoding="utf-8")


def assert_same(kept: str, found: str, name: str) -> None:
    """Fail where two texts differ, with a unified diff and how to renew the file."""
    if kept == found:
        return
    lines = [
        *_difference(kept, found, name),
        "",
        f"tests/golden/{name} has other text. If you mean the change, renew the file with",
        "    python -m tests.golden.renew",
        "and review the difference: error classes, and values and names in messages, stay.",
    ]
    pytest.fail("\n".join(lines), pytrace=False)


def _difference(kept: str, found: str, name: str) -> Iterator[str]:
    """Yield the unified diff from the text of a golden file to the text of today."""
    return difflib.unified_diff(
        kept.splitlines(), found.splitlines(), f"tests/golden/{name}", "now", lineterm="", n=0
    )


@pytest.mark.parametrize("name", [name for name in renew.FILES if name != "messages.json"])
def test_files(name: str) -> None:
    """Specs as JSON and as text, explanations, and public names with their parameters are kept."""
    assert_same(read(name), renew.FILES[name](), name)


@pytest.mark.parametrize("group", GROUPS)
def test_messages(group: str) -> None:
    """Bad calls raise the errors on file, with the same words."""
    kept = json.loads(read("messages.json"))[group]
    found = messages.of_group(group)
    assert_same(specs.lines(kept), specs.lines(found), "messages.json")


FUNCTIONS = {
    "CrossEntropyLoss": ul.cross_entropy_loss,
    "BinaryCrossEntropyLoss": ul.binary_cross_entropy_loss,
    "MeanSquaredError": ul.mean_squared_error,
    "NegativeLogLikelihoodLoss": ul.negative_log_likelihood_loss,
}


@pytest.mark.parametrize("cls", FUNCTIONS)
def test_functions_refuse_fields_alike(cls: str) -> None:
    """A function refuses a bad field with the error and the words of its class.

    But a divisor that is not a str is what a function divides by, and None leaves the rule.
    """
    kept = json.loads(read("messages.json"))
    refused = {
        call: outcome
        for group in ("fields", "combinations")
        for call, outcome in kept[group].items()
        if call.startswith(f"ul.{cls}(") and outcome[0] and not re.search("divisor=(?!')", call)
    }
    assert len(refused) > 20
    names = messages.NAMES | {"called": FUNCTIONS[cls]}
    for call, outcome in refused.items():
        text = call.replace(f"ul.{cls}(", "called([[0.5, 0.5]], [0], ")
        with pytest.raises(ul.UnifiedLossError) as error:
            eval(text, dict(names))  # noqa: S307 - the texts are ours
        assert [error.type.__name__, str(error.value)] == outcome, call


def test_exact_bits() -> None:
    """Exact mode gives the bits on file, which no version may change; `renew` adds new cases.

    The inputs of a few float64 cases depend on the last bit of NumPy's exponential. On a machine
    where that bit differs, the cases whose inputs differ are left out.
    """
    kept, found = renew.known_bits(), bits.rows()
    absent = set() if _holds_bfloat16() else set(kept) - set(found)
    if found[bits.PROBE] != kept[bits.PROBE]:
        absent.add(bits.PROBE)
        on_machine = {case.name for case in all_cases() if bits.may_differ(case)}
        absent |= {
            name for name in on_machine & set(kept) & set(found) if kept[name][0] != found[name][0]
        }
    kept = {name: row for name, row in kept.items() if name not in absent}
    found = {name: row for name, row in found.items() if name not in absent}
    if kept != found:
        lines = [
            *_difference(specs.lines(kept), specs.lines(found), "exact.json"),
            "",
            "A row has digests of inputs, loss and gradient, and for some cases the bits.",
            "Exact results must never change, so a row that differs or is missing is a bug.",
            "python -m tests.golden.renew adds new cases and changes no other row.",
        ]
        pytest.fail("\n".join(lines), pytrace=False)


def _holds_bfloat16() -> bool:
    """Return whether NumPy has bfloat16 here, which needs the package ml_dtypes."""
    from unifiedloss import registry

    return "bfloat16" in registry.adapter("numpy").dtypes()


def load(path: Path) -> Any:
    """Return the objects in a pickle."""
    return pickle.loads(path.read_bytes())  # noqa: S301 - the file is ours


def test_old_pickles_of_specs() -> None:
    """Specs that an older version pickled equal the specs that their JSON describes."""
    found = load(renew.FOLDER / f"specs_{PICKLES}.pickle")
    assert len(found) > 150
    assert {type(spec).__name__ for spec in found.values()} == set(specs.FIELDS)
    for text, spec in found.items():
        again = ul.from_json(text)
        assert spec == again, text
        assert hash(spec) == hash(again), text
        assert spec.to_json() == text


@pytest.mark.parametrize("backend", BOUND)
def test_old_pickles_of_bound_losses(backend: str) -> None:
    """A bound loss that an older version pickled loads, and computes the same for the same spec."""
    found = load(renew.FOLDER / f"{backend}_{PICKLES}.pickle")
    assert len(found) > 20
    for text, loss in found.items():
        _check_bound(loss, text, backend)


@pytest.mark.framework("torch")
def test_old_torch_save() -> None:
    """Modules that an older version saved with torch.save load, alone and inside a model."""
    import torch

    found = torch.load(renew.FOLDER / f"torch_{PICKLES}.pt", weights_only=False)
    for text, loss in found["modules"].items():
        _check_bound(loss, text, "torch")
    spec = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1)
    assert found["model"].loss.spec == spec
    assert not found["model"].loss.state_dict()


def _check_bound(loss: Any, text: str, backend: str) -> None:
    spec = ul.from_json(text)
    new = spec.to(backend)
    assert type(loss) is type(new)
    assert loss.spec == spec
    predictions = np.array([[0.25, 0.5], [0.75, 0.125]], np.float32)
    targets = np.array([[1, 0], [0, 1]], np.float32)
    assert _outcome(loss, predictions, targets) == _outcome(new, predictions, targets), text


def _outcome(loss: Any, predictions: Any, targets: Any) -> Any:
    """Return the bytes of the loss, or the error."""
    try:
        return np.asarray(loss(predictions, targets)).tobytes()
    except ul.UnifiedLossError as error:
        return type(error), str(error)


@pytest.mark.parametrize("path", texts.paths())
def test_public_names_import(path: str) -> None:
    """Every path that docs/api.md names, and every public name, can be imported."""
    assert texts.found_at(path) is not None


def test_documented_paths_are_kept() -> None:
    """Every path that was public is still public."""
    assert set(json.loads(read("names.json"))) <= set(texts.paths())


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("unifiedloss.switching", "unifiedloss.interop"),
        ("unifiedloss.switching.diff", "unifiedloss.interop.diff"),
        ("unifiedloss.switching.explain", "unifiedloss.interop.explain"),
        ("unifiedloss.switching.report", "unifiedloss.interop.report"),
        ("unifiedloss.switching.sides", "unifiedloss.interop.sides"),
    ],
)
def test_former_import_paths(former: str, now: str) -> None:
    """A module that has moved is found under its former path, too, and is the same module."""
    code = f"import importlib; assert importlib.import_module({former!r}).__name__ == {now!r}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
