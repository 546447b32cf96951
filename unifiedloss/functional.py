"""The losses as functions: each builds a spec from its keywords and evaluates it.

The keywords are the fields of the spec. ``make stubs`` writes the signatures, types and docstrings
of these functions into `functional.pyi`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, overload

from unifiedloss import losses, registry
from unifiedloss.autograph import no_autograph
from unifiedloss.checks import integer, optional
from unifiedloss.errors import SpecTypeError
from unifiedloss.field import parameters
from unifiedloss.inputs import Numbers, TensorT
from unifiedloss.spec import Bound, Loss, bound_spec
from unifiedloss.suggestion import suggestion
from unifiedloss.text import quoted

_class_axis = optional(integer)

_TENSORS = [
    inspect.Parameter(name, kind, default=default)
    for name, kind, default in (
        ("predictions", inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty),
        ("targets", inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty),
        ("sample_weight", inspect.Parameter.KEYWORD_ONLY, None),
        ("mask", inspect.Parameter.KEYWORD_ONLY, None),
    )
]
"""The parameters that all these functions have."""

_specs: dict[tuple[Any, ...], Any] = {}
_MAX_SPECS = 1024

_DOC = """Evaluate a `{cls}` with these fields; see there for formula and rules.

Args:
    predictions: floating tensor of any known framework; a Python number or list is read as a
        float64 NumPy array.
    targets: tensor of the same framework, NumPy array or list.
    sample_weight: number per position, shaped like the per-position loss or a leading part of
        that shape.
    mask: bool per position, aligned the same way; False drops the position.
    {fields}: see `{cls}`.
        As `divisor`, a number or a scalar tensor replaces the rule: the mean divides by it.

Returns:
    The loss in nats (squared units for the squared error), a tensor of the predictions'
    framework: a scalar under "mean" and "sum", one number per position under "none".

Raises:
    SpecValueError, SpecTypeError: a field is unknown, out of range or of the wrong type.
    ShapeError, DTypeError, BadValueError, EmptyMeanError: the tensors do not fit, or hold a
        bad value.
"""


def _spec(cls: type[Loss], fields: dict[str, Any]) -> Any:
    """Return the spec with these fields, from a cache if every field is a scalar.

    The key also holds the types, because 1, 1.0 and True are equal, but only one of them is a bool.
    Specs with sequences are not cached, because the key does not hold the types of their elements.
    functools.lru_cache would do the same, but torch.compile warns when it traces it.
    """
    values = tuple(fields.values())
    key = (cls, tuple(fields), values, tuple(map(type, values)))
    try:
        return _specs[key]
    except (KeyError, TypeError):  # not in the cache, or not hashable
        spec = cls(**fields)
    if all(value is None or isinstance(value, str | int | float) for value in values):
        if len(_specs) >= _MAX_SPECS:
            _specs.clear()
        _specs[key] = spec
    return spec


def _function_of(cls: type[Loss], name: str) -> Callable[..., Any]:
    """Make the function that builds a spec of this class and evaluates it."""

    @no_autograph
    def function(
        predictions: Any,
        targets: object,
        *,
        sample_weight: object = None,
        mask: object = None,
        **fields: Any,
    ) -> Any:
        # A str is the rule of the spec, anything else the divisor of this call. None is the rule of
        # the spec, because trainers pass a count that may be None.
        divisor = None
        if "divisor" in fields and not isinstance(fields["divisor"], str):
            divisor = fields.pop("divisor")
        spec = _spec(cls, fields)
        adapter = registry.adapter_for(predictions, targets, sample_weight, mask)
        return adapter.loss(spec, predictions, targets, sample_weight, mask, divisor)

    vars(function)["__signature__"] = inspect.Signature([*_TENSORS, *parameters(cls)])
    function.loss_class = cls  # type: ignore[attr-defined]  # tools/stubs.py reads it
    function.__name__ = function.__qualname__ = name
    function.__module__ = __name__
    function.__doc__ = _DOC.format(cls=cls.__name__, fields=", ".join(cls.declarations))
    return function


for _row in losses.ROWS:
    globals()[_row.function] = _function_of(losses.spec_class(_row), _row.function)


@overload
def softmax(logits: TensorT, *, axis: int | None = None) -> TensorT: ...
@overload
def softmax(logits: Numbers, *, axis: int | None = None) -> Any: ...
@no_autograph
def softmax(logits: Any, *, axis: int | None = None, **unknown: Any) -> Any:
    r"""Compute the probabilities of logits, $p_c = e^{z_c} / \sum_j e^{z_j}$.

    Args:
        logits: floating tensor of any known framework, at least one axis.
        axis: the class axis. None: the last one, for at most 2 axes; with 3 or more axes it must
            be named.

    Returns:
        Probabilities of the shape and dtype of the logits. Half types are computed in float32 and
        rounded once. Results below the smallest normal number of the compute dtype are 0, because
        TensorFlow and JAX would read them as 0.

    Raises:
        DTypeError: the logits are not floating.
        SpecValueError, SpecTypeError: the axis is missing, out of range or no int.
        ShapeError: there is no class axis, or no class on it.
    """
    for name in unknown:
        hint = suggestion(name, ["axis"])
        msg = f"softmax has no argument {name!r}; it takes logits and axis.{hint}"
        raise SpecTypeError(msg)
    adapter = registry.adapter(registry.backend_of(logits, "logits"))
    return adapter.softmax(logits, _class_axis("axis", axis))


vars(softmax)["__signature__"] = inspect.Signature(
    [
        inspect.Parameter("logits", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        inspect.Parameter("axis", inspect.Parameter.KEYWORD_ONLY, default=None),
    ]
)


@no_autograph
def check(
    spec: Loss | Bound,
    predictions: Any,
    targets: Any,
    *,
    sample_weight: Any = None,
    mask: Any = None,
) -> tuple[str, ...]:
    """Read the values, on any device, raise for the first bad one, and say what others suggest.

    In eager mode on the CPU every call of a loss does this already. Under tracing the values cannot
    be read, and on accelerators reading would block, so a bad value gives NaN there. This function
    then reports its position.

    Args:
        spec: the loss the tensors are meant for, or an object that `Loss.to` returned.
        predictions: tensor, as for the loss; so are `targets`, `sample_weight` and `mask`.
        targets: tensor.
        sample_weight: number per position.
        mask: bool per position.

    Returns:
        Hints, a sentence each, for example if predictions look like probabilities where the loss
        takes logits, or the arguments look swapped. Each is also a `UserWarning`. A hint is no
        error, because such values may be meant.

    Raises:
        BadValueError: a value is bad. The message names its position.
        EmptyMeanError: the mean's divisor is 0, under ``on_empty="error"``.
        ShapeError, DTypeError: the tensors do not fit.
        SpecTypeError: `spec` is no spec.
    """
    known = spec if isinstance(spec, Loss) else bound_spec(spec)
    if known is None:
        msg = (
            "spec must be a spec, such as ul.CrossEntropyLoss(from_logits=True), "
            f"got {quoted(spec)} of type {type(spec).__name__}; "
            "ul.from_native converts a loss of another library."
        )
        raise SpecTypeError(msg)
    adapter = registry.adapter_for(predictions, targets, sample_weight, mask)
    found: tuple[str, ...] = adapter.check(known, predictions, targets, sample_weight, mask)
    for hint in found:
        warnings.warn(hint, UserWarning, stacklevel=2)
    return found
