"""The JAX adapter: transformations, compilation, x64, arrays split over devices."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import unifiedloss as ul

if TYPE_CHECKING:
    from collections.abc import Callable

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")
pytestmark = pytest.mark.framework("jax")

CE = ul.CrossEntropyLoss(from_logits=True)
BCE = ul.BinaryCrossEntropyLoss(from_logits=True)
MSE = ul.MeanSquaredError()

# NumPy arrays, because they need no JAX before a test runs and JAX accepts them.
X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]], np.float32)
Y = np.array([0, 1, 1, 2], np.int32)
T = np.array([[0.2, 0.3, 0.5], [1, 0, 0], [0, 0.5, 0.5], [0.1, 0.1, 0.8]], np.float32)
P = np.array([[0.2, 0.3, 0.5], [0.6, 0.1, 0.3], [0.3, 0.3, 0.4], [0.1, 0.1, 0.8]], np.float32)


def close(got: Any, wanted: Any, tolerance: float = 1e-6) -> None:
    """Assert closeness, by default within a few float32 ulps of numbers around 1."""
    np.testing.assert_allclose(
        np.asarray(got, np.float64), np.asarray(wanted, np.float64), tolerance, tolerance
    )


def in_numpy(spec: Any, predictions: Any, targets: Any, **more: Any) -> tuple[Any, Any]:
    """The loss and its gradient by NumPy in float64."""
    value, gradient = spec.value_and_grad(np.asarray(predictions, np.float64), targets, **more)
    return value, gradient


def run(code: str, *flags: str) -> str:
    """Run a script in a new process, because x64 and the number of devices belong to a process."""
    import os

    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CALLS = {
    "index": (CE, X, Y),
    "smooth": (CE.replace(label_smoothing=0.1, class_weights=[1, 2, 4], ignore_index=2), X, Y),
    "dense": (CE, X, T),
    "probabilities": (ul.CrossEntropyLoss(epsilon=1e-3), P, Y),
    "binary": (BCE.replace(pos_weight=[1, 2, 3]), X, T),
    "binary probabilities": (ul.BinaryCrossEntropyLoss(), P, T),
    "squared": (MSE, X, T),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.slow("labels, binary logits and squares", only=["dense", "probabilities"])
def test_transformations(name: str) -> None:
    """The gradient is NumPy's in reverse and forward mode, under vmap, jit, checkpoint and scan."""
    spec, x, t = CALLS[name]
    loss_of, z = spec.to("jax"), jnp.asarray(x)
    value, gradient = in_numpy(spec, x, t)

    def of(z: Any) -> Any:
        return loss_of(z, t)

    def looped(z: Any) -> Any:
        return jax.lax.scan(lambda total, row: (total + of(row), None), jnp.float32(0), z)[0]

    twice = jnp.stack([z, z])
    close(of(z), value)
    close(jax.jit(of)(z), value)
    close(jax.vmap(of)(twice), [value, value])
    close(spec.value_and_grad(z, t)[1], gradient)
    close(jax.grad(of)(z), gradient)
    close(jax.jit(jax.grad(of))(z), gradient)
    close(jax.jit(jax.vmap(jax.grad(of)))(twice)[1], gradient)
    close(jax.grad(lambda z: jax.vmap(of)(z).sum())(twice)[0], gradient)
    close(jax.jacfwd(of)(z), gradient)
    close(jax.jit(jax.grad(jax.checkpoint(of)))(z), gradient)
    close(jax.jit(jax.grad(looped))(twice)[1], gradient)
    close(jax.jvp(of, (z,), (jnp.ones_like(z),))[1], gradient.sum())


@pytest.mark.parametrize("targets", [Y[:1], T[:1]], ids=["index", "dense"])
def test_second_derivative_of_the_softmax(targets: Any) -> None:
    """The Hessian of a row's cross-entropy is diag(p) - p p^T, in each combination of modes."""
    z = jnp.asarray(X[0])
    p = np.exp(X[0].astype(np.float64))
    p /= p.sum()

    def of(z: Any) -> Any:
        return CE(z[None], targets)

    for second in (
        jax.hessian(of),
        jax.jit(jax.hessian(of)),
        jax.jacrev(jax.jacrev(of)),
        jax.jacrev(jax.jacfwd(of)),
    ):
        close(second(z), np.diag(p) - np.outer(p, p), 1e-7)


