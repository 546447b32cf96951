"""The PyTorch adapter: modules, training, compilation, torch.func, autocast."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import registry

torch = pytest.importorskip("torch")
CompileCounterWithBackend = importlib.import_module(
    "torch._dynamo.testing"
).CompileCounterWithBackend
pytestmark = pytest.mark.framework("torch")

SPEC = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1, ignore_index=-100)
X = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 3.0, -1.0], [0.5, 0.5, 0.5]])
Y = torch.tensor([0, 1, -100, 2])


def numpy_loss(spec: Any, *tensors: Any, **more: Any) -> float:
    """Compute the loss in NumPy in float64."""
    arrays = [x.detach().double().numpy() if x.is_floating_point() else x.numpy() for x in tensors]
    return float(spec(*arrays, **more))


def test_module_survives() -> None:
    """state_dict, deepcopy, pickle and torch.save keep the module; its state is empty."""
    module = SPEC.to("torch")
    assert isinstance(module, torch.nn.Module)
    assert module.state_dict() == {}
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(3, 3), "loss": module})
    assert set(model.state_dict()) == {"body.weight", "body.bias"}
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),  # noqa: S301
        torch.load(buffer, weights_only=False),
    ]
    for other in copies:
        assert other.spec == SPEC
        assert torch.equal(other(X, Y), module(X, Y))
    assert "label_smoothing=0.1" in repr(module)


def test_training_step() -> None:
    """A linear model learns its training data, and the loss is the one NumPy computes."""
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    y = (x[:, :3] * 3).argmax(1)
    model, loss_of = torch.nn.Linear(5, 3), ul.CrossEntropyLoss(from_logits=True).to("torch")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
    logits = torch.nn.functional.linear(x, *_first_parameters())
    assert abs(losses[0] - numpy_loss(loss_of.spec, logits, y)) < 1e-6


def _first_parameters() -> tuple[Any, Any]:
    torch.manual_seed(0)
    torch.randn(64, 5)
    model = torch.nn.Linear(5, 3)
    return model.weight, model.bias


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_with_other_batch_sizes(reduction: str) -> None:
    """One compiled module serves every batch size without compiling again."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    loss_of = SPEC.replace(reduction=reduction).to("torch")
    compiled = torch.compile(loss_of, backend=counter, fullgraph=True)
    for rows in (4, 5, 6, 7, 8, 9, 10, 11, 12, 13):
        z, y = torch.randn(rows, 3), torch.randint(0, 3, (rows,))
        torch.testing.assert_close(compiled(z, y), loss_of(z, y))
    assert counter.frame_count <= 2
    torch._dynamo.reset()


def test_compiled_bad_label_is_nan() -> None:
    """A bad label in compiled code, which cannot raise for it, poisons only its own position."""
    torch._dynamo.reset()
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="sum")
    z = X.clone().requires_grad_()
    y = torch.tensor([0, 7, 1, 2])
    loss = torch.compile(spec.to("torch"), backend="aot_eager", fullgraph=True)(z, y)
    loss.backward()
    assert loss.isnan()
    assert z.grad[1].isnan().all()
    assert not z.grad[[0, 2, 3]].isnan().any()
    with pytest.raises(ul.BadValueError, match=r"targets\[1\] is 7"):
        spec(X, y)
    torch._dynamo.reset()


def test_compiles_with_a_spec_as_argument() -> None:
    """A spec may be an argument under ``dynamic=True``, where its numbers are symbolic."""
    torch._dynamo.reset()
    spec = ul.CrossEntropyLoss(from_logits=True, ignore_index=(-100, 1), label_smoothing=0.1)
    y = torch.tensor([0, 1, -100, 2])
    eager = spec(X, y)
    compiled = torch.compile(
        lambda spec, z, y: spec(z, y), backend="aot_eager", dynamic=True, fullgraph=True
    )
    torch.testing.assert_close(compiled(spec, X, y), eager)
    torch._dynamo.reset()


