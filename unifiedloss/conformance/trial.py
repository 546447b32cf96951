"""Run somebody's loss function on cases in worker processes, and bring back what it gave.

The function may raise, crash its process or hang. Each is an `Answer`; after a crash or a hang a
new worker goes on with the next case.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from unifiedloss import registry
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.conformance import checks, workers
from unifiedloss.conformance.case import Array, Case
from unifiedloss.conformance.cases_of_spec import loss_cases
from unifiedloss.conformance.own_function import OwnFunction, keywords_of
from unifiedloss.conformance.workers import Target
from unifiedloss.errors import SpecValueError, UnifiedLossError
from unifiedloss.text import shortened

_TO_START = 180.0
"""Seconds in which a worker imports the framework and the function."""


@dataclass(frozen=True, eq=False)
class Result:
    """An array that a function returned.

    Attributes:
        array: its numbers in float64, which holds those of every floating dtype.
        dtype: the name of its own dtype.
    """

    array: Array
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """The array as JSON values."""
        return {
            "numbers": self.array.ravel().tolist(),
            "shape": list(self.array.shape),
            "dtype": self.dtype,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Result:
        """Build the array that `to_dict` described."""
        return cls(np.reshape(np.array(data["numbers"], np.float64), data["shape"]), data["dtype"])


@dataclass(frozen=True, eq=False)
class Answer:
    """What a function did on one case.

    Attributes:
        value: the loss; None if there is none.
        gradient: its gradient to the predictions; None if there is none.
        error: why there is no loss: "raised ValueError: ...", "crashed: ...", "no answer within
            10 s"; None if there is one.
        gradient_error: why the loss has no gradient; None if it has one, and where the backend has
            no automatic differentiation.
        raised: whether `error` is an exception, and the process goes on.
    """

    value: Result | None = None
    gradient: Result | None = None
    error: str | None = None
    gradient_error: str | None = None
    raised: bool = False

    @property
    def ended(self) -> bool:
        """Whether the process of the function ended, so that the next case needs a new one."""
        return self.error is not None and not self.raised


class Setting(NamedTuple):
    """How a function is run; all workers of a trial share it.

    Attributes:
        function: the function.
        spec: what it claims to compute.
        mode: the name of a mode of the backend.
        options: the arguments `dtypes`, `targets` and `without` of `loss_cases`.
    """

    function: OwnFunction
    spec: Any
    mode: str
    options: dict[str, Any]


class Started(NamedTuple):
    """What a worker says once it has imported the function.

    Attributes:
        version: the framework's version.
        differentiates: whether the backend has automatic differentiation.
        keywords: the keywords that the function takes.
        cases: the cases that it runs.
    """

    version: str
    differentiates: bool
    keywords: tuple[str, ...]
    cases: list[Case]


def run(
    setting: Setting, target: Target, *, seconds: float, seconds_in_all: float
) -> Iterator[Started | tuple[int, Answer]]:
    """Run the function on all its cases.

    Args:
        setting: the function, and how it is run.
        target: the backend in its environment.
        seconds: how long a case may take.
        seconds_in_all: how long all cases may take, from the moment at which the function is
            imported. The cases that are left then get no answer.

    Yields:
        First what the worker says of itself, and then each case's number with its answer.

    Raises:
        SpecValueError: the function cannot be imported, or the backend lacks the mode.
    """
    end = math.inf  # until the first worker has imported everything
    started: Started | None = None
    number = 0
    while started is None or number < len(started.cases):
        with workers.one(target, {"job": "trial", "from": number}, setting) as receive:
            try:
                content = _first(
                    receive, setting.function, target, min(_TO_START, end - time.monotonic())
                )
            except TimeoutError:
                if started is not None:  # it was imported before, and the time is over
                    return
                msg = (
                    f"cannot run {setting.function.name} on {target.label}: the import took longer "
                    f"than {_TO_START:.0f} s."
                )
                raise SpecValueError(msg) from None
            if started is None:
                end = time.monotonic() + seconds_in_all
                keywords = tuple(content["keywords"])
                cases = loss_cases(setting.spec, keywords=keywords, **setting.options)
                started = Started(content["version"], content["differentiates"], keywords, cases)
                yield started
            while number < len(started.cases):
                left = end - time.monotonic()
                if left <= 0:
                    return
                answer = _next(receive, seconds, left)
                if answer is None:
                    return
                yield number, answer
                number += 1
                if answer.ended:
                    break


def _first(
    receive: Callable[[float], workers.WorkerMessage],
    function: OwnFunction,
    target: Target,
    seconds: float,
) -> dict[str, Any]:
    """The first message of a worker, which says that it has imported the function."""
    message = receive(max(seconds, 0.0))
    if message.content is not None and message.content["event"] == "started":
        return message.content
    why = message.death or str((message.content or {}).get("why"))
    msg = f"cannot run {function.name} on {target.label}: {why.rstrip('.')}."
    raise SpecValueError(msg)


def _next(
    receive: Callable[[float], workers.WorkerMessage], seconds: float, left: float
) -> Answer | None:
    """The answer to the next case; None if the time in all is over."""
    try:
        content, death = receive(min(seconds, left))[1:]
    except TimeoutError:
        return None if left < seconds else Answer(error=f"no answer within {seconds:g} s")
    if content is None:
        # The first sentence; what the process wrote to stderr follows.
        how = (death or "its process ended").partition(". ")[0]
        return Answer(error=f"crashed: {how}")
    value, gradient = (
        None if content[name] is None else Result.from_dict(content[name]) for name in _RESULTS
    )
    error: str | None = content["error"]
    return Answer(value, gradient, error, content["gradient_error"], raised=error is not None)


_RESULTS = ("value", "gradient")


# ---------------------------------------------------------------------- in the worker's process


def serve(setting: Setting, task: dict[str, Any], send: Callable[..., None]) -> None:
    """Import the function, and run it on the cases from a number on: a worker's job."""
    target: Target = task["target"]
    adapter = registry.adapter(target.backend)
    modes = adapter.modes()
    mode = modes.get(setting.mode)
    if mode is None or mode.missing:
        why = mode.missing if mode else f"it has no mode {setting.mode!r}, but {', '.join(modes)}"
        send(event="failed", why=why)
        return
    try:
        function = setting.function.load()
    except BaseException as error:  # noqa: BLE001 - whatever a module raises on import
        send(event="failed", why=f"it cannot be imported: {_described(error)}")
        return
    keywords = keywords_of(function)
    try:
        cases = loss_cases(setting.spec, keywords=keywords, **setting.options)
    except UnifiedLossError as error:  # no case is left for a function without keywords
        send(event="failed", why=str(error))
        return
    send(
        event="started",
        version=adapter.version(),
        differentiates=adapter.differentiates,
        keywords=keywords,
    )
    for case in cases[task["from"] :]:
        answer = answer_of(adapter, mode, function, case)
        results = {
            name: None if (x := getattr(answer, name)) is None else x.to_dict() for name in _RESULTS
        }
        send(event="answer", error=answer.error, gradient_error=answer.gradient_error, **results)


