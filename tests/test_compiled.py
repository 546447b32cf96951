"""The compiled loops: their functions keep their bounds, and every level gives NumPy's bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import setup
import unifiedloss as ul
from tools import coefficients
from unifiedloss import compiled, registry
from unifiedloss.conformance.cases import all_cases, hard_cases
from unifiedloss.conformance.runner import check_adapter
from unifiedloss.errors import SpecValueError
from unifiedloss.exact import kernel

LEVELS = [name for name in compiled.levels() if name != compiled.NUMPY]
U = Decimal(2) ** -53
DIGITS = Context(prec=50, Emin=-(10**6), Emax=10**6)


def test_loops_are_built_where_they_can_be() -> None:
    """With a compiler the tests run the loops, unless the environment asks for a pure build."""
    if os.environ.get("UNIFIEDLOSS_BUILD") == "pure" or setup.why_not():
        pytest.skip("the loops cannot be built here, or are not wanted")
    assert LEVELS


def _steps(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Arguments of exp: random ones, and those at and beside the ends of its intervals."""
    ends = (np.arange(-1009, 1010) + 0.5) * np.log(2)
    ends = np.concatenate([ends, np.nextafter(ends, np.inf), np.nextafter(ends, -np.inf)])
    small = rng.uniform(-1, 1, 300) * 2.0 ** -rng.integers(0, 60, 300)
    return np.concatenate([rng.uniform(-700, 700, 1000), ends, small, [0.0, -700.0, 700.0]])


