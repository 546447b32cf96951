"""Losses in replicas: JAX's shard_map and pmap, tf.distribute, and Keras' distributed training.

Each replica has a part of the rows. Value and gradient are compared with those of the whole, native
within the bound and exact bit by bit, and planted faults must be found. The replicas are devices
that a process of its own simulates, or processes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tests import replica_batch as batch
from tests.replica_jobs import FAULTS
from tests.test_keras import QUICK_TO_COMPILE
from unifiedloss.conformance import processes, replicas

COUNTS = [2, *(pytest.param(n, marks=pytest.mark.slow("two replicas")) for n in (3, 4))]


@pytest.fixture
def strength(request: pytest.FixtureRequest) -> str:
    """The strength of this run."""
    return str(request.config.getoption("strength"))


@pytest.mark.framework("jax")
@pytest.mark.parametrize("count", COUNTS)
def test_jax(count: int, strength: str) -> None:
    """shard_map with and without check_vma, and pmap, on simulated devices."""
    job, flags = "tests.replica_jobs:main", _of_devices(count)
    (found,) = processes.run(job, 1, "jax", count, strength, variables=flags)
    _check(found, strength, ways=3)
    # JAX types arrays that replicas share, where check_vma is not off: the sum's gradient is right.
    assert "shard_map" not in {way for _, _, way in found["summed_inside"].failures}


@pytest.mark.framework("jax")
@pytest.mark.slow("test_split_over_devices in test_jax.py and test_exact_jax.py")
@pytest.mark.parametrize("count", [2, 3, 4])
def test_jax_meshes(count: int) -> None:
    """Calls on arrays that are shared by rows or classes, eager and compiled."""
    (found,) = processes.run("tests.mesh_jobs:main", 1, variables=_of_devices(count))
    assert found.failures == []
    assert found.comparisons >= 280


@pytest.mark.framework("jax")
@pytest.mark.slow("devices of one process")
def test_jax_in_two_processes() -> None:
    """Exact calls on arrays of which each process has a part."""
    assert processes.run("tests.mesh_jobs:processes", 2) == [[], []]


@pytest.mark.framework("jax")
@pytest.mark.slow("test_split_over_devices in test_exact_jax.py")
def test_every_case_on_a_jax_mesh() -> None:
    """Exact mode on arrays that are not traced: each axis is split, if it can be."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    ((count, wrong),) = processes.run("tests.mesh_jobs:every_case", 1, variables=flags)
    assert wrong == []
    assert count > 500


@pytest.mark.framework("tensorflow", "keras")
@pytest.mark.parametrize("count", COUNTS)
def test_tensorflow_and_keras(count: int, strength: str) -> None:
    """strategy.run, eager and in a tf.function, and Keras' fit with `global_mean`."""
    flags = {"KERAS_BACKEND": "tensorflow"}
    job = "tests.keras_replicas:mirrored"
    ((found, fits),) = processes.run(job, 1, count, strength, variables=flags)
    _check(found, strength, ways=2)
    if strength == "all":
        own = fits.pop("own mean")  # a mean of means, as of Keras' own losses
        assert abs(own.gradient - _expected("native")[1]).max() > 1e-2
    _check_fits(fits)


@pytest.mark.framework("tensorflow", "keras")
@pytest.mark.slow("replicas in one process")
@pytest.mark.parametrize("count", [2, 3])
def test_keras_in_several_processes(count: int) -> None:
    """A step under MultiWorkerMirroredStrategy, the same in each worker."""
    flags = {"KERAS_BACKEND": "tensorflow"}
    for fits in processes.run("tests.keras_replicas:workers", count, variables=flags):
        _check_fits(fits)


@pytest.mark.framework("keras", "jax")
@pytest.mark.slow("test_jax.py::test_split_over_devices runs such a program")
@pytest.mark.parametrize("count", [2, 3])
def test_keras_on_jax_meshes(count: int) -> None:
    """Keras' fit with DataParallel and ModelParallel: one program on the whole batch."""
    flags = _of_devices(count) | {"KERAS_BACKEND": "jax"}
    (fits,) = processes.run("tests.keras_meshes:on_devices", 1, variables=flags)
    assert {name.split()[-1]: fit.where for name, fit in fits.items()} == {
        "DataParallel": (None, None),
        "ModelParallel": (None, "model"),
    }
    _check_fits(fits)


def _of_devices(count: int) -> dict[str, str]:
    devices = f"--xla_force_host_platform_device_count={count}"
    return {"XLA_FLAGS": f"{devices} {QUICK_TO_COMPILE}"}


def _check(found: dict[str, Any], strength: str, ways: int) -> None:
    """Nothing fails but the planted faults, each of which is found."""
    right = found.pop("right")
    assert right.failures == {}
    # The loss of the totals, the sum of the losses and the gradient of each case.
    assert right.comparisons == 3 * ways * len(replicas.cases(every=strength == "all"))
    for outcome in found.values():
        assert outcome.failures
    assert found.keys() in ({fault.__name__ for fault in FAULTS}, set())


def _check_fits(fits: dict[str, Any]) -> None:
    """The gradients are those of the whole batch, in exact mode bit by bit."""
    assert fits
    for name, fit in fits.items():
        value, gradient = _expected(name)
        # Keras averages losses in float32.
        np.testing.assert_allclose(fit.loss, value, rtol=1e-6, err_msg=name)
        if "exact" in name:
            np.testing.assert_array_equal(fit.gradient, gradient, err_msg=name)
        else:
            np.testing.assert_allclose(fit.gradient, gradient, atol=1e-7, err_msg=name)


def _expected(name: str) -> tuple[Any, Any]:
    """The loss and the gradient that a fit of tests/keras_fit.py must have, by NumPy."""
    weights = batch.WEIGHTS if "weights" in name else None
    spec: Any = ul.CrossEntropyLoss(from_logits=True, ignore_index=-100)
    spec = spec.replace(rounding="exact" if "exact" in name else "native")
    found: tuple[Any, Any] = spec.value_and_grad(batch.LOGITS, batch.LABELS, sample_weight=weights)
    return found
