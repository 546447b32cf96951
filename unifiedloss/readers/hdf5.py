"""Files of HDF5."""

from __future__ import annotations

from pathlib import Path

from unifiedloss.readers.column import Reader, damaged, unreadable
from unifiedloss.readers.indexed import IndexedColumn


class Hdf5Reader(Reader):
    """An ``.h5`` file: the arrays of its root."""

    def __init__(self, path: Path) -> None:
        import h5py

        self.path = path
        try:
            with path.open("rb"):
                pass  # h5py does not say why a path cannot be read
            self._file = h5py.File(path, "r")
        except OSError as error:
            if error.strerror is not None and error.errno is not None:
                raise unreadable(path, error) from error
            raise damaged(path, "", "is no .h5 file, or is damaged") from error
        arrays = {name: each for name, each in self._file.items() if isinstance(each, h5py.Dataset)}
        self.columns = {name: IndexedColumn(path, name, array) for name, array in arrays.items()}

    def close(self) -> None:
        self._file.close()
