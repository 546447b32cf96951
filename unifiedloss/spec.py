"""The specs: frozen, hashable values, each of which defines a loss completely.

Each setting of a loss is a field of its class, declared once. `unifiedloss.plan.resolve` joins a
spec with the shapes and dtypes of a call. This module imports no framework.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, overload

from unifiedloss.autograph import no_autograph
from unifiedloss.checks import (
    axis_if_not_last,
    boolean,
    clip_bound,
    integer,
    labels,
    nested_weights,
    one_of,
    optional,
    positive,
    unit_interval,
    weight_or_weights,
    weights,
)
from unifiedloss.errors import SpecValueError
from unifiedloss.field import Record, field, rebuild
from unifiedloss.inputs import Numbers, TensorT
from unifiedloss.text import Text, formula, number, number_latex

Reduction = Literal["mean", "sum", "none"]
Divisor = Literal["weights", "label_weights", "present", "nonzero", "all"]
OnEmpty = Literal["nan", "zero", "error"]
Rounding = Literal["native", "exact"]
Epsilon = float | Literal["keras", "sklearn", "torch"]
Renormalize = Literal["before_clip", "after_clip"]
ClassWeighting = Literal["entries", "position"]
ComputedIn = Literal["float32", "float64"]

_rebuild = rebuild
"""Pickles written before `unifiedloss.field` existed look for the function here."""

# ------------------------------------------------------------------ sentences that depend on fields


def _no_effect(spec: Any) -> Text:
    return Text.of(f'without effect, as reduction is "{spec.reduction}"')


def _divisor(spec: Any) -> Text:
    return Text.of(_DIVISORS[spec.divisor]) if spec.reduction == "mean" else _no_effect(spec)


_DIVISORS = {
    "weights": "the mean divides by the sum of the weights of the positions not dropped",
    "label_weights": "the mean divides by the sum of the weights for class indices, and by the "
    "number of all positions for dense targets",
    "present": "the mean divides by the number of positions not dropped",
    "nonzero": "the mean divides by the number of positions not dropped whose weight is not 0",
    "all": "the mean divides by the number of all positions, dropped ones included",
}


def _on_empty(spec: Any) -> Text:
    return Text.of(_ON_EMPTY[spec.on_empty]) if spec.reduction == "mean" else _no_effect(spec)


_ON_EMPTY = {
    "nan": "a mean with the divisor 0 is NaN, and its gradient 0",
    "zero": "a mean with the divisor 0 is 0, and so is its gradient",
    "error": "a mean with the divisor 0 is an error (NaN under tracing)",
}


def _class_axis(spec: Any) -> Text:
    if spec.axis is None:
        return Text.of(
            "classes lie on the last axis of predictions with one axis or two; with more it must "
            "be named"
        )
    return Text.of(f"classes lie on axis {spec.axis} of the predictions")


def _class_weights(spec: Any) -> Text:
    if spec.class_weights is None:
        return Text.of("every class weighs 1")
    if getattr(spec, "class_weighting", "entries") == "position":
        return Text.of(
            "one weight per class; the loss of a position is multiplied by the weight of its "
            "target, ",
            formula("sum_c w_c t_ic", r"\sum_c w_c t_{ic}"),
        )
    target = "smoothed target" if getattr(spec, "label_smoothing", 0.0) else "target"
    return Text.of(f"one weight per class, each multiplies the entry of its class in the {target}")


def _ignore_index(spec: Any) -> Text:
    if spec.ignore_index is None:
        return Text.of("no label is ignored: every one must be a class")
    listed = ", ".join(map(str, spec.ignore_index))
    return Text.of(
        f"positions with the label {listed} are dropped: their loss and gradient are 0, whatever "
        "they hold; if the label is a class, that class stays in the softmax and in the smoothing "
        "of other positions; dense targets have no labels, so none of their positions is dropped"
    )


def _class_weighting(spec: Any) -> Text:
    without = "" if spec.class_weights is not None else "; there are none"
    if spec.class_weighting == "entries":
        return Text.of(f"class weights multiply the entries of the smoothed target{without}")
    return Text.of(f"class weights multiply the whole loss of a position{without}")


def _from_logits(squash: str) -> Any:
    def sentence(spec: Any) -> Text:
        if spec.from_logits:
            return Text.of(f"predictions are logits, and the {squash} is part of the loss")
        if getattr(spec, "renormalize", None):
            return Text.of("predictions are non-negative numbers, normalized to probabilities")
        return Text.of(
            f"predictions are probabilities, taken as they are: no {squash}, no division by "
            "their sum"
        )

    return sentence


_CLIPPED = {
    "keras": Text.of(
        "probabilities are clipped to ",
        formula("[1e-07, 1 - 1e-07]", r"[10^{-7}, 1 - 10^{-7}]"),
        ", both bounds rounded to the predictions' dtype; the gradient is 0 where it clips",
    ),
    "sklearn": Text.of(
        "probabilities are clipped to ",
        formula("[eps, 1 - eps]", r"[\varepsilon, 1 - \varepsilon]"),
        ", eps the distance from 1 to the next larger number of the predictions' dtype; the "
        "gradient is 0 where it clips",
    ),
    "torch": Text.of(
        "probabilities are not clipped, but logarithms are clamped at -100, and the gradient is ",
        formula("(p - t') / max(p (1 - p), 1e-12)", r"(p - t') / \max(p (1 - p), 10^{-12})"),
        ", which is not the derivative of the clamped loss",
    ),
}


def _epsilon(spec: Any) -> Text:
    given = spec.epsilon
    if isinstance(given, str):
        return _CLIPPED[given]
    if not given:
        cost = "" if spec.from_logits else ", and -log 0 is infinite"
        return Text.of(f"nothing is clipped{cost}")
    if getattr(spec, "epsilon_added", False):
        return Text.of("added to probabilities inside the logarithms")
    bounds = formula(
        f"[{number(given)}, 1 - {number(given)}]",
        f"[{number_latex(given)}, 1 - {number_latex(given)}]",
    )
    return Text.of(
        "probabilities are clipped to ",
        bounds,
        "; the gradient is 0 outside the bounds, but not at a bound",
    )


def _label_smoothing(shared: str) -> Any:
    def sentence(spec: Any) -> Text:
        if not spec.label_smoothing:
            return Text.of("targets are used as they are")
        return Text.of(f"this share of every target is spread evenly over the {shared}")

    return sentence


def _pos_weight(spec: Any) -> Text:
    if spec.pos_weight is None:
        return Text.of("the positive term is not weighted")
    return Text.of("multiplies the positive term, and never counts in the divisor")


def _pos_weight_axis(spec: Any) -> Text:
    where = "the last axis" if spec.axis is None else f"axis {spec.axis}"
    if isinstance(spec.pos_weight, tuple):
        return Text.of(f"the positive weights run along {where}")
    return Text.of(f"a vector of positive weights would run along {where}")


def _element_weights(spec: Any) -> Text:
    if spec.element_weights is None:
        return Text.of("every element weighs 1")
    return Text.of(
        "multiplies the losses of elements, aligned to the last axes of the predictions and "
        "repeated over the others"
    )


def _scale(spec: Any) -> Text:
    if spec.scale == 1.0:
        return Text.of("losses are not scaled")
    return Text.of("multiplies every loss, and no weight")


def _dtype(spec: Any) -> Text:
    if spec.dtype is None:
        return Text.of(
            "losses have the dtype of the predictions; sums and means of half types are float32"
        )
    return Text.of(
        "predictions, floating targets and sample weights are cast to it, and it is the dtype of "
        "the loss"
    )


# ---------------------------------------------------------------------------------- base class


class Loss(Record):
    """The base class of all specs: calling, conversion and serialization.

    Calling a spec evaluates the loss in the framework of its tensors. Two specs are equal if they
    have the same class and all their fields are equal after validation:

    ```python
    from unifiedloss import CrossEntropyLoss

    spec = CrossEntropyLoss(from_logits=True, ignore_index=3)
    loss = spec([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], [0, 3], sample_weight=[1, 2], mask=[True, True])
    assert spec == CrossEntropyLoss(from_logits=True, ignore_index=[3, 3])
    ```
    """

    name: ClassVar[str]
    """The loss's name in dictionaries and on the command line."""

    since: ClassVar[int] = 1
    """The serialization version that added this loss."""

    # The mark of `no_autograph`, so that tf.function does not rewrite `__call__`.
    autograph_info__: ClassVar[None] = None

    # unifiedloss.registry assigns itself here when it is imported. It imports this module, so this
    # module cannot import it, and an import inside __call__ would cost a microsecond per call.
    _registry: ClassVar[Any]

    # The order in which serialization versions 1 and 2 write fields. JSON texts must stay the same.
    written_order = (
        "from_logits", "epsilon", "renormalize", "epsilon_added", "pos_weight", "axis",
        "class_weights", "class_weighting", "element_weights", "ignore_index", "label_smoothing",
        "average_last_axis", "reduction", "divisor", "on_empty", "rounding", "scale", "dtype",
    )  # fmt: skip

    reduction: Reduction = field(
        default="mean",
        check=one_of("mean", "sum", "none"),
        doc='"mean", "sum", or "none" for the per-position losses.',
        sentence={
            "mean": "the losses of all positions are added, and the sum divided by the divisor",
            "sum": "the losses of all positions are added",
            "none": "the losses of all positions are returned, dropped ones as 0",
        },
    )
    divisor: Divisor = field(
        default="weights",
        check=one_of("weights", "present", "nonzero", "all"),
        doc='what the mean divides by. "weights": the sum of the weights W_i = sample weight times '
        'element weight. "present": the number of positions not dropped. "nonzero": the '
        'number of those whose weight is not 0. "all": the number of all positions.',
        sentence=_divisor,
    )
    on_empty: OnEmpty = field(
        default="nan",
        check=one_of("nan", "zero", "error"),
        doc='the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under '
        "tracing). Its gradient is 0.",
        sentence=_on_empty,
    )
    rounding: Rounding = field(
        default="native",
        check=one_of("native", "exact"),
        sentence={
            "native": "computed with the framework's own operations, within a derived bound of "
            "the exact result",
            "exact": "every loss and every element of the gradient is correctly rounded, the same "
            "bits in every backend",
        },
    )

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in vars(cls):
            LOSSES[cls.name] = cls

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
    def value_and_grad(
        self,
        predictions: TensorT,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
        upstream: object = None,
    ) -> tuple[TensorT, TensorT]:
        """Compute the loss and its gradient with respect to the predictions, in any framework.

        Args:
            predictions: as for calling the spec; so are `targets`, `sample_weight` and `mask`.
            targets: see the class.
            sample_weight: number per position.
            mask: bool per position.
            upstream: the upstream gradient, floating or integer, of exactly the loss's shape: a
                scalar under "mean" and "sum", one number per position under "none". Default: ones.

        Returns:
            ``(loss, gradient)``; the gradient has the shape and dtype of the predictions.

        Raises:
            ShapeError, DTypeError: `upstream` does not have the shape of the loss, or its dtype is
                neither floating nor integer. The other errors are those of calling the spec.
        """
        adapter = self._registry.adapter_for(predictions, targets, sample_weight, mask)
        result: tuple[TensorT, TensorT] = adapter.value_and_grad(
            self, predictions, targets, sample_weight, mask, upstream
        )
        return result

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

    def to_native(self, library: str, *, code: bool = False, rank: int | None = None) -> Any:
        """Convert to a plain loss object or function of a library, or to the line that makes it.

        The result does not use unifiedloss. `from_native` reads it back as an equal spec, except
        for `divisor` and `on_empty` under "none" and "sum": there they have no effect, and are read
        as the mean of the library has them.

        For torch, weights become tensors as in ``torch.tensor([0.1, 2.0])``: they have torch's
        default dtype and are rounded to it. Class indices with float64 predictions need float64
        class weights. For these, call ``torch.set_default_dtype(torch.float64)`` before, or
        ``.double()`` on the module, which keeps the weights rounded to float32.

        Args:
            library: "torch", "keras", "tensorflow", "optax", "sklearn" or "onnx".
            code: whether to return the source line instead. It needs no framework.
            rank: the rank of the predictions, which an ONNX model has to declare; 2 by default.
                Only for "onnx".

        Returns:
            For torch and Keras the loss object, for onnx an ``onnx.ModelProto``. For the other
            libraries, and for losses that exist only as a function, a ``functools.partial``. With
            `code`, a str.

        Raises:
            UnsupportedError: the library cannot express a field of the spec. The message names the
                field, and what to use instead.
            SpecValueError: the library is unknown.
            MissingBackendError: the library is not installed.
        """
        return self._registry.switching().to_native(self, library, code=code, rank=rank)

    def to_dict(self) -> dict[str, Any]:
        """Write a dictionary of JSON values: the loss's name, the version, and the changed fields.

        The version is the lowest that has the loss, its changed fields and their values.
        """
        changed = self.changed()
        versions = [self.declarations[name].version_of(value) for name, value in changed.items()]
        written = {name: _plain(value) for name, value in changed.items()}
        return {"loss": self.name, "version": max([self.since, *versions]), **written}

    def to_json(self) -> str:
        """Write `to_dict` as JSON text, with the keys in a stable order."""
        import json

        return json.dumps(self.to_dict(), allow_nan=False)


