"""Read the arrays of a saved file, and look at what it claims to hold before memory is taken.

A header of a few bytes can claim an array of any size, and a compressed file of a few megabytes can
hold gigabytes of zeros. NumPy takes the memory first.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unifiedloss.errors import BadValueError
from unifiedloss.readers.memory import available, size
from unifiedloss.text import shortened, shortened_path

Array = NDArray[Any]

ARRAYS = ("predictions", "targets", "sample_weight", "mask")

_SAVE = "save it with numpy.savez(file, predictions=..., targets=...)"

_SUFFIX = ".npy"

_LONGEST_HEADER = 10_000
"""NumPy reads no longer header either."""


class Header(NamedTuple):
    """What the header of an ``.npy`` file says.

    Attributes:
        shape: the extents of the array.
        dtype: its dtype, which holds no Python objects.
        offset: the place where its numbers begin.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def size(self) -> int:
        """The number of bytes that the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize


def load_files(
    files: Sequence[Path], sample_weight: Path | None = None, mask: Path | None = None
) -> dict[str, Array]:
    """The arrays of one ``.npz`` file, or of ``.npy`` files, which are mapped.

    Args:
        files: one ``.npz`` file; or two ``.npy`` files, the predictions and the targets.
        sample_weight: an ``.npy`` file, beside two others.
        mask: likewise.

    Raises:
        BadValueError: a file is missing, is not of its kind, is damaged, or holds more than the
            free memory.
    """
    pair = [path for path in files if path.suffix == _SUFFIX]
    if len(files) == 2 and len(pair) == 2:
        given = {"predictions": files[0], "targets": files[1]}
        given |= {
            name: path
            for name, path in (("sample_weight", sample_weight), ("mask", mask))
            if path is not None
        }
        return {name: _mapped(name, path) for name, path in given.items()}
    if len(files) != 1:
        msg = "give one .npz file, or two .npy files, the first with predictions."
        raise BadValueError(msg)
    if sample_weight is not None or mask is not None:
        msg = (
            "an .npz file holds sample_weight and mask itself; the options are for two .npy files."
        )
        raise BadValueError(msg)
    return load(files[0])


def _mapped(name: str, path: Path) -> Array:
    """The array of an ``.npy`` file, mapped; only an empty one is loaded."""
    if not path.exists():
        msg = f"there is no file {shortened_path(path)}."
        raise BadValueError(msg)
    try:
        with path.open("rb") as opened:
            header = read_header(opened)
        if path.stat().st_size == header.offset + header.size:
            array: Array = np.load(path, mmap_mode="r" if header.size else None)
            return array
    except OSError as error:
        msg = f"cannot read {shortened_path(path)}: {error.strerror or shortened(str(error))}."
        raise BadValueError(msg) from error
    except Exception:  # noqa: BLE001, S110 - whatever damaged bytes make NumPy raise
        pass
    msg = (
        f"the {name} in {shortened_path(path)} cannot be read: the file is damaged, or is no .npy "
        "file, or holds Python objects and not numbers; save it with numpy.save(file, array)."
    )
    raise BadValueError(msg)


def load(path: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file.

    Raises:
        BadValueError: the file is missing, is no npz file, lacks ``predictions`` or ``targets``,
            holds other arrays than these, ``sample_weight`` and ``mask``, is damaged, or holds more
            than this machine's memory.
    """
    if not path.exists():
        msg = f"there is no file {shortened_path(path)}."
        raise BadValueError(msg)
    try:
        if _is_archive(path):
            with zipfile.ZipFile(path) as archive:
                return _arrays(archive, shortened_path(path))
    except OSError as error:
        msg = f"cannot read {shortened_path(path)}: {error.strerror or shortened(str(error))}."
        raise BadValueError(msg) from error
    except BadValueError:
        raise
    except Exception as error:
        msg = f"the archive {shortened_path(path)} is damaged; {_SAVE}."
        raise BadValueError(msg) from error
    msg = f"{shortened_path(path)} is no .npz file; {_SAVE}."
    raise BadValueError(msg)


