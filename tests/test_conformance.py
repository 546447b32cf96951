"""Every backend in every mode against the oracle: the run that ``unifiedloss conform`` makes, and what of it must not shrink."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from unifiedloss import conformance
from unifiedloss.conformance import Case, Report, runner
from unifiedloss.conformance.cases import all_cases, bad_calls, bad_softmax_calls, softmax_cases
from unifiedloss.floats import FORMATS

# The rows of the report, with the number of comparisons that each makes at least.
ROWS = {
    ("numpy", "eager"): 1120,
    ("torch", "eager"): 1630,
    ("torch", "aot_eager"): 390,
    ("torch", "inductor"): 60,
    ("tensorflow", "eager"): 1630,
    ("tensorflow", "function"): 390,
    ("tensorflow", "xla"): 390,
    ("jax", "eager"): 550,
    ("jax", "jit"): 1630,
    ("jax", "vmap"): 390,
    ("jax (x64)", "eager"): 110,
    ("jax (x64)", "jit"): 460,
    ("jax (x64)", "vmap"): 110,
    ("keras (jax)", "eager"): 450,
    ("keras (jax)", "jit"): 1630,
    ("keras (jax)", "vmap"): 390,
    ("keras (numpy)", "eager"): 1120,
    ("keras (tensorflow)", "eager"): 1630,
    ("keras (tensorflow)", "function"): 390,
    ("keras (tensorflow)", "xla"): 390,
    ("keras (torch)", "eager"): 1630,
    ("keras (torch)", "aot_eager"): 390,
    ("keras (torch)", "inductor"): 60,
}

# The same for exact mode, whose gradients are those to the predictions. XLA in TensorFlow refuses what it has no form of, and is compared
# in that; the rest takes it too long to compile, and is in tests/test_exact_tensorflow.py.
EXACT_ROWS = {
    (backend, mode): {"eager": 1380, "inductor": 45, "xla": 20}.get(mode, 330)
    for backend, mode in ROWS
} | {
    ("jax (x64)", "eager"): 300,
    ("jax (x64)", "jit"): 65,
    ("jax (x64)", "vmap"): 65,
}

# The longest sum has 217 terms, and JAX adds them one after the other (3.06 ulps). Partial sums grow evenly, and each rounding errs by
# 0.29 of an ulp of its partial sum in the root mean square: 0.29 sqrt(217 / 3) = 2.5 for all of them, of which this is twice.
USUAL = 5


def _marks(backend: str) -> list[pytest.MarkDecorator]:
    names = backend.replace("(", "").replace(")", "").split()
    return [pytest.mark.framework(*(name for name in names if name != "x64"))]


def _parameters(rows: dict[tuple[str, str], int]) -> list[Any]:
    return [
        pytest.param(*row, least, marks=_marks(row[0]), id=" ".join(row))
        for row, least in rows.items()
    ]


@pytest.fixture(scope="module")
def report() -> Report:
    """One run over all that is installed."""
    return conformance.run()


@pytest.fixture(scope="module")
def exact_report() -> Report:
    """The same in exact mode."""
    return conformance.run(rounding="exact")


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("backend", "mode", "least"), _parameters(ROWS))
def test_backend_conforms(report: Report, backend: str, mode: str, least: int) -> None:
    """Nothing differs, and as much was compared as ever."""
    assert backend not in report.errors, report.errors[backend]
    rows = [row for row in report.rows if (row.backend, row.mode) == (backend, mode)]
    assert len(rows) == 1
    (row,) = rows
    assert not row.failures, "\n\n".join(
        f"{f.case}: {f.what}\n{f.snippet}" for f in row.failures[:5]
    )
    assert row.total.comparisons >= least
    every = (*all_cases(), *bad_calls(), *softmax_cases(), *bad_softmax_calls())
    assert row.total.cases + row.left_out + sum(row.not_held.values()) == len(every)
    assert row.losses.keys() == set(runner.LOSSES)
    assert not row.not_held
    # What is usual, far inside the bound that is derived: a sum that loses digits shows here first.
    assert row.total.value_ulps <= USUAL
    assert row.total.gradient_ulps <= USUAL


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("backend", "mode", "least"), _parameters(EXACT_ROWS))
def test_backend_gives_the_same_bits(
    exact_report: Report, backend: str, mode: str, least: int
) -> None:
    """In exact mode every bit is the oracle's, and so every other backend's."""
    assert backend not in exact_report.errors, exact_report.errors[backend]
    (row,) = [row for row in exact_report.rows if (row.backend, row.mode) == (backend, mode)]
    assert not row.failures, "\n\n".join(
        f"{f.case}: {f.what}\n{f.snippet}" for f in row.failures[:5]
    )
    assert row.total.value_ulps == row.total.gradient_ulps == 0
    assert row.total.comparisons >= least
    assert not row.not_held


def test_no_row_is_unknown(report: Report, exact_report: Report) -> None:
    """A mode that an adapter gains is checked, and so must stand above."""
    for found in (report, exact_report):
        assert {(row.backend, row.mode) for row in found.rows} <= set(ROWS)
        assert found.ok


def test_every_case_is_run_somewhere(report: Report, exact_report: Report) -> None:
    """Each backend has one mode in which nothing is left out, or for Keras on JAX, which compiles everything, some repetitions."""
    for found in (report, exact_report):
        backends = {row.backend for row in found.rows} - {"jax (x64)"}
        apart = set() if found is exact_report else {"keras (jax)"}
        assert {row.backend for row in found.rows if not row.left_out} == backends - apart
    spared = [case for case in all_cases() if case.of_backend and not case.compiled]
    assert {case.name.partition("/")[0] for case in spared} == {"product", "random"}
    assert {
        row.left_out for row in report.rows if (row.backend, row.mode) == ("keras (jax)", "jit")
    } <= {len(spared)}


def _values(cases: list[Case]) -> dict[str, set[Any]]:
    """Which values each field has among these cases, and which shapes, dtypes and companions there are."""
    found: dict[str, set[Any]] = defaultdict(set)
    for case in cases:
        for field in dataclasses.fields(case.spec):
            value = getattr(case.spec, field.name)
            if field.name in ("class_weights", "pos_weight") and isinstance(value, tuple):
                value = ("with zero" if 0 in value else "positive", "several")
            found[field.name].add(value)
        found["shape"].add(case.predictions.shape)
        found["dtypes"] |= {case.dtype, f"targets {case.targets.dtype}"}
        for name, companion in (("sample_weight", case.sample_weight), ("mask", case.mask)):
            found[name].add(None if companion is None else companion.ndim)
            found[f"nothing of the {name}"].add(companion is not None and not companion.any())
        found["upstream"].add(case.upstream is not None)
    return found


def test_compiled_cases_have_every_value_of_every_field() -> None:
    """What is spared the compiled modes are repetitions: for each kind of input and target nothing is lost."""
    products = [case for case in all_cases() if case.name.startswith("product/")]
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in products:
        groups[case.name.rpartition(" ")[0]].append(case)
    assert len(groups) == 7
    for name, group in groups.items():
        compiled = [case for case in group if case.compiled]
        assert _values(compiled) == _values(group), name
        assert len(compiled) < len(group) / 2


def test_edge_cases_are_compiled_too() -> None:
    """Among them every reduction and dtype, bad values that give NaN, dropped positions, and special values."""
    compiled = [case for case in all_cases() if case.compiled and case.name.startswith("edge/")]
    assert len(compiled) > 80
    losses = set(runner.LOSSES) - {runner.SOFTMAX}
    assert {case.spec.name for case in compiled} == losses
    assert {case.spec.reduction for case in compiled} == {"mean", "sum", "none"}
    assert sum(bool(case.expected().bad_positions) for case in compiled) >= 10
    assert sum(case.mask is not None or case.sample_weight is not None for case in compiled) > 5
    assert sum(not np.isfinite(case.predictions).all() for case in compiled) > 15
    assert {case.spec.name for case in all_cases() if case.representative} == losses


def test_softmax_cases() -> None:
    """Every dtype is compiled, at the rule's threshold too; few are where compiling is costly."""
    every = list(softmax_cases())
    names = {case.name for case in (*every, *bad_softmax_calls())}
    assert len(names) == len(every) + len(list(bad_softmax_calls()))
    assert all(name.startswith("softmax/") for name in names)
    compiled = [case for case in every if case.compiled]
    assert (
        {case.dtype for case in compiled if "gaps" in case.name}
        == {case.dtype for case in every}
        == set(FORMATS)
    )
    assert sum(not np.isfinite(case.logits).all() for case in compiled) >= 2
    assert {case.axis for case in compiled} == {case.axis for case in every}
    assert 1 <= sum(case.representative for case in every) <= 2


def test_every_row_of_the_facts_is_a_case() -> None:
    """The disagreements that are about numbers each have a case that bears their number."""
    named = {x.name.removeprefix("edge/")[:2] for x in (*all_cases(), *bad_calls())}
    about_numbers = {f"{n:02}" for n in range(1, 44)} - {
        "13",
        "14",
        "18",
        "19",
        "37",
        "39",
        "29",
        "34",
        "40",
    }
    assert about_numbers <= named | {"15"}
