"""Measure one framework in this process, on one processor and thread or on two; write the results.

python -m tests.benchmarks.worker FRAMEWORK SECONDS FILE SHAPES
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
"""The environment of a worker, set at its start because the libraries read it when they load."""


def limit_threads(framework: str, threads: int) -> None:
    """Keep this process on as many processors as threads, and each library in it on the threads.

    Only torch may have more than one.
    """
    # Only Linux has this call; elsewhere the settings below must suffice.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    if framework in ("torch", "numpy", "keras-torch"):  # NumPy is compared with torch
        import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
    if framework in ("tensorflow", "keras-tensorflow"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def versions(framework: str) -> dict[str, str]:
    """The versions of the libraries that the measurement uses."""
    from importlib.metadata import version

    names = {
        "numpy": ("scipy", "scikit-learn", "torch"),
        "torch": ("torch",),
        "tensorflow": (),
        "jax": ("jax", "optax"),
    }.get(framework, ("keras",))
    by_name = {name: version(name) for name in ("numpy", *names)}
    if "tensorflow" in framework:
        # Ask the module, because TensorFlow has distributions of several names.
        import tensorflow as tf

        by_name["tensorflow"] = tf.__version__
    elif framework.startswith("keras-") and framework != "keras-numpy":
        by_name[framework.removeprefix("keras-")] = version(framework.removeprefix("keras-"))
    return by_name


def main(worker: str, seconds: float, file: Path, shapes: list[list[int]]) -> None:
    """Measure every pair of a framework.

    "keras-torch" is Keras on torch; the environment variable KERAS_BACKEND must say torch, too.
    "torch, two threads" is torch on two threads and processors.
    """
    framework, _, more = worker.partition(", ")
    threads = 2 if more == "two threads" else 1
    limit_threads(framework, threads)
    from tests.benchmarks import measure, pairs

    # Two threads share the work, so their processor time tells nothing.
    clock = process_time if threads == 1 else perf_counter
    library = framework.partition("-")[0]
    rows = []
    for case in pairs.cases_of(library, threads):
        if list(case.shape) not in shapes:
            continue
        for pair in pairs.FRAMEWORKS[library](case):
            timing = measure.side_by_side(pair.ours, pair.native, seconds, clock)
            rows.append(
                {
                    "framework": worker,
                    "loss": case.name,
                    "shape": list(case.shape),
                    "work": pair.work,
                    "mode": pair.mode,
                    "against": pair.against,
                    **asdict(timing),
                    "ratio_least": timing.ratio_least,
                    "extra_least": timing.extra_least,
                }
            )
    results = {"versions": versions(framework), "rows": rows}
    if framework == "numpy":
        exact = [
            case
            for case in pairs.cases_of("numpy")
            if case.rounding == "exact" and case.loss == "cross_entropy"
        ]
        results["undecided"] = [rare(case) for case in exact if list(case.shape) in shapes]
    file.write_text(json.dumps(results), encoding="utf-8")


def rare(case: Any, times: int = 10) -> dict[str, Any]:
    """Count what the first tier of exact mode leaves undecided of a case, over several batches."""
    import numpy as np

    from unifiedloss.exact import counts

    counts.undecided.clear()
    random = np.random.default_rng(1)
    for _ in range(times):
        predictions = random.normal(0, 4, case.shape).astype(np.float32)
        case.spec.value_and_grad(predictions, random.integers(0, case.shape[1], case.shape[0]))
    left = dict(counts.undecided)
    return {
        "shape": list(case.shape),
        "elements": times * case.shape[0] * case.shape[1],
        "rows": times * case.shape[0],
        "left": left,
    }


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
