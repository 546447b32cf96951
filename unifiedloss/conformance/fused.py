"""Cases whose predictions are made in the program that computes their loss, as in a training step.

A compiler works on both together. XLA contracts a product and the subtraction after it into one
rounding, and compilers leave out a cast to a half type if a cast back follows. Predictions are
numbers of their dtype, so a loss must not see the digits that a compiler kept.

Each way to make predictions rounds once per operation in IEEE arithmetic, so NumPy knows the
predictions of every backend, bit by bit. The oracle reads those, and the bound is the same as that
of other cases. (XLA multiplies by the reciprocal of a divisor that is a constant or the same for
all elements, so each element has its own temperature, as an input. The matrix product is of small
integers, so it is exact in any order.)

The suite compares the loss alone, and the loss with the gradient, because compilers fuse the two
programs differently. The gradient is the one to the first source, as in a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from unifiedloss.conformance.case import Array, Case, Fusible, Made, rng_of, round_to

_THIRD, _THOUSAND, _TINY = (float(np.float32(scale)) for scale in (1 / 3, 1e3, 2.0**-20))
_TEMPERATURE = np.float32(0.07)


class Way(NamedTuple):
    """A way to make predictions.

    Attributes:
        sources: arrays from which a program makes about the given numbers.
        make: makes predictions from an adapter's operations and the sources as tensors.
        made: makes them in NumPy, from the sources.
        back: the gradient to the first source, for one to the predictions, in NumPy.
        dtype: the dtype of the predictions.
    """

    sources: Callable[[Array], tuple[Array, ...]]
    make: Callable[..., Any]
    made: Callable[..., Array]
    back: Callable[[Array], Array]
    dtype: str = "float32"


def _product(scale: float) -> Way:
    return Way(
        lambda x: (_f32(x / scale),),
        lambda _, source: source * scale,
        lambda source: source * np.float32(scale),
        lambda gradient: _f32(gradient) * np.float32(scale),
    )


def _cast_to(dtype: str) -> Way:
    return Way(
        lambda x: (_f32(x / _THIRD),),
        lambda ops, source: ops.cast(source * _THIRD, dtype),
        lambda source: round_to(source * np.float32(_THIRD), dtype),
        lambda gradient: _f32(gradient) * np.float32(_THIRD),
        dtype,
    )


def _f32(x: Array) -> Array:
    return np.asarray(x, np.float32)


def _matrices(x: Array) -> tuple[Array, ...]:
    rng = rng_of("fused/matrix product")
    rows = rng.integers(-8, 9, (x.shape[0], 8)).astype(np.float32)
    columns = rng.integers(-8, 9, (8, x.shape[1])).astype(np.float32)
    return _f32(x - rows @ columns), rows, columns


WAYS = {
    "product with 1/3": _product(_THIRD),
    "product with 1000": _product(_THOUSAND),
    "product with 2^-20": _product(_TINY),
    "matrix product": Way(
        _matrices,
        lambda _, bias, rows, columns: rows @ columns + bias,
        lambda bias, rows, columns: rows @ columns + bias,
        lambda gradient: gradient,
    ),
    "division": Way(
        lambda x: (_f32(x * _TEMPERATURE), np.full_like(x, _TEMPERATURE)),
        lambda _, source, temperature: source / temperature,
        lambda source, temperature: source / temperature,
        lambda gradient: _f32(gradient) / _TEMPERATURE,
    ),
    "cast from float16": Way(
        lambda x: ((x / _THIRD).astype(np.float16),),
        lambda ops, source: ops.cast(source, "float32") * _THIRD,
        lambda source: _f32(source) * np.float32(_THIRD),
        lambda gradient: (_f32(gradient) * np.float32(_THIRD)).astype(np.float16),
    ),
    "cast to float16": _cast_to("float16"),
    "cast to bfloat16": _cast_to("bfloat16"),
}


def fused_cases(fusible: Iterable[Fusible]) -> Iterator[Case]:
    """The cases of a loss: each of its calls, with predictions made in each way.

    The first call's product and its cast to bfloat16 are representative.
    """
    for i, call in enumerate(fusible):
        for name in call.ways or WAYS:
            way = WAYS[name]
            sources = way.sources(call.wanted)
            predictions = way.made(*sources)
            yield Case(
                f"fused/{call.name}, {name}",
                call.spec,
                predictions,
                call.targets(predictions),
                dtype=way.dtype,
                compiled=True,
                representative=i == 0 and name in ("product with 1/3", "cast to bfloat16"),
                rules=(*call.rules, "made-in-the-program"),
                made=Made(name, sources),
            )
