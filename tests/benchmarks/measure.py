"""Measure how long two calls take, side by side."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any

Call = Callable[[], Any]
Clock = Callable[[], float]

ROUND_SECONDS = 3e-4
"""A round repeats its call for about this long, so that reading the clock takes no part of it."""

WARM_UP_SECONDS = 0.1
LEAST_ROUNDS = 9


@dataclass(frozen=True)
class Timing:
    """Seconds per call of two calls measured together.

    Attributes:
        ours: our call, the median over the rounds.
        native: the framework's call, the median over the rounds.
        ours_least: our call, the fastest round.
        native_least: the framework's call, the fastest round.
        ratio: the median over the rounds of ours / native. The two calls of a round run one right
            after the other, so a slower machine slows both. The median of the ratios is therefore
            steadier than the ratio of the medians.
        extra: the median over the rounds of ours - native.
        rounds: the number of rounds.
    """

    ours: float
    native: float
    ours_least: float
    native_least: float
    ratio: float
    extra: float
    rounds: int

    @property
    def ratio_least(self) -> float:
        """The ratio of the fastest rounds."""
        return self.ours_least / self.native_least

    @property
    def extra_least(self) -> float:
        """The difference of the fastest rounds."""
        return self.ours_least - self.native_least


def side_by_side(ours: Call, native: Call, seconds: float, clock: Clock = process_time) -> Timing:
    """Measure two calls in turns for `seconds`, after a warm-up and without garbage collection.

    Args:
        ours: our call.
        native: the framework's call.
        seconds: how long to measure.
        clock: what to measure. The processor time of all threads equals the clock on the wall on
            one processor of a quiet machine, and on a busy one leaves out other processes.
    """
    repeats = [max(1, math.ceil(ROUND_SECONDS / _warm_up(call, clock))) for call in (ours, native)]
    times: tuple[list[float], list[float]] = ([], [])
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = perf_counter() + seconds
        while perf_counter() < end or len(times[0]) < LEAST_ROUNDS:
            # The second call finds the caches as the first one left them, so alternate the order.
            for which in (0, 1) if len(times[0]) % 2 else (1, 0):
                times[which].append(_round((ours, native)[which], repeats[which], clock))
    finally:
        if collecting:
            gc.enable()
    return Timing(
        ours=statistics.median(times[0]),
        native=statistics.median(times[1]),
        ours_least=min(times[0]),
        native_least=min(times[1]),
        ratio=statistics.median(a / b for a, b in zip(*times, strict=True)),
        extra=statistics.median(a - b for a, b in zip(*times, strict=True)),
        rounds=len(times[0]),
    )


def _warm_up(call: Call, clock: Clock) -> float:
    """Call until compilers, caches and allocators settle; return the fastest call's seconds."""
    least = math.inf
    end = perf_counter() + WARM_UP_SECONDS
    calls = 0
    while calls < 3 or perf_counter() < end:
        least = min(least, _round(call, 1, clock))
        calls += 1
    # Now and then a processor's clock stands still for the time of a call.
    return max(least, 1e-6)


def _round(call: Call, repeats: int, clock: Clock) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats
