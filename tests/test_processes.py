"""Processes that talk to one another: what they return, and what happens if one of them fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unifiedloss.conformance import processes
from unifiedloss.conformance.processes import Place, ProcessError


def report(place: Place, *arguments: Any) -> tuple[int, int, int, Any]:
    """A job that says where it runs."""
    return place.rank, place.size, os.getpid(), arguments


def fail(place: Place, how: str) -> None:
    """A job whose last process fails, while the others wait for it."""
    (place.folder / str(os.getpid())).touch()
    while len(list(place.folder.iterdir())) < place.size:
        time.sleep(0.01)
    pids = sorted(int(path.name) for path in place.folder.iterdir())
    if place.rank < place.size - 1 or how == "hang":
        time.sleep(600)
    print(f"pids {pids}", flush=True)
    if how == "raise":
        msg = "the case of this test"
        raise ValueError(msg)
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_process_has_its_place_and_returns_what_it_found() -> None:
    """Results come by rank, from processes of their own."""
    found = processes.run("tests.test_processes:report", 3, "x", 2)
    assert [(rank, size, rest) for rank, size, _, rest in found] == [
        (rank, 3, ("x", 2)) for rank in range(3)
    ]
    assert len({pid for _, _, pid, _ in found} | {os.getpid()}) == 4


@pytest.mark.parametrize(
    ("how", "said"),
    [("raise", "ValueError: the case of this test"), ("kill", "was killed by the signal SIGKILL")],
)
def test_all_end_if_one_dies(how: str, said: str) -> None:
    """The error comes at once, names the process, and none is left."""
    start = time.monotonic()
    with pytest.raises(ProcessError, match="process 2 of 3") as raised:
        processes.run("tests.test_processes:fail", 3, how)
    assert time.monotonic() - start < 30
    assert said in str(raised.value)
    line = next(line for line in str(raised.value).splitlines() if line.startswith("pids"))
    for pid in map(int, line.removeprefix("pids [").removesuffix("]").split(", ")):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_run_that_hangs_is_ended() -> None:
    """The limit of time holds for the run."""
    with pytest.raises(ProcessError, match="process 0 of 2 has not ended after 2 s"):
        processes.run("tests.test_processes:fail", 2, "hang", seconds=2)


def test_processes_end_with_the_one_that_started_them() -> None:
    """A killed parent cannot end them, so they end themselves."""
    code = (
        "from unifiedloss.conformance import processes\n"
        "processes.run('tests.test_processes:fail', 2, 'hang')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        children: list[int] = []
        deadline = time.monotonic() + 30
        while len(children) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
            children = _children_of(parent.pid)
        assert len(children) == 2
        parent.kill()
    deadline = time.monotonic() + 10
    while any(map(_is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_running, children))


def _children_of(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    except OSError:
        pytest.skip("this system does not list the children of a process")
    return list(map(int, listed.split()))


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return state != "Z"


def test_ports_differ_and_are_free() -> None:
    """Each process may listen on its own."""
    ports = processes.free_ports(4)
    assert len(set(ports)) == 4
    for port in ports:
        with socket.socket() as each:
            each.bind(("127.0.0.1", port))


def test_processes_of_a_test_run_collect_garbage_rarely() -> None:
    """A process that a test starts begins with tests/startup/sitecustomize.py."""
    code = "import gc; print(gc.get_threshold()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "50000"
