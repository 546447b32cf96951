"""PyTorch's losses agree with their specs in value and gradient, for every argument and backend."""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import unifiedloss as ul
from tests.interop_grid import BACKENDS, check, computed
from unifiedloss import interop
from unifiedloss.errors import SpecTypeError

pytestmark = [pytest.mark.framework("torch", "tensorflow", "jax", "keras")]

RNG = np.random.default_rng(0)
LOGITS = (RNG.normal(size=(4, 3, 2)) * 3).astype(np.float32)
LABELS = np.array([[0, 1], [-100, 2], [2, -100], [1, 0]])
KEPT_LABELS = np.array([[0, 1], [1, 2], [2, 0], [1, 0]])
DENSE = RNG.dirichlet(np.ones(3), size=(4, 2)).transpose(0, 2, 1).astype(np.float32)
LOG_PROBABILITIES = np.log(RNG.dirichlet(np.ones(3), size=(4, 2)).transpose(0, 2, 1)).astype(
    np.float32
)
PROBABILITIES = RNG.random((4, 3, 2)).astype(np.float32)
# Probabilities at 0 and 1, where torch clamps the logarithm, and next to them.
PROBABILITIES[0, :, 0] = 0.0, 1.0, 2e-38
PROBABILITIES[1, :, 0] = 1.0, 0.0, 1 - 2.0**-24
ANSWERS = np.round(RNG.random((4, 3, 2)), 1).astype(np.float32)
ANSWERS[:2, :, 0] = [[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]

REDUCTIONS = ("mean", "sum", "none")
W = (0.5, 0.0, 2.0)
ELEMENTS = tuple(
    tuple(tuple(float(number) for number in row) for row in block)
    for block in RNG.integers(0, 4, (4, 3, 2))
)


def calls(name: str, **choices: Any) -> list[interop.Call]:
    """Return one call for each combination of arguments and reductions."""
    choices["reduction"] = REDUCTIONS
    native = interop.find(name)
    combinations = (
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    )
    return [interop.Call(name, native.bind([], arguments)) for arguments in combinations]


ELEMENT_WEIGHTS = (None, 2.0, (1.0, 3.0), ((1.0,), (0.0,), (2.5,)))
GRID = [
    *(
        (call, LOGITS, LABELS if call.arguments.get("ignore_index") is None else KEPT_LABELS)
        for call in calls(
            "torch.nn.CrossEntropyLoss",
            weight=(None, W),
            ignore_index=(-100, 1),
            label_smoothing=(0.0, 0.1, 1.0),
        )
    ),
    *(
        (call, LOGITS, DENSE)
        for call in calls("torch.nn.CrossEntropyLoss", weight=(None, W), label_smoothing=(0.0, 0.1))
    ),
    *(
        (
            call,
            LOG_PROBABILITIES,
            LABELS if call.arguments.get("ignore_index") is None else KEPT_LABELS,
        )
        for call in calls("torch.nn.NLLLoss", weight=(None, W), ignore_index=(-100, 1))
    ),
    *((call, PROBABILITIES, ANSWERS) for call in calls("torch.nn.BCELoss", weight=ELEMENT_WEIGHTS)),
    *(
        (call, LOGITS, ANSWERS)
        for call in calls(
            "torch.nn.BCEWithLogitsLoss",
            weight=ELEMENT_WEIGHTS,
            pos_weight=(None, 3.0, (0.5, 2.0), ((1.0,), (0.0,), (3.0,))),
        )
    ),
    *((call, LOGITS, ANSWERS) for call in calls("torch.nn.MSELoss")),
    *((call, LOGITS, ANSWERS) for call in calls("torch.nn.HuberLoss", delta=(0.5, 2.0))),
    *((call, LOGITS, ANSWERS) for call in calls("torch.nn.SmoothL1Loss", beta=(0.5, 2.0))),
    *(
        (call, LOGITS, ANSWERS)
        for call in calls("torch.nn.functional.mse_loss", weight=(None, ELEMENTS))
    ),
]


@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
@pytest.mark.slow("the same specs in the frameworks that compile no eager call", only=["jax"])
def test_grid(backend: str) -> None:
    """Every combination of arguments agrees with its spec in float32."""
    for call, predictions, targets in GRID:
        check(call, predictions, targets, backends=(backend,))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_grid_in_float64(backend: str) -> None:
    """The grid agrees in float64, where the bound is tight enough to prove the same formula."""
    with default_dtype(torch.float64):  # because torch.tensor makes the weights in this dtype
        for call, predictions, targets in GRID:
            wide = targets if targets.dtype.kind == "i" else targets.astype(np.float64)
            check(call, predictions.astype(np.float64), wide, backends=(backend,))


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype within a block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# ---------------------------------------------------------------------------------- special values

INF, NAN = np.inf, np.nan
ZEROS = np.zeros((0, 3), np.float32)
X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]], np.float32)
Y = np.array([0, 1, 1, 2])


