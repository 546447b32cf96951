"""Graphs of plain operators are read as the squared error or the binary cross-entropy they are."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import unifiedloss as ul
from tests.test_interop_onnx_graphs import Maker, value

pytestmark = [pytest.mark.framework("numpy")]

MSE = ul.MeanSquaredError()
LOGITS = ul.BinaryCrossEntropyLoss(from_logits=True)
PROBABILITIES = ul.BinaryCrossEntropyLoss()
TORCH = ul.BinaryCrossEntropyLoss(epsilon="torch")
RNG = np.random.default_rng(5)
X = RNG.uniform(0.05, 0.95, (4, 3)).astype(np.float32)
T = RNG.integers(0, 2, (4, 3)).astype(np.float32)

Part = Callable[[Maker], str]


def model(made: Part, kind: int = TensorProto.FLOAT, *, declared: bool = True) -> onnx.ModelProto:
    """The model of a graph with the inputs z and y, of one shape."""
    m = Maker()
    result = made(m)
    inputs = [
        helper.make_tensor_value_info(name, dtype, ["N", 3] if declared else None)
        for name, dtype in (("z", TensorProto.FLOAT), ("y", kind), ("w", TensorProto.FLOAT))
        if name != "w" or any("w" in node.input for node in m.nodes)
    ]
    output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
    graph = helper.make_graph(m.nodes, "g", inputs, [output], m.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def log_of_no(m: Maker) -> str:
    """The logarithm of 1 - sigmoid(z), as exporters write it."""
    return m.add("Log", m.add("Sub", 1.0, m.add("Sigmoid", "z")))


def softplus_of_minus_abs(m: Maker) -> str:
    """The logarithm of 1 + exp(-|z|)."""
    return m.add("Log", m.add("Add", 1.0, m.add("Exp", m.add("Neg", m.add("Abs", "z")))))


def terms(m: Maker, yes: str, no: str, q: float | None = None) -> str:
    """The negative of y * yes + (1 - y) * no, with a positive weight q."""
    positive = m.add("Mul", "y", yes)
    positive = positive if q is None else m.add("Mul", positive, q)
    return m.add("Neg", m.add("Add", positive, m.add("Mul", m.add("Sub", 1.0, "y"), no)))


def tensorflow(m: Maker) -> str:
    """The form of tf.nn.sigmoid_cross_entropy_with_logits."""
    linear = m.add("Sub", m.add("Relu", "z"), m.add("Mul", "z", "y"))
    return m.add("Add", linear, softplus_of_minus_abs(m))


def torch_probabilities(m: Maker) -> str:
    """The form into which torch decomposes its binary_cross_entropy."""
    no = m.add("Max", m.add("Log", m.add("Add", m.add("Neg", "z"), 1.0)), -100.0)
    yes = m.add("Clip", m.add("Log", "z"), -100.0)
    negative = m.add("Mul", m.add("Sub", "y", 1.0), no)
    return m.add("Sub", negative, m.add("Mul", "y", yes))


ELEMENTS: list[tuple[ul.Loss, Part]] = [
    (MSE, lambda m: m.add("Pow", m.add("Sub", "z", "y"), 2.0)),
    (MSE, lambda m: m.add("Pow", m.add("Sub", "y", "z"), np.array(2))),
    (MSE, lambda m: m.add("Mul", *[m.add("Identity", m.add("Sub", "z", "y"))] * 2)),
    (MSE, lambda m: m.add("Add", m.add("Mul", "z", m.add("Sub", "z", "y")),
                          m.add("Mul", "y", m.add("Sub", "y", "z")))),
    (LOGITS, lambda m: terms(m, m.add("Log", m.add("Sigmoid", "z")), log_of_no(m))),
    (LOGITS.replace(pos_weight=3.0),
     lambda m: terms(m, m.add("Log", m.add("Sigmoid", "z")), log_of_no(m), 3.0)),
    (LOGITS, lambda m: m.add("Sub", m.add("Mul", m.add("Sub", 1.0, "y"), "z"),
                             m.add("Log", m.add("Sigmoid", "z")))),
    (LOGITS, lambda m: m.add("Sub", m.add("Softplus", "z"), m.add("Mul", "z", "y"))),
    (LOGITS, lambda m: terms(m, m.add("Neg", m.add("Softplus", m.add("Neg", "z"))),
                             m.add("Log", m.add("Sigmoid", m.add("Neg", "z"))))),
    (LOGITS, tensorflow),
    (PROBABILITIES,
     lambda m: terms(m, m.add("Log", "z"), m.add("Log", m.add("Sub", 1.0, "z")))),
    (TORCH, torch_probabilities),
]  # fmt: skip

REDUCED: list[tuple[dict[str, Any], Callable[[Maker, str], str]]] = [
    ({"reduction": "none"}, lambda _, x: x),
    ({}, lambda m, x: m.add("ReduceMean", x, keepdims=0)),
    ({}, lambda m, x: m.add("ReduceMean", x, np.array([-1, 0]), keepdims=0)),
    ({"reduction": "sum"}, lambda m, x: m.add("ReduceSum", x, keepdims=0)),
    ({"scale": 0.5}, lambda m, x: m.add("Mul", m.add("ReduceMean", x, keepdims=0), 0.5)),
    (
        {"scale": 0.25, "reduction": "sum"},
        lambda m, x: m.add(
            "Neg", m.add("ReduceSum", m.add("Div", m.add("Neg", x), 4.0), keepdims=0)
        ),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "reduce"), REDUCED)
@pytest.mark.parametrize(("spec", "elements"), ELEMENTS)
def test_composed_losses(
    spec: ul.Loss, elements: Part, fields: dict[str, Any], reduce: Callable[[Maker, str], str]
) -> None:
    """Each way to write a loss is read as its spec, which has the graph's value."""
    made = model(lambda m: reduce(m, elements(m)))
    assert ul.from_native(made) == spec.replace(**fields)
    np.testing.assert_allclose(spec.replace(**fields)(X, T), value(made, X, T), rtol=2e-5)


