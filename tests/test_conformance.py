"""Every backend in every mode against the oracle: the run that ``unifiedloss conform`` makes, and what of it must not shrink."""

from __future__ import annotations

import subprocess
import sys

import pytest

from unifiedloss import conformance
from unifiedloss.conformance import Report
from unifiedloss.conformance.cases import all_cases, bad_calls

# The rows of the report, with the number of comparisons that each makes at least.
ROWS = {
    ("numpy", "eager"): 1080,
    ("torch", "eager"): 1550,
    ("torch", "aot_eager"): 350,
    ("torch", "inductor"): 40,
    ("tensorflow", "eager"): 1550,
    ("tensorflow", "function"): 350,
    ("tensorflow", "xla"): 350,
    ("jax", "eager"): 1550,
    ("jax", "jit"): 350,
    ("jax", "vmap"): 350,
    ("keras (jax)", "eager"): 1550,
    ("keras (jax)", "jit"): 350,
    ("keras (jax)", "vmap"): 350,
    ("keras (numpy)", "eager"): 1080,
    ("keras (tensorflow)", "eager"): 1550,
    ("keras (tensorflow)", "function"): 350,
    ("keras (tensorflow)", "xla"): 350,
    ("keras (torch)", "eager"): 1550,
    ("keras (torch)", "aot_eager"): 350,
    ("keras (torch)", "inductor"): 40,
}


def _marks(backend: str) -> list[pytest.MarkDecorator]:
    names = backend.replace("(", "").replace(")", "").split()
    return [pytest.mark.framework(*(name for name in names if name != "x64"))]


PARAMETERS = [pytest.param(*row, least, marks=_marks(row[0]), id=" ".join(row)) for row, least in ROWS.items()]


@pytest.fixture(scope="module")
def report() -> Report:
    """One run over all that is installed."""
    return conformance.run()


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("backend", "mode", "least"), PARAMETERS)
def test_backend_conforms(report: Report, backend: str, mode: str, least: int) -> None:
    """Nothing differs, and as much was compared as ever."""
    assert backend not in report.errors, report.errors[backend]
    rows = [row for row in report.rows if (row.backend, row.mode) == (backend, mode)]
    assert len(rows) == 1
    (row,) = rows
    assert not row.failures, "\n\n".join(f"{f.case}: {f.what}\n{f.snippet}" for f in row.failures[:5])
    assert row.total.comparisons >= least
    assert row.total.cases + row.left_out + sum(row.not_held.values()) == len(all_cases()) + len(list(bad_calls()))
    assert not row.not_held
    # What is usual, far inside the bound that is derived: a sum that loses digits shows here first.
    assert row.total.value_ulps <= 3
    assert row.total.gradient_ulps <= 3


def test_no_row_is_unknown(report: Report) -> None:
    """A mode that an adapter gains is checked, and so must stand above; float64 JAX alone has a row of its own."""
    extra = {(row.backend, row.mode) for row in report.rows if row.backend != "jax (x64)"} - set(ROWS)
    assert not extra
    assert report.ok


def test_cases_cover_every_field_compiled() -> None:
    """The cases that are compiled hold every loss, input kind, target kind, reduction, divisor and dtype."""
    compiled = [case for case in all_cases() if case.compiled]
    for field, least in (("reduction", 3), ("divisor", 4), ("on_empty", 2)):
        assert len({getattr(case.spec, field) for case in compiled}) >= least
    assert {case.dtype for case in compiled} == {"float16", "bfloat16", "float32", "float64"}
    for field in ("label_smoothing", "epsilon", "class_weights", "ignore_index", "pos_weight", "axis", "from_logits"):
        assert len({getattr(case.spec, field) for case in compiled if hasattr(case.spec, field)}) >= 2, field
    assert any(case.mask is not None for case in compiled)
    assert any(case.sample_weight is not None for case in compiled)
    assert {case.spec.name for case in all_cases() if case.representative} == {
        "cross_entropy", "binary_cross_entropy", "mean_squared_error",
    }  # fmt: skip


def test_every_row_of_the_facts_is_a_case() -> None:
    """The disagreements that are about numbers each have a case that bears their number."""
    named = {x.name.removeprefix("edge/")[:2] for x in (*all_cases(), *bad_calls())}
    about_numbers = {f"{n:02}" for n in range(1, 44)} - {"13", "14", "18", "19", "37", "39", "29", "34", "40"}
    assert about_numbers <= named | {"15"}


def test_missing_backend_fails() -> None:
    """A backend that nobody knows is an error, not an empty success."""
    with pytest.raises(ValueError, match="there is no backend 'mxnet'"):
        conformance.run(["mxnet"])


@pytest.mark.framework("numpy")
def test_report_round_trips_and_snippets_run() -> None:
    """A report is read back as it was written, and says what it is of."""
    small = conformance.run(["numpy"], ["mean_squared_error"])
    again = Report.from_dict(small.to_dict())
    assert again.to_dict() == small.to_dict()
    assert small.ok
    assert small.comparisons > 50


@pytest.mark.framework("numpy")
def test_worker_that_dies_is_a_failure() -> None:
    """A run whose process ends in the middle is not a success."""
    done = subprocess.run(
        [sys.executable, "-m", "unifiedloss.conformance"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "unifiedloss conform" in done.stderr
