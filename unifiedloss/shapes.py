"""Check the shapes and dtypes of a call against a spec.

Extents that are unknown under tracing are assumed to fit. A traced graph checks them when it runs.
"""

from __future__ import annotations

from unifiedloss import fixes
from unifiedloss.checks import extents
from unifiedloss.errors import DTypeError, ShapeError, SpecValueError
from unifiedloss.floats import FORMATS, INTEGER_TYPES
from unifiedloss.inputs import Shape, Signature, same
from unifiedloss.messages import Message, describe
from unifiedloss.spec import Categorical, Elementwise


def check_predictions_dtype(dtype: str, targets: str = "") -> None:
    """Refuse predictions of a dtype that is not floating, beside targets of a dtype."""
    if dtype not in FORMATS:
        msg = (
            f"predictions must be floating ({', '.join(FORMATS)}), got {dtype}; "
            f"{fixes.of_dtypes(dtype, targets)}"
        )
        raise DTypeError(msg)


def target_kind(dtype: str) -> str:
    """Return "index" or "dense", the kind of the targets of a loss with a class axis."""
    if dtype in INTEGER_TYPES:
        return "index"
    if dtype in FORMATS:
        return "dense"
    if dtype == "bool":
        msg = (
            "bool targets are not class indices; cast them to an integer dtype, or use the binary "
            "cross-entropy."
        )
        raise DTypeError(msg)
    msg = f"targets must be integer class indices or floating ({', '.join(FORMATS)}), got {dtype}."
    raise DTypeError(msg)


def class_axis(axis: int | None, shape: Shape | None) -> int:
    """The class axis, counted from the front if the rank is known."""
    if shape is None:
        return -1 if axis is None else axis
    return _normalized_axis(axis, len(shape), shape)


def _normalized_axis(axis: int | None, rank: int, shape: Shape) -> int:
    if rank == 0:
        raise ShapeError(Message.NO_AXIS)
    if axis is None:
        if rank > 2:
            msg = (
                f"predictions have {rank} axes {describe(shape)}: name the class axis. torch uses "
                "axis=1, TensorFlow, Keras and JAX use axis=-1."
            )
            raise SpecValueError(msg)
        return rank - 1
    if not -rank <= axis < rank:
        msg = Message.AXIS.format(axis=axis, predictions=describe(shape))
        raise SpecValueError(msg + fixes.of_axis(axis, rank))
    return axis % rank


def loss_axis(axis: int | None, shape: Shape | None) -> int:
    """The class axis of a loss: as `class_axis`, and axis=1 is the only axis where there is one."""
    # torch's cross_entropy and nll_loss read predictions with one axis as one example.
    one_example = axis == 1 and shape is not None and len(shape) == 1
    return 0 if one_example else class_axis(axis, shape)


def classes(
    spec: Categorical,
    predictions: Signature,
    targets: Signature,
    kind: str,
) -> tuple[int, int | None, Shape | None]:
    """Check a loss with a class axis; return axis, number of classes and shape of positions."""
    shape = predictions.shape
    axis = loss_axis(spec.axis, shape)
    if shape is None:
        classes, positions = None, None
    else:
        classes, positions = shape[axis], shape[:axis] + shape[axis + 1 :]
    if classes == 0:
        raise ShapeError(Message.NO_CLASSES.format(predictions=describe(shape), axis=axis))
    weights = spec.class_weights
    if classes is not None and weights is not None and len(weights) != classes:
        msg = Message.CLASS_WEIGHTS.format(
            count=len(weights), predictions=describe(shape), classes=classes, axis=axis
        )
        raise SpecValueError(msg)
    if kind == "index":
        _check_index_shape(spec, shape, axis, targets.shape)
    else:
        if shape is not None and targets.shape is not None and not same(shape, targets.shape):
            msg = Message.DENSE_TARGETS.format(
                predictions=describe(shape),
                targets=describe(targets.shape),
                fix=fixes.of_dense_targets(shape, axis, targets.shape),
            )
            raise ShapeError(msg)
        _check_dense_ignore(spec, classes)
    return axis, classes, positions


