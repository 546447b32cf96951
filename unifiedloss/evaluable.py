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
        return adapter.loss(self, predictions, targets, sample_weight, mask)

    @no_autograph
    def to(self, backend: str) -> Any:
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
        return self._registry.adapter(backend).bind(self)
