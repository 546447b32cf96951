"""The part of a custom call of XLA that compiled loops leave to Python; see compiled/xla.c.

The text of a custom call says all about it, because a compiled program may be kept in a file and
run by another process.
"""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from typing import Any

import numpy as np

from unifiedloss import compiled, host
from unifiedloss.compiled import threads
from unifiedloss.exact import kernel, loops
from unifiedloss.exact.call import Array
from unifiedloss.exact.rounding import bits_of, from_bits
from unifiedloss.plan import Plan, Signature, resolve
from unifiedloss.serialization import from_dict

_SEPARATOR = "\n"


def is_taken(plan: Plan) -> bool:
    """Whether a loop computes the calls of a plan."""
    return loops.ready(plan) is not None


def text_of(plan: Plan, examples: int, *, gradient: bool, upstream: bool) -> str:
    """The text of the custom call of a plan that `is_taken`."""
    ready = loops.ready(plan)
    assert ready is not None
    *shape, parameter, divisor = ready.fixed
    (bits,) = struct.unpack("<q", struct.pack("<d", parameter))
    numbers = (compiled.level_number(), threads.number(), *shape, bits, int(divisor))
    numbers += (examples, gradient, upstream)
    dtypes = plan.predictions_dtype, plan.targets_dtype
    signatures = plan.spec.to_dict(), plan.shape, plan.positions, *dtypes
    return " ".join(str(int(x)) for x in numbers) + _SEPARATOR + json.dumps(signatures)


@lru_cache(4096)
def _plan(text: bytes) -> Plan:
    spec, shape, positions, dtype, targets = json.loads(text.partition(_SEPARATOR.encode())[2])
    of_targets = Signature(tuple(positions if targets != "float32" else shape), targets)
    return resolve(from_dict(spec), Signature(tuple(shape), dtype), of_targets)


def finish(
    text: bytes,
    predictions: memoryview,
    targets: memoryview,
    slopes: memoryview | None,
    value: memoryview,
    upstream: memoryview | None,
    left: tuple[Any, ...] | None,
) -> None:
    """Compute what a loop left of a call, or all of it if `left` is None.

    Args:
        text: from `text_of`.
        predictions: memory of the predictions.
        targets: memory of the targets.
        slopes: memory of the gradient, in which what is left is to be filled in.
        value: memory that receives the loss.
        upstream: memory of the upstream gradient, None for 1.
        left: the arguments of `compiled.left_of`.
    """
    host.run(_finish, text, predictions, targets, slopes, value, upstream, left)


def _finish(
    text: bytes,
    predictions: memoryview,
    targets: memoryview,
    slopes: memoryview | None,
    value: memoryview,
    upstream: memoryview | None,
    left: tuple[Any, ...] | None,
) -> None:
    plan = _plan(text)
    shape: Any = plan.shape
    labels: Any = plan.positions
    z = from_bits(np.frombuffer(predictions, bits_of(plan.predictions_dtype))).reshape(shape)
    y = np.frombuffer(targets, plan.targets_dtype)
    y = y.reshape(labels if plan.kind == "index" else shape)
    out: Array | None = None
    if slopes is not None:
        out = np.frombuffer(slopes, bits_of(plan.predictions_dtype)).reshape(shape)
    u = None if upstream is None else np.frombuffer(upstream, np.float32).reshape(())
    ready = loops.ready(plan)
    number = loops.upstream_of(u)
    loss: Any = None
    if left is not None and ready is not None and number is not None:
        loss = kernel.finish(ready, compiled.left_of(*left), z, y, number, out)
    if loss is None:
        loss, _ = kernel.evaluate(plan, z, y, upstream=u, gradient=out is not None, out=out)
    np.frombuffer(value, np.float32)[...] = loss
