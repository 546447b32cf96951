"""`unifiedloss.explain` describes every field, in plain text and in LaTeX, and nothing else."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from latex2mathml.converter import convert

import unifiedloss as ul
from unifiedloss.interop.explain import Explanation, explain_spec
from unifiedloss.spec import Loss
from unifiedloss.text import Text, escape, number, number_latex, value

MANY = tuple(float(n) for n in range(30))

# Values of each field whose explanations must all differ, with the base specs that allow them.
COMMON: dict[str, list[Any]] = {
    "reduction": ["mean", "sum", "none"],
    "divisor": ["weights", "present", "nonzero", "all"],
    "on_empty": ["nan", "zero", "error"],
    "rounding": ["native", "exact"],
}
SCALED: dict[str, list[Any]] = {"scale": [1.0, 0.5, 1e-7], "dtype": [None, "float32", "float64"]}
CLASSES: dict[str, list[Any]] = {
    "axis": [None, 1, -1],
    "class_weights": [None, (1.0, 2.0, 4.0), (1.0, 2.0, 4.5), MANY, (*MANY[:-1], 7.0)],
    "ignore_index": [None, -100, (-100, 1)],
    "divisor": ["weights", "label_weights", "present", "nonzero", "all"],
}
ELEMENTS: dict[str, list[Any]] = {
    "element_weights": [None, 2.0, (1.0, 2.0), ((1.0, 2.0),), ((1.0,), (2.0,))],
    "average_last_axis": [False, True],
}
VALUES: list[tuple[Loss, dict[str, list[Any]]]] = [
    (
        ul.CrossEntropyLoss(epsilon=1e-3),
        COMMON | SCALED | CLASSES | {
            "epsilon": [1e-3, 1e-7, "keras", "sklearn"],
            "renormalize": [None, "before_clip", "after_clip"],
            "class_weighting": ["entries", "position"],
            "label_smoothing": [0.0, 0.1, 0.25],
        },
    ),
    (ul.CrossEntropyLoss(), {"from_logits": [False, True], "epsilon": [0.0, 0.1, "keras"]}),
    (
        ul.CrossEntropyLoss(
            from_logits=True, class_weights=(1, 2), label_smoothing=0.1, ignore_index=1
        ),
        COMMON | SCALED | CLASSES | {
            "class_weighting": ["entries", "position"],
            "label_smoothing": [0.0, 0.1],
        },
    ),
    (
        ul.BinaryCrossEntropyLoss(epsilon=1e-3),
        COMMON | SCALED | ELEMENTS | {
            "epsilon": [1e-3, 1e-7, "keras", "sklearn", "torch"],
            "epsilon_added": [False, True],
            "pos_weight": [None, 2.0, (2.0,), (2.0, 3.0)],
            "axis": [None, 1, -3],
            "label_smoothing": [0.0, 0.1],
        },
    ),
    (
        ul.BinaryCrossEntropyLoss(
            pos_weight=(1, 2), element_weights=(3, 4), average_last_axis=True
        ),
        COMMON | SCALED | ELEMENTS | {"from_logits": [False, True], "axis": [None, 1]},
    ),
    (ul.MeanSquaredError(), COMMON | SCALED | ELEMENTS),
    (
        ul.MeanSquaredError(element_weights=(1, 2), average_last_axis=True, scale=0.5),
        COMMON | SCALED | ELEMENTS,
    ),
    (ul.NegativeLogLikelihoodLoss(), COMMON | CLASSES | {"scale": SCALED["scale"]}),
    (ul.NegativeLogLikelihoodLoss(class_weights=(1, 2), ignore_index=-100), COMMON | CLASSES),
]  # fmt: skip


def _pairs() -> list[Any]:
    """Return a parameter for each pair of values of a field."""
    pairs = []
    for base, values in VALUES:
        for field, choices in values.items():
            for a, b in combinations(choices, 2):
                pairs.append(pytest.param(base, field, a, b, id=f"{base!r}-{field}-{a}-{b}"[:150]))
    return pairs


@pytest.mark.parametrize(("base", "field", "a", "b"), _pairs())
def test_every_change_is_said(base: Loss, field: str, a: object, b: object) -> None:
    """The explanations of two values of a field differ in the sentence about that field."""
    one, other = explain_spec(base.replace(**{field: a})), explain_spec(base.replace(**{field: b}))
    assert one.rules[field].plain != other.rules[field].plain
    assert one.rules[field].latex != other.rules[field].latex
    assert str(one) != str(other)
    assert one.latex != other.latex


def test_every_field_is_tried() -> None:
    """VALUES has every field of every loss."""
    for cls in (
        ul.CrossEntropyLoss,
        ul.BinaryCrossEntropyLoss,
        ul.MeanSquaredError,
        ul.NegativeLogLikelihoodLoss,
    ):
        tried = {field for base, values in VALUES if type(base) is cls for field in values}
        names = list(cls.declarations)
        assert tried == set(names)
        assert list(explain_spec(cls()).rules) == names


IN_THE_FORMULA = {
    "from_logits", "epsilon", "epsilon_added", "renormalize", "class_weights", "class_weighting",
    "label_smoothing", "pos_weight", "element_weights", "average_last_axis", "scale", "reduction",
    "divisor",
}  # fmt: skip


@pytest.mark.parametrize(("base", "values"), VALUES)
def test_formula_follows_the_fields(base: Loss, values: dict[str, list[Any]]) -> None:
    """The fields in IN_THE_FORMULA change the formula, in plain text and LaTeX; no others do."""
    for field, choices in values.items():
        if field == "class_weighting" and base.class_weights is None:  # type: ignore[union-attr]
            continue
        formulas = [explain_spec(base.replace(**{field: choice})).formulas for choice in choices]
        assert len(set(formulas)) == (len(formulas) if field in IN_THE_FORMULA else 1), field


def formulas_in(explanation: Explanation) -> list[str]:
    """Return every formula of the LaTeX: the lines of align*, and those inside sentences."""
    block, _, rest = explanation.latex.partition(r"\end{align*}")
    lines = block.partition("\\begin{align*}\n")[2].strip().split(" \\\\\n")
    prose = re.sub(r"\\\$", "", rest + "".join(re.findall(r"\\text\{.*\}", block)))
    return [line.replace("&", "") for line in lines] + re.findall(r"\$([^$]+)\$", prose)


@pytest.mark.parametrize("base", [base for base, _ in VALUES], ids=repr)
def test_latex_is_well_formed(base: Loss) -> None:
    """Braces and environments match, special characters are escaped, and formulas convert."""
    explanation = explain_spec(base)
    latex = re.sub(r"\\[{}]", "", explanation.latex)
    assert latex.count("{") == latex.count("}")
    assert re.findall(r"\\begin\{(\S+?)\}", latex) == re.findall(r"\\end\{(\S+?)\}", latex)
    assert re.sub(r"\\\$", "", latex).count("$") % 2 == 0
    formulas = formulas_in(explanation)
    assert len(formulas) > len(explanation.formulas)
    for formula in formulas:
        assert "<math" in convert(formula)
    outside = re.sub(r"\$[^$]*\$", "", latex.partition(r"\end{align*}")[2])
    assert not re.search(r"(?<!\\)[_^&%#]", outside)


def test_formula_of_torchs_defaults() -> None:
    """All lines of one formula, as plain text."""
    spec = ul.CrossEntropyLoss(
        from_logits=True,
        axis=1,
        class_weights=(1, 2, 4),
        divisor="label_weights",
        label_smoothing=0.1,
    )
    assert [formula.plain for formula in explain_spec(spec).formulas] == [
        "l_i = sum_c tau_ic (-log p_ic)",
        "p_ic = exp(z_ic) / sum_k exp(z_ik),  z the predictions, logits",
        (
            "tau_ic = w_c t'_ic,  w = (1, 2, 4); t_ic = 1 where c is the class index, else 0; "
            "or the dense target"
        ),
        "t'_ic = (1 - 0.1) t_ic + 0.1 / K,  K the number of classes",
        "L = sum_i s_i l_i / D,  s_i the sample weight, 1 where none is given",
        (
            "D = sum_i W_i,  over the positions not dropped; "
            "for dense targets D is the number of all positions"
        ),
        "W_i = s_i sum_c w_c t_ic",
    ]


def test_special_values_follow_the_fields() -> None:
    """The loss of p = 0 depends on epsilon, that of an empty batch on reduction and on_empty."""

    def special(spec: Loss) -> str:
        return " ".join(phrase.plain for phrase in explain_spec(spec).special)

    assert "-16.118" in special(ul.CrossEntropyLoss(epsilon="keras"))
    assert "-15.942" in special(ul.BinaryCrossEntropyLoss(epsilon="keras"))
    assert "-36.044" in special(ul.CrossEntropyLoss(epsilon="sklearn"))
    assert "-100" in special(ul.BinaryCrossEntropyLoss(epsilon="torch"))
    assert "-6.90776" in special(ul.CrossEntropyLoss(epsilon=1e-3))
    assert "-inf" in special(ul.CrossEntropyLoss())
    assert "An empty batch gives 0." in special(ul.MeanSquaredError(on_empty="zero"))
    assert "An empty batch gives NaN." in special(ul.MeanSquaredError())
    assert "An empty batch gives an empty array." in special(
        ul.MeanSquaredError(reduction="none", on_empty="zero")
    )


def test_phrases() -> None:
    """LaTeX escapes text, numbers keep all digits, and long arrays show only their ends."""
    assert escape(r"a_b & 5 % {x} \ ^ ~ # $ <") == (
        r"a\_b \& 5 \% \{x\} \textbackslash{} \textasciicircum{} "
        r"\textasciitilde{} \# \$ \textless{}"
    )
    assert [number(x) for x in (1.0, 0.1, 1e-7, 2.5e-8)] == ["1", "0.1", "1e-07", "2.5e-08"]
    assert [number_latex(x) for x in (1.0, 1e-7, 2.5e-8)] == ["1", "10^{-7}", r"2.5 \cdot 10^{-8}"]
    assert Text.of("x_", "y").latex == r"x\_y"
    assert value(((1.0, 2.0), (3.0, 4.5))) == "((1, 2), (3, 4.5))"
    assert value((1.0,)) == "(1,)"
    assert (
        value(tuple(map(float, range(30)))) == "30 numbers from 0 to 29, the first 0, the last 29"
    )


def test_losses_of_other_libraries() -> None:
    """The title has both names, and the end lists the deviations that no spec can express.

    A loss without a spec is an error.
    """
    explanation = ul.explain("tf.nn.softmax_cross_entropy_with_logits")
    assert explanation.title.plain == (
        "tf.nn.softmax_cross_entropy_with_logits, as a spec "
        "CrossEntropyLoss(from_logits=True, axis=-1, reduction='none')"
    )
    rules = dict(explanation.deviations)
    assert (
        rules["target_sum"].plain == "The gradient is p - t, as if every dense row had the sum 1."
    )
    _, _, listed = str(explanation).rpartition("What no spec can say, and this loss does\n")
    assert listed.count("\n") == len(rules) - 1
    latex = explanation.latex
    assert latex.count(r"\begin{description}") == latex.count(r"\end{description}") == 2
    assert ul.explain(ul.MeanSquaredError()).deviations == ()
    with pytest.raises(ul.UnsupportedError, match="mean_with_sample_weight"):
        ul.explain("keras.losses.MeanSquaredError(reduction='mean_with_sample_weight')")


def test_smoothing_with_class_weights_moves_the_minimum() -> None:
    """The sentence about the minimum stands where it is true, and only there."""
    moved = ul.CrossEntropyLoss(
        from_logits=True, class_weights=(0.01, 0.99), label_smoothing=0.1, reduction="none"
    )
    # The smoothed target is (0.95, 0.05), and the weighted one is proportional to (0.19, 0.99).
    at_target, at_weighted = moved(np.log([[0.95, 0.05], [0.19, 0.99]]), [0, 0])
    assert at_weighted < at_target
    assert "moves the minimum" in ul.explain(moved).rules["class_weights"].plain
    for still in (
        moved.replace(class_weighting="position"),
        moved.replace(label_smoothing=0.0),
        moved.replace(class_weights=None),
    ):
        assert "minimum" not in str(ul.explain(still))
