"""Run one worker process of the conformance suite (see `unifiedloss.conformance.workers`).

The suite starts it. The command for users is ``unifiedloss conform``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from unifiedloss.conformance import compare, compare_blocks, runner, trial, workers


def main() -> None:
    """Do the task whose two files the command line names."""
    if len(sys.argv) != 3:
        sys.exit(
            "This module is run by the conformance suite itself. "
            "To check the backends: unifiedloss conform"
        )
    jobs: dict[str, Callable[..., None]] = {
        "conform": runner.conform,
        "compare": compare.measure,
        "compare_blocks": compare_blocks.measure,
        "trial": trial.serve,
    }
    workers.serve(sys.argv[1], sys.argv[2], jobs)


if __name__ == "__main__":
    main()
