"""Lenses read an argument as fields of a spec, and write the closest argument for a spec."""

from __future__ import annotations

import pytest

import unifiedloss as ul
from unifiedloss.errors import UnsupportedError
from unifiedloss.interop.lens import Given, Refusal, choice, one_label, pair, unused
from unifiedloss.interop.library_loss import LIBRARY_LOSSES, LibraryLoss

GIVEN = Given("library.Loss", {"label_smoothing": 0.5, "other": 3}, "jax")


def test_a_pair_reads_and_writes_one_field() -> None:
    """The field has the value as it is; writing may convert it back."""
    lens = pair("label_smoothing", 0.0, written=lambda smoothing: smoothing or None)
    assert lens.fields(0.1, GIVEN) == {"label_smoothing": 0.1}
    assert lens.write(ul.CrossEntropyLoss(label_smoothing=0.1), None) == 0.1
    assert lens.write(ul.CrossEntropyLoss(), None) is None


def test_a_refusal_names_the_value_the_loss_and_its_arguments() -> None:
    """The first refusal that applies is raised; without one, an unused argument sets no field."""
    lens = unused(
        1,
        Refusal(
            lambda value, given: value == 2 and given.backend == "jax",
            "{given.name}(argument={value!r}, other={given.arguments[other]})",
        ),
        Refusal(lambda value, _: value != 1, "no {value}"),
    )
    assert lens.fields(1, GIVEN) == {}
    assert lens.write(ul.MeanSquaredError(), None) == 1
    with pytest.raises(UnsupportedError, match=r"^library.Loss\(argument=2, other=3\)$"):
        lens.fields(2, GIVEN)
    with pytest.raises(UnsupportedError, match=r"^no 3$"):
        lens.fields(3, GIVEN)


def test_one_label() -> None:
    """A spec without ignored labels is written as the default, one with several is refused."""
    always = one_label("ignore_index", -100, "one label, not {}")
    maybe = one_label("ignore_index", None, "one label, not {}")
    spec = ul.CrossEntropyLoss(ignore_index=3)
    assert always.fields(3, GIVEN) == maybe.fields(3, GIVEN) == {"ignore_index": 3}
    assert always.write(spec, None) == maybe.write(spec, None) == 3
    assert always.write(ul.CrossEntropyLoss(), None) == -100
    assert maybe.fields(None, GIVEN) == {"ignore_index": None}
    with pytest.raises(ul.SpecTypeError, match="ignore_index must be an int"):
        always.fields(None, GIVEN)
    with pytest.raises(UnsupportedError, match=r"one label, not \[1, 2\]"):
        maybe.write(ul.CrossEntropyLoss(ignore_index=[1, 2]), None)


def test_a_choice_is_written_as_the_value_that_agrees_first() -> None:
    """The first field of the options decides before the second; of equal values, the first."""
    lens = choice(
        {
            "by_weights": {"reduction": "mean", "divisor": "weights"},
            "by_all": {"reduction": "mean", "divisor": "all"},
            "sum": {"reduction": "sum"},
            "total": {"reduction": "sum"},
        }
    )
    assert lens.default == "by_weights"
    assert lens.fields("by_all", GIVEN) == {"reduction": "mean", "divisor": "all"}
    assert lens.write(ul.MeanSquaredError(divisor="all"), None) == "by_all"
    assert lens.write(ul.MeanSquaredError(divisor="present"), None) == "by_weights"
    assert lens.write(ul.MeanSquaredError(divisor="all", reduction="sum"), None) == "sum"


@pytest.mark.parametrize(
    "loss",
    # This loss has no default for its pos_weight.
    [
        loss
        for name, loss in LIBRARY_LOSSES.items()
        if name != "tf.nn.weighted_cross_entropy_with_logits"
    ],
    ids=lambda loss: loss.name,
)
def test_defaults_are_written_as_defaults(loss: LibraryLoss) -> None:
    """The spec of a loss without arguments is written without arguments."""
    backend = "tensorflow" if loss.library == "keras" else None
    assert loss.call(loss.spec({}, backend), backend).arguments == {}
