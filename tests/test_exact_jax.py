"""Exact mode on JAX: the same bits under every transformation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import unifiedloss as ul
from tests import graph_primitives
from tests.test_jax import run
from unifiedloss import compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")

# Import after the check that JAX is installed.
from unifiedloss.adapters.jax import callback, evaluation, program  # noqa: E402
from unifiedloss.adapters.jax.graph import JaxOps  # noqa: E402
from unifiedloss.exact.graph import tiers  # noqa: E402

pytestmark = pytest.mark.framework("jax")

CE = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
BCE = ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact")
MSE = ul.MeanSquaredError(rounding="exact")
HUBER = ul.HuberLoss(delta=1.5, rounding="exact")

X = np.array([[2, 1, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.25, 0.5]], np.float32)
Y = np.array([0, 1, 1, 2])
# Narrowed to 32 bits, these targets, labels and weights would give other results.
T = np.array([[0.2, 0.3, 0.5], [1, 0, 0], [0, 1 / 3, 2 / 3], [0.1, 0.1, 0.8]])
FAR = np.array([[2**40 + 1.0, 0, 0], [0, 1, 2], [1, 3, -1], [0.5, 0.5, 0.5]])
IGNORED = np.array([0, 2**32 + 1, 1, 2])
W = np.array([1 / 3, 2, 0.7, 1])

CALLS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "index": (CE, Y, {}),
    "int64 labels": (CE.replace(ignore_index=2**32 + 1), IGNORED, {}),
    "dense": (CE, T, {"sample_weight": W}),
    "binary": (
        BCE.replace(pos_weight=[1, 2, 3], label_smoothing=0.1),
        T,
        {"mask": np.array([True, False, True, True])},
    ),
    "squared": (MSE, FAR, {}),
}


def same(got: Any, wanted: Any) -> None:
    """Assert equal dtypes, shapes and bits."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    # A scalar array has no view of another item size.
    got, wanted = np.atleast_1d(got), np.atleast_1d(wanted)
    np.testing.assert_array_equal(got.view(np.uint8), wanted.view(np.uint8))


@pytest.mark.parametrize("name", CALLS)
def test_transformations(name: str) -> None:
    """The bits are NumPy's under each; 64-bit targets and weights keep their digits without x64."""
    spec, t, more = CALLS[name]
    loss_of, z = spec.to("jax"), jnp.asarray(X)
    value, gradient = spec.value_and_grad(X, t, **more)

    def of(z: Any) -> Any:
        return loss_of(z, t, **more)

    def looped(z: Any) -> Any:
        return jax.lax.scan(lambda total, row: (total + of(row), None), jnp.float32(0), z)[0]

    twice = jnp.stack([z, z])
    same(of(z), value)
    same(jax.jit(of)(z), value)
    same(jax.vmap(of)(twice), np.stack([value, value]))
    for pair in (
        spec.value_and_grad(z, t, **more),
        jax.jit(lambda z: spec.value_and_grad(z, t, **more))(z),
    ):
        same(pair[0], value)
        same(pair[1], gradient)
    same(jax.grad(of)(z), gradient)
    same(jax.jit(jax.grad(of))(z), gradient)
    same(jax.grad(jax.jit(of))(z), gradient)
    same(jax.jit(jax.vmap(jax.grad(of)))(twice)[1], gradient)
    same(jax.grad(lambda z: jax.vmap(of)(z).sum())(twice)[0], gradient)
    same(jax.jit(jax.grad(jax.checkpoint(of)))(z), gradient)
    same(jax.jit(jax.grad(looped))(twice)[1], gradient)


# ------------------------------------------------------------------------------------- in the graph


