"""Run a function in several processes on this machine that can talk to one another.

The processes of an engine such as torch.distributed wait for one another. So one that dies would
leave the others waiting: `run` ends them all then, and says which one died and what it wrote last.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unifiedloss.conformance.workers import end_with_parent, ended, environment

SECONDS = 300.0
"""Seconds after which a run is ended, because its processes wait for one another."""

_INTERVAL = 0.05
"""Seconds between two looks at the processes."""

_LAST_LINES = 25


class ProcessError(RuntimeError):
    """A process died, raised an exception, or did not end in time; all others were ended."""


@dataclass(frozen=True)
class Place:
    """Where a process stands in its run.

    Attributes:
        rank: the number of this process, from 0.
        size: how many processes there are.
        ports: a free TCP port of this machine for each process.
        folder: an empty folder that all processes share, removed at the end of the run.
    """

    rank: int
    size: int
    ports: tuple[int, ...]
    folder: Path


def run(
    job: str,
    size: int,
    *arguments: Any,
    variables: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> list[Any]:
    """Call a function in each of several new processes, and return what each returned, by rank.

    Args:
        job: the function as "package.module:function". It is called as
            ``function(place, *arguments)``, with a `Place`.
        size: how many processes.
        arguments: what the function gets; pickled, as is what it returns.
        variables: environment variables of the processes, beside those of
            `unifiedloss.conformance.workers.environment`: one thread each, and no GPU.
        seconds: how long the run may take.

    Raises:
        ProcessError: a process failed. The message ends with what it wrote last.
    """
    with (
        tempfile.TemporaryDirectory(prefix="unifiedloss-", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        shared = folder / "shared"
        shared.mkdir()
        ports = free_ports(size)
        env = environment(variables or {}, folder)
        running = []
        for rank in range(size):
            task = job, Place(rank, size, ports, shared), arguments
            _file(folder, rank, "task").write_bytes(pickle.dumps(task))
            running.append(stack.enter_context(_started(folder, rank, env)))
        _wait(job, folder, running, seconds)
        # The processes of this run wrote these files, so unpickling them is safe.
        return [
            pickle.loads(_file(folder, rank, "result").read_bytes())  # noqa: S301
            for rank in range(size)
        ]


def free_ports(count: int) -> tuple[int, ...]:
    """TCP ports of this machine that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        # All are open at once, because the system may give a closed one again.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)


def _file(folder: Path, rank: int, kind: str) -> Path:
    return folder / f"{rank}.{kind}"


@contextlib.contextmanager
def _started(folder: Path, rank: int, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does the task in a folder; it is killed at the end of the context."""
    call = "from unifiedloss.conformance import processes; processes.work()"
    with _file(folder, rank, "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", call, str(folder), str(rank)],
            env=env,
            stdin=subprocess.PIPE,  # never written to: see `end_with_parent`
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _wait(
    job: str, folder: Path, running: Sequence[subprocess.Popen[bytes]], seconds: float
) -> None:
    """Wait until all processes have ended well."""
    deadline = time.monotonic() + seconds
    while True:
        codes = [process.poll() for process in running]
        # Several may have failed, because one that dies makes a collective of the others fail.
        failed = {
            rank: ended(code)
            for rank, code in enumerate(codes)
            if code is not None and (code or not _file(folder, rank, "result").exists())
        }
        if None not in codes and not failed:
            return
        if not failed and time.monotonic() > deadline:
            late = [rank for rank, code in enumerate(codes) if code is None]
            failed = dict.fromkeys(late, f"has not ended after {seconds:.0f} s")
        if failed:
            msg = "\n".join(
                f"{job}: process {rank} of {len(running)} {how}. {_last_words(folder, rank)}"
                for rank, how in failed.items()
            )
            raise ProcessError(msg)
        time.sleep(_INTERVAL)


def _last_words(folder: Path, rank: int) -> str:
    text = _file(folder, rank, "output").read_text(encoding="utf-8", errors="replace").strip()
    if not text:
        return "It wrote nothing."
    return "The end of its output:\n" + "\n".join(text.splitlines()[-_LAST_LINES:])


# ------------------------------------------------------------------------------- in each process


def work() -> None:
    """Do the task that the arguments of this process name, and write what its function returns."""
    end_with_parent()
    home, rank = Path(sys.argv[1]), int(sys.argv[2])
    # The process that started this one wrote the file, so unpickling it is safe.
    task = _file(home, rank, "task").read_bytes()
    job, place, arguments = pickle.loads(task)  # noqa: S301
    module, _, function = job.partition(":")
    found = getattr(importlib.import_module(module), function)(place, *arguments)
    partial = _file(home, rank, "partial")
    partial.write_bytes(pickle.dumps(found))
    partial.rename(_file(home, rank, "result"))
