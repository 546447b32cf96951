"""tf.distribute's ways to split a call among replicas, for the conformance suite.

`unifiedloss.conformance.replicas` says what `replicas` is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import tensorflow as tf

Run = Callable[[Callable[..., Any], Sequence[Any]], tuple[Any, ...]]


def replicas(count: int) -> dict[str, Run]:
    """The ways to run a function in replicas on logical CPUs, which this makes."""
    return {
        "eager": partial(_run, strategy(count), compiled=False),
        "function": partial(_run, strategy(count), compiled=True),
    }


@cache  # a second strategy would number its collectives as the first one does
def strategy(count: int) -> Any:
    """A strategy with that many logical CPUs as replicas."""
    return tf.distribute.MirroredStrategy(_logical_cpus(count))


def _logical_cpus(count: int) -> list[str]:
    """The names of logical CPUs; they are made if TensorFlow has not started yet.

    Raises:
        RuntimeError: TensorFlow has started with fewer.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    if not tf.config.get_logical_device_configuration(cpu):
        each = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [each] * count)
    names = [f"CPU:{i}" for i in range(len(tf.config.list_logical_devices("CPU")))]
    if len(names) < count:
        msg = f"TensorFlow has started with {len(names)} logical CPUs, and {count} are needed."
        raise RuntimeError(msg)
    return names[:count]


def _add_up(x: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce("SUM", x)


def _run(
    replicated: Any, body: Callable[..., Any], arrays: Sequence[Any], *, compiled: bool
) -> tuple[Any, ...]:
    count = replicated.num_replicas_in_sync
    parts = [None if x is None else np.split(x, count) for x in arrays]

    def of_replica(number: int) -> Callable[[Any], Any]:
        part: Any = parts[number]
        return lambda context: tf.constant(part[context.replica_id_in_sync_group])

    given = [
        None
        if part is None
        else replicated.experimental_distribute_values_from_function(of_replica(i))
        for i, part in enumerate(parts)
    ]

    def on_own_device(*tensors: Any) -> Any:
        return body(_add_up, *(None if x is None else tf.identity(x) for x in tensors))

    def step(*tensors: Any) -> Any:
        return replicated.run(on_own_device, args=tensors)

    found = (tf.function(step, autograph=False) if compiled else step)(*given)
    *same, gradients = (replicated.experimental_local_results(x) for x in found)
    wrong = [
        f"the gradient of replica {i} is on {x.device}"
        for i, x in enumerate(gradients)
        # A tf.function gives its caller tensors on the first device.
        if not (compiled or x.device.endswith(f"CPU:{i}"))
    ]
    wrong += [
        f"the replicas have {[x.numpy().tolist() for x in each]}, should be the same"
        for each in same
        if len({x.numpy().tobytes() for x in each}) != 1
    ]
    return *(x[0].numpy() for x in same), np.concatenate([x.numpy() for x in gradients]), wrong
