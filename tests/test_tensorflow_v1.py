"""TensorFlow as in version 1: in graphs with sessions, and with tensor equality switched off.

There Python's ``==`` and ``!=`` on tensors compare identities, so a comparison of values must be an
operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss.conformance import checks
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.cases import all_cases
from unifiedloss.losses import ROWS

tf = pytest.importorskip("tensorflow")

# Import after the check that TensorFlow is installed.
from unifiedloss import registry  # noqa: E402
from unifiedloss.adapters.tensorflow.graph import TensorFlowOps  # noqa: E402
from unifiedloss.exact.graph.rounding import from_bits, to_bits  # noqa: E402

pytestmark = pytest.mark.framework("tensorflow")

ADAPTER = registry.adapter("tensorflow")


@pytest.fixture
def no_equality() -> Iterator[None]:
    """Switch tensor equality off for a test."""
    tf.compat.v1.disable_tensor_equality()
    yield
    tf.compat.v1.enable_tensor_equality()


def _failures(case: Case, results: Any) -> list[str]:
    """What is wrong with (value, gradients), given as eager tensors."""
    value, gradients = results
    named = dict(zip(case.differentiated(), gradients, strict=True))
    return checks.compare(ADAPTER, case, case.expected(), value, named).failures


@pytest.mark.parametrize(("rounding", "share"), [("native", 6), ("exact", 8)])
def test_cases_in_a_graph(rounding: str, share: int) -> None:
    """Compiled cases of every loss conform in one graph, run by a session."""
    chosen = []
    for row in ROWS:
        cases = [case for case in all_cases() if case.compiled and case.spec.name == row.name]
        # A session compiles nothing, so a program that makes the predictions is not another case.
        cases = [case for case in cases if case.made is None]
        cases = [case.rounded(rounding) for case in cases]
        chosen += cases[::share]
    with tf.Graph().as_default() as graph:
        results = []
        for case in chosen:
            step = checks.step_of(ADAPTER, case)
            results.append(
                ADAPTER.differentiate(step.function, tuple(step.inputs.values()), step.upstream)
            )
        with tf.compat.v1.Session(graph=graph) as session:
            arrays = session.run(results)
    for case, (value, gradients) in zip(chosen, arrays, strict=True):
        got = tf.constant(value), [tf.constant(x) for x in gradients]
        assert not _failures(case, got), case.name


def test_labels_in_a_graph() -> None:
    """A good label costs its loss, and a bad one is NaN: once, both were NaN."""
    spec = ul.CrossEntropyLoss(from_logits=True)
    logits = np.float32([[2, 1, 0], [0, 1, 2]])
    with tf.Graph().as_default() as graph:
        losses = [spec(tf.constant(logits), tf.constant(labels)) for labels in ([0, 1], [0, 3])]
        with tf.compat.v1.Session(graph=graph) as session:
            good, bad = session.run(losses)
    assert good == pytest.approx(0.907606, abs=1e-6)
    assert np.isnan(bad)


@pytest.mark.usefixtures("no_equality")
@pytest.mark.parametrize("mode", ["eager", "function"])
def test_without_tensor_equality(mode: str) -> None:
    """Every loss conforms, with shapes that are unknown when it is traced too."""
    cases = [case for case in all_cases() if case.representative]
    for case in cases:
        outcome = checks.check_case(ADAPTER, ADAPTER.modes()[mode], case, case.expected())
        assert not outcome.failures, case.name
    weighted = ul.MeanSquaredError(element_weights=(1, 3))
    unknown = tf.TensorSpec([None, None], tf.float32)
    traced = tf.function(weighted.to("tensorflow"), input_signature=[unknown] * 2)
    assert float(traced(tf.constant([[1.0, 2.0]]), tf.zeros((1, 2)))) == 3.25


@pytest.mark.usefixtures("no_equality")
def test_bits_without_tensor_equality() -> None:
    """The building blocks of exact mode under XLA compare values."""
    xp = TensorFlowOps()
    numbers = np.array([0.0, -0.0, 1.5, -(2.0**-149), np.inf, -3e38, 2.0**-126])
    for dtype in ("float32", "float16"):
        with np.errstate(over="ignore"):
            wanted = numbers.astype(dtype).astype(np.float64)
        bits = to_bits(xp, tf.constant(numbers), dtype)
        np.testing.assert_array_equal(from_bits(xp, bits, dtype), wanted)