def f32(*numbers: Any) -> Any:
    """Return an array of float32."""
    return np.array(numbers, np.float32)


# Calls with their tensors and a value that both torch and the spec give.
SAME: list[tuple[str, Any, Any, Any]] = [
    ("nn.CrossEntropyLoss()", X, Y, 0.764189),
    ("nn.CrossEntropyLoss(weight=[1, 2, 4])", X, Y, 0.878126),
    ("nn.CrossEntropyLoss(weight=[1, 2, 4])", X, np.eye(3, dtype=np.float32)[Y], 1.975783),
    (
        "nn.CrossEntropyLoss(weight=[1, 2, 4], label_smoothing=0.1, reduction='none')",
        X[:1],
        Y[:1],
        [0.795287],
    ),
    ("nn.CrossEntropyLoss()", X, np.array([0, 1, -100, 2]), 0.971275),
    ("nn.CrossEntropyLoss()", X, np.array([0, -100, 1, 2]), 0.549717),
    ("nn.CrossEntropyLoss()", X, np.full(4, -100), NAN),
    ("nn.CrossEntropyLoss(reduction='sum')", X, np.full(4, -100), 0),
    ("nn.CrossEntropyLoss(reduction='none')", X, np.full(4, -100), [0, 0, 0, 0]),
    ("nn.CrossEntropyLoss()", f32([2, -INF, 0]), np.array([0]), 0.126928),
    ("nn.CrossEntropyLoss()", f32([2, -INF, 0]), np.array([1]), INF),
    ("nn.CrossEntropyLoss(label_smoothing=0.1)", f32([2, -INF, 0]), np.array([0]), INF),
    ("nn.CrossEntropyLoss()", f32([-INF, -INF, -INF]), np.array([1]), NAN),
    ("nn.CrossEntropyLoss()", f32([INF, 0, 0]), np.array([1]), NAN),
    ("nn.CrossEntropyLoss()", X[:1], f32([2, 0, 0]), 0.815212),
    ("nn.CrossEntropyLoss()", X[:1], f32([0, 0, 0]), 0),
    ("nn.CrossEntropyLoss()", f32([1e5 + 1, 1e5]), np.array([0]), 0.313262),
    (
        "nn.CrossEntropyLoss()",
        np.arange(18, dtype=np.float32).reshape(2, 3, 3),
        np.arange(6).reshape(2, 3) % 3,
        3.050946,
    ),
    ("nn.CrossEntropyLoss()", ZEROS, Y[:0], NAN),
    ("nn.CrossEntropyLoss(reduction='sum')", ZEROS, Y[:0], 0),
    ("nn.CrossEntropyLoss(reduction='none')", ZEROS, Y[:0], []),
    ("nn.CrossEntropyLoss()", ZEROS, ZEROS, NAN),
    ("nn.NLLLoss()", X, Y, -1.625),  # logits in place of log-probabilities: no error
    ("nn.NLLLoss()", f32([-INF, 0, -INF]), np.array([0]), INF),
    ("nn.NLLLoss()", f32([-INF, 0, -INF]), np.array([1]), 0),
    ("nn.NLLLoss(reduction='sum')", f32([NAN, 0, 1]), np.array([-100]), 0),
    (
        "nn.BCELoss(reduction='none')",
        f32(0, 1, 0, 1, 1e-13),
        f32(1, 0, 0, 1, 1),
        [100, 100, 0, 0, 29.933607],
    ),
    ("nn.BCELoss(weight=[1, 3])", f32(0.5, 0.5), f32(0, 1), 1.386294),
    ("nn.BCELoss(weight=[0, 0])", f32(0.5, 0.5), f32(0, 1), 0),
    ("nn.BCELoss()", f32(), f32(), NAN),
    ("nn.BCELoss(reduction='sum')", f32(), f32(), 0),
    (
        "nn.BCEWithLogitsLoss(reduction='none')",
        f32(100, -100, NAN, 0),
        f32(0, 1, 1, 0),
        [100, 100, NAN, 0.693147],
    ),
    ("nn.BCEWithLogitsLoss(weight=[1, 3])", f32(0, 0), f32(0, 1), 1.386294),
    ("nn.BCEWithLogitsLoss()", f32(), f32(), NAN),
    ("F.mse_loss(weight=[1, 3])", f32(1, 2), f32(0, 0), 3.25),
    ("F.mse_loss(weight=[[1, 0], [0, 1]])", f32([1, 2], [3, 4]), f32([0, 0], [0, 0]), 8.5),
    ("F.mse_loss(weight=[0, 0], reduction='sum')", f32(1, 2), f32(0, 0), 0),
    ("nn.MSELoss(reduction='sum')", f32([1, 2], [3, 4]), f32([0, 0], [0, 0]), 30),
    ("nn.MSELoss()", f32(INF), f32(0), INF),
    ("nn.MSELoss()", f32(INF), f32(INF), NAN),
    ("nn.MSELoss()", f32(1e20), f32(-1e20), INF),
    ("nn.MSELoss()", f32(), f32(), NAN),
    ("nn.MSELoss(reduction='sum')", f32(), f32(), 0),
]


