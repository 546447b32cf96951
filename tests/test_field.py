"""Fields: what a declaration generates, and which code computes a loss with a new field."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import registry
from unifiedloss.checks import non_negative, one_of
from unifiedloss.exact import by_oracle as _by_oracle
from unifiedloss.field import Record, field
from unifiedloss.text import Text


class Base(Record):
    """A base.

    {fields}
    """

    size: float = field(default=1.0, check=non_negative, sentence="how large")
    old: float = field(default=0.0, check=non_negative, sentence="what was", group="ported")


class Child(Base):
    """A child.

    {fields}

    Raises:
        SpecValueError: a field is out of range.
    """

    mode: str = field(
        default="a",
        check=one_of("a", "b"),
        sentence={"a": "first", "b": "second"},
        late_values={"b": 2},
    )
    size: float = field(
        default=2.0,
        check=non_negative,
        doc="a size, in metres.",
        sentence=lambda child: Text.of(f"{child.size} metres"),
        since=3,
    )


def test_own_fields_come_first_and_ported_ones_last() -> None:
    """A subclass's new fields come first; a field that it declares again keeps its place."""
    assert list(Child.declarations) == ["mode", "size", "old"]
    assert list(Base.declarations) == ["size", "old"]


def test_docstring_and_signature_follow_from_the_declarations() -> None:
    """A field without its own description is described by its sentences."""
    assert inspect.getdoc(Child) == (
        'A child.\n\nArgs:\n    mode: "a": first. "b": second.\n    size: a size, in metres.\n'
        "    old: what was.\n\nRaises:\n    SpecValueError: a field is out of range."
    )
    assert str(inspect.signature(Child)) == "(*, mode='a', size=2.0, old=0.0)"
    # A spec has the signature of its call, not that of its class.
    assert list(inspect.signature(ul.MeanSquaredError()).parameters)[:2] == [
        "predictions",
        "targets",
    ]


def test_values_are_checked_compared_and_kept() -> None:
    """Records with equal fields are equal, and repr shows only fields that are not defaults."""
    child = Child(size=np.float32(3))
    assert child == Child(size=3) != Child()
    assert hash(child) == hash(Child(size=3))
    assert child != Base(size=3)
    assert child.changed() == {"size": 3.0}
    assert repr(child.replace(mode="b")) == "Child(mode='b', size=3.0)"
    with pytest.raises(ul.SpecValueError, match="size must not be negative, got -1"):
        Child(size=-1)
    with pytest.raises(ul.SpecTypeError, match="its fields are mode, size, old"):
        Child(sizes=1)
    with pytest.raises(AttributeError):
        child.size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "version"), [("mode", "a", 1), ("mode", "b", 2), ("size", 5.0, 3)]
)
def test_versions(name: str, value: Any, version: int) -> None:
    """A field, or one of its values, has the version that introduced it."""
    assert Child.declarations[name].version_of(value) == version


@pytest.mark.parametrize(
    ("name", "value", "meaning"),
    [("mode", "b", "second"), ("size", 2.0, "2.0 metres"), ("old", 0.0, "what was")],
)
def test_sentences(name: str, value: Any, meaning: str) -> None:
    """A sentence is one text, a text for each value, or a function of the record."""
    assert Child.declarations[name].meaning(Child(), value).plain == meaning


@pytest.mark.parametrize(
    "spec",
    [
        ul.MeanSquaredError(scale=3.0),
        ul.MeanSquaredError(scale=3.0, reduction="none", rounding="exact"),
        ul.MeanSquaredError(scale=3.0, dtype="float32"),
        ul.BinaryCrossEntropyLoss(from_logits=True, scale=3.0, reduction="sum"),
    ],
)
def test_a_new_field_goes_by_the_pipeline_and_the_oracle(
    spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no fast path supports a field, the pipeline and the oracle give the same numbers."""
    random = np.random.default_rng(5)
    predictions = random.normal(size=(4, 3))
    targets = random.uniform(size=(4, 3)).astype(np.float32)
    weight = np.array([1.0, 0.0, 2.0, 1.5])
    expected = spec.value_and_grad(predictions, targets, sample_weight=weight)
    monkeypatch.setattr(registry.adapter("numpy"), "_plans", {})
    monkeypatch.setattr(type(spec), "fast_fields", spec.fast_fields - {"scale"})
    oracle_calls = []
    by_oracle = _by_oracle.evaluate

    def count(*arguments: Any, **named: Any) -> Any:
        oracle_calls.append(arguments)
        return by_oracle(*arguments, **named)

    monkeypatch.setattr(_by_oracle, "evaluate", count)
    value, gradient = spec.value_and_grad(predictions, targets, sample_weight=weight)
    assert oracle_calls
    assert gradient.dtype == predictions.dtype
    if spec.rounding == "exact":
        np.testing.assert_array_equal(value, expected[0])
        np.testing.assert_array_equal(gradient, expected[1])
    else:
        np.testing.assert_allclose(value, expected[0], rtol=1e-6)
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-6)
        np.testing.assert_array_equal(value, spec(predictions, targets, sample_weight=weight))