LOSSES: dict[str, type[Loss]] = {}
"""The losses by name."""


def bound_spec(obj: object) -> Loss | None:
    """The spec of an object that `Loss.to` returned; None for any other object."""
    bound = getattr(obj, "spec", None)
    return bound if isinstance(bound, Loss) else None


def _plain(value: Any) -> Any:
    """Convert a canonical value for JSON: tuples become lists."""
    return [_plain(element) for element in value] if isinstance(value, tuple) else value


class Categorical(Loss):
    """The base class of losses with a class axis."""

    axis: int | None = field(
        default=None,
        check=optional(integer),
        doc="the class axis. None: the last one where predictions have at most 2 axes; from 3 axes "
        "up it must be named, because torch uses 1 and the others -1, and a square shape would "
        "hide a mistake.",
        sentence=_class_axis,
    )
    class_weights: Sequence[float] | None = field(
        default=None,
        check=optional(weights),
        doc="one non-negative number w_c per class. Numbers below the smallest normal one of the "
        "compute dtype count as 0 here, and also in `pos_weight`, smoothing shares, targets of the "
        "cross-entropies and sample weights.",
        sentence=_class_weights,
    )
    ignore_index: int | Iterable[int] | None = field(
        default=None,
        check=optional(labels),
        doc="one or several ints; positions with these labels are dropped. Only for class indices: "
        "with dense targets a negative one has no effect, and one in 0..K-1 is an error.",
        sentence=_ignore_index,
    )
    divisor: Divisor = field(
        default="weights",
        check=one_of("weights", "label_weights", "present", "nonzero", "all"),
        doc='what the mean divides by. "weights": the sum of the weights W_i, which are '
        r"sample_weight_i, times $\sum_c w_c t_{ic}$ where class weights are given. "
        '"present": the number of positions not dropped. "nonzero": the number of those with '
        'W_i != 0. "all": the number of all positions. "label_weights": "weights" for class '
        'indices and "all" for dense targets, as torch divides.',
        sentence=_divisor,
        late_values={"label_weights": 2},
    )