def test_second_derivative_of_the_sigmoid() -> None:
    """The second derivative is p (1 - p), also at logit 0, where max(z, 0) and |z| have a kink."""
    z = jnp.array([0.0, 2.0, -30.0])
    p = 1 / (1 + np.exp(-np.asarray(z, np.float64)))
    targets = jnp.array([0.0, 1.0, 0.5])
    second = jax.jit(jax.hessian(lambda z: BCE.replace(reduction="sum")(z, targets)))(z)
    close(second, np.diag(p * (1 - p)), 1e-7)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("pos_weight", [None, 3.0, 0.25])
def test_binary_gradient_at_zero(transform: Callable[..., Any], pos_weight: float | None) -> None:
    """At logit 0 the gradient is (1 - t - q t) / 2 to the last bit.

    A formula with jnp.maximum or jnp.abs misses it, because JAX splits the gradient of jnp.maximum
    at a tie and gives jnp.abs the slope 1 at 0.
    """
    spec = BCE.replace(pos_weight=pos_weight, reduction="sum")
    t = np.array([0, 1, 0.5, 0.25, 0.75], np.float32)
    gradient = transform(jax.grad(lambda z: spec(z, t)))(jnp.zeros(5))
    np.testing.assert_array_equal(gradient, (1 - t - (pos_weight or 1) * t) / 2)


def test_infinite_logits() -> None:
    """An infinite logit costs 0 if the label agrees, else infinity; the gradient is sigma - t.

    This holds in reverse and forward mode (google-deepmind/optax#896).
    """
    z, t = jnp.array([jnp.inf, -jnp.inf, jnp.inf, -jnp.inf]), np.array([1, 0, 0, 1])
    spec = BCE.replace(reduction="none")
    np.testing.assert_array_equal(spec(z, t), [0, 0, np.inf, np.inf])
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda z: spec(z, t).sum()))(z), [0, 0, 1, -1])
    np.testing.assert_array_equal(
        jax.jvp(lambda z: spec(z, t), (z,), (jnp.ones(4),))[1], [0, 0, 1, -1]
    )

    z = jnp.array([[0, -jnp.inf, 0], [-jnp.inf, 0, 0], [jnp.inf, 0, 0], [-jnp.inf] * 3])
    spec = CE.replace(reduction="none")
    for t in (np.zeros(4, np.int32), np.eye(3, dtype=np.float32)[[0] * 4]):
        for loss_of in (spec, jax.jit(spec)):
            np.testing.assert_allclose(loss_of(z, t), [np.log(2), np.inf, np.nan, np.nan], 1e-6)
        gradient = jax.jit(jax.grad(lambda z, t=t: spec(z, t)[:2].sum()))(z)
        np.testing.assert_allclose(gradient[:2], [[-0.5, 0, 0.5], [-1, 0.5, 0.5]], 1e-6)


def test_large_common_offset() -> None:
    """A large common offset loses no digit, because the maximum is subtracted first.

    See google-deepmind/optax PR 1792.
    """
    for offset in (0.0, 1e5, -1e7):
        close(CE(jnp.array([[1.0, 0.0]]) + offset, np.array([0])), 0.31326168751822286)
    assert CE(jnp.array([[130.0, 129.0]], jnp.bfloat16), np.array([0])) > 0.3


