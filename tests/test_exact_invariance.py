"""Exact mode gives a row the same bits in any order, batch and memory, with any number of threads.

Run as a script, print the digest of some losses and gradients in a framework with one thread.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import unifiedloss as ul
from unifiedloss import registry
from unifiedloss.exact import fast

Array = NDArray[Any]

BACKENDS = [
    pytest.param(name, marks=pytest.mark.framework(name))
    for name in ("numpy", "torch", "tensorflow", "jax")
]
DTYPES = ("float32", "float32", "float64", "float16", "bfloat16")
SHAPE = 6, 5  # one shape for all examples, because JAX compiles for each

CE = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
BCE = ul.BinaryCrossEntropyLoss(from_logits=True, rounding="exact")
MSE = ul.MeanSquaredError(rounding="exact")


class Call(NamedTuple):
    """A call whose rows are independent of each other."""

    spec: Any
    dtype: str
    predictions: Array
    targets: Array
    weight: Array | None
    upstream: Array

    def rows(self, index: Any) -> Call:
        """The same call on some of its rows."""
        weight = None if self.weight is None else self.weight[index]
        return self._replace(
            predictions=self.predictions[index],
            targets=self.targets[index],
            weight=weight,
            upstream=self.upstream[index],
        )


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Draw a loss, dtype and kind of input; rows are flat to saturated, and two are equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(
        st.sampled_from(["index", "dense", "smoothed", "binary", "regression", "p", "binary p"])
    )
    z = rng.normal(scale=draw(st.sampled_from([0.0, 0.1, 4.0, 100.0, 800.0])), size=SHAPE)
    z[1] = z[0]
    p = np.exp(-np.abs(z) / 100)
    dense = rng.random(SHAPE).astype(np.float32)
    labels = rng.integers(0, SHAPE[1], SHAPE[0])
    spec, predictions, targets = {
        "index": (CE, z, labels),
        "smoothed": (CE.replace(label_smoothing=0.1, class_weights=(1, 0.3, 2, 0, 5)), z, labels),
        "dense": (CE, z, dense),
        "binary": (BCE.replace(pos_weight=0.3), z, dense),
        "regression": (MSE, z, dense),
        "p": (CE.replace(from_logits=False), p, labels),
        "binary p": (BCE.replace(from_logits=False, epsilon=1e-3), p, dense),
    }[kind]
    positions = SHAPE if spec.name != "cross_entropy" else SHAPE[:1]
    weight = rng.random(SHAPE[0]).astype(np.float32) if draw(st.booleans()) else None
    upstream = rng.normal(size=positions).astype(np.float32)
    return Call(spec, draw(st.sampled_from(DTYPES)), predictions, targets, weight, upstream)


def made(backend: str, call: Call, reduction: Any) -> list[Any]:
    """The tensors of a call: predictions, targets, weight or None, upstream gradient."""
    adapter = registry.adapter(backend)
    dtype = call.dtype if call.dtype != "float64" or backend != "jax" else "float32"
    weight = None if call.weight is None else adapter.tensor(call.weight)
    upstream = call.upstream if reduction == "none" else call.upstream.ravel()[0]
    loss_dtype = dtype if reduction == "none" or dtype == "float64" else "float32"
    return [
        adapter.tensor(call.predictions, dtype),
        adapter.tensor(call.targets),
        weight,
        adapter.tensor(np.asarray(upstream), loss_dtype),
    ]


def results(backend: str, spec: Any, tensors: list[Any]) -> tuple[Array, Array]:
    """Loss and gradient as float64, which represents every dtype's values exactly."""
    adapter = registry.adapter(backend)
    predictions, targets, weight, upstream = tensors
    pair = spec.value_and_grad(predictions, targets, sample_weight=weight, upstream=upstream)
    value, gradient = (np.asarray(adapter.to_numpy(x)).astype(np.float64) for x in pair)
    return value, gradient


