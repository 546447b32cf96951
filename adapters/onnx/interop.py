"""ONNX's loss operators: read from nodes and models as calls, built as models, and run.

onnxruntime runs them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.onnx import INPUTS, OUTPUT
from unifiedloss.interop.onnx_nodes import Node, call_of_nodes

OPSET = 13
"""The version that introduced the current operators; every ONNX runtime supports it."""

IR_VERSION = 8

_DOMAINS = ("", "ai.onnx")
"""The domains of the standard's operators."""


def read(obj: Any, **arguments: Any) -> Call | None:
    """The call of a node, or of the only loss in a model or graph; None for anything else."""
    if isinstance(obj, onnx.ModelProto):
        obj = obj.graph
    provided = None
    if isinstance(obj, onnx.GraphProto):
        nodes = list(obj.node)
        initializers = {tensor.name: _plain(tensor) for tensor in obj.initializer}
        provided = (
            {each.name for each in obj.input}
            | initializers.keys()
            | {name for node in nodes for name in node.output}
        )
    elif isinstance(obj, NodeProto):
        nodes, initializers = [obj], {}
    else:
        return None
    unknown = arguments.keys() - {"weights"}
    if unknown:
        msg = (
            "a node has its attributes already; beside it only weights are given, got "
            f"{', '.join(sorted(unknown))}."
        )
        raise SpecTypeError(msg)
    weights = arguments.get("weights")
    weights = None if weights is None else _plain(weights)
    return call_of_nodes([_node(node) for node in nodes], initializers, weights, provided)


def _node(node: NodeProto) -> Node:
    operator = f"{node.domain}.{node.op_type}" if node.domain not in _DOMAINS else node.op_type
    attributes = {}
    # The attributes of other operators are not needed, and may hold graphs.
    if operator in INPUTS or operator == "Constant":
        attributes = {
            attribute.name: _plain(helper.get_attribute_value(attribute))
            for attribute in node.attribute
        }
    return Node(operator, tuple(node.input), tuple(node.output), attributes)


def _plain(value: Any) -> Any:
    """A tensor or attribute as Python values.

    A float32 number becomes the shortest decimal that rounds to it.
    """
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str | int):
        return value
    array: np.ndarray[Any, Any] = np.asarray(value)
    # The numbers of an attribute are float32 in the file.
    if array.dtype == np.float64 and isinstance(value, list):
        array = array.astype(np.float32)
    plain = [float(str(number)) for number in array.ravel()]
    return tuple(plain) if array.ndim == 1 else _nested(np.reshape(plain, array.shape).tolist())


def _nested(value: Any) -> Any:
    return tuple(map(_nested, value)) if isinstance(value, list) else value


def build(
    call: Call, rank: int = 2, dtype: Any = np.float32, labels: Any = np.int64
) -> onnx.ModelProto:
    """A model of the loss alone, with the standard's names for its inputs.

    Class weights are an initializer. Extents are symbolic, but the rank is fixed, because a model
    without a shape is invalid.
    """
    operator = call.name.partition(".")[2]
    scores, targets, weights = INPUTS[operator]
    attributes = {name: value for name, value in call.arguments.items() if name != "weights"}
    initializers = []
    if "weights" in call.arguments:
        initializers = [
            numpy_helper.from_array(np.array(call.arguments["weights"], dtype), weights)
        ]
    inputs = [scores, targets, *(tensor.name for tensor in initializers)]
    model = _around(
        helper.make_node(operator, inputs, [OUTPUT], **attributes),
        initializers,
        rank,
        dtype,
        labels,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _around(
    node: NodeProto, initializers: list[TensorProto], rank: int, dtype: Any, labels: Any
) -> onnx.ModelProto:
    """A model of one node and the constants among its inputs."""
    scores, targets, result = node.input[0], node.input[1], node.output[0]
    positions = ["N", *(f"D{axis}" for axis in range(1, rank - 1))]
    unreduced = any(each.name == "reduction" and each.s == b"none" for each in node.attribute)
    shapes = {
        scores: [positions[0], "C", *positions[1:]],
        targets: positions,
        result: positions if unreduced else [],
    }
    kinds = {scores: dtype, targets: labels, result: dtype}
    first, second, last = (
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(kinds[name])), shape
        )
        for name, shape in shapes.items()
    )
    graph = helper.make_graph([node], node.op_type, [first, second], [last], initializers)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="unifiedloss",
    )


def weight_dtype(_: Call, given: Any = None) -> str | None:
    """The dtype of the predictions that a given model takes; None if `run` makes the model."""
    graph = given.graph if isinstance(given, onnx.ModelProto) else None
    if graph is None:
        return None
    scores = _losses(graph)[0].input[0]
    kinds = [given.type.tensor_type.elem_type for given in graph.input if given.name == scores]
    return helper.tensor_dtype_to_np_dtype(kinds[0]).name if kinds else None


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The value from onnxruntime; there is no gradient.

    Integer labels are cast to int64 unless they are int32, because onnxruntime takes no others.
    `given` is the node, graph or model that the call was read from. A model of the loss alone is
    run unchanged. From a larger model or graph, only the node of the loss is run, with its class
    weights. Without `given`, `build` makes a model for tensors of these dtypes.
    """
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if targets.dtype.kind in "iu" and targets.dtype not in (np.int32, np.int64):
        targets = targets.astype(np.int64)
    return run_as_given(call, predictions, targets, sample_weight, given)


def run_as_given(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The result of `run` without casting the labels, whose dtype onnxruntime may refuse."""
    import onnxruntime  # imported here, because reading and building do not need it

    if sample_weight is not None:
        msg = f"{call.name} takes no sample weights; use reduction='none' and weight its losses."
        raise UnsupportedError(msg)
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    kinds = predictions.ndim, predictions.dtype, targets.dtype
    model = build(call, *kinds) if given is None else _model_of(given, *kinds)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    node = _losses(model.graph)[0]
    scores, labels = node.input[:2]
    types = {each.name: each.type for each in session.get_inputs()}
    if types[labels] == "tensor(int32)":
        targets = targets.astype(np.int32)
    (value,) = session.run([node.output[0]], {scores: predictions, labels: targets})
    return np.asarray(value), None


def _model_of(given: Any, rank: int, dtype: Any, labels: Any) -> onnx.ModelProto:
    """The given model if it has only the loss; otherwise a model around the node of the loss."""
    if isinstance(given, NodeProto):
        return _around(given, [], rank, dtype, labels)
    graph = given.graph if isinstance(given, onnx.ModelProto) else given
    (node,) = _losses(graph)
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = {each.name for each in graph.input} - initializers
    alone = inputs == set(node.input[:2]) and len(graph.node) == 1
    if isinstance(given, onnx.ModelProto) and alone:
        return given
    constants = {tensor.name: tensor for tensor in graph.initializer} | _constants(graph)
    return _around(node, [constants[name] for name in node.input[2:] if name], rank, dtype, labels)


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    """The values of the Constant nodes of a graph, as initializers, by name."""
    constants = {}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            name, value = node.output[0], helper.get_attribute_value(attribute)
            if not isinstance(value, TensorProto):
                value = numpy_helper.from_array(np.array(value, np.float32))
            tensor = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = name
            constants[name] = tensor
    return constants


def _losses(graph: onnx.GraphProto) -> list[NodeProto]:
    return [node for node in graph.node if node.op_type in INPUTS and node.domain in _DOMAINS]