@pytest.mark.parametrize(
    "transform",
    [jax.jit, lambda f: lambda x, t: jax.vmap(f)(x[None], t[None])[0]],
    ids=["jit", "vmap"],
)
def test_traced_bad_value_is_nan(transform: Callable[..., Any]) -> None:
    """A bad value in traced code, which cannot raise for it, poisons only its own position."""
    for spec, x, t, bad in (
        (CE, X, np.array([0, 7, 1, 2], np.int32), 1),
        (CE.replace(label_smoothing=0.1), X, np.array([0, 1, -1, 2], np.int32), 2),
        (CE, X, np.where(np.arange(4)[:, None] == 3, -1, T).astype(np.float32), 3),
        (
            ul.CrossEntropyLoss(),
            np.where(np.arange(4)[:, None] == 2, 1.5, P).astype(np.float32),
            Y,
            2,
        ),
        (BCE, X[:, 0], np.array([0, 1, 2, 0], np.float32), 2),
    ):
        each = spec.replace(reduction="none")
        losses = transform(each)(jnp.asarray(x), jnp.asarray(t))
        np.testing.assert_array_equal(np.isnan(losses), np.arange(4) == bad)
        gradient = transform(jax.grad(lambda x, t, each=each: each(x, t).sum()))(
            jnp.asarray(x), jnp.asarray(t)
        )
        np.testing.assert_array_equal(np.isnan(gradient).reshape(4, -1).all(1), np.arange(4) == bad)
        assert np.isnan(transform(spec)(jnp.asarray(x), jnp.asarray(t)))
        with pytest.raises(ul.BadValueError, match=str(bad)):
            spec(jnp.asarray(x), jnp.asarray(t))


def test_dropped_rows_are_zero() -> None:
    """Loss and gradient are +0 in masked, ignored and zero-weighted rows, though they hold NaN."""
    x = np.array(X)
    x[:3] = np.nan
    y, mask, weight = np.array([0, -100, 9, 2]), np.array([0, 1, 1, 1], bool), [1.0, 1.0, 0.0, 2.0]
    spec = CE.replace(ignore_index=-100, reduction="none")

    def of(x: Any) -> Any:
        return spec(x, y, mask=mask, sample_weight=weight)

    def mapped(x: Any) -> Any:
        return jax.vmap(of)(x[None])[0]

    for loss_of in (of, jax.jit(of), mapped, jax.jit(mapped)):
        gradient = jax.grad(lambda x, loss_of=loss_of: loss_of(x).sum())(jnp.asarray(x))
        for rows in (np.asarray(loss_of(jnp.asarray(x))), np.asarray(gradient)):
            assert not rows[:3].any()
            assert not np.signbit(rows[:3]).any()
            assert np.abs(rows[3]).sum() > 1


BAD_CALLS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "label": (CE, X, np.array([0, 3, 1, 2]), {}),
    "label past int32": (CE, X, np.array([0, 2**32 + 1, 1, 2]), {}),
    "unsigned label": (CE, X, np.array([0, 2**64 - 1, 1, 2], np.uint64), {}),
    "logits as probabilities": (ul.CrossEntropyLoss(), X, Y, {}),
    "dense": (CE, X, T - 1, {}),
    "binary": (BCE, X, T * 3, {}),
    "integer": (MSE, X[0], np.array([1, 2**53 + 1, 0]), {}),
    "weight": (CE, X, Y, {"sample_weight": [1.0, -1.0, 1.0, 1.0]}),
    "empty": (CE.replace(on_empty="error"), X, Y, {"mask": np.zeros(4, bool)}),
    "shape": (CE, X, Y[:3], {}),
    "column": (MSE, X[:, :1], X[:, 0], {}),
    "axis": (CE, X[None], Y[None], {}),
    "mask": (CE, X, Y, {"mask": [1, 0, 1, 1]}),
    "bool labels": (CE, X, Y > 0, {}),
    "strings": (CE, X, np.array(list("abcd")), {}),
    "ragged": (CE, X, [[0], [1, 2]], {}),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_those_of_numpy(name: str) -> None:
    """A bad eager call fails with NumPy's error class and message."""
    spec, x, t, more = BAD_CALLS[name]
    with pytest.raises(ul.UnifiedLossError) as wanted:
        spec(x, t, **more)
    with pytest.raises(ul.UnifiedLossError) as loss:
        spec(jnp.asarray(x), t, **more)
    with pytest.raises(ul.UnifiedLossError) as gradient:
        spec.value_and_grad(jnp.asarray(x), t, **more)
    assert str(loss.value) == str(wanted.value) == str(gradient.value)
    assert type(loss.value) is type(wanted.value) is type(gradient.value)


