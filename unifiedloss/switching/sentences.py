"""What each field of a spec means at its value, in a sentence.

`sentence` says it of one field; `unifiedloss.explain` puts the sentences of all fields under the formula, `unifiedloss.diff` those of two
specs beside each other. Every sentence begins with the value, so that no two values of a field have the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from unifiedloss.spec import AnyLoss, BinaryCrossEntropyLoss, CrossEntropyLoss, MeanSquaredError
from unifiedloss.switching.phrases import Phrase, code, formula, number, number_latex, say, value


def sentence(spec: AnyLoss, field: str) -> Phrase:
    """What the field says at its value.

    Args:
        spec: the loss.
        field: the name of one of its fields.
    """
    return say(code(value(getattr(spec, field))), ": ", _SENTENCES[field](spec), ".")


def sentences(spec: AnyLoss) -> dict[str, Phrase]:
    """A sentence for every field, in the order of the fields."""
    return {field.name: sentence(spec, field.name) for field in fields(spec)}


def _from_logits(spec: Any) -> Phrase:
    squash = "softmax" if isinstance(spec, CrossEntropyLoss) else "sigmoid"
    if spec.from_logits:
        return say(f"predictions are logits, and the {squash} is part of the loss")
    if getattr(spec, "renormalize", None):
        return say("predictions are non-negative numbers, of which probabilities are made")
    return say(
        f"predictions are probabilities, taken as they are: no {squash}, no division by their sum"
    )


_PRESETS = {
    "keras": say(
        "probabilities are clipped to ", formula("[1e-07, 1 - 1e-07]", r"[10^{-7}, 1 - 10^{-7}]"),
        ", both bounds rounded to the predictions' dtype; the gradient is 0 where it clips",
    ),
    "sklearn": say(
        "probabilities are clipped to ", formula("[eps, 1 - eps]", r"[\varepsilon, 1 - \varepsilon]"),
        ", eps the distance from 1 to the next larger number of the predictions' dtype; the gradient is 0 where it clips",
    ),
    "torch": say(
        "no probability is clipped, but no logarithm is below -100, and the gradient is ",
        formula("(p - t') / max(p (1 - p), 1e-12)", r"(p - t') / \max(p (1 - p), 10^{-12})"),
        ", which is not the derivative of that",
    ),
}  # fmt: skip


def _epsilon(spec: Any) -> Phrase:
    given = spec.epsilon
    if isinstance(given, str):
        return _PRESETS[given]
    if not given:
        return say(
            "nothing is clipped"
            if spec.from_logits
            else "nothing is clipped, and -log 0 is infinite"
        )
    if getattr(spec, "epsilon_added", False):
        return say("added to probabilities inside the logarithms")
    bounds = formula(
        f"[{number(given)}, 1 - {number(given)}]",
        f"[{number_latex(given)}, 1 - {number_latex(given)}]",
    )
    return say(
        "probabilities are clipped to ",
        bounds,
        "; the gradient is 0 where it clips, and not at the bound",
    )


def _epsilon_added(spec: Any) -> Phrase:
    if not spec.epsilon_added:
        return say("epsilon bounds probabilities, it is not added to them")
    return say(
        "epsilon is added inside the logarithms instead of clipping to it; the gradient never vanishes"
    )


def _renormalize(spec: Any) -> Phrase:
    if spec.renormalize is None:
        return say("predictions are not divided by their sum over the classes")
    if spec.renormalize == "before_clip":
        return say("predictions are divided by their sum over the classes, then clipped")
    return say("predictions are clipped, then divided by their sum over the classes")


def _axis(spec: Any) -> Phrase:
    given = spec.axis
    if isinstance(spec, BinaryCrossEntropyLoss):
        where = "the last axis" if given is None else f"axis {given}"
        if isinstance(spec.pos_weight, tuple):
            return say(f"the positive weights run along {where}")
        return say(f"several positive weights would run along {where}")
    if given is None:
        return say(
            "classes lie on the last axis of predictions with one axis or two; with more it must be named"
        )
    return say(f"classes lie on axis {given} of the predictions")


def _class_weights(spec: Any) -> Phrase:
    if spec.class_weights is None:
        return say("every class weighs 1")
    if getattr(spec, "class_weighting", "entries") == "position":
        return say(
            "one weight per class; the loss of a position is multiplied by that of its target, ",
            formula("sum_c w_c t_ic", r"\sum_c w_c t_{ic}"),
        )
    target = "smoothed target" if getattr(spec, "label_smoothing", 0.0) else "target"
    return say(f"one weight per class, each multiplies the entry of its class in the {target}")


def _class_weighting(spec: Any) -> Phrase:
    without = "" if spec.class_weights is not None else "; there are none"
    if spec.class_weighting == "entries":
        return say(f"class weights multiply the entries of the smoothed target{without}")
    return say(f"class weights multiply the whole loss of a position{without}")


def _ignore_index(spec: Any) -> Phrase:
    if spec.ignore_index is None:
        return say("no label is ignored: every one must be a class")
    labels = ", ".join(map(str, spec.ignore_index))
    return say(
        f"positions with the label {labels} are dropped: their loss and gradient are 0, whatever they hold; "
        "the class, where it is one, stays in the softmax and in the smoothing of others; "
        "dense targets have no label to compare"
    )


def _pos_weight(spec: Any) -> Phrase:
    if spec.pos_weight is None:
        return say("the positive term is not weighted")
    return say("multiplies the positive term, and never counts in the divisor")


def _label_smoothing(spec: Any) -> Phrase:
    if not spec.label_smoothing:
        return say("targets are used as they are")
    shared = "K classes" if isinstance(spec, CrossEntropyLoss) else "2 answers"
    return say(f"this share of every target is spread evenly over the {shared}")


def _element_weights(spec: Any) -> Phrase:
    if spec.element_weights is None:
        return say("every element weighs 1")
    return say(
        "multiplies the losses of elements, aligned to the last axes of the predictions and repeated over the others"
    )


def _average_last_axis(spec: Any) -> Phrase:
    if spec.average_last_axis:
        return say(
            "the losses along the last axis are averaged to one per position, before any reduction"
        )
    return say("every element is a position of its own")


def _reduction(spec: Any) -> Phrase:
    if spec.reduction == "none":
        return say("the losses of all positions are returned, dropped ones as 0")
    if spec.reduction == "sum":
        return say("the losses of all positions are added")
    return say("the losses of all positions are added, and the sum divided by the divisor")


_DIVISORS = {
    "weights": "the mean divides by the sum of the weights of the positions not dropped",
    "label_weights": "the mean divides by the sum of the weights for class indices, and by the number of all positions for dense targets",
    "present": "the mean divides by the number of positions not dropped",
    "nonzero": "the mean divides by the number of positions not dropped whose weight is not 0",
    "all": "the mean divides by the number of all positions, dropped ones included",
}


def _divisor(spec: Any) -> Phrase:
    if spec.reduction != "mean":
        return say(f'without effect, as reduction is "{spec.reduction}"')
    return say(_DIVISORS[spec.divisor])


_EMPTY = {
    "nan": "a mean with the divisor 0 is NaN, and its gradient 0",
    "zero": "a mean with the divisor 0 is 0, and so is its gradient",
    "error": "a mean with the divisor 0 is an error (NaN under tracing)",
}


def _on_empty(spec: Any) -> Phrase:
    if spec.reduction != "mean":
        return say(f'without effect, as reduction is "{spec.reduction}"')
    return say(_EMPTY[spec.on_empty])


def _rounding(spec: Any) -> Phrase:
    if spec.rounding == "native":
        return say(
            "computed with the framework's own operations, within a derived bound of the exact result"
        )
    return say(
        "every loss and every element of the gradient is correctly rounded, the same bits in every backend"
    )


def _scale(spec: Any) -> Phrase:
    return say(
        "losses are not scaled" if spec.scale == 1.0 else "multiplies every loss, and no weight"
    )


def _dtype(spec: Any) -> Phrase:
    if spec.dtype is None:
        return say(
            "losses have the dtype of the predictions; sums and means of half types are float32"
        )
    return say(
        "predictions, floating targets and sample weights are cast to it, and it is the dtype of the loss"
    )


_SENTENCES: dict[str, Callable[[Any], Phrase]] = {
    "from_logits": _from_logits,
    "epsilon": _epsilon,
    "epsilon_added": _epsilon_added,
    "renormalize": _renormalize,
    "axis": _axis,
    "class_weights": _class_weights,
    "class_weighting": _class_weighting,
    "ignore_index": _ignore_index,
    "pos_weight": _pos_weight,
    "label_smoothing": _label_smoothing,
    "element_weights": _element_weights,
    "average_last_axis": _average_last_axis,
    "reduction": _reduction,
    "divisor": _divisor,
    "on_empty": _on_empty,
    "rounding": _rounding,
    "scale": _scale,
    "dtype": _dtype,
}


TITLES = {
    "cross_entropy": "Cross-entropy",
    "binary_cross_entropy": "Binary cross-entropy",
    "mean_squared_error": "Mean squared error",
    "negative_log_likelihood": "Negative log-likelihood",
}


def special_values(spec: AnyLoss) -> list[Phrase]:
    """What comes of infinities, NaN, zeros, bad labels and nothing at all."""
    found = [*_special_predictions(spec), *_special_targets(spec), *_special_positions(spec)]
    if not isinstance(spec, MeanSquaredError) and not isinstance(spec, BinaryCrossEntropyLoss):
        found.append(
            say(
                "Rows of dense targets need not sum to 1: with the sum T the gradient at the logits is ",
                formula("T p_c - tau_c", r"T p_c - \tau_c"), ".",
            )
            if getattr(spec, "from_logits", False)
            else say("Rows of dense targets need not sum to 1.")
        )  # fmt: skip
    return found


def _special_predictions(spec: AnyLoss) -> list[Phrase]:
    if isinstance(spec, MeanSquaredError):
        return [
            say(
                "Infinite and NaN predictions and targets: the loss is what the formula gives, infinite or NaN."
            )
        ]
    zero = say(formula("0 log 0 = 0", r"0 \log 0 = 0"), ", in value and gradient.")
    if isinstance(spec, CrossEntropyLoss | BinaryCrossEntropyLoss):
        return [zero, _special_logits(spec) if spec.from_logits else _special_probabilities(spec)]
    return [
        say(
            "A log-probability of -inf costs infinitely much where the target gives it weight, and nothing elsewhere."
        ),
        say("Entries whose target is 0 are not read."),
    ]


def _special_logits(spec: CrossEntropyLoss | BinaryCrossEntropyLoss) -> Phrase:
    if isinstance(spec, BinaryCrossEntropyLoss):
        return say(
            "An infinite logit: the loss is 0 where the label agrees and infinite where not, the gradient ",
            formula("p - t'"), "; a NaN logit gives NaN.",
        )  # fmt: skip
    return say(
        "A logit of -inf is the probability 0, with a finite gradient; a row with +inf, with NaN, or with -inf alone is NaN."
    )


def _special_probabilities(spec: CrossEntropyLoss | BinaryCrossEntropyLoss) -> Phrase:
    refused = (
        " A probability below 0, or above 1 by more than rounding, is an error (NaN under tracing)."
    )
    if isinstance(spec, CrossEntropyLoss) and spec.renormalize is not None:
        refused = " A negative prediction is an error (NaN under tracing)."
    return say(f"{_logarithm_of_zero(spec)}{refused}")


def _logarithm_of_zero(spec: CrossEntropyLoss | BinaryCrossEntropyLoss) -> str:
    at_zero = "The logarithm of a probability of 0 counts as"
    if spec.epsilon == "torch":
        return f"{at_zero} -100."
    if not spec.epsilon:
        return f"{at_zero} -inf: infinite loss where the target gives it weight."
    if isinstance(spec, BinaryCrossEntropyLoss) and spec.epsilon_added:
        return f"{at_zero} {math.log(float(spec.epsilon)):.6g}."
    if isinstance(spec, CrossEntropyLoss) and spec.renormalize == "after_clip":
        return "A prediction of 0 counts as the bound it is clipped to, with the gradient 0."
    if spec.epsilon == "keras":
        one = (
            ""
            if isinstance(spec, CrossEntropyLoss)
            else ", that of 1 - p at the probability 1 as -15.942 in float32"
        )
        return f"{at_zero} -16.118{one}, with the gradient 0."
    if spec.epsilon == "sklearn":
        return f"{at_zero} -15.942 in float32 and -36.044 in float64, with the gradient 0."
    return f"{at_zero} {math.log(float(spec.epsilon)):.6g}, with the gradient 0."


def _special_targets(spec: AnyLoss) -> list[Phrase]:
    if isinstance(spec, MeanSquaredError):
        return []
    if isinstance(spec, BinaryCrossEntropyLoss):
        return [say("A target outside [0, 1] is an error (NaN under tracing).")]
    return [
        say(
            "A class index outside 0..K-1 that is not ignored is an error (NaN under tracing); it never wraps."
        ),
    ]


def _special_positions(spec: AnyLoss) -> list[Phrase]:
    found = [
        say(
            "Positions that are masked or have sample weight 0 have loss and gradient 0, and nothing in them is read."
        ),
        say("Shapes must fit: nothing is squeezed and nothing is broadcast."),
    ]
    empty = {"none": "an empty array", "sum": "0"}.get(spec.reduction)
    if empty is None:
        empty = {"nan": "NaN", "zero": "0", "error": "an error"}[spec.on_empty]
    return [*found, say(f"An empty batch gives {empty}.")]