def same(a: tuple[Array, ...], b: tuple[Array, ...]) -> None:
    """Assert that arrays are equal bit for bit."""
    for x, y in zip(a, b, strict=True):
        assert x.tobytes() == y.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(call=calls(), order=st.permutations(range(SHAPE[0])), cut=st.integers(1, SHAPE[0] - 1))
def test_order_and_batch(backend: str, call: Call, order: list[int], cut: int) -> None:
    """A row's results do not depend on the other rows, nor the mean's on the order of the rows."""
    each = call.spec.replace(reduction="none")
    value, gradient = results(backend, each, made(backend, call, "none"))
    moved = results(backend, each, made(backend, call.rows(order), "none"))
    same((value[order], gradient[order]), moved)
    if backend != "jax" or cut == 1:  # JAX compiles for each size
        parts = [
            results(backend, each, made(backend, call.rows(s), "none"))
            for s in (slice(cut), slice(cut, None))
        ]
        same((value, gradient), tuple(np.concatenate(x) for x in zip(*parts, strict=True)))
    for reduction in ("mean", "sum"):
        spec = call.spec.replace(reduction=reduction)
        # Reordered rows must have the same upstream gradient, which is the first one.
        constant = call._replace(upstream=np.full_like(call.upstream, call.upstream.flat[0]))
        value, gradient = results(backend, spec, made(backend, constant, reduction))
        moved = results(backend, spec, made(backend, constant.rows(order), reduction))
        same((value, gradient[order]), moved)


# ------------------------------------------------------------------------------------------- memory