def _check_index_shape(
    spec: Categorical, shape: Shape | None, axis: int, targets: Shape | None
) -> None:
    if shape is None or targets is None:
        return
    positions = shape[:axis] + shape[axis + 1 :]
    if same(positions, targets):
        return
    msg = Message.INDEX_TARGETS.format(
        predictions=describe(shape),
        axis=axis,
        positions=describe(positions),
        targets=describe(targets),
        fix=fixes.of_index_targets(spec.axis, shape, axis, targets),
    )
    raise ShapeError(msg)


def _check_dense_ignore(spec: Categorical, classes: int | None) -> None:
    for label in spec.ignore_index or ():  # type: ignore[union-attr]
        if classes is not None and 0 <= label < classes:
            raise SpecValueError(Message.DENSE_IGNORED.format(label=label))


def elements(spec: Elementwise, predictions: Signature, targets: Signature) -> Shape | None:
    """Check an elementwise loss, and return the shape of its per-position loss."""
    if targets.dtype not in (*FORMATS, *INTEGER_TYPES, "bool"):
        msg = (
            f"targets must be bool, integer or floating ({', '.join(FORMATS)}), got "
            f"{targets.dtype}."
        )
        raise DTypeError(msg)
    shape = predictions.shape
    if shape is None:
        return None
    if targets.shape is not None and not same(shape, targets.shape):
        fix = fixes.of_elements(predictions, targets, binary=spec.target_kind == "binary")
        msg = Message.ELEMENTS.format(
            predictions=describe(shape), targets=describe(targets.shape), fix=fix
        )
        raise ShapeError(msg)
    pos_weight = getattr(spec, "pos_weight", None)
    if isinstance(pos_weight, tuple):
        _check_pos_weight(pos_weight, getattr(spec, "axis", None), shape)
    if spec.element_weights is not None:
        _check_element_weights(extents(spec.element_weights), shape)
    if not spec.average_last_axis:
        return shape
    if len(shape) < 2 or shape[-1] == 0:
        raise ShapeError(Message.AVERAGED.format(predictions=describe(shape)))
    return shape[:-1]


def _check_pos_weight(weights: tuple[float, ...], axis: int | None, shape: Shape) -> None:
    if not shape:
        raise SpecValueError(Message.POS_WEIGHT_SCALAR.format(count=len(weights)))
    if axis is None and len(shape) > 2:
        msg = Message.POS_WEIGHT_AXIS.format(
            count=len(weights), predictions=describe(shape), rank=len(shape)
        )
        raise SpecValueError(msg)
    axis = -1 if axis is None else axis
    if not -len(shape) <= axis < len(shape):
        raise SpecValueError(Message.AXIS.format(axis=axis, predictions=describe(shape)))
    extent = shape[axis]
    if extent is not None and extent != len(weights):
        msg = Message.POS_WEIGHT.format(
            count=len(weights), axis=axis, predictions=describe(shape), extent=extent
        )
        raise SpecValueError(msg)


def _check_element_weights(weights: Shape, shape: Shape) -> None:
    fits = len(weights) <= len(shape)
    if fits:
        last = shape[len(shape) - len(weights) :]
        # Not `n in (1, m)`, which torch.compile takes to be false if m is a symbol.
        fits = all(n == 1 or m is None or n == m for n, m in zip(weights, last, strict=True))
    if not fits:
        msg = Message.ELEMENT_WEIGHTS.format(weights=describe(weights), predictions=describe(shape))
        raise SpecValueError(msg)


def check_companions(
    positions: Shape | None, sample_weight: Signature | None, mask: Signature | None
) -> None:
    """Refuse a mask or sample weights whose dtype or shape does not fit."""
    if mask is not None and mask.dtype != "bool":
        msg = f"mask must be bool, got {mask.dtype}; cast it, or pass numbers as sample_weight."
        raise DTypeError(msg)
    if sample_weight is not None and sample_weight.dtype not in (*FORMATS, *INTEGER_TYPES):
        hint = "pass a bool tensor as mask." if sample_weight.dtype == "bool" else "cast it."
        msg = f"sample_weight must be floating or integer, got {sample_weight.dtype}; {hint}"
        raise DTypeError(msg)
    for name, signature in (("sample_weight", sample_weight), ("mask", mask)):
        if signature is None or signature.shape is None or positions is None:
            continue
        leading = positions[: len(signature.shape)]
        if not same(leading, signature.shape):
            msg = Message.LEADING.format(
                name=name, positions=describe(positions), got=describe(signature.shape)
            )
            raise ShapeError(msg)
