"""Exact mode in JAX programs on the CPU: the custom call of the compiled loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tests.test_jax import run
from unifiedloss import compiled

jax = pytest.importorskip("jax")

# Import after the check that JAX is installed.
from tests.test_exact_jax import same  # noqa: E402
from unifiedloss.adapters.jax import ffi  # noqa: E402

pytestmark = [
    pytest.mark.framework("jax"),
    pytest.mark.skipif(not compiled.is_available(), reason="there are no compiled loops here"),
]

RNG = np.random.default_rng(7)
Z = RNG.normal(0, 4, (40, 30)).astype(np.float32)
LABELS = RNG.integers(0, 30, 40)
HARD = RNG.integers(0, 2, Z.shape).astype(np.float32)
NUMBERS = RNG.normal(size=Z.shape).astype(np.float32)

CE = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
CALLS: dict[str, tuple[Any, Any]] = {
    "int64 labels": (CE, LABELS),
    "uint8 labels": (CE.replace(reduction="sum"), LABELS.astype(np.uint8)),
    "binary": (ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=2.5, rounding="exact"), HARD),
    "squared": (ul.MeanSquaredError(rounding="exact"), NUMBERS),
    "huber": (ul.HuberLoss(delta=0.3, rounding="exact"), NUMBERS),
}


def custom_calls(function: Any, *arrays: Any) -> int:
    """How many custom calls of the loops a compiled function makes."""
    text: str = jax.jit(function).lower(*arrays).as_text()
    return text.count(f"@{ffi._NAME}(")


@pytest.mark.parametrize("name", CALLS)
def test_bits(name: str) -> None:
    """Loss and gradient have NumPy's bits, also with upstream gradients that the loops refuse."""
    spec, t = CALLS[name]
    assert custom_calls(spec.value_and_grad, Z, t) == 1
    value, gradient = spec.value_and_grad(Z, t)
    for pair in (jax.jit(spec.value_and_grad)(Z, t), jax.jit(jax.value_and_grad(spec))(Z, t)):
        same(pair[0], value)
        same(pair[1], gradient)
    step = jax.jit(lambda z, u: spec.value_and_grad(z, t, upstream=u))
    for u in (0.3, -(2.0**-120), 0.0, np.inf, np.nan, 1e-45):
        upstream = np.float32(u)
        same(step(Z, upstream)[1], spec.value_and_grad(Z, t, upstream=upstream)[1])


def test_what_the_loop_leaves() -> None:
    """Python computes ties, infinite logits and subnormal losses, and makes bad labels NaN."""
    z, y = Z.copy(), LABELS.copy()
    z[0], z[1, 3], z[2] = 0, -np.inf, [6e4, *[-0.00390625] * 29]
    value, gradient = CE.value_and_grad(z, y)
    pair = jax.jit(CE.value_and_grad)(z, y)
    same(pair[0], value)
    same(pair[1], gradient)
    one = np.float32([[100, 0]])
    same(jax.jit(CE.to("jax"))(one, np.array([0])), np.array(27, np.uint32).view(np.float32))
    y[5] = 30
    pair = jax.jit(CE.value_and_grad)(z, y)
    assert np.isnan(pair[0])
    assert (np.isnan(pair[1]).all(1) == (np.arange(40) == 5)).all()
    same(np.delete(pair[1], 5, 0), np.delete(gradient, 5, 0))


def test_maps_and_loops() -> None:
    """Maps fold their axes into one custom call, which a scan makes at every step."""
    zs = np.stack([Z, Z[::-1], 2 * Z])
    wanted = np.stack([CE.value_and_grad(z, LABELS)[1] for z in zs])
    assert custom_calls(jax.vmap(CE.to("jax"), (0, None)), zs, LABELS) == 1
    mapped = jax.vmap(jax.grad(CE.to("jax")), (0, None))
    same(jax.jit(mapped)(zs, LABELS), wanted)
    twice = jax.vmap(jax.vmap(CE.to("jax"), (0, None)), (None, 0))
    both = np.stack([LABELS, LABELS[::-1]])
    same(jax.jit(twice)(zs, both), np.stack([[CE(z, y) for z in zs] for y in both]))

    def total(zs: Any) -> Any:
        return jax.lax.scan(lambda sum_, z: (sum_ + CE(z, LABELS), None), np.float32(0), zs)[0]

    same(jax.jit(jax.grad(jax.checkpoint(total)))(zs), wanted)


