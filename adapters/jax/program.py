"""Exact mode in a compiled program: float64, and a host callback for the few undecided rows.

Axes mapped by `jax.vmap` are folded into the axis of examples that `unifiedloss.exact.graph` has in
front. Otherwise vmap would turn the condition for the callback into a select, and every step would
call the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap
from numpy.typing import NDArray

from unifiedloss.adapters.jax import callback, manual, ops
from unifiedloss.adapters.jax.graph import JaxOps
from unifiedloss.exact.graph.call import Given, GraphCall
from unifiedloss.exact.graph.form import Found, fits, why_not
from unifiedloss.exact.graph.tiers import windows
from unifiedloss.plan import Plan

NumPyArray = NDArray[Any]

LEAST = 256
"""The host computes fewer elements: a callback takes 0.2 ms, compiling half a second.

They are counted in all examples of a vmap, because the host computes one example after the other.
"""

_ON_HOST = 1 << 16
"""Elements sent to the host at a time."""


def holds(plan: Plan, arrays: Sequence[Any]) -> bool:
    """Whether there is such a program for this call. There is none on TPUs: no IEEE float64."""
    factors = (arrays[2], *arrays[4:])  # sample weights, and upstream gradients if given
    held = all(x is None or fits(x.dtype.name) for x in factors)
    known = held and bool(elements(plan)) and why_not(plan) is None
    return known and jax.default_backend() in ("cpu", "gpu")


def elements(plan: Plan) -> int | None:
    """The predictions of an example; None if an extent is unknown."""
    return None if plan.count is None else plan.count * (plan.classes or 1)


def run(
    plan: Plan,
    arrays: Sequence[Any],
    *,
    gradient: bool,
    on_host: Callable[..., tuple[Array, ...]] | None = None,
) -> tuple[Array, ...]:
    """The loss, and the gradient if asked for.

    Args:
        plan: the plan of the call.
        arrays: predictions, targets, sample_weight, mask, upstream; the last three may be None.
        gradient: whether to compute the gradient too.
        on_host: computes the same of the arrays of one example; it does so if all examples
            together have fewer than `LEAST` elements. None: the program computes them too.
    """
    weights = plan.class_weights, plan.pos_weight
    with ops.x64():
        of_plan = [None if x is None else jnp.asarray(x, jnp.float64) for x in weights]
        arrays = *ops.all_stored(arrays), *of_plan
    given = tuple(x is not None for x in arrays)
    present = [x for x in arrays if x is not None]
    evaluate = partial(_evaluate, plan, gradient, given)
    return with_examples(partial(_by_size, plan, evaluate, given, on_host), present)


def _by_size(
    plan: Plan,
    evaluate: Callable[..., tuple[Array, ...]],
    is_given: tuple[bool, ...],
    on_host: Callable[..., tuple[Array, ...]] | None,
    *arrays: Any,
) -> tuple[Array, ...]:
    """Compute few elements by `on_host`, and others by `evaluate`."""
    if on_host is None or len(arrays[0]) * elements(plan) >= LEAST:  # type: ignore[operator]
        return evaluate(*arrays)

    def one(*present: Any) -> tuple[Array, ...]:
        return on_host(*ops.with_none(is_given, present)[:5])

    found: tuple[Array, ...] = jax.vmap(one)(*arrays)
    return found


def with_examples(
    evaluate: Callable[..., tuple[Array, ...]], arrays: Sequence[Any]
) -> tuple[Array, ...]:
    """Call a function of arrays with an axis of examples in front, to which vmap adds its own."""
    with ops.x64():
        examples = (jnp.expand_dims(x, 0) for x in arrays)
        return tuple(x[0] for x in _folded(evaluate)(*examples))


def _folded(evaluate: Callable[..., tuple[Array, ...]]) -> Any:
    """The program for arrays with an axis of examples in front."""

    @custom_vmap
    def program(*arrays: Any) -> tuple[Array, ...]:
        with ops.x64():
            return evaluate(*arrays)

    @program.def_vmap
    def mapped(size: int, batched: Sequence[bool], *arrays: Any) -> Any:
        with ops.x64():
            if not size:
                one = [x[:0] if b else x[None][:0] for x, b in zip(arrays, batched, strict=True)]
                each = jax.eval_shape(program, *(jnp.zeros(x.shape[1:], x.dtype) for x in one))
                return tuple(jnp.zeros((0, *x.shape), x.dtype) for x in each), (True,) * len(each)
            wide = [
                x if b else jnp.broadcast_to(x, (size, *x.shape))
                for x, b in zip(arrays, batched, strict=True)
            ]
            folded = [x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]) for x in wide]
            results = _folded(evaluate)(*folded)
            split = tuple(x.reshape(size, x.shape[0] // size, *x.shape[1:]) for x in results)
            return split, (True,) * len(split)

    return program


def _evaluate(
    plan: Plan, gradient: bool, is_given: tuple[bool, ...], *arrays: Any
) -> tuple[Array, ...]:
    given = Given(*ops.with_none(is_given, arrays))
    call = GraphCall(JaxOps(manual.axes(*arrays)), plan, given, gradient=gradient)
    each = given[:5]
    found = _mended(call, call.found(), each)
    loss, undecided = call.loss(found.terms, careful=False)
    if undecided is not None:
        loss = _reduced(call, loss, undecided, found.terms, each)
    return (loss,) if found.slopes is None else (loss, call.gradient(found.slopes))


def _mended(call: GraphCall, found: Found, arrays: Sequence[Any]) -> Found:
    """`found` with its undecided rows computed by the host."""
    n, width = call.rows, call.form.width
    count = min(n, max(1, _ON_HOST // width))
    forms = [jax.ShapeDtypeStruct((count, found.terms.shape[1]), np.dtype(np.int32))]
    if found.slopes is not None:
        forms.append(jax.ShapeDtypeStruct((count, width), found.slopes.dtype))

    def again(start: Array, which: Array) -> Found:
        terms, *slopes = callback.on_host(partial(_rows, call.plan), forms, start, which, *arrays)
        return Found(terms, slopes[0] if slopes else None, jnp.zeros((count, 1), bool))

    return windows(call.form, found, count, again)


def _reduced(
    call: GraphCall, loss: Array, undecided: Array, terms: Array, arrays: Sequence[Any]
) -> Array:
    """`loss` with its undecided means and sums computed by the host."""
    forms = [jax.ShapeDtypeStruct(loss.shape, loss.dtype)]

    def ask() -> Array:
        means = partial(_means, call.plan)
        return callback.on_host(means, forms, undecided, loss, terms, *arrays[:4])[0]

    return lax.cond(undecided.any(), ask, lambda: loss)


# ------------------------------------------------------------------------------------- on the host


def _rows(plan: Plan, results: list[NumPyArray], arrays: list[Any]) -> None:
    """Fill in the bits of the losses, and the gradients, of some rows of a window.

    A window is a range of rows, counted through all examples.
    """
    from unifiedloss.exact import kernel

    terms, *slopes = results
    start, which, *given = arrays
    wide = terms.shape[1]
    assert plan.count is not None
    each = plan.count // wide  # rows of an example
    chosen = np.flatnonzero(which)
    of_example = (start + chosen) // each
    for example in np.unique(of_example):
        here = chosen[of_example == example]
        positions = ((start + here - example * each)[:, None] * wide + np.arange(wide)).ravel()
        one: list[Any] = [None if x is None else x[example] for x in given]
        losses, rows = kernel.evaluate_some(plan, positions, *one, gradient=bool(slopes))
        terms[here] = _bits(losses, plan).reshape(-1, wide)
        if rows is not None:
            slopes[0][here] = rows.reshape(len(here), -1).view(slopes[0].dtype)


def _bits(losses: NumPyArray, plan: Plan) -> NumPyArray:
    """The bits of rounded losses, as `unifiedloss.exact.graph` holds them."""
    from unifiedloss.exact.rounding import stored

    if plan.spec.reduction != "none" or plan.result_dtype == "float32":
        return losses.view(np.int32)
    return stored(losses, plan.result_dtype).view(np.uint16).astype(np.int32)


def _means(plan: Plan, results: list[NumPyArray], arrays: list[Any]) -> None:
    """Fill in the reduced losses of the undecided examples."""
    from unifiedloss.exact import kernel

    undecided, loss, terms, *given = arrays
    results[0][...] = loss
    terms = terms.view(np.float32).reshape(len(loss), -1)
    for i in np.flatnonzero(undecided):
        one: list[Any] = [None if x is None else x[i] for x in given]
        results[0][i] = kernel.reduce_terms(plan, terms[i], *one).view(loss.dtype)