@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
@pytest.mark.slow("the same specs in the frameworks that compile no eager call", only=["jax"])
def test_special_values(backend: str) -> None:
    """torch and the spec agree at infinities, NaN, empty batches, and the bounds of the clamp."""
    for text, predictions, targets, value in SAME:
        call = interop.parse(text)
        # The numbers above have six decimals, and float32 has seven digits.
        native, _ = interop.run(call, predictions, targets)
        np.testing.assert_allclose(native, value, rtol=2e-7, atol=6e-7, err_msg=text)
        check(call, predictions, targets, backends=(backend,))


# Calls with their tensors, and value and gradient of torch and of the spec, where they differ.
OTHER: list[tuple[str, Any, Any, tuple[Any, Any], tuple[Any, Any]]] = [
    # 0 * -inf: a dense target gives NaN, and the same class index does not
    (
        "nn.CrossEntropyLoss()", f32([2, -INF, 0]), f32([1, 0, 0]),
        (NAN, [[-0.119203, 0, 0.119203]]), (0.126928, [[-0.119203, 0, 0.119203]]),
    ),
    (
        "nn.NLLLoss(weight=[0, 1, 1], reduction='sum')", f32([-INF, 0, 0]), Y[:1],
        (NAN, [[0, 0, 0]]), (0, [[0, 0, 0]]),
    ),
    # NaN in an ignored or zero-weighted position
    ("nn.CrossEntropyLoss()", f32([0, 0], [NAN, NAN]), np.array([0, -100]),
     (0.693147, [[-0.5, 0.5], [NAN, NAN]]), (0.693147, [[-0.5, 0.5], [0, 0]])),
    ("F.mse_loss(weight=[1, 0])", f32(1, NAN), f32(0, 0), (NAN, [2, NAN]), (1, [2, 0])),
    (
        "nn.BCEWithLogitsLoss(weight=[1, 0], reduction='sum')", f32(0, INF), f32(1, 1),
        (NAN, [-0.5, 0]), (0.693147, [-0.5, 0]),
    ),
    # a divisor of 0
    ("F.mse_loss(weight=[0, 0])", f32(1, 2), f32(0, 0), (NAN, [NAN, NAN]), (NAN, [0, 0])),
    (
        "nn.CrossEntropyLoss(weight=[0, 1, 1])", X[:1], Y[:1],
        (NAN, [[NAN, NAN, NAN]]), (NAN, [[0, 0, 0]]),
    ),
    # inf - inf: infinite logits of the binary cross-entropy
    ("nn.BCEWithLogitsLoss(reduction='none')", f32(INF, -INF, INF, -INF), f32(1, 0, 0, 1),
     ([NAN, NAN, INF, NAN], [0, 0, 1, -1]), ([0, 0, INF, INF], [0, 0, 1, -1])),
    # subnormal numbers count as 0
    ("nn.BCELoss()", f32(1e-40), f32(1), (92.103409, [-1e12]), (100, [-1e12])),
    # a mean in float16 is rounded to float16
    ("nn.MSELoss()", np.float16([300]), np.float16([0]), (INF, [600]), (90000, [600])),
]  # fmt: skip


