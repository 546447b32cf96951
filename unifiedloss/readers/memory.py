"""How much memory this process may take, and how sizes are written."""

from __future__ import annotations

import os
from pathlib import Path

from unifiedloss.errors import FileError
from unifiedloss.text import shortened_path

_ROOT = Path("/")


def available(root: Path = _ROOT) -> int | None:
    """The bytes that can be taken before the system or a limit on this process's group stops it.

    None if the system does not say. Containers limit the memory of a control group (cgroup) of
    Linux, and /proc/meminfo does not show that limit.
    """
    limits = [_of_system(root), *_of_groups(root)]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def _of_system(root: Path) -> int | None:
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _of_groups(root: Path) -> list[int | None]:
    """What each control group around this process leaves, in version 2 and 1."""
    left: list[int | None] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # In a container the path is one of the host, and the group itself is mounted at the base.
        folder = base / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group == base.parent:
                break
            left.append(_left(group, *names))
    return left


def _left(group: Path, limit: str, used: str) -> int | None:
    most, now = _read(group / limit).strip(), _read(group / used).strip()
    if not most.isdigit() or not now.isdigit():  # "max": no limit
        return None
    cached = 0
    for line in _read(group / "memory.stat").splitlines():
        # Pages of files count as used, and the kernel frees the inactive ones when asked for more.
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            cached = max(cached, int(line.split()[1]))
    return max(0, int(most) - int(now) + cached)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def size(bytes_: int) -> str:
    """A number of bytes in the unit that fits: "42 MB"."""
    number, unit = float(bytes_), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.5:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}" if number < 999.5 else f"{number:.0f} {unit}"


def check_memory(total: int, path: Path) -> None:
    """Refuse an array that takes more bytes than are free.

    Raises:
        FileError: it does. The message says how many.
    """
    free = available()
    if free is not None and total > free:
        msg = (
            f"an array in {shortened_path(path)} has to be read as a whole and takes "
            f"{size(total)}, and {size(free)} of memory are free; save it in row-major order, as "
            "numpy.ascontiguousarray has it."
        )
        raise FileError(msg)