def test_shapes_are_checked_while_tracing() -> None:
    """Bad shapes raise under jit, vmap and grad as in eager calls, with our unwrapped error."""
    for call in (jax.jit(CE), jax.grad(CE), lambda x, y: jax.vmap(CE)(x[None], y[None])):
        with pytest.raises(ul.ShapeError, match=r"need targets \(4,\), got \(3,\)"):
            call(jnp.asarray(X), jnp.asarray(Y[:3]))


def test_labels_never_wrap() -> None:
    """A label keeps its value in any integer dtype, though JAX without x64 wraps it to 32 bits."""
    each = CE.replace(reduction="none")
    x = jnp.asarray(X)
    for dtype, label, ignored in (
        (np.uint8, 156, -100),
        (np.uint32, 2**32 - 100, -100),
        (np.uint64, 2**64 - 100, -100),
        (np.int64, 2**32, 0),
        (np.int64, 2**32 - 100, -100),
        (np.int64, -(2**40), -(2**31)),
        (np.int64, 2**40, 2**31 - 1),
    ):
        y = np.array([0, 1, 2, label], dtype)
        spec = each.replace(ignore_index=ignored)
        with pytest.raises(ul.BadValueError, match=rf"targets\[3\] is {label}"):
            spec(x, y)
        losses = jax.jit(lambda x, y=y, spec=spec: spec(x, y))(x)
        np.testing.assert_array_equal(np.isnan(losses), [False, False, False, True])
        if label >= 2**63:  # too large for ignore_index
            continue
        dropped = each.replace(ignore_index=[label, 2**60])
        assert dropped(x, y)[3] == jax.jit(lambda x, y=y, spec=dropped: spec(x, y))(x)[3] == 0


def test_float64_targets_are_read_exactly() -> None:
    """A NumPy float64 target keeps its digits without x64, and JAX gives no warning."""
    t = np.array([1 + 1e-9, 2.0, 3.0])
    p, d = jnp.array([1.0, 2.5, 3.0]), 1.0 - (1 + 1e-9)
    each = MSE.replace(reduction="none")

    def of(p: Any) -> Any:
        return each(p, t)

    twice = jnp.stack([p, p])
    for losses in (of(p), jax.jit(of)(p), jax.vmap(of)(twice)[1], jax.jit(jax.vmap(of))(twice)[1]):
        assert losses.dtype == jnp.float32
        np.testing.assert_allclose(losses, [d * d, 0.25, 0], 1e-6)

    def total(p: Any) -> Any:
        return of(p).sum()

    for gradient in (
        jax.grad(total)(p),
        jax.jit(jax.grad(total))(p),
        jax.grad(jax.jit(total))(p),
        jax.jit(jax.vmap(jax.grad(total)))(twice)[0],
        jax.grad(lambda p: jax.vmap(of)(p).sum())(twice)[0],
        jax.grad(jax.checkpoint(total))(p),
        jax.jacfwd(total)(p),
        jax.linearize(jax.grad(total), p)[0],
        MSE.replace(reduction="sum").value_and_grad(p, t)[1],
    ):
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, [2 * d, 1, 0], 1e-6)
    np.testing.assert_array_equal(jax.jit(jax.hessian(total))(p), 2 * np.eye(3))