class Scaled(Loss):
    """The base class of losses that can be scaled, or computed in another dtype."""

    scale: float = field(
        default=1.0,
        check=positive,
        doc="a positive number that multiplies every loss, and no weight.",
        sentence=_scale,
        since=2,
        group="ported",
    )
    dtype: ComputedIn | None = field(
        default=None,
        check=optional(one_of("float32", "float64")),
        doc='None, or "float32" or "float64": predictions, floating targets and sample weights are '
        'cast to this dtype, and the loss has it. Not with ``rounding="exact"``.',
        sentence=_dtype,
        since=2,
        group="ported",
    )

    def _check_together(self) -> None:
        if self.dtype is not None and self.rounding == "exact":
            msg = (
                f"dtype={self.dtype!r} rounds the inputs, and rounding='exact' rounds only the "
                "results; leave dtype out, and cast the predictions before the call if they have "
                "another dtype."
            )
            raise SpecValueError(msg)


class Elementwise(Scaled):
    """The base class of losses whose positions are the elements of the predictions."""

    element_weights: float | Sequence[Any] | None = field(
        default=None,
        check=optional(nested_weights),
        doc="None, or non-negative numbers that multiply the losses of elements: an array that "
        "broadcasts to the predictions, aligned to their *last* axes. They count in W_i, as sample "
        "weights do.",
        sentence=_element_weights,
        since=2,
        group="ported",
    )
    average_last_axis: bool = field(
        default=False,
        check=boolean,
        doc="whether the losses along the last axis, multiplied by `element_weights`, are added "
        "and divided by their number, which leaves one loss per position. Positions then have the "
        "predictions' shape without that axis; at least one axis must remain.",
        sentence={
            True: "the losses along the last axis are averaged to one per position, before any "
            "reduction",
            False: "every element is a position of its own",
        },
        since=2,
        group="ported",
    )