@pytest.fixture
def in_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Compute even the smallest call in the graph; return a count of the rows left to the host.

    The graph computes all calls where there are no compiled loops.
    """
    rows = []
    original = program._rows

    def counted(plan: Any, results: Any, arrays: Any) -> None:
        rows.append(int(np.sum(arrays[1])))
        original(plan, results, arrays)

    monkeypatch.setattr(program, "LEAST", 0)
    monkeypatch.setattr(program, "_rows", counted)
    jax.clear_caches()
    with compiled.forced(compiled.NUMPY):
        yield lambda: sum(rows)
    jax.clear_caches()


def test_primitives() -> None:
    """Under XLA, sums, products and roundings are exact, and functions are within their bounds."""

    def in_jit(function: Any, *arrays: Any) -> list[Any]:
        with jax.enable_x64(True):  # noqa: FBT003 - JAX's signature
            return [np.asarray(x) for x in jax.jit(function)(*map(jnp.asarray, arrays))]

    graph_primitives.check_all(JaxOps(), in_jit)


def _hard_logits(dtype: Any) -> Any:
    """Rows of all scales: equal, subnormal, infinite and NaN logits, a saturated row on a tie."""
    random = np.random.default_rng(1)
    x = random.normal(size=(60, 7)) * random.choice([1, 4, 30, 100], (60, 1))
    x[0], x[1], x[2], x[3], x[4] = 0, 1.5, -6e4, 1e-40, [6e4, *[-0.00390625] * 6]
    x[5, ::2], x[6], x[7, 0], x[8, 0] = -np.inf, -np.inf, np.inf, np.nan
    x[9] = random.normal(0, 400, 7)
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("skipped", [set(), {"float64"}], ids=["", "host"])
def test_index_in_graph(
    in_graph: Callable[[], int], monkeypatch: pytest.MonkeyPatch, dtype: str, skipped: set[str]
) -> None:
    """The bits are the host's, whether float64 decides most rows or leaves them all to the host."""
    monkeypatch.setattr(tiers, "skipped_tiers", skipped)
    x = _hard_logits(jnp.dtype(dtype))
    y = np.random.default_rng(2).integers(0, 7, 60)
    spec = CE.replace(reduction="none", class_weights=[1, 0.3, 2, 1, 1e-3, 1, 0], ignore_index=5)
    weight = np.random.default_rng(3).random(60).astype(np.float32)
    value, gradient = spec.value_and_grad(x, y, sample_weight=weight)
    compiled = jax.jit(spec.value_and_grad)(jnp.asarray(x), y, sample_weight=weight)
    same(compiled[0], value)
    same(compiled[1], gradient)
    assert in_graph() >= 40 if skipped else 1 <= in_graph() <= 25


@pytest.mark.parametrize(
    ("spec", "targets", "more"),
    [
        (
            CE.replace(class_weights=[1, 2, 0.3, 0, 5, 6, 7]),
            "index",
            {"sample_weight": True, "mask": True},
        ),
        (CE.replace(label_smoothing=0.1, reduction="sum"), "index", {}),
        (CE, "dense", {"mask": True}),
        (
            BCE.replace(label_smoothing=0.1, pos_weight=[1, 2, 3, 4, 5, 6, 7]),
            "dense",
            {"sample_weight": True},
        ),
        (BCE.replace(reduction="none"), "hard", {}),
        (MSE, "dense", {"sample_weight": True}),
        (MSE.replace(reduction="none"), "hard", {}),
        (HUBER, "dense", {"sample_weight": True}),
        (HUBER.replace(reduction="none"), "hard", {}),
    ],
)
def test_other_losses_in_graph(
    in_graph: Callable[[], int], spec: Any, targets: str, more: dict[str, Any]
) -> None:
    """Every other kind of loss with a form in the graph gives the host's bits."""
    random = np.random.default_rng(4)
    x = (random.normal(size=(60, 7)) * random.choice([1, 4, 30], (60, 1))).astype(np.float32)
    x[0] = 0
    if targets == "index":
        y = random.integers(0, 7, 60)
    else:
        y = random.random((60, 7)).astype(np.float32)
    y = np.round(y) if targets == "hard" else y
    companions = {
        "sample_weight": random.random(60).astype(np.float32),
        "mask": random.random(60) < 0.8,
    }
    given = {name: companions[name] for name in more}
    value, gradient = spec.value_and_grad(x, y, **given)
    compiled = jax.jit(lambda x: spec.value_and_grad(x, y, **given))(x)
    same(compiled[0], value)
    same(compiled[1], gradient)
    assert in_graph() < 45