def test_lists_and_dtypes() -> None:
    """Lists are read as float64 and int64 and change no dtype; halves are computed in float32."""
    x = jnp.asarray(X)
    weight, mask = [0.1, 0.2, 0.3, 1.0], [True, True, False, True]
    wanted = in_numpy(CE, X, Y, sample_weight=weight, mask=mask)
    got = CE.value_and_grad(x, [0, 1, 1, 2], sample_weight=weight, mask=mask)
    close(got[0], wanted[0])
    close(got[1], wanted[1])
    assert got[0].dtype == got[1].dtype == jnp.float32
    for dtype in (jnp.float16, jnp.bfloat16):
        half = x.astype(dtype)
        loss, gradient = CE.value_and_grad(half, Y)
        assert loss.dtype == jnp.float32
        assert gradient.dtype == CE.replace(reduction="none")(half, Y).dtype == dtype
        close(loss, in_numpy(CE, half, Y)[0])
    for spec, t in ((BCE, T > 0.3), (BCE, (T > 0.3).astype(int)), (MSE, (T > 0.3).astype(np.int8))):
        close(spec(x, t), in_numpy(spec, X, t)[0])


@pytest.mark.parametrize(
    "spec",
    [CE, CE.replace(label_smoothing=0.1), BCE, ul.CrossEntropyLoss(), ul.BinaryCrossEntropyLoss()],
    ids=["logits", "smoothed", "binary", "probabilities", "binary probabilities"],
)
@pytest.mark.slow("the specs that take another way", only=["smoothed", "probabilities"])
def test_rules_traced_after_the_loss_has_returned(spec: Any) -> None:
    """jax.checkpoint and lax.scan differentiate after the call has left its x64 context."""
    code = f"""
        import jax, jax.numpy as jnp, numpy as np
        from unifiedloss import BinaryCrossEntropyLoss, CrossEntropyLoss
        x, t = jnp.array([[0.25, 0.75], [0.5, 0.5]]), np.array([[0.3, 0.7], [1.0, 0.0]])
        def f(x):
            return {spec!r}(x, t)
        def scan(x):
            return jax.lax.scan(lambda c, _: (c, f(c)), x, None, length=2)[1].sum()
        first = jax.grad(jax.checkpoint(f))(x)
        scanned = jax.grad(scan)(x)
        np.testing.assert_allclose(first, jax.grad(f)(x), 1e-6)
        np.testing.assert_allclose(scanned, 2 * first, 1e-6)
        """
    run(code)


def test_rank_promotion_may_be_forbidden() -> None:
    """The adapter never relies on implicit rank promotion."""
    with jax.numpy_rank_promotion("raise"):
        for spec, x, t in CALLS.values():
            assert np.isfinite(spec.value_and_grad(x, t)[0])


def test_float64_predictions_need_x64() -> None:
    """Without x64 a float64 loss is refused, because JAX's next operation would narrow it."""
    for predictions in (X.astype(np.float64), X.tolist()):
        with pytest.raises(
            ul.UnsupportedError, match=r"cast them to float32, or set jax\.config\.update"
        ):
            CE.to("jax")(predictions, Y)
    with pytest.raises(ul.ShapeError):  # an error in the call itself is reported first
        CE.to("jax")(X.astype(np.float64), Y[:3])


def test_x64() -> None:
    """With x64 everything is float64, also if the first use of the library is inside jit.

    Importing the adapter starts no XLA backend.
    """
    run("""
        import jax, numpy as np, unifiedloss as ul
        from jax._src import xla_bridge
        spec = ul.CrossEntropyLoss(from_logits=True, label_smoothing=0.1, ignore_index=-100)
        loss_of = spec.to("jax")
        # jax.distributed.initialize must come before any backend.
        assert not xla_bridge.backends_are_initialized()
        jax.config.update("jax_enable_x64", True)
        import jax.numpy as jnp
        z, y = np.random.default_rng(0).normal(0, 9, (50, 7)), np.arange(50) % 7
        y[3] = -100
        value, gradient = spec.value_and_grad(z, y)
        got = jax.jit(jax.value_and_grad(loss_of))(z, y)
        for loss, slope in (
            got,
            spec.value_and_grad(jnp.asarray(z), jnp.asarray(y)),
            spec.value_and_grad(jnp.asarray(z), y.tolist()),
        ):
            assert loss.dtype == slope.dtype == np.float64
            assert abs(loss - value) < 1e-14 and abs(slope - gradient).max() < 1e-15
        assert abs(loss_of(z.tolist(), y.tolist()) - value) < 1e-14
        assert ul.MeanSquaredError()(jnp.ones(1), [1 + 1e-12]) > 0
    """)