@pytest.mark.parametrize("backend", [*BACKENDS, "keras"])
def test_other_values(backend: str) -> None:
    """If no spec can express a value of torch, both values are the listed ones."""
    for text, predictions, targets, native, own in OTHER:
        call = interop.parse(text)
        for got, expected in zip(interop.run(call, predictions, targets), native, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=text)
        for got, expected in zip(
            computed(backend, interop.spec_of(call), predictions, targets), own, strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5, err_msg=f"{text} in {backend}")


@pytest.mark.parametrize(
    ("text", "predictions", "targets", "native", "own"),
    [
        # both refuse
        ("nn.CrossEntropyLoss()", X, np.array([0, 1, 1, 3]), IndexError, ul.BadValueError),
        ("nn.CrossEntropyLoss()", X, np.array([0, 1, 1, -1]), IndexError, ul.BadValueError),
        (
            "nn.CrossEntropyLoss(ignore_index=1)",
            X,
            np.eye(3, dtype=np.float32)[Y],
            RuntimeError,
            ul.SpecValueError,
        ),
        ("nn.CrossEntropyLoss(weight=[1, 2])", X, Y, RuntimeError, ul.SpecValueError),
        ("nn.CrossEntropyLoss()", X, Y[:, None], RuntimeError, ul.ShapeError),
        ("nn.BCELoss()", f32(1.2), f32(1), RuntimeError, ul.BadValueError),
        ("nn.BCELoss()", f32(0.5), f32(1.5), RuntimeError, ul.BadValueError),
        ("nn.BCELoss()", f32([0.5]), f32(0.5), ValueError, ul.ShapeError),
        ("nn.BCEWithLogitsLoss()", f32([0.5]), f32(0.5), ValueError, ul.ShapeError),
        ("F.mse_loss(weight=[1])", f32(0, 0), f32(0, 0), ValueError, None),
        # only torch refuses
        ("nn.NLLLoss()", X, np.eye(3, dtype=np.float32)[Y], RuntimeError, None),
        ("nn.BCELoss()", f32(NAN), f32(1), RuntimeError, None),
        # only the spec refuses
        ("nn.CrossEntropyLoss()", X, -np.eye(3, dtype=np.float32)[Y], None, ul.BadValueError),
        ("nn.BCEWithLogitsLoss()", f32(1), f32(1.5), None, ul.BadValueError),
    ],
)
def test_errors(text: str, predictions: Any, targets: Any, native: Any, own: Any) -> None:
    """torch and the spec raise the listed errors, or none."""
    call = interop.parse(text)
    with contextlib.nullcontext() if native is None else pytest.raises(native):
        interop.run(call, predictions, targets)
    with contextlib.nullcontext() if own is None else pytest.raises(own):
        interop.spec_of(call)(predictions, targets)


def test_broadcasting() -> None:
    """torch warns and broadcasts different shapes; a spec refuses them."""
    column, row = f32([1], [2], [3]), f32(1, 2, 3)
    call = interop.parse("nn.MSELoss()")
    with pytest.warns(UserWarning, match="broadcasting"):
        value, _ = interop.run(call, column, row)
    np.testing.assert_allclose(value, 4 / 3, rtol=1e-6)
    with pytest.raises(ul.ShapeError, match="nothing is broadcast"):
        interop.spec_of(call)(column, row)


# ----------------------------------------------------------------------------------------- objects


