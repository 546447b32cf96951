"""Totals and given divisors: what the group "combine" of the conformance suite does not compare.

The group itself runs in every backend with the suite (tests/test_conformance.py). Here are the
faults that it must find, the entrances that lead to the same code, and the vectors of exact mode.
"""

from __future__ import annotations

import copy
import functools
import operator
import pickle
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import compiled, registry
from unifiedloss.adapter import Adapter
from unifiedloss.conformance import combine
from unifiedloss.exact import limbs

NUMPY: Any = registry.adapter("numpy")
CE = ul.CrossEntropyLoss(from_logits=True)
EXACT = CE.replace(rounding="exact")
RNG = np.random.default_rng(13)
Z = RNG.normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 3, 1, 2, 2, 0])
WEIGHT = RNG.uniform(0.5, 2, 6).astype(np.float32)
PIECES = [slice(0, 2), slice(2, 2), slice(2, 5), slice(5, 6)]


# --------------------------------------------------------------------------- faults, and the group


class MeanOfMeans(type(NUMPY)):  # type: ignore[misc]
    """Each piece counts once, with its own mean."""

    def totals(self, spec: Any, *tensors: Any) -> Any:
        """The mean, and a divisor of 1."""
        total, *divisor = super().totals(spec, *tensors)
        return np.array([total / divisor[0], 1.0] if divisor else [total])


