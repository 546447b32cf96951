"""Draw the call of a seed, run it in a backend and in the oracles, and shrink a failure."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from tests.fuzz import calls, check, independent, known, shrink
from tests.fuzz.calls import Call
from unifiedloss import registry
from unifiedloss.errors import EmptyMeanError, UnifiedLossError


@dataclass(frozen=True)
class Outcome:
    """The outcome of a seed.

    Attributes:
        failures: what is wrong.
        kind: the first failure without its numbers, and the loss.
        snippet: the smallest call found that fails in this way, as code.
        oracle: what the oracle says of it.
        left_out: the known fault because of which the call was not run.
    """

    failures: tuple[str, ...] = ()
    kind: str = ""
    snippet: str = ""
    oracle: str = ""
    left_out: str | None = None

    def shown(self) -> str:
        """All of it as text."""
        return "\n".join((self.snippet, *(f"# {what}" for what in self.failures), self.oracle))


def run(
    backend: str,
    mode: str,
    seed: int,
    *,
    losses: tuple[str, ...] = (),
    rounding: str = "",
    shapes: str = "all",
    values: int = 1,
) -> Outcome:
    """Run the call of a seed.

    Args:
        backend: the name of an adapter.
        mode: the name of one of its modes.
        seed: the seed.
        losses: names of losses; default: all.
        rounding: "native" or "exact"; default: either.
        shapes: as for `calls.draw`.
        values: how many values the call is run with, in one compiled program if there are several.
    """
    adapter = registry.adapter(backend)
    label = backend
    if backend == "keras":
        label = f"keras ({os.environ.get('KERAS_BACKEND', 'tensorflow')})"
    wide = os.environ.get("JAX_ENABLE_X64", "0") in ("1", "true", "True")

    def failures(call: Call) -> list[str]:
        if known.fault(label, call, wide=wide):
            return []
        return check.failures(adapter, mode, call) + _of_oracle(call)

    call = calls.draw(seed, losses, rounding, shapes)
    fault = known.fault(label, call, wide=wide)
    if fault is not None:
        return Outcome(left_out=fault)
    found = failures(call)
    if not found and values > 1 and _fits_a_program(call, backend, mode):
        program = check.program_of(adapter, mode, dataclasses.replace(call, as_numpy=False))
        for number in range(1, values):
            other = dataclasses.replace(calls.again(call, seed + number * 10**9), as_numpy=False)
            if known.fault(label, other, wide=wide):
                continue
            found = check.failures(adapter, mode, other, program)
            if found:
                # Shrinking would compile each smaller call, and may lose what the program does.
                kind = f"{shrink.kind_of(found)} [{call.spec.name}]"
                return Outcome(tuple(found), kind, shrink.snippet(other, label, mode), _said(other))
    if not found:
        return Outcome()
    kind = f"{shrink.kind_of(found)} [{call.spec.name}]"
    small = shrink.shrunk(call, failures, 60 if mode != "eager" else 300)
    return Outcome(tuple(failures(small)), kind, shrink.snippet(small, label, mode), _said(small))


def _fits_a_program(call: Call, backend: str, mode: str) -> bool:
    """Whether a mode computes the loss and the gradient of a call in one program."""
    if call.spec.rounding == "exact" and not registry.adapter(backend).modes()[mode].whole_step:
        return False
    return not _is_refused(call)


def _is_refused(call: Call) -> bool:
    """Whether no backend computes the call."""
    try:
        call.expected()
    except EmptyMeanError:
        return False
    except UnifiedLossError:
        return True
    return False


def _of_oracle(call: Call) -> list[str]:
    """What the second oracle says against the first."""
    try:
        expected = call.expected()
    except UnifiedLossError:
        return []
    return independent.differences(call, expected)


def _said(call: Call) -> str:
    try:
        expected = call.expected()
    except UnifiedLossError as error:
        return f"# the oracle raises {type(error).__name__}: {error}"
    return f"# the oracle: loss {expected.loss!r}, gradient {expected.grad_predictions!r}"[:2000]
