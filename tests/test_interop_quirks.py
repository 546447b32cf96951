"""The recorded quirks are those that the libraries have, and refused arguments are refused."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tools.quirks import observed, plain_calls
from unifiedloss.interop.library_loss import KERAS_BACKENDS, LIBRARY_LOSSES, Call
from unifiedloss.interop.quirks import QUIRKS, Quirk, entry, recorded
from unifiedloss.interop.quirks.quirk import RECORDED
from unifiedloss.interop.refusals import of_arguments
from unifiedloss.interop.sides import side_of

ALL = pytest.mark.framework("numpy", "torch", "tensorflow", "keras", "jax")


@ALL
@pytest.mark.parametrize("call", plain_calls(), ids=entry)
def test_recorded_quirks_are_true(call: Call) -> None:
    """A loss differs from its spec at the probes of exactly the quirks recorded for it.

    If a library changed, run ``make quirks`` and review the difference of the record.
    """
    loss, quirks = observed(call)
    assert quirks == recorded()[loss]


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.key)
def test_every_quirk_has_losses(quirk: Quirk) -> None:
    """Some loss has the quirk, and each of its answers is that of some loss."""
    calls = [call for backend in KERAS_BACKENDS for call in plain_calls(backend)]
    concerned = [call for call in calls if isinstance(ul.from_native(call), quirk.rule.losses)]
    said = {quirk.sentence(call) for call in concerned if quirk.has(call)}
    answers = {quirk.answers} if isinstance(quirk.answers, str) else set(quirk.answers.values())
    assert said
    assert said <= answers


def test_recorded_quirks_exist() -> None:
    """The record names losses and quirks that exist, and has the versions of constraints.txt."""
    record = json.loads(RECORDED.read_text(encoding="utf-8"))
    calls = [call for backend in KERAS_BACKENDS for call in plain_calls(backend)]
    assert set(record["losses"]) == {entry(call) for call in calls}
    keys = {key for quirks in record["losses"].values() for key in quirks}
    assert keys == {quirk.key for quirk in QUIRKS if quirk.by_hand is None}
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for name, version in record["versions"].items():
        assert version == pins.get(name, pins.get(f"{name}-cpu"))


ARGUMENTS: dict[str, Any] = {
    "weight": (0.0, 1.0, 2.0),
    "weights": (0.0, 1.0, 2.0),
    "label_smoothing": 0.1,
    "ignore_index": 1,
    "ignore_class": 1,
    "pos_weight": (0.0, 1.0, 2.0),
    "from_logits": True,
}
"""Values of arguments under which more rules apply."""


@pytest.mark.parametrize("name", LIBRARY_LOSSES)
def test_explanations_list_each_entry_once(name: str) -> None:
    """No quirk, field or special value has two entries, whatever the arguments of the loss are."""
    library_loss = LIBRARY_LOSSES[name]
    known = [each for each in library_loss.parameters if each in ARGUMENTS]
    read = 0
    for count in range(len(known) + 1):
        for names in combinations(known, count):
            call = Call(name, library_loss.bind([], {each: ARGUMENTS[each] for each in names}))
            try:
                explained = ul.explain(call)
            except ul.UnsupportedError:
                continue
            read += 1
            quirks = [rule for rule, _ in explained.deviations]
            assert len(set(quirks)) == len(quirks), call
            assert len(set(explained.special)) == len(explained.special), call
    assert read


@ALL
@pytest.mark.parametrize("loss", ["SparseCategoricalCrossentropy", "CategoricalCrossentropy"])
def test_sample_weights_of_classes(loss: str) -> None:
    """Keras aligns weights to the last axis, multiplies NaN by a weight of 0, and broadcasts."""
    text = f"keras.losses.{loss}(from_logits=True)"
    listed = ul.diff(text, ul.from_native(text))
    for rule in ("weight_alignment", "nan_in_weightless", "weight_shape"):
        example = listed[rule].example
        assert example is not None
        assert example.a.ran == "native"
    aligned = listed["weight_alignment"].example
    assert aligned is not None
    values = [float(side.value) for side in (aligned.a, aligned.b)]  # type: ignore[arg-type]
    assert [round(value, 5) for value in values] == [2.27404, 2.46724]


@ALL
def test_class_without_weight_at_minus_infinity() -> None:
    """PyTorch multiplies an infinite loss by its class weight of 0; a spec does not read it."""
    text = "torch.nn.CrossEntropyLoss(weight=[2.0, 0.0, 1.0])"
    example = ul.diff(text, ul.from_native(text))["weightless_infinity"].example
    assert example is not None
    assert example.a.ran == "native"
    assert np.isnan(example.a.value)  # type: ignore[arg-type]
    assert round(float(example.b.value), 6) == 0.407606  # type: ignore[arg-type]


@pytest.mark.parametrize("refusal", of_arguments, ids=lambda refusal: refusal.name)
def test_refused_arguments_are_refused(refusal: Any) -> None:
    """Arguments that no spec can express are refused when read, and the closest call is read."""
    keras_mse = "keras.losses.MeanSquaredError"
    texts = {
        "mean_with_sample_weight": f'{keras_mse}(reduction="mean_with_sample_weight")',
        "half_dtype": f'{keras_mse}(dtype="float16")',
        "smoothing_axis": "keras.losses.CategoricalCrossentropy(axis=1, label_smoothing=0.1)",
        "averaged_axis": "keras.losses.BinaryCrossentropy(axis=1)",
        "clipped_sigmoid": "keras[numpy].losses.BinaryCrossentropy(from_logits=True)",
        "smoothing_range": "torch.nn.CrossEntropyLoss(label_smoothing=1.5)",
    }
    side = side_of(texts[refusal.name])
    assert side.spec is None
    assert side.call is not None
    with pytest.raises((ul.UnsupportedError, ul.SpecValueError)):
        ul.from_native(texts[refusal.name])
    assert refusal.applies(side.call)
    assert not refusal.applies(refusal.closest(side.call))
    ul.from_native(refusal.closest(side.call))