def test_objects_round_trip() -> None:
    """Every call of the grid is read back as its spec, from an object and from text."""
    for call in {call for call, _, _ in GRID}:
        spec = interop.spec_of(call)
        assert ul.from_native(interop.build(call)) == spec
        assert interop.read(interop.build(call)) == call
        assert ul.from_native(str(call)) == spec
        if getattr(spec, "element_weights", None) is not None and isinstance(
            spec, ul.MeanSquaredError
        ):
            continue  # torch cannot express it; see test_weights_that_mse_loss_takes
        assert ul.from_native(spec.to_native("torch")) == spec
        assert ul.from_native(spec.to_native("torch", code=True)) == spec
        assert type(spec.to_native("torch")).__module__.partition(".")[0] == "torch"


def test_text_makes_the_object() -> None:
    """The written text is Python code that makes the object."""
    for text in {str(call) for call, _, _ in GRID}:
        made = eval(text, {"torch": torch, "functools": functools})  # noqa: S307 - our own text
        assert ul.from_native(made) == ul.from_native(text)


def test_functions_are_read() -> None:
    """Functions are read with keyword arguments and nested partials, with lists and tensors."""
    weight = torch.tensor([0.1, 2.0])
    spec = ul.from_native("nn.CrossEntropyLoss(weight=[0.1, 2.0], label_smoothing=0.25)")
    assert ul.from_native(functional.cross_entropy, weight=weight, label_smoothing=0.25) == spec
    assert ul.from_native(functional.cross_entropy, weight=[0.1, 2.0], label_smoothing=0.25) == spec
    assert (
        ul.from_native(
            functools.partial(functional.cross_entropy, weight=weight), label_smoothing=0.25
        )
        == spec
    )
    inner = functools.partial(functional.cross_entropy, weight=weight, label_smoothing=0.5)
    assert ul.from_native(functools.partial(inner, label_smoothing=0.25)) == spec
    assert ul.from_native(nn.CrossEntropyLoss(weight.double(), label_smoothing=0.25)).class_weights[
        0
    ] == float(weight[0].double())
    half = ul.from_native(nn.CrossEntropyLoss(weight.to(torch.bfloat16)))
    assert half.class_weights == (0.10009765625, 2.0)
    with pytest.raises(SpecTypeError, match="positional"):
        ul.from_native(functools.partial(functional.mse_loss, X))
    with pytest.raises(SpecTypeError, match="target is given to the call"):
        ul.from_native(functional.mse_loss, target=X)


