"""What tests/test_replicas.py runs on JAX meshes: calls on arrays that all devices share."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import unifiedloss as ul
from unifiedloss.conformance import engines
from unifiedloss.conformance.case import Case
from unifiedloss.conformance.cases import all_cases
from unifiedloss.conformance.engines import Outcome
from unifiedloss.conformance.processes import Place

SIZE = 12
"""Rows, and classes, which 2, 3 and 4 devices can share."""


def main(place: Place) -> Outcome:
    """Run the cases on a mesh of all devices."""
    return engines.work(place, "jax", engines.jobs_of(cases()))


def every_case(place: Place) -> tuple[int, list[str]]:
    """Run the cases of the suite on arrays that are not traced, split along each axis.

    Returns:
        How many calls there were, and which of them have other bits than NumPy's, or a gradient in
        another place than the predictions.
    """
    del place
    mesh = Mesh(np.array(jax.devices()), ("d",))
    count, wrong = 0, []
    for case in all_cases():
        if case.made is not None or case.dtype == "bfloat16":
            continue
        exact = case.rounded("exact")
        z = case.predictions.astype(case.dtype)
        given = {"sample_weight": case.sample_weight, "mask": case.mask, "upstream": case.upstream}
        wanted = _result(exact.spec, z, case.targets, given)
        for axis, extent in enumerate(z.shape):
            if not extent or extent % mesh.size:
                continue
            count += 1
            place_of = PartitionSpec(*["d" if a == axis else None for a in range(z.ndim)])
            with jax.enable_x64(True):  # noqa: FBT003 - positional in JAX
                x = jax.device_put(z, NamedSharding(mesh, place_of))
                found = _result(exact.spec, x, case.targets, given)
            if found != wanted:
                wrong.append(f"{case.name}, axis {axis}: {found}, should be {wanted}")
    return count, wrong


def processes(place: Place) -> list[str]:
    """Exact calls on arrays of a mesh of several processes, each with a device of it.

    Returns:
        What differs from the call in one process.
    """
    jax.distributed.initialize(f"127.0.0.1:{place.ports[0]}", place.size, place.rank)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    rows = NamedSharding(mesh, PartitionSpec("d"))
    spec: Any = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100, rounding="exact")
    rng = np.random.default_rng(0)
    z = rng.normal(size=(SIZE, SIZE)).astype(np.float32)
    y = rng.integers(0, SIZE, SIZE).astype(np.int32)
    y[:5] = -100
    wanted, slopes = spec.value_and_grad(z, y)
    x, t = (jax.make_array_from_callback(a.shape, rows, lambda at, a=a: a[at]) for a in (z, y))
    wrong = []
    for call in (spec.value_and_grad, jax.value_and_grad(spec.to("jax"))):
        value, gradient = call(x, t)
        (shard,) = gradient.addressable_shards
        if np.asarray(value) != wanted or (np.asarray(shard.data) != slopes[shard.index]).any():
            wrong.append(f"{call} gives {value} and {shard}")
    if np.asarray(spec.result(spec.totals(x, t))) != wanted:
        wrong.append("the result of the totals")
    return wrong


def _result(spec: Any, predictions: Any, targets: Any, given: dict[str, Any]) -> Any:
    """The bits of a loss and its gradient, or the error."""
    try:
        value, gradient = spec.value_and_grad(predictions, targets, **given)
    except ul.UnifiedLossError as error:
        return str(error)
    ours, theirs = (getattr(x, "sharding", None) for x in (gradient, predictions))
    if theirs is not None and not ours.is_equivalent_to(theirs, predictions.ndim):
        return f"the gradient is placed as {ours}"
    return [_bits(np.asarray(x)) for x in (value, gradient)]


def _bits(x: Any) -> Any:
    """Its bits; all NaN are alike."""
    return np.where(np.isnan(x), x.dtype.type(np.nan), x).tobytes()


def cases() -> list[Case]:
    """A case of each kind of call, in both roundings."""
    rng = np.random.default_rng(1)
    z = rng.normal(0, 3, (SIZE, SIZE)).astype(np.float32)
    dense = rng.dirichlet(np.ones(SIZE), SIZE).astype(np.float32)
    labels = rng.integers(0, SIZE, SIZE).astype(np.int32)
    labels[:6] = -100  # half of two devices have nothing that counts
    weight = rng.uniform(0.5, 2, SIZE).astype(np.float32)
    mask = rng.random(SIZE) < 0.7
    each = tuple(rng.uniform(0.5, 2, SIZE).tolist())
    index = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)
    weighted = ul.CrossEntropyLoss(from_logits=True, class_weights=each, label_smoothing=0.1)
    binary = ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=each)
    averaged = ul.BinaryCrossEntropyLoss(from_logits=True, average_last_axis=True)
    squared = ul.MeanSquaredError(element_weights=each, divisor="nonzero")
    calls: dict[str, tuple[Any, ...]] = {
        "class indices": (index, z, labels, weight),
        "a sum": (index.replace(reduction="sum"), z, labels),
        "each position": (index.replace(reduction="none"), z, labels),
        "all classes": (weighted, z, dense, None, mask),
        "binary": (binary, z, dense, weight),
        "averaged rows": (averaged, z, dense, weight),
        "weighted elements": (squared, z, dense),
    }
    return [
        Case(f"mesh/{name}", *call).rounded(rounding)
        for name, call in calls.items()
        for rounding in ("native", "exact")
    ]
