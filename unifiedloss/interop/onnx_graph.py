"""Read an ONNX graph as the call of a loss, from the graph's inputs to its output.

A loss node says what the graph computes only if nothing around it changes a number. So the graph is
followed from its output back to its inputs, and each node on the way is a part of the loss, is
known to pass its input on, or is named in an error. Nodes that do not reach the output are left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.interop.library_loss import Call, find
from unifiedloss.interop.onnx import INPUTS, OUTPUT
from unifiedloss.interop.onnx_composed import read_composed
from unifiedloss.interop.onnx_nodes import (
    PASSING,
    Node,
    Tensor,
    Unproven,
    along_classes,
    check_reduces_all,
    passed,
)
from unifiedloss.interop.onnx_parts import Constants, Graph, Reading, makers_of, outputs_of
from unifiedloss.text import shortened


def call_of_nodes(nodes: Sequence[Node]) -> Call:
    """The call of a list of nodes; see `read_graph` for the errors."""
    return read_graph(Graph(nodes)).call


def read_graph(graph: Graph, weights: Any = None) -> Reading:
    """The loss that a graph computes, from its inputs to its output.

    Args:
        graph: the graph.
        weights: the class weights, if they are an input of the graph.

    Raises:
        SpecTypeError: the output depends on no loss node, the graph is not connected, or the class
            weights are unknown.
        UnsupportedError: a node on the way from the inputs to the output is not a part of the loss.
            The message names it, and says what to write.
    """
    if graph.nodes and not any(node.operator in INPUTS for node in graph.nodes):
        return read_composed(graph)
    return _Reader(graph).read(weights)


class _Reader:
    """Follows one graph from its output to its inputs."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = makers_of(graph)
        self._constants = Constants(graph)
        self._needed: set[int] = set()
        self._after_loss: set[int] = set()
        """The places of the losses, and of the nodes that depend on one."""
        for place, node in enumerate(graph.nodes):
            makers = {self._makers.get(name) for name in node.inputs}
            if node.operator in INPUTS or makers & self._after_loss:
                self._after_loss.add(place)

    def read(self, weights: Any) -> Reading:
        """See `read_graph`."""
        output = self._output()
        loss, after = self._loss(output)
        _check_ends(loss)
        predictions, before, tensor = self._source(loss, 0)
        targets, beside, labels = self._source(loss, 1)
        if targets == predictions:
            scores, second, _ = INPUTS[loss.operator]
            msg = (
                f"{loss}: its {scores} and its {second} are both the input "
                f"{shortened(predictions)!r}; a loss compares two."
            )
            raise SpecTypeError(msg)
        operator = self._operator(loss, before, tensor)
        for node in beside:
            labels = self._passed(node, labels, _BEFORE.format("labels"))
        arguments = dict(loss.attributes)
        arguments["weights"] = self._class_weights(loss, weights)
        self._reduce(arguments, after, tensor)
        name = f"onnx.{operator}"
        call = Call(name, find(name).bind([], arguments))
        return Reading(call, predictions, targets, output, frozenset(self._needed))

    def _maker(self, name: str) -> Node | None:
        """The node that gives a name; None for an input or an initializer."""
        place = self._makers.get(name)
        if place is None:
            return None
        self._needed.add(place)
        return self._graph.nodes[place]

    def _passed(self, node: Node, tensor: Tensor, fix: str) -> Tensor:
        """The output of a node that passes its input on; refuse any other node."""
        try:
            return passed(node, tensor, self._constants)
        except Unproven as why:
            _refuse(node, str(why), fix)

    # ------------------------------------------------------------ from the output to the loss

    def _output(self) -> str:
        """The only output. Nodes in a list have the outputs that none of them takes."""
        nodes, outputs = self._graph.nodes, self._graph.outputs
        losses = [node for node in nodes if node.operator in INPUTS]
        if not losses or (outputs is None and len(losses) > 1):
            operators = ", ".join(dict.fromkeys(node.operator for node in nodes)) or "none"
            msg = (
                f"one node is needed of {' or '.join(INPUTS)}; the nodes are "
                f"{shortened(operators)}. Write a loss that is composed of other operators as a "
                "spec, such as ul.MeanSquaredError()."
            )
            raise SpecTypeError(msg)
        if outputs is None:
            outputs = outputs_of(nodes)
            _check_ends(losses[0])
            if any(losses[0].outputs[1:]):
                _refuse_second_output(losses[0])
        if len(outputs) != 1:
            names = shortened(", ".join(map(repr, outputs))) or "none"
            msg = (
                f"a spec gives the loss alone, and the outputs of the graph are {names}; keep the "
                "loss as the only output, or pass the node of the loss."
            )
            raise SpecTypeError(msg)
        return outputs[0]

    def _loss(self, output: str) -> tuple[Node, list[Node]]:
        """The loss that the output depends on, and the nodes after it, the first one first."""
        after: list[Node] = []
        name = output
        while True:
            node = self._maker(name)
            if node is None or self._makers[name] not in self._after_loss:
                by = "no node" if node is None else str(node)
                msg = (
                    f"the output {shortened(output)!r} is computed by {by} and depends on no loss; "
                    "make the result of the node of the loss the output of the graph."
                )
                raise SpecTypeError(msg)
            first = name == node.outputs[0]
            if node.operator in INPUTS:
                if not first:
                    _refuse_second_output(node)
                return node, after[::-1]
            after.append(node)
            name = node.input(0)
            # The only way back is the first input, so nothing else may depend on the loss.
            if not first or node.operator not in _UNDONE or not name:
                fix = _AFTER_FIXES.get(node.operator, "apply it to what the spec gives")
                _refuse(node, "no spec computes it", fix)

    # ------------------------------------------------------------ from the loss to the inputs

    def _source(self, loss: Node, place: int) -> tuple[str, list[Node], Tensor]:
        """The input of the graph that the loss's predictions or labels come from.

        Also return the nodes between them, the first one first, and what is known of the input.
        """
        what = ("predictions", "labels")[place]
        nodes: list[Node] = []
        name = loss.inputs[place]
        while (node := self._maker(name)) is not None and node.operator != "Constant":
            if node.operator not in _UNDONE or name != node.outputs[0] or not node.input(0):
                _refuse(node, "no spec computes it", _BEFORE.format(what))
            nodes.append(node)
            name = node.input(0)
        if name in self._constants or node is not None:
            msg = (
                f"{loss}: its {what} are the constant {shortened(name)!r}; make them an input of "
                "the graph."
            )
            raise SpecTypeError(msg)
        known = self._graph.inputs
        if known is not None and name not in known:
            msg = (
                f"{loss}: its {what} {shortened(name)!r} are no input and no result in the graph; "
                "connect them."
            )
            raise SpecTypeError(msg)
        return name, nodes[::-1], Tensor() if known is None else known[name]

    def _operator(self, loss: Node, before: Sequence[Node], tensor: Tensor) -> str:
        """The loss operator that computes the loss of the graph's own predictions.

        A logarithm of a softmax of logits, before either operator, makes it a loss of logits. It
        changes no log-probabilities.
        """
        found = "scores"
        softmax = loss
        for node in before:
            key = (found, node.operator)
            if node.operator in ("LogSoftmax", "Softmax", "Log"):
                if key not in _SCORES:
                    _refuse(node, *_WRONG_SCORES[key])
                if node.operator != "Log":
                    softmax = node
                    try:
                        along_classes(node, tensor, self._graph.opset)
                    except Unproven as why:
                        _refuse(node, str(why), _BEFORE.format("predictions"))
                found = _SCORES[key]
            else:
                tensor = self._passed(node, tensor, _BEFORE.format("predictions"))
        if found == "probabilities":
            _refuse(softmax, *_WRONG_SCORES[found, loss.operator])
        return "SoftmaxCrossEntropyLoss" if found == "log-probabilities" else loss.operator

    def _class_weights(self, loss: Node, weights: Any) -> Any:
        name = f"onnx.{loss.operator}"
        given = loss.input(2)
        if not given:
            if weights is not None:
                msg = (
                    f"this node has no third input, so {name} has no class weights; add the "
                    "input, or leave weights out."
                )
                raise SpecTypeError(msg)
            return None
        held = given
        while (node := self._maker(held)) is not None and node.operator != "Constant":
            if node.operator != "Identity":
                fix = "make the class weights a constant"
                _refuse(node, "no spec computes its class weights", fix)
            held = node.input(0)
        if held in self._constants:
            if weights is not None:
                msg = (
                    f"the graph holds the class weights of {name} as {shortened(held)!r}; leave "
                    "weights out."
                )
                raise SpecTypeError(msg)
            return self._constants[held]
        if weights is None:
            msg = (
                f"the class weights of {name} are its input {shortened(given)!r}, whose values are "
                "not in the node; give them, as in from_native(node, weights=[...]), or in text as "
                f"{name}(weights=[...])."
            )
            raise SpecTypeError(msg)
        return weights

    # ------------------------------------------------------------ after the loss

    def _reduce(self, arguments: dict[str, Any], after: Sequence[Node], tensor: Tensor) -> None:
        """Put what the nodes after the loss compute into its arguments."""
        shape: tuple[int | None, ...] | None = ()
        if arguments.get("reduction", "mean") == "none":
            known = tensor.shape
            shape = None if known is None else (*known[:1], *known[2:])
        losses = Tensor(tensor.dtype, shape)
        for node in after:
            if node.operator not in _REDUCTIONS or losses.shape == ():
                losses = self._passed(node, losses, "apply it to what the spec gives")
                continue
            try:
                check_reduces_all(node, losses, self._constants)
            except Unproven as unproven:
                _refuse(node, *unproven.args)
            if node.operator == "ReduceMean" and (
                arguments["weights"] is not None or "ignore_index" in arguments
            ):
                why = "it divides by the number of all labels, and the loss by the weight of some"
                _refuse(node, why, "write the spec with reduction='mean' and divisor='all'")
            arguments["reduction"] = _REDUCTIONS[node.operator]
            losses = Tensor(losses.dtype, ())


