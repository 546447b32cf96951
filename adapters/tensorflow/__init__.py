"""The TensorFlow adapter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from unifiedloss.adapter import Adapter, Mode
from unifiedloss.adapters.tensorflow import native, objects, ops
from unifiedloss.spec import AnyLoss

Tensor = Any


class TensorFlowAdapter(Adapter):
    """Carries plans out with ``tf.nn``, eagerly, in ``tf.function`` and under XLA."""

    name = "tensorflow"
    tensor_type = (tf.Tensor, tf.Variable)
    ops = ops
    native = native

    def version(self) -> str:
        return str(tf.__version__)

    def dtype_name(self, dtype: Any) -> str:
        return str(dtype.name)

    def shape(self, x: Tensor) -> tuple[int | None, ...] | None:
        return None if x.shape.rank is None else tuple(x.shape.as_list())

    def convert(self, x: np.ndarray[Any, Any], reference: Tensor | None) -> Tensor:
        return tf.convert_to_tensor(x.astype(x.dtype.newbyteorder("="), copy=False))

    def readable(self, *tensors: Tensor | None) -> bool:
        return tf.executing_eagerly() and all(x is None or "CPU" in x.device for x in tensors)

    def to_numpy(self, x: Tensor) -> np.ndarray[Any, Any]:
        if x.dtype == tf.bfloat16:
            x = tf.cast(x, tf.float32)
        return np.asarray(memoryview(tf.convert_to_tensor(x)))

    def differentiate(
        self, function: Callable[..., Tensor], tensors: tuple[Tensor, ...], upstream: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with tf.GradientTape() as tape:
            for x in tensors:
                tape.watch(x)
            value = function(*tensors)
        gradients = tape.gradient(
            value, list(tensors), upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return value, tuple(tf.convert_to_tensor(x) for x in gradients)

    loss = tf.autograph.experimental.do_not_convert(Adapter.loss)
    value_and_grad = tf.autograph.experimental.do_not_convert(Adapter.value_and_grad)
    softmax = tf.autograph.experimental.do_not_convert(Adapter.softmax)

    def bind(self, spec: AnyLoss) -> objects.LossFunction:
        return objects.LossFunction(spec)

    def modes(self) -> dict[str, Mode]:
        return {
            "eager": Mode(lambda function, *tensors: function(*tensors), raises=True),
            "function": Mode(lambda function, *tensors: tf.function(function)(*tensors), raises=False),
            "xla": Mode(
                lambda function, *tensors: tf.function(function, jit_compile=True)(*tensors), raises=False, costly=True
            ),
        }


ADAPTER = TensorFlowAdapter()