def answer_of(adapter: Adapter, mode: Mode, function: Callable[..., Any], case: Case) -> Answer:
    """Run a function on a case in this process: its loss and its gradient to the predictions."""
    given = [name for name in ("sample_weight", "mask") if getattr(case, name) is not None]

    def called(predictions: Any, targets: Any, *companions: Any) -> Any:
        return function(predictions, targets, **dict(zip(given, companions, strict=True)))

    try:
        tensors = [
            adapter.tensor(case.predictions, case.dtype),
            adapter.tensor(case.targets),
            *(adapter.tensor(getattr(case, name)) for name in given),
        ]
        upstream = checks.upstream_of(adapter, case)
    except Exception as error:  # noqa: BLE001 - the backend may have no such dtype
        return Answer(error=f"raised {_described(error)}", raised=True)
    why = None
    if adapter.differentiates:
        try:
            value, gradient = _differentiated(adapter, mode, called, tensors, upstream)
            return Answer(_result(adapter, value), _result(adapter, gradient))
        except BaseException as error:  # noqa: BLE001 - any error is the answer
            why = f"raised {_described(error)}"
    try:
        value = _result(adapter, mode.run(called, *tensors))
    except BaseException as error:  # noqa: BLE001 - any error is the answer
        return Answer(error=f"raised {_described(error)}", raised=True)
    return Answer(value, gradient_error=why)


def _differentiated(
    adapter: Adapter, mode: Mode, called: Callable[..., Any], tensors: Sequence[Any], upstream: Any
) -> tuple[Any, Any]:
    predictions, *rest = tensors
    if mode.whole_step:
        value, (gradient,) = mode.run(
            lambda p, *others: adapter.differentiate(lambda x: called(x, *others), (p,), upstream),
            predictions,
            *rest,
        )
    else:
        value, (gradient,) = adapter.differentiate(
            lambda p: mode.run(called, p, *rest), (predictions,), upstream
        )
    return value, gradient


def _result(adapter: Adapter, x: Any) -> Result:
    if isinstance(x, float):  # a function of NumPy may return Python's number
        x = np.float64(x)
    return Result(np.asarray(adapter.to_numpy(x)).astype(np.float64), adapter.dtype_name(x.dtype))


def _described(error: BaseException) -> str:
    """The class of an error, and the first line of its message."""
    try:
        # TensorFlow begins with the place in its graph, which is as long as a line.
        lines = re.sub(r"\{\{.*?\}\} ?", "", str(error)).strip().splitlines() or [""]
    except Exception:  # noqa: BLE001 - an error may fail to say what it is
        lines = [""]
    name = type(error).__name__
    return f"{name}: {shortened(lines[0])}" if lines[0] else name
