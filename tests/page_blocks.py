"""Blocks of a page that run in several processes: as ``torchrun`` starts a script."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import types
from collections.abc import Sequence

from unifiedloss.conformance import processes
from unifiedloss.conformance.processes import Place


def printed_by(
    page: str, sources: Sequence[tuple[str, int]], size: int, seconds: float = 200.0
) -> list[str]:
    """Run blocks one after the other, and return what the first process prints in each.

    Args:
        page: the name of the page, for tracebacks.
        sources: code and its first line on the page.
        size: the number of processes.
        seconds: how long they may take.
    """
    ports = processes.free_ports(len(sources))
    job = f"{__name__}:run"
    found: list[list[str]] = processes.run(
        job, size, page, list(zip(sources, ports, strict=True)), seconds=seconds
    )
    return found[0]


def run(place: Place, page: str, blocks: Sequence[tuple[tuple[str, int], int]]) -> list[str]:
    """Run blocks in this process, each as a program with the environment that torchrun sets."""
    os.chdir(place.folder)
    printed = []
    for (source, line), port in blocks:
        os.environ |= {
            "RANK": str(place.rank),
            "LOCAL_RANK": str(place.rank),
            "WORLD_SIZE": str(place.size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            # The code is from a page of this repository.
            exec(compile("\n" * (line - 1) + source, page, "exec"), module.__dict__)  # noqa: S102
        printed.append(out.getvalue())
    return printed