def _refuse_clipped_logits(spec: CrossEntropyLoss | BinaryCrossEntropyLoss) -> None:
    if spec.from_logits and spec.epsilon:
        msg = (
            f"epsilon={spec.epsilon!r} clips probabilities, and from_logits=True has none to clip; "
            "leave epsilon out, as logits need no clipping."
        )
        raise SpecValueError(msg)


# --------------------------------------------------------------------------------- the losses


class CrossEntropyLoss(Categorical, Scaled):
    r"""Categorical cross-entropy of the target and the predicted distribution, in nats.

    $$\ell_i = \sum_c \tau_{ic}\,(-\log p_{ic}), \qquad
    \tau_{ic} = w_c\,t'_{ic}, \qquad t' = (1-\epsilon_s)\,t + \epsilon_s/K$$

    with $p = \mathrm{softmax}(z)$ when `from_logits`. A class index $y$ is the one-hot target
    $t_c = [c = y]$: same value, same gradient, same divisor. $0 \log 0 = 0$.

    Predictions are floating, shaped (..., K) or with the K classes on `axis`. Targets of an integer
    dtype are class indices, shaped like the predictions without the class axis; targets of a
    floating dtype are dense and shaped like the predictions. Only the dtype decides between the
    two. The per-position loss has the predictions' shape without the class axis.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        spec = ul.CrossEntropyLoss(from_logits=True)
        loss = spec(np.array([[2.0, 1.0, 0.0]]), np.array([0]))
        assert abs(loss - 0.4076059644443803) < 1e-15
        ```

    Source: where the frameworks differ, the rules are those of ``torch.nn.CrossEntropyLoss``,
    except that by default no label is ignored.
    """

    name = "cross_entropy"

    from_logits: bool = field(
        default=False,
        check=boolean,
        doc="False: predictions are probabilities. True: softmax is part of the loss.",
        sentence=_from_logits("softmax"),
    )
    epsilon: Epsilon = field(
        default=0.0,
        check=clip_bound("keras", "sklearn"),
        doc="probabilities are clipped to [epsilon, 1 - epsilon] before the logarithm; the "
        'gradient is 0 where it clips. Only with ``from_logits=False``. "keras": 1e-7, with both '
        'bounds rounded to the predictions\' dtype, as in Keras. "sklearn": the distance from 1 to '
        "the next larger number of the predictions' dtype.",
        sentence=_epsilon,
        late_values={"keras": 2, "sklearn": 2},
    )
    label_smoothing: float = field(
        default=0.0,
        check=unit_interval,
        doc=r"the amount $\epsilon_s$ in [0, 1], spread evenly over the K classes.",
        sentence=_label_smoothing("K classes"),
    )
    renormalize: Renormalize | None = field(
        default=None,
        check=optional(one_of("before_clip", "after_clip")),
        doc="None, or predictions are non-negative numbers that are divided by their sum over the "
        'classes, "before_clip" or "after_clip". Under "after_clip" the predictions are clipped as '
        "they are, then divided by the sum of the clipped numbers. Only with an `epsilon`.",
        sentence={
            None: "predictions are not divided by their sum over the classes",
            "before_clip": "predictions are divided by their sum over the classes, then clipped",
            "after_clip": "predictions are clipped, then divided by their sum over the classes",
        },
        since=2,
        group="ported",
    )
    class_weighting: ClassWeighting = field(
        default="entries",
        check=one_of("entries", "position"),
        doc='what class weights multiply. "entries": the entries of the smoothed target, as above. '
        r'"position": the whole loss of a position, by $\sum_c w_c t_c$, so that '
        r"$\tau_{ic} = t'_{ic} \sum_k w_k t_{ik}$, as for ``class_weight`` of Keras' ``fit``. "
        "W_i is the same in both cases.",
        sentence=_class_weighting,
        since=2,
        group="ported",
    )

    def _check_together(self) -> None:
        super()._check_together()
        _refuse_clipped_logits(self)
        if self.renormalize is not None and not self.epsilon:
            msg = (
                f"renormalize={self.renormalize!r} needs an epsilon to clip to: a probability of 0 "
                "would make the gradient of all others undefined; set one, as in epsilon='keras'."
            )
            raise SpecValueError(msg)


