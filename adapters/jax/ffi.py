"""Exact mode in a compiled program on the CPU: a custom call of the compiled loops.

The custom call uses the calling convention of XLA that needs none of its headers. A process uses it
only after a first call gave the bits of the host, and only with one device, because XLA would not
split a custom call over several. Otherwise `program` computes the loss.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from unifiedloss import compiled, host
from unifiedloss.adapters.jax import manual, program
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.serialization import from_dict

_NAME = "unifiedloss_exact"
_PROBE = {"loss": "mean_squared_error", "version": 1, "rounding": "exact"}


def takes(plan: Plan) -> bool:
    """Whether a compiled loop computes the calls of a plan."""
    taken: bool = _xla().is_taken(plan)
    return taken


def holds(plan: Plan, arrays: Sequence[Any]) -> bool:
    """Whether a custom call computes this call: (predictions, ..., upstream gradient or None)."""
    predictions, targets, sample_weight, mask, upstream = arrays
    if sample_weight is not None or mask is not None:
        return False
    if not any(isinstance(x, Tracer) for x in arrays) or not takes(plan):
        return False
    if upstream is not None and upstream.dtype != np.float32:
        return False
    if _is_split(predictions) or _is_split(targets):
        return False
    return jax.default_backend() == "cpu" and _is_registered()


def _is_split(x: Any) -> bool:
    """Whether an array's type says how devices share it."""
    if not isinstance(x, Tracer):
        return False
    form: Any = jax.typeof(x)
    return any(axis is not None for axis in form.sharding.spec)


def run(plan: Plan, arrays: Sequence[Any], *, gradient: bool) -> tuple[Array, ...]:
    """The loss, and the gradient if asked for; see `program.run`."""
    given = [x for x in arrays if x is not None]
    return program.with_examples(partial(_evaluate, plan, gradient), given)


def _evaluate(plan: Plan, gradient: bool, *arrays: Any) -> tuple[Array, ...]:
    examples = arrays[0].shape[0]
    text = _xla().text_of(plan, examples, gradient=gradient, upstream=len(arrays) == 3)
    results = [
        jax.ShapeDtypeStruct((examples,), np.dtype(np.float32)),
        jax.ShapeDtypeStruct((), np.dtype(np.int32)),
    ]
    if gradient:
        results.append(jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype))
    call = jax.ffi.ffi_call(_NAME, results, custom_call_api_version=3, legacy_backend_config=text)
    value, _, *slopes = call(*arrays)
    axes = manual.axes(*arrays)
    return tuple(manual.varying(x, axes) for x in (value, *slopes))


@cache
def _xla() -> Any:
    """`unifiedloss.exact.xla`, which native mode does not need."""

    def imported() -> Any:
        from unifiedloss.exact import xla

        return xla

    return host.run(imported)


@cache
def _is_registered() -> bool:
    """Register the custom call, and return whether it gives the right bits in this process."""
    if jax.device_count() != 1:
        return False
    try:
        jax.ffi.register_ffi_target(_NAME, compiled.xla_target(), platform="cpu", api_version=0)
        # This runs before what JAX registered earlier, which waits for its threads.
        atexit.register(compiled.end_xla, os.getpid())
        right = _gives_the_bits_of_the_host()
    except Exception as error:  # noqa: BLE001 - whatever this version of JAX does not have
        logging.getLogger("unifiedloss").info("exact mode makes no custom call: %s", error)
        return False
    if not right:
        logging.getLogger("unifiedloss").warning(
            "exact mode makes no custom call, because its results are wrong in this version of JAX"
        )
    return right


def _gives_the_bits_of_the_host() -> bool:
    """Whether a program gives them, for a call that loops decide and one that Python finishes."""
    from unifiedloss import exact

    spec = from_dict(_PROBE)
    form = Signature((5,), "float32")
    plan = resolve(spec, form, form)
    z = np.array([[1e-40, 2.5, -3, 0.1, 7], [np.inf, 2.5, -3, 0.1, 7]], np.float32)
    y, u = np.array([[0, 1, -1, 0.3, 2]] * 2, np.float32), np.array([0.3, 1], np.float32)
    with jax.ensure_compile_time_eval():
        program = jax.jit(partial(_evaluate, plan, True)).lower(z, y, u).compile()  # noqa: FBT003
        found = [np.asarray(x) for x in program(z, y, u)]
    for i, results in enumerate(zip(*found, strict=True)):
        wanted = exact.evaluate(plan, z[i], y[i], upstream=u[i], gradient=True)
        if [x.tobytes() for x in results] != [np.asarray(x).tobytes() for x in wanted]:
            return False
    return True