def test_compiles_with_companions_of_numpy() -> None:
    """NumPy arrays and lists beside the tensors do not break the graph."""
    torch._dynamo.reset()
    labels, weight = np.array([0, 2, 1, 2]), np.float32([1, 2, 0, 4])
    for y, w in ((labels, weight), (labels.tolist(), weight.tolist())):

        def loss(z: Any, y: Any = y, w: Any = w) -> Any:
            return ul.cross_entropy_loss(z, y, from_logits=True, sample_weight=w)

        eager = loss(X)
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(X), eager)
    torch._dynamo.reset()


def test_label_that_torch_would_ignore() -> None:
    """The label -2^63 is out of range, though torch's kernel gets it as its ignore_index."""
    with pytest.raises(ul.BadValueError, match="targets"):
        ul.CrossEntropyLoss(from_logits=True)(X[:2], torch.tensor([0, -(2**63)]))


# torch implements forward mode through log_softmax with torch.jit; torch.func.hessian uses it.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_torch_func() -> None:
    """torch.func.grad, vmap, jvp and hessian differentiate and map the loss."""
    spec = ul.CrossEntropyLoss(from_logits=True)
    y = torch.tensor([0, 1, 1, 2])
    value, gradient = spec.value_and_grad(X, y)
    torch.testing.assert_close(torch.func.grad(lambda z: spec(z, y))(X), gradient)
    rows = torch.func.vmap(spec)(X, y)
    torch.testing.assert_close(rows.mean(), value)
    _, along = torch.func.jvp(lambda z: spec(z, y), (X,), (torch.ones_like(X),))
    assert abs(along.item()) < 1e-6
    p = torch.softmax(X[0], 0)
    hessian = torch.func.hessian(lambda z: spec(z, y[0]))(X[0])
    torch.testing.assert_close(hessian, torch.diag(p) - torch.outer(p, p))


def test_infinite_binary_logits_in_every_transform() -> None:
    """At an infinite logit the gradient is sigma(z) - t, in backward and in torch.func."""
    spec = ul.BinaryCrossEntropyLoss(from_logits=True, reduction="sum")
    z = torch.tensor([1.0, torch.inf, -torch.inf, torch.inf, 0.0])
    t = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    expected = torch.sigmoid(z) - t
    torch.testing.assert_close(spec.value_and_grad(z, t)[1], expected)
    for transform in (torch.func.grad, torch.func.jacfwd):
        torch.testing.assert_close(transform(lambda x: spec(x, t))(z), expected)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_autocast_changes_nothing(dtype: str) -> None:
    """Under autocast the loss is computed in the same dtype as without it."""
    z = X.to(getattr(torch, dtype))
    without = SPEC(z, Y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = SPEC(z, Y)
        loss = ul.MeanSquaredError()(z, torch.zeros_like(z))
    assert within.dtype == without.dtype
    assert torch.equal(within, without)
    assert torch.equal(loss, ul.MeanSquaredError()(z, torch.zeros_like(z)))


def test_half_predictions() -> None:
    """Half types are computed in float32 and rounded once, and a reduction stays float32."""
    z = torch.tensor([[1.0, 3.0, -1.0]], dtype=torch.bfloat16)
    y = torch.tensor([1])
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="none")
    exact = numpy_loss(spec.replace(reduction="sum"), z.float(), y)
    assert spec(z, y).dtype is torch.bfloat16
    assert spec(z, y).item() == torch.tensor(exact, dtype=torch.float64).to(torch.bfloat16).item()
    assert spec.replace(reduction="mean")(z, y).dtype is torch.float32


def test_memory_layout_and_subclasses() -> None:
    """Slices, transposes, parameters and tensors that need no gradient give the same numbers."""
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="none")
    y = torch.tensor([0, 1, 1, 2])
    wide = torch.stack([X, X + 9], 2)[:, :, 0]
    assert torch.equal(spec(wide, y), spec(X, y))
    assert torch.equal(spec(X.T.contiguous().T, y), spec(X, y))
    assert torch.equal(spec(torch.nn.Parameter(X), y), spec(X, y))
    with torch.inference_mode():
        assert torch.equal(spec(X, y), spec(X.clone(), y))


