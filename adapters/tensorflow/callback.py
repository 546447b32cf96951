"""Functions of arrays that TensorFlow calls on the host, eagerly and in graphs.

TensorFlow computes nothing here, because it reads subnormal numbers as 0. In an eager call, a
function reads the tensors' memory and TensorFlow takes over the memory of the results. In a graph,
it is called through tf.numpy_function, which XLA cannot compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util  # no public function says who compiles

from unifiedloss.adapters.tensorflow import ops

Tensor = Any
Array = np.ndarray[Any, Any]

_NODE = "unifiedloss_exact_mode_needs_the_host_so_set_jit_compile_False"
"""The name of the host call: an XLA error shows only the name of the node it cannot compile."""


def compiles() -> bool:
    """Whether XLA will compile this graph: within tf.function(jit_compile=True), at any depth."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(
        tf.compat.v1.get_default_graph()
    )


@cache
def host() -> Any:
    from unifiedloss import host  # imported here: it starts a thread that native mode does not need

    return host


@cache
def exact() -> Any:
    from unifiedloss import exact

    return exact


def on_host(
    function: Callable[..., Sequence[Array]], tensors: Sequence[Tensor], dtypes: Sequence[str]
) -> list[Tensor]:
    """Call a function of arrays on tensors. It returns bfloat16 results as their bits."""
    host().run(exact)  # import it in a thread that keeps the subnormal numbers of its tables
    if tf.executing_eagerly():
        made = [_tensor(x, tensors[0].device) for x in function(*map(ops.to_numpy, tensors))]
    else:
        stored = [tf.uint16 if dtype == "bfloat16" else dtype for dtype in dtypes]
        made = tf.numpy_function(function, tensors, stored, stateful=False, name=_NODE)
    return [
        tf.bitcast(x, dtype) if dtype == "bfloat16" else x
        for x, dtype in zip(made, dtypes, strict=True)
    ]


def _tensor(x: Array, device: str) -> Tensor:
    """An array as a tensor in the same memory, or in a copy that TensorFlow can use.

    TensorFlow crashes at memory that is not aligned to 64 bytes (VoVAllen/tf-dlpack#4;
    test_memory_that_tensorflow_cannot_use_is_copied).
    """
    if x.ctypes.data % 64 or not x.flags.c_contiguous or not x.flags.writeable:
        from unifiedloss.exact.rooms import aligned

        out = aligned(x.shape, x.dtype)
        out[...] = x
        x = out
    made = tf.experimental.dlpack.from_dlpack(x.__dlpack__())
    if made.device == device:
        return made
    with tf.device(device):
        return tf.identity(made)