def test_transformations_in_graph(in_graph: Callable[[], int]) -> None:
    """vmap adds its axis to the program, and a scan does not call the host at every step."""
    spec, labels = CE.replace(ignore_index=0), Y
    zs = jnp.asarray(np.stack([X, X[::-1], 2 * X]))
    gradients = np.stack([spec.value_and_grad(z, labels)[1] for z in np.asarray(zs)])

    def looped(zs: Any) -> Any:
        return jax.lax.scan(lambda total, z: (total + spec(z, labels), None), jnp.float32(0), zs)[0]

    same(jax.jit(jax.vmap(jax.grad(lambda z: spec(z, labels))))(zs), gradients)
    same(jax.grad(lambda zs: jax.vmap(lambda z: 2 * spec(z, labels))(zs).sum() / 2)(zs), gradients)
    same(jax.jit(jax.grad(looped))(zs), gradients)
    assert in_graph() == 0


@pytest.mark.slow("one vmap, in the test above")
def test_nested_vmap_in_graph(in_graph: Callable[[], int]) -> None:
    """Two maps add two axes to the program."""
    spec, zs = CE.replace(ignore_index=0), jnp.asarray(np.stack([X, X[::-1], 2 * X]))
    both = np.stack([Y, Y[::-1]])
    nested = jax.jit(jax.vmap(jax.vmap(spec.to("jax"), (0, None)), (None, 0)))(zs, both)
    same(nested, np.stack([[spec(z, y) for z in np.asarray(zs)] for y in both]))
    assert in_graph() == 0


