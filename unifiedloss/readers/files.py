"""The arrays of a loss in one or several files, read in blocks of rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from unifiedloss.errors import FileError
from unifiedloss.inputs import Signature
from unifiedloss.readers import open_reader
from unifiedloss.readers.column import Array, Column, Reader, damaged
from unifiedloss.readers.memory import size
from unifiedloss.suggestion import suggestion
from unifiedloss.text import shortened, shortened_path

REQUIRED = ("predictions", "targets")
OPTIONAL = ("sample_weight", "mask")
ARGUMENTS = (*REQUIRED, *OPTIONAL)
"""The arguments of a loss. An array of the same name is read for each."""

_BLOCK = 1 << 22
"""Bytes of predictions in a block, which stay in the processor's cache between reading and use."""


_AT_ONCE = 1 << 26
"""Bytes of predictions that are read where a loss needs them at once."""


class Block(NamedTuple):
    """Some rows.

    Attributes:
        start: the place of the first among all rows.
        arrays: the arguments of a loss by their names; those that no file holds are left out.
        group: the group of each row; None without groups.
    """

    start: int
    arrays: dict[str, Array]
    group: Array | None = None


@dataclass(frozen=True)
class Files:
    """The files of a loss. It is pickled where another process reads them.

    Attributes:
        main: the file of the predictions and of all that has no file of its own.
        others: the files of single arguments.
        keys: the names of arrays in files of several arrays; the default is the argument's name.
        by: the array of groups, in the main file or a path of its own; None without groups.
    """

    main: Path
    others: Mapping[str, Path] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    by: str | None = None

    def open(self) -> Source:
        """Open the files.

        Raises:
            FileError: a file cannot be read, or its arrays do not belong together.
        """
        return Source(self)