def _sums(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Arguments of log1p: random ones, and those where it changes its formula."""
    powers = 2.0 ** np.arange(-80, 400)
    beside = np.concatenate([powers - 1, np.nextafter(powers, np.inf), np.nextafter(powers, 0)])
    wide = 10.0 ** rng.uniform(-300, 290, 1000)
    return np.concatenate([rng.uniform(0, 1, 1000), wide, powers, beside[beside > 0], [0.0]])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("name", "units"), [("exponential", 3), ("logarithm", 8)])
def test_functions_keep_their_bounds(level: str, name: str, units: int) -> None:
    """Exp errs by less than 3 u and log1p by less than 8 u, as docs/exactness.md derives."""
    from unifiedloss.compiled import _loops

    rng = np.random.default_rng(0)
    arguments = (_steps if name == "exponential" else _sums)(rng)
    found = arguments.copy()
    getattr(_loops, name)(LEVELS.index(level), found.ctypes.data, len(found))
    for x, y in zip(arguments.tolist(), found.tolist(), strict=True):
        exact = Decimal(x)
        right = DIGITS.exp(exact) if name == "exponential" else DIGITS.ln(DIGITS.add(1, exact))
        if name == "logarithm" and x < 1e-20:
            right = DIGITS.subtract(exact, DIGITS.divide(DIGITS.multiply(exact, exact), 2))
        assert abs(Decimal(y) - right) <= units * U * abs(right), x


def test_coefficients_are_those_derived() -> None:
    """The C files hold the polynomials of tools/coefficients.py, and the bounds that they state."""
    for file, name, polynomial, most in (
        ("vectors.h", "EXP_Q", coefficients.exponential(), 0.2),
        ("vectors.h", "LOG_A", coefficients.logarithm(), 0.1),
        ("native.c", "EXP_Q_SINGLE", coefficients.exponential(single=True), 0.2),
        ("native.c", "LOG_A_SINGLE", coefficients.logarithm(single=True), 0.3),
    ):
        text = Path(compiled.__file__).with_name(file).read_text(encoding="utf-8")
        body = text.partition(f" {name}[")[2].partition("{")[2].partition("}")[0]
        numbers = [float.fromhex(x.rstrip(" \nf")) for x in body.split(",")]
        assert numbers == polynomial.coefficients
        assert 0 < polynomial.left_out < most


def _calls() -> Iterator[tuple[ul.Loss, tuple[Any, ...], dict[str, Any]]]:
    """Random calls that the loops compute, with rows and elements that they leave undecided."""
    rng = np.random.default_rng(7)
    ce, bce = ul.CrossEntropyLoss(from_logits=True), ul.BinaryCrossEntropyLoss(from_logits=True)
    shapes = [(7, 1), (33, 3), (300, 10), (40, 31), (17, 257), (9, 600), (5, 2049), (3, 5000)]
    for number, (n, k) in enumerate(shapes):
        spread = [0.01, 4, 30, 1000, 1, 100, 300, 10][number]
        z = rng.normal(scale=spread, size=(n, k)).astype(np.float32)
        dtype = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"][number]
        y = rng.integers(0, min(k, 100), n).astype(dtype)
        z[0, 0], z[1, -1] = 80, -np.inf
        weight = rng.uniform(0, 3, n)
        weight[0] = 0
        mask = rng.random(n) < 0.7
        yield ce, (z, y), {}
        yield ce.replace(reduction="none"), (z, y, weight), {}
        yield ce.replace(class_weights=tuple(rng.uniform(0.5, 2, k))), (z, y, None, mask), {}
        yield ce.replace(reduction="sum", ignore_index=0), (z, y), {"upstream": 0.3}
        yield ce, (np.asfortranarray(z), y), {"upstream": -65536.0}
        yield ce, (z[::2, ::-1], y[::2]), {}
    for n in (1, 31, 1024, 3000):
        p = rng.normal(scale=3, size=n).astype(np.float32)
        t = rng.normal(scale=3, size=n).astype(np.float32)
        hard = (rng.random(n) < 0.5).astype(np.float32)
        soft = rng.random(n).astype(np.float32)
        p[0], p[n // 2] = 1e30, 2.0**100
        t[n // 2] = 0
        t[-1] = 1e-44
        weight = rng.uniform(0, 3, n)
        mask = rng.random(n) < 0.7
        for spec, target in (
            (ul.MeanSquaredError(), t),
            (ul.HuberLoss(), t),
            (ul.HuberLoss(delta=0.3), t),
            (bce, hard),
            (bce.replace(pos_weight=3.3), soft),
        ):
            yield spec, (p, target), {}
            yield spec, (p * 100, target, None, mask), {"upstream": 0.7}
            yield spec.replace(reduction="none"), (p, target, weight), {}
            yield spec.replace(reduction="sum"), (p.reshape(-1, 1), target.reshape(-1, 1)), {}
            yield spec, (p[::-1], target), {}
        for extreme in (1e300, 1e-300):
            yield bce.replace(pos_weight=extreme), (p * 300, hard), {}


def _companions(arrays: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(("sample_weight", "mask"), arrays[2:], strict=False))


def _evaluate(spec: ul.Loss, arrays: tuple[Any, ...], more: dict[str, Any]) -> Any:
    return spec.value_and_grad(*arrays[:2], **_companions(arrays), **more)


def _totals(spec: ul.Loss, arrays: tuple[Any, ...]) -> Any:
    reduced = spec if spec.reduction != "none" else spec.replace(reduction="sum")
    return reduced.totals(*arrays[:2], **_companions(arrays))


def _bits(x: Any) -> bytes:
    return np.asarray(x).tobytes()


@pytest.mark.parametrize("level", LEVELS)
def test_levels_give_the_bits_of_numpy(level: str) -> None:
    """Value, gradient and totals of random calls have the same bits with and without the loops."""
    for spec, arrays, more in _calls():
        exact = spec.replace(rounding="exact")
        with compiled.forced(compiled.NUMPY):
            value, gradient = _evaluate(exact, arrays, more)
            totals = _totals(exact, arrays)
        with compiled.forced(level):
            assert _bits(_totals(exact, arrays)) == _bits(totals), (spec, arrays[0].shape)
            other, slopes = _evaluate(exact, arrays, more)
            alone = exact(*arrays[:2], **_companions(arrays))
        assert _bits(value) == _bits(other), (spec, arrays[0].shape)
        assert _bits(gradient) == _bits(slopes), (spec, arrays[0].shape)
        assert _bits(alone) == _bits(value), (spec, arrays[0].shape)


@pytest.mark.parametrize("level", LEVELS)
def test_a_mean_half_way_between_two_numbers(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact sum of the terms decides such a mean, and no tier of NumPy computes it again."""
    monkeypatch.setattr(kernel, "_by_tiers", None)
    spec = ul.MeanSquaredError(rounding="exact")
    targets = np.float32([0, -(2.0**-24), 0, -3 * 2.0**-24])
    with compiled.forced(level):
        # The terms 1 and 1 + 2^-23, and 1 and 1 + 3 2^-23: the mean of both is a tie.
        assert spec(np.ones(2, np.float32), targets[:2]) == 1
        assert spec(np.ones(2, np.float32), targets[2:]) == np.float32(1 + 2.0**-22)


def _to_midpoints(numbers: Any, rng: np.random.Generator) -> Any:
    """Factors that bring float64 numbers within a few units of a midpoint of two float32 numbers.

    No error bound decides such a product, so a loop must leave it to the next tier.
    """
    low = rng.uniform(1, 2, len(numbers)).astype(np.float32)
    middle = (low.astype(np.float64) + np.nextafter(low, np.float32(2))) / 2
    return middle / numbers * (1 + rng.integers(-3, 4, len(numbers)) * 2.0**-53)


def _near_midpoints() -> Iterator[tuple[ul.Loss, Any, Any, Any, Any]]:
    """Calls with a loss or a slope beside a midpoint: spec, predictions, targets, weight, upstream.

    The numbers that the factors scale are float64 approximations, a few units off.
    """
    rng = np.random.default_rng(11)
    n, k = 300, 7
    z = rng.normal(scale=3, size=(n, k)).astype(np.float32)
    y = rng.integers(0, k, n)
    e = np.exp(z.astype(np.float64))
    own = e[np.arange(n), y]
    others = e.sum(1) - own
    ce = ul.CrossEntropyLoss(from_logits=True, reduction="none")
    yield ce, z, y, _to_midpoints(np.log1p(others / own), rng), None
    yield ce, z, y, None, _to_midpoints(others / (others + own), rng)
    column = (y + 1) % k
    yield ce, z, y, None, _to_midpoints(e[np.arange(n), column] / e.sum(1), rng)
    # A shift rounds z - m by far more than the other errors, and only a huge factor shows it.
    small = (rng.uniform(0.5, 1, n) * 2.0**-45).astype(np.float32)
    shifted = np.stack([np.full(n, 311, np.float32), small], 1)
    factor = _to_midpoints(np.exp(-311.0) * np.exp(small.astype(np.float64)), rng)
    most = 2.0**150
    weighted = ce.replace(class_weights=(most, most))
    yield weighted, shifted, np.zeros(n, int), np.full(n, most), factor / most / most
    p, t = (rng.normal(scale=3, size=n).astype(np.float32) for _ in range(2))
    error = p.astype(np.float64) - t
    for loss, cost, slope in (
        (ul.MeanSquaredError(reduction="none"), error**2, 2 * error),
        (ul.HuberLoss(reduction="none", delta=9.0), error**2 / 2, error),
    ):
        yield loss, p, t, _to_midpoints(cost, rng), None
        yield loss, p, t, None, _to_midpoints(slope, rng)
    bce, wide = ul.BinaryCrossEntropyLoss(from_logits=True, reduction="none"), p.astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-wide))
    soft, fitted = rng.random(n).astype(np.float32), sigmoid.astype(np.float32)
    yield bce, p, soft, _to_midpoints(np.logaddexp(0, wide) - soft * wide, rng), None
    for share in (soft, fitted):  # the slope of a fitted target cancels nearly all digits
        slope = sigmoid - share
        slope[slope == 0] = 1.0
        yield bce, p, share, None, _to_midpoints(slope, rng)
    # Slopes 2 (p - t) / n of a mean that are midpoints: p - t has 34 bits, in two float32 numbers.
    middle = (2 * rng.integers(2**23, 2**24, n) + 1) * rng.choice([-1.0, 1.0], n)
    apart = middle * n / 2
    p = apart.astype(np.float32)
    t = (p - apart).astype(np.float32)
    yield ul.MeanSquaredError(), p, t, None, None