@pytest.mark.parametrize("name", ["index", "dense", "binary"])
@pytest.mark.slow("labels, and dense targets in test_other_losses_in_graph", only=["dense"])
@pytest.mark.usefixtures("in_graph")
def test_eager_calls_that_keep_coming(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated eager calls are compiled after a while, with the same bits and the same errors."""
    ran = []
    original = program.run
    monkeypatch.setattr(
        program, "run", lambda *args, **more: ran.append(1) or original(*args, **more)
    )
    monkeypatch.setattr(evaluation, "_MANY", 2 * X.size)
    evaluation._elements.cache_clear()
    spec, t, more = CALLS[name]
    value, gradient = spec.value_and_grad(X, t, **more)
    z = jnp.asarray(X)
    for programs in (0, 0, 1):
        same(spec(z, t, **more), value)
        assert len(ran) == programs
    pair = spec.value_and_grad(z, t, **more)
    assert len(ran) == 2
    same(pair[0], value)
    same(pair[1], gradient)
    same(jax.grad(lambda z: spec(z, t, **more))(z), gradient)
    bad = np.where(Y == 1, 3, Y) if name == "index" else np.where(t == 0, -1, t)
    with pytest.raises(ul.BadValueError):
        spec(z, bad, **more)


def test_small_examples_of_a_vmap_count_together() -> None:
    """Many examples are one program, because the host would compute one after the other."""
    spec = CE.replace(label_smoothing=0.1)
    z, y = np.random.default_rng(6).normal(size=(40, 7)).astype(np.float32), np.arange(40) % 7
    slopes = np.stack([spec.value_and_grad(*one)[1] for one in zip(z, y, strict=True)])
    each = jax.vmap(jax.grad(spec))
    same(jax.jit(each)(z, y), slopes)
    same(each(z[:3], y[:3]), slopes[:3])
    assert "f64[" in str(jax.make_jaxpr(each)(z, y))
    assert "f64[" not in str(jax.make_jaxpr(each)(z[:3], y[:3]))


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_of_a_vmap_are_one_call(
    axis: int | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host computes examples of one row each together; half types have another loss dtype."""
    spec = ul.CrossEntropyLoss(axis=axis, rounding="exact")
    shape = (5, 1) if axis == 0 else (5,)
    p = np.random.default_rng(8).dirichlet(np.ones(5), (3, 4)).astype(dtype).reshape(3, 4, *shape)
    t = np.random.default_rng(9).dirichlet(np.ones(5), 4).astype(np.float32).reshape(4, *shape)
    upstream = np.float32([1, 0.3, 2.5])
    if dtype == "float32":

        def alone(*_: Any) -> None:
            raise AssertionError

        monkeypatch.setattr(evaluation, "_fill", alone)

    def one(p: Any, t: Any, u: Any) -> Any:
        return spec.value_and_grad(p, t, upstream=u)

    found = jax.jit(jax.vmap(jax.vmap(one, (0, 0, None)), (0, None, 0)))(p, t, upstream)
    each = [[one(x, y, u) for x, y in zip(xs, t, strict=True)]
            for xs, u in zip(p, upstream, strict=True)]  # fmt: skip
    for got, part in zip(found, (0, 1), strict=True):
        same(got, np.array([[pair[part] for pair in pairs] for pairs in each]))
    empty = jax.vmap(one, (0, None, None))(p[:0, 0], t[0], upstream[0])
    assert [x.shape for x in empty] == [(0,), (0, *shape)]


def test_blocks_and_long_rows(in_graph: Callable[[], int]) -> None:
    """Cover a last block that overlaps the one before it, and rows summed in three rounds."""
    for shape in ((301, 700), (5, 40_000)):
        random = np.random.default_rng(5)
        x, y = random.normal(0, 4, shape).astype(np.float32), random.integers(0, shape[1], shape[0])
        value, gradient = CE.value_and_grad(x, y)
        compiled = jax.jit(CE.value_and_grad)(x, y)
        same(compiled[0], value)
        same(compiled[1], gradient)
        assert in_graph() <= 3


# -------------------------------------------------------------------------- in a callback to a loop

LARGE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "weights": (CE, Y, {"sample_weight": W.astype(np.float32), "mask": Y != 2}),
    "smoothed": (CE.replace(label_smoothing=0.1), Y, {}),
    "dense": (CE, T.astype(np.float32), {}),
    "none": (CE.replace(reduction="none"), Y, {}),
    "binary": (BCE.replace(label_smoothing=0.1), T.astype(np.float32), {}),
}


