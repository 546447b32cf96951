"""Read the nodes of ONNX's loss operators as calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from unifiedloss.errors import SpecTypeError, SpecValueError, UnsupportedError
from unifiedloss.interop.library_loss import Call, find
from unifiedloss.interop.onnx import INPUTS, OUTPUT

_NO_ATTRIBUTES = ("op_type", "inputs", "outputs", "name", "doc_string")


class Node(NamedTuple):
    """The operator of a node, the names of its inputs and outputs, and its attributes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def call_of_nodes(
    nodes: Sequence[Node],
    constants: Mapping[str, Any],
    weights: Any = None,
    provided: Collection[str] | None = None,
) -> Call:
    """The call of the only loss among these nodes.

    Args:
        nodes: the nodes of a graph.
        constants: the values of the graph's initializers, by name. The values of Constant nodes are
            read from `nodes`.
        weights: the class weights, if neither `constants` nor a Constant node holds them.
        provided: the names that the graph provides as inputs of nodes; None without a graph, so
            that any name is valid.

    Raises:
        SpecTypeError: the nodes have no loss or more than one, its inputs or output are missing or
            mixed up, or its class weights are unknown.
        UnsupportedError: the node also outputs log-probabilities.
    """
    losses = [node for node in nodes if node.operator in INPUTS]
    if len(losses) != 1:
        operators = ", ".join(node.operator for node in nodes) or "none"
        msg = f"one node is needed of {' or '.join(INPUTS)}; the nodes are {operators}."
        raise SpecTypeError(msg)
    (node,) = losses
    name = f"onnx.{node.operator}"
    _check_ends(node, provided)
    if [output for output in node.outputs[1:] if output]:
        msg = (
            f"{name} with a second output also gives log-probabilities, and a spec gives the loss "
            "alone; leave the output out, and add a LogSoftmax node for them."
        )
        raise UnsupportedError(msg)
    known = {
        **constants,
        **{key: value for each in nodes for key, value in _constant(each).items()},
    }
    arguments = dict(node.attributes)
    arguments["weights"] = _class_weights(name, node, known, weights)
    return Call(name, find(name).bind([], arguments))


def _check_ends(node: Node, provided: Collection[str] | None) -> None:
    """Refuse a node that ONNX does not run.

    Such a node lacks predictions, labels or an output, or uses one name for two of them.
    """
    scores, labels, weights = INPUTS[node.operator]
    names = [name for name in (*node.inputs, *node.outputs) if name]
    if not 2 <= len(node.inputs) <= 3 or not all(node.inputs[:2]) or not any(node.outputs[:1]):
        msg = (
            f"onnx.{node.operator} takes the inputs {scores}, {labels} and, where classes have "
            f"them, {weights}, and gives a loss; the node has the inputs {list(node.inputs)} and "
            f"the outputs {list(node.outputs)}. Name each, as in "
            f'onnx.helper.make_node("{node.operator}", ["{scores}", "{labels}"], ["{OUTPUT}"]).'
        )
        raise SpecTypeError(msg)
    if len(set(names)) < len(names):
        msg = (
            f"onnx.{node.operator}: the inputs and outputs {names} are not all different; give "
            "each its own name."
        )
        raise SpecTypeError(msg)
    unknown = [
        name for name in node.inputs if name and provided is not None and name not in provided
    ]
    if unknown:
        msg = (
            f"onnx.{node.operator}: its inputs {unknown} are no inputs, constants or results in "
            "the graph; connect them."
        )
        raise SpecTypeError(msg)


def _constant(node: Node) -> dict[str, Any]:
    """The value of a Constant node by the name of its output; empty for other nodes."""
    values = node.attributes.get("value_floats", node.attributes.get("value"))
    return {node.outputs[0]: values} if node.operator == "Constant" and values is not None else {}


def _class_weights(name: str, node: Node, known: Mapping[str, Any], weights: Any) -> Any:
    given = node.inputs[2] if len(node.inputs) > 2 else ""
    if not given:
        if weights is not None:
            msg = (
                f"this node has no third input, so {name} has no class weights; add the input, or "
                "leave weights out."
            )
            raise SpecTypeError(msg)
        return None
    if weights is None and given not in known:
        msg = (
            f"the class weights of {name} are its input {given!r}, whose values are not in the "
            "node; give them, as in from_native(node, weights=[...]), or in text as "
            f"{name}(weights=[...])."
        )
        raise SpecTypeError(msg)
    return known[given] if weights is None else weights


def node_of_arguments(positional: Sequence[Any], keywords: Mapping[str, Any]) -> Node:
    """The node that ``onnx.helper.make_node`` makes from these arguments.

    Raises:
        SpecValueError: the arguments are not an operator, names of inputs and names of outputs.
        SpecTypeError: an argument is given twice.
    """
    given = dict(zip(("op_type", "inputs", "outputs"), positional, strict=False))
    for key in given.keys() & keywords.keys():
        msg = f"onnx.helper.make_node: {key!r} is given twice; leave one of them out."
        raise SpecTypeError(msg)
    values = given | dict(keywords)
    attributes = {key: value for key, value in values.items() if key not in _NO_ATTRIBUTES}
    operator, inputs, outputs = (values.get(key) for key in ("op_type", "inputs", "outputs"))
    if (
        len(positional) > 3
        or not isinstance(operator, str)
        or not _names(inputs)
        or not _names(outputs)
    ):
        msg = (
            "onnx.helper.make_node needs an operator, the names of its inputs and those of its "
            "outputs, as in "
            'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "labels"], ["loss"]).'
        )
        raise SpecValueError(msg)
    return Node(operator, inputs, outputs, attributes)  # type: ignore[arg-type]


def _names(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) for name in value)