def _is_archive(path: Path) -> bool:
    if path.is_dir():
        return False
    # Open the file here, because `is_zipfile` hides why a path cannot be read.
    with path.open("rb") as opened:
        return zipfile.is_zipfile(opened)


def _arrays(archive: zipfile.ZipFile, path: str) -> dict[str, Array]:
    members = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(_SUFFIX)
        if member.filename.endswith(_SUFFIX):
            if name in members:
                msg = f"{path} has two arrays {shortened(name)!r}; {_SAVE}."
                raise BadValueError(msg)
            members[name] = member
    _check_names(members, path)
    headers = {name: _header_of(archive, member, path) for name, member in members.items()}
    check_memory(sum(header.size for header in headers.values()), path)
    return {name: _array(archive, member, headers[name], path) for name, member in members.items()}


def _check_names(members: dict[str, zipfile.ZipInfo], path: str) -> None:
    for name in ("predictions", "targets"):
        if name not in members:
            names = shortened(", ".join(map(repr, members))) or "no named arrays"
            msg = f"{path} has no array {name!r}, but {names}; {_SAVE}."
            raise BadValueError(msg)
    for name in members:
        if name not in ARRAYS:
            known = ", ".join(map(repr, ARRAYS))
            msg = (
                f"{path} has an array {shortened(name)!r}, and only {known} are read; leave it out."
            )
            raise BadValueError(msg)


def _header_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: str) -> Header:
    """The header of a member; refuse one whose array does not fill the member."""
    name = member.filename.removesuffix(_SUFFIX)
    try:
        with archive.open(member) as opened:
            header = read_header(opened)
    except Exception as error:  # whatever damaged bytes make zipfile and NumPy raise
        raise BadValueError(_damaged(name, path)) from error
    if header.offset + header.size != member.file_size:
        raise BadValueError(_damaged(name, path))
    return header


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: Header, path: str) -> Array:
    name = member.filename.removesuffix(_SUFFIX)
    try:
        with archive.open(member) as opened:
            array: Array = np.lib.format.read_array(
                opened, allow_pickle=False, max_header_size=_LONGEST_HEADER
            )
    except MemoryError as error:
        raise BadValueError(_too_large(header.size, path)) from error
    except Exception as error:  # whatever damaged bytes make zipfile and NumPy raise
        raise BadValueError(_damaged(name, path)) from error
    return array


def read_header(opened: IO[bytes]) -> Header:
    """The header of an ``.npy`` file that is opened at its beginning.

    Raises:
        ValueError: the file is no ``.npy`` file, holds Python objects, or claims an impossible
            shape.
    """
    # At most this much is read, because the header says itself how long it is.
    start = io.BytesIO(opened.read(_LONGEST_HEADER + 16))
    version = np.lib.format.read_magic(start)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version, np.lib.format.read_array_header_2_0)
    shape, _, dtype = read(start, max_header_size=_LONGEST_HEADER)
    if dtype.hasobject or not all(type(extent) is int and extent >= 0 for extent in shape):
        msg = f"an array of dtype {dtype} and shape {shortened(str(shape))} is not read"
        raise ValueError(msg)
    return Header(shape, dtype, start.tell())


def check_memory(total: int, path: str) -> None:
    """Refuse arrays that take more bytes than are free.

    Raises:
        BadValueError: they do. The message says how many.
    """
    free = available()
    if free is not None and total > free:
        raise BadValueError(_too_large(total, path))


def _too_large(total: int, path: str) -> str:
    free = available()
    room = "" if free is None else f", and {size(free)} of memory are free"
    return (
        f"the arrays in {path} have {size(total)}{room}; take fewer rows, or save the arrays as "
        "two .npy files, which are not loaded at once."
    )


def _damaged(name: str, path: str) -> str:
    return (
        f"the array {name!r} in {path} is damaged, or holds Python objects and not numbers; "
        f"{_SAVE}."
    )