class BinaryCrossEntropyLoss(Elementwise):
    r"""Binary cross-entropy, elementwise: every element is a classification of its own.

    $$\ell = -\bigl(q\,t' \log p + (1 - t') \log(1 - p)\bigr), \qquad
    t' = (1-\epsilon_s)\,t + \epsilon_s/2$$

    with $p = \sigma(z)$ when `from_logits`. $0 \log 0 = 0$ in both terms.

    Predictions are floating, of any shape; targets have the same shape, are bool, integer or
    floating, and lie in [0, 1]. The per-position loss has the predictions' shape.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        spec = ul.BinaryCrossEntropyLoss(from_logits=True)
        loss = spec(np.array([0.0]), np.array([1]))
        assert abs(loss - np.log(2)) < 1e-15
        ```

    Source: ``torch.nn.BCEWithLogitsLoss`` for `pos_weight`. Logarithms are not clamped unless
    ``epsilon="torch"``, unlike those of ``torch.nn.BCELoss``.
    """

    name = "binary_cross_entropy"

    from_logits: bool = field(
        default=False,
        check=boolean,
        doc="False: predictions are probabilities. True: the sigmoid is part of the loss.",
        sentence=_from_logits("sigmoid"),
    )
    epsilon: Epsilon = field(
        default=0.0,
        check=clip_bound("keras", "sklearn", "torch"),
        doc="probabilities are clipped to [epsilon, 1 - epsilon] before the logarithm; the "
        'gradient is 0 where it clips. Only with ``from_logits=False``. "keras" and "sklearn": as '
        'for `CrossEntropyLoss`. "torch": as in ``torch.nn.BCELoss``, logarithms are clamped at '
        r"-100, and the gradient is $(p - t') / \max(p (1 - p), 10^{-12})$, with $10^{-12}$ in "
        "float32; this is not the derivative of the clamped loss.",
        sentence=_epsilon,
        late_values={"keras": 2, "sklearn": 2, "torch": 2},
    )
    pos_weight: float | Sequence[float] | None = field(
        default=None,
        check=optional(weight_or_weights),
        doc="the factor q of the positive term: a number, or one per entry of `axis`. It never "
        'counts in the divisor. Not with ``epsilon="torch"``.',
        sentence=_pos_weight,
    )
    axis: int | None = field(
        default=None,
        check=optional(axis_if_not_last),
        doc="the axis along which a vector `pos_weight` runs. None: the last one.",
        sentence=_pos_weight_axis,
        since=2,
    )
    label_smoothing: float = field(
        default=0.0,
        check=unit_interval,
        doc=r"the amount $\epsilon_s$ in [0, 1], spread evenly over the 2 answers.",
        sentence=_label_smoothing("2 answers"),
    )
    epsilon_added: bool = field(
        default=False,
        check=boolean,
        doc=r"whether epsilon is added inside the logarithms, $-\log(p + \epsilon)$ and "
        r"$-\log(1 - p + \epsilon)$, instead of being a bound. Only with a number as `epsilon`.",
        sentence={
            True: "epsilon is added inside the logarithms instead of clipping to it; the gradient "
            "never vanishes",
            False: "epsilon is a bound of probabilities, and is not added to them",
        },
        since=2,
        group="ported",
    )

    def _check_together(self) -> None:
        super()._check_together()
        _refuse_clipped_logits(self)
        if self.epsilon_added and (isinstance(self.epsilon, str) or not self.epsilon):
            msg = (
                f"epsilon_added=True needs a positive number as epsilon, got {self.epsilon!r}; set "
                "one, as in epsilon=1e-7."
            )
            raise SpecValueError(msg)
        if self.epsilon == "torch" and self.pos_weight is not None:
            msg = (
                "epsilon='torch' follows torch.nn.BCELoss, which has no pos_weight; use "
                "from_logits=True, which has one."
            )
            raise SpecValueError(msg)