@pytest.mark.parametrize("level", LEVELS)
def test_bounds_decide_nothing_beside_a_midpoint(level: str) -> None:
    """Products within a few units of a midpoint have NumPy's bits: no bound decides them."""
    for spec, predictions, targets, weight, upstream in _near_midpoints():
        exact = spec.replace(rounding="exact")
        found = []
        for name in (compiled.NUMPY, level):
            with compiled.forced(name):
                call = exact.value_and_grad(
                    predictions, targets, sample_weight=weight, upstream=upstream
                )
            found.append(tuple(map(_bits, call)))
        assert found[0] == found[1], spec


@pytest.mark.parametrize(
    ("dtype", "held", "lost"),
    [
        ("bool", [True, False], None),
        ("uint8", [0, 255], None),
        ("int16", [-(2**15), 2**15 - 1], None),
        ("int32", [-(2**24), 2**24], -(2**24) - 1),
        ("uint64", [0, 2**24], 2**63),
        ("int64", [0, 1], 2**53 + 1),
        ("float16", [0.1, 6e-8, np.inf], None),
        ("float64", [0.5, 2.0**-149, -np.inf], 0.1),
    ],
)
def test_targets_of_other_dtypes(dtype: str, held: list[Any], lost: Any) -> None:
    """The elementwise loops read targets that float32 holds, and leave others to NumPy."""
    targets = np.array(held, dtype)
    found = compiled.as_float32(targets)
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == targets.tolist()
    if lost is not None:
        assert compiled.as_float32(np.array([0, lost], dtype)) is None