def _in_numpy(x: Array) -> Iterator[Array]:
    yield np.asfortranarray(x)
    if x.ndim > 1:
        yield np.repeat(np.repeat(x, 2, 0), 3, -1)[::2, ..., ::3]
    else:
        yield np.repeat(x, 2)[::2]
    yield x[::-1].copy()[::-1]
    unaligned = np.empty(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    unaligned.flags.writeable = False
    yield unaligned
    if x.dtype.kind in "fiu":
        yield x.astype(x.dtype.newbyteorder(">"))


def _in_torch(x: Any) -> Iterator[Any]:
    torch = importlib.import_module("torch")
    yield x.T.contiguous().T if x.ndim == 2 else x.clone()
    yield torch.stack([x, x + 1], -1)[..., 0]
    yield torch.cat([x[:1], x, x])[1 : 1 + len(x)]


def _in_tensorflow(x: Any) -> Iterator[Any]:
    tf = importlib.import_module("tensorflow")
    yield tf.transpose(tf.transpose(x))
    yield tf.stack([x, x], -1)[..., 0]
    yield tf.concat([x[:1], x], 0)[1:]


def _in_jax(x: Any) -> Iterator[Any]:
    jnp = importlib.import_module("jax.numpy")
    yield x.T.T
    yield jnp.stack([x, x], -1)[..., 0]
    yield jnp.concatenate([x[:1], x])[1:]


_VIEWS = {"numpy": _in_numpy, "torch": _in_torch, "tensorflow": _in_tensorflow, "jax": _in_jax}


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(call=calls(), reduction=st.sampled_from(["none", "mean"]))
def test_memory(backend: str, call: Call, reduction: Any) -> None:
    """Transposed, strided, reversed, unaligned and byte-swapped memory gives the same bits."""
    spec = call.spec.replace(reduction=reduction)
    tensors = made(backend, call, reduction)
    wanted = results(backend, spec, tensors)
    for k in range(3):  # give each tensor another layout, and combine them differently each time
        views = [[x] if x is None or not np.ndim(x) else list(_VIEWS[backend](x)) for x in tensors]
        picked = [each[(k + i) % len(each)] for i, each in enumerate(views)]
        same(wanted, results(backend, spec, picked))
    for view in _VIEWS[backend](tensors[0]):
        same(wanted, results(backend, spec, [view, *tensors[1:]]))


@pytest.mark.framework("numpy", "torch")
def test_repeated_memory() -> None:
    """A row that is broadcast with a stride of 0 gives the bits of its copies."""
    torch = importlib.import_module("torch")
    row, target = np.float32([[3, -1, 0.5]]), np.float32([[0.2, 0.7, 0.1]])
    wanted = results("numpy", CE, [row.repeat(4, 0), target.repeat(4, 0), None, None])
    arrays = [np.broadcast_to(x, (4, 3)) for x in (row, target)]
    same(wanted, results("numpy", CE, [*arrays, None, None]))
    tensors = [torch.from_numpy(x).expand(4, 3) for x in (row, target)]
    same(wanted, results("torch", CE, [*tensors, None, None]))


# ---------------------------------------------------------------------------- many rows and threads


def _large() -> Iterator[tuple[Any, Array, Array]]:
    """Calls that take several of the kernel's blocks, enough for frameworks to start threads."""
    rng = np.random.default_rng(2)
    z = rng.normal(scale=4, size=(600, 700)).astype(np.float32)
    assert z.size > 3 * fast._BLOCK
    yield CE, z, rng.integers(0, 700, 600)
    z = z[:, :100]
    dense = rng.random(z.shape).astype(np.float32)
    yield CE, z, dense
    yield BCE, z, dense
    yield MSE, z, dense


def digest(backend: str) -> str:
    """Hash the bits of all large calls; eager and compiled ones must agree."""
    adapter = registry.adapter(backend)
    total = hashlib.sha256()
    for spec, *arrays in _large():
        tensors = [adapter.tensor(x) for x in arrays]
        pairs = [spec.value_and_grad(*tensors)]
        if backend == "tensorflow":
            tf = importlib.import_module("tensorflow")
            pairs.append(tf.function(spec.value_and_grad, autograph=False)(*tensors))
        if backend == "jax":
            pairs.append(importlib.import_module("jax").jit(spec.value_and_grad)(*tensors))
        bits = [b"".join(np.asarray(adapter.to_numpy(x)).tobytes() for x in pair) for pair in pairs]
        assert set(bits) == {bits[0]}
        total.update(bits[0])
    return total.hexdigest()


@pytest.mark.framework("numpy")
def test_batch_of_many_blocks() -> None:
    """A row among hundreds of others, in several blocks, has the bits it has alone."""
    for spec, z, t in _large():
        each = spec.replace(reduction="none")
        value, gradient = each.value_and_grad(z, t)
        for some in (slice(0, 1), slice(186, 189), slice(599, 600), slice(None, None, 37)):
            same((value[some], gradient[some]), each.value_and_grad(z[some], t[some]))


@pytest.mark.framework("numpy")
def test_calls_at_the_same_time() -> None:
    """Calls from several threads of the user do not disturb each other."""
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(digest, ["numpy"] * 4))) == 1


@pytest.mark.framework("numpy", "torch")
def test_threads_of_torch() -> None:
    """The bits do not depend on torch's number of threads."""
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert digest("torch") == digest("numpy")
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS[2:])
@pytest.mark.slow("TensorFlow, whose calls take the same way to the host", only=["jax"])
def test_threads_of_a_process(backend: str) -> None:
    """A process with one thread gives the same bits as this one with the default number.

    TensorFlow and JAX fix their number of threads at the start of a process.
    """
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS",
    )
    environment = {
        **os.environ,
        **dict.fromkeys(names, "1"),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    command = [sys.executable, __file__, backend]
    alone = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert alone.stdout.split()[-1] == digest(backend) == digest("numpy")


if __name__ == "__main__":
    if sys.argv[1] == "tensorflow":
        threading = importlib.import_module("tensorflow").config.threading
        threading.set_intra_op_parallelism_threads(1)
        threading.set_inter_op_parallelism_threads(1)
    print(digest(sys.argv[1]))