class Averaged(type(NUMPY)):  # type: ignore[misc]
    """The totals of the pieces are averaged, as AVG does in place of SUM."""

    def result(self, spec: Any, summed: Any) -> Any:
        """The loss of the average."""
        return super().result(spec, summed // 2 if summed.dtype == np.int64 else summed / 2)


class Float32Counts(type(NUMPY)):  # type: ignore[misc]
    """Counts in float32, where 2^24 + 1 is 2^24."""

    def wide(self, x: Any) -> str:  # noqa: ARG002
        """The dtype of the vectors."""
        return "float32"


class RoundedDivisor(type(NUMPY)):  # type: ignore[misc]
    """Rounds the divisor to float32 before it divides the exact gradient."""

    def exact_value_and_grad(self, plan: Any, *tensors: Any, divisor: Any = None) -> Any:
        """The gradient over the rounded divisor."""
        if divisor is not None:
            divisor = np.float32(float(limbs.divisor_in(divisor)))
        return super().exact_value_and_grad(plan, *tensors, np.asarray(divisor))


def failing(adapter: Any, rounding: str, *parts: str) -> list[str]:
    """The names of the cases that fail, of those whose names contain one of the parts."""
    mode = adapter.modes()["eager"]
    found = []
    for case in combine.cut_cases():
        rounded = replace(case, spec=case.spec.replace(rounding=rounding))
        if any(part in case.name for part in parts) and not case.dtypes() - {*adapter.dtypes()}:
            outcome = combine.check(adapter, mode, rounded, rounded.expected())
            assert outcome.comparisons or outcome.failures
            found += [case.name] * bool(outcome.failures)
    return found


@pytest.mark.parametrize(
    ("fault", "rounding", "case"),
    [
        (MeanOfMeans, "native", "class indices"),
        (Averaged, "exact", "class indices"),
        (Averaged, "native", "a sum"),
        (Float32Counts, "native", "2^24 positions, mean"),
        (RoundedDivisor, "exact", "weights of many digits"),
    ],
)
def test_the_group_finds_a_fault(fault: Any, rounding: str, case: str) -> None:
    """Without the fault the case passes."""
    assert failing(NUMPY, rounding, case) == []
    assert failing(fault(), rounding, case) == [f"combine/{case}"]


def test_an_adapter_without_divisor_is_refused() -> None:
    """The signature says so, before any call."""

    class Old(type(NUMPY)):  # type: ignore[misc]
        def loss(
            self, spec: Any, predictions: Any, targets: Any, w: Any = None, m: Any = None
        ) -> Any:
            return super().loss(spec, predictions, targets, w, m)

    assert NUMPY.contract_mismatch("numpy") is None
    mismatch = Old.contract_mismatch("numpy")
    assert mismatch is not None
    assert "takes no divisor" in mismatch


# ------------------------------------------------------------------------------------ the entrances


def test_functions_and_objects_take_the_divisor() -> None:
    """A str is the rule, anything else the divisor; None is the rule of the spec."""
    want = CE(Z, Y, divisor=12)
    assert want == pytest.approx(CE(Z, Y) / 2)
    assert ul.cross_entropy_loss(Z, Y, from_logits=True, divisor=12) == want
    assert ul.cross_entropy_loss(Z, Y, from_logits=True, divisor="all") == CE(Z, Y)
    assert ul.cross_entropy_loss(Z, Y, from_logits=True, divisor=None) == CE(Z, Y)
    assert CE.to("numpy")(Z, Y, divisor=12) == want
    for same in (12.0, np.float16(12), np.array(12, np.uint8), np.int64(12)):
        assert CE(Z, Y, divisor=same) == want
        assert EXACT(Z, Y, divisor=same) == EXACT(Z, Y, divisor=12)
    with pytest.raises(ul.SpecTypeError, match="the number itself is given to the call"):
        ul.CrossEntropyLoss(divisor=12)


@pytest.mark.parametrize("spec", [CE, EXACT])
def test_a_given_divisor_replaces_the_rule(spec: Any) -> None:
    """No divisor of the piece is computed: not that of padding, not one that weights of 0 give."""
    padding = spec.replace(ignore_index=-100, on_empty="error")
    value, gradient = padding.value_and_grad(Z[:2], np.full(2, -100), divisor=3)
    assert value == 0
    assert not gradient.any()
    silent = spec.replace(class_weights=(0, 1, 1, 1), label_smoothing=0.5)
    value, gradient = silent.value_and_grad(Z[:1], np.array([0]), divisor=1)
    assert value > 0.5
    assert gradient.any()
    negative = spec(Z, Y, sample_weight=-WEIGHT, divisor=2.0)
    assert negative == pytest.approx(-spec(Z, Y, sample_weight=WEIGHT, divisor=2.0))
    with pytest.raises(ul.BadValueError, match="non-negative"):
        spec.divisor_of(Y, sample_weight=-WEIGHT)


@pytest.mark.parametrize("spec", [CE, EXACT])
@pytest.mark.parametrize("on_empty", ["nan", "zero"])
def test_the_divisor_0(spec: Any, on_empty: str) -> None:
    """on_empty says the value, and the gradient is 0, also at a prediction that is NaN."""
    broken = Z.copy()
    broken[1] = np.nan
    value, gradient = spec.replace(on_empty=on_empty).value_and_grad(broken, Y, divisor=0)
    np.testing.assert_equal(float(value), np.nan if on_empty == "nan" else 0.0)
    assert not gradient.any()


def test_a_divisor_of_another_framework_dtype_leaves_the_dtype_of_the_loss() -> None:
    """The division is in float64, and the loss has the dtype that a mean has."""
    for dtype, wanted in (("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        z = Z.astype(dtype)
        for divisor in (6, np.float16(6), np.float64(6)):
            value, gradient = CE.value_and_grad(z, Y, divisor=divisor)
            assert value.dtype == wanted
            assert gradient.dtype == dtype


def test_perplexity_and_groups_from_one_pass() -> None:
    """Rows of totals give the mean of each group and of all, saved and read."""
    table = np.stack([EXACT.totals(Z[rows], Y[rows]) for rows in PIECES])
    again = pickle.loads(pickle.dumps(table))  # noqa: S301 - written a line above
    assert EXACT.result(again) == EXACT(Z, Y)
    assert EXACT.result(table[2]) == EXACT(Z[2:5], Y[2:5])
    assert np.isnan(EXACT.result(table[1]))


def test_a_spec_keeps_no_trace_of_totals() -> None:
    """The specs that totals are made from are no part of the spec's value."""
    spec = ul.CrossEntropyLoss(from_logits=True, on_empty="error")
    spec.totals(Z, Y)
    spec(Z, Y, divisor=2)
    for other in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):  # noqa: S301
        assert other == spec
        assert other.to_dict() == spec.to_dict()
        assert other.totals(Z[:0], Y[:0]).tolist() == [0, 0]
    with pytest.raises(ul.EmptyMeanError):
        spec.result(spec.totals(Z[:0], Y[:0]))


def test_scale_of_the_log_likelihood() -> None:
    """It is a part of totals, and of serialization version 3."""
    scaled = ul.NegativeLogLikelihoodLoss(scale=2.5)
    assert scaled.to_dict()["version"] == 3
    assert ul.from_dict(scaled.to_dict()) == scaled
    plain = scaled.replace(scale=1.0)
    assert plain.to_dict()["version"] == 2
    assert scaled(-abs(Z), Y) == pytest.approx(2.5 * plain(-abs(Z), Y))
    assert scaled.result(scaled.totals(-abs(Z), Y)) == pytest.approx(2.5 * plain(-abs(Z), Y))


@pytest.mark.framework("torch")
def test_weights_get_no_gradient_through_a_divisor_that_is_given() -> None:
    """It is a constant, even where it is a tensor that requires a gradient."""
    import torch

    z, w = torch.tensor(Z), torch.tensor(WEIGHT, requires_grad=True)
    assert CE.to("torch")(z, torch.tensor(Y), divisor=12) == CE(z, Y, divisor=torch.tensor(12))
    divisor = CE.divisor_of(torch.tensor(Y), sample_weight=w)
    CE(z, torch.tensor(Y), sample_weight=w, divisor=divisor).backward()
    assert w.grad is not None
    losses = CE.replace(reduction="none")(z, torch.tensor(Y))
    torch.testing.assert_close(w.grad, losses / divisor.detach().float())


@pytest.mark.framework("torch")
def test_native_totals_are_differentiable() -> None:
    """The gradient of the result of totals is that of the loss, to weights too."""
    import torch

    def gradients(loss: Callable[..., Any]) -> tuple[Any, ...]:
        z, w = (torch.tensor(x, requires_grad=True) for x in (Z, WEIGHT))
        return torch.autograd.grad(loss(z, w).float(), (z, w))

    y = torch.tensor(Y)

    def in_pieces(z: Any, w: Any) -> Any:
        each = [CE.totals(z[rows], y[rows], sample_weight=w[rows]) for rows in PIECES]
        return CE.result(functools.reduce(operator.add, each))

    whole = gradients(lambda z, w: CE(z, y, sample_weight=w))
    torch.testing.assert_close(gradients(in_pieces), whole)


# -------------------------------------------------------------------------------------- the vectors


@pytest.mark.parametrize(
    ("dtype", "level"),
    [("float64", compiled.NUMPY), *(("float32", level) for level in compiled.levels())],
)
def test_limbs_hold_the_exact_sum(dtype: str, level: str) -> None:
    """Of random bits, of sizes close together, and of what cancels; merged in pieces."""
    with compiled.forced(level):
        _check_sums(dtype)


def _check_sums(dtype: str) -> None:
    rng = np.random.default_rng(5)
    size = np.dtype(dtype).itemsize
    bits = rng.integers(0, 2 ** (8 * size - 1), 300, np.uint64).astype(f"u{size}").view(dtype)
    near = rng.exponential(3, 70_000).astype(dtype)
    large = np.full(9, np.finfo(dtype).max, dtype)
    opposite = np.concatenate([large, [np.finfo(dtype).smallest_subnormal], -large])
    subnormal = np.arange(100, dtype=f"u{size}").view(dtype)
    signs = rng.choice([-1, 1], 70_000).astype(dtype)
    lots = (bits[np.isfinite(bits)], near, near * signs, opposite, subnormal, near[:0], near[1:2])
    for terms in lots:
        want = sum(map(Fraction, terms.tolist()), Fraction(0))
        whole = limbs.vector("sum", dtype, limbs.sum_of(terms))
        merged = sum(limbs.vector("sum", dtype, limbs.sum_of(x)) for x in np.split(terms, [0, 7]))
        for entries in (whole, merged):
            (found,) = limbs.opened("sum", dtype, entries)
            assert limbs.number(found, dtype) == want
    specials = np.array([np.nan, np.inf, 1.0, -np.inf, np.nan, np.nan, np.inf], dtype)
    assert limbs.sum_of(specials) == limbs.sum_of(np.ones(1, dtype))._replace(specials=(3, 2, 1))


def test_spoiled_vectors_are_refused() -> None:
    """The check number finds an average, a division and a vector of another kind."""
    totals = EXACT.totals(Z, Y)
    divisor = EXACT.divisor_of(Y)
    for wrong in (totals // 2, totals * 0 + 1, np.concatenate([divisor, totals[70:]])):
        with pytest.raises(ul.BadValueError, match="check number"):
            EXACT.result(wrong)
    for wrong in (totals.astype(np.int32), totals / 2):
        with pytest.raises(ul.DTypeError, match="int64"):
            EXACT.result(wrong)
    wide = EXACT.replace(reduction="sum").totals(Z.astype(np.float64), Y)
    assert len(wide) == len(divisor)
    with pytest.raises(ul.BadValueError, match="check number"):
        EXACT(Z, Y, divisor=wide)
    with pytest.raises(ul.ShapeError, match="70 entries"):
        EXACT(Z, Y, divisor=totals)


def test_the_largest_sums_have_room() -> None:
    """As many pieces and terms as the page Exactness derives."""
    for dtype, terms in (("float32", 2**42), ("float64", 2**45)):
        largest = Fraction(float(np.finfo(dtype).max))
        unit = limbs.number(limbs.Sum(1), dtype)
        assert isinstance(unit, Fraction)
        vector = limbs.vector("sum", dtype, limbs.Sum(int(largest / unit) * terms))
        assert limbs.opened("sum", dtype, vector)[0].units == int(largest / unit) * terms
    vector = EXACT.totals(Z, Y)
    many = vector * np.int64(2**31 - 1)  # what adding it so often gives
    assert EXACT.result(many) == EXACT(Z, Y)


def test_a_divisor_that_limbs_cannot_hold_is_refused() -> None:
    """An average of element weights over three elements is no multiple of 2^-1074."""
    averaged = ul.MeanSquaredError(
        average_last_axis=True, element_weights=(0.1, 0.2, 0.4, 0.1, 0.1, 0.2), rounding="exact"
    )
    with pytest.raises(ul.UnsupportedError, match="multiple of 2"):
        averaged.totals(Z.reshape(4, 6), Z.reshape(4, 6))


def test_the_base_class_is_enough() -> None:
    """The methods of the base class serve an adapter that overrides none of them."""
    names = ("totals", "divisor_of", "native_totals", "on_host")
    assert all(name in vars(Adapter) for name in names)