def test_reports_run_the_graph() -> None:
    """A report runs the graph itself; a line of nodes is read like a graph."""
    made = model(lambda m: m.add("ReduceMean", tensorflow(m), keepdims=0))
    report = ul.port_report(made, LOGITS.replace(scale=2.0), 4 * X - 2, T)
    assert (report.ran_a, report.rules) == ("native", ("scale",))
    assert "a: the ONNX graph of BinaryCrossEntropyLoss(from_logits=True)" in str(report)
    node = "onnx.helper.make_node"
    error, square = f'{node}("Sub", ["a", "b"], ["e"])', f'{node}("Mul", ["e", "e"], ["loss"])'
    assert ul.from_native(f"[{error}, {square}]") == MSE.replace(reduction="none")
    assert ul.diff(f"[{error}, {square}]", MSE)["reduction"]


@pytest.mark.framework("torch")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("MSELoss", {}),
        ("MSELoss", {"reduction": "sum"}),
        ("BCEWithLogitsLoss", {}),
        ("BCEWithLogitsLoss", {"reduction": "none"}),
        ("BCEWithLogitsLoss", {"pos_weight": 3.0}),
    ],
)
def test_exports_of_torch(name: str, arguments: dict[str, Any]) -> None:
    """What torch exports is read as the spec of its own loss."""
    torch = pytest.importorskip("torch")
    tensors = {k: torch.tensor(v) if k == "pos_weight" else v for k, v in arguments.items()}
    loss, file = getattr(torch.nn, name)(**tensors), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(loss, (torch.tensor(X), torch.tensor(T)), file, dynamo=False)
    assert ul.from_native(onnx.load_from_string(file.getvalue())) == ul.from_native(loss)


def _mean(m: Maker, x: str) -> str:
    return m.add("ReduceMean", x, keepdims=0)


def _square(m: Maker) -> str:
    return m.add("Pow", m.add("Sub", "z", "y"), 2.0)