class Source:
    """Open files: the arrays of a loss, and what they are.

    Attributes:
        files: where they lie.
        columns: the arguments by their names.
        unused: the names of arrays of the main file that are not read.
        rows: the number of rows.
    """

    def __init__(self, files: Files) -> None:
        self.files = files
        self._stack = ExitStack()
        self._readers: dict[Path, Reader] = {}
        self._scalars: dict[str, Array] = {}
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        files = self.files
        main = self._reader(files.main)
        self.columns = {
            name: column for name in ARGUMENTS if (column := self._find(name)) is not None
        }
        used = {column.name for column in self.columns.values()}
        self._group = None
        if files.by is not None:
            self._group = self._find_group(files.by)
            used.add(self._group.name)
        self.unused = [name for name in main.columns if name not in used]
        for name in self.unused:
            _refuse_if_misspelt(name, files.main, self.columns)
        self._check_rows()
        self._before = {path: _state(path) for path in self._readers}

    def _reader(self, path: Path) -> Reader:
        if path not in self._readers:
            self._readers[path] = reader = open_reader(path)
            self._stack.callback(reader.close)
        return self._readers[path]

    def _find(self, name: str) -> Column | None:
        """The array of an argument; None if it is optional and not there."""
        files = self.files
        reader = self._reader(files.others.get(name, files.main))
        key = files.keys.get(name)
        if list(reader.columns) == [""]:  # a file of one array
            if name in files.others or name == "predictions":
                return reader.columns[""]
            if name not in REQUIRED:
                return None
            msg = (
                f"{shortened_path(files.main)} holds one array, the predictions; name the file of "
                f"the {name} too: --{name} FILE."
            )
            raise FileError(msg)
        found = reader.columns.get(key or name)
        if found is None and (key is not None or name in REQUIRED or name in files.others):
            raise _no_array(reader, key or name, name)
        return _readable(found, reader)

    def _find_group(self, by: str) -> Column:
        main = self._reader(self.files.main)
        if by in main.columns:
            column = main.columns[by]
            _readable(column, main)
        else:
            path = Path(by)
            if not path.exists():
                raise _no_array(main, by, "groups")
            reader = self._reader(path)
            if list(reader.columns) != [""]:
                msg = f"{shortened_path(path)} holds several arrays; save the groups as one .npy."
                raise FileError(msg)
            column = reader.columns[""]
        if len(column.shape) != 1 or column.dtype.kind not in "iubOUS":
            msg = (
                f"the groups {shortened(by)!r} are {column.dtype} of shape {column.shape}, and "
                "must be one integer, bool or text for each row."
            )
            raise FileError(msg)
        return column

    def _check_rows(self) -> None:
        predictions = self.columns["predictions"]
        if not predictions.shape:
            msg = "the predictions are a scalar; they need an axis of rows."
            raise FileError(msg)
        self.rows = predictions.shape[0]
        every = dict(self.columns)
        if self._group is not None:
            every["groups"] = self._group
        for name, column in every.items():
            if column.shape and column.shape[0] != self.rows:
                msg = (
                    f"the predictions have {self.rows} rows, and the {name} have "
                    f"{column.shape[0]}; each row needs its own."
                )
                raise FileError(msg)

    def signature(self, name: str, rows: int | None = None) -> Signature | None:
        """The shape and dtype of an argument, of all rows or of so many; None if it is not there.

        Args:
            name: the argument.
            rows: the number of rows.
        """
        column = self.columns.get(name)
        if column is None:
            return None
        shape = column.shape
        if rows is not None and shape:
            shape = (rows, *shape[1:])
        return Signature(shape, column.dtype.name)

    def __str__(self) -> str:
        """The arrays with their shapes, dtypes and size, and those that are not read."""
        arrays = ", ".join(
            f"{name} {column.shape} {column.dtype.name}" for name, column in self.columns.items()
        )
        unused = f"; not read: {shortened(', '.join(self.unused))}" if self.unused else ""
        return f"{arrays}: {size(self.nbytes)}{unused}"

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        return sum(
            column.dtype.itemsize * int(np.prod(column.shape, dtype=object))
            for column in self.columns.values()
        )

    def rows_of_block(self, size: int = _BLOCK) -> int:
        """How many rows a block of so many bytes of predictions has."""
        predictions = self.columns["predictions"]
        row = predictions.dtype.itemsize * int(np.prod(predictions.shape[1:], dtype=object))
        return max(1, size // max(1, row))

    def spans(
        self, rows: int | None = None, first: int = 0, last: int | None = None
    ) -> list[tuple[int, int]]:
        """Where the blocks between two rows begin and end. No rows give one empty block.

        Args:
            rows: the rows of a block; the default is `rows_of_block`.
            first: the first row.
            last: the row after the last; the default is the end.
        """
        end = self.rows if last is None else last
        step = rows or self.rows_of_block()
        return [
            (start, min(start + step, end)) for start in range(first, max(first + 1, end), step)
        ]

    def read(self, start: int, stop: int) -> Block:
        """Some rows.

        Call `check_unchanged` after the last rows, before the result is used.

        Raises:
            FileError: they cannot be read.
        """
        arrays = {name: self._rows(name, start, stop) for name in self.columns}
        group = None if self._group is None else _rows(self._group, start, stop)
        return Block(start, arrays, group)

    def _rows(self, name: str, start: int, stop: int) -> Array:
        column = self.columns[name]
        if column.shape:
            return _rows(column, start, stop)
        if name not in self._scalars:
            self._scalars[name] = column.read(0, 1)
        return self._scalars[name]

    def first_rows(self, rows: int | None = None) -> dict[str, Array]:
        """The arguments of a call on the first rows; by default 64 MiB of predictions."""
        most = min(self.rows, rows or self.rows_of_block(_AT_ONCE))
        read = self.read(0, most)
        self.check_unchanged()
        return read.arrays

    def blocks(self, rows: int | None = None) -> Iterator[Block]:
        """All rows, in blocks of so many; see `read`."""
        for start, stop in self.spans(rows):
            yield self.read(start, stop)

    def state(self) -> dict[Path, Any]:
        """What tells that the files are those that were opened, also in another process."""
        return dict(self._before)

    def check_unchanged(self, before: Mapping[Path, Any] | None = None) -> None:
        """Refuse files that are not in the state in which they were opened, or in the given one.

        Raises:
            FileError: a file has changed.
        """
        for path, state in (before or self._before).items():
            if _state(path) != state:
                msg = f"{shortened_path(path)} changed while it was read; run it again."
                raise FileError(msg)

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _rows(column: Column, start: int, stop: int) -> Array:
    if start == stop:
        return np.empty((0, *column.shape[1:]), column.dtype)
    return column.read(start, stop)


def _readable(column: Column | None, reader: Reader) -> Column | None:
    """Refuse an array of a type that is not read."""
    if column is not None and column.unread is not None:
        raise damaged(reader.path, column.name, column.unread)
    return column


def _no_array(reader: Reader, key: str, name: str) -> FileError:
    names = shortened(", ".join(map(repr, reader.columns))) or "none"
    if list(reader.columns) == [""]:
        names = "one without a name"
    option = f"--{name.replace('_', '-')}-key"
    how = f" Name the array of the {name} with {option}."
    if name == "groups":
        how = " The groups may be an .npy file of their own."
    made: FileError = FileError(
        f"{shortened_path(reader.path)} has no array {shortened(key)!r}; its arrays are {names}."
        f"{suggestion(key, reader.columns)}{how}"
    )
    return made


def _refuse_if_misspelt(name: str, path: Path, columns: Mapping[str, Column]) -> None:
    """Refuse an array whose name is nearly that of an argument, because the loss would differ."""
    from difflib import get_close_matches

    missing = [argument for argument in OPTIONAL if argument not in columns]
    meant = get_close_matches(name[:100].lower(), missing, n=1, cutoff=0.75)
    if meant:
        option = f"--{meant[0].replace('_', '-')}-key"
        msg = (
            f"{shortened_path(path)} has an array {shortened(name)!r}, which is not read; if it is "
            f"the {meant[0]}, say so with {option} {shortened(name)}, else rename it or leave it "
            "out."
        )
        raise FileError(msg)


def _state(path: Path) -> Any:
    """The size and the time of change of a file, or of all files of a folder."""
    try:
        if not path.is_dir():
            found = path.stat()
            return found.st_size, found.st_mtime_ns
        count = total = latest = 0
        for folder, _, names in os.walk(path):
            for name in names:
                found = (Path(folder) / name).stat()
                count, total = count + 1, total + found.st_size
                latest = max(latest, found.st_mtime_ns)
    except OSError:
        return None
    return count, total, latest
