"""The fuzz: random calls in every backend against two oracles, and tests of the fuzz itself.

``python -m tests.fuzz`` runs it for as long as you like. Here it runs on fixed seeds, fewer where a
call has to be compiled. With ``--strength all`` it also runs the compiled modes and Keras.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.fuzz import calls, check, fields, fuzz, independent, levels
from unifiedloss import UnifiedLossError, compiled, registry
from unifiedloss.adapters.numpy import NumPyAdapter
from unifiedloss.conformance.workers import KERAS_BACKENDS
from unifiedloss.losses import ROWS, spec_class

ROW_NAMES = [row.name for row in ROWS]


def _on(framework: str, *values: Any) -> Any:
    return pytest.param(framework, *values, marks=pytest.mark.framework(framework))


def _run(backend: str, mode: str, first: int, count: int, **options: Any) -> None:
    """Run the calls of some seeds; fail with the smallest failing call of the first bad seed."""
    ran = 0
    for seed in range(first, first + count):
        outcome = fuzz.run(backend, mode, seed, **options)
        ran += outcome.left_out is None
        assert not outcome.failures, f"seed {seed}\n{outcome.shown()}"
    assert ran > count / 2


@pytest.mark.parametrize(
    ("backend", "count"), [_on("numpy", 150), _on("torch", 150), _on("tensorflow", 60)]
)
def test_eager_calls(backend: str, count: int) -> None:
    """No random call differs from the oracle, and each error is the one that NumPy raises."""
    _run(backend, "eager", 1_000_000, count, shapes="all" if backend == "numpy" else "small")


@pytest.mark.framework("jax")
def test_jax_calls() -> None:
    """The same in JAX, which compiles each call."""
    _run("jax", "eager", 2_000_000, 12, shapes="small")


@pytest.mark.slow("test_eager_calls, on fewer seeds and in eager modes")
@pytest.mark.parametrize(
    ("backend", "mode", "count"),
    [
        _on("numpy", "eager", 4000),
        _on("torch", "eager", 3000),
        _on("torch", "aot_eager", 60),
        _on("tensorflow", "eager", 1500),
        _on("tensorflow", "function", 150),
        _on("jax", "jit", 60),
        _on("jax", "vmap", 40),
    ],
)
def test_more_calls(backend: str, mode: str, count: int) -> None:
    """More seeds, and the modes that compile."""
    _run(backend, mode, 3_000_000, count, shapes="all" if mode == "eager" else "small")


@pytest.mark.slow("test_eager_calls, and the conformance suite in Keras")
@pytest.mark.framework("keras", *KERAS_BACKENDS)
@pytest.mark.parametrize("on", KERAS_BACKENDS)
def test_keras_calls(on: str) -> None:
    """Keras, in a process of its own for each of its backends."""
    command = ["-m", "tests.fuzz", "--backend", "keras", "--shapes", "small", "--seed", "4000000"]
    count = "40" if on == "jax" else "400"
    done = subprocess.run(
        [sys.executable, *command, "--count", count, "--minutes", "5"],
        env=os.environ | {"KERAS_BACKEND": on},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_levels_of_the_compiled_loops() -> None:
    """Every level has the bits of NumPy: losses and gradients of random calls of the loops."""
    names = [name for name in compiled.levels() if name != compiled.NUMPY]
    for seed in range(80):
        assert not levels.differences(levels.draw(seed, 2048), names), seed


# ---------------------------------------------------------------------------- the fuzz itself


@pytest.mark.parametrize("row", ROWS, ids=ROW_NAMES)
def test_every_field_is_drawn(row: Any) -> None:
    """Each value that a field's annotation lists is drawn, and so are others than the default."""
    cls = spec_class(row)
    drawn = []
    for seed in range(400):
        rng, rounding = np.random.default_rng(seed), ("native", "exact", "auto")[seed % 3]
        drawn.append(fields.draw(rng, cls, (2, 3, 4)[: seed % 4], rounding, wild=seed % 2 == 0))
    for name, declaration in cls.declarations.items():
        values = {getattr(spec, name) for spec in drawn}
        assert declaration.default in values
        assert len(values) > 1
        for part in fields.parts_of(cls, name):
            if isinstance(part, str | bool | None):
                try:
                    declaration.check(name, part)
                except UnifiedLossError:  # a base class lists the values of all losses
                    continue
                assert part in values, (name, part)