_UNDONE = frozenset({*PASSING, "LogSoftmax", "Softmax", "Log", "ReduceMean", "ReduceSum"})
"""Operators of one tensor, which can be a part of the loss or change nothing."""

_REDUCTIONS = {"ReduceMean": "mean", "ReduceSum": "sum"}

_BEFORE = "apply it to the {} before the spec gets them"

_AFTER_FIXES = {
    **dict.fromkeys(
        ("Mul", "Div"), "multiply what the spec gives, or write scale=... in a cross-entropy"
    ),
    **dict.fromkeys(("Add", "Sub", "Sum"), "add the other terms to what the spec gives"),
}

_SCORES = {
    ("scores", "LogSoftmax"): "log-probabilities",
    ("scores", "Softmax"): "probabilities",
    ("probabilities", "Log"): "log-probabilities",
    ("log-probabilities", "LogSoftmax"): "log-probabilities",
    ("log-probabilities", "Softmax"): "probabilities",
}
"""What an operator gives, by what it takes."""

_WRONG_SCORES = {
    ("scores", "Log"): (
        "it makes the predictions probabilities",
        "write the spec that takes them, ul.CrossEntropyLoss(axis=1, epsilon=0)",
    ),
    ("log-probabilities", "Log"): ("the logarithm would be taken twice", "leave it out"),
    ("probabilities", "Softmax"): ("the softmax would be taken twice", "leave it out"),
    ("probabilities", "LogSoftmax"): ("the softmax would be taken twice", "leave it out"),
    ("probabilities", "SoftmaxCrossEntropyLoss"): (
        "the loss takes the softmax again",
        "leave it out",
    ),
    ("probabilities", "NegativeLogLikelihoodLoss"): (
        "the loss takes log-probabilities",
        "use LogSoftmax in its place",
    ),
}
"""Why no spec computes an operator on what it takes, and what to do."""


