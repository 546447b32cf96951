"""The recipes for the trainers of other packages: a step has the gradient of the whole batch.

tests/trainer_jobs.py says what a step is. Each runs in processes of its own, because the packages
change settings of the process.
"""

from __future__ import annotations

import importlib.util

import pytest

from tests.conftest import all_required
from unifiedloss.conformance import processes

pytestmark = [
    pytest.mark.framework("torch"),
    pytest.mark.slow("tests/test_distributed.py takes such steps without a trainer"),
]

_LIMIT = 1e-5
"""How far the gradient may be off, of its largest entry: roundings of float32."""


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("job", "packages"),
    [("hugging_face", ["transformers", "accelerate"]), ("lightning", ["pytorch_lightning"])],
)
def test_a_step_has_the_gradient_of_the_whole_batch(
    job: str, packages: list[str], size: int
) -> None:
    """In one process and in two, and not if each micro-batch takes its own mean."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        why = f"not installed: {', '.join(missing)}; make test-all installs the extra trainers"
        if all_required():
            pytest.fail(why)
        pytest.skip(why)
    right = processes.run(f"tests.trainer_jobs:{job}", size, False)  # noqa: FBT003
    assert max(right) <= _LIMIT
    if job == "hugging_face" or size > 1:  # else the batch is in one piece
        wrong = processes.run(f"tests.trainer_jobs:{job}", size, True)  # noqa: FBT003
        assert min(wrong) > 1e-2
