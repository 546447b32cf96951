"""Hostile numbers: the specials of a dtype, ties, wide spreads, and what counts as 0.

An array is drawn in float64 and rounded to its dtype. bfloat16 arrays are of the dtype of
`ml_dtypes`, which TensorFlow and JAX bring along.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unifiedloss.floats import FORMATS, INTEGER_TYPES

Array = NDArray[Any]

FLOATS = tuple(FORMATS)
INTEGERS = tuple(sorted(INTEGER_TYPES))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name; that of `ml_dtypes` for bfloat16."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def rounded(x: Array, dtype: str) -> Array:
    """Round float64 numbers to a dtype."""
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(numpy_dtype(dtype))


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """Draw one of several values, as it is; `rng.choice` would make NumPy's own of it."""
    choices = list(choices)
    return choices[int(rng.integers(len(choices)))]


def specials(dtype: str) -> list[float]:
    """The positive special numbers of a floating dtype, from the smallest to infinity.

    What counts as 0 depends on two dtypes, the tensor's own and the compute dtype, so the smallest
    numbers of float32 are among those of float64.
    """
    form = FORMATS[dtype]
    tiny = [form.tiny]
    if dtype == "float64":
        tiny.append(FORMATS["float32"].tiny)
    found = [form.tiny * form.epsilon]  # the smallest subnormal number
    for least in tiny:
        found += [least * (1 - form.epsilon), least, least * (1 + form.epsilon), least / 2]
    found += [1 - form.epsilon / 2, 1.0, 1 + form.epsilon, form.largest, form.largest / 2, np.inf]
    return found


def real(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, *, wild: bool) -> Array:
    """Draw numbers of either sign, special ones included.

    Args:
        rng: the source.
        shape: the shape.
        dtype: a floating dtype.
        wild: whether any finite size may occur. If not, products of several numbers stay within
            float32.
    """
    form = FORMATS[dtype]
    way = int(rng.integers(6))
    normal = rng.normal(size=shape)
    if way == 0:
        x = normal
    elif way == 1:
        x = normal * 10.0 ** float(rng.integers(-3, 3))
    elif way == 2:  # few values, so that many are equal
        x = rng.choice(rng.normal(size=3) * 4, size=shape)
    elif way == 3:  # halves of integers, whose squares and sums are often ties
        x = rng.integers(-40, 40, size=shape) / 2.0
    elif way == 4:  # powers of two and their neighbours
        most = form.max_exponent if wild else 20
        x = np.ldexp(1.0, rng.integers(-min(most, -form.min_exponent), most + 1, size=shape))
        x = x * (1 + form.epsilon * rng.integers(-1, 2, size=shape)) * rng.choice([-1, 1], shape)
    else:  # any exponent
        most = form.max_exponent if wild else 12
        x = normal * np.ldexp(1.0, rng.integers(-most, most, size=shape))
    x = np.asarray(x, np.float64)
    return rounded(sprinkled(rng, x, _signed(specials(dtype), wild=wild)), dtype)


def _signed(numbers: list[float], *, wild: bool) -> list[float]:
    kept = [x for x in numbers if wild or not 1e10 < x < np.inf]
    return [0.0, -0.0, np.nan, *kept, *(-x for x in kept)]


def sprinkled(rng: np.random.Generator, x: Array, some: list[float], share: float = -1) -> Array:
    """Replace a share of the numbers by some others; by default often none, sometimes many."""
    if share < 0:
        share = float(rng.choice([0, 0, 0, 0.05, 0.2, 0.5]))
    at = rng.random(x.shape) < share
    return np.where(at, rng.choice(np.array(some, np.float64), size=x.shape), x)


def probabilities(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, axis: int | None, *, bad: bool
) -> Array:
    """Draw probabilities, with those next to 0 and 1; rows on `axis` often sum to 1.

    Args:
        rng: the source.
        shape: the shape.
        dtype: a floating dtype.
        axis: the class axis; None for single probabilities.
        bad: whether a few may be no probabilities.
    """
    form, single = FORMATS[dtype], FORMATS["float32"]
    x = rng.random(shape)
    way = int(rng.integers(4))
    if way == 1:  # next to 0 and to 1
        x = 10.0 ** -rng.uniform(0, 12, shape)
        x = np.where(rng.random(shape) < 0.5, x, 1 - x)
    elif way == 2 and axis is not None:
        e = np.exp(rng.normal(size=shape) * 5)
        x = e / e.sum(axis, keepdims=True)
    elif way == 3:
        x = rng.integers(0, 9, shape) / 8.0
    some = [0.0, -0.0, 1.0, -form.tiny / 2, 1 + form.epsilon, 1 + 4 * single.epsilon, 1e-7]
    some += [y for y in specials(dtype) if y <= 1]
    if bad:
        some += [np.nan, np.nan, 2.0, -1.0, np.inf, -form.tiny, 1 + 8 * single.epsilon]
    return rounded(sprinkled(rng, x, some), dtype)


def counts(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, *, wild: bool, negative: bool
) -> Array:
    """Draw weights: finite or NaN, of a floating or an integer dtype, many of them 0."""
    if dtype not in FORMATS:
        x = rng.integers(0, 4, shape)
        if negative and not dtype.startswith("u"):
            x = x - 1
        if wild and rng.random() < 0.2:
            x = x * (np.iinfo(dtype).max // 4)
        return np.asarray(x).astype(dtype)
    form = FORMATS[dtype]
    x = np.abs(real(rng, shape, dtype, wild=wild).astype(np.float64))
    some = [0.0, -0.0, form.tiny, form.tiny / 2, -form.tiny / 2, 1e-40, 1e-50, 1.0]
    if rng.random() < 0.2:
        some.append(np.nan)
    x = sprinkled(rng, x, some)
    x = np.where(np.isinf(x), 1.0, x)  # the result of an infinite weight is not promised
    if rng.random() < 0.8:
        x = np.where(np.isnan(x), 2.0, x)
    if negative:
        x = x * rng.choice([-1, 1, 1], shape)
    x = rounded(x, dtype)
    return np.where(np.isinf(x.astype(np.float64)), numpy_dtype(dtype).type(1), x)
