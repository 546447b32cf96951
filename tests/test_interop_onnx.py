"""ONNX's loss operators in onnxruntime agree with their specs; models are written and read back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import unifiedloss as ul
from tests.interop_grid import BACKENDS, check, computed
from unifiedloss import interop
from unifiedloss.errors import SpecTypeError, UnsupportedError

pytestmark = [pytest.mark.framework("torch", "tensorflow", "jax", "keras")]

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(4, 3, 2)) * 3).astype(np.float32)
LOG_PROBABILITIES = np.log(RNG.dirichlet(np.ones(3), size=(4, 2)).transpose(0, 2, 1)).astype(
    np.float32
)
LABELS = np.array([[0, 1], [1, 2], [2, 0], [1, 0]])
IGNORED = np.where(LABELS == 2, -100, LABELS)
X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]], np.float32)
Y = np.array([0, 1, 1, 2])
REDUCTIONS = ("mean", "sum", "none")

GRID = [
    (
        interop.Call(
            name,
            interop.find(name).bind(
                [], {"weights": weights, "ignore_index": label, "reduction": reduction}
            ),
        ),
        predictions,
        IGNORED if label == -100 else LABELS,
    )
    for name, predictions in (
        ("onnx.SoftmaxCrossEntropyLoss", LOGITS),
        ("onnx.NegativeLogLikelihoodLoss", LOG_PROBABILITIES),
    )
    for weights, label, reduction in itertools.product(
        (None, (0.1, 0.0, 2.0)), (None, 1, -100), REDUCTIONS
    )
]


@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
@pytest.mark.slow("the same specs in the frameworks that compile no eager call", only=["jax"])
def test_grid(backend: str) -> None:
    """Every combination of attributes agrees with its spec in float32."""
    for call, predictions, labels in GRID:
        check(call, predictions, labels, backends=(backend,))


def test_grid_in_float64() -> None:
    """The grid agrees in float64, with int32 labels and with no axis after the class axis."""
    for call, predictions, labels in GRID:
        check(
            call,
            predictions[:, :, 0].astype(np.float64),
            labels[:, 0].astype(np.int32),
            backends=("numpy",),
        )


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
def test_special_values(backend: str) -> None:
    """onnxruntime and the spec give the same special values."""
    rows: list[tuple[str, Any, Any, Any]] = [
        ("onnx.SoftmaxCrossEntropyLoss()", X, Y, 0.764189),
        ("onnx.SoftmaxCrossEntropyLoss(weights=[1, 2, 4])", X, Y, 0.878126),
        (
            "onnx.SoftmaxCrossEntropyLoss(ignore_index=1, weights=[1, 2, 4])",
            X,
            np.ones(4, int),
            NAN,
        ),
        ("onnx.SoftmaxCrossEntropyLoss(ignore_index=1, reduction='sum')", X, np.ones(4, int), 0),
        ("onnx.SoftmaxCrossEntropyLoss()", np.array([[2, -INF, 0]], np.float32), Y[:1], 0.126928),
        ("onnx.NegativeLogLikelihoodLoss()", np.array([[-INF, 0, 0]], np.float32), Y[:1], INF),
        ("onnx.NegativeLogLikelihoodLoss(reduction='none')", X, Y, [-2, -1, -3, -0.5]),
    ]
    for text, predictions, labels, value in rows:
        call = interop.parse(text)
        native, gradient = interop.run(call, predictions, labels)
        np.testing.assert_allclose(native, value, rtol=2e-7, atol=6e-7, err_msg=text)
        assert gradient is None
        check(call, predictions, labels, backends=(backend,))


def test_what_no_spec_can_say() -> None:
    """onnxruntime wraps negative labels and fails for an empty batch; a spec does neither."""
    call = interop.parse("onnx.SoftmaxCrossEntropyLoss()")
    last, _ = interop.run(call, X[:1], np.array([2]))
    wrapped, _ = interop.run(call, X[:1], np.array([-1]))
    assert wrapped == last == pytest.approx(2.407606)
    with pytest.raises(ul.BadValueError, match="indices never wrap"):
        interop.spec_of(call)(X[:1], np.array([-1]))
    with pytest.raises(Exception, match=r"[Rr]eshape"):
        interop.run(call, X[:0], Y[:0])
    assert np.isnan(interop.spec_of(call)(X[:0], Y[:0]))
    with pytest.raises(UnsupportedError, match="takes no sample weights"):
        interop.run(call, X, Y, np.ones(4))


# ------------------------------------------------------------------------------------------ models


def outcome(model: onnx.ModelProto, predictions: Any, labels: Any) -> Any:
    """Return the loss that onnxruntime computes with a model."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    first, second = (each.name for each in session.get_inputs())
    (value,) = session.run(None, {first: predictions, second: labels})
    return value


