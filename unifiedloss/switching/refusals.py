"""The rules that arguments of other libraries' losses ask for and no spec can say; losses that have these are not imported.

Where a nearest spec exists they can be compared all the same: by that, and by the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from unifiedloss.floats import HALF_TYPES
from unifiedloss.switching.inputs import Layout
from unifiedloss.switching.library_loss import Call
from unifiedloss.switching.sides import Input


@dataclass(frozen=True, eq=False)
class Refusal:
    """A rule that arguments ask for and no spec can say; losses that have them are not imported.

    Attributes:
        name: what it is called in a difference.
        spec: what a spec does.
        native: what the libraries do that have it, by the beginning of their names.
        applies: whether the loss of a call has it.
        closest: the call that says the rest.
        fields: the fields of a spec that it stands for.
        inputs: what shows it.
    """

    name: str
    spec: str
    libraries: Mapping[str, str]
    applies: Callable[[Call], bool]
    closest: Callable[[Call], Call]
    fields: tuple[str, ...]
    inputs: Callable[[Layout], Iterator[Input]]

    def sentence(self, call: Call | None) -> str:
        """What a side does: the loss of a call, or a spec."""
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


def _beyond(low: float, x: object, high: float) -> bool:
    return isinstance(x, int | float) and not low <= x <= high


def _weighted_steps(layout: Layout) -> Iterator[Input]:
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
    yield (
        layout.elements([0.3], [1.0]) if layout.elementwise else layout.rows([(0.3, 0.6, 0.1)], [0])
    )


def _turned(_: Layout) -> Iterator[Input]:
    logits = np.array([[[2.0, 1.0], [1.0, 3.0], [0.0, 0.5]]], np.float32)
    target = np.array([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]], np.float32)
    yield Input(logits, target)
    yield Input((logits + 1) / 10, target)


def _averaged_otherwise(_: Layout) -> Iterator[Input]:
    values = np.array([[[0.1, 0.2], [0.3, 0.4]]], np.float32)
    yield Input(values, np.ones_like(values))


def _hundred(layout: Layout) -> Iterator[Input]:
    yield layout.elements([100.0], [0.0])


of_arguments: tuple[Refusal, ...] = (
    Refusal(
        "mean_with_sample_weight",
        'Weights are broadcast first and summed after, under divisor="weights".',
        {"keras": "The weighted mean divides by the sum of the weights as they were passed, before they are broadcast."},
        lambda call: call.arguments.get("reduction") == "mean_with_sample_weight",
        _without("reduction"), ("reduction", "divisor", "on_empty"),
        _weighted_steps,
    ),
    Refusal(
        "half_dtype",
        "Labels never become floating; sums and counts are never held in a half type.",
        {"keras": "Labels, predictions, sums and counts are held in the half type that the loss was given as its dtype."},
        lambda call: call.library == "keras" and call.arguments.get("dtype") in HALF_TYPES,
        _without("dtype"), ("dtype",),
        _many,
    ),
    Refusal(
        "smoothing_axis",
        "Smoothing spreads over the classes, wherever they lie.",
        {"keras": "Smoothing divides by the length of the last axis, whichever holds the classes (keras#23437)."},
        lambda call: bool(call.library == "keras" and call.arguments.get("label_smoothing") and "Binary" not in call.name
                          and "binary" not in call.name and call.arguments.get("axis", -1) != -1),
        _without("label_smoothing"), ("label_smoothing",),
        _turned,
    ),
    Refusal(
        "averaged_axis",
        "average_last_axis averages the last axis.",
        {"keras": "The losses along the axis that was named are averaged."},
        lambda call: bool("inary" in call.name and call.library == "keras" and call.arguments.get("axis", -1) != -1),
        _without("axis"), (),
        _averaged_otherwise,
    ),
    Refusal(
        "clipped_sigmoid",
        "A loss from logits is computed from the logits, and clips nothing.",
        {"keras": "Where Keras runs on NumPy, the sigmoid of the logits is clipped as probabilities are."},
        lambda call: bool("inary" in call.name and call.backend == "numpy" and call.arguments.get("from_logits")),
        _on_tensorflow, (),
        _hundred,
    ),
    Refusal(
        "smoothing_range",
        "The amount of smoothing lies in [0, 1]; anything else is an error when the spec is made.",
        {
            "torch": "The amount of smoothing is checked when the loss is called.",
            "keras": "The amount of smoothing is not checked.",
            "tf.": "The amount of smoothing is not checked.",
        },
        lambda call: _beyond(0.0, call.arguments.get("label_smoothing", 0.0), 1.0),
        _without("label_smoothing"), ("label_smoothing",),
        _smoothed,
    ),
)  # fmt: skip
"""What arguments ask for that no spec can say, where a nearest spec can be compared all the same."""


def refusal_of(call: Call) -> Refusal | None:
    """The rule of a call's arguments that no spec can say, if it is one of those above."""
    return next((refusal for refusal in of_arguments if refusal.applies(call)), None)
