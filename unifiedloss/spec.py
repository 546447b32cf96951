"""The base classes of specs: frozen, hashable values, each of which defines a loss completely.

The specs themselves are in the folders of `unifiedloss.losses`. Each setting of a loss is a field
of its class, declared once. `unifiedloss.plan.resolve` joins a spec with the shapes and dtypes of a
call. This module imports no framework.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from unifiedloss.autograph import no_autograph
from unifiedloss.checks import (
    boolean,
    integer,
    labels,
    nested_weights,
    one_of,
    optional,
    positive,
    rule_of_divisor,
    weights,
)
from unifiedloss.errors import SpecTypeError
from unifiedloss.evaluable import Evaluable
from unifiedloss.field import Record, field, rebuild
from unifiedloss.inputs import TensorT
from unifiedloss.owners import is_adapters
from unifiedloss.text import Text, formula

Reduction = Literal["mean", "sum", "none"]
Divisor = Literal["weights", "label_weights", "present", "nonzero", "all"]
OnEmpty = Literal["nan", "zero", "error"]
Rounding = Literal["native", "exact", "auto"]
Epsilon = float | Literal["keras", "sklearn", "torch"]
Renormalize = Literal["before_clip", "after_clip"]
ClassWeighting = Literal["entries", "position"]
ComputedIn = Literal["float32", "float64"]
PredictionKind = Literal["probabilities", "log_probabilities", "real"]

_OWN = "unifiedloss.losses.", f"{__name__}."
"""The modules that may define specs: the folders of the losses, and this one."""

_rebuild = rebuild
"""Pickles written before `unifiedloss.field` existed look for the function here."""


if not TYPE_CHECKING:  # because of it a type checker would accept every misspelled name

    def __getattr__(name: str) -> object:
        """Return the class of a loss, for pickles written when all of them stood here."""
        losses = importlib.import_module("unifiedloss.losses")
        for row in losses.ROWS:
            if row.spec == name:
                return losses.spec_class(row)
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)


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
    one = "; predictions with one axis are one example" if spec.axis == 1 else ""
    return Text.of(f"classes lie on axis {spec.axis} of the predictions{one}")


def _class_weights(spec: Any) -> Text:
    if spec.class_weights is None:
        return Text.of("every class weighs 1")
    if getattr(spec, "class_weighting", "entries") == "position":
        return Text.of(
            "one weight per class; the loss of a position is multiplied by the weight of its "
            "target, ",
            formula("sum_c w_c t_ic", r"\sum_c w_c t_{ic}"),
        )
    if getattr(spec, "label_smoothing", 0.0):
        return Text.of(
            "one weight per class, each multiplies the entry of its class in the smoothed target, "
            "and so moves the minimum: the loss is least where probabilities are proportional to ",
            formula("w_c t'_ic", r"w_c t'_{ic}"),
            ", not where they are the smoothed target",
        )
    return Text.of("one weight per class, each multiplies the entry of its class in the target")


def _ignore_index(spec: Any) -> Text:
    if spec.ignore_index is None:
        return Text.of("no label is ignored: every one must be a class")
    listed = ", ".join(map(str, spec.ignore_index))
    return Text.of(
        f"positions with the label {listed} are dropped: their loss and gradient are 0, whatever "
        "they hold; if the label is a class, that class stays in the softmax and in the smoothing "
        "of other positions; dense targets have no labels, so none of their positions is dropped"
    )


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


def scale_field(*, since: int) -> Any:
    """Declare the field `scale`, which losses have since different serialization versions."""
    return field(
        default=1.0,
        fast_paths=True,
        check=positive,
        doc="a positive number that multiplies every loss, and no weight.",
        sentence=_scale,
        since=since,
        group="ported",
    )


# ---------------------------------------------------------------------------------- base class


class Loss(Record, Evaluable):
    """The base class of all specs: calling, conversion and serialization.

    Calling a spec evaluates the loss in the framework of its tensors. Two specs are equal if they
    have the same class and all their fields are equal after validation:

    ```python
    from unifiedloss import CrossEntropyLoss

    spec = CrossEntropyLoss(from_logits=True, ignore_index=3)
    loss = spec([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], [0, 3], sample_weight=[1, 2], mask=[True, True])
    assert spec == CrossEntropyLoss(from_logits=True, ignore_index=[3, 3])
    ```

    {fields}
    """

    name: ClassVar[str]
    """The loss's name in dictionaries and on the command line."""

    since: ClassVar[int] = 1
    """The serialization version that added this loss."""

    prediction_kind: ClassVar[PredictionKind] = "real"
    """What predictions are. "probabilities" stands for logits too, where `from_logits` says so."""

    # The order in which serialization versions 1 and 2 write fields. JSON texts must stay the same.
    written_order = (
        "from_logits", "epsilon", "renormalize", "epsilon_added", "pos_weight", "axis",
        "class_weights", "class_weighting", "element_weights", "ignore_index", "label_smoothing",
        "average_last_axis", "reduction", "divisor", "on_empty", "rounding", "scale", "dtype",
    )  # fmt: skip

    reduction: Reduction = field(
        default="mean",
        fast_paths=True,
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
        fast_paths=True,
        check=rule_of_divisor("weights", "present", "nonzero", "all"),
        doc='what the mean divides by. "weights": the sum of the weights W_i = sample weight times '
        'element weight. "present": the number of positions not dropped. "nonzero": the '
        'number of those whose weight is not 0. "all": the number of all positions.',
        sentence=_divisor,
    )
    on_empty: OnEmpty = field(
        default="nan",
        fast_paths=True,
        check=one_of("nan", "zero", "error"),
        doc='the mean where the divisor is exactly 0: "nan", "zero", or "error" (NaN under '
        "tracing). Its gradient is 0.",
        sentence=_on_empty,
    )
    rounding: Rounding = field(
        default="native",
        fast_paths=True,
        check=one_of("native", "exact", "auto"),
        doc='"native": within a derived bound of the exact result. "exact": the loss and its '
        "gradient to the predictions are correctly rounded, the same bits in every backend; every "
        'other derivative is native. "auto": one of the two, by a table over the backend, the '
        "device, the mode, the dtype and the form of a call; `Plan.rounding` and `Plan.why` tell "
        "which.",
        late_values={"auto": 3},
        sentence={
            "native": "computed with the framework's own operations, within a derived bound of "
            "the exact result",
            "exact": "every loss and every element of the gradient is correctly rounded, the same "
            "bits in every backend",
            "auto": "exact where the table of the page Exactness has exact for the backend, the "
            "device, the mode, the dtype and the form of a call, and native elsewhere",
        },
    )

    def has_fused_kernel(self, kind: str, predictions: str, targets: str) -> bool:  # noqa: ARG002
        """Whether frameworks have a fused kernel for this loss, if every position counts once.

        Args:
            kind: `Plan.kind`.
            predictions: the predictions' dtype; no half type.
            targets: the targets' dtype.
        """
        return False

    def __init__(self, /, **given: Any) -> None:
        super().__init__(**given)
        if self.rounding == "auto":
            # Now, because torch.compile with dynamic=True cannot trace the checks of the fields.
            self.rounded("native")
            self.rounded("exact")

    @property
    def summed(self) -> Self:
        """This spec with the reduction "sum"."""
        return self._kept("_summed", reduction="sum")

    @property
    def piece(self) -> Self:
        """This spec for a piece of a call, whose own divisor may be 0."""
        return self if self.on_empty != "error" else self._kept("_piece", on_empty="nan")

    def rounded(self, rounding: Literal["native", "exact"]) -> Self:
        """This spec with another rounding."""
        return self if self.rounding == rounding else self._kept(f"_{rounding}", rounding=rounding)

    def _kept(self, name: str, **changes: Any) -> Self:
        """`replace`, made once, because validating many weights again takes milliseconds."""
        try:
            made: Self = getattr(self, name)
        except AttributeError:
            made = self.replace(**changes)
            object.__setattr__(self, name, made)
        return made

    def __init_subclass__(cls) -> None:
        # Adapters, the oracle and exact mode compute a loss from its fields alone, so they would
        # ignore what a subclass changes. And with the name of its base it would be read in place
        # of the base.
        if not f"{cls.__module__}.".startswith(_OWN):
            base = next(each for each in cls.__mro__[1:] if issubclass(each, Loss))
            msg = (
                f"{cls.__name__} is a subclass of {base.__name__}, and a spec has none: its class "
                "and fields alone say what is computed, so that every backend computes the same. "
                "Hold a spec in a class of your own and call it there; factors of positions are "
                "its sample_weight, and reduction='none' gives their losses."
            )
            raise SpecTypeError(msg)
        super().__init_subclass__()
        if "name" in vars(cls):
            LOSSES[cls.name] = cls

    @no_autograph
    def value_and_grad(
        self,
        predictions: TensorT,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
        upstream: object = None,
        divisor: object = None,
    ) -> tuple[TensorT, TensorT]:
        """Compute the loss and its gradient with respect to the predictions, in any framework.

        Args:
            predictions: as for calling the spec; so are `targets`, `sample_weight` and `mask`.
            targets: see the class.
            sample_weight: number per position.
            mask: bool per position.
            upstream: the upstream gradient, floating or integer, of exactly the loss's shape: a
                scalar under "mean" and "sum", one number per position under "none". Default: ones.
            divisor: as for calling the spec.

        Returns:
            ``(loss, gradient)``; the gradient has the shape and dtype of the predictions.

        Raises:
            ShapeError, DTypeError: `upstream` does not have the shape of the loss, or its dtype is
                neither floating nor integer. The other errors are those of calling the spec.
        """
        adapter = self._registry.adapter_for(predictions, targets, sample_weight, mask)
        result: tuple[TensorT, TensorT] = adapter.value_and_grad(
            self, predictions, targets, sample_weight, mask, upstream, divisor
        )
        return result

    def to_native(self, library: str, *, code: bool = False, rank: int | None = None) -> Any:
        """Convert to a plain loss object or function of a library, or to the line that makes it.

        The result does not use unifiedloss. `from_native` reads it back as an equal spec, except
        for `divisor` and `on_empty` under "none" and "sum": there they have no effect, and are read
        as the mean of the library has them. An `axis` of several positive weights that was not
        named is read back as the last one, -1.

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
        return self._registry.interop().to_native(self, library, code=code, rank=rank)

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


class Bound(Protocol):
    """An object that `Loss.to` returned."""

    spec: Loss


def bound_spec(obj: object) -> Loss | None:
    """The spec of an object that `Loss.to` returned; None for any other object.

    An object of anyone else may hold a spec and compute something else with it.
    """
    bound = getattr(obj, "spec", None)
    return bound if isinstance(bound, Loss) and is_adapters(type(obj)) else None


def _plain(value: Any) -> Any:
    """Convert a canonical value for JSON: tuples become lists."""
    return [_plain(element) for element in value] if isinstance(value, tuple) else value


class Categorical(Loss):
    """The base class of losses with a class axis."""

    axis: int | None = field(
        default=None,
        fast_paths=True,
        check=optional(integer),
        doc="the class axis. None: the last one where predictions have at most 2 axes; from 3 axes "
        "up it must be named, because torch uses 1 and the others -1, and a square shape would "
        "hide a mistake. 1: axis 1, or axis 0 where predictions have one axis and are one example.",
        sentence=_class_axis,
    )
    class_weights: Sequence[float] | None = field(
        default=None,
        fast_paths=True,
        check=optional(weights),
        doc="one non-negative number w_c per class. Numbers below the smallest normal one of the "
        "compute dtype count as 0 here, and also in `pos_weight`, smoothing shares, targets of the "
        "cross-entropies and sample weights.",
        sentence=_class_weights,
    )
    ignore_index: int | Iterable[int] | None = field(
        default=None,
        fast_paths=True,
        check=optional(labels),
        doc="one or several ints; positions with these labels are dropped. Only for class indices: "
        "with dense targets a negative one has no effect, and one in 0..K-1 is an error.",
        sentence=_ignore_index,
    )
    divisor: Divisor = field(
        default="weights",
        fast_paths=True,
        check=rule_of_divisor("weights", "label_weights", "present", "nonzero", "all"),
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

    scale: float = scale_field(since=2)
    dtype: ComputedIn | None = field(
        default=None,
        fast_paths=True,
        check=optional(one_of("float32", "float64")),
        doc='None, or "float32" or "float64": predictions, floating targets and sample weights are '
        'cast to this dtype, and the loss has it. With ``rounding="exact"`` each is rounded once, '
        "the loss is that of the rounded numbers, and its gradient is rounded to this dtype first, "
        "then to the dtype of the predictions.",
        sentence=_dtype,
        since=2,
        group="ported",
    )


class Elementwise(Scaled):
    """The base class of losses whose positions are the elements of the predictions."""

    target_kind: ClassVar[Literal["binary", "real"]] = "real"
    """Whether targets are numbers in [0, 1] or any numbers."""

    element_weights: float | Sequence[Any] | None = field(
        default=None,
        fast_paths=True,
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
        fast_paths=True,
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
