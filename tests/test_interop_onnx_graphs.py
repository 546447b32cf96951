"""A graph of ONNX is read as what it computes from its inputs to its output, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import unifiedloss as ul

pytestmark = [pytest.mark.framework("numpy")]

LOGITS = ul.CrossEntropyLoss(from_logits=True, axis=1)
LOG_PROBABILITIES = ul.NegativeLogLikelihoodLoss(axis=1)
SHAPE = (4, 3, 2)
OFF, ON = np.zeros((), bool), np.ones((), bool)
RNG = np.random.default_rng(7)


class Maker:
    """Makes a model: predictions z and labels y, and nodes around a loss."""

    def __init__(self, rank: int = 2, *, declared: bool = True, opset: int = 18) -> None:
        self.rank, self.declared, self.opset = rank, declared, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.outputs: list[str] = []
        self.count = 0

    def add(self, operator: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node; an input that is no name becomes a constant. Return its result's name."""
        self.count += 1
        result = f"{operator}_{self.count}"
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        self.nodes.append(helper.make_node(operator, names, [result], name=result, **attributes))
        return result

    def constant(self, value: Any) -> str:
        """Add an initializer."""
        self.count += 1
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self.initializers.append(numpy_helper.from_array(array, f"c_{self.count}"))
        return f"c_{self.count}"

    def model(self, *outputs: str, functions: Any = ()) -> onnx.ModelProto:
        """The model with these outputs."""
        shape = ["N", *SHAPE[1 : self.rank]] if self.declared else None
        labels = None if shape is None else [shape[0], *shape[2:]]
        inputs = [
            helper.make_tensor_value_info("z", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("y", TensorProto.INT64, labels),
        ]
        results = [helper.make_tensor_value_info(x, TensorProto.FLOAT, None) for x in outputs]
        graph = helper.make_graph(self.nodes, "g", inputs, results, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(each.domain, 1) for each in functions if each.domain]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=functions)


def tensors(rank: int = 2) -> tuple[Any, Any]:
    """Predictions and labels that fit a model of this rank."""
    shape = SHAPE[:rank]
    labels = RNG.integers(0, shape[1], (shape[0], *shape[2:]))
    return (RNG.normal(size=shape) * 2).astype(np.float32), labels


def value(model: onnx.ModelProto, z: Any, y: Any) -> Any:
    """What ONNX' own reference computes."""
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, {"z": z, "y": y})[0]


# ------------------------------------------------------------------------------ graphs at random

Step = Callable[[Maker, str], str]

