"""How a spec is called, and converted to a loss object of one framework.

The types are in the stub beside this module. A stub may name the types of all frameworks, which no
module of the core may import.
"""

from __future__ import annotations

from typing import Any, ClassVar

from unifiedloss.autograph import no_autograph


class Evaluable:
    """The base class of `unifiedloss.spec.Loss` that evaluates it."""

    # unifiedloss.registry assigns itself here when it is imported. It imports the specs, so they
    # cannot import it, and an import inside __call__ would cost a microsecond per call.
    _registry: ClassVar[Any]

    # The mark of `no_autograph`, so that tf.function does not rewrite `__call__`.
    autograph_info__: ClassVar[None] = None

    def __call__(
        self,
        predictions: Any,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
        divisor: object = None,
    ) -> Any:
        """Evaluate the loss in the framework of the tensors.

        Args:
            predictions: floating tensor of any known framework. A Python number or list is read as
                a float64 NumPy array.
            targets: see the class; NumPy arrays and lists may accompany predictions of any
                framework.
            sample_weight: number per position, shaped like the per-position loss or a leading part
                of that shape.
            mask: bool per position, aligned the same way; False drops the position.
            divisor: what the mean divides by, in place of the spec's rule: the divisor of the whole
                where this call is a piece of it. A number, a scalar tensor, or what `divisor_of`
                returned. It is a constant: no gradient passes through it.

        Returns:
            The loss in nats (squared units for the squared error), a tensor of the predictions'
            framework and device: a scalar under "mean" and "sum", the shape of the per-position
            loss under "none".

        Raises:
            ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a
                bad value.
            UnknownTensorError, MixedBackendsError: no backend, or more than one, owns the tensors.
        """
        adapter = self._registry.adapter_for(predictions, targets, sample_weight, mask)
        return adapter.loss(self, predictions, targets, sample_weight, mask, divisor)

    @no_autograph
    def divisor_of(
        self,
        targets: Any,
        *,
        sample_weight: object = None,
        mask: object = None,
        dtype: Any = "float32",
    ) -> Any:
        """Compute what the mean of a piece divides by, from all but the predictions.

        The divisors of several pieces are added, with ``+``, and given to each call as `divisor`.

        Args:
            targets: as for calling the spec; so are `sample_weight` and `mask`.
            sample_weight: number per position.
            mask: bool per position.
            dtype: the dtype of the predictions, as a name or as a dtype of the framework. It
                matters for weights below the smallest normal float32 number alone.

        Returns:
            A float64 scalar tensor of the targets' framework (float32 where the device has no
            float64); with ``rounding="exact"`` an int64 vector.

        Raises:
            SpecValueError: the spec is no mean. The other errors are those of calling the spec.
        """
        adapter = self._registry.adapter_for(0.0, targets, sample_weight, mask)
        return adapter.divisor_of(self, targets, sample_weight, mask, dtype)

    @no_autograph
    def totals(
        self,
        predictions: Any,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
    ) -> Any:
        """Compute the totals of a piece: a small vector, of which those of all pieces are added.

        Add them with ``+``, a sum over processes or devices, or stack them as rows. `result` gives
        the loss of the whole.

        Args:
            predictions: as for calling the spec; so are `targets`, `sample_weight` and `mask`.
            targets: see the class.
            sample_weight: number per position.
            mask: bool per position.

        Returns:
            A float64 vector, the sum of the terms and, for a mean, the divisor (float32 where the
            device has no float64). It is differentiable. With ``rounding="exact"`` an int64 vector,
            which is not.

        Raises:
            SpecValueError: the reduction is "none". The other errors are those of calling the spec.
        """
        adapter = self._registry.adapter_for(predictions, targets, sample_weight, mask)
        return adapter.totals(self, predictions, targets, sample_weight, mask)

    @no_autograph
    def result(self, totals: Any) -> Any:
        """Compute the loss of the whole from the sum of the `totals` of its pieces.

        Args:
            totals: the sum; or the totals of all pieces as the rows of a matrix.

        Returns:
            The loss, a scalar tensor of the framework of the totals: float64 (float32 where the
            framework has no float64); with ``rounding="exact"`` in the dtype of the loss, with the
            bits of the call on the whole.

        Raises:
            DTypeError, ShapeError: these are no totals of such a spec.
            BadValueError: they are no sum of totals, because they were averaged or narrowed.
            EmptyMeanError: the divisor is 0, under ``on_empty="error"``.
        """
        adapter = self._registry.adapter_for(0.0, totals)
        return adapter.result(self, totals)

    @no_autograph
    def to(self, backend: str, *, global_mean: bool = False) -> Any:
        """Convert to a loss object of one framework, which skips the backend lookup at each call.

        Args:
            backend: "torch" gives an ``nn.Module``, "keras" a ``keras.losses.Loss`` (which takes
                ``(y_true, y_pred)``, as Keras does, and is saved with the model), "tensorflow" a
                callable for ``tf.function``, "jax" a pure function for ``jit``, ``grad`` and
                ``vmap``, "numpy" and "dask" a plain function. The name of a registered third-party
                backend is accepted as well.
            global_mean: for "keras" alone: whether each replica of `tf.distribute` divides by the
                divisor of the batch of all replicas, and not by its own.

        Raises:
            MissingBackendError: the framework is not installed, or the name is unknown.
            SpecValueError: `global_mean` with a spec that is no mean.
            UnsupportedError: `global_mean` with another backend.
        """
        adapter = self._registry.adapter(backend)
        return adapter.bind_global_mean(self) if global_mean else adapter.bind(self)