@pytest.mark.parametrize(
    "spec",
    [
        ul.CrossEntropyLoss(from_logits=True, axis=1),
        ul.CrossEntropyLoss(
            from_logits=True, axis=1, class_weights=[0.1, 2, 4], ignore_index=-1, reduction="sum"
        ),
        ul.NegativeLogLikelihoodLoss(axis=1, class_weights=[0.1, 2, 4], reduction="none"),
    ],
)
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_export(spec: Any, rank: int, tmp_path: Path) -> None:
    """A written model is valid, gives the spec's numbers after saving, and is read as the spec."""
    model = spec.to_native("onnx") if rank == 2 else spec.to_native("onnx", rank=rank)
    onnx.save(model, tmp_path / "loss.onnx")
    model = onnx.load(tmp_path / "loss.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        f"{type(spec).__name__}".replace("Cross", "SoftmaxCross")
    ]
    for count in (1, 5):
        shape = (count, 3, 4, 2)[:rank]
        predictions = RNG.normal(size=shape).astype(np.float32)
        labels = RNG.integers(0, 3, size=(count, *shape[2:]))
        value = outcome(model, predictions, labels)
        expected, _ = computed("numpy", spec, predictions, labels)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    assert ul.from_native(model) == spec


def test_round_trips() -> None:
    """Every call of the grid is read back from a model, a node with its weights, and text."""
    for call in {call for call, _, _ in GRID}:
        spec = interop.spec_of(call)
        model = interop.build(call)
        assert interop.read(model) == call
        assert ul.from_native(model.graph) == spec
        node = model.graph.node[0]
        weights = {"weights": call.arguments["weights"]} if "weights" in call.arguments else {}
        assert ul.from_native(node, **weights) == spec
        assert ul.from_native(spec.to_native("onnx")) == spec
        assert ul.from_native(spec.to_native("onnx", code=True)) == spec


def test_text_makes_the_nodes() -> None:
    """The written line is valid Python, and its nodes make a model that gives the spec's number."""
    for text in (
        "onnx.SoftmaxCrossEntropyLoss(ignore_index=1)",
        "onnx.NegativeLogLikelihoodLoss(weights=[0.5, 2, 4])",
    ):
        spec = ul.from_native(text)
        made = eval(spec.to_native("onnx", code=True), {"onnx": onnx})  # noqa: S307 - our own text
        nodes = made if isinstance(made, list) else [made]
        inputs = nodes[-1].input
        scores = helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, ["N", "C"])
        labels = helper.make_tensor_value_info(inputs[1], TensorProto.INT64, ["N"])
        loss = helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])
        graph = helper.make_graph(nodes, "g", [scores, labels], [loss])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        np.testing.assert_allclose(outcome(model, X, Y), spec(X, Y), rtol=1e-6)
        assert ul.from_native(model) == spec


def node(*outputs: str, inputs: tuple[str, ...] = ("x", "y"), **attributes: Any) -> onnx.NodeProto:
    """Return a node of the softmax cross-entropy."""
    return helper.make_node("SoftmaxCrossEntropyLoss", inputs, outputs or ["loss"], **attributes)


def test_nodes_are_read() -> None:
    """A node is read by its attributes, and a model or graph by its one loss node."""
    assert ul.from_native(node(reduction="sum", ignore_index=2)) == ul.CrossEntropyLoss(
        from_logits=True, axis=1, reduction="sum", ignore_index=2
    )
    assert ul.from_native(node(inputs=("x", "y", ""))) == ul.CrossEntropyLoss(
        from_logits=True, axis=1
    )
    assert ul.from_native(node("loss", "")) == ul.CrossEntropyLoss(from_logits=True, axis=1)
    weighted = ul.CrossEntropyLoss(from_logits=True, axis=1, class_weights=[0.1, 2])
    bare = node(inputs=("x", "y", "w"))
    for weights in (
        [0.1, 2],
        (0.1, 2.0),
        np.float32([0.1, 2]),
        numpy_helper.from_array(np.float32([0.1, 2])),
    ):
        assert ul.from_native(bare, weights=weights) == weighted
    values = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("a", TensorProto.FLOAT, ["N", 2]),
            ("y", TensorProto.INT64, ["N"]),
            ("loss", TensorProto.FLOAT, []),
        )
    ]
    for weights in (numpy_helper.from_array(np.float32([0.1, 2]), "w"), None):
        nodes = [helper.make_node("Identity", ["a"], ["x"]), bare]
        if weights is None:
            constant = numpy_helper.from_array(np.float32([0.1, 2]))
            nodes.insert(0, helper.make_node("Constant", [], ["w"], value=constant))
        graph = helper.make_graph(
            nodes, "g", values[:2], values[2:], [] if weights is None else [weights]
        )
        assert ul.from_native(helper.make_model(graph)) == weighted


