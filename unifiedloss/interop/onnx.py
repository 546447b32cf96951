"""The table of ONNX's loss operators: how each is read as a spec, and written from one.

The attributes of a node configure it, and its inputs are names. Class weights are an input, so
the call of a node has the argument `weights` besides the attributes. A call with class weights is
written as two nodes: a Constant and the loss. `onnx_nodes` reads nodes.
"""

from __future__ import annotations

from unifiedloss.interop.lens import Arguments, one_label, pair
from unifiedloss.interop.library_loss import LibraryLoss, literal, register
from unifiedloss.losses.cross_entropy.spec import CrossEntropyLoss
from unifiedloss.losses.negative_log_likelihood.spec import NegativeLogLikelihoodLoss
from unifiedloss.spec import Loss

INPUTS: dict[str, tuple[str, str, str]] = {}
"""The standard's names for the inputs of each operator: predictions, targets, class weights."""

OUTPUT = "loss"

_REASONS = {
    "axis": "ONNX has the classes on axis 1",
    "divisor": "ONNX divides by the sum of the class weights of the labels",
    "on_empty": "ONNX gives NaN where nothing is left to average",
    "from_logits": "ONNX has a loss for logits and one for log-probabilities",
    "label_smoothing": "ONNX smooths no labels",
    "epsilon": "ONNX clips nothing",
    "scale": "ONNX has no factor; add a Mul node",
    "dtype": "ONNX computes in the dtype of the predictions",
    "rounding": "ONNX does not specify rounding",
}

_SEVERAL_LABELS = (
    "ONNX ignores one label, and the spec has ignore_index={}: give all of them the same label."
)


def _source(operator: str, arguments: Arguments) -> str:
    """The source of the node; with class weights, of the list of a Constant and the node."""
    attributes = {name: value for name, value in arguments.items() if name != "weights"}
    scores, labels, weights = INPUTS[operator]
    weighted = "weights" in arguments
    inputs = literal((scores, labels, weights) if weighted else (scores, labels))
    written = [literal(operator), inputs, literal((OUTPUT,))]
    written += [f"{name}={literal(value)}" for name, value in attributes.items()]
    node = f"onnx.helper.make_node({', '.join(written)})"
    if not weighted:
        return node
    values = literal(arguments["weights"])
    constant = (
        f'onnx.helper.make_node("Constant", [], {literal((weights,))}, value_floats={values})'
    )
    return f"[{constant}, {node}]"


def _loss(
    operator: str,
    inputs: tuple[str, str, str],
    fixed: Loss,
    requires: dict[str, str] | None = None,
) -> LibraryLoss:
    INPUTS[operator] = inputs
    return LibraryLoss(
        f"onnx.{operator}",
        fixed,
        {
            "ignore_index": one_label("ignore_index", None, _SEVERAL_LABELS),
            "reduction": pair("reduction", "mean"),
            "weights": pair("class_weights", None),
        },
        requires or {},
        data=inputs[:2],
        reasons=_REASONS,
        write=lambda arguments: _source(operator, arguments),
    )


register(
    _loss(
        "SoftmaxCrossEntropyLoss",
        ("scores", "labels", "weights"),
        CrossEntropyLoss(from_logits=True, axis=1),
        {"from_logits": "onnx.SoftmaxCrossEntropyLoss takes logits, and the spec probabilities."},
    ),
    _loss(
        "NegativeLogLikelihoodLoss",
        ("input", "target", "weight"),
        NegativeLogLikelihoodLoss(axis=1),
    ),
)