def test_companions() -> None:
    """NumPy arrays and lists may accompany a tensor; read-only and reversed arrays too."""
    expected = ul.CrossEntropyLoss(from_logits=True)(X, torch.tensor([0, 1, 1, 2]))
    frozen = np.array([0, 1, 1, 2])
    frozen.flags.writeable = False
    for labels in (
        [0, 1, 1, 2],
        frozen,
        np.array([2, 1, 1, 0])[::-1],
        np.array([0, 1, 1, 2], ">i4"),
    ):
        assert torch.equal(ul.cross_entropy_loss(X, labels, from_logits=True), expected)


def test_gradient_reaches_targets_and_weights() -> None:
    """Floating targets and sample weights get gradients, through the divisor as well."""
    z, t = X[:2].clone().requires_grad_(), torch.eye(3)[:2].requires_grad_()
    w = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = ul.CrossEntropyLoss(from_logits=True)(z, t, sample_weight=w)
    loss.backward()
    each = torch.nn.functional.cross_entropy(z, t, reduction="none").detach()
    torch.testing.assert_close(w.grad, (each - loss.detach()) / 4)
    torch.testing.assert_close(
        t.grad, -torch.log_softmax(z.detach(), 1) * torch.tensor([[0.25], [0.75]])
    )


def test_second_derivative() -> None:
    """The loss can be differentiated twice, with create_graph."""
    z = X[0].clone().requires_grad_()
    loss = ul.CrossEntropyLoss(from_logits=True)(z, torch.tensor(0))
    (first,) = torch.autograd.grad(loss, z, create_graph=True)
    (second,) = torch.autograd.grad(first[0], z)
    p = torch.softmax(X[0], 0)
    torch.testing.assert_close(second, p[0] * (torch.eye(3)[0] - p))


def test_meta_and_fake_tensors() -> None:
    """Tensors without values pass through; only their shapes and dtypes are checked."""
    loss = ul.CrossEntropyLoss(from_logits=True)(
        X.to("meta"), torch.tensor([0, 1, 1, 2], device="meta")
    )
    assert loss.is_meta
    assert loss.shape == ()
    with pytest.raises(ul.ShapeError):
        ul.CrossEntropyLoss(from_logits=True)(
            X.to("meta"), torch.zeros(3, dtype=torch.int64, device="meta")
        )


def test_gradient_in_inference_mode() -> None:
    """value_and_grad works in inference mode, and outside of it with tensors made there."""
    spec = ul.CrossEntropyLoss(from_logits=True)
    y = torch.tensor([0, 1, 1, 2])
    value, gradient = spec.value_and_grad(X, y)
    with torch.inference_mode():
        inference = X.clone(), y.clone()
        for z, labels in ((X, y), inference):
            torch.testing.assert_close(spec.value_and_grad(z, labels), (value, gradient))
    torch.testing.assert_close(spec.value_and_grad(*inference), (value, gradient))


@pytest.mark.parametrize(
    "spec",
    [
        ul.CrossEntropyLoss(from_logits=True),
        ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1),
        ul.BinaryCrossEntropyLoss(from_logits=True),
        ul.MeanSquaredError(),
    ],
    ids=repr,
)
def test_companions_made_in_inference_mode(spec: Any) -> None:
    """Targets and weights that were made in inference mode work in a training step."""
    with torch.inference_mode():
        t, w = torch.softmax(X, 1).flip(0), torch.tensor([1.0, 0.0, 2.0, 3.0])
    for weight in (None, w):
        z, other = X.clone().requires_grad_(), X.clone().requires_grad_()
        spec(z, t, sample_weight=weight).backward()
        spec(other, t.clone(), sample_weight=None if weight is None else weight.clone()).backward()
        assert z.grad.abs().sum() > 0
        torch.testing.assert_close(z.grad, other.grad)


def _exported(spec: Any, z: Any, t: Any) -> Any:
    rows = torch.export.Dim("rows")
    return torch.export.export(
        spec.to("torch"), (z, t), dynamic_shapes=({0: rows}, {0: rows}), strict=False
    ).module()


