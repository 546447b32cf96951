"""Exact mode on PyTorch: the bits of NumPy's exact mode, eager, compiled and under torch.func."""

from __future__ import annotations

import copy
import importlib
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul

torch = pytest.importorskip("torch")
importlib.import_module("torch.utils.checkpoint")
pytestmark = pytest.mark.framework("torch")

SPEC = ul.CrossEntropyLoss(
    from_logits=True, label_smoothing=0.1, ignore_index=-100, rounding="exact"
)
INDEX = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
X = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 3.0, -1.0], [0.5, 0.25, 0.5]])
Y = torch.tensor([0, 1, -100, 2])
LABELS = torch.tensor([0, 1, 1, 2])
SUBNORMAL = 27  # e^-100 = 3.72e-44, rounded to units of 2^-149


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Give each test an empty compilation cache."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Any, backend: str = "aot_eager", **options: Any) -> Any:
    """Compile a function as a single graph."""
    return torch.compile(function, backend=backend, fullgraph=True, **options)


def bits(x: Any) -> tuple[Any, ...]:
    """Dtype, shape and bits of a tensor."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.dtype, tuple(x.shape), x.detach().contiguous().view(integers).tolist()


def step(loss_of: Any, z: Any, *tensors: Any, upstream: Any = None, **more: Any) -> tuple[Any, Any]:
    """Bits of the loss and of its gradient from autograd."""
    z = z.detach().requires_grad_()
    value = loss_of(z, *tensors, **more)
    (gradient,) = torch.autograd.grad(
        value, z, None if upstream is None else torch.as_tensor(upstream).to(value.dtype)
    )
    return bits(value), bits(gradient)


def expected(
    spec: Any, z: Any, *tensors: Any, upstream: Any = None, **more: Any
) -> tuple[Any, Any]:
    """Bits of NumPy's loss and gradient."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = z.dtype is torch.bfloat16
    array = z.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if half else z.numpy()
    more = {name: x.numpy() for name, x in more.items()}
    if upstream is not None:
        upstream = np.asarray(torch.as_tensor(upstream), np.float32).astype(array.dtype)
    pair = spec.value_and_grad(array, *(x.numpy() for x in tensors), upstream=upstream, **more)
    adapter = importlib.import_module("unifiedloss.adapters.torch").ADAPTER
    value, gradient = (adapter.convert(np.asarray(x), None) for x in pair)
    return bits(value), bits(gradient)


