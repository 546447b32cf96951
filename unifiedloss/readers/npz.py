"""Files of ``numpy.savez``, read as streams: a member of any size takes the memory of a block."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from unifiedloss.errors import FileError
from unifiedloss.readers.column import Array, Column, Reader, damaged, unreadable
from unifiedloss.readers.memory import check_memory
from unifiedloss.readers.npy import Header, read_header
from unifiedloss.readers.raw import bytes_of, fill
from unifiedloss.text import shortened, shortened_path

_SAVE = "save it with numpy.savez(file, predictions=..., targets=...)"
_SUFFIX = ".npy"
_DAMAGED = f"is damaged, or holds Python objects and not numbers; {_SAVE}"


class NpzReader(Reader):
    """An ``.npz`` file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Opened here, because `is_zipfile` hides why a path cannot be read.
            with path.open("rb") as opened:
                is_archive = zipfile.is_zipfile(opened)
        except OSError as error:
            raise unreadable(path, error) from error
        if not is_archive:
            msg = f"{shortened_path(path)} is no .npz file; {_SAVE}."
            raise FileError(msg)
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # whatever damaged bytes make zipfile raise
            msg = f"the archive {shortened_path(path)} is damaged; {_SAVE}."
            raise FileError(msg) from error
        try:
            self.columns = self._columns()
        except BaseException:
            self.close()
            raise

    def _columns(self) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for member in self._archive.infolist():
            if not member.filename.endswith(_SUFFIX):
                continue
            name = member.filename.removesuffix(_SUFFIX)
            if name in columns:
                msg = f"{shortened_path(self.path)} has two arrays {shortened(name)!r}; {_SAVE}."
                raise FileError(msg)
            columns[name] = _Member(self.path, self._archive, member, name)
        return columns

    def close(self) -> None:
        for column in self.columns.values() if hasattr(self, "columns") else ():
            assert isinstance(column, _Member)
            column.close()
        self._archive.close()


class _Member(Column):
    """An array of an archive."""

    def __init__(
        self, path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str
    ) -> None:
        self._path, self._archive, self._member = path, archive, member
        self._stream: IO[bytes] | None = None
        self._row = 0  # the row at which the stream stands
        header = self._header(name)
        super().__init__(name, header.shape, header.dtype.newbyteorder("="))
        self._stored, self._start = header.dtype, header.offset
        self._whole: Array | None = None
        self._column_major = header.column_major

    def _header(self, name: str) -> Header:
        """The header; refuse an array that does not fill the member."""
        try:
            with self._archive.open(self._member) as opened:
                header = read_header(opened)
        except Exception as error:  # whatever damaged bytes make zipfile and NumPy raise
            raise damaged(self._path, name, _DAMAGED) from error
        if header.offset + header.size != self._member.file_size:
            raise damaged(self._path, name, _DAMAGED)
        return header

    def read(self, start: int, stop: int) -> Array:
        if self._column_major:
            return self._of_whole(start, stop)
        rest = self.shape[1:]
        shape = (stop - start, *rest) if self.shape else ()
        row = math.prod(rest) * self._stored.itemsize
        stream = self._stream_at(start, row)
        array = np.empty(shape, self._stored)
        try:
            fill(stream, bytes_of(array))
            self._row = stop
            if stop == (self.shape or (1,))[0]:
                # Reading past the end makes zipfile compare the checksum.
                stream.read(1)
        except Exception as error:  # whatever damaged bytes make zipfile raise
            raise damaged(self._path, self.name, _DAMAGED) from error
        return array.astype(self.dtype, copy=False)

    def _stream_at(self, start: int, row: int) -> IO[bytes]:
        """The stream of the member, at the beginning of a row."""
        try:
            if self._stream is None or start < self._row:
                self.close()
                self._stream = self._archive.open(self._member)
                self._skip(self._start)
                self._row = 0
            self._skip((start - self._row) * row)
        except Exception as error:  # see `read`
            raise damaged(self._path, self.name, _DAMAGED) from error
        return self._stream

    def _skip(self, count: int) -> None:
        assert self._stream is not None
        while count > 0:
            read = self._stream.read(min(count, 1 << 20))
            if not read:
                raise EOFError
            count -= len(read)

    def _of_whole(self, start: int, stop: int) -> Array:
        """Rows of an array in column-major order, which has to be read as a whole."""
        if self._whole is None:
            check_memory(math.prod(self.shape) * self._stored.itemsize, self._path)
            try:
                with self._archive.open(self._member) as opened:
                    self._whole = np.lib.format.read_array(opened, allow_pickle=False)
            except Exception as error:  # see `read`
                raise damaged(self._path, self.name, _DAMAGED) from error
        whole: Any = self._whole
        return np.array(whole[start:stop], self.dtype, order="C")

    def close(self) -> None:
        """Close the stream."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
