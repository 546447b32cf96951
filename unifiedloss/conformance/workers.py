"""Which backends there are to check, and one process for each of them.

A framework is loaded in a process of its own: Keras reads ``KERAS_BACKEND`` once per process, JAX likes to be told of 64 bits before it
starts, two frameworks in one process share thread pools and memory, and a crash takes nobody along. A worker is this package run as a
module (``python -m unifiedloss.conformance``); it is handed a pickled task and answers with lines of JSON.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
import queue
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

KERAS_BACKENDS = ("torch", "jax", "tensorflow", "numpy")

SILENCE = 600.0
"""Seconds without a word after which a worker counts as hung. The slowest honest step, a cold compiler, takes a tenth of it."""

# On one thread each, two workers share two cores without fighting over them. On the CPU, because that is what the cases say of which mode
# raises. None of these changes what a framework computes, but where and on how many threads.
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
    """A backend in one environment: a row of the report for each of its modes.

    Attributes:
        label: how the report calls it: "torch", "keras (jax)", "jax (x64)".
        backend: the adapter's name.
        on: what Keras runs on; None for others.
        environment: the variables its process gets.
        wide: whether only cases with float64 numbers in them are run, because only they differ from another target's.
    """

    label: str
    backend: str
    on: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    wide: bool = False

    def absent(self) -> str | None:
        """What has to be installed first, or None where all of it is."""
        if self.backend not in BUILT_IN:
            return None
        for module in (self.backend, self.on or self.backend):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed; install it with: pip install 'unifiedloss[{module}]'"
        return None


def all_targets() -> list[Target]:
    """Every backend that could be checked, installed or not; the slowest first, so that no core idles at the end."""
    from importlib.metadata import entry_points

    return [
        *(Target(f"keras ({on})", "keras", on, {"KERAS_BACKEND": on}) for on in KERAS_BACKENDS),
        Target("jax", "jax"),
        Target("torch", "torch"),
        Target("tensorflow", "tensorflow"),
        Target("jax (x64)", "jax", None, {"JAX_ENABLE_X64": "1"}, wide=True),
        Target("numpy", "numpy"),
        *(Target(entry.name, entry.name) for entry in entry_points(group=ENTRY_POINTS)),
    ]


def by_name(target: Target) -> tuple[int, str]:
    """The order in which people are shown the targets: that of the registry."""
    return (
        BUILT_IN.index(target.backend) if target.backend in BUILT_IN else len(BUILT_IN)
    ), target.label


def choose(names: Sequence[str] | None) -> tuple[list[Target], dict[str, str]]:
    """The targets that are asked for and can be run, and why others cannot.

    Args:
        names: backends ("keras" for all that Keras runs on) or labels of the report ("keras (torch)"); None for all that are installed.

    Raises:
        SpecValueError: a name is unknown.
        MissingBackendError: a backend that is asked for by name is not installed.
    """
    known = all_targets()
    absent = {target.label: why for target in known if (why := target.absent()) is not None}
    here = [target for target in known if target.label not in absent]
    if names is None:
        return here, absent
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
            msg = f"there is no backend {name!r}; known are {', '.join(labels)}.{suggestion(name, labels)}"
            raise SpecValueError(msg)
        if not any(target in here for target in asked):
            msg = f"the backend {name!r} was asked for, and {absent[asked[0].label]}."
            raise MissingBackendError(msg)
    chosen = [target for target in here if target.label in names or target.backend in names]
    return chosen, {label: why for label, why in absent.items() if label.partition(" ")[0] in names}


class WorkerMessage(NamedTuple):
    """What a worker says: a line of JSON, or how it ended (None for well)."""

    target: Target
    content: dict[str, Any] | None
    death: str | None = None


def work(
    tasks: Sequence[tuple[Target, dict[str, Any]]], shared: Any, workers: int | None = None
) -> Iterator[WorkerMessage]:
    """Run a worker for each task, a few at a time, and yield what they say as they say it.

    Every worker's last message has no content. Closing the iterator, as an exception in the loop over it does, kills those that run.

    Args:
        tasks: for each worker the target, and what it is to do.
        shared: what all workers read; written once.
        workers: how many run at a time; as many as there are cores by default.
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
                running.pop(message.target.label).kill()
            yield message


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
    """One process, and a thread that reads what it says."""

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
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "unifiedloss.conformance",
                    str(folder / "shared.pickle"),
                    str(path),
                ],
                env=_environment(target, folder),
                stdin=subprocess.PIPE,  # never written to: see `_end_with_parent`
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
                except ValueError:  # cut off in the middle
                    continue
                finished = content.get("event") == "end"
                if not finished:
                    self._messages.put(WorkerMessage(self.target, content))
        code = self._process.wait()
        death = None if finished else f"its process ended with status {code}. {self.last_words()}"
        self._messages.put(WorkerMessage(self.target, None, death))

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        try:
            lines = self._stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except FileNotFoundError:  # it was killed, and the run has cleaned up already
            return ""
        return (
            "Its last words:\n" + "\n".join(lines[-15:]) if lines else "It wrote nothing to stderr."
        )

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def jax_cache(folder: Path) -> dict[str, str]:
    """The variables by which JAX keeps every compiled program in a folder, and takes it from there: what the compiler made, as it was."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _environment(target: Target, folder: Path) -> dict[str, str]:
    """This process's environment, with what a worker needs; what the user has set for the frameworks' log and JAX's cache stays."""
    found = {**os.environ, **_ENVIRONMENT, **target.environment}
    for name in ("TF_CPP_MIN_LOG_LEVEL", "PYTHONWARNINGS"):
        found[name] = os.environ.get(name, _ENVIRONMENT[name])
    found["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()
    # JAX, JAX with 64 bits and Keras on JAX have many programs in common; each is compiled once in a run.
    for name, value in jax_cache(folder / "jax").items():
        found.setdefault(name, value)
    # The same modules as here, and none from the folder the user happens to stand in: a file called jax.py may lie there.
    found["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return found


# ------------------------------------------------------------------------------------------------------ in the worker's process


def serve(shared: str, task: str, jobs: Mapping[str, Callable[..., None]]) -> None:
    """Do a pickled task: the job it names, called with what all share, the task, and a function that sends a message.

    Args:
        shared: path of the pickle that all workers read.
        task: path of this worker's pickle.
        jobs: what can be asked for.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A framework may print to stdout, from C++ too. So the pipe moves to a descriptor of its own, and 1 becomes stderr.
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**content: Any) -> None:
        pipe.write(json.dumps(content) + "\n")
        pipe.flush()

    # Both files were written by the process that started this one.
    given = pickle.loads(Path(task).read_bytes())  # noqa: S301
    jobs[given["job"]](pickle.loads(Path(shared).read_bytes()), given, send)  # noqa: S301
    send(event="end")


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it could not say so, and a compiler would go on for minutes."""
    os.read(0, 1)
    os._exit(1)