CASES: dict[str, tuple[Any, ...]] = {
    "mean": (SPEC, X, Y, {}),
    "mean, upstream 0.3": (SPEC, X, Y, {"upstream": 0.3}),
    "none, upstream": (SPEC.replace(reduction="none"), X, Y, {"upstream": [0.3, -1.0, 2.0, 1e-40]}),
    "sum, weights": (
        INDEX.replace(reduction="sum"),
        X,
        LABELS,
        {"sample_weight": torch.tensor([0.1, 0.0, 3.0, 0.7])},
    ),
    "dense, mask": (
        SPEC.replace(class_weights=(1, 0.3, 2)),
        X,
        torch.softmax(X.flip(1), 1),
        {"mask": torch.tensor([True, True, False, True])},
    ),
    "binary": (
        ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=0.3, rounding="exact"),
        X,
        X.sigmoid(),
        {},
    ),
    "squared error, float64": (ul.MeanSquaredError(rounding="exact"), X.double() / 3, X / 7, {}),
    "bfloat16, none": (
        INDEX.replace(reduction="none"),
        X.bfloat16(),
        LABELS,
        {"upstream": [0.3, 1.0, 2.0, -1.0]},
    ),
    "bfloat16, mean": (INDEX, X.bfloat16(), LABELS, {}),
    "float16": (INDEX.replace(reduction="none"), X.half() * 5, LABELS, {}),
    "scalar, bfloat16": (
        ul.MeanSquaredError(reduction="none", rounding="exact"),
        X[0, 0].bfloat16(),
        torch.tensor(0.3),
        {},
    ),
    "transposed": (INDEX.replace(axis=0), X.T, LABELS, {}),
    "every second": (INDEX, torch.stack([X, X + 9], 2)[:, :, 0], LABELS, {}),
    "subnormal": (INDEX, torch.tensor([[100.0, 0.0]]), torch.tensor([0]), {}),
    "empty": (INDEX.replace(on_empty="zero"), X[:0], LABELS[:0], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_bits_of_numpy(name: str) -> None:
    """Loss and gradient have NumPy's bits, dtypes and shapes, eager and compiled."""
    spec, z, targets, more = CASES[name]
    wanted = expected(spec, z, targets, **more)
    if more.get("upstream") is None and spec.reduction == "none":
        more = {**more, "upstream": torch.ones(wanted[0][1])}
    assert step(spec, z, targets, **more) == wanted
    assert step(compiled(spec.to("torch")), z, targets, **more) == wanted


WIDE = {
    "one": (INDEX, X, 1.00000006),
    "integer": (INDEX, X, 2**53 + 1),
    "each": (INDEX.replace(reduction="none"), X.half(), np.float32([1.4777e-7, 1.0002, -3, 7e4])),
}


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("way", ["eager", "compiled", "vmap"])
def test_upstream_of_another_dtype(name: str, way: str) -> None:
    """value_and_grad takes all digits of the upstream gradient, where autograd rounds it."""
    spec, z, upstream = WIDE[name]
    given = torch.as_tensor(np.asarray(upstream))

    def function(z: Any) -> Any:
        return spec.value_and_grad(z, LABELS, upstream=given)

    if way == "compiled":
        function = compiled(function)
    elif way == "vmap":  # a transform of torch.func
        function = torch.func.vmap(function)
        z = z[None]
    wanted = spec.value_and_grad(z.numpy().reshape(4, 3), LABELS.numpy(), upstream=upstream)
    value, gradient = function(z)
    assert not value.requires_grad
    np.testing.assert_array_equal(value.numpy().ravel(), np.ravel(wanted[0]))
    np.testing.assert_array_equal(gradient.numpy().reshape(4, 3), wanted[1])


def test_inductor() -> None:
    """Inductor, torch's default compiler, keeps the bits in a larger graph, subnormals included."""
    y = torch.tensor([0, 1, 1, 1])

    def loss_of(z: Any) -> Any:
        return INDEX.replace(reduction="none")(z.T * 2, y)

    z = torch.tensor([[50.0, 0.5, -1.0, 3.0], [0.0, 0.25, 2.0, -4.0]])
    function = compiled(loss_of, "inductor")
    assert step(function, z, upstream=[0.3, 1.0, 2.0, -1.0]) == step(
        loss_of, z, upstream=[0.3, 1.0, 2.0, -1.0]
    )
    assert function(z).view(torch.int32)[0].item() == SUBNORMAL


def test_subnormal_loss_survives_compilation() -> None:
    """The loss of logits (100, 0), 3.8e-44, is subnormal and has the right bits when compiled."""
    z, y = torch.tensor([[100.0, 0.0]]), torch.tensor([0])
    for loss_of in (INDEX, compiled(INDEX.to("torch"))):
        assert loss_of(z, y).view(torch.int32).item() == SUBNORMAL


def test_flushed_subnormals() -> None:
    """Exact results keep subnormal numbers though the user's thread makes torch flush them."""
    results: dict[str, Any] = {}
    each = INDEX.replace(reduction="none")

    def flushed() -> None:  # the setting belongs to the thread
        assert torch.set_flush_denormal(True)
        z = torch.tensor([[100.0, 0.0]])
        results["flushes"] = (torch.tensor([1e-30]) * 1e-15).view(torch.int32).item()
        for name, x in (("float32", z), ("bfloat16", z.bfloat16())):
            value, gradient = each.value_and_grad(x, torch.tensor([0]), upstream=[1.0])
            results[name] = [
                t.view({2: torch.int16, 4: torch.int32}[t.element_size()])
                for t in (value, gradient)
            ]

    thread = threading.Thread(target=flushed)
    thread.start()
    thread.join()
    if results["flushes"] != 0:
        pytest.skip("this processor flushes nothing")
    assert results["float32"][0].item() == SUBNORMAL
    assert results["float32"][1].abs().tolist()[0][1] == SUBNORMAL
    # 3.8e-44 is less than half of the smallest bfloat16, 9.2e-41.
    assert results["bfloat16"][0].item() == 0
    tiny = torch.tensor([3], dtype=torch.int16).view(torch.bfloat16)
    squared = ul.MeanSquaredError(reduction="none", rounding="exact")

    def read() -> None:
        torch.set_flush_denormal(True)
        upstream = torch.ones(1).bfloat16()
        results["read"] = squared.value_and_grad(tiny, torch.zeros(1), upstream=upstream)[1]

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert results["read"].view(torch.int16).item() == 6


# torch 2.13's dynamo reads `.grad` of a tensor that is no leaf; native mode gives this warning too.
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
)
def test_training() -> None:
    """A model learns, and its losses and weights have the same bits eager and compiled."""
    torch.manual_seed(0)
    x = torch.randn(12, 4)
    y = (x[:, :3] * 3).argmax(1)
    start = torch.nn.Linear(4, 3)
    runs = []
    for loss_of in (INDEX.to("torch"), compiled(INDEX.to("torch"))):
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        runs.append((losses, bits(model.weight)))
    assert runs[0] == runs[1]


