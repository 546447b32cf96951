"""List the backends to check, and run each in its own worker process.

Each framework has its own process for four reasons. Keras reads ``KERAS_BACKEND`` once per process.
JAX should know whether to use 64 bits before it starts. Two frameworks in one process share thread
pools and memory. And a crash ends only its own backend's checks.

A worker is this package run as a module (``python -m unifiedloss.conformance``). It reads a pickled
task and answers with lines of JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from unifiedloss.errors import MissingBackendError, SpecValueError
from unifiedloss.owners import BUILT_IN, ENTRY_POINTS
from unifiedloss.suggestion import suggestion
from unifiedloss.text import quoted

KERAS_BACKENDS = ("torch", "jax", "tensorflow", "numpy")

SILENCE = 600.0
"""Seconds without a message after which a worker counts as hung.

The slowest normal step, a compiler's first compilation, takes a tenth of this time.
"""

# One thread per worker, so that two workers do not compete for two cores. CPU only, because
# `Mode.raises` describes the CPU. These variables decide where a framework computes and on how many
# threads; they do not change its results.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "PYTHONWARNINGS": "ignore",
}
_XLA_FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclass(frozen=True)
class Target:
    """A backend in one environment, which has a row of the report for each of its modes.

    Attributes:
        label: its name in the report: "torch", "keras (jax)", "jax (x64)".
        backend: the adapter's name.
        on: the framework below Keras; None for other backends.
        environment: the environment variables that its process gets.
        wide: whether only cases with float64 numbers are run, because all others give the same as
            another target.
        computes: `Adapter.computes`, which is known here before the adapter is imported.
    """

    label: str
    backend: str
    on: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    wide: bool = False
    computes: bool = True

    def absent(self) -> str | None:
        """Say which package is missing, or return None if all are installed."""
        if self.backend not in BUILT_IN:
            return None
        for module in (self.backend, self.on or self.backend):
            if importlib.util.find_spec(module) is None:
                return (
                    f"{module} is not installed; "
                    f"install it with: pip install 'unifiedloss[{module}]'"
                )
        return None


def all_targets() -> list[Target]:
    """Every backend that can be checked, installed or not.

    The slowest come first, so that no core idles at the end of a run.
    """
    from importlib.metadata import entry_points

    return [
        *(Target(f"keras ({on})", "keras", on, {"KERAS_BACKEND": on}) for on in KERAS_BACKENDS),
        Target("jax", "jax"),
        Target("torch", "torch"),
        Target("tensorflow", "tensorflow"),
        Target("jax (x64)", "jax", None, {"JAX_ENABLE_X64": "1"}, wide=True),
        Target("numpy", "numpy"),
        Target("dask", "dask", computes=False),
        *(Target(entry.name, entry.name) for entry in entry_points(group=ENTRY_POINTS)),
    ]


def by_name(target: Target) -> tuple[int, str]:
    """Sort key for displaying targets: the registry's order, then the label."""
    built_in = target.backend in BUILT_IN
    return (BUILT_IN.index(target.backend) if built_in else len(BUILT_IN)), target.label


def choose(
    names: Sequence[str] | None, *, every: bool = False
) -> tuple[list[Target], dict[str, str]]:
    """Return the requested targets that can be run, and why the others cannot.

    Args:
        names: backends ("keras" for all that Keras runs on) or labels of the report
            ("keras (torch)"); None for all that are installed.
        every: whether "all" includes those that compute no loss themselves.

    Returns:
        The targets, and a message for each requested target that is not installed, by its label.

    Raises:
        SpecValueError: a name is unknown.
        MissingBackendError: a backend in `names` is not installed.
    """
    known = all_targets()
    absent = {target.label: why for target in known if (why := target.absent()) is not None}
    installed = [target for target in known if target.label not in absent]
    if names is None:
        wanted = {target.label for target in known if target.computes or every}
        return (
            [target for target in installed if target.label in wanted],
            {label: why for label, why in absent.items() if label in wanted},
        )
    if not names:
        msg = "no backend is asked for; leave backends out for all that are installed."
        raise SpecValueError(msg)
    for name in names:
        asked = [target for target in known if name in (target.label, target.backend)]
        if not asked:
            ordered = sorted(known, key=by_name)
            labels = dict.fromkeys(
                name for target in ordered for name in (target.backend, target.label)
            )
            msg = (
                f"there is no backend {quoted(name)}; known are {', '.join(labels)}."
                f"{suggestion(name, labels)}"
            )
            raise SpecValueError(msg)
        if not any(target in installed for target in asked):
            msg = f"the backend {name!r} was asked for, and {absent[asked[0].label]}."
            raise MissingBackendError(msg)
    chosen = [target for target in installed if target.label in names or target.backend in names]
    return chosen, {label: why for label, why in absent.items() if label.partition(" ")[0] in names}


