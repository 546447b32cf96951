"""A spec, written as a loss of another library and read back, is the spec it was: on losses that hypothesis makes up."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unifiedloss as ul
from unifiedloss import switching
from unifiedloss.spec import AnyLoss, Categorical
from unifiedloss.switching import LIBRARIES, LIBRARY_LOSSES, Call, LibraryLoss, spec_of

# Shortest decimals of float32 numbers, which a float32 tensor gives back.
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
"""What arguments are drawn from, by name; those of other names are left out. Weights are a matter of the loss."""

REDUCTIONS = {
    "torch": ("mean", "sum", "none"),
    "onnx": ("mean", "sum", "none"),
    "keras": ("sum_over_batch_size", "sum", "none", None),
    "tensorflow": ("weighted_sum_by_nonzero_weights", "weighted_sum_over_batch_size", "weighted_mean", "weighted_sum", "none"),
}  # fmt: skip

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
"""What is changed in a spec that was read, so that some can be written and some cannot."""

UNUSED = ("divisor", "on_empty")
"""The fields that have no say where nothing is averaged."""


@st.composite
def specs(draw: st.DrawFn, library: str) -> AnyLoss | None:
    """A spec near those that a library can say: one of its losses, read, with a field or two changed; None where that is none."""
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
    """A call of a loss, with some of its arguments."""
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
    given_here = draw(st.fixed_dictionaries({}, optional=drawable))
    return Call(
        native.name,
        native.bind([], given_here),
        "tensorflow" if native.library == "keras" else None,
    )


def check(library: str, spec: AnyLoss, seen: Counter[str]) -> None:
    """Write a spec, where the library can say it, and read it back; writing what was read changes nothing."""
    backend = "tensorflow" if library == "keras" else None
    try:
        call = switching.call_of(spec, library, backend)
    except ul.UnsupportedError:
        seen["refused"] += 1
        return
    seen["written"] += 1
    back = spec_of(call)
    if spec.reduction == "mean":
        assert back == spec
    else:  # up to what has no say, and to nothing else
        assert back.replace(**{name: getattr(spec, name) for name in UNUSED}) == spec
    assert ul.from_native(str(call)) == back
    assert switching.call_of(back, library, backend) == call
    if (
        library == "torch"
    ):  # the other libraries' objects hold Python numbers; tests of each library read them
        assert ul.from_native(switching.build(call)) == back


@pytest.mark.parametrize(
    "library",
    [
        pytest.param(name, marks=pytest.mark.framework("torch")) if name == "torch" else name
        for name in LIBRARIES
    ],
)
def test_round_trip(library: str) -> None:
    """spec -> call -> spec and spec -> text -> spec are the identity, or the library cannot say the spec; neither is rare."""
    seen: Counter[str] = Counter()

    @given(spec=specs(library))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def checked(spec: AnyLoss | None) -> None:
        if spec is not None:
            check(library, spec, seen)

    checked()
    assert seen["written"] >= 40
    assert seen["refused"] >= 5
