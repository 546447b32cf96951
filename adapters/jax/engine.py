"""JAX's ways to split a call among devices, for the conformance suite.

`unifiedloss.conformance.engines` says what an engine is, and `unifiedloss.conformance.replicas`
what `replicas` is. All devices belong to one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unifiedloss.adapters.jax import ops

_AXIS, _SECOND = "first", "second"

Run = Callable[[Callable[..., Any], Sequence[Any]], tuple[Any, ...]]


class Layout(NamedTuple):
    """A way to split predictions.

    Attributes:
        mesh: all devices.
        spec: how they share the predictions.
        compiled: whether the call runs in a compiled program.
    """

    mesh: Any
    spec: PartitionSpec
    compiled: bool

    @property
    def explicit(self) -> bool:
        """Whether the types of arrays name the axes of the mesh."""
        return AxisType.Explicit in self.mesh.axis_types


@contextlib.contextmanager
def started(place: Any) -> Iterator[Engine]:
    """The engine of the one process of a run."""
    del place
    yield Engine()


class Engine:
    """Calls on arrays that all devices of the process share."""

    def layouts(self, rank: int, axis: int | None) -> dict[str, Layout]:
        """How predictions can be split, by name; see `unifiedloss.conformance.engines`.

        On one mesh axis, and of four devices or more, an even number, on two.
        """
        classes = rank - 1 if axis is None else axis
        rows = next(a for a in range(rank) if a != classes)
        splits: dict[str, dict[int, Any]]
        splits = {"rows": {rows: _AXIS}, "classes": {classes: _AXIS}}
        extents = {_AXIS: jax.device_count()}
        if jax.device_count() > 2 and jax.device_count() % 2 == 0:
            extents = {_AXIS: 2, _SECOND: jax.device_count() // 2}
            splits |= {
                "rows and classes": {rows: _AXIS, classes: _SECOND},
                "rows, twice": {rows: (_AXIS, _SECOND)},
            }
        devices = np.array(jax.devices()).reshape(*extents.values())
        found = {}
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = Mesh(devices, tuple(extents), axis_types=(kind,) * len(extents))
            for name, split in splits.items():
                spec = PartitionSpec(*(split.get(a) for a in range(rank)))
                for compiled in (False, True):
                    how = "compiled" if compiled else "eager"
                    found[f"{name}, {kind.name}, {how}"] = Layout(mesh, spec, compiled)
        return found

    def step(
        self,
        function: Callable[..., Any],
        inputs: Mapping[str, Array],
        upstream: Array | None,
        layout: Layout,
    ) -> tuple[Array, dict[str, Array], list[str]]:
        """A loss and its gradients, and what is wrong with their placements.

        See `unifiedloss.conformance.engines`.
        """

        def gradients_of(*leaves: Array) -> tuple[Array, tuple[Array, ...]]:
            value, pull_back = jax.vjp(function, *leaves)
            above = jnp.ones_like(value) if upstream is None else upstream.astype(value.dtype)
            return value, pull_back(above)

        with jax.set_mesh(layout.mesh) if layout.explicit else contextlib.nullcontext():
            whole = PartitionSpec()
            specs = [layout.spec if name == "predictions" else whole for name in inputs]
            leaves = [
                jax.device_put(x, NamedSharding(layout.mesh, spec))
                for x, spec in zip(inputs.values(), specs, strict=True)
            ]
            run = jax.jit(gradients_of) if layout.compiled else gradients_of
            value, found = run(*leaves)
        wrong = []
        # XLA places what a program gives if no type says where.
        if layout.explicit or not layout.compiled:
            ours, theirs = found[0].sharding, leaves[0].sharding
            if not ours.is_equivalent_to(theirs, leaves[0].ndim):
                wrong.append(f"the gradient is placed as {ours}, should be {theirs}")
        return value, dict(zip(inputs, found, strict=True)), wrong


def replicas(count: int) -> dict[str, Run]:
    """The ways to run a function in as many replicas as there are devices."""
    if jax.device_count() != count:
        msg = (
            f"JAX has {jax.device_count()} devices here, and {count} are needed; set XLA_FLAGS to "
            f"--xla_force_host_platform_device_count={count}."
        )
        raise RuntimeError(msg)
    return {
        "shard_map": partial(_in_shard_map, check_vma=True),
        "shard_map, check_vma=False": partial(_in_shard_map, check_vma=False),
        "pmap": _in_pmap,
    }


def _add_up(x: Any) -> Any:
    with ops.x64():  # integers of 64 bits are added as they are
        return lax.psum(x, _AXIS)


def _in_shard_map(
    body: Callable[..., Any], arrays: Sequence[Any], *, check_vma: bool
) -> tuple[Any, ...]:
    rows = PartitionSpec(_AXIS)
    mapped = jax.shard_map(
        partial(body, _add_up),
        mesh=Mesh(np.array(jax.devices()), (_AXIS,)),
        in_specs=tuple(None if x is None else rows for x in arrays),
        out_specs=(PartitionSpec(), PartitionSpec(), rows),
        check_vma=check_vma,
    )
    *same, gradient = jax.jit(mapped)(*arrays)
    found = gradient.sharding.spec
    wrong = [] if found == rows else [f"the gradient is placed as {found}, should be {rows}"]
    return *map(np.asarray, same), np.asarray(gradient), wrong


def _in_pmap(body: Callable[..., Any], arrays: Sequence[Any]) -> tuple[Any, ...]:
    count = jax.device_count()
    parts = [None if x is None else x.reshape(count, -1, *x.shape[1:]) for x in arrays]
    *same, gradient = jax.pmap(partial(body, _add_up), axis_name=_AXIS)(*parts)
    devices = {shard.device for shard in gradient.addressable_shards}
    wrong = [] if len(devices) == count else [f"the gradient is on {len(devices)} devices"]
    wrong += [
        f"the replicas have {np.asarray(x).tolist()}, should be the same"
        for x in same
        if len({np.asarray(each).tobytes() for each in x}) != 1
    ]
    whole = np.asarray(gradient).reshape(-1, *gradient.shape[2:])
    return *(np.asarray(x)[0] for x in same), whole, wrong
