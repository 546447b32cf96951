"""The arguments of other libraries' losses that no field of a spec can express.

A loss with such an argument is not imported. `diff` and `port_report` still compare it: they use
the closest call that a spec can express, and add the rule of the argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from unifiedloss.floats import HALF_TYPES
from unifiedloss.interop.inputs import Layout
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.sides import Input


@dataclass(frozen=True, eq=False)
class Refusal:
    """A rule that an argument asks for and no field of a spec can express.

    Attributes:
        name: the name of the rule in a difference.
        spec: what a spec does, in a sentence.
        libraries: what the libraries with the rule do, by the beginning of their losses' names.
        applies: whether a call asks for the rule.
        closest: makes the call without the rule.
        fields: the fields of a spec that the rule takes the place of.
        inputs: makes the inputs on which the two results differ.
    """

    name: str
    spec: str
    libraries: Mapping[str, str]
    applies: Callable[[Call], bool]
    closest: Callable[[Call], Call]
    fields: tuple[str, ...]
    inputs: Callable[[Layout], Iterator[Input]]

    def sentence(self, call: Call | None) -> str:
        """What the loss of a call does, or a spec if `call` is None or has another rule."""
        if call is None or not self.applies(call):
            return self.spec
        return next(text for prefix, text in self.libraries.items() if call.name.startswith(prefix))


def _without(name: str) -> Callable[[Call], Call]:
    def without(call: Call) -> Call:
        return Call(
            call.name,
            {key: value for key, value in call.arguments.items() if key != name},
            call.backend,
        )

    return without


def _on_tensorflow(call: Call) -> Call:
    return Call(call.name, call.arguments, "tensorflow")


def _outside(low: float, x: object, high: float) -> bool:
    return isinstance(x, int | float) and not low <= x <= high


def _weighted_steps(layout: Layout) -> Iterator[Input]:
    """Two examples of three steps, and a sample weight for each example."""
    note = "Keras is given the weights as [[1], [3]]"
    weight = np.array([1.0, 3.0], np.float32)
    values = np.array([[[1.0]] * 3, [[2.0]] * 3], np.float32)
    if layout.elementwise:
        yield Input(values, np.zeros_like(values), weight, "run_aligned", note=note)
        yield Input(values / 4, np.zeros_like(values), weight, "run_aligned", note=note)
        return
    logits = np.array([[[2.0, 1.0, 0.0]] * 3, [[0.0, 1.0, 2.0]] * 3], np.float32)
    yield Input(logits, np.zeros((2, 3), np.int64), weight, "run_aligned", note=note)
    yield Input((logits + 1) / 6, np.zeros((2, 3), np.int64), weight, "run_aligned", note=note)


def _many(layout: Layout) -> Iterator[Input]:
    """More elements, or larger labels, than a half type counts exactly."""
    if layout.elementwise:
        for error in (0.5, 1.0):
            yield Input(np.full((70000, 1), error, np.float32), np.zeros((70000, 1), np.float32))
        yield layout.elements([0.3], [1.0])
        return
    for classes, label in ((300, 257), (2100, 2049)):
        row = np.zeros((1, classes), np.float32)
        row[0, label] = 10.0
        yield Input(row, np.array([label], np.int64))
        yield Input(np.exp(row) / np.exp(row).sum(), np.array([label], np.int64))
    yield layout.rows([(0.3, 0.6, 0.1)], [0])


def _smoothed(layout: Layout) -> Iterator[Input]:
    if layout.elementwise:
        yield layout.elements([0.3], [1.0])
    else:
        yield layout.rows([(0.3, 0.6, 0.1)], [0])


def _classes_in_the_middle(_: Layout) -> Iterator[Input]:
    logits = np.array([[[2.0, 1.0], [1.0, 3.0], [0.0, 0.5]]], np.float32)
    target = np.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]], np.float32)
    yield Input(logits, target)
    yield Input((logits + 1) / 10, target)


def _two_axes(_: Layout) -> Iterator[Input]:
    values = np.array([[[0.1, 0.2], [0.3, 0.4]]], np.float32)
    yield Input(values, np.ones_like(values))


def _logit_of_100(layout: Layout) -> Iterator[Input]:
    yield layout.elements([100.0], [0.0])


of_arguments: tuple[Refusal, ...] = (
    Refusal(
        "mean_with_sample_weight",
        'Weights are broadcast first and summed after, under divisor="weights".',
        {
            "keras": "The weighted mean divides by the sum of the weights as they were passed, "
            "before "
            "they are broadcast."
        },
        applies=lambda call: call.arguments.get("reduction") == "mean_with_sample_weight",
        closest=_without("reduction"),
        fields=("reduction", "divisor", "on_empty"),
        inputs=_weighted_steps,
    ),
    Refusal(
        "half_dtype",
        "Labels never become floating; sums and counts are never held in a half type.",
        {
            "keras": "Labels, predictions, sums and counts are held in the half type that the loss "
            "was given as its dtype."
        },
        applies=lambda call: call.library == "keras" and call.arguments.get("dtype") in HALF_TYPES,
        closest=_without("dtype"),
        fields=("dtype",),
        inputs=_many,
    ),
    Refusal(
        "smoothing_axis",
        "Smoothing spreads over the classes, wherever they lie.",
        {
            "keras": "Smoothing divides by the length of the last axis, whichever holds the "
            "classes "
            "(keras#23437)."
        },
        applies=lambda call: bool(
            call.library == "keras"
            and call.arguments.get("label_smoothing")
            and "Binary" not in call.name
            and "binary" not in call.name
            and call.arguments.get("axis", -1) != -1
        ),
        closest=_without("label_smoothing"),
        fields=("label_smoothing",),
        inputs=_classes_in_the_middle,
    ),
    Refusal(
        "averaged_axis",
        "average_last_axis averages the last axis.",
        {"keras": "The losses along the axis that was named are averaged."},
        applies=lambda call: bool(
            "inary" in call.name
            and call.library == "keras"
            and call.arguments.get("axis", -1) != -1
        ),
        closest=_without("axis"),
        fields=(),
        inputs=_two_axes,
    ),
    Refusal(
        "clipped_sigmoid",
        "A loss from logits is computed from the logits, and clips nothing.",
        {
            "keras": "Where Keras runs on NumPy, the sigmoid of the logits is clipped as "
            "probabilities are."
        },
        applies=lambda call: bool(
            "inary" in call.name and call.backend == "numpy" and call.arguments.get("from_logits")
        ),
        closest=_on_tensorflow,
        fields=(),
        inputs=_logit_of_100,
    ),
    Refusal(
        "smoothing_range",
        "The amount of smoothing lies in [0, 1]; anything else is an error when the spec is made.",
        {
            "torch": "The amount of smoothing is checked when the loss is called.",
            "keras": "The amount of smoothing is not checked.",
            "tf.": "The amount of smoothing is not checked.",
        },
        applies=lambda call: _outside(0.0, call.arguments.get("label_smoothing", 0.0), 1.0),
        closest=_without("label_smoothing"),
        fields=("label_smoothing",),
        inputs=_smoothed,
    ),
)
"""All refusals."""


def refusal_of(call: Call) -> Refusal | None:
    """The refusal that applies to a call, or None."""
    return next((refusal for refusal in of_arguments if refusal.applies(call)), None)
