"""Fuzz one backend for some minutes: ``python -m tests.fuzz --backend torch --minutes 60``.

Every call has a seed, and the seeds follow one another from ``--seed`` on. A failure prints its
seed and a small call as code to paste; ``--count 1 --seed N`` runs that call again. Each kind of
failure is shown twice. The exit status is 1 if a call failed.

For Keras, set KERAS_BACKEND; for JAX with 64 bits, JAX_ENABLE_X64=1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter

# The adapters read these when they load. `Mode.raises` describes the CPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.fuzz import fuzz
from unifiedloss.losses import ROWS

_SHOWN = 2


def main() -> int:
    """Run calls until the time or the count is over, and print what failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--backend", default="numpy", help="numpy, torch, tensorflow, keras, jax")
    parser.add_argument("--mode", default="eager", help="a mode of the backend, as in conform")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run")
    parser.add_argument("--count", type=int, help="how many calls to run at most")
    parser.add_argument("--loss", action="append", default=[], choices=[row.name for row in ROWS])
    parser.add_argument("--rounding", default="", choices=["", "native", "exact"])
    parser.add_argument("--shapes", default="all", choices=["all", "small", "large"])
    parser.add_argument(
        "--values",
        type=int,
        default=1,
        help="values for each compiled program (modes that compile)",
    )
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    seed, ran, kinds, left = given.seed, 0, Counter[str](), Counter[str]()
    while time.monotonic() < end and (given.count is None or seed < given.seed + given.count):
        outcome = fuzz.run(
            given.backend,
            given.mode,
            seed,
            losses=tuple(given.loss),
            rounding=given.rounding,
            shapes=given.shapes,
            values=given.values,
        )
        if outcome.left_out:
            left[outcome.left_out] += 1
        else:
            ran += 1
        if outcome.failures:
            kinds[outcome.kind] += 1
            if kinds[outcome.kind] <= _SHOWN:
                print(f"\n===== seed {seed}: {outcome.kind}\n{outcome.shown()}", flush=True)
        seed += 1
    print(f"\n{ran} calls, seeds {given.seed} to {seed - 1}; {kinds.total()} failed")
    for counted in (kinds, left):
        for what, count in counted.most_common():
            print(f"{count:8} {what}")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
