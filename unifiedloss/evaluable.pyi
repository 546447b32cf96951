"""The types of `evaluable.py`, which has the docstrings."""

from typing import Any, ClassVar, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from unifiedloss.adapters.dask.objects import LossFunction as DaskFunction
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
        divisor: object = None,
    ) -> NDArray[_Scalar] | _Scalar: ...
    @overload
    def __call__(
        self,
        predictions: TensorT,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
        divisor: object = None,
    ) -> TensorT: ...
    @overload
    def __call__(
        self,
        predictions: Numbers,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
        divisor: object = None,
    ) -> Any: ...
    def divisor_of(
        self,
        targets: Any,
        *,
        sample_weight: object = None,
        mask: object = None,
        dtype: Any = "float32",
    ) -> Any: ...
    def totals(
        self,
        predictions: Any,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
    ) -> Any: ...
    def result(self, totals: Any) -> Any: ...
    @overload
    def to(
        self, backend: Literal["torch"], *, global_mean: Literal[False] = False
    ) -> LossModule: ...
    @overload
    def to(
        self, backend: Literal["tensorflow"], *, global_mean: Literal[False] = False
    ) -> TensorFlowFunction: ...
    @overload
    def to(self, backend: Literal["keras"], *, global_mean: bool = False) -> KerasLoss: ...
    @overload
    def to(
        self, backend: Literal["jax"], *, global_mean: Literal[False] = False
    ) -> JaxFunction: ...
    @overload
    def to(
        self, backend: Literal["numpy"], *, global_mean: Literal[False] = False
    ) -> NumPyFunction: ...
    @overload
    def to(
        self, backend: Literal["dask"], *, global_mean: Literal[False] = False
    ) -> DaskFunction: ...
    @overload
    def to(self, backend: str, *, global_mean: bool = False) -> Any: ...
