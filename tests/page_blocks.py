"""Blocks of a page that are no code of its one module: commands, and programs of several processes.

A program runs as ``torchrun`` starts a script.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import types
from collections.abc import Sequence

from unifiedloss.conformance import processes
from unifiedloss.conformance.processes import Place

_IN_THIS_PROCESS = """
sys.argv = ["unifiedloss", *{arguments!r}]
with contextlib.redirect_stderr(io.StringIO()) as said:
    try:
        runpy.run_module("unifiedloss", run_name="__main__")
    except SystemExit as done:
        assert done.code in (None, 0, 1), said.getvalue()
"""


def of_commands(body: str) -> str:
    """Code that runs the commands of a block, each a line that begins with ``$ unifiedloss``.

    It prints what they print. Their exit status may be 0 or 1, which says that something differs.
    They run in the process of the page, which has loaded the frameworks; with --strength all each
    is a process of its own.

    Raises:
        ValueError: a line is no such command.
    """
    apart = os.environ.get("UNIFIEDLOSS_STRENGTH") == "all"
    lines = ["import subprocess, sys"] if apart else ["import contextlib, io, runpy, sys"]
    for line in body.replace("\\\n", " ").splitlines():
        prompt, program, *arguments = shlex.split(line)
        if (prompt, program) != ("$", "unifiedloss"):
            msg = f"a console block that runs has lines '$ unifiedloss ...' alone, not {line!r}"
            raise ValueError(msg)
        command = [sys.executable, "-m", "unifiedloss", *arguments]
        if not apart:
            lines.append(f"exec({_IN_THIS_PROCESS.format(arguments=arguments)!r})")
            continue
        lines += [
            f"done = subprocess.run({command!r}, capture_output=True, text=True)",
            "assert done.returncode < 2, done.stderr",
            "print(done.stdout, end='')",
        ]
    return "; ".join(lines) + "\n"  # one line, so that line numbers stay


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