def _refuse(node: Node, why: str, fix: str) -> NoReturn:
    msg = (
        f"{node} stands between the inputs of the graph and its output, and {why}; {fix}. "
        "ul.from_native(node) reads the node of the loss alone."
    )
    raise UnsupportedError(msg)


def _refuse_second_output(loss: Node) -> NoReturn:
    msg = (
        f"onnx.{loss.operator} with a second output also gives log-probabilities, and a spec gives "
        "the loss alone; leave the output out, and add a LogSoftmax node for them."
    )
    raise UnsupportedError(msg)


def _check_ends(node: Node) -> None:
    """Refuse a loss that ONNX does not run.

    It lacks predictions, labels or an output, or uses one name for two of them.
    """
    scores, labels, weights = INPUTS[node.operator]
    names = [name for name in (*node.inputs, *node.outputs) if name]
    if not 2 <= len(node.inputs) <= 3 or not all(node.inputs[:2]) or not any(node.outputs[:1]):
        msg = (
            f"onnx.{node.operator} takes the inputs {scores}, {labels} and, where classes have "
            f"them, {weights}, and gives a loss; the node has the inputs "
            f"{shortened(str(list(node.inputs)))} and the outputs "
            f"{shortened(str(list(node.outputs)))}. Name each, as in "
            f'onnx.helper.make_node("{node.operator}", ["{scores}", "{labels}"], ["{OUTPUT}"]).'
        )
        raise SpecTypeError(msg)
    if len(set(names)) < len(names):
        msg = (
            f"onnx.{node.operator}: the inputs and outputs {shortened(str(names))} are not all "
            "different; give each its own name."
        )
        raise SpecTypeError(msg)
