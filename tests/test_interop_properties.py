"""Hypothesis draws specs; each is written as a loss of a library and read back as the same spec."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unifiedloss as ul
from unifiedloss import interop
from unifiedloss.interop import LIBRARIES, LIBRARY_LOSSES, Call, LibraryLoss, spec_of
from unifiedloss.spec import Categorical, Loss

# The shortest decimals of float32 numbers, because a float32 tensor gives these back.
NUMBERS = st.floats(0.0, 8.0, width=32).map(lambda x: float(str(np.float32(x))))
POSITIVE = st.floats(0.125, 8.0, width=32).map(lambda x: float(str(np.float32(x))))
SEVERAL = st.lists(NUMBERS, min_size=2, max_size=3).map(tuple)
LABELS = st.integers(-101, 4)

ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "axis": st.sampled_from([-1, 1]),
    "dtype": st.sampled_from([None, "float32", "float64"]),
    "epsilon": st.sampled_from([1e-7, 1e-3, 0.0]),
    "from_logits": st.booleans(),
    "ignore_class": st.none() | LABELS,
    "ignore_index": LABELS,
    "label_smoothing": st.sampled_from([0.0, 0.1, 1 / 3, 1.0]),
    "normalize": st.booleans(),
    "pos_weight": POSITIVE | SEVERAL | SEVERAL.map(lambda row: tuple((number,) for number in row)),
}
"""Values to draw for arguments, by name. Those of weights depend on the loss; see `calls`."""

REDUCTIONS = {
    "torch": ("mean", "sum", "none"),
    "onnx": ("mean", "sum", "none"),
    "keras": ("sum_over_batch_size", "sum", "none", None),
    "tensorflow": (
        "weighted_sum_by_nonzero_weights",
        "weighted_sum_over_batch_size",
        "weighted_mean",
        "weighted_sum",
        "none",
    ),
}

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "reduction": st.sampled_from(["mean", "sum", "none"]),
    "divisor": st.sampled_from(["weights", "all", "present", "nonzero", "label_weights"]),
    "on_empty": st.sampled_from(["nan", "zero"]),
    "scale": st.sampled_from([1.0, 0.5]),
    "dtype": st.sampled_from([None, "float32"]),
    "rounding": st.sampled_from(["native", "exact"]),
    "label_smoothing": st.sampled_from([0.0, 0.2]),
    "ignore_index": st.sampled_from([None, -100, (1, 2)]),
    "axis": st.sampled_from([None, 1, -1]),
}
"""Values of fields to change in a spec that was read, so that some specs cannot be written."""

UNUSED = ("divisor", "on_empty")
"""The fields without effect where the reduction is no mean."""


@st.composite
def specs(draw: st.DrawFn, library: str) -> Loss | None:
    """Draw the spec of a loss of a library with up to two fields changed; None if it is invalid."""
    native = draw(
        st.sampled_from([native for native in LIBRARY_LOSSES.values() if native.library == library])
    )
    try:
        spec = spec_of(draw(calls(native)))
        for field in draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2, unique=True)):
            if field in type(spec).__dataclass_fields__:
                spec = spec.replace(**{field: draw(FIELDS[field])})
    except (ul.UnsupportedError, ul.SpecValueError):
        return None
    return spec


@st.composite
def calls(draw: st.DrawFn, native: LibraryLoss) -> Call:
    """Draw a call of a loss, with some of its arguments."""
    known = dict(ARGUMENTS)
    if native.library in REDUCTIONS:
        known["reduction"] = st.sampled_from(REDUCTIONS[native.library])
    if native.library == "tensorflow":
        known["weights"] = POSITIVE
    else:
        weights = (
            SEVERAL
            if issubclass(native.loss, Categorical)
            else NUMBERS | SEVERAL | SEVERAL.map(lambda row: (row, row))
        )
        known["weight"] = known["weights"] = weights
    drawable = {name: known[name] for name in native.parameters if name in known}
    arguments = draw(st.fixed_dictionaries({}, optional=drawable))
    backend = "tensorflow" if native.library == "keras" else None
    return Call(native.name, native.bind([], arguments), backend)


def check(library: str, spec: Loss, seen: Counter[str]) -> None:
    """Write a spec if the library can express it, read it back, and compare the two."""
    backend = "tensorflow" if library == "keras" else None
    try:
        call = interop.call_of(spec, library, backend)
    except ul.UnsupportedError:
        seen["refused"] += 1
        return
    seen["written"] += 1
    back = spec_of(call)
    if spec.reduction == "mean":
        assert back == spec.replace(**interop.closest(spec, library, backend).covered)
    else:  # equal up to the fields without effect
        assert back.replace(**{name: getattr(spec, name) for name in UNUSED}) == spec
    assert ul.from_native(str(call)) == back
    assert interop.call_of(back, library, backend) == call
    # Objects of the other libraries hold Python numbers; the tests of each library read them.
    if library == "torch":
        assert ul.from_native(interop.build(call)) == back


@pytest.mark.parametrize(
    "library",
    [
        pytest.param(name, marks=pytest.mark.framework("torch")) if name == "torch" else name
        for name in LIBRARIES
    ],
)
def test_round_trip(library: str) -> None:
    """A spec is read back from its call and its text, or refused; neither is rare."""
    seen: Counter[str] = Counter()

    @given(spec=specs(library))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def checked(spec: Loss | None) -> None:
        if spec is not None:
            check(library, spec, seen)

    checked()
    assert seen["written"] >= 40
    assert seen["refused"] >= 5