def test_training() -> None:
    """Gradient descent learns, with JAX alone and with optax, and the first loss is NumPy's."""
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5)).astype(np.float32)
    y = (x[:, :3] * 3).argmax(1)
    start = jnp.asarray(rng.normal(size=(5, 3)).astype(np.float32))
    loss_of = CE.to("jax")
    slope = jax.jit(jax.value_and_grad(lambda w, x, y: loss_of(x @ w, y)))
    optimizer = optax.sgd(1.0)
    w, v, state = start, start, optimizer.init(start)
    losses = []
    for _ in range(60):
        loss, gradient = slope(w, x, y)
        w = w - gradient
        updates, state = optimizer.update(slope(v, x, y)[1], state)
        v = optax.apply_updates(v, updates)
        losses.append(float(loss))
    close(losses[0], in_numpy(CE, x @ np.asarray(start), y)[0])
    assert losses[-1] < 0.25 * losses[0]
    close(w, v)


def test_function_is_a_value() -> None:
    """A loss function hashes, compares, copies and pickles by its spec.

    So equal ones as a static argument compile once.
    """
    loss_of = CE.to("jax")
    compiled = jax.jit(lambda x, y, loss_of: loss_of(x, y), static_argnums=2)
    pickled = pickle.loads(pickle.dumps(loss_of))  # noqa: S301 - our own bytes
    for other in (CE.to("jax"), copy.deepcopy(loss_of), pickled):
        assert other == loss_of
        assert hash(other) == hash(loss_of)
        close(compiled(X, Y, other), in_numpy(CE, X, Y)[0])
    assert compiled._cache_size() == 1
    assert loss_of != CE.replace(reduction="sum").to("jax")
    assert loss_of != CE
    assert repr(loss_of) == "LossFunction(CrossEntropyLoss(from_logits=True))"


def test_eager_calls_compile_once() -> None:
    """Eager calls compile one program per spec and shapes, and reuse it for other values."""
    from unifiedloss.adapters.jax import native

    spec = CE.replace(label_smoothing=0.37)
    spec(jnp.asarray(X), jnp.asarray(Y))
    size = native.loss._cache_size()
    for shift in range(3):
        spec.replace(label_smoothing=0.37)(jnp.asarray(X + shift), jnp.asarray(Y))
    assert native.loss._cache_size() == size
    spec(jnp.asarray(X[:2]), jnp.asarray(Y[:2]))
    assert native.loss._cache_size() == size + 1


def test_without_jit_and_with_debug_nans() -> None:
    """The loss works under jax.disable_jit, and makes no NaN that jax.debug_nans would report."""
    z, spec = jnp.asarray(X), CE.replace(ignore_index=-100)
    y = np.array([0, -100, 1, 2])
    value, gradient = in_numpy(spec, X, y)
    with jax.disable_jit():
        close(spec(z, y), value)
        close(jax.grad(spec)(z, y), gradient)
        close(MSE(z, T.astype(np.float64)), in_numpy(MSE, X, T)[0])
    with jax.debug_nans(True):  # noqa: FBT003
        close(jax.grad(spec)(z, y), gradient)
        close(BCE(z, T), in_numpy(BCE, X, T)[0])


def test_no_scatter() -> None:
    """The gradient selects the true class by a comparison instead of a scatter.

    XLA's scatter is slow on a CPU and keeps all log-probabilities.
    """
    program = str(jax.make_jaxpr(jax.grad(CE.to("jax")))(X, Y))
    assert "scatter" not in program
    assert "gather" in program


def test_settle_changes_nothing() -> None:
    """`settle`, a hint to XLA before a sum, passes float32 and float64 numbers unchanged."""
    from unifiedloss.adapters.jax import ops

    x = np.array([1 / 3, -0.0, np.inf, 1e-38, 3.4e38, -1e30], np.float32)
    np.testing.assert_array_equal(jax.jit(ops.settle)(x).view(np.int32), x.view(np.int32))
    assert np.isnan(jax.jit(ops.settle)(np.float32(np.nan)))
    with jax.enable_x64(True):  # noqa: FBT003
        x = np.array([1 / 3, 1e-300, 1.7e308])
        np.testing.assert_array_equal(jax.jit(ops.settle)(x), x)