@pytest.mark.parametrize(
    ("obj", "arguments", "error", "found"),
    [
        (node("loss", "log_prob"), {}, UnsupportedError, "with a second output"),
        (node(inputs=("x", "y", "w")), {}, SpecTypeError, "whose values are not in the node"),
        (node(), {"weights": [1, 2]}, SpecTypeError, "no third input"),
        (node(inputs=()), {}, SpecTypeError, r"has the inputs \[\]"),
        (node(inputs=("x", "")), {}, SpecTypeError, "takes the inputs scores, labels"),
        (node(inputs=("x", "y", "w", "v")), {}, SpecTypeError, "takes the inputs scores, labels"),
        (node(inputs=("x", "x")), {}, SpecTypeError, "not all different"),
        (node("x"), {}, SpecTypeError, "takes the result of itself"),
        (
            helper.make_node("NegativeLogLikelihoodLoss", ["x", "y"], []),
            {},
            SpecTypeError,
            "input, target and",
        ),
        (
            helper.make_graph(
                [node()], "g", [], [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])]
            ),
            {},
            SpecTypeError,
            "its predictions 'x' are no input and no result",
        ),
        (node(), {"reduction": "sum"}, SpecTypeError, "only weights are given, got reduction"),
        (node(alpha=1), {}, SpecTypeError, "no parameter 'alpha'"),
        (node(reduction="max"), {}, ul.SpecValueError, "reduction must be one of"),
        (
            node(domain="com.example"),
            {},
            SpecTypeError,
            r"the nodes are com\.example\.SoftmaxCrossEntropyLoss",
        ),
        (helper.make_node("Relu", ["x"], ["y"]), {}, SpecTypeError, "the nodes are Relu"),
        (
            helper.make_graph([node(), node()], "g", [], []),
            {},
            SpecTypeError,
            "the name 'loss' is not the only one",
        ),
        (helper.make_graph([node()], "g", [], []), {}, SpecTypeError, "the graph are none"),
        (
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
            {},
            SpecTypeError,
            "is no loss that is known",
        ),
    ],
)
def test_refused(obj: Any, arguments: dict[str, Any], error: type[Exception], found: str) -> None:
    """A node, graph or other object that cannot be read is an error with the reason."""
    with pytest.raises(error, match=found):
        ul.from_native(obj, **arguments)


def test_models_are_run_as_they_are() -> None:
    """A report runs a model with its own weights, dtypes and rank, without what is not needed."""
    spec = ul.CrossEntropyLoss(from_logits=True, axis=1, class_weights=[0.1, 2, 4])

    def model(scores: str, kind: int, weights: Any, *first: onnx.NodeProto) -> onnx.ModelProto:
        values = [
            helper.make_tensor_value_info(name, of, shape)
            for name, of, shape in (
                ("a", kind, ["N", 3]),
                ("y", TensorProto.INT32, ["N"]),
                ("loss", kind, []),
            )
        ]
        held = [numpy_helper.from_array(weights, "w")]
        if first:
            values.insert(2, helper.make_tensor_value_info("unused", kind, ["N"]))
        graph = helper.make_graph(
            [*first, node(inputs=(scores, "y", "w"))], "g", values[:-1], values[-1:], held
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)

    narrow = np.float32([0.1, 2, 4])
    wide_x = X.astype(np.float64)
    loss_only = model("a", TensorProto.FLOAT, narrow)
    larger = model(
        "x",
        TensorProto.FLOAT,
        narrow,
        helper.make_node("Identity", ["a"], ["x"]),
        helper.make_node("Relu", ["unused"], ["dead"]),
    )
    for made in (loss_only, larger, larger.graph, spec.to_native("onnx"), node(inputs=("a", "y"))):
        report = ul.port_report(made, ul.from_native(made), X, Y)
        assert (report.same, report.ran_a) == (True, "native")
    assert ul.port_report(
        model("a", TensorProto.DOUBLE, np.float64([0.1, 2, 4])), spec, wide_x, Y
    ).same
    # A float32 model refuses float64 predictions; a line of text has no dtype yet.
    for made in (loss_only, larger, spec.to_native("onnx")):
        error = ul.port_report(made, spec, wide_x, Y).error_a
        assert error is not None
        assert "double" in error
    assert ul.port_report("onnx.SoftmaxCrossEntropyLoss(weights=[0.1, 2, 4])", spec, wide_x, Y).same
    cube = ul.port_report(spec.to_native("onnx"), spec, X[..., None], Y[..., None])
    assert "rank" in str(cube.error_a)
