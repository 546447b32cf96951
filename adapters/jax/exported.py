"""Programs that `jax.export` saves, which cannot hold a call to the host.

JAX traces a call before it knows whether the program is exported, and reuses a trace that it has.
So the choice is made where the program is lowered: ``rounding="auto"`` is native in an exported
program, and ``rounding="exact"`` is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from unifiedloss.adapters.jax import manual, native, ops
from unifiedloss.errors import UnsupportedError
from unifiedloss.plan import Plan, natively

NO_EXPORT = (
    "rounding='exact' calls the host, which jax.export cannot keep in a program; use "
    "rounding='native'."
)


class Call(NamedTuple):
    """A call whose rounding ``rounding="auto"`` chose.

    Attributes:
        exactly: computes it exactly: a function of its arrays, with None for those not given.
        plan: its plan.
        given: which of these it has: predictions, targets, sample_weight, mask, upstream gradient.
        forms: shapes and dtypes of the loss, and of the gradient if it is wanted.
        axes: for each vmap around the call, the innermost first, the axis that it maps, or None, of
            each array that is given.
    """

    exactly: Callable[..., Sequence[Array]]
    plan: Plan
    given: tuple[bool, ...]
    forms: tuple[tuple[tuple[int, ...], Any], ...]
    axes: tuple[tuple[int | None, ...], ...] = ()


def exact_unless_exported(
    exactly: Callable[..., Sequence[Array]], plan: Plan, forms: Any, *arrays: Any
) -> tuple[Array, ...]:
    """What `exactly` computes of the arrays, or the native results in an exported program."""
    given = tuple(x is not None for x in arrays)
    call = Call(exactly, plan, given, tuple((x.shape, x.dtype) for x in forms))
    present = [x for x in arrays if x is not None]
    found = _choice_p.bind(*present, call=call)
    return tuple(manual.varying(x, manual.axes(*present)) for x in found)


def has_choice(plan: Plan, divisor: bool) -> bool:
    """Whether an exported program has the native results of a call; not with a given divisor."""
    return plan.by_auto and not divisor


def is_exported(context: Any) -> bool:
    """Whether a program that is lowered is exported."""
    exported: bool = context.module_context.lowering_parameters.for_export
    return exported


def refuse(lowered: Any, context: Any, *operands: Any, call: Any) -> Any:
    """Lower a primitive of `primitives`, or raise an error where it would be exported."""
    if is_exported(context) and not has_choice(call.plan, call.given[4]):
        raise UnsupportedError(NO_EXPORT)
    return lowered(context, *operands, call=call)


def never(x: Array) -> Array:
    """An array as it is, for a program that raises an error if it is exported."""
    found: Array = _never_p.bind(x)
    return found


def _lowered_never(context: Any, x: Any) -> list[Any]:
    if is_exported(context):
        raise UnsupportedError(NO_EXPORT)
    return [x]


def _exact(call: Call, *present: Any) -> list[Array]:
    return list(call.exactly(*ops.with_none(call.given, present)))


def _native(call: Call, *present: Any) -> list[Array]:
    *tensors, upstream = ops.with_none(call.given, present)
    plan, stored = natively(call.plan), ops.all_stored(tensors)
    if len(call.forms) == 1:
        return [native.loss(plan, *stored)]
    return list(native.value_and_grad(plan, *stored, upstream))


def _mapped(function: Callable[..., list[Array]], *present: Any, call: Call) -> list[Array]:
    function = partial(function, call)
    for axes in call.axes:
        function = jax.vmap(function, axes)
    return function(*present)


def _lowered(context: Any, *present: Any, call: Call) -> Any:
    function = partial(_mapped, _native if is_exported(context) else _exact, call=call)
    return mlir.lower_fun(function, multiple_results=True)(context, *present)


def _batched(present: Sequence[Any], axes: Sequence[int | None], *, call: Call) -> Any:
    size = next(x.shape[a] for x, a in zip(present, axes, strict=True) if a is not None)
    forms = tuple(((size, *shape), dtype) for shape, dtype in call.forms)
    call = call._replace(forms=forms, axes=(*call.axes, tuple(axes)))
    return _choice_p.bind(*present, call=call), [0] * len(forms)


_choice_p = Primitive("unifiedloss_exact_unless_exported")
_choice_p.multiple_results = True
_choice_p.def_impl(partial(_mapped, _exact))
_choice_p.def_abstract_eval(lambda *_, call: [ShapedArray(*form) for form in call.forms])
mlir.register_lowering(_choice_p, _lowered)
batching.primitive_batchers[_choice_p] = _batched

_never_p = Primitive("unifiedloss_never_exported")
_never_p.def_impl(lambda x: x)
_never_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(_never_p, _lowered_never)
batching.primitive_batchers[_never_p] = lambda arrays, axes: (_never_p.bind(*arrays), *axes)