def test_gradients_of_weights_and_targets() -> None:
    """Weights and targets get gradients, through the divisor too; the upstream may be a list."""
    weight = jnp.array([1.0, 0.5, 2.0, 0.0])
    gradient = jax.grad(lambda w: CE(X, Y, sample_weight=w))(weight)
    losses = in_numpy(CE.replace(reduction="none"), X, Y)[0]
    w = np.asarray(weight, np.float64)
    # A zero-weighted position gets no gradient.
    close(gradient, np.where(w != 0, losses / w.sum() - (w * losses).sum() / w.sum() ** 2, 0))
    log_p = np.log(np.exp(X) / np.exp(X).sum(1, keepdims=True))
    close(jax.jit(jax.grad(CE.to("jax"), argnums=1))(X, T), -log_p / 4)
    upstream = [1.0, -2.0, 0.5, 4.0]
    each = CE.replace(reduction="none")
    got = jax.jit(lambda x: each.value_and_grad(x, Y, upstream=upstream)[1])(X)
    close(got, each.value_and_grad(X.astype(np.float64), Y, upstream=upstream)[1])


def test_softmax() -> None:
    """Softmax agrees with NumPy's, compiled and mapped, and subnormal values are 0."""
    z = jnp.array([[0.0, -100.0, 1.0], [3.0, 3.0, 3.0]])
    wanted = ul.softmax(np.asarray(z))
    for p in (ul.softmax(z), jax.jit(ul.softmax)(z), jax.vmap(ul.softmax)(z)):
        close(p, wanted)
        assert p[0, 1] == 0


def test_exported_with_a_symbolic_batch() -> None:
    """jax.export takes a symbolic batch size; mismatched symbols raise our message."""
    spec = CE.replace(ignore_index=-100, label_smoothing=0.1)
    of = jax.jit(jax.value_and_grad(spec.to("jax")))
    rows, columns = jax.export.symbolic_shape("n, m")
    float32, int32 = np.dtype(np.float32), np.dtype(np.int32)
    exported = jax.export.export(of)(
        jax.ShapeDtypeStruct((rows, 3), float32), jax.ShapeDtypeStruct((rows,), int32)
    )
    for n in (4, 2):
        value, gradient = in_numpy(spec, X[:n], Y[:n])
        got = exported.call(X[:n], Y[:n])
        close(got[0], value)
        close(got[1], gradient)
    with pytest.raises(ul.ShapeError, match=r"need targets \(n,\), got \(m,\)"):
        jax.export.export(of)(
            jax.ShapeDtypeStruct((rows, 3), float32), jax.ShapeDtypeStruct((columns,), int32)
        )