class MeanSquaredError(Elementwise):
    r"""Squared error, elementwise, then reduced.

    $$\ell = (p - t)^2$$

    without the factor 1/2 of some definitions. Predictions are floating, of any shape; targets
    have the same shape and are floating, integer (of magnitude at most 2^53) or bool. The
    per-position loss has the predictions' shape.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        assert ul.MeanSquaredError()(np.array([1.0, 2.0]), np.array([0.0, 4.0])) == 2.5
        ```

    Source: ``torch.nn.MSELoss`` without its broadcasting; ``optax.losses.l2_loss`` is half of it.
    """

    name = "mean_squared_error"


class NegativeLogLikelihoodLoss(Categorical):
    r"""Negative log-likelihood: the cross-entropy of log-probabilities.

    $$\ell_i = \sum_c \tau_{ic}\,(-x_{ic}), \qquad \tau_{ic} = w_c\,t_{ic}$$

    A class index $y$ is the one-hot target $t_c = [c = y]$. Entries with $\tau_{ic} = 0$ are not
    read. Predictions may be any numbers, because logarithms of densities may be positive; that they
    are log-probabilities is not checked. Shapes, dtypes and kinds of targets are those of
    `CrossEntropyLoss`. If you have logits, `CrossEntropyLoss` is the safer choice.

    {fields}

    Raises:
        SpecValueError, SpecTypeError: a field is out of range or of the wrong type.

    Example:
        ```python
        import numpy as np
        import unifiedloss as ul

        log_probabilities = np.array([[-0.5, -1.0], [-2.0, -0.25]])
        assert ul.NegativeLogLikelihoodLoss()(log_probabilities, np.array([0, 1])) == 0.375
        ```

    Source: ``torch.nn.NLLLoss``, except that by default no label is ignored.
    """

    name = "negative_log_likelihood"
    since = 2


AnyLoss = CrossEntropyLoss | BinaryCrossEntropyLoss | MeanSquaredError | NegativeLogLikelihoodLoss
