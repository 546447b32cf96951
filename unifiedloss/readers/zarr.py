"""Folders and archives of Zarr, the format of chunked arrays.

A chunk that is not stored holds the array's fill value, because the library leaves out chunks that
hold nothing else. So a chunk that was lost cannot be told from one that was left out.
"""

from __future__ import annotations

from pathlib import Path

from unifiedloss.readers.column import Reader, damaged, unreadable
from unifiedloss.readers.indexed import IndexedColumn


class ZarrReader(Reader):
    """A ``.zarr`` folder: a group of arrays, or one array."""

    def __init__(self, path: Path) -> None:
        import zarr

        self.path = path
        try:
            opened = zarr.open(path, mode="r")
            arrays = dict(opened.arrays()) if isinstance(opened, zarr.Group) else {"": opened}
        except OSError as error:
            raise unreadable(path, error) from error
        except Exception as error:  # whatever damaged metadata make the library raise
            raise damaged(path, "", "is no .zarr folder, or is damaged") from error
        self.columns = {name: IndexedColumn(path, name, array) for name, array in arrays.items()}
