"""ONNX's loss operators: read from nodes and models as calls, built as models, and run.

onnxruntime runs them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from unifiedloss.errors import SpecTypeError, UnifiedLossError, UnsupportedError
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.onnx import INPUTS, OUTPUT
from unifiedloss.interop.onnx_graph import read_graph
from unifiedloss.interop.onnx_nodes import DTYPES, Node, Tensor, qualified
from unifiedloss.interop.onnx_parts import Graph, Reading
from unifiedloss.text import shortened

OPSET = 13
"""The version that introduced the current operators; every ONNX runtime supports it."""

OLDEST_OPSET = 12
"""The version that introduced the operators."""

IR_VERSION = 8

_DOMAINS = ("", "ai.onnx")
"""The domains of the standard's operators."""


def read(obj: Any, **arguments: Any) -> Call | None:
    """The call of a node, or of the loss that a model or graph computes; None for anything else."""
    if not isinstance(obj, onnx.ModelProto | onnx.GraphProto | NodeProto):
        return None
    unknown = arguments.keys() - {"weights"}
    if unknown:
        msg = (
            "a node has its attributes already; beside it only weights are given, got "
            f"{shortened(', '.join(sorted(unknown)))}."
        )
        raise SpecTypeError(msg)
    return _reading(obj, arguments.get("weights")).call


def _reading(obj: Any, weights: Any = None) -> Reading:
    """What a node, graph or model is read as.

    Raises:
        SpecTypeError, UnsupportedError: see `read_graph`; also for a message of which a part that
            is needed is damaged, or lies in a file.
    """
    weights = None if weights is None else _plain(weights)
    try:
        return read_graph(_graph(obj), weights)
    except UnifiedLossError:
        raise
    # Whatever a damaged message holds, ONNX' own readers raise these.
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError) as error:
        msg = (
            f"this {type(obj).__name__} is damaged: {shortened(str(error))}; "
            "onnx.checker.check_model says where."
        )
        raise SpecTypeError(msg) from error


def _graph(obj: Any) -> Graph:
    """A node, graph or model in plain values, each of which is read when it is asked for."""
    if isinstance(obj, NodeProto):
        return Graph([_node(obj)])
    functions: set[tuple[str, str]] = set()
    opset = None
    if isinstance(obj, onnx.ModelProto):
        functions = {(each.domain, each.name) for each in obj.functions}
        opset = _opset(obj)
        obj = obj.graph
    return Graph(
        [_node(node, functions) for node in obj.node],
        {each.name: _declared(each) for each in obj.input},
        [each.name for each in obj.output],
        _Lazily({each.name: each for each in obj.initializer}),
        opset,
    )


def _opset(model: onnx.ModelProto) -> int:
    """The version of the standard's operators in a model."""
    versions = [each.version for each in model.opset_import if each.domain in _DOMAINS]
    newest = onnx.defs.onnx_opset_version()
    if not versions or not OLDEST_OPSET <= max(versions) <= newest:
        msg = (
            f"the model uses version {max(versions, default=None)} of ONNX' operators; its losses "
            f"are in versions {OLDEST_OPSET} to {newest} of the installed onnx. Convert the model "
            "with onnx.version_converter, or upgrade onnx."
        )
        raise SpecTypeError(msg)
    return max(versions)


def _node(node: NodeProto, functions: Collection[tuple[str, str]] = ()) -> Node:
    operator = qualified(node.op_type, node.domain)
    # A function of the model takes the place of the operator of the same name.
    if (node.domain, node.op_type) in functions:
        operator = f"function {operator}"
    attributes = {each.name: each for each in node.attribute}
    if len(attributes) < len(node.attribute):
        msg = f"{operator} has an attribute twice; keep one."
        raise SpecTypeError(msg)
    return Node(operator, tuple(node.input), tuple(node.output), _Lazily(attributes), node.name)


class _Lazily(Mapping[str, Any]):
    """Tensors or attributes by name, each read as Python values when it is asked for.

    A graph may hold the weights of a large model, and attributes may hold graphs. Only the few that
    belong to a loss are read.
    """

    def __init__(self, messages: Mapping[str, Any]) -> None:
        self._messages = messages

    def __getitem__(self, name: str) -> Any:
        message = self._messages[name]
        if isinstance(message, onnx.AttributeProto):
            message = helper.get_attribute_value(message)
        return _plain(message)

    def __contains__(self, name: object) -> bool:
        return name in self._messages  # the default would read the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)