PREDICTIONS: dict[str, Step] = {
    "Identity": lambda m, x: m.add("Identity", x),
    "Cast": lambda m, x: m.add("Cast", x, to=TensorProto.FLOAT),
    "Cast to double and back": lambda m, x: m.add(
        "Cast", m.add("Cast", x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT
    ),
    "Cast to int and back": lambda m, x: m.add(
        "Cast", m.add("Cast", x, to=TensorProto.INT32), to=TensorProto.FLOAT
    ),
    "Dropout": lambda m, x: m.add("Dropout", x),
    "Dropout off": lambda m, x: m.add("Dropout", x, 0.5, OFF),
    "Dropout on": lambda m, x: m.add("Dropout", x, 0.5, ON),
    "Transpose": lambda m, x: m.add("Transpose", x, perm=list(range(m.rank))),
    "Transpose the rest": lambda m, x: m.add("Transpose", x, perm=[*range(m.rank)][::-1]),
    "Flatten": lambda m, x: m.add("Flatten", x, axis=1),
    "Reshape": lambda m, x: m.add("Reshape", x, np.array([0] * m.rank)),
    "Reshape rows": lambda m, x: m.add("Reshape", x, np.array([-1, *SHAPE[1 : m.rank]])),
    "Reshape rest": lambda m, x: m.add("Reshape", x, np.array([4, -1])),
    "Reshape wrongly": lambda m, x: m.add("Reshape", x, np.array([3, 4, *SHAPE[2 : m.rank]])),
    "LogSoftmax": lambda m, x: m.add("LogSoftmax", x, axis=1),
    "LogSoftmax of the last axis": lambda m, x: m.add("LogSoftmax", x),
    "LogSoftmax of rows": lambda m, x: m.add("LogSoftmax", x, axis=0),
    "Softmax": lambda m, x: m.add("Softmax", x, axis=1),
    "Log": lambda m, x: m.add("Log", x),
    "Relu": lambda m, x: m.add("Relu", x),
    "Mul": lambda m, x: m.add("Mul", x, 0.5),
    "Add itself": lambda m, x: m.add("Add", x, x),
    "Sub from a constant": lambda m, x: m.add("Sub", 1.0, x),
}

LABELS: dict[str, Step] = {
    "Identity": lambda m, x: m.add("Identity", x),
    "Cast": lambda m, x: m.add("Cast", x, to=TensorProto.INT64),
    "Cast to int32": lambda m, x: m.add("Cast", x, to=TensorProto.INT32),
    "Reshape": lambda m, x: m.add("Reshape", x, np.array([0] * (m.rank - 1))),
    "Sub": lambda m, x: m.add("Sub", np.array(2), x),
    "ArgMax": lambda m, _: m.add("ArgMax", "z", axis=1, keepdims=0),
    "Mod": lambda m, x: m.add("Mod", m.add("Add", x, np.array(1)), np.array(3)),
}

LOSS: dict[str, Step] = {
    "Identity": lambda m, x: m.add("Identity", x),
    "Cast": lambda m, x: m.add("Cast", x, to=TensorProto.FLOAT),
    "Cast to int and back": lambda m, x: m.add(
        "Cast", m.add("Cast", x, to=TensorProto.INT32), to=TensorProto.FLOAT
    ),
    "Mul": lambda m, x: m.add("Mul", x, 2.0),
    "Div": lambda m, x: m.add("Div", x, 2.0),
    "Neg": lambda m, x: m.add("Neg", x),
    "Add": lambda m, x: m.add("Add", x, m.add("ReduceSumSquare", "z", keepdims=0)),
    "Add the other way": lambda m, x: m.add("Add", m.add("ReduceMean", "z", keepdims=0), x),
    "Max": lambda m, x: m.add("Max", x, 0.7),
    "ReduceSum": lambda m, x: m.add("ReduceSum", x, keepdims=0),
    "ReduceMean": lambda m, x: m.add("ReduceMean", x, keepdims=0),
    "ReduceMax": lambda m, x: m.add("ReduceMax", x, keepdims=0),
    "ReduceMean of rows": lambda m, x: m.add("ReduceMean", x, np.array([0]), keepdims=0),
    "ReduceSum of all": lambda m, x: m.add(
        "ReduceSum", x, np.arange(m.rank - 1) - (m.rank - 1), keepdims=0
    ),
    "ReduceMean of nothing": lambda m, x: m.add(
        "ReduceMean", x, keepdims=0, noop_with_empty_axes=1
    ),
    "ReduceMean that keeps axes": lambda m, x: m.add("ReduceMean", x),
    "Reshape": lambda m, x: m.add("Reshape", x, np.array([], np.int64)),
    "Squeeze": lambda m, x: m.add("Squeeze", x),
    "Dropout": lambda m, x: m.add("Dropout", x),
    "Where": lambda m, x: m.add("Where", ON, 3.0, x),
}

STEPS = [st.lists(st.sampled_from(sorted(steps)), max_size=n) for steps, n in
         ((PREDICTIONS, 3), (LABELS, 1), (LOSS, 2))]  # fmt: skip


@given(
    st.tuples(*STEPS),
    st.sampled_from(["SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"]),
    st.sampled_from(["mean", "sum", "none"]),
    st.sampled_from([None, (0.5, 2.0, 1.5)]),
    st.sampled_from([None, 1, -1]),
    st.sampled_from([2, 3]),
    st.booleans(),
)
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_graphs(
    steps: tuple[list[str], list[str], list[str]],
    operator: str,
    reduction: str,
    weights: Any,
    ignored: int | None,
    rank: int,
    declared: bool,
) -> None:
    """A random graph around a loss has the value of its spec, or is refused by name."""
    m = Maker(rank, declared=declared)
    z, y = "z", "y"
    for step in steps[0]:
        z = PREDICTIONS[step](m, z)
    for step in steps[1]:
        y = LABELS[step](m, y)
    attributes = {} if ignored is None else {"ignore_index": ignored}
    held = [] if weights is None else [np.array(weights)]
    result = m.add(operator, z, y, *held, reduction=reduction, **attributes)
    for step in steps[2]:
        result = LOSS[step](m, result)
    model = m.model(result)
    x, labels = tensors(rank)
    try:
        spec = ul.from_native(model)
    except ul.UnsupportedError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert any(f"{node.op_type} '{node.name}'" in refusal for node in m.nodes), refusal
        return
    expected = value(model, x, labels)
    assert spec(x, labels).shape == expected.shape
    np.testing.assert_allclose(spec(x, labels), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------ graphs by hand

X = np.array([[2, 1, 0], [0, 1, 2]], np.float32)
Y = np.array([0, 1])


def test_log_softmax_before_a_loss_of_log_probabilities() -> None:
    """LogSoftmax, or Softmax and Log, before the loss make it a loss of logits."""
    for operators in (("LogSoftmax",), ("Softmax", "Log"), ("LogSoftmax", "Softmax", "Log")):
        for operator in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
            m = Maker()
            z = "z"
            for each in operators:
                z = m.add(each, z, **({} if each == "Log" else {"axis": 1}))
            model = m.model(m.add(operator, z, "y"))
            assert ul.from_native(model) == LOGITS
            np.testing.assert_allclose(value(model, X, Y), 0.907606, atol=1e-6)
            report = ul.port_report(model, LOGITS, X, Y)
            assert report.ran_a == "native"
            assert "only rounding is left" in str(report)


def test_reductions_after_the_loss() -> None:
    """A sum or a mean of all losses is the reduction of the spec."""
    for operator, reduction in (("ReduceSum", "sum"), ("ReduceMean", "mean")):
        m = Maker()
        losses = m.add("SoftmaxCrossEntropyLoss", "z", "y", reduction="none")
        model = m.model(m.add(operator, losses, keepdims=0))
        assert ul.from_native(model) == LOGITS.replace(reduction=reduction)


Hand = Callable[[Maker], onnx.ModelProto]


def _loss(m: Maker, z: str = "z", y: str = "y", *weights: Any, **attributes: Any) -> str:
    return m.add("SoftmaxCrossEntropyLoss", z, y, *weights, **attributes)


def _function(m: Maker) -> onnx.ModelProto:
    """A function of the model with the name of a loss, which computes another loss."""
    body = [helper.make_node("ReduceSum", ["a"], ["r"], keepdims=0)]
    function = helper.make_function(
        "", "SoftmaxCrossEntropyLoss", ["a", "b"], ["r"], body, [helper.make_opsetid("", 18)]
    )
    m.add("NegativeLogLikelihoodLoss", "z", "y")
    return m.model(_loss(m), functions=[function])


def _branches(m: Maker) -> onnx.ModelProto:
    """A loss in each branch of an If."""
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    branches = [
        helper.make_graph(
            [helper.make_node("SoftmaxCrossEntropyLoss", ["z", "y"], ["r"], reduction=reduction)],
            "branch", [], result,
        )
        for reduction in ("mean", "sum")
    ]  # fmt: skip
    dead = _loss(m)
    after = m.add("If", OFF, then_branch=branches[0], else_branch=branches[1])
    return m.model(m.add("Add", dead, after))


def _second(m: Maker, *outputs: str) -> onnx.ModelProto:
    m.nodes.append(helper.make_node("SoftmaxCrossEntropyLoss", ["z", "y"], ["loss", "log_prob"]))
    return m.model(*outputs)


def _log_prob_used(m: Maker) -> onnx.ModelProto:
    model = _second(m)
    m.nodes = list(model.graph.node)
    return m.model(m.add("ReduceSum", "log_prob", keepdims=0))


def _renamed(m: Maker, domain: str) -> onnx.ModelProto:
    model = m.model(m.add("Add", _loss(m), m.add("Gelu", "z")))
    model.graph.node[-1].domain = domain
    return model


def _external(m: Maker) -> onnx.ModelProto:
    model = m.model(_loss(m, "z", "y", [1.0, 2.0, 3.0]))
    weights = model.graph.initializer[0]
    weights.data_location = TensorProto.EXTERNAL
    weights.ClearField("raw_data")
    weights.external_data.add(key="location", value="weights.bin")
    return model


def _damaged(m: Maker) -> onnx.ModelProto:
    model = m.model(_loss(m, "z", "y", [1.0, 2.0, 3.0]))
    model.graph.initializer[0].dims[0] = 8_000_000_000
    return model


def _unsorted(m: Maker) -> onnx.ModelProto:
    _loss(m, m.add("Identity", "z"))
    m.nodes.reverse()
    return m.model(m.nodes[0].output[0])


def _cycle(m: Maker) -> onnx.ModelProto:
    m.nodes.append(helper.make_node("Identity", ["a"], ["b"]))
    m.nodes.append(helper.make_node("Identity", ["b"], ["a"]))
    return m.model(_loss(m, "a"))


def _opset(number: int) -> Hand:
    def made(m: Maker) -> onnx.ModelProto:
        m.opset = number
        return m.model(_loss(m))

    return made


def _flattening(m: Maker) -> onnx.ModelProto:
    m.opset, m.rank = 12, 3
    return m.model(m.add("NegativeLogLikelihoodLoss", m.add("LogSoftmax", "z", axis=1), "y"))


REFUSED: list[tuple[Hand, str]] = [
    (lambda m: m.model(m.add("Add", _loss(m), m.add("ReduceSumSquare", "z"))), "^Add 'Add_3'"),
    (lambda m: m.model(m.add("Mul", _loss(m), 0.5)), "^Mul 'Mul_2'.*scale="),
    (lambda m: m.model(_loss(m, m.add("Gemm", "z", np.eye(3)))), "^Gemm 'Gemm_1'.*predictions"),
    (lambda m: m.model(_loss(m, m.add("Softmax", "z", axis=1))), "^Softmax .*takes the softmax"),
    (
        lambda m: m.model(m.add("NegativeLogLikelihoodLoss", m.add("Softmax", "z", axis=1), "y")),
        "^Softmax .*LogSoftmax in its place",
    ),
    (
        lambda m: m.model(m.add("NegativeLogLikelihoodLoss", m.add("Log", "z"), "y")),
        r"^Log .*CrossEntropyLoss\(axis=1, epsilon=0\)",
    ),
    (lambda m: m.model(_loss(m, "z", m.add("ArgMax", "z", axis=1))), "^ArgMax .*the labels"),
    (lambda m: m.model(_loss(m, "z", np.array([0, 1]))), "its labels are the constant"),
    (lambda m: m.model(_loss(m, X)), "its predictions are the constant"),
    (lambda m: m.model(_loss(m, "z", "z")), "not all different"),
    (
        lambda m: m.model(_loss(m, "z", m.add("Cast", "z", to=TensorProto.INT64))),
        "are both the input 'z'",
    ),
    (
        lambda m: m.model(_loss(m, "z", "y", m.add("Exp", [1.0, 2.0, 3.0]))),
        "^Exp .*class weights a constant",
    ),
    (
        lambda m: m.model(
            m.add("ReduceMean", _loss(m, "z", "y", reduction="none", ignore_index=1), keepdims=0)
        ),
        "^ReduceMean .*divisor='all'",
    ),
    (
        lambda m: m.model(m.add("ReduceMean", _loss(m, "z", "y", reduction="none"))),
        "^ReduceMean .*keepdims=0",
    ),
    (lambda m: m.model(_loss(m), m.add("Softmax", "z", axis=1)), "the outputs of the graph are"),
    (lambda m: m.model(m.add("Relu", _loss(m)), _loss(m)), "the outputs of the graph are"),
    (lambda m: m.model(m.add("Relu", "z" if _loss(m) else "")), "computed by Relu 'Relu_2'"),
    (lambda m: m.model("z" if _loss(m) else ""), "computed by no node"),
    (lambda m: _second(m, "loss", "log_prob"), "the outputs of the graph are"),
    (lambda m: _second(m, "log_prob"), "with a second output"),
    (_log_prob_used, "with a second output"),
    (_function, "computed by function SoftmaxCrossEntropyLoss"),
    (_branches, "^Add "),
    (lambda m: _renamed(m, "com.example"), "^com.example.Add 'Add_3'"),
    (_external, "lie in a file of their own"),
    (_damaged, "is damaged: "),
    (_unsorted, "sort the nodes"),
    (_cycle, "sort the nodes"),
    (_opset(11), r"version 11 of ONNX' operators; its losses are in versions 12 to"),
    (_opset(999), "version 999"),
    (_flattening, "^LogSoftmax .*in opset 12 it flattens"),
]


@pytest.mark.parametrize(("made", "found"), REFUSED, ids=[found for _, found in REFUSED])
def test_refused_by_name(made: Hand, found: str) -> None:
    """What a spec does not compute is an error that names the node, in few words."""
    with pytest.raises(ul.UnifiedLossError, match=found) as caught:
        ul.from_native(made(Maker()))
    assert len(str(caught.value)) < 400


def test_what_does_not_reach_the_output_is_left_out() -> None:
    """Other losses, outputs that nobody takes and large weights of dead nodes change nothing."""
    m = Maker()
    m.add("NegativeLogLikelihoodLoss", "z", "y", reduction="sum")
    m.add("MatMul", "z", np.ones((3, 1_000)))
    assert ul.from_native(_second(m, "loss")) == LOGITS
    m.opset = 12
    log_probabilities = m.add("LogSoftmax", "z", axis=1)
    model = m.model(m.add("NegativeLogLikelihoodLoss", log_probabilities, "y"))
    assert ul.from_native(model) == LOGITS


def test_weights_are_given_once() -> None:
    """Weights that are an input are given; weights in the graph cannot be replaced."""
    m = Maker()
    model = m.model(_loss(m, "z", "y", m.add("Identity", [1.0, 2.0, 3.0])))
    weighted = LOGITS.replace(class_weights=[1, 2, 3])
    assert ul.from_native(model) == weighted
    with pytest.raises(ul.SpecTypeError, match="the graph holds the class weights"):
        ul.from_native(model, weights=[1, 1, 1])
    m = Maker()
    model = m.model(_loss(m, "z", "y", "w"))
    assert ul.from_native(model, weights=[1, 2, 3]) == weighted
    with pytest.raises(ul.SpecTypeError, match="whose values are not in the node"):
        ul.from_native(model)


def _cut(data: bytes) -> Iterator[bytes]:
    """The bytes of a model with one byte changed, or cut off."""
    for place in range(0, len(data), 3):
        yield data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        yield data[:place]


def test_damaged_bytes() -> None:
    """Whatever model damaged bytes make, it is read or refused by an error of this library."""
    m = Maker()
    z = m.add("Dropout", m.add("Reshape", "z", np.array([0, -1])), 0.5, OFF)
    model = m.model(m.add("ReduceSum", _loss(m, z, "y", [1.0, 2.0, 3.0], reduction="none")))
    refusals = []
    for data in _cut(model.SerializeToString()):
        made = _loaded(data)
        try:
            ul.from_native(made)
        except ul.UnifiedLossError as error:
            refusals.append(error)
    assert {ul.SpecTypeError, ul.UnsupportedError} <= set(map(type, refusals))
    assert max(len(str(error)) for error in refusals) < 600


def _loaded(data: bytes) -> onnx.ModelProto | None:
    """The model, or None for bytes that onnx itself refuses."""
    try:
        return onnx.load_from_string(data)
    except Exception:  # noqa: BLE001 - the reader of protocol buffers has no documented error
        return None