def test_field_that_nobody_can_draw_is_an_error() -> None:
    """A new kind of annotation does not go unfuzzed in silence."""
    with pytest.raises(TypeError, match=r"nobody can draw a field annotated with .*complex"):
        fields._candidate(np.random.default_rng(0), complex, (complex,), (3,), 3, wild=False)


def test_second_oracle_knows_every_field() -> None:
    """Whoever adds a field teaches it to the second oracle, or says here why not."""
    left_out = {"dtype"}  # it rounds the inputs
    for row in ROWS:
        assert set(spec_class(row).declarations) <= independent.KNOWN | left_out


def test_seed_decides_the_call() -> None:
    """The same seed gives the same call, so that a failure can be run again."""
    for seed in range(50):
        one, two = calls.draw(seed), calls.draw(seed)
        assert one.spec == two.spec
        for name in ("predictions", "targets", "sample_weight", "mask", "upstream"):
            a, b = getattr(one, name), getattr(two, name)
            assert (a is None) == (b is None)
            assert a is None or (a.dtype == b.dtype and a.tobytes() == b.tobytes())


def test_calls_are_of_every_kind() -> None:
    """Few calls are refused, and all losses, dtypes and companions occur."""
    drawn = [calls.draw(seed) for seed in range(600)]
    assert {call.spec.name for call in drawn} == set(ROW_NAMES)
    for of in (
        lambda call: call.dtype,
        lambda call: call.targets.dtype.name,
        lambda call: call.predictions.shape,
        lambda call: None if call.sample_weight is None else call.sample_weight.dtype.name,
        lambda call: None if call.upstream is None else np.asarray(call.upstream).dtype.name,
    ):
        assert len({of(call) for call in drawn}) >= 4
    refused = 0
    for call in drawn:
        try:
            refused += bool(call.expected().bad_positions)
        except UnifiedLossError:
            refused += 1
    assert 0.05 < refused / len(drawn) < 0.4


def test_wrong_bit_of_a_level_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level that gives another bit somewhere is named."""
    call = levels.draw(3, 64)
    given = levels.exact.evaluate

    def off(*arguments: Any, gradient: bool) -> Any:
        loss, slopes = given(*arguments, gradient=gradient)
        if compiled.level() != compiled.NUMPY and slopes is not None:
            slopes.flat[-1] = np.nextafter(slopes.flat[-1], np.float32(np.inf))
        return loss, slopes

    monkeypatch.setattr(levels.exact, "evaluate", off)
    names = [name for name in compiled.levels() if name != compiled.NUMPY]
    assert levels.differences(call, names) == names


class _OneUlpOff(NumPyAdapter):
    """Gives each gradient element the number next to it, away from 0."""

    def value_and_grad(self, *arguments: Any, **more: Any) -> Any:
        value, gradient = super().value_and_grad(*arguments, **more)
        away = np.where(gradient < 0, -np.inf, np.inf).astype(gradient.dtype)
        return value, np.nextafter(gradient, away)


def test_wrong_bit_is_found() -> None:
    """In exact mode no result may be one unit in the last place off."""
    found = 0
    for seed in range(60):
        call = calls.draw(seed, rounding="exact", shapes="small")
        if call.dtype == "bfloat16" or check.failures(registry.adapter("numpy"), "eager", call):
            continue
        found += bool(check.failures(_OneUlpOff(), "eager", call))
    assert found > 20


def test_second_oracle_finds_a_wrong_bit() -> None:
    """The second oracle refuses each neighbour of a right number."""
    found = tried = 0
    for seed in range(200):
        call = calls.draw(seed, rounding="exact", shapes="small")
        try:
            expected = call.expected()
        except UnifiedLossError:
            continue
        assert not independent.differences(call, expected), seed
        gradient = np.array(expected.grad_predictions, np.float64)
        if call.dtype != "float64" or not gradient.any():
            continue
        tried += 1
        wrong = dataclasses.replace(
            expected, grad_predictions=np.nextafter(gradient, np.inf).tolist()
        )
        found += bool(independent.differences(call, wrong))
    assert tried > 10
    assert found > tried / 2