def _declared(info: onnx.ValueInfoProto) -> Tensor:
    """What a graph declares about an input."""
    if not info.type.HasField("tensor_type"):
        return Tensor()
    kind = info.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(
            each.dim_value if each.HasField("dim_value") else None for each in kind.shape.dim
        )
    return Tensor(DTYPES.get(kind.elem_type), shape)


def _plain(value: Any) -> Any:
    """A tensor or attribute as Python values.

    A float32 number becomes the shortest decimal that rounds to it.
    """
    if isinstance(value, TensorProto):
        value = _array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str | int):
        return value
    array: np.ndarray[Any, Any] = np.asarray(value)
    # The numbers of an attribute are float32 in the file.
    if array.dtype == np.float64 and isinstance(value, list | float):
        array = array.astype(np.float32)
    if array.dtype.kind in "biu":
        plain = array.ravel().tolist()
    else:
        plain = [float(str(number)) for number in array.ravel()]
    return _nested(_rows(plain, array.shape))


def _array(tensor: TensorProto) -> np.ndarray[Any, Any]:
    """The numbers of a tensor."""
    if tensor.data_location == TensorProto.EXTERNAL:
        msg = (
            f"the numbers of {shortened(tensor.name)!r} lie in a file of their own; read them with "
            "onnx.load(path), or with onnx.load_external_data_for_model(model, folder)."
        )
        raise SpecTypeError(msg)
    return numpy_helper.to_array(tensor)


def _rows(numbers: list[Any], shape: tuple[int, ...]) -> Any:
    """Numbers as nested lists, or the only one."""
    return np.reshape(np.array(numbers, object), shape).tolist()


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
    if operator not in INPUTS:
        msg = f"{call} is run as it was given, and cannot be built."
        raise UnsupportedError(msg)
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
    if not isinstance(given, onnx.ModelProto):
        return None
    return _graph(given).inputs[_reading(given).predictions].dtype  # type: ignore[index]


def run(
    call: Call, predictions: Any, targets: Any, sample_weight: Any = None, given: Any = None
) -> tuple[Any, Any]:
    """The value from onnxruntime; there is no gradient.

    Labels are cast as `accepted` says. `given` is the node, graph or model that the call was read
    from. A model is run unchanged, except for nodes and inputs that its output does not depend on.
    Without `given`, `build` makes a model for tensors of these dtypes.
    """
    predictions, targets = accepted(call, predictions, targets)
    return run_as_given(call, predictions, targets, sample_weight, given)


def accepted(_: Call, predictions: Any, targets: Any) -> tuple[Any, Any]:
    """The predictions and labels in dtypes that onnxruntime takes.

    Integer labels are cast to int64 unless they are int32.
    """
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if targets.dtype.kind in "iu" and targets.dtype not in (np.int32, np.int64):
        targets = targets.astype(np.int64)
    return predictions, targets


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
    reading = _reading(model)
    types = {each.name: each.type for each in session.get_inputs()}
    if types[reading.targets] == "tensor(int32)":
        targets = targets.astype(np.int32)
    (value,) = session.run(
        [reading.output], {reading.predictions: predictions, reading.targets: targets}
    )
    return np.asarray(value), None


def _model_of(given: Any, rank: int, dtype: Any, labels: Any) -> onnx.ModelProto:
    """A model of what the output of the given one depends on; a model around a given node."""
    if isinstance(given, NodeProto):
        return _around(given, [], rank, dtype, labels)
    if isinstance(given, onnx.GraphProto):
        given = helper.make_model(
            given, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
    reading = _reading(given)
    needed = {reading.predictions, reading.targets}
    initializers = {each.name for each in given.graph.initializer}
    unneeded = [each for each in given.graph.input if each.name not in needed | initializers]
    if not unneeded:
        return given
    model = onnx.ModelProto()
    model.CopyFrom(given)
    for each in unneeded:
        model.graph.input.remove(each)
    nodes = [node for place, node in enumerate(given.graph.node) if place in reading.nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