@pytest.mark.parametrize("on_empty", ["nan", "zero"])
@pytest.mark.parametrize(
    "spec",
    [
        ul.CrossEntropyLoss(from_logits=True),
        ul.CrossEntropyLoss(from_logits=True, ignore_index=1),
        ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=2.0),
        ul.MeanSquaredError(),
    ],
    ids=repr,
)
def test_exports_with_any_batch_size(spec: Any, on_empty: Any) -> None:
    """Programs of torch.export and make_fx divide by each call's own number of positions."""
    spec = spec.replace(on_empty=on_empty)
    t = torch.tensor([0, 1, 1, 2]) if isinstance(spec, ul.CrossEntropyLoss) else torch.softmax(X, 1)
    traced = importlib.import_module("torch.fx.experimental.proxy_tensor").make_fx(
        spec, tracing_mode="symbolic"
    )(X, t)
    for function in (_exported(spec, X, t), traced):
        for rows in (2, 3, 4):
            torch.testing.assert_close(function(X[:rows], t[:rows]), spec(X[:rows], t[:rows]))
    torch.testing.assert_close(traced(X[:0], t[:0]), spec(X[:0], t[:0]), equal_nan=True)


def test_other_tracers() -> None:
    """make_fx with static shapes works; torch.jit.trace, which would freeze the divisor, raises."""
    spec, y = ul.CrossEntropyLoss(from_logits=True), torch.tensor([0, 1, 1, 2])
    traced = importlib.import_module("torch.fx.experimental.proxy_tensor").make_fx(spec)(X, y)
    torch.testing.assert_close(traced(X + X, y), spec(X + X, y))
    with (
        pytest.warns(DeprecationWarning, match="jit"),
        pytest.raises(ul.UnsupportedError, match="use torch"),
    ):
        torch.jit.trace(spec.to("torch"), (X, y))
    assert spec(X, y).isfinite()


def test_companions_of_unusual_strides() -> None:
    """A NumPy axis of length 1 may have any stride, such as a negative one or a record's."""
    spec = ul.CrossEntropyLoss(from_logits=True)
    record = np.zeros(1, dtype=[("a", "i1"), ("b", "f4")])
    record["b"] = 1.0
    label = np.array([[1]])[::-1][:, 0]
    for weight in (
        np.ones(1, np.float32)[::-1],
        np.ones((3, 1), np.float32)[::-1][:, 0][:1],
        record["b"],
    ):
        assert torch.equal(spec(X[:1], label, sample_weight=weight), spec(X[:1], Y[1:2]))


def test_negated_views() -> None:
    """A view that torch negates or conjugates lazily is read with its resolved values."""
    z, t = torch.tensor([1 + 2j, 1 - 3j, 1j]).conj().imag, torch.ones(3)
    assert z.is_neg()
    assert torch.equal(ul.MeanSquaredError()(z, t), ul.MeanSquaredError()(z.resolve_neg(), t))
    many = torch._neg_view(-torch.ones(1 << 15))
    weight = torch._neg_view(-torch.rand(1 << 15))
    spec = ul.BinaryCrossEntropyLoss(from_logits=True)
    for w, resolved in ((None, None), (weight, weight.resolve_neg())):
        assert torch.equal(
            spec(many, many, sample_weight=w),
            spec(many.resolve_neg(), many.resolve_neg(), sample_weight=resolved),
        )


def test_value_and_grad_in_torch_func() -> None:
    """Under torch.func, value_and_grad can be differentiated and mapped."""
    spec, y = ul.CrossEntropyLoss(from_logits=True), torch.tensor([0, 1, 1, 2])
    _, gradient = spec.value_and_grad(X, y)
    torch.testing.assert_close(torch.func.grad(lambda z: spec.value_and_grad(z, y)[0])(X), gradient)
    mapped = torch.func.vmap(lambda z, label: spec.value_and_grad(z, label, upstream=0.25)[1])(X, y)
    torch.testing.assert_close(mapped, gradient)
    along = torch.func.grad(lambda z: spec.value_and_grad(z, y)[1].square().sum())(X)
    z = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(spec(z, y), z, create_graph=True)
    torch.testing.assert_close(along, torch.autograd.grad(first.square().sum(), z)[0])


