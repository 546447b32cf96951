"""Files of Parquet, which Spark and the Hugging Face datasets write.

A column of numbers is an array with one axis. A column of lists, all of one length, is an array
with one axis more. Lists of a fixed size may be nested.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unifiedloss.readers.column import Array, Column, Reader, damaged, unreadable

_BUFFER = 1 << 20
"""Bytes that are read at a time. Without a buffer, the library reads whole columns of a group."""


class ParquetReader(Reader):
    """A ``.parquet`` file."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.path = path
        try:
            self._file = parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
            schema, rows = self._file.schema_arrow, self._file.metadata.num_rows
        except OSError as error:
            raise unreadable(path, error) from error
        except Exception as error:
            raise damaged(path, "", "is no .parquet file, or is damaged") from error
        self.columns = {field.name: _column(path, self._file, field, rows) for field in schema}

    def close(self) -> None:
        self._file.close()


def _column(path: Path, file: Any, field: Any, rows: int) -> Column:
    """A column, which may be of a type that is not read."""
    import pyarrow as pa

    kind, extents = field.type, []
    while pa.types.is_fixed_size_list(kind):
        extents.append(kind.list_size)
        kind = kind.value_type
    lists = False
    if not extents and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        lists = True
        kind = kind.value_type
    if pa.types.is_dictionary(kind) and not extents and not lists:
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        dtype = None if extents or lists else np.dtype(object)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        dtype = np.dtype(kind.to_pandas_dtype())
    else:
        dtype = None
    if dtype is None:
        unread = _ParquetColumn(path, file, field.name, (rows,), np.dtype(object))
        unread.unread = f"has the type {field.type}, which is not read; cast it to numbers or text"
        return unread
    made = _ParquetColumn(path, file, field.name, (rows, *extents), dtype)
    if lists and rows:
        made.shape = (rows, made.length_of_lists())
    return made


class _ParquetColumn(Column):
    """A column, read in batches."""

    def __init__(
        self, path: Path, file: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        super().__init__(name, shape, dtype)
        self._path, self._file = path, file
        self._batches: Iterator[Any] | None = None
        self._row = 0  # the first row that the next batch holds
        self._rest: Array | None = None  # rows of the last batch that were not asked for

    def length_of_lists(self) -> int:
        """The length of the first list."""
        try:
            first = next(self._file.iter_batches(1, columns=[self.name], use_threads=False))
            return len(first.column(0)[0].as_py() or ())
        except OSError as error:
            raise unreadable(self._path, error) from error

    def read(self, start: int, stop: int) -> Array:
        try:
            return self._read(start, stop)
        except OSError as error:
            raise damaged(self._path, self.name, "is damaged, or was cut") from error

    def _read(self, start: int, stop: int) -> Array:
        if self._batches is None or start < self._row:
            self._batches = self._file.iter_batches(
                max(1, stop - start), columns=[self.name], use_threads=False
            )
            self._row, self._rest = 0, None
        parts: list[Array] = []
        while self._row < stop:
            part = self._rest
            if part is None:
                part = self._values(next(self._batches).column(0))
            wanted = part[max(0, start - self._row) : stop - self._row]
            if len(wanted):
                parts.append(wanted)
            end = self._row + len(part)
            self._rest = part[stop - self._row :] if end > stop else None
            self._row = min(end, stop)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _values(self, column: Any) -> Array:
        """The values of a batch; refuse missing ones and lists of other lengths."""
        if hasattr(column, "dictionary_decode"):
            column = column.dictionary_decode()
        count = len(column)
        rest = self.shape[1:]
        for extent in rest:
            if column.null_count:
                break
            if hasattr(column.type, "list_size"):
                column = column.flatten()
                continue
            lengths = np.diff(column.offsets.to_numpy())
            if (lengths != extent).any():
                row = self._row + int(np.argmax(lengths != extent))
                why = f"has a list of another length than {extent} in row {row}"
                raise damaged(self._path, self.name, why)
            column = column.flatten()
        if column.null_count:
            missing = np.asarray(column.is_null())
            row = self._row + int(np.argmax(missing)) * count // max(1, len(missing))
            raise damaged(self._path, self.name, f"has no value in row {row}")
        values = column.to_numpy(zero_copy_only=False)
        array: Array = np.asarray(values, self.dtype).reshape(count, *rest)
        return array