@pytest.mark.parametrize("average", [None, True, False])
@pytest.mark.parametrize("reduce", [None, True, False])
@pytest.mark.parametrize(
    "name", ["CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss", "MSELoss"]
)
def test_old_arguments(name: str, average: bool | None, reduce: bool | None) -> None:
    """size_average and reduce give the same reduction as in torch, in text and in objects."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        module = getattr(nn, name)(size_average=average, reduce=reduce, reduction="sum")
    from_text = ul.from_native(
        f"nn.{name}(size_average={average}, reduce={reduce}, reduction='sum')"
    )
    assert ul.from_native(module) == from_text
    assert from_text.reduction == module.reduction
    assert from_text == ul.from_native(f"nn.{name}(reduction={module.reduction!r})")


class Focal(nn.CrossEntropyLoss):
    """A subclass that computes something else."""

    # The name input is torch's.
    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # noqa: A002
        """Square the loss."""
        return super().forward(input, target) ** 2


@pytest.mark.parametrize(
    ("obj", "found"),
    [
        (Focal(), "subclass"),
        (nn.L1Loss(), "L1Loss is another kind of loss"),
        (nn.CrossEntropyLoss, "is a class; call it"),
        (functional.l1_loss, "is another kind of loss"),
        (torch.zeros(2), "is no loss that is known"),
        (nn.Linear(1, 1), "is no loss that is known"),
    ],
)
def test_other_objects_of_torch(obj: Any, found: str) -> None:
    """A subclass, a class or another object of torch is an error."""
    with pytest.raises(SpecTypeError, match=found):
        ul.from_native(obj)


def test_arguments_that_no_spec_takes() -> None:
    """Arguments that no spec can express are errors that name the reason."""
    with pytest.raises(SpecTypeError, match="has its arguments already"):
        ul.from_native(nn.MSELoss(), reduction="sum")
    with pytest.raises(ul.SpecValueError, match="must not be negative"):
        ul.from_native(nn.CrossEntropyLoss(torch.tensor([1.0, -1.0])))
    with pytest.raises(ul.SpecValueError, match="reduction must be one of"):
        ul.from_native(nn.MSELoss(reduction="batchmean"))
    with pytest.raises(ul.UnsupportedError, match="varies along 2 axes"):
        ul.from_native(nn.BCEWithLogitsLoss(pos_weight=torch.ones(2, 3)))
    with pytest.raises(ul.SpecValueError, match="pos_weight must not be empty"):
        ul.from_native(nn.BCEWithLogitsLoss(pos_weight=torch.ones(0)))
    with pytest.raises(ul.SpecValueError, match="label_smoothing"):
        ul.from_native("nn.CrossEntropyLoss(label_smoothing=1.5)")
    with pytest.raises(ul.UnsupportedError, match="takes no sample weights"):
        interop.run(interop.parse("nn.MSELoss()"), X, X, X[:, 0])


def test_half_types() -> None:
    """A spec computes bfloat16 in float32 and rounds once; torch rounds log-softmax as well."""
    row = np.array([[1.0, 3.0, -1.0]])
    call = interop.parse("nn.CrossEntropyLoss(reduction='none')")
    x = torch.tensor(row, dtype=torch.bfloat16)
    native = interop.build(call)(x, torch.tensor([1]))
    own = interop.spec_of(call)(x, torch.tensor([1]))
    assert float(native) == pytest.approx(0.145508, abs=1e-6)
    assert own.dtype is torch.bfloat16
    assert float(own) == float(torch.tensor(0.142932).to(torch.bfloat16))


def test_export_is_plain_and_computes_the_same() -> None:
    """The exported module is torch's own, and has the value and gradient of the spec."""
    spec = ul.CrossEntropyLoss(
        from_logits=True,
        axis=1,
        class_weights=[1, 2, 4],
        ignore_index=-100,
        label_smoothing=0.1,
        divisor="label_weights",
    )
    module = spec.to_native("torch")
    assert type(module) is nn.CrossEntropyLoss
    x = torch.tensor(X, requires_grad=True)
    loss = module(x, torch.tensor(Y))
    loss.backward()
    value, gradient = spec.value_and_grad(torch.tensor(X), torch.tensor(Y))
    torch.testing.assert_close(loss.detach(), value)
    torch.testing.assert_close(x.grad, gradient)


def test_weights_that_mse_loss_takes() -> None:
    """mse_loss takes weights only of the predictions' shape, so they are read but not written.

    The element weights of a spec are also repeated along more axes.
    """
    for weight, shape in ((2.0, (2,)), ([2.0], (2,)), ([1.0, 3.0], (3, 2)), ([[1.0, 3.0]], (3, 2))):
        with pytest.raises(ValueError, match="same size"):
            functional.mse_loss(torch.ones(shape), torch.zeros(shape), weight=torch.tensor(weight))
    for weight in (2.0, [1.0, 3.0]):
        spec = ul.from_native(functional.mse_loss, weight=torch.tensor(weight))
        assert spec(np.ones((3, 2)), np.zeros((3, 2))) == 1.0
        with pytest.raises(
            ul.UnsupportedError, match=r"(?s)predictions' own shape.*spec\.to\('torch'\)"
        ):
            spec.to_native("torch")
    plain = ul.from_native(functional.mse_loss, reduction="sum")
    assert plain.to_native("torch", code=True) == 'torch.nn.MSELoss(reduction="sum")'


def test_weights_for_a_float64_user() -> None:
    """Written weights have torch's default dtype, so in float32 they keep only its digits.

    After .double() a module computes in float64 with the weights rounded to float32.
    """
    spec = ul.from_native("nn.CrossEntropyLoss(weight=[0.1, 1.0, 2.0])")
    x, y = torch.tensor(X, dtype=torch.float64), torch.tensor(Y)
    expected = spec(x, y)
    module = spec.to_native("torch")
    assert module.weight.dtype is torch.float32
    with pytest.raises(RuntimeError, match="expected scalar type Double"):
        module(x, y)
    torch.testing.assert_close(module.double()(x, y), expected, rtol=1e-8, atol=0.0)
    assert module(x, y) != expected
    with default_dtype(torch.float64):
        wide = spec.to_native("torch")
        assert ul.from_native(wide) == spec
        line = spec.to_native("torch", code=True)
        assert type(eval(line, {"torch": torch})) is nn.CrossEntropyLoss  # noqa: S307
    torch.testing.assert_close(wide(x, y), expected, rtol=1e-15, atol=0.0)


