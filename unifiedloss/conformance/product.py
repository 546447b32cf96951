"""Pairwise products of fields, and random data, for the cases of every loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from unifiedloss.conformance.case import Array, Case, rng_of, round_to
from unifiedloss.spec import Loss

Row = dict[str, Any]
"""One value for each axis of a product."""


COMMON: dict[str, Sequence[Any]] = {
    "reduction": ("mean", "sum", "none"),
    "divisor": ("weights", "present", "nonzero", "all"),
    "on_empty": ("nan", "zero"),
    "weight": (None, "full", "leading", "scalar", "zeros"),
    "mask": (None, "full", "leading", "nothing"),
    "dtype": ("float32", "float64", "float16", "bfloat16"),
    "upstream": (None, "given"),
}
"""The axes that every product has."""

_FEWER: dict[str, Sequence[Any]] = {
    "reduction": ("mean", "sum", "none"),
    "on_empty": ("nan",),
    "weight": (None, "zeros"),
    "mask": (None, "full"),
    "dtype": ("float32", "bfloat16"),
    "upstream": (None, "given"),
    "scale": (1.0, 2.5),
}
# Losses share these two products: each takes the rows of its variants. A pair of two fields then
# occurs in one loss only, which is enough for fields that the losses share. Whoever changes an axis
# changes all rows, so a new loss makes a product of its own.
_RULES: dict[str, tuple[int, dict[str, Sequence[Any]]]] = {
    "rows": (
        21,
        _FEWER
        | {
            "divisor": ("weights", "label_weights"),
            "shape": ((4, 3), (2, 3, 4)),
            "kind": ("index", "dense"),
            "variant": range(4),
            "label_smoothing": (0.0, 0.1),
        },
    ),
    "elements": (
        22,
        _FEWER
        | {
            "divisor": ("weights", "nonzero"),
            "shape": ((3, 4), (2, 3, 4)),
            "variant": range(2),
            "element_weights": (None, "last", "all"),
            "average_last_axis": (False, True),
        },
    ),
}


def product(
    name: str, axes: dict[str, Sequence[Any]], seed: int, make: Callable[[str, Row], Case]
) -> Iterator[Case]:
    """Make a case of each chosen row of a product.

    Args:
        name: the name of the product; its cases are "product/NAME 000", "product/NAME 001", ...
        axes: the values of each axis.
        seed: chooses the rows.
        make: makes a case of a name and a row.
    """
    for number, row in enumerate(pairs(axes, seed)):
        yield make(f"product/{name} {number:03}", row)


def rule_rows(name: str, variants: Collection[int]) -> Iterator[tuple[str, Row]]:
    """Yield the rows of these variants from the product "rows" or "elements", with case names."""
    seed, axes = _RULES[name]
    for number, row in enumerate(pairs(axes, seed)):
        if row["variant"] in variants:
            yield f"rules/{name} {number:03}", row


def pairs(axes: dict[str, Sequence[Any]], seed: int) -> list[Row]:
    """Choose rows of one value per axis so that each pair of values occurs (greedy, seeded)."""
    names = list(axes)
    sizes = [len(axes[name]) for name in names]
    rng = np.random.default_rng(seed)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(sizes[a])
        for j in range(sizes[b])
    }
    rows = []
    while missing:
        a, i, b, j = min(missing)
        best, covered = None, -1
        for _ in range(30):
            row = [int(rng.integers(n)) for n in sizes]
            row[a], row[b] = i, j
            new = sum(
                (c, row[c], d, row[d]) in missing
                for c, d in itertools.combinations(range(len(names)), 2)
            )
            if new > covered:
                best, covered = row, new
        assert best is not None
        missing -= {
            (c, best[c], d, best[d]) for c, d in itertools.combinations(range(len(names)), 2)
        }
        rows.append({name: axes[name][k] for name, k in zip(names, best, strict=True)})
    return rows


class Draw(NamedTuple):
    """Random data of a case, and the numbers that follow it.

    Attributes:
        name: the name of the case.
        rng: makes the rest of the case.
        spread: the standard deviation of the predictions.
        reduction: the reduction.
        dtype: the dtype of the predictions.
        predictions: up to 8 rows of up to 39 classes.
    """

    name: str
    rng: np.random.Generator
    spread: float
    reduction: Any
    dtype: str
    predictions: Array


def draws(numbers: Iterable[int]) -> Iterator[Draw]:
    """Make the data of random cases.

    Args:
        numbers: the numbers in the names of the cases. No other loss may have them.
    """
    for number in numbers:
        name = f"random/2026.{number:03}"
        rng = rng_of(name)

        spread = float(rng.choice([0.1, 1, 10, 60]))
        rows, classes = int(rng.integers(1, 9)), int(rng.integers(2, 40))
        reduction: Any = str(rng.choice(["mean", "sum", "none"]))
        dtype = str(rng.choice(["float32", "float32", "float64", "bfloat16", "float16"]))
        predictions = round_to(rng.normal(scale=spread, size=(rows, classes)), dtype)
        yield Draw(name, rng, spread, reduction, dtype, predictions)


def source(from_logits: bool) -> str:
    """The kind of predictions, in the name of a case."""
    return "logits" if from_logits else "probabilities"


def companions(rng: np.random.Generator, row: Row, positions: tuple[int, ...]) -> dict[str, Any]:
    """Weights, mask and upstream gradient for a per-position loss of this shape."""
    leading = positions[:1]
    weight = {
        None: None,
        "full": rng.uniform(0.5, 2, positions),
        "leading": rng.uniform(0.5, 2, leading),
        "scalar": np.array(0.75),
        "zeros": rng.uniform(0.5, 2, positions) * (rng.random(positions) < 0.5),
    }[row["weight"]]
    mask = {
        None: None,
        "full": rng.random(positions) < 0.6,
        "leading": rng.random(leading) < 0.7,
        "nothing": np.zeros(positions, bool),
    }[row["mask"]]
    upstream: Any = None
    if row["upstream"]:
        normal = np.asarray(rng.normal(size=positions))
        upstream = -1.5
        if row["reduction"] == "none":
            upstream = np.asarray(round_to(normal, row["dtype"]), np.float32)
    return {
        "sample_weight": None if weight is None else weight.astype(np.float32),
        "mask": None if mask is None else np.asarray(mask),
        "upstream": upstream,
        "dtype": row["dtype"],
    }


def fields_of(row: Row, *names: str) -> dict[str, Any]:
    """The fields that every loss has, and others by name."""
    return {name: row[name] for name in ("reduction", "divisor", "on_empty", *names)}


def shares(z: Array, axis: int) -> Array:
    """The softmax: positive numbers that add up to 1."""
    e = np.exp(z - z.max(axis, keepdims=True))
    p: Array = e / e.sum(axis, keepdims=True)
    return p


def element_weights(rng: np.random.Generator, row: Row) -> Array | None:
    """The element weights of a row of the product "elements"."""
    shape: tuple[int, ...] = row["shape"]
    weights: dict[Any, Array | None] = {
        None: None,
        "last": rng.uniform(0.5, 2, shape[-1]),
        "all": rng.uniform(0.5, 2, shape).round(1),
    }
    return weights[row["element_weights"]]


REAL = COMMON | {
    "shape": ((6,), (3, 4), (2, 3, 4), ()),
    "target_dtype": ("float32", "float64", "int32", "bool"),
}
"""The axes of a product for a loss of any numbers."""


def real_case(name: str, row: Row, spec: Loss) -> Case:
    """Make the case of a loss of any numbers, with random predictions and targets."""
    rng = rng_of(name)
    shape = row["shape"]
    predictions = np.asarray(rng.normal(scale=3, size=shape))
    targets = np.asarray(rng.normal(scale=3, size=shape))
    if not row["target_dtype"].startswith("float"):
        targets = np.rint(targets) if row["target_dtype"] != "bool" else targets > 0
    return Case(
        name,
        spec,
        round_to(predictions, row["dtype"]),
        targets.astype(row["target_dtype"]),
        **companions(rng, row, shape),
    )
