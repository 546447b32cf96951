"""How a call is cut: the arrays of a call in chunks that fit, and functions of their blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn, Self

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array

from unifiedloss.errors import BadValueError, ShapeError
from unifiedloss.plan import Plan
from unifiedloss.values import in_the_whole

Array = Any
Axes = tuple[int, ...]
"""Axes of the predictions."""

VECTOR = -1
"""The name of the axis along which totals lie, and divisors of exact mode."""


class Grid:
    """Arrays of a call, cut alike.

    The blocks of the first array are the pieces of the call. The axes of a call are those of its
    predictions. Those that a cut must leave whole have one chunk, and the chunks of all other
    arrays are those of the first one on the axes that they share.

    Attributes:
        arrays: the arrays by name, all of dask.
        axes: along which axes of the call each array lies.
    """

    def __init__(
        self, tensors: Mapping[str, Any], axes: Mapping[str, Axes], whole: frozenset[int]
    ) -> None:
        self.axes = axes
        self._lead = next(iter(tensors))
        given = tensors[self._lead]
        first = _uncut(self._lead, given, axes[self._lead], whole)
        self._given_chunks = {
            axis: given.chunks[place]
            for place, axis in enumerate(axes[self._lead])
            if isinstance(given, da.Array)
            and given.chunks[place] != first.chunks[place]
            and axis in whole
        }
        self._chunks = dict(zip(axes[self._lead], first.chunks, strict=True))
        self.arrays = {self._lead: first} | {
            name: _fitted(name, x, tuple(self._chunks[axis] for axis in axes[name]))
            for name, x in tensors.items()
            if name != self._lead
        }

    @classmethod
    def of_call(cls, plan: Plan, tensors: Mapping[str, Any]) -> Self:
        """The grid of the tensors of a call, by the names of its arguments."""
        given = {name: x for name, x in tensors.items() if x is not None}
        assert plan.shape is not None
        every = tuple(range(len(plan.shape)))
        positions = positions_of(plan)
        axes = {name: positions[: x.ndim] for name, x in given.items()}
        axes["predictions"] = every
        axes["targets"] = every
        if plan.kind == "index":
            axes["targets"] = tuple(axis for axis in every if axis != plan.axis)
        return cls(given, axes, plan.whole_axes)

    def vectors(self, work: Callable[..., Array], length: int | None, dtype: str) -> Array:
        """The sum of a small vector, or number, of each piece, added in a tree.

        Args:
            work: computes it from the blocks of a piece; see `each`.
            length: its length; None for a number.
            dtype: its dtype.
        """
        axes = self.axes[self._lead]
        found = self._run(partial(_in_place, len(axes), work), _summand(axes, length), dtype)
        return _total(found, len(axes), dtype)

    def each(self, work: Callable[..., Array], axes: Axes, dtype: Any) -> Array:
        """An array that has a block for each piece.

        Args:
            work: computes the block. It is called with the blocks of the piece by their names.
            axes: its axes: all of the call, or some; the others have one chunk.
            dtype: its dtype.

        Returns:
            The array, in the chunks of the first one as it was given.
        """
        return _recut(self._run(work, dict.fromkeys(axes), dtype), axes, self._given_chunks)

    def pairs(self, work: Callable[..., tuple[Array, Array]], constant: Array | None) -> Pairs:
        """Two results of one task per piece, because each block should be read once.

        Args:
            work: computes the two; see `each`.
            constant: a small array that each piece is given under the name "divisor".
        """
        every = self.axes[self._lead]
        both = self._run(work, dict.fromkeys(every), object, constant=constant)
        return Pairs(both, every, self._given_chunks)

    def findings(self, work: Callable[..., Any]) -> Array:
        """A Python object for each piece, in an array with one entry per piece.

        A `BadValueError` is such an object too.
        """
        axes = self.axes[self._lead]
        extents = _summand(axes, None)
        return self._run(work, extents, object, around=partial(_as_object, len(axes)))

    def _run(
        self,
        work: Callable[..., Any],
        extents: Mapping[Any, int | None],
        dtype: Any,
        *,
        constant: Array | None = None,
        around: Callable[..., Any] | None = None,
    ) -> Array:
        """Apply a function to the blocks of each piece.

        Args:
            work: the function.
            extents: the axes of the result; None where its chunks are those of the first array.
            dtype: its dtype.
            constant: see `pairs`.
            around: calls a function with the blocks, and changes what it returns or raises.
        """
        several = [axis for axis, chunks in self._chunks.items() if len(chunks) > 1]
        operands: list[Any] = []
        # These come before the starts, because dask takes chunks from what comes first.
        for name, x in self.arrays.items():
            operands += [x, self.axes[name]]
        names = [*self.arrays]
        if constant is not None:
            names.append("divisor")
            operands += [constant, (VECTOR,)[: constant.ndim]]
        for axis in several:
            operands += [_starts(self._chunks[axis]), (axis,)]
        known = {axis: not _is_unknown(self._chunks[axis]) for axis in several}
        axes = {name: self.axes[name] for name in self.arrays}
        function = partial(_in_block, work, tuple(names), axes, known)
        if around is not None:
            function = partial(around, function)
        return _blockwise(function, self.arrays[self._lead], operands, extents, dtype)


class Pairs:
    """Two results of each piece of a call, computed together."""

    def __init__(self, both: Array, axes: Axes, chunks: Mapping[int, Any]) -> None:
        self._both = both
        self._axes = axes
        self._chunks = chunks

    def along(self, number: int, axes: Axes, dtype: Any) -> Array:
        """One of the results as an array; see `Grid.each`."""
        found = self._one(partial(_part, number), dict.fromkeys(axes), dtype)
        return _recut(found, axes, self._chunks)

    def vectors(self, number: int, length: int | None, dtype: Any) -> Array:
        """The sum of one of the results, a vector of this length, or a number."""
        place = partial(_in_place, len(self._axes), partial(_part, number))
        found = self._one(place, _summand(self._axes, length), dtype)
        return _total(found, len(self._axes), dtype)

    def _one(
        self, function: Callable[..., Any], extents: Mapping[Any, int | None], dtype: Any
    ) -> Array:
        operands = [self._both, self._axes]
        return _blockwise(
            partial(_on_single_blocks, function), self._both, operands, extents, dtype
        )


def wrapped(x: Any, chunks: Any = "auto") -> Array:
    """An array of NumPy or on disk as one of dask, which reads a block when it is computed."""
    # No name is asked for, because dask would hash all numbers for it.
    return da.from_array(_Mapped(x) if isinstance(x, np.memmap) else x, chunks=chunks, name=False)


class _Mapped:
    """An array in a mapped file, without the method `copy` with which dask reads all of it."""

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self._array = array

    def __getitem__(self, index: Any) -> Any:
        return self._array[index]


def once(work: Callable[..., Array], dtype: Any, *arrays: Array) -> Array:
    """A 0-d array: a function of whole arrays, such as the sum of all totals."""
    operands: list[Any] = []
    for number, x in enumerate(arrays):
        whole = rechunked(x, dict.fromkeys(range(x.ndim), -1))
        operands += [whole, tuple(f"{number} {axis}" for axis in range(x.ndim))]
    return _blockwise(partial(_on_single_blocks, work), arrays[0], operands, {}, dtype)


def positions_of(plan: Plan) -> Axes:
    """The axes of the per-position loss."""
    assert plan.shape is not None
    axes = tuple(axis for axis in range(len(plan.shape)) if axis != plan.axis)
    return axes[:-1] if plan.average_last_axis else axes


def on_disk(x: Any) -> bool:
    """Whether an array is one of zarr or h5py, which read from a file what is asked for."""
    return any(base.__module__.partition(".")[0] in ("zarr", "h5py") for base in type(x).__mro__)


# ------------------------------------------------------------------------------------------- chunks


def _uncut(name: str, x: Any, axes: Axes, whole: frozenset[int]) -> Array:
    """The array that decides how the others are cut, with one chunk on the axes in `whole`."""
    if not isinstance(x, da.Array):
        return wrapped(x, tuple(-1 if axis in whole else "auto" for axis in axes))
    cut = [place for place, axis in enumerate(axes) if axis in whole and x.numblocks[place] > 1]
    for place in cut:
        if _is_unknown(x.chunks[place]):
            _refuse_unknown(name, place)
    return rechunked(x, dict.fromkeys(cut, -1))


def _fitted(name: str, x: Any, wanted: tuple[tuple[float, ...], ...]) -> Array:
    """An array in the chunks that are wanted."""
    if not isinstance(x, da.Array):
        for place, chunks in enumerate(wanted):
            if _is_unknown(chunks):
                _refuse_unknown("predictions", place)
        return wrapped(x, wanted)
    other = {}
    for place, (own, chunks) in enumerate(zip(x.chunks, wanted, strict=True)):
        if _is_unknown(own) or _is_unknown(chunks):
            # As many chunks are taken for the same ones; each piece compares their shapes.
            if len(own) != len(chunks):
                _refuse_unknown(name if _is_unknown(own) else "predictions", place)
        elif own != chunks:
            other[place] = chunks
    return rechunked(x, other)


def _recut(x: Array, axes: Axes, chunks: Mapping[int, Any]) -> Array:
    """An array with these chunks on some axes of the call."""
    other = {place: chunks[axis] for place, axis in enumerate(axes) if axis in chunks}
    return rechunked(x, other)


def rechunked(x: Array, chunks: Mapping[int, Any]) -> Array:
    """An array in other chunks on some axes."""
    if not chunks:
        return x
    if any(x.shape):
        return x.rechunk(chunks)
    # dask leaves the chunks of an array without elements as they are.
    given = tuple(chunks.get(place, own) for place, own in enumerate(x.chunks))
    return da.zeros_like(x._meta, shape=x.shape, chunks=given)


def _is_unknown(chunks: tuple[float, ...]) -> bool:
    return any(math.isnan(chunk) for chunk in chunks)


def _refuse_unknown(name: str, place: int) -> NoReturn:
    msg = (
        f"the sizes of the chunks of {name} along axis {place} are unknown, and the arrays of this "
        f"call are cut differently, or must not be cut there; call {name}.compute_chunk_sizes() "
        "first."
    )
    raise ShapeError(msg)


def _starts(chunks: tuple[float, ...]) -> Array:
    """Where each block starts on an axis, a number per block; its number if that is unknown."""
    if _is_unknown(chunks):
        starts = np.arange(len(chunks))
    else:
        starts = np.cumsum([0, *chunks[:-1]], dtype=np.int64)
    return wrapped(starts, 1)


# ------------------------------------------------------------------------------------------- graphs


def _blockwise(
    function: Callable[..., Any],
    like: Array,
    operands: list[Any],
    extents: Mapping[Any, int | None],
    dtype: Any,
) -> Array:
    """Apply a function block by block, on axes that have names.

    The axes of the operands must be named, because `map_blocks` pairs them from the last one.
    """
    dtype = np.dtype(dtype)
    present = {axis for axes in operands[1::2] for axis in axes}
    return da.blockwise(
        function,
        tuple(extents),
        *operands,
        new_axes={axis: extent for axis, extent in extents.items() if axis not in present},
        adjust_chunks={axis: n for axis, n in extents.items() if n is not None and axis in present},
        align_arrays=False,
        token="unifiedloss",  # noqa: S106 - it begins the names of tasks
        dtype=dtype,
        meta=meta_from_array(like._meta, ndim=len(extents), dtype=dtype),
    )


def _summand(axes: Axes, length: int | None) -> dict[Any, int | None]:
    """The extents of a block that holds a number of its piece, or a vector."""
    extents: dict[Any, int | None] = dict.fromkeys(axes, 1)
    return extents if length is None else {**extents, VECTOR: length}


def _total(x: Array, axes: int, dtype: Any) -> Array:
    """The sum along the first axes, added in a tree."""
    if not axes:
        return x
    return da.reduction(x, _sum, _sum, axis=tuple(range(axes)), dtype=np.dtype(dtype))


# -------------------------------------------------------------------------- what runs in the tasks


def _in_block(
    work: Callable[..., Any],
    names: tuple[str, ...],
    axes: Mapping[str, Axes],
    known: Mapping[int, bool],
    *blocks: Any,
) -> Any:
    """Call a function with the blocks of a piece, and say where in the whole a value is bad.

    Args:
        work: the function.
        names: the names of its arguments.
        axes: the axes of those that may hold bad values.
        known: for each axis that is cut, whether it is known where a block starts.
        *blocks: the arguments, and where the piece starts on each axis.
    """
    tensors = dict(zip(names, map(_single, blocks), strict=False))
    try:
        return work(**tensors)
    except BadValueError as error:
        places = map(_single, blocks[len(names) :])
        starts = {axis: int(place[0]) for axis, place in zip(known, places, strict=True)}
        within = {
            name: [starts[axis] if known.get(axis) else 0 for axis in along]
            for name, along in axes.items()
        }
        message = in_the_whole(str(error), within)
        counted = [f"block {starts[axis]} of axis {axis}" for axis in known if not known[axis]]
        if counted:
            message = f"in {', '.join(counted)}, and counted within it: {message}"
        raise BadValueError(message) from None


def _on_single_blocks(work: Callable[..., Any], *blocks: Any) -> Any:
    return work(*map(_single, blocks))


def _single(block: Any) -> Any:
    """The block itself: axes that the result lacks have one, which arrives in a list for each."""
    while isinstance(block, list):
        (block,) = block
    return block


def _in_place(axes: int, work: Callable[..., Array], *pair: Any, **blocks: Any) -> Array:
    """A vector as a row, with an axis of extent 1 for each axis along which pieces lie."""
    found = work(*pair, **blocks)
    return found.reshape((1,) * axes + tuple(found.shape))


def _part(number: int, both: tuple[Array, Array]) -> Array:
    return both[number]


def _sum(x: Array, axis: Any, keepdims: bool) -> Array:
    with np.errstate(all="ignore"):
        return x.sum(axis=axis, dtype=x.dtype, keepdims=keepdims)


def _as_object(axes: int, function: Callable[..., Any], *blocks: Any) -> Any:
    found = np.empty((1,) * axes, object)
    try:
        found[(0,) * axes] = function(*blocks)
    except BadValueError as error:
        found[(0,) * axes] = error
    return found
