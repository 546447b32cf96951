"""Specs, messages, exact bits, old pickles, explanations and public names, compared with what is kept in tests/golden.

A deliberate change of words or names renews the files with ``python -m tests.golden.renew``; the difference is then the
review. Bits of exact mode and pickles are never renewed: the first are promised not to change between versions, and the
second were written by older ones.
"""

from __future__ import annotations

import difflib
import json
import pickle
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
    """The text of a golden file."""
    return (renew.FOLDER / name).read_text(encoding="utf-8")


def assert_same(kept: str, found: str, name: str) -> None:
    """Fail with a unified diff, and with how to renew the file."""
    if kept == found:
        return
    difference = difflib.unified_diff(
        kept.splitlines(), found.splitlines(), f"tests/golden/{name}", "now", lineterm="", n=0
    )
    pytest.fail(
        "\n".join(
            [
                *difference,
                "",
                f"tests/golden/{name} has other text. If the change is meant, renew the file with",
                "    python -m tests.golden.renew",
                "and review the difference: error classes, and values and names in messages, stay.",
            ]
        ),
        pytrace=False,
    )


@pytest.mark.parametrize("name", [name for name in renew.FILES if name != "messages.json"])
def test_files(name: str) -> None:
    """Specs in JSON and as text, explanations, and public names with their parameters are what they were."""
    assert_same(read(name), renew.FILES[name](), name)


@pytest.mark.parametrize("group", GROUPS)
def test_messages(group: str) -> None:
    """Bad calls raise the errors they raised, with the same words."""
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
    """A bad field is refused by the function with the error and the words of the class."""
    kept = json.loads(read("messages.json"))
    refused = {
        call: outcome
        for group in ("fields", "combinations")
        for call, outcome in kept[group].items()
        if call.startswith(f"ul.{cls}(") and outcome[0]
    }
    assert len(refused) > 20
    names = messages.NAMES | {"called": FUNCTIONS[cls]}
    for call, outcome in refused.items():
        text = call.replace(f"ul.{cls}(", "called([[0.5, 0.5]], [0], ")
        with pytest.raises(ul.UnifiedLossError) as error:
            eval(text, dict(names))  # noqa: S307 - the texts are ours
        assert [error.type.__name__, str(error.value)] == outcome, call


def test_exact_bits() -> None:
    """Exact mode gives the bits it always gave, which no version may change. Of a new case, `renew` notes the bits.

    The inputs of a few cases with float64 numbers hang on the last bit of NumPy's exponential. On a machine where that is
    another one, those whose inputs are other numbers are left out.
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
        lines = difflib.unified_diff(
            specs.lines(kept).splitlines(),
            specs.lines(found).splitlines(),
            "tests/golden/exact.json",
            "now",
            lineterm="",
            n=0,
        )
        pytest.fail(
            "\n".join(
                [
                    *lines,
                    "",
                    "A row has digests of the inputs, the loss and the gradient, and for some cases the bits.",
                    "Exact results are promised never to change: a row that differs or is gone is a fault in the code.",
                    "A new case is noted by python -m tests.golden.renew, which touches no other row.",
                ]
            ),
            pytrace=False,
        )


def _holds_bfloat16() -> bool:
    """Whether NumPy has bfloat16 here, which the package ml_dtypes brings."""
    from unifiedloss import registry

    return "bfloat16" in registry.adapter("numpy").dtypes()


def load(path: Path) -> Any:
    """The objects in a pickle."""
    return pickle.loads(path.read_bytes())  # noqa: S301 - the file is ours


def test_old_pickles_of_specs() -> None:
    """Specs that an older version pickled are the specs their JSON describes."""
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
    """What `to` made in an older version loads, holds its spec, and computes what a new one does."""
    found = load(renew.FOLDER / f"{backend}_{PICKLES}.pickle")
    assert len(found) > 20
    for text, loss in found.items():
        _check_bound(loss, text, backend)


@pytest.mark.framework("torch")
def test_old_torch_save() -> None:
    """Modules that an older version wrote with torch.save load, alone and inside a model."""
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
    """The bytes of the loss, or the error."""
    try:
        return np.asarray(loss(predictions, targets)).tobytes()
    except ul.UnifiedLossError as error:
        return type(error), str(error)


@pytest.mark.parametrize("path", texts.paths())
def test_public_names_import(path: str) -> None:
    """Every path that docs/api.md names, and every public name, can be imported."""
    assert texts.found_at(path) is not None


def test_documented_paths_are_kept() -> None:
    """A path that was public is public still."""
    assert set(json.loads(read("names.json"))) <= set(texts.paths())