def test_split_over_devices() -> None:
    """Arrays split by rows or classes work under any sharding mode, shard_map and pmap."""
    run(
        """
        import jax, jax.numpy as jnp, numpy as np, unifiedloss as ul
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        z = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
        y, w = np.array([0, 1, 5, 2], np.int32), np.array([1.0, 2.0, 3.0, 4.0])
        spec = ul.CrossEntropyLoss(
            from_logits=True, class_weights=[1, 2, 3, 4, 5, 6], ignore_index=1
        )
        smooth = spec.replace(label_smoothing=0.1)
        binary = ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=2)
        for mesh in (Mesh(np.array(jax.devices()), ("d",)), jax.make_mesh((2,), ("d",))):
            def put(x, *axes):
                return jax.device_put(x, NamedSharding(mesh, P(*axes)))
            for loss, x, t in (
                (spec, put(z, "d"), put(y, "d")), (smooth, put(z, "d"), put(y, "d")),
                (spec, put(z, None, "d"), put(y)), (smooth, put(z, None, "d"), put(y)),
                (binary, put(z, "d"), put(abs(z) % 1, "d")),
            ):
                value, gradient = loss.value_and_grad(np.asarray(x), np.asarray(t), sample_weight=w)
                for of in (loss.value_and_grad, jax.jit(loss.value_and_grad)):
                    got = of(x, t, sample_weight=w)
                    assert abs(got[0] - value) < 1e-5, (got, value)
                    assert abs(np.asarray(got[1]) - gradient).max() < 1e-6
                    ours, theirs = got[1].sharding, x.sharding
                    assert ours.is_equivalent_to(theirs, 2), (ours, theirs)
        part = ul.CrossEntropyLoss(from_logits=True, reduction="sum", ignore_index=1)
        mesh = Mesh(np.array(jax.devices()), ("d",))
        summed = jax.shard_map(
            lambda z, y: jax.lax.psum(part(z, y), "d"),
            mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P(),
        )
        value, gradient = part.value_and_grad(z, y)
        got = jax.jit(jax.value_and_grad(summed))(z, y)
        assert abs(got[0] - value) < 1e-5 and abs(got[1] - gradient).max() < 1e-6
        assert abs(jax.pmap(part)(z.reshape(2, 2, 6), y.reshape(2, 2)).sum() - value) < 1e-5
        """,
        "--xla_force_host_platform_device_count=2",
    )


def test_only_concrete_values_are_read() -> None:
    """CPU and NumPy arrays are readable, tracers are not; `convert` keeps 64 bits and device."""
    from unifiedloss.adapters.jax import ADAPTER

    x = jnp.asarray(X)
    assert ADAPTER.readable(x, Y, None)
    seen = []
    jax.vmap(lambda z: seen.append(ADAPTER.readable(z, Y)) or z)(x)
    jax.grad(lambda z: seen.append(ADAPTER.readable(z)) or z.sum())(x)
    assert seen == [False, False]
    made = ADAPTER.convert(np.array([2**40, 1]), x)
    assert (made.dtype, int(np.asarray(made)[0]), made.sharding) == (np.int64, 2**40, x.sharding)
    assert ADAPTER.convert(np.array([1.5], ">f4"), None).dtype == jnp.float32


@pytest.mark.parametrize("rows", [4, 5000], ids=["few", "many"])
def test_bad_values_raise_from_few_and_from_many(rows: int) -> None:
    """Bad labels raise in small and large batches; NaN and infinite logits do not.

    A small batch checks its labels only if its loss is NaN, a large one always.
    """
    z, y = jnp.zeros((rows, 3)), np.zeros(rows, np.int32)
    for first, wanted in ((0.0, np.log(3)), (np.nan, np.nan), (-np.inf, np.inf)):
        logits = z.at[0, 0].set(first)
        losses = CE(logits, jnp.asarray(y)), CE.value_and_grad(logits, jnp.asarray(y))[0]
        np.testing.assert_allclose(losses, [wanted] * 2, 1e-5)
    y[-1] = 3
    for spec, predictions in ((CE, z), (CE.replace(reduction="none"), z), (BCE, z[:, 0])):
        for call in (spec, spec.value_and_grad):
            with pytest.raises(ul.BadValueError, match=rf"targets\[{rows - 1}\] is 3"):
                call(predictions, jnp.asarray(y))


def test_forward_mode_in_a_compiled_program() -> None:
    """A tangent and a Hessian in a jitted program are those of eager mode."""
    spec, along = ul.MeanSquaredError(), jnp.arange(12.0).reshape(4, 3)

    def loss(z: Any) -> Any:
        return spec(z, X[::-1])

    def jvp(z: Any) -> Any:
        return jax.jvp(loss, (z,), (along,))[1]

    wanted = jvp(jnp.asarray(X))
    assert wanted != 0
    np.testing.assert_allclose(jax.jit(jvp)(X), wanted, rtol=1e-6)
    hessian = jax.hessian(loss)
    np.testing.assert_allclose(jax.jit(hessian)(X), hessian(jnp.asarray(X)), rtol=1e-6)
