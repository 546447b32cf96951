"""Measures one framework in a process of its own, on one processor and one thread, and writes what it found to a file.

python -m tests.benchmarks.worker FRAMEWORK SECONDS FILE SHAPES
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
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
"""What a worker is started with: the libraries read it when they load."""


def one_thread(framework: str) -> None:
    """Keep this process on one processor and each library that is used in it on one thread."""
    # Linux; elsewhere the settings below have to do.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if framework in ("torch", "numpy", "keras-torch"):  # NumPy is compared with torch
        import torch

        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
    if framework in ("tensorflow", "keras-tensorflow"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def versions(framework: str) -> dict[str, str]:
    """The versions of what took part."""
    from importlib.metadata import version

    names = {
        "numpy": ("scipy", "scikit-learn", "torch"),
        "torch": ("torch",),
        "tensorflow": (),
        "jax": ("jax", "optax"),
    }.get(framework, ("keras",))
    found = {name: version(name) for name in ("numpy", *names)}
    if "tensorflow" in framework:  # whose distributions have several names
        import tensorflow as tf

        found["tensorflow"] = tf.__version__
    elif framework.startswith("keras-") and framework != "keras-numpy":
        found[framework.removeprefix("keras-")] = version(framework.removeprefix("keras-"))
    return found


def main(framework: str, seconds: float, file: Path, shapes: list[list[int]]) -> None:
    """Measure every pair of a framework; "keras-torch" is Keras on torch, whose name KERAS_BACKEND has to have as well."""
    one_thread(framework)
    from tests.benchmarks import measure, pairs

    rows = []
    for case in pairs.CASES:
        if list(case.shape) not in shapes:
            continue
        for pair in pairs.FRAMEWORKS[framework.partition("-")[0]](case):
            timing = measure.side_by_side(pair.ours, pair.native, seconds)
            rows.append(
                {
                    "framework": framework,
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
    found = {"versions": versions(framework), "rows": rows}
    if framework == "numpy":
        found["undecided"] = [
            rare(case)
            for case in pairs.CASES
            if case.rounding == "exact" and list(case.shape) in shapes
        ]
    file.write_text(json.dumps(found), encoding="utf-8")


def rare(case: Any, times: int = 10) -> dict[str, Any]:
    """How much of a case the first tier of exact mode leaves undecided, over several batches."""
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
