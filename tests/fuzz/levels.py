"""Compare the levels of the compiled loops with NumPy, bit by bit, on random calls.

``python -m tests.fuzz.levels --elements 1e8 --seed 1`` runs until so many predictions are compared.
A failure prints its seed, and ``--elements 1 --seed N`` runs that call again. The exit status is 1
if a bit differs.

The calls go to the kernel itself, because bad values are errors before it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.fuzz.numbers import pick
from unifiedloss import compiled, exact
from unifiedloss.exact import counts
from unifiedloss.losses import ROWS, spec_class
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.spec import Loss

Array = NDArray[Any]
Rng = np.random.Generator

LOSSES = (
    *("cross_entropy", "binary_cross_entropy", "mean_squared_error", "huber"),
    "negative_log_likelihood",
)
LABELS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
MOST = 1 << 17
"""The most predictions of a call."""

MOST_WIDE = 1 << 12
"""The same of float64, of which balls compute every number at the level "numpy"."""

MOST_PROBABILITIES = 1 << 12
"""The same of probabilities of classes, which balls compute there too."""

DTYPES = ("float32", "float32", "float32", "float64")

EPSILONS = (0.0, 1e-7, 1e-3, "keras", "sklearn", 0.2, 1e-30)

_FEW = 1 << 10


class Call(NamedTuple):
    """The arguments of `exact.evaluate`."""

    plan: Plan
    predictions: Array
    targets: Array
    weight: Array | None
    mask: Array | None
    upstream: Array | float | None


def draw(seed: int, most: int = MOST) -> Call:
    """The call of a seed, with at most so many predictions."""
    rng = np.random.default_rng(seed)
    name = str(pick(rng, ("cross_entropy", *LOSSES)))
    of_labels = name in ("cross_entropy", "negative_log_likelihood")
    probabilities = name == "cross_entropy" and rng.random() < 0.4
    dtype = "float32" if probabilities else str(pick(rng, DTYPES))
    most = min(most, MOST_WIDE) if dtype == "float64" else most
    most = min(most, MOST_PROBABILITIES) if probabilities else most
    size = int(2 ** rng.uniform(0, np.log2(most)))
    classes = int(2 ** rng.uniform(0, np.log2(most / 2))) if rng.random() < 0.3 else 0
    classes = classes or int(2 ** rng.uniform(0, 10))
    n = max(1, size // classes) if of_labels else size
    shape = (n, classes) if of_labels else (n,)
    numbers = _numbers(rng, shape, dtype)
    spec = _spec(rng, name, classes)
    if probabilities:
        numbers = _probabilities(rng, numbers)
        spec = spec.replace(from_logits=False, **_rules(rng))
    predictions = _laid_out(rng, numbers)
    dense = probabilities and rng.random() < 0.5
    if dense:
        targets = rng.random(shape).astype(np.float32) ** 3
        spec = spec.replace(ignore_index=None)
    else:
        targets = _labels(rng, n, classes) if of_labels else _targets(rng, name, n, dtype)
    targets = _laid_out(rng, targets)
    weight = _weights(rng, n) if rng.random() < 0.4 else None
    mask = rng.random(n) < rng.random() if rng.random() < 0.3 else None
    upstream: Any = None
    if rng.random() < 0.5:
        upstream = _weights(rng, n) * rng.choice([-1.0, 1.0], n)
        if spec.reduction != "none":
            upstream = float(upstream[0])
    signatures = [
        None if x is None else Signature(x.shape, x.dtype.name)
        for x in (predictions, targets, weight, mask)
    ]
    plan = resolve(spec, *signatures)  # type: ignore[arg-type]
    return Call(plan, predictions, targets, weight, mask, upstream)


def _numbers(rng: Rng, shape: tuple[int, ...], dtype: str) -> Array:
    """Numbers of one spread, some of them quantised, far off, infinite, or NaN."""
    spread = 10.0 ** rng.uniform(-6, 2)
    x = rng.normal(scale=spread, size=shape)
    if rng.random() < 0.3:
        step = spread * 2.0 ** -int(rng.integers(0, 8))
        x = np.round(x / step) * step
    if rng.random() < 0.15:
        x += rng.choice([-1, 1]) * 10.0 ** rng.uniform(0, 4)
    if rng.random() < 0.15:  # some so small that float64 does not hold their differences
        x *= 10.0 ** -(rng.integers(0, 12, shape).astype(np.float64))
    odd = rng.random()
    if odd < 0.1 and x.size < _FEW:  # the oracle computes most of such rows
        x[rng.random(shape) < rng.random()] = -np.inf
    elif odd < 0.2:
        x.flat[rng.integers(0, x.size, 3)] = rng.choice([np.nan, np.inf, -np.inf, 3e38, 1e-40], 3)
    if dtype == "float64" and rng.random() < 0.2:
        x *= 10.0 ** rng.uniform(-320, 300)
    return x.astype(dtype)


def _probabilities(rng: Rng, z: Array) -> Array:
    """The softmax of numbers; NaN, infinite and subnormal ones stay, and some rows have any sum."""
    with np.errstate(all="ignore"):
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        if rng.random() < 0.2:
            p *= rng.uniform(0, 1, (len(z), 1))
        return np.where(np.isnan(p) | (z == np.float32(1e-40)), z, p).astype(np.float32)


def _rules(rng: Rng) -> dict[str, Any]:
    """The rules of probabilities of classes."""
    rules: dict[str, Any] = {"epsilon": EPSILONS[int(rng.integers(len(EPSILONS)))]}
    if rules["epsilon"] and rng.random() < 0.6:
        rules["renormalize"] = str(pick(rng, ("before_clip", "after_clip")))
    if rng.random() < 0.3:
        rules["label_smoothing"] = float(rng.random())
    if rng.random() < 0.3:
        rules["class_weighting"] = "position"
    return rules


def _labels(rng: Rng, n: int, classes: int) -> Array:
    dtype = np.dtype(str(pick(rng, LABELS)))
    labels = rng.integers(0, min(classes, np.iinfo(dtype).max), n).astype(dtype)
    if rng.random() < 0.15:  # bad ones
        ends = np.iinfo(dtype)
        bad = [ends.min, ends.max, min(classes, ends.max), max(-1, ends.min)]
        for place in rng.integers(0, n, 4):
            labels[place] = bad[int(rng.integers(len(bad)))]
    return labels


def _targets(rng: Rng, name: str, n: int, dtype: str) -> Array:
    if dtype == "float64" and rng.random() < 0.5:
        return rng.random(n) if name == "binary_cross_entropy" else _numbers(rng, (n,), dtype)
    if name != "binary_cross_entropy":
        t = _numbers(rng, (n,), "float32")
        return _retyped(rng, t if rng.random() < 0.7 else np.round(t))
    t = rng.random(n)
    kind = rng.random()
    if kind < 0.5:
        t = (t < 0.5).astype(np.float64)
    elif kind < 0.6:
        t[rng.integers(0, n, 3)] = rng.choice([np.nan, -1.0, 1.5, 1e-44, 1e-38, 0.0], 3)
    return _retyped(rng, t.astype(np.float32))


def _retyped(rng: Rng, t: Array) -> Array:
    """The numbers in another dtype, if it holds them; at times with a number float32 lacks."""
    dtype = np.dtype(str(pick(rng, ("float32", "float64", "float16", "bool", *LABELS))))
    with np.errstate(all="ignore"):
        other = t.astype(dtype)
        if not np.array_equal(other.astype(np.float32), t):
            return t
    if dtype.itemsize > 2 and rng.random() < 0.1:
        other[0] = 2**24 + 1 if dtype.kind in "iu" else 0.1
    return other


def _weights(rng: Rng, n: int) -> Array:
    """Float64 numbers: ones, powers of two, numbers of one size or of many, and zeros."""
    kind = rng.random()
    if kind < 0.2:
        return np.ones(n)
    if kind < 0.4:
        return 2.0 ** rng.integers(-3, 4, n)
    if kind < 0.6:
        return 10.0 ** rng.uniform(-44, 44, n)
    return rng.uniform(0, 2, n) * (rng.random(n) < 0.9)


def _spec(rng: Rng, name: str, classes: int) -> Loss:
    fields: dict[str, Any] = {"reduction": str(pick(rng, ("mean", "sum", "none")))}
    if name in ("cross_entropy", "negative_log_likelihood"):
        if name == "cross_entropy":
            fields["from_logits"] = True
        if rng.random() < 0.2:
            fields["class_weights"] = tuple(_weights(rng, classes).tolist())
        if rng.random() < 0.2:
            fields["ignore_index"] = int(rng.integers(-1, classes))
    elif name == "binary_cross_entropy":
        fields["from_logits"] = True
        if rng.random() < 0.5:
            fields["pos_weight"] = float(rng.uniform(0.01, 20))
    elif name == "huber":
        fields["delta"] = float(2.0 ** rng.integers(-3, 4) if rng.random() < 0.5 else rng.random())
    return spec_class(next(row for row in ROWS if row.name == name))(
        rounding="exact", on_empty="nan", **fields
    )


def _laid_out(rng: Rng, x: Array) -> Array:
    """The same numbers in another layout of memory."""
    way = rng.random()
    if way < 0.6:
        return x
    if way < 0.7:
        return np.asfortranarray(x)
    if way < 0.8:
        return x[::-1]
    if way < 0.85:
        shifted = np.frombuffer(b" " + x.tobytes(), x.dtype, offset=1)
        return shifted.reshape(x.shape)  # at an odd address
    room = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    room[..., 1:-2] = x
    return room[..., 1:-2]


def _bits(call: Call, level: str, *, gradient: bool) -> list[bytes]:
    with compiled.forced(level):
        return [x.tobytes() for x in exact.evaluate(*call, gradient=gradient) if x is not None]


def differences(call: Call, levels: list[str]) -> list[str]:
    """The levels whose bits are not those of NumPy, with or without a gradient."""
    expected = _bits(call, compiled.NUMPY, gradient=True)
    return [
        level
        for level in levels
        if _bits(call, level, gradient=True) != expected
        or _bits(call, level, gradient=False) != expected[:1]
    ]


def main() -> int:
    """Compare calls until there are enough elements, and print what differed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.levels", description=__doc__)
    parser.add_argument("--elements", type=float, default=1e6, help="predictions to compare")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--most", type=int, default=MOST, help="the most predictions of a call")
    given = parser.parse_args()
    levels = [level for level in compiled.levels() if level != compiled.NUMPY]
    if not levels:
        parser.exit(2, "There are no compiled loops to compare.\n")
    seed, elements, failed, begin = given.seed, 0, 0, time.process_time()
    of_loss: Counter[str] = Counter()
    while elements < given.elements:
        call = draw(seed, given.most)
        wrong = differences(call, levels)
        if wrong:
            failed += 1
            print(f"seed {seed}: {call.plan.spec} {call.predictions.shape}: {wrong}", flush=True)
        elements += call.predictions.size
        of_loss[call.plan.spec.name] += call.predictions.size
        seed += 1
    print(f"{elements} predictions, seeds {given.seed} to {seed - 1}: {dict(of_loss)}")
    print(f"levels {levels} against NumPy: {failed} calls differ; undecided {counts.undecided}")
    print(f"{time.process_time() - begin:.0f} s of processor time")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