REFUSED: list[tuple[Part, str]] = [
    (lambda m: _mean(m, m.add("Abs", m.add("Sub", "z", "y"))), "Abs 'Abs_2' is no part of them"),
    (lambda m: m.add("Add", _mean(m, _square(m)), 1.0), "Add 'Add_5' is no part"),
    (lambda m: m.add("Sqrt", _mean(m, _square(m))), "Sqrt 'Sqrt_5' is no part"),
    (lambda m: m.add("ReduceMax", _square(m), keepdims=0), "ReduceMax '.*' is no part"),
    (lambda m: m.add("ReduceMean", _square(m), np.array([0]), keepdims=0), "reduce every axis"),
    (lambda m: m.add("ReduceMean", _square(m)), "more axes than a spec does; give it keepdims=0"),
    (lambda m: m.add("ReduceMean", _mean(m, _square(m)), keepdims=0), "has no elements"),
    (lambda m: m.add("Add", _mean(m, _square(m)), _mean(m, "z")), "compute something else"),
    (lambda m: m.add("Add", _mean(m, _square(m)), m.add("ReduceSum", "z", keepdims=0)),
     "it adds what is reduced to what is not"),
    (lambda m: m.add("Mul", _mean(m, "z"), _mean(m, "y")), "it multiplies what is reduced"),
    (lambda m: _mean(m, m.add("Mul", _square(m), np.array([1.0, 2.0, 3.0]))),
     "is not one finite number"),
    (lambda m: _mean(m, m.add("Mul", _square(m), "w")), "depends on 'w', 'y', 'z'"),
    (lambda m: _mean(m, m.add("Mul", "z", "z")), "depends on 'z'"),
    (lambda m: _mean(m, m.add("Pow", m.add("Sub", "z", "y"), 4.0)), "its exponent is not"),
    (lambda m: _mean(m, m.add("Mul", m.add("Sub", "z", "y"), "z")), "compute something else"),
    (lambda m: m.add("Neg", _mean(m, _square(m))), "the negative of a MeanSquaredError"),
    (lambda m: _mean(m, terms(m, m.add("Log", "z"), log_of_no(m))), "compute something else"),
    (lambda m: _mean(m, m.add("Max", m.add("Log", "z"), -50.0)), "Max 'Max_2' is no part"),
    (lambda m: m.add("Mul", _square(m), m.add("Div", np.array(1), np.array(3))), "or a constant"),
    (lambda m: m.add("Mul", _square(m), 1e38), "or such numbers"),
    (lambda m: m.add("Expand", _mean(m, _square(m)), m.add("Shape", "z")), "the shape of the pre"),
    (lambda m: m.add("Add", _square(m), m.add("Shape", "z")), "it computes with a shape"),
    (lambda m: m.add("Expand", _square(m), np.array([2, 4, 3])), "Expand '.*' is no part"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "found"), REFUSED, ids=[found for _, found in REFUSED])
def test_refused_by_name(made: Part, found: str) -> None:
    """A graph of anything else is an error that names what is no part of a loss."""
    with pytest.raises((ul.SpecTypeError, ul.UnsupportedError), match=found) as caught:
        ul.from_native(model(made))
    assert len(str(caught.value)) < 500


def test_what_is_not_declared() -> None:
    """Axes without a rank, and integer targets that are cast, are not known to change nothing."""
    for made, declared, kind in (
        (lambda m: m.add("ReduceSum", _square(m), np.array([0, 1]), keepdims=0), False, 1),
        (
            lambda m: m.add("Pow", m.add("Sub", "z", m.add("Cast", "y", to=1)), 2.0),
            True,
            TensorProto.INT64,
        ),
    ):
        with pytest.raises(ul.SpecTypeError, match="is no part of them"):
            ul.from_native(model(made, kind, declared=declared))


def test_doubling_graphs_end() -> None:
    """A graph whose polynomial doubles with each node is refused at once."""

    def doubled(m: Maker) -> str:
        x = m.add("Sub", "z", "y")
        for _ in range(200):
            x = m.add("Mul", x, x)
        return x

    with pytest.raises(ul.SpecTypeError, match="so many terms"):
        ul.from_native(model(doubled))


STEPS = [("Add", 2), ("Sub", 2), ("Mul", 2), ("Neg", 1), ("Sigmoid", 1), ("Log", 1), ("Relu", 1),
         ("Softplus", 1), ("Abs", 1), ("Exp", 1), ("Identity", 1)]  # fmt: skip
STEP = st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 3))


@given(st.sampled_from(ELEMENTS), st.lists(STEP, max_size=3), st.integers(0, 5))
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
def test_random_graphs(
    chosen: tuple[ul.Loss, Part], steps: list[tuple[tuple[str, int], int, int]], reduced: int
) -> None:
    """Whatever stands around a loss, the graph has the value of its spec, or is refused."""

    def made(m: Maker) -> str:
        results = ["z", "y", chosen[1](m)]
        for (operator, count), *places in steps:
            results.append(
                m.add(operator, *(results[-1 - p % len(results)] for p in places[:count]))
            )
        return REDUCED[reduced][1](m, results[-1])

    graph = model(made)
    try:
        spec = ul.from_native(graph)
    except (ul.SpecTypeError, ul.UnsupportedError):
        return
    np.testing.assert_allclose(spec(X, T), value(graph, X, T), rtol=2e-5)
