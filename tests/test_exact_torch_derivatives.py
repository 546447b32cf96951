"""Derivatives of exact mode on PyTorch: the first one exact, all others as in native mode."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

import unifiedloss as ul

torch = pytest.importorskip("torch")
importlib.import_module("torch.utils.checkpoint")
forward_ad = torch.autograd.forward_ad
func = torch.func
pytestmark = [
    pytest.mark.framework("torch"),
    # torch implements forward mode through log_softmax with torch.jit.
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

X = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 3.0, -1.0], [0.5, 0.25, 0.5]])
V = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 3.0], [-1.0, 0.25, 2.0], [0.5, 1.5, -0.5]])
LABELS = torch.tensor([0, 1, 1, 2])
DENSE = torch.softmax(V, 1)
WEIGHT = torch.tensor([0.1, 2.0, 3.0, 0.7])
MASK = torch.tensor([True, True, False, True])
INDEX = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
NATIVE = INDEX.replace(rounding="native")

# Each with its predictions, its targets, and the rest of the call.
CASES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "index, mean": (INDEX, X, LABELS, {}),
    "index, none": (
        INDEX.replace(reduction="none", label_smoothing=0.1, class_weights=(1, 0.3, 2)),
        X,
        LABELS,
        {"sample_weight": WEIGHT, "mask": MASK},
    ),
    "dense, mean over weights": (
        INDEX.replace(class_weights=(1, 0.3, 2), divisor="weights"),
        X,
        DENSE,
        {"sample_weight": WEIGHT},
    ),
    "binary, mean over weights": (
        ul.BinaryCrossEntropyLoss(from_logits=True, divisor="weights", rounding="exact"),
        X,
        DENSE,
        {"sample_weight": WEIGHT, "mask": MASK},
    ),
    "binary, averaged": (
        ul.BinaryCrossEntropyLoss(
            from_logits=False, average_last_axis=True, reduction="none", rounding="exact"
        ),
        DENSE.flip(1),
        DENSE,
        {"sample_weight": WEIGHT},
    ),
    "squared error, sum": (
        ul.MeanSquaredError(reduction="sum", rounding="exact"),
        X,
        V,
        {"sample_weight": WEIGHT},
    ),
    "huber": (ul.HuberLoss(rounding="exact"), X, V * 0.9, {"sample_weight": WEIGHT}),
    "log-probabilities": (
        ul.NegativeLogLikelihoodLoss(rounding="exact"),
        X.log_softmax(1),
        LABELS,
        {"sample_weight": WEIGHT},
    ),
    "given divisor": (INDEX, X, DENSE, {"sample_weight": WEIGHT, "divisor": 7.5}),
}


def both(name: str) -> tuple[Callable[..., Any], Callable[..., Any], list[Any]]:
    """The exact and the native loss of a case as scalar functions of its floating tensors."""
    spec, z, targets, more = CASES[name]
    weight = more.get("sample_weight")
    tensors = [x for x in (z, targets, weight) if x is not None and x.is_floating_point()]

    def made(rounding: str) -> Callable[..., Any]:
        chosen = spec.replace(rounding=rounding)

        def function(z: Any, *rest: Any) -> Any:
            given = dict(more)
            t, *rest = (*rest,) if targets.is_floating_point() and rest else (targets, *rest)
            if rest:
                given["sample_weight"] = rest[0]
            value = chosen(z, t, **given)
            return value if value.ndim == 0 else (value * torch.arange(1.0, len(value) + 1)).sum()

        return function

    return made("exact"), made("native"), tensors


def leaves(tensors: list[Any]) -> list[Any]:
    """Fresh copies that require gradients."""
    return [x.detach().clone().requires_grad_() for x in tensors]


def gradient_of(loss: Callable[..., Any], z: Any, **more: Any) -> Any:
    """The gradient to predictions alone, from autograd."""
    (z,) = leaves([z])
    return torch.autograd.grad(loss(z), z, **more)[0]


def near(found: Any, wanted: Any) -> None:
    """Assert that nested derivatives are close to native ones, of which some are sums."""
    if isinstance(wanted, tuple | list):
        for x, y in zip(found, wanted, strict=True):
            near(x, y)
        return
    torch.testing.assert_close(
        found.detach(), wanted.detach(), rtol=2e-6, atol=2e-6, equal_nan=True, check_stride=False
    )


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The native evaluations that are made, by either way that native mode has."""
    adapter = importlib.import_module("unifiedloss.adapters.torch")
    calls: list[str] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **more: Any) -> Any:
            calls.append(call.__name__)
            return call(*args, **more)

        return counting

    for owner, name in (
        (adapter.TorchAdapter, "compute"),
        (adapter.kernels, "fused_loss"),
        (adapter.kernels, "fused_gradient"),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return calls


@pytest.mark.parametrize("name", CASES)
def test_first_gradients_need_no_native_call(name: str, native_calls: list[str]) -> None:
    """Value and gradient are exact, the same bits in every way, and nothing native is computed."""
    exact, _, (z, *_) = both(name)
    wanted = gradient_of(exact, z)
    with torch.no_grad():
        value = exact(z)
    (a,) = leaves([z])
    loss = exact(a)
    (recorded,) = torch.autograd.grad(loss, a, create_graph=True)
    assert recorded.requires_grad
    assert torch.equal(recorded, wanted)
    with torch.no_grad():  # what was returned may be changed, and later gradients stay
        recorded.zero_()
    for keep in (True, False):
        (again,) = torch.autograd.grad(loss, a, create_graph=keep)
        assert torch.equal(again, wanted)
    assert torch.equal(loss, value)
    for found in (func.grad(exact)(z), func.jacrev(exact)(z)):
        assert torch.equal(found, wanted)
    spec, _, targets, more = CASES[name]
    each = func.jacrev(lambda z: spec(z, targets, **more))(z)
    assert torch.equal(func.jacfwd(lambda z: spec(z, targets, **more))(z), each)
    assert each.ndim > z.ndim or torch.equal(each, wanted)
    some = torch.stack([z, z.flip(0)])
    each = torch.stack([wanted, gradient_of(exact, z.flip(0))])
    assert torch.equal(func.vmap(func.grad(exact))(some), each)
    assert torch.equal(func.grad(lambda s: func.vmap(exact)(s).sum())(some), each)
    upstream = torch.ones(spec(z, targets, **more).shape)
    assert spec.value_and_grad(z, targets, upstream=upstream, **more)[1].isfinite().all()
    assert not native_calls
    (recorded,) = torch.autograd.grad(exact(a), a, create_graph=True)
    torch.autograd.grad(recorded.sum(), a)
    assert native_calls


INFINITE = X.masked_fill(X == 3, -torch.inf)  # that of a label, so the loss is infinite too

PLAIN: dict[str, tuple[Any, Any, Any, bool]] = {
    "index": (INDEX, X, LABELS, True),
    "index, last axis": (INDEX.replace(axis=-1, reduction="sum"), X[None], LABELS[None], True),
    "dense": (INDEX, X, V.abs(), True),
    "binary": (ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact"), X, DENSE, True),
    "binary, infinite": (
        ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact"),
        INFINITE,
        DENSE,
        False,
    ),
    "squared error": (ul.MeanSquaredError(rounding="exact"), X, V, True),
    "index, infinite": (INDEX, INFINITE, LABELS, False),
    "dense, infinite": (INDEX, INFINITE, V.abs(), False),
    "smoothing": (INDEX.replace(label_smoothing=0.1), X, LABELS, False),
}
"""Calls without weights, and whether their second derivative needs no native loss."""


@pytest.mark.parametrize("name", PLAIN)
def test_second_derivatives_without_a_loss(name: str, native_calls: list[str]) -> None:
    """The derivatives of a plain gradient, by every argument, are native ones, mostly for less."""
    spec, z, targets, is_short = PLAIN[name]
    found = []
    for rounding in ("exact", "native"):
        a, *t = leaves([z, *[targets] * targets.is_floating_point()])
        loss = spec.replace(rounding=rounding)(a, *(t or [targets]))
        (u,) = leaves([torch.tensor(0.3)])
        (slope,) = torch.autograd.grad(loss, a, u, create_graph=True)
        native_calls.clear()
        some = torch.autograd.grad(slope, [a, u, *t], V.expand_as(z), create_graph=True)
        if rounding == "exact":
            assert (set(native_calls) == {"fused_gradient"}) == is_short
        found.append([*some, *torch.autograd.grad(some[0].sum(), [a, u], materialize_grads=True)])
    near(*found)


@pytest.mark.parametrize("name", CASES)
def test_further_derivatives(name: str) -> None:
    """Gradients to all floating tensors, second and third derivatives, in both modes, as native."""
    exact, native, tensors = both(name)
    places = tuple(range(len(tensors)))
    directions = [x.flip(0) * 0.5 for x in tensors]

    def derivatives(loss: Callable[..., Any]) -> list[Any]:
        """Of order one to three along directions, by tensors and upstream gradient."""
        every = [*leaves(tensors), torch.tensor(0.3, requires_grad=True)]
        *given, upstream = every
        first = torch.autograd.grad(loss(*given), given, upstream, create_graph=True)
        second = torch.autograd.grad(first, every, directions, create_graph=True)
        along = [*directions, torch.tensor(0.0)]
        return [first, second, torch.autograd.grad(second, every, along)]

    near(derivatives(exact), derivatives(native))
    wanted = gradient_of(exact, tensors[0])
    # The exact gradient stays what it is beside native ones, which are native's own bits.
    given = leaves(tensors)
    first, *rest = torch.autograd.grad(exact(*given), given)
    assert torch.equal(first, wanted)
    natively = torch.autograd.grad(native(*given), given)
    for x, y in zip(rest, natively[1:], strict=True):
        assert torch.equal(x, y)
    hessian = func.jacrev(func.jacrev(native, places), places)(*tensors)
    for outer in (func.jacfwd, func.jacrev):
        for inner in (func.jacfwd, func.jacrev):
            if name.startswith("binary") and outer is inner is func.jacfwd:
                continue  # torch's own kernel refuses it (pytorch#123996)
            near(outer(inner(exact, places), places)(*tensors), hessian)
    near(
        func.jvp(exact, tuple(tensors), tuple(directions)),
        func.jvp(native, tuple(tensors), tuple(directions)),
    )


def test_nested_forward_mode_is_not_zero() -> None:
    """torch gives 0, silently, for any Function there (pytorch#197867)."""
    exact, native, (z, *_) = both("index, mean")
    second = func.jacfwd(func.jacfwd(exact))(z)
    assert second.abs().max() > 0.01
    near(second, func.jacfwd(func.jacfwd(native))(z))
    third = func.jacfwd(func.jacfwd(func.jacfwd(native)))(z)
    near(func.jacfwd(func.jacfwd(func.jacfwd(exact)))(z), third)
    near(func.jacrev(func.jacfwd(func.jacfwd(exact)))(z), third)
    found: list[Any] = []

    def kept(z: Any) -> Any:
        value = exact(z)
        found.append(value)
        return value

    func.jvp(lambda z: func.jvp(kept, (z,), (V,))[1], (z,), (V,))
    assert found.pop().item() == exact(z).item()  # the value is exact there, too
    for upstream in (None, torch.tensor(0.3, dtype=torch.float64)):

        def slope(z: Any, spec: Any, upstream: Any = upstream) -> Any:
            return spec.value_and_grad(z, LABELS, upstream=upstream)[1]

        for of in (
            func.jacrev(slope),
            func.jacfwd(slope),
            func.jacfwd(func.jacfwd(slope)),
        ):
            near(of(X, INDEX), of(X, NATIVE))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # linearize
def test_other_ways_to_second_derivatives() -> None:
    """torch.autograd.functional, dual numbers, linearize, vmap and batches of vectors."""
    exact, native, (z, *_) = both("index, none")
    hessian = func.hessian(native)(z)
    for options in (
        {},
        {"vectorize": True},
        {"vectorize": True, "outer_jacobian_strategy": "forward-mode"},
    ):
        near(torch.autograd.functional.hessian(exact, z, **options), hessian)
    some = torch.stack([z, z * 2])
    near(func.vmap(func.hessian(exact))(some), func.vmap(func.hessian(native))(some))
    near(func.linearize(exact, z)[1](V), func.jvp(native, (z,), (V,))[1])

    def dual(loss: Callable[..., Any]) -> list[Any]:
        (a,) = leaves([X])
        value = loss(a)
        with forward_ad.dual_level():
            along = forward_ad.unpack_dual(loss(forward_ad.make_dual(X, V))).tangent
            upstream = forward_ad.make_dual(torch.tensor(1.0), torch.tensor(2.0))
            (slope,) = torch.autograd.grad(value, a, upstream)
            return [along, *forward_ad.unpack_dual(slope)]

    for name in ("index, none", "index, mean"):
        near(*map(dual, both(name)[:2]))

    def batched(loss: Callable[..., Any]) -> Any:
        (a,) = leaves([z])
        (slope,) = torch.autograd.grad(loss(a), a, create_graph=True)
        second = torch.autograd.grad(slope, a, torch.stack([V, 2 * V]), is_grads_batched=True)
        upstream = torch.tensor([1.0, 0.3])
        (slopes,) = torch.autograd.grad(
            loss(a), a, upstream, create_graph=True, is_grads_batched=True
        )
        return slopes, second, torch.autograd.grad((slopes * V).sum(), a)

    near(batched(exact), batched(native))
    assert torch.equal(batched(exact)[0][0], gradient_of(exact, z))
    # By the tangent, also where it is 0.
    by_tangent = func.grad(lambda v: func.jvp(exact, (z,), (v,))[1])(torch.zeros_like(V))
    assert torch.equal(by_tangent, gradient_of(exact, z))


@pytest.mark.parametrize("name", ["dense, mean over weights", "huber"])
def test_gradcheck(name: str) -> None:
    """Finite differences in float64 agree, forward, reverse and batched, of both orders."""
    exact, _, tensors = both(name)
    given = [x[:2].double().requires_grad_() for x in tensors]

    torch.autograd.gradcheck(
        exact,
        given,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        fast_mode=True,
    )
    torch.autograd.gradgradcheck(
        exact, given, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True
    )


def test_half_types_and_autocast() -> None:
    """The native derivatives of half types are in float32 inside, as native mode has them."""

    def derivatives(spec: Any, dtype: Any) -> list[Any]:
        z, t = leaves([X.to(dtype), DENSE.to(dtype)])
        first = torch.autograd.grad(spec(z, t) * 1024, (z, t), create_graph=True)
        along = [V.to(dtype), V.to(dtype)]
        return [*first[1:], *torch.autograd.grad(first, (z, t), along)]

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for x, y in zip(derivatives(INDEX, dtype), derivatives(NATIVE, dtype), strict=True):
                torch.testing.assert_close(x, y)


HUBER = ul.HuberLoss(delta=1.0, reduction="none", rounding="exact")
BINARY = ul.BinaryCrossEntropyLoss(from_logits=True, reduction="none", rounding="exact")
PROBABILITIES = BINARY.replace(from_logits=False)
ENDS = torch.tensor([0.0, 1.0, 0.5, 1e-7, 1 - 2**-24])
KINKS = {
    "huber": (HUBER, torch.tensor([-1.0, 0.0, 1.0, 2.0, 1 - 2**-24]), torch.zeros(5)),
    "infinite logits": (
        BINARY,
        torch.tensor([torch.inf, -torch.inf, torch.inf, -torch.inf, torch.nan]),
        torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0]),
    ),
    "clipped": (PROBABILITIES.replace(epsilon=1e-7), ENDS, torch.tensor([0.0, 0.0, 0.3, 1, 1])),
    "torch's clamp": (
        PROBABILITIES.replace(epsilon="torch"),
        ENDS,
        torch.tensor([0.0, 0.0, 0.3, 1, 1]),
    ),
    "ignored": (
        INDEX.replace(reduction="none", ignore_index=-100),
        torch.cat([X, X * torch.inf]),
        torch.cat([LABELS, torch.full((4,), -100)]),
    ),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks(name: str) -> None:
    """At kinks, clips and infinities the second derivative is native's, NaN and infinity too."""
    spec, z, targets = KINKS[name]

    def second(spec: Any) -> Any:
        (a,) = leaves([z])
        value = spec(a, targets)
        (first,) = torch.autograd.grad(value, a, torch.ones_like(value), create_graph=True)
        return torch.autograd.grad(first, a, torch.ones_like(a))[0]

    near(second(spec), second(spec.replace(rounding="native")))


def test_bad_values_that_could_not_be_read() -> None:
    """They give NaN in further derivatives as in the loss, and raise nothing."""
    bad = torch.tensor([0, 7, 1, 2])
    each = INDEX.replace(reduction="none", on_empty="zero")
    (z,) = leaves([X])
    value = func.vmap(each)(z, bad)
    (first,) = torch.autograd.grad(value.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad((first * V).sum(), z)
    assert second.isnan().all(1).tolist() == [False, True, False, False]
    assert second[[0, 2, 3]].isfinite().all()


def test_one_tensor_from_another() -> None:
    """A derivative passes through each argument alone where targets come from predictions."""

    def second(spec: Any) -> Any:
        (z,) = leaves([X])
        (first,) = torch.autograd.grad(spec(z, z.softmax(1)), z, create_graph=True)
        return first, torch.autograd.grad(first, z, V)[0]

    near(second(INDEX), second(NATIVE))


def test_hooks_and_checkpoints() -> None:
    """A hook sees each gradient once, and a checkpoint is computed again."""

    def second(spec: Any, *, again: bool) -> tuple[Any, int]:
        (z,) = leaves([X])
        seen: list[Any] = []
        z.register_hook(seen.append)

        def loss(z: Any) -> Any:
            return spec(z * 1, LABELS)

        checkpoint = torch.utils.checkpoint.checkpoint
        value = checkpoint(loss, z, use_reentrant=False) if again else loss(z)
        (first,) = torch.autograd.grad(value, z, create_graph=True)
        (first * V).sum().backward()
        return z.grad, len(seen)

    for again in (False, True):
        found, wanted = second(INDEX, again=again), second(NATIVE, again=again)
        near(found[0], wanted[0])
        assert found[1] == wanted[1]


def test_compiled() -> None:
    """Compiled, gradients to targets and weights are native beside the exact one."""
    torch._dynamo.reset()
    spec = INDEX.replace(class_weights=(1, 0.3, 2), divisor="weights")
    tensors = [X, DENSE, WEIGHT]

    def loss(z: Any, t: Any, w: Any) -> Any:
        return spec(z, t, sample_weight=w)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)

    def gradients(loss: Callable[..., Any]) -> tuple[Any, ...]:
        given = leaves(tensors)
        return torch.autograd.grad(loss(*given), given)

    found, eager = gradients(compiled), gradients(loss)
    assert torch.equal(found[0], eager[0])
    near(found[1:], eager[1:])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, V)
        along = forward_ad.unpack_dual(compiled(dual, DENSE, WEIGHT)).tangent
    near(along, (eager[0] * V).sum())
    torch._dynamo.reset()


def test_func_inside_compile_raises() -> None:
    """torch cannot trace these through an operator; it must raise, and not take 0."""
    squared = ul.MeanSquaredError(rounding="exact")
    for transform in (func.grad, func.jacfwd):
        for function in (lambda z: INDEX(z, LABELS), lambda t: squared(X, t)):
            torch._dynamo.reset()
            with pytest.raises(Exception, match="exact"):
                torch.compile(transform(function), backend="aot_eager", fullgraph=True)(X)
    torch._dynamo.reset()