# torch warns that its compressed layouts are in beta.
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_dense_tensors_are_needed() -> None:
    """Sparse, nested and MKL-DNN tensors are refused in every argument, with a remedy."""
    dense = torch.softmax(X, 1)
    nested = torch.nested.nested_tensor([X, X[:2]])
    specs = (
        ul.CrossEntropyLoss(from_logits=True),
        ul.BinaryCrossEntropyLoss(from_logits=True),
        ul.MeanSquaredError(),
    )
    for spec in specs:
        for z, t, w in (
            (X.to_sparse(), dense, None),
            (X, dense.to_sparse_csr(), None),
            (X, dense, torch.ones(4).to_sparse()),
            (nested, nested, None),
            (X.to_mkldnn(), dense, None),
        ):
            with pytest.raises(ul.UnknownTensorError, match="a dense tensor is needed"):
                spec(z, t, sample_weight=w)
    with pytest.raises(ul.UnknownTensorError, match="a dense tensor is needed"):
        ul.CrossEntropyLoss(from_logits=True)(X, Y.to_sparse())


@pytest.mark.parametrize("rounding", ["native", "exact"])
def test_devices(rounding: str) -> None:
    """Tensors on the device meta give shapes; a mix of devices is an error that names the tensor.

    Exact mode once read the memory of a tensor on another device as if it were on the host.
    """
    spec = ul.CrossEntropyLoss(from_logits=True, rounding=rounding)
    z, y, w = X.to("meta"), Y.clamp(min=0).to("meta"), torch.ones(4)
    value, gradient = spec.value_and_grad(z, y, sample_weight=w.to("meta"))
    assert (value.device.type, value.shape, gradient.shape) == ("meta", (), (4, 3))
    assert spec.replace(reduction="none")(z, [0, 1, 1, 2]).shape == (4,)
    for call, found in (
        (lambda: spec(z, Y), "targets is on the device cpu, and predictions are on meta"),
        (lambda: spec(X, y), "targets is on the device meta, and predictions are on cpu"),
        (lambda: spec(z, y, sample_weight=w), "sample_weight is on the device cpu"),
        (lambda: spec(z, y, mask=w > 0), "mask is on the device cpu"),
        (lambda: ul.check(spec, z, Y), "targets is on the device cpu"),
        (lambda: ul.check(spec, z, y), "device meta has no values to read"),
        (lambda: ul.mean_squared_error(X, z, rounding=rounding), "targets is on the device meta"),
    ):
        with pytest.raises(ul.UnsupportedError, match=found):
            call()


@pytest.mark.parametrize("rounding", ["native", "exact"])
@pytest.mark.slow("the exact mode, whose adapter is imported in the same way", only=["native"])
def test_first_use_in_a_compiled_function(rounding: str) -> None:
    """A process may use the library first while torch.compile traces one whole graph.

    Under ``dynamic=True`` a trace of exact mode begins twice, and must take the same path.
    """
    program = f"""
import torch
import unifiedloss as ul

spec = ul.CrossEntropyLoss(from_logits=True, rounding={rounding!r})

def loss(z, y):
    return spec(z, y)

z, y = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 1])
print(torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)(z, y).item())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(0.907606, abs=1e-6)


# torch's own trace of a forward derivative uses torch.jit.script.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode_in_a_compiled_program() -> None:
    """torch.func.jvp inside torch.compile, and dual numbers given to it, have eager derivatives."""
    spec, targets, along = ul.MeanSquaredError(), X.flip(0), torch.arange(12.0).reshape(4, 3)

    def jvp(x: Any, tangent: Any) -> Any:
        return torch.func.jvp(lambda z: spec(z, targets), (x,), (tangent,))[1]

    wanted = jvp(X, along)
    assert wanted != 0
    torch.testing.assert_close(torch.compile(jvp, backend="aot_eager")(X, along), wanted)
    loss = torch.compile(lambda x: spec(x, targets), backend="aot_eager", fullgraph=True)
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(X, along))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, wanted)


def test_inductor_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C++ compiler the mode "inductor" names it; the other modes need none."""
    assert registry.adapter("torch").modes()["inductor"].missing is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    missing = {name: mode.missing for name, mode in registry.adapter("torch").modes().items()}
    assert "'no-such-compiler' is not installed" in str(missing.pop("inductor"))
    assert set(missing.values()) == {None}