def ways_of(function: Callable[..., Any], *arrays: Any) -> set[str]:
    """How a traced function computes losses: "callback", "program", or both."""
    text = str(jax.make_jaxpr(function)(*arrays))
    found = {"callback"} if "buffer_callback" in text else set()
    # Only a program computes in float64 here, and it calls back from within a condition.
    return {"program"} if "f64[" in text else found


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A callback is worth its time for each call that a loop computes."""
    monkeypatch.setattr(program, "LEAST", 0)
    monkeypatch.setattr(evaluation, "_WORTH_A_CALLBACK", {"labels": 1, "others": 1})
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.skipif(not compiled.is_available(), reason="there are no compiled loops here")
@pytest.mark.usefixtures("all_are_large")
@pytest.mark.parametrize("name", LARGE)
def test_a_callback_runs_the_loops(name: str) -> None:
    """It does where a compiled loop computes the plan; without the loops a program does."""
    spec, t, more = LARGE[name]

    def step(z: Any) -> Any:
        return spec.value_and_grad(z, t, **more)

    with compiled.forced(compiled.NUMPY):
        assert ways_of(step, X) == {"program"}
    jax.clear_caches()
    assert ways_of(step, X) == {"callback"}
    zs = np.stack([X, -X, 2 * X])
    wanted = [np.stack(x) for x in zip(*map(step, zs), strict=True)]
    loops = jax.jit(lambda zs: jax.lax.scan(lambda carry, z: (carry, step(z)), 0, zs)[1])
    for found in (jax.jit(jax.vmap(step))(zs), loops(zs)):
        for mine, numpy in zip(found, wanted, strict=True):
            same(mine, numpy)


def test_small_calls_run_a_program() -> None:
    """A callback takes longer than a program of a few elements, also under vmap."""
    rng = np.random.default_rng(0)
    for count, way in (
        (300, "program"),
        (400, "callback" if compiled.is_available() else "program"),
    ):
        z = rng.normal(size=(count, 100)).astype(np.float32)
        y = rng.integers(0, 100, count)
        step = CE.replace(label_smoothing=0.1).to("jax")
        assert ways_of(step, z, y) == {way}
        assert ways_of(jax.vmap(step), np.stack([z, z]), np.stack([y, y])) == {way}
        assert ways_of(CE.replace(reduction="none").to("jax"), z, y) == {"program"}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_upstream(transform: Callable[..., Any], reduction: str) -> None:
    """The gradient includes the upstream before it is rounded; a later product has other bits."""
    spec = CE.replace(reduction=reduction)
    upstream = np.float32(0.3 if reduction == "mean" else [0.3, -1.7, 0, 1e-3])
    _, wanted = spec.value_and_grad(X, Y, upstream=upstream)
    same(transform(jax.grad(lambda z: (spec(z, Y) * upstream).sum()))(X), wanted)
    same(transform(lambda z: spec.value_and_grad(z, Y, upstream=upstream)[1])(X), wanted)
    wide = upstream.astype(np.float64) + 1e-9
    _, of_wide = spec.value_and_grad(X, Y, upstream=wide)
    same(transform(lambda z: spec.value_and_grad(z, Y, upstream=wide)[1])(X), of_wide)
    assert (wanted != np.expand_dims(upstream, -1) * spec.value_and_grad(X, Y)[1]).any()


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_given_divisor_without_64_bits(transform: Callable[..., Any]) -> None:
    """A given divisor keeps its 64 bits where no tensor has any, also under differentiation."""
    random = np.random.default_rng(0)
    spec = ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact")
    z = random.normal(size=(4, 3)).astype(np.float32)
    y = (random.random((4, 3)) > 0.5).astype(np.float32)
    divisor = spec.divisor_of(y)
    wanted = spec.value_and_grad(z, y, divisor=divisor)
    found = transform(jax.value_and_grad(lambda x: spec(x, jnp.asarray(y), divisor=divisor)))(z)
    same(found[0], wanted[0])
    same(found[1], wanted[1])


def test_mapped_one_sided_and_twice() -> None:
    """vmap maps any of the arrays along any axis, and may be nested."""
    spec = CE.replace(reduction="none")
    zs = jnp.asarray(np.stack([X, X[::-1], 2 * X]))
    wanted = np.stack([spec(z, Y) for z in np.asarray(zs)])
    same(jax.vmap(spec.to("jax"), (0, None))(zs, jnp.asarray(Y)), wanted)
    same(jax.vmap(spec.to("jax"), (2, None))(jnp.moveaxis(zs, 0, 2), Y), wanted)
    labels = np.stack([Y, Y[::-1]])
    same(jax.vmap(spec.to("jax"), (None, 0))(zs[0], labels), np.stack([spec(X, y) for y in labels]))
    both = jax.jit(jax.vmap(jax.vmap(spec.to("jax"), (0, None)), (None, 0)))(zs, labels)
    same(both, np.stack([[spec(z, y) for z in np.asarray(zs)] for y in labels]))
    assert jax.vmap(spec.to("jax"), (0, None))(zs[:0], Y).shape == (0, 4)
    slopes = jax.vmap(jax.grad(lambda z, u: spec(z, Y) @ u), (None, 0))(
        zs[0], jnp.asarray(np.eye(4, dtype=np.float32))
    )
    same(slopes.sum(0), spec.value_and_grad(X, Y)[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_half_types(dtype: str, reduction: str) -> None:
    """Results have the dtypes of native mode and the bits of NumPy."""
    spec = CE.replace(reduction=reduction)
    z = jnp.asarray(X, dtype)
    value, gradient = spec.value_and_grad(np.asarray(z), Y)
    for of in (spec.value_and_grad, jax.jit(spec.value_and_grad)):
        pair = of(z, jnp.asarray(Y))
        assert pair[0].dtype == (z.dtype if reduction == "none" else jnp.float32)
        same(pair[0], value)
        same(pair[1], gradient)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rules_of_the_oracle(dtype: str) -> None:
    """A rule that only the oracle computes has loss and gradient in a compiled program too."""
    spec = CE.replace(from_logits=False, epsilon="keras", renormalize="before_clip")
    z = jnp.asarray(np.abs(X) + 0.5, dtype)
    value, gradient = spec.value_and_grad(np.asarray(z), Y)
    mapped = jax.jit(jax.vmap(jax.value_and_grad(spec.to("jax"))))(z[None], Y[None])
    same(mapped[0][0], value)
    same(mapped[1][0], gradient)


@pytest.mark.parametrize(
    "transform", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"]
)
def test_subnormal_results(transform: Callable[..., Any]) -> None:
    """Subnormal results survive, though XLA and the threads of its callbacks flush them to 0."""
    z, y = jnp.array([[[100.0, 0.0]]]), jnp.array([[0]])
    value = transform(CE.replace(axis=-1))(z, y)
    same(np.reshape(value, ()), np.float32(3.783506e-44))

    def total(z: Any) -> Any:
        return CE.replace(axis=-1, reduction="sum")(z, y[0] if z.ndim == 2 else y).sum()

    slope = transform(jax.grad(total))(z)
    same(slope[0, 0], np.float32([-3.783506e-44, 3.783506e-44]))


def test_memory_layout_and_numpy_predictions() -> None:
    """Views, transposed arrays and another byte order give the same bits."""
    value, gradient = CE.value_and_grad(X, Y)
    for x in (X[:, ::-1][:, ::-1], np.asfortranarray(X), X.astype(">f4"), jnp.asarray(X.T).T):
        same(CE.to("jax")(x, Y), value)
        pair = jax.value_and_grad(CE.to("jax"))(jnp.asarray(np.asarray(x, np.float32)), Y)
        same(pair[0], value)
        same(pair[1], gradient)


def test_training() -> None:
    """The loss falls over five compiled training steps, from log 2."""
    points = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    labels = (points[:, 0] > 0).astype(np.int32)

    def loss_of(parameters: Any) -> Any:
        return CE(points @ parameters, labels)

    compiled = jax.jit(jax.value_and_grad(loss_of))
    parameters = jnp.zeros((2, 2))
    losses = []
    for _ in range(5):
        value, slope = compiled(parameters)
        losses.append(float(value))
        parameters = parameters - slope
    assert losses[0] == np.float32(np.log(2))
    assert losses == sorted(losses, reverse=True)


def test_stop_gradient_makes_constants() -> None:
    """No derivative passes through `stop_gradient`."""
    z = jnp.asarray(X)
    jax.grad(lambda z: CE(z, jax.lax.stop_gradient(jax.nn.softmax(z))))(z)
    step = jax.grad(lambda z: CE(z - jax.grad(CE.to("jax"))(jax.lax.stop_gradient(z), Y), Y))(z)
    same(step, CE.value_and_grad(np.asarray(z - jax.grad(CE.to("jax"))(z, Y)), Y)[1])


def test_bad_values() -> None:
    """They raise in eager calls and poison their own position under jit."""
    with pytest.raises(ul.BadValueError):
        CE(jnp.asarray(X), Y + 1)
    with pytest.raises(ul.BadValueError):
        CE.value_and_grad(jnp.asarray(X), Y + 1)
    each = CE.replace(reduction="none")
    losses = jax.jit(each.to("jax"))(X, Y + 1)
    assert np.isnan(losses).tolist() == [False, False, False, True]
    slope = jax.jit(jax.grad(lambda z: each(z, Y + 1).sum()))(X)
    assert np.isnan(slope).any(1).tolist() == [False, False, False, True]


def test_float64_predictions_need_x64() -> None:
    """float64 predictions are refused without x64, and computed in float64 with it."""
    with pytest.raises(ul.UnsupportedError, match="x64 is enabled"):
        CE.to("jax")(X.astype(np.float64), Y)
    value, gradient = CE.value_and_grad(X.astype(np.float64), T, sample_weight=W)
    with jax.enable_x64(True):  # noqa: FBT003 - JAX's signature
        for of in (CE.value_and_grad, jax.jit(CE.value_and_grad)):
            pair = of(jnp.asarray(X, jnp.float64), T, sample_weight=W)
            same(pair[0], value)
            same(pair[1], gradient)
        same(jax.jit(jax.grad(lambda z: CE(z, T, sample_weight=W)))(X.astype(np.float64)), gradient)


def test_export_is_refused() -> None:
    """jax.export is refused, because an exported program has no Python host to call back."""
    rows = jax.export.symbolic_shape("n")[0]
    float32, int32 = np.dtype(np.float32), np.dtype(np.int32)
    arguments = jax.ShapeDtypeStruct((rows, 3), float32), jax.ShapeDtypeStruct((rows,), int32)
    with pytest.raises(ul.UnsupportedError, match=r"jax\.export"):
        jax.export.export(jax.jit(CE.to("jax")))(*arguments)
    # With known shapes, JAX says only when it lowers a program that it exports it.
    known = jax.ShapeDtypeStruct((5, 3), float32), jax.ShapeDtypeStruct((5,), int32)
    functions = CE.to("jax"), jax.grad(CE.to("jax")), CE.value_and_grad, CE.totals
    for function in (*functions, lambda z, y: CE.result(CE.totals(z, y))):
        with pytest.raises(ul.UnsupportedError, match=r"jax\.export"):
            jax.export.export(jax.jit(function))(*known)


def test_split_over_devices() -> None:
    """Arrays split over two devices give NumPy's bits, and the gradient is where they are.

    In a program whose types name no mesh axes, XLA decides where the gradient is.
    """
    run(
        """
        import contextlib
        import jax, jax.numpy as jnp, numpy as np, unifiedloss as ul
        from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
        from unifiedloss import compiled as loops
        from unifiedloss.adapters.jax import evaluation, program as graph
        z = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
        y, w = np.array([0, 1, 5, 2], np.int32), np.array([1.0, 2.0, 3.0, 4.0])
        spec = ul.CrossEntropyLoss(
            from_logits=True, class_weights=[1, 2, 3, 4, 5, 6], ignore_index=1, rounding="exact"
        )
        wanted = spec.value_and_grad(z, y, sample_weight=w)
        over = spec.value_and_grad(z, y, sample_weight=w, divisor=0.3)
        totals, divisor = spec.totals(z, y, sample_weight=w), spec.divisor_of(y, sample_weight=w)
        def check(got, wanted, like=None):
            assert got[0] == wanted[0], (got, wanted)
            assert (np.asarray(got[1]) == wanted[1]).all()
            if like is not None:
                ours, theirs = got[1].sharding, like.sharding
                assert ours.is_equivalent_to(theirs, 2), (ours, theirs)
        def gradient(x, t, **k):
            return jax.value_and_grad(lambda x: spec(x, t, **k))(x)
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = Mesh(np.array(jax.devices()), ("d",), axis_types=(kind,))
            named = kind == AxisType.Explicit
            def put(x, *axes):
                return jax.device_put(x, NamedSharding(mesh, P(*axes)))
            with jax.set_mesh(mesh) if named else contextlib.nullcontext():
                for x, t in ((put(z, "d"), put(y, "d")), (put(z, None, "d"), put(y))):
                    for of in (spec.value_and_grad, gradient):
                        check(of(x, t, sample_weight=w), wanted, x)
                        check(of(x, t, sample_weight=w, divisor=0.3), over, x)
                        compiled = jax.jit(of)
                        check(compiled(x, t, sample_weight=w), wanted, x if named else None)
                    assert (np.asarray(spec.totals(x, t, sample_weight=w)) == totals).all()
                    assert (np.asarray(spec.divisor_of(t, sample_weight=w)) == divisor).all()
                    assert spec.result(spec.totals(x, t, sample_weight=w)) == wanted[0]
                rows = put(z, "d"), put(y, "d")
                part = spec.replace(reduction="none")
                losses = part(*rows)
                assert losses.sharding.is_equivalent_to(rows[1].sharding, 1)
                assert (np.asarray(losses) == part(z, y)).all()
                if named:
                    program = jax.jit(spec.value_and_grad).lower(*rows).compile().as_text()
                    assert "all-gather" not in program
        second = jax.devices()[1]
        for of in (spec.value_and_grad, jax.jit(spec.value_and_grad), gradient):
            got = of(jax.device_put(z, second), jax.device_put(y, second), sample_weight=w)
            check(got, wanted)
            assert got[0].devices() == got[1].devices() == {second}
        # jax.shard_map refuses arrays of another mesh than the one that is set.
        with jax.set_mesh(Mesh(np.array(jax.devices()), ("e",))):
            value, slopes = spec.value_and_grad(*rows, sample_weight=w)
        assert np.asarray(value) == wanted[0] and (np.asarray(slopes) == wanted[1]).all()
        # Where XLA may split a call, a program computes it, and in jax.shard_map each device calls.
        evaluation._WORTH_A_CALLBACK.update(labels=0, others=0)
        graph.LEAST = 0
        def step(x, t):
            return spec.replace(reduction="none")(x, t)
        split = jax.shard_map(
            step, mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P("d"), check_vma=False
        )
        assert "f64[" in str(jax.make_jaxpr(step)(z, y))
        assert not loops.is_available() or "f64[" not in str(jax.make_jaxpr(split)(*rows))
        assert (np.asarray(jax.jit(split)(*rows)) == step(z, y)).all()
        """,
        "--xla_force_host_platform_device_count=2",
    )


def test_large_arrays_do_not_deadlock() -> None:
    """Large arrays and concurrent programs finish in a process that may use one processor only.

    `jax.pure_callback` deadlocks there (JAX 0.10).
    """
    run(
        """
        import os
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        import jax, numpy as np, unifiedloss as ul
        from unifiedloss import compiled
        from unifiedloss.adapters.jax import program
        program.LEAST = 10**9
        x = np.ones((64, 4096), np.float32)
        binary = ul.BinaryCrossEntropyLoss(from_logits=True, label_smoothing=0.5, rounding="exact")
        squared = ul.MeanSquaredError(rounding="exact")
        for level, spec in ((compiled.level(), binary), (compiled.NUMPY, squared)):
            spec, z = spec.replace(reduction="sum"), x - 1
            wanted = spec.value_and_grad(z + 1, 0 * x, upstream=np.float32(3))[1]
            with compiled.forced(level):
                step = jax.jit(jax.grad(lambda z: 3 * spec(z + 1, 0 * x)))
                gradients = [step(z) for _ in range(4)]
                assert all((g == wanted).all() for g in gradients)
        """
    )


def test_without_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """`jax.pure_callback`, the fallback without a CPU or buffer callbacks, gives the same bits."""
    monkeypatch.setattr(callback, "buffer_callback", None)
    monkeypatch.setattr(tiers, "skipped_tiers", {"float64"})
    monkeypatch.setattr(program, "LEAST", 0)
    jax.clear_caches()
    # The first call leaves rows to the host, the second the entire call.
    for spec, t in ((CE.replace(ignore_index=7), Y), (CE.replace(class_weights=[1, 2, 3]), T)):
        value, gradient = spec.value_and_grad(X, t)
        mapped = jax.jit(jax.vmap(lambda z, spec=spec, t=t: spec.value_and_grad(z, t)))
        pair = mapped(np.stack([X, X]))
        same(pair[0][1], value)
        same(pair[1][1], gradient)
    jax.clear_caches()
