"""What every reader gives: arrays in a file, of which some rows are read at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from unifiedloss.errors import FileError
from unifiedloss.text import shortened, shortened_path

if TYPE_CHECKING:
    import numpy as np

Array = NDArray[Any]


class Column(ABC):
    """An array in a file.

    Attributes:
        name: its name in the file, "" where the file holds one array alone.
        shape: its extents; rows run along the first axis.
        dtype: the dtype of what `read` gives.
        unread: why the array cannot be read at all; None if it can.
    """

    unread: str | None = None

    def __init__(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype

    @abstractmethod
    def read(self, start: int, stop: int) -> Array:
        """The rows from `start` to `stop`, which are not empty; all of an array without axes.

        A reader of a stream is fast where `start` is the last `stop`.

        Raises:
            FileError: the rows cannot be read.
        """


class Reader(ABC):
    """An open file of arrays.

    Attributes:
        path: the file, or the folder of a format that uses one.
        columns: its arrays by their names.
    """

    path: Path
    columns: Mapping[str, Column]

    def close(self) -> None:  # noqa: B027 - most readers hold nothing open
        """Close what is open."""


def unreadable(path: Path, error: Exception) -> FileError:
    """The error about a file that the system does not open or read."""
    why = getattr(error, "strerror", None) or shortened(str(error))
    made: FileError = FileError(f"cannot read {shortened_path(path)}: {why}.")
    return made


def damaged(path: Path, name: str, why: str) -> FileError:
    """The error about an array that cannot be read."""
    what = f"the array {shortened(name)!r} in " if name else ""
    made: FileError = FileError(f"{what}{shortened_path(path)} {why}.")
    return made
