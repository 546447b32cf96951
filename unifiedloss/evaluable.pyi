"""The types of `evaluable.py`."""

from typing import Any, ClassVar, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from unifiedloss.adapters.jax.objects import LossFunction as JaxFunction
from unifiedloss.adapters.keras.objects import KerasLoss
from unifiedloss.adapters.numpy.objects import LossFunction as NumPyFunction
from unifiedloss.adapters.tensorflow.objects import LossFunction as TensorFlowFunction
from unifiedloss.adapters.torch.objects import LossModule
from unifiedloss.inputs import Numbers, TensorT

_Scalar = TypeVar("_Scalar", bound=np.generic)

class Evaluable:
    _registry: ClassVar[Any]
    autograph_info__: ClassVar[None]

    @overload
    def __call__(
        self,
        predictions: NDArray[_Scalar],
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
    ) -> NDArray[_Scalar] | _Scalar:
        """Evaluate the loss in the framework of the tensors.

        Args:
            predictions: floating tensor of any known framework. A Python number or list is read as
                a float64 NumPy array.
            targets: see the class; NumPy arrays and lists may accompany predictions of any
                framework.
            sample_weight: number per position, shaped like the per-position loss or a leading part
                of that shape.
            mask: bool per position, aligned the same way; False drops the position.

        Returns:
            The loss in nats (squared units for the squared error), a tensor of the predictions'
            framework and device: a scalar under "mean" and "sum", the shape of the per-position
            loss under "none".

        Raises:
            ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a
                bad value.
            UnknownTensorError, MixedBackendsError: no backend, or more than one, owns the tensors.
        """
    @overload
    def __call__(
        self,
        predictions: TensorT,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
    ) -> TensorT: ...
    @overload
    def __call__(
        self,
        predictions: Numbers,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
    ) -> Any: ...
    @overload
    def to(self, backend: Literal["torch"]) -> LossModule:
        """Convert to a loss object of one framework, which skips the backend lookup at each call.

        Args:
            backend: "torch" gives an ``nn.Module``, "keras" a ``keras.losses.Loss`` (which takes
                ``(y_true, y_pred)``, as Keras does, and is saved with the model), "tensorflow" a
                callable for ``tf.function``, "jax" a pure function for ``jit``, ``grad`` and
                ``vmap``, "numpy" a plain function. The name of a registered third-party backend is
                accepted as well.

        Raises:
            MissingBackendError: the framework is not installed, or the name is unknown.
        """
    @overload
    def to(self, backend: Literal["tensorflow"]) -> TensorFlowFunction: ...
    @overload
    def to(self, backend: Literal["keras"]) -> KerasLoss: ...
    @overload
    def to(self, backend: Literal["jax"]) -> JaxFunction: ...
    @overload
    def to(self, backend: Literal["numpy"]) -> NumPyFunction: ...
    @overload
    def to(self, backend: str) -> Any: ...