def reported(obj: Any, x: Any, t: Any) -> Any:
    """Report on an object and its own spec."""
    return ul.port_report(obj, ul.from_native(obj), x, t)


def test_the_object_itself_is_run() -> None:
    """A report runs the given object, with its weights in their dtype, or the given function."""
    x, ones = np.array([0.3, -2.0]), np.ones(2)
    narrow = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.1]))
    report = reported(narrow, x, ones)
    # By hand: the mean of q log(1 + e^-x) in float64, with q = 1 + (0.1 - 1); torch computes the
    # difference in float32.
    by_hand = (1.0 + float(np.float32(0.1) - np.float32(1.0))) * np.log1p(np.exp(-x)).mean()
    np.testing.assert_allclose(report.value_a, by_hand, rtol=1e-15)
    assert report.value_a == narrow(torch.tensor(x), torch.tensor(ones)).item()
    np.testing.assert_allclose(report.value_b, 0.1 * np.log1p(np.exp(-x)).mean(), rtol=1e-15)
    assert report.rules == ("weight_dtype",)
    assert reported(nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.1]).double()), x, ones).same
    function = functools.partial(functional.mse_loss, weight=torch.tensor([0.1, 0.2]))
    assert reported(function, x, ones).rules == ("weight_dtype",)
    labelled = reported(
        nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 2.0])), X.astype(np.float64), Y
    )
    assert labelled.error_a.startswith("RuntimeError: expected scalar type Double")
    assert labelled.rules == ("weight_dtype",)
    wide = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64))
    assert reported(wide, X.astype(np.float64), Y).same
    assert reported(wide, X, Y).rules == ("weight_dtype",)
    other = ul.port_report(
        wide, ul.from_native(wide).replace(label_smoothing=0.1), X.astype(np.float64), Y
    )
    assert (other.rules, other.row) == (("label_smoothing",), (0,))
    assert wide.reduction == "mean"  # the report changed only a copy to find the row


def test_weight_dtype_is_a_difference() -> None:
    """The diff lists weight_dtype of text and of float32 objects, and not of float64 objects.

    A weight that is exact in float32 makes no difference, unless torch refuses to mix the dtypes.
    """
    for weight, listed in (([0.1], True), ([0.5], False)):
        loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight))
        assert ("weight_dtype" in ul.diff(loss, ul.from_native(loss))) == listed
    wide = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 2.0]).double())
    assert "weight_dtype" not in ul.diff(wide, ul.from_native(wide))
    text = "torch.nn.CrossEntropyLoss(weight=[0.5, 2.0])"
    example = ul.diff(text, ul.from_native(text))["weight_dtype"].example
    assert example is not None
    assert example.a.error.startswith("RuntimeError")


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_are_had_where_they_are_switched_off(off: Any) -> None:
    """A report has gradients even where the caller switches them off."""
    with off():
        report = ul.port_report(nn.CrossEntropyLoss(), "nn.CrossEntropyLoss(reduction='sum')", X, Y)
    assert report.rules == ("reduction",)
    assert report.gap.gradient is not None


def test_modules_that_compute_more_are_refused() -> None:
    """A module with hooks, with its own forward, or with weights without values is an error."""
    hooked, patched = nn.MSELoss(), nn.MSELoss()
    hooked.register_forward_hook(lambda *given: 2 * given[-1])
    patched.forward = lambda a, b: (a - b).sum()  # type: ignore[method-assign]
    for module, words in (
        (hooked, "has hooks"),
        (patched, "a forward of its own"),
        (nn.CrossEntropyLoss(torch.ones(3, device="meta")), "hold no numbers"),
        (nn.CrossEntropyLoss(torch.ones(3).to_sparse()), "hold no numbers"),
    ):
        with pytest.raises(SpecTypeError, match=words):
            ul.from_native(module)
    handle = nn.modules.module.register_module_forward_hook(lambda *given: 2 * given[-1])
    try:
        with pytest.raises(SpecTypeError, match="hooks of all modules"):
            ul.from_native(nn.MSELoss())
    finally:
        handle.remove()
