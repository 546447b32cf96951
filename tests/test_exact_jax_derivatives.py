"""Derivatives of exact mode in JAX: the first to predictions is exact, every other is native."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import unifiedloss as ul
from tests.test_jax import run

if TYPE_CHECKING:
    from collections.abc import Callable

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")

# Import after the check that JAX is installed.
from jax.test_util import check_grads  # noqa: E402

from tests.test_exact_jax import same  # noqa: E402
from unifiedloss.adapters.jax import native  # noqa: E402

pytestmark = pytest.mark.framework("jax")

CE = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
BCE = ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact")

RNG = np.random.default_rng(3)
X = RNG.normal(0, 2, (4, 3)).astype(np.float32)
V = RNG.normal(size=X.shape).astype(np.float32)
Y = np.array([0, 2, 1, 1])
T = RNG.dirichlet([1, 1, 1], 4).astype(np.float32)
W = RNG.uniform(0.5, 2, 4).astype(np.float32)

QUICK_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

TRANSFORMS = pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])


@pytest.fixture
def native_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The plans of the native losses that are traced or computed."""
    plans = []
    original = native.loss
    monkeypatch.setattr(native, "loss", lambda *args: plans.append(args[0]) or original(*args))
    return plans


def close(got: Any, wanted: Any) -> None:
    """Assert that trees of derivatives differ by a few roundings of numbers around 1."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, wanted)


def product(f: Any, *x: Any) -> Any:
    """The product of the Hessian of a function with V, which is not symmetric in x."""
    return jax.jvp(jax.grad(f), x, tuple(jnp.broadcast_to(V, z.shape) for z in x))[1]


@TRANSFORMS
@pytest.mark.parametrize(
    ("spec", "more"),
    [
        (CE, {}),
        (CE.replace(reduction="none", ignore_index=2), {"sample_weight": W}),
        (BCE.replace(reduction="none"), {}),
    ],
    ids=["mean", "none", "binary"],
)
@pytest.mark.slow("two losses", only=["binary", "none-eager"])
def test_first_derivative_is_exact(
    native_calls: list[Any], transform: Callable[..., Any], spec: Any, more: dict[str, Any]
) -> None:
    """It has the same bits in both modes, also transposed, and no native loss is computed."""
    t = T if spec.replace(reduction="mean") == BCE else Y

    def of(x: Any) -> Any:
        return spec(x, t, **more)

    value = np.asarray(spec(X, t, **more))
    upstream = np.full(value.shape, 0.3, np.float32)
    _, wanted = spec.value_and_grad(X, t, upstream=upstream, **more)
    out, pull_back = jax.vjp(transform(of), X)
    same(out, value)
    same(pull_back(upstream)[0], wanted)
    linear = jax.linearize(transform(of), X)[1]
    same(transform(jax.linear_transpose(linear, X))(upstream)[0], wanted)
    forward = transform(jax.jacfwd(of))(X)
    same(forward, transform(jax.jacrev(of))(X))
    same(jnp.sum(forward, range(value.ndim)), spec.value_and_grad(X, t, **more)[1])
    same(transform(jax.vmap(jax.grad(lambda x: of(x).sum())))(X[None])[0], sum_of(forward, value))
    found = transform(lambda x: spec.value_and_grad(x, t, **more))(jnp.asarray(X))
    same(found[1], spec.value_and_grad(X, t, **more)[1])
    assert not native_calls
    along = transform(lambda x, v: jax.jvp(of, (x,), (v,))[1])(X, V)
    close(along, np.tensordot(forward, V, 2))


def sum_of(jacobian: Any, value: Any) -> Any:
    """The gradient of a sum. Each of its elements has one term that is not 0."""
    return jnp.sum(jacobian, range(value.ndim))


CALLS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "index": (CE, Y, {}),
    "dense": (CE.replace(divisor="weights"), T, {"sample_weight": W}),
    "ignored": (CE.replace(divisor="weights", ignore_index=0), Y, {"sample_weight": W}),
    "none": (BCE.replace(reduction="none"), T, {}),
}


def total_of(spec: Any, t: Any, more: dict[str, Any]) -> Callable[..., Any]:
    """A number made of the losses, each with another factor."""

    def of(x: Any, t: Any = t, **given: Any) -> Any:
        losses = spec(x, t, **(more | given))
        return (losses * jnp.arange(1.0, 1 + losses.size).reshape(losses.shape)).sum()

    return of


def derivatives(spec: Any, t: Any, more: dict[str, Any]) -> Any:
    """Derivatives of a loss of an order above the first, or to other arrays.

    The first two are the same: through a vmap, and through a scan.
    """
    of = total_of(spec, t, more)

    def scanned(xs: Any) -> Any:
        return jax.lax.scan(lambda total, x: (total + of(x), None), jnp.float32(0), xs)[0]

    def gradient(x: Any) -> Any:
        return spec.value_and_grad(x, t, **more)[1]

    x, xs = jnp.asarray(X), jnp.stack([X, -X])
    found = [
        product(lambda xs: jax.vmap(of)(xs).sum(), xs),
        product(scanned, xs),
        jax.hessian(of)(x),
        jax.jacrev(jax.jacrev(of))(x),
        jax.jacfwd(jax.jacfwd(of))(x),
        jax.jvp(gradient, (x,), (V,))[1],
        jax.linear_transpose(jax.vjp(of, x)[1], jnp.float32(1))((V,))[0],
    ]
    if more:
        to_all = jax.grad(lambda x, t, w: of(x, t, sample_weight=w), (0, 1, 2), allow_int=True)
        gradients = to_all(x, t, W)
        found.append(gradients if t is T else gradients[::2])
    return found


def rarer_derivatives(spec: Any, t: Any, more: dict[str, Any]) -> Any:
    """Derivatives of orders, nestings and maps that `derivatives` leaves out."""
    of = total_of(spec, t, more)

    def gradient(x: Any) -> Any:
        return spec.value_and_grad(x, t, **more)[1]

    x = jnp.asarray(X)
    found = [
        jax.jacrev(jax.jacfwd(of))(x),
        jax.grad(lambda x: (jax.grad(lambda x: (jax.grad(of)(x) * V).sum())(x) * V).sum())(x),
        jax.vmap(jax.hessian(of), 1)(jnp.stack([X, -X], 1)),
        product(jax.checkpoint(of), x),
        jax.grad(lambda x: (gradient(x) * V).sum())(x),
    ]
    if t is T:
        found += [jax.hessian(of, (0, 1))(x, T), jax.grad(lambda x: of(x, jax.nn.softmax(x)))(x)]
    if more:
        to_weights = jax.jacfwd(jax.grad(lambda w, x: of(x, sample_weight=w), (0, 1)))
        found.append(to_weights(jnp.asarray(W), x))
    return found


def of_both(of: Callable[..., Any], name: str) -> tuple[Any, Any]:
    """Derivatives of an exact loss and of the native one."""
    spec, t, more = CALLS[name]
    exact, wanted = (
        jax.jit(lambda s=s: of(s, t, more), compiler_options=QUICK_TO_COMPILE)()
        for s in (spec, spec.replace(rounding="native"))
    )
    return exact, wanted


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.slow("weights and dense targets", only=["index", "ignored", "none"])
def test_other_derivatives_are_native(native_calls: list[Any], name: str) -> None:
    """Every other derivative is that of the native loss, beside the exact gradient.

    JAX drops the rule of a jax.custom_jvp in the derivative of a scan, which in native mode made
    the second derivatives through a scan 0.
    """
    exact, wanted = of_both(derivatives, name)
    assert native_calls
    close(exact, wanted)
    close(wanted[1], wanted[0])
    spec, t, more = CALLS[name]
    if name == "dense":
        same(exact[-1][0], spec.value_and_grad(X, t, **more)[1])


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.slow("the derivatives that are asked for most, in the test above")
def test_rarer_derivatives_are_native(name: str) -> None:
    """So are those of other orders, nestings and maps."""
    close(*of_both(rarer_derivatives, name))


@pytest.mark.slow("the same under jax.jit, in the test above")
def test_outside_of_programs() -> None:
    """Untraced arrays have the exact gradient beside native ones."""

    def gradients(spec: Any) -> Any:
        return jax.grad(lambda x, t, w: spec(x, t, sample_weight=w), (0, 1, 2))(X, T, W)

    exact = gradients(CE)
    close(exact, gradients(CE.replace(rounding="native")))
    same(exact[0], CE.value_and_grad(X, T, sample_weight=W)[1])


@pytest.mark.slow("the comparison with native derivatives, in the test above")
def test_against_differences() -> None:
    """Derivatives of both orders in both modes agree with differences, in float64."""
    with jax.enable_x64(True):  # noqa: FBT003 - JAX's signature
        wide = jnp.asarray(X, jnp.float64)
        check_grads(jax.jit(lambda x: CE(x, Y)), (wide,), 2, ("fwd", "rev"), rtol=1e-6)


@TRANSFORMS
@pytest.mark.parametrize("divisor", [3.5, CE.divisor_of(Y)], ids=["number", "vector"])
@pytest.mark.slow("a tangent with a given divisor, in the test below")
def test_given_divisor(transform: Callable[..., Any], divisor: Any) -> None:
    """The derivatives of a loss with a given divisor are divided by it."""
    spec, x = CE.replace(rounding="native"), jnp.asarray(X)
    number = divisor if isinstance(divisor, float) else 4.0
    wanted = product(lambda x: spec(x, Y, divisor=number), x)
    close(transform(lambda x: product(lambda x: CE(x, Y, divisor=divisor), x))(x), wanted)

    def gradient(x: Any) -> Any:
        return CE.value_and_grad(x, Y, divisor=divisor)[1]

    close(transform(lambda x: jax.jvp(gradient, (x,), (V,))[1])(x), wanted)


def test_tangent_of_half_predictions() -> None:
    """A reduced loss of float16 has its native tangent: in float16 the gradient itself is 0."""
    x, divisor = jnp.zeros((1, 4), jnp.float16), 2.0**30

    def of(x: Any) -> Any:
        return CE(x, np.zeros(1, np.int32), divisor=divisor)

    assert not jax.grad(of)(x).any()
    along = jax.jvp(of, (x,), (jnp.float16([[0, 4, 0, 0]]),))[1]
    np.testing.assert_allclose(along, 1 / divisor, rtol=1e-6)


def test_on_several_devices() -> None:
    """In jax.shard_map, tracked or not, and on arrays that name their mesh axes."""
    run(
        """
        import contextlib
        import jax, jax.numpy as jnp, numpy as np, unifiedloss as ul
        from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
        random = np.random.default_rng(0)
        x, v = (random.normal(0, 2, (4, 6)).astype(np.float32) for _ in range(2))
        y = np.array([0, 1, 5, 2], np.int32)
        exact = ul.CrossEntropyLoss(from_logits=True, reduction="sum", rounding="exact")
        native = exact.replace(rounding="native")
        gradient = exact.value_and_grad(x, y)[1]
        devices = np.array(jax.devices())
        def product(spec, x, y, v):
            return jax.jvp(jax.grad(lambda x: spec(x, y).sum()), (x,), (v,))
        second = product(native, x, y, v)[1]
        def check(found):
            assert (np.asarray(found[0]).reshape(x.shape) == gradient).all()
            np.testing.assert_allclose(found[1].reshape(x.shape), second, rtol=2e-5, atol=2e-6)
        rows, whole = P("d"), P()
        def step(x, y, v):
            one, both = product(exact, x, y, v)
            forward = jax.jacfwd(lambda x: exact(x, y))(x)
            along = jax.jvp(lambda x: exact(x, y), (x,), (v,))[1]
            return one, both, forward, jax.lax.psum(along, "d")
        for tracked in (True, False):
            mapped = jax.shard_map(
                step, mesh=Mesh(devices, ("d",)), in_specs=(rows, rows, rows),
                out_specs=(rows, rows, rows, whole), check_vma=tracked,
            )
            *found, forward, along = jax.jit(mapped)(x, y, v)
            check(found)
            assert (np.asarray(forward) == gradient).all()
            np.testing.assert_allclose(along, (gradient * v).sum(), rtol=1e-5)
        each, mesh = exact.replace(reduction="none"), Mesh(devices, ("d",), (AxisType.Explicit,))
        with jax.set_mesh(mesh):
            # The losses are shared, and the rows of the predictions are not.
            z, u = (jax.device_put(a, NamedSharding(mesh, P(None, "d"))) for a in (x, v))
            check(jax.jit(lambda z, u: product(each, z, y, u))(z, u))
        """,
        "--xla_force_host_platform_device_count=2",
    )