def test_predictions_made_in_the_program() -> None:
    """The loss is that of the predictions that the program returns."""
    weight = RNG.normal(size=(30, 30)).astype(np.float32)

    @jax.jit
    def step(x: Any) -> Any:
        z = jax.numpy.tanh(x @ weight) * 3 - x * 0.1
        return z, *CE.value_and_grad(z, LABELS)

    z, value, gradient = step(Z)
    wanted = CE.value_and_grad(np.asarray(z), LABELS)
    same(value, wanted[0])
    same(gradient, wanted[1])


@pytest.mark.parametrize(
    ("spec", "more"),
    [
        (CE.replace(reduction="none"), {}),
        (CE.replace(ignore_index=0), {}),
        (CE, {"sample_weight": np.ones(40, np.float32)}),
        (CE, {"mask": np.ones(40, bool)}),
    ],
)
def test_other_calls_stay_in_the_graph(spec: Any, more: dict[str, Any]) -> None:
    """Calls that the loops do not take whole make no custom call."""
    assert custom_calls(lambda z: spec(z, LABELS, **more), Z) == 0


@pytest.mark.parametrize("why", ["two devices", "wrong bits", "no registration"])
def test_without_custom_calls(why: str) -> None:
    """With several devices, or where the first call fails, the graph computes the same bits."""
    change = {
        "two devices": "",
        "wrong bits": "ffi._gives_the_bits_of_the_host = lambda: False",
        "no registration": "jax.ffi.register_ffi_target = None",
    }[why]
    run(
        f"""
        import jax, numpy as np, unifiedloss as ul
        from unifiedloss.adapters.jax import ffi
        {change}
        z = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
        y = np.arange(40) % 30
        spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
        step = jax.jit(spec.value_and_grad)
        assert ffi._NAME not in step.lower(z, y).as_text()
        for got, wanted in zip(step(z, y), spec.value_and_grad(z, y)):
            assert np.asarray(got).tobytes() == wanted.tobytes()
        """,
        "--xla_force_host_platform_device_count=2" if why == "two devices" else "",
    )


def test_from_the_compilation_cache(tmp_path: Any) -> None:
    """A program that another process compiled and kept gives the same bits."""
    program = f"""
        import jax, numpy as np, unifiedloss as ul
        jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        z = np.zeros((3, 5), np.float32)
        y = np.array([0, 1, 2])
        spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
        for got, wanted in zip(jax.jit(spec.value_and_grad)(z, y), spec.value_and_grad(z, y)):
            assert np.asarray(got).tobytes() == wanted.tobytes()
    """
    run(program)
    kept = list(tmp_path.iterdir())
    assert kept
    run(program)


def test_a_process_ends_before_its_program() -> None:
    """A process that waits for no result ends, whatever its program still wants of Python."""
    run(
        """
        import jax, numpy as np, unifiedloss as ul
        z = np.random.default_rng(0).normal(size=(60, 100)).astype(np.float32)
        z[:, 1] = -np.inf  # the label's, so that the host computes every loss
        y = np.ones(60, np.int32)
        z, y = jax.numpy.asarray(z), jax.numpy.asarray(y)
        spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
        # A program with more than the loss, because JAX runs very short ones in the main thread.
        step = jax.jit(lambda z, y: (jax.numpy.sin(z).sum(), spec.value_and_grad(z, y)))
        program = step.lower(z, y).compile()
        results = program(z, y)
        """
    )