@pytest.mark.parametrize("level", [compiled.NUMPY, *LEVELS])
def test_every_level_conforms(level: str) -> None:
    """The eager cases of NumPy have the oracle's bits at every level."""
    adapter = registry.adapter("numpy")
    held = set(adapter.dtypes())
    cases = [
        case.rounded("exact")
        for case in (*all_cases(), *hard_cases())
        if case.dtype in held & {"float32", "float64"}
    ]
    with compiled.forced(level):
        report = check_adapter(adapter, cases=cases, modes=["eager"])
    assert report.ok, report.summary()
    assert report.comparisons > 1100


@pytest.mark.framework("torch")
@pytest.mark.parametrize("level", LEVELS)
def test_flush_to_zero_changes_no_bit(level: str) -> None:
    """A host that replaces subnormal numbers by 0 gets them all the same."""
    import torch

    spec = ul.CrossEntropyLoss(from_logits=True, rounding="exact")
    logits = torch.tensor([[0.0, -95.0, -100.0]], requires_grad=True)
    with compiled.forced(level):
        assert torch.set_flush_denormal(True)
        try:
            spec(logits, torch.tensor([0])).backward()
        finally:
            torch.set_flush_denormal(False)
    assert logits.grad is not None
    slopes = logits.grad.numpy().view(np.int32)
    assert (slopes[0, 1:] > 0).all()
    assert (slopes[0, 1:] < 1 << 23).all()


@pytest.mark.parametrize("name", ["numpy", "v9"])
def test_variable_chooses_the_level(name: str) -> None:
    """UNIFIEDLOSS_COMPILED is read once; a level that is not there is an error that lists them."""
    code = "from unifiedloss import compiled; print(compiled.level())"
    environment = os.environ | {compiled.VARIABLE: name}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    if name == "numpy":
        assert done.stdout.strip() == "numpy"
    else:
        assert done.returncode != 0
        assert "v9" in done.stderr
        assert ", ".join(compiled.levels()) in done.stderr


def test_forced_level_must_exist() -> None:
    """An unknown level is refused, and the level in use stays."""
    before = compiled.level()
    with pytest.raises(SpecValueError, match="no level 'v9'"), compiled.forced("v9"):
        pass
    assert compiled.level() == before


@pytest.mark.skipif(not LEVELS, reason="there are no compiled loops here")
def test_averaged_rows_are_not_added_element_by_element() -> None:
    """With `average_last_axis` the rounded terms are the averages, which the loops do not know."""
    spec = ul.BinaryCrossEntropyLoss(from_logits=True, average_last_axis=True, rounding="exact")
    rng = np.random.default_rng(0)
    for _ in range(50):
        z, t = rng.normal(0, 4, (7, 5)).astype(np.float32), rng.integers(0, 2, (7, 5))
        loss = spec(z, t.astype(np.float32))
        with compiled.forced(compiled.NUMPY):
            assert loss == spec(z, t.astype(np.float32))


@pytest.mark.skipif(not LEVELS, reason="there are no compiled loops here")
def test_memory_of_a_call_is_checked() -> None:
    """A shape that exceeds the memory given, or is none, is an error before anything is read."""
    mse, z, value = compiled.LOSSES.index("mean_squared_error"), np.ones(4, np.float32), np.empty(1)
    fixed = (mse, 4, 1, 4, False, 0, 0, 1.0, 4.0)
    out = value.astype(np.float32)
    assert compiled.call(fixed, 1.0, z, z * 3, 0, out) is None
    assert out[0] == 4
    for memory in ((z[:3], z, 0, out), (z, z[:3], 0, out), (z, z, z[:3], out), (z, z, 0, out[:0])):
        with pytest.raises(ValueError, match="shorter"):
            compiled.call(fixed, 1.0, *memory)
    frozen = z.copy()
    frozen.flags.writeable = False
    with pytest.raises((ValueError, BufferError), match=r"read-only|writable"):
        compiled.call(fixed, 1.0, z, z, frozen, out)
    for place, bad in ((0, 9), (1, 0), (2, 0), (5, 3), (6, -1)):
        wrong = (*fixed[:place], bad, *fixed[place + 1 :])
        with pytest.raises(ValueError, match="out of range"):
            compiled.call(wrong, 1.0, z, z, 0, out)