class WorkerMessage(NamedTuple):
    """A message from a worker.

    Attributes:
        target: the worker's target.
        content: a line of its output, parsed as JSON; None in its last message.
        death: in the last message, how the worker failed; None if it ended well.
    """

    target: Target
    content: dict[str, Any] | None
    death: str | None = None


def work(
    tasks: Sequence[tuple[Target, dict[str, Any]]], shared: Any, workers: int | None = None
) -> Iterator[WorkerMessage]:
    """Run a worker for each task, a few at a time, and yield their messages as they arrive.

    Every worker's last message has no content. Closing the iterator kills the running workers; an
    exception in the loop over it does so too.

    Args:
        tasks: the target and the task of each worker.
        shared: data that all workers read; pickled once.
        workers: how many run at a time. Default: the number of cores.
    """
    limit = workers or os.cpu_count() or 1
    messages: queue.Queue[WorkerMessage] = queue.Queue()
    waiting = list(tasks)
    running: dict[str, _Worker] = {}
    with (
        tempfile.TemporaryDirectory(prefix="unifiedloss-") as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        (folder / "shared.pickle").write_bytes(pickle.dumps(shared))
        stack.callback(_kill_all, running)
        while waiting or running:
            while waiting and len(running) < limit:
                target, task = waiting.pop(0)
                running[target.label] = _Worker(target, task, folder, messages)
            try:
                message = messages.get(timeout=SILENCE)
            except queue.Empty:
                message = _silent(running)
            if message.content is None:
                worker = running.pop(message.target.label, None)
                if worker is None:  # it was silent, and has been killed and reported
                    continue
                worker.kill()
            yield message


@contextlib.contextmanager
def one(
    target: Target, task: dict[str, Any], shared: Any
) -> Iterator[Callable[[float], WorkerMessage]]:
    """Run one worker, and end it with the context.

    Args:
        target: its target.
        task: its task.
        shared: as in `work`.

    Yields:
        A function that waits for the next message, at most so many seconds.

    Raises:
        TimeoutError: from that function, if there is no message in this time.
    """
    messages: queue.Queue[WorkerMessage] = queue.Queue()
    with tempfile.TemporaryDirectory(prefix="unifiedloss-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "shared.pickle").write_bytes(pickle.dumps(shared))
        worker = _Worker(target, task, folder, messages)

        def next_message(seconds: float) -> WorkerMessage:
            try:
                return messages.get(timeout=seconds)
            except queue.Empty:
                msg = f"no message within {seconds:g} s"
                raise TimeoutError(msg) from None

        try:
            yield next_message
        finally:
            worker.kill()


def ended(code: int) -> str:
    """How a process ended, by its status; a negative one is the number of a signal."""
    if code >= 0:
        return f"ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    # Linux ends a process with this signal if memory runs out, and leaves no other trace.
    why = "; probably it ran out of memory" if name == "SIGKILL" else ""
    return f"was killed by the signal {name}{why}"


def _kill_all(running: Mapping[str, _Worker]) -> None:
    for worker in running.values():
        worker.kill()


def _silent(running: dict[str, _Worker]) -> WorkerMessage:
    worker = next(iter(running.values()))
    return WorkerMessage(
        worker.target,
        None,
        f"its process said nothing for {SILENCE:.0f} s and was ended. {worker.last_words()}",
    )


class _Worker:
    """One process, and a thread that reads its messages."""

    def __init__(
        self,
        target: Target,
        task: dict[str, Any],
        folder: Path,
        messages: queue.Queue[WorkerMessage],
    ) -> None:
        self.target = target
        self._messages = messages
        stem = "".join(c if c.isalnum() else "-" for c in target.label)
        self._stderr = folder / f"{stem}.stderr"
        path = folder / f"{stem}.pickle"
        path.write_bytes(pickle.dumps(task | {"target": target}))
        with self._stderr.open("wb") as stderr:
            module = [sys.executable, "-P", "-m", "unifiedloss.conformance"]
            self._process = subprocess.Popen(
                [*module, str(folder / "shared.pickle"), str(path)],
                env=environment(target.environment, folder),
                stdin=subprocess.PIPE,  # never written to: see `end_with_parent`
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, lines: IO[bytes]) -> None:
        finished = False
        with lines:
            for line in lines:
                try:
                    content = json.loads(line)
                except ValueError:  # the process died within a line
                    continue
                finished = content.get("event") == "end"
                if not finished:
                    self._messages.put(WorkerMessage(self.target, content))
        code = self._process.wait()
        death = None if finished else f"its process {ended(code)}. {self.last_words()}"
        self._messages.put(WorkerMessage(self.target, None, death))

    def last_words(self) -> str:
        """The last lines that the process wrote to stderr."""
        try:
            lines = self._stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except FileNotFoundError:  # the run has ended and removed the folder
            return ""
        if not lines:
            return "It wrote nothing to stderr."
        return "The end of its stderr:\n" + "\n".join(lines[-15:])

    def kill(self) -> None:
        """End the process, if it still runs."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def jax_cache(folder: Path) -> dict[str, str]:
    """The variables that let JAX cache every compiled program in a folder.

    A program from the cache is the compiler's own output, so results do not change.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def environment(variables: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of a worker.

    The user's own settings for log levels, warnings and JAX's cache stay.

    Args:
        variables: what this worker needs; its XLA_FLAGS are added to those of all workers.
        folder: where JAX caches programs.
    """
    environment = {**os.environ, **_ENVIRONMENT, **variables}
    for name in ("TF_CPP_MIN_LOG_LEVEL", "PYTHONWARNINGS"):
        environment[name] = os.environ.get(name, _ENVIRONMENT[name])
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()
    # JAX, JAX with 64 bits and Keras on JAX share many programs. The cache lets a run compile each
    # of them once.
    for name, value in jax_cache(folder / "jax").items():
        environment.setdefault(name, value)
    # A worker imports the same modules as this process. The option -P keeps Python from adding the
    # working directory, which may hold a file such as jax.py.
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return environment


# ---------------------------------------------------------------------- in the worker's process


def serve(shared: str, task: str, jobs: Mapping[str, Callable[..., None]]) -> None:
    """Do a pickled task.

    Args:
        shared: path of the pickle that all workers read.
        task: path of this worker's pickle; its key "job" names one of the jobs.
        jobs: functions by name. Each is called with the shared data, the task, and a function that
            sends a message.
    """
    end_with_parent()
    # A framework may print to stdout, even from C++. So messages get their own file descriptor, and
    # descriptor 1 becomes stderr.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**content: Any) -> None:
        pipe.write(json.dumps(content) + "\n")
        pipe.flush()

    # The parent process wrote both files, so unpickling them is safe.
    given = pickle.loads(Path(task).read_bytes())  # noqa: S301
    jobs[given["job"]](pickle.loads(Path(shared).read_bytes()), given, send)  # noqa: S301
    send(event="end")


def end_with_parent() -> None:
    """End this process when its parent is gone, because a killed parent cannot end its workers.

    Linux is asked to kill this process then. A thread alone would not do: while a compiler holds
    Python's lock, for minutes, no thread runs. Elsewhere, and if the parent was gone before this
    process asked, the thread ends the process.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
    threading.Thread(target=_wait_for_end, daemon=True).start()


_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux' prctl."""


def _wait_for_end() -> None:
    # The parent never writes to stdin, so the read returns only when its end of the pipe is closed.
    os.read(0, 1)
    os._exit(1)