def test_module_survives() -> None:
    """The module copies, pickles and compiles; its state is empty."""
    module = SPEC.to("torch")
    assert isinstance(module, torch.nn.Module)
    assert module.state_dict() == {}
    wanted = bits(module(X, Y))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301
        assert other.spec == SPEC
        other.load_state_dict(module.state_dict())
        assert bits(other(X, Y)) == wanted
        assert bits(compiled(other)(X, Y)) == wanted


def test_kept_graph() -> None:
    """Changing a returned gradient in place does not change a later one from the same graph."""
    z = X.clone().requires_grad_()
    loss = SPEC(z, Y)
    wanted = step(SPEC, X, Y)[1]
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    assert bits(first) == wanted
    first.zero_()
    loss.backward(retain_graph=True)
    z.grad.zero_()
    loss.backward()
    assert bits(z.grad) == wanted


def test_settings_change_nothing() -> None:
    """Autocast, checkpointing, inference mode and no_grad give the same bits."""
    value, gradient = step(SPEC, X, Y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert step(SPEC, X, Y) == (value, gradient)
        assert step(compiled(SPEC.to("torch")), X, Y) == (value, gradient)
    for reentrant in (False, True):
        z = X.clone().requires_grad_()
        torch.utils.checkpoint.checkpoint(
            lambda z: SPEC(z * 1, Y), z, use_reentrant=reentrant
        ).backward()
        assert bits(z.grad) == gradient
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert bits(SPEC(X.clone().requires_grad_(), Y)) == value
    assert not SPEC(X, Y).requires_grad


def test_torch_func() -> None:
    """torch.func differentiates by the predictions and maps over rows; a bad value gives NaN."""
    gradient = step(INDEX, X, LABELS)[1]
    assert bits(torch.func.grad(INDEX)(X, LABELS)) == gradient
    assert bits(torch.func.vjp(lambda z: INDEX(z, LABELS), X)[1](torch.tensor(1.0))[0]) == gradient
    each = INDEX.replace(reduction="none")
    assert bits(torch.func.vmap(INDEX)(X, LABELS)) == bits(each(X, LABELS))
    rows = torch.func.vmap(torch.func.grad(INDEX))(X, LABELS)
    assert bits(rows) == step(each, X, LABELS, upstream=torch.ones(4))[1]
    assert bits(torch.func.grad(lambda z: torch.func.vmap(INDEX)(z, LABELS).sum())(X)) == bits(rows)
    assert bits(torch.func.jacrev(lambda z: each(z, LABELS))(X).sum(0)) == bits(rows)
    assert bits(compiled(torch.func.vmap(INDEX))(X, LABELS)) == bits(each(X, LABELS))
    z = X.clone().requires_grad_()
    (batch,) = torch.autograd.grad(
        INDEX(z, LABELS), z, torch.tensor([1.0, 0.3]), is_grads_batched=True
    )
    assert bits(batch[1]) == step(INDEX, X, LABELS, upstream=0.3)[1]
    assert torch.func.grad(INDEX)(X, LABELS + 1)[3].isnan().all()


@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_with_other_sizes_and_specs(dynamic: bool | None) -> None:
    """Another batch size does not recompile; another spec does, and gets its own results."""
    counter = importlib.import_module("torch._dynamo.testing").CompileCounterWithBackend(
        "aot_eager"
    )
    loss_of = SPEC.to("torch")
    function = torch.compile(loss_of, backend=counter, fullgraph=True, dynamic=dynamic)
    for rows in range(4, 9):
        z, y = torch.randn(rows, 3), torch.randint(0, 3, (rows,))
        assert step(function, z, y) == step(loss_of, z, y)
    assert counter.frame_count <= 2
    call = compiled(lambda spec, z, y: spec(z, y), dynamic=dynamic)
    for label, smoothing, weights in (
        (-100, 0.1, None),
        (-100, 0.2, None),
        (2, 0.3, (1, 0.3, 2)),
        (1, 0.3, (1, 3, 0)),
    ):
        # `resolve` cannot read symbolic numbers in a tuple, in native mode either.
        labels = None if dynamic else label
        spec = INDEX.replace(ignore_index=labels, label_smoothing=smoothing, class_weights=weights)
        assert bits(call(spec, X, LABELS)) == bits(spec(X, LABELS))


def test_compiled_function_makes_its_spec() -> None:
    """A compiled function can make the spec, and pass arrays and lists beside the tensors."""

    def loss(z: Any) -> Any:
        return ul.cross_entropy_loss(
            z,
            [0, 1, 1, 2],
            from_logits=True,
            label_smoothing=0.3,
            rounding="exact",
            sample_weight=np.float32([1, 2, 0, 4]),
        )

    assert step(compiled(loss), X) == step(loss, X)


def test_fake_and_exported() -> None:
    """Tensors without values pass through, and torch.export keeps the operator and its bits."""
    loss = SPEC(X.to("meta").requires_grad_(), Y.to("meta"))
    assert loss.is_meta
    assert loss.shape == ()
    loss.backward()
    with pytest.raises(ul.ShapeError):
        SPEC(X.to("meta"), Y[:3].to("meta"))
    exported = torch.export.export(SPEC.to("torch"), (X, Y))
    assert bits(exported.module()(X, Y)) == bits(SPEC(X, Y))


def test_operators_keep_torchs_rules() -> None:
    """The operators pass torch.library.opcheck."""
    written = importlib.import_module("unifiedloss.adapters.torch.spec_text")
    text = written.text_of(SPEC)
    for z in (X, X.bfloat16().T.contiguous().T):
        given = (z.clone().requires_grad_(), Y, None, None, text, True)
        torch.library.opcheck(torch.ops.unifiedloss.exact.default, given)
        given = (torch.tensor(1.0), torch.zeros_like(z), z, Y, None, None, text)
        torch.library.opcheck(torch.ops.unifiedloss.exact_gradient.default, given)


def test_bad_values() -> None:
    """A bad value raises in eager calls; compiled, only its position and gradient are NaN."""
    bad = torch.tensor([0, 7, 1, 2])
    with pytest.raises(ul.BadValueError, match=r"targets\[1\] is 7"):
        INDEX(X, bad)
    z = X.clone().requires_grad_()
    value = compiled(INDEX.replace(reduction="none").to("torch"))(z, bad)
    value.sum().backward()
    assert value.isnan().tolist() == [False, True, False, False]
    assert z.grad.isnan().all(1).tolist() == [False, True, False, False]
    empty = INDEX.replace(on_empty="error")
    with pytest.raises(ul.EmptyMeanError):
        empty(X[:0], LABELS[:0])
    assert compiled(empty.to("torch"))(X[:0], LABELS[:0]).isnan()


@pytest.mark.parametrize("retained", [False, True])
def test_an_upstream_gradient_next_to_1_is_not_1(retained: bool) -> None:
    """Only for the upstream gradient 1 may the gradient computed ahead be returned."""
    above = 1 + 2.0**-23
    z = X.clone().requires_grad_()
    INDEX(z, LABELS).backward(torch.tensor(above), retain_graph=retained)
    _, wanted = INDEX.value_and_grad(X.numpy(), LABELS.numpy(), upstream=above)
    assert z.grad.tolist() == wanted.tolist()
    assert z.grad.tolist() != INDEX.value_and_grad(X, LABELS)[1].tolist()
