"""Every backend in every mode against the oracle, as ``unifiedloss conform`` runs them.

The tests also guard that a run does not shrink: the rows, the comparisons and the compiled cases.
"""

from __future__ import annotations

import dataclasses
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.rule_ids import rule_ids
from unifiedloss import conformance, losses
from unifiedloss.conformance import Case, Report, Row, cases, runner
from unifiedloss.conformance.case import BadCall, LossCases, edge
from unifiedloss.conformance.cases import all_cases, bad_calls, hard_cases
from unifiedloss.conformance.combine import cut_cases
from unifiedloss.conformance.softmax import bad_softmax_calls, softmax_cases
from unifiedloss.floats import FORMATS
from unifiedloss.losses.mean_squared_error.spec import MeanSquaredError
from unifiedloss.spec import LOSSES

STRENGTHS = ("full", "test")
"""The strengths of the conformance run: with --strength all, and otherwise."""

# The rows of the report, each with its smallest number of comparisons at each of the `STRENGTHS`.
ROWS = {
    ("numpy", "eager"): (1120, 1600),
    ("torch", "eager"): (1630, 2300),
    ("torch", "aot_eager"): (390, 160),
    ("torch", "inductor"): (60, 85),
    ("tensorflow", "eager"): (1630, 2300),
    ("tensorflow", "function"): (390, 225),
    ("tensorflow", "xla"): (390, 195),
    ("jax", "eager"): (550, 140),
    ("jax", "jit"): (1630, 640),
    ("jax", "vmap"): (390, 80),
    ("jax (x64)", "eager"): (110, 55),
    ("jax (x64)", "jit"): (460, 150),
    ("jax (x64)", "vmap"): (110, 40),
    ("keras (jax)", "eager"): (450, 120),
    ("keras (jax)", "jit"): (1630, 220),
    ("keras (jax)", "vmap"): (390, 45),
    ("keras (numpy)", "eager"): (1120, 1600),
    ("keras (tensorflow)", "eager"): (1630, 2300),
    ("keras (tensorflow)", "function"): (390, 50),
    ("keras (tensorflow)", "xla"): (390, 60),
    ("keras (torch)", "eager"): (1630, 2300),
    ("keras (torch)", "aot_eager"): (390, 45),
    ("keras (torch)", "inductor"): (60, None),
    ("dask", "lazy"): (90, 90),
}


def _least_exact(backend: str, mode: str) -> int:
    """The smallest number of comparisons of a row of exact mode in a quicker run."""
    by_keras = backend.startswith("keras")
    if mode == "eager":
        return 240 if by_keras else 1750
    return 30 if mode == "xla" else 38 if by_keras else 55


# The same for exact mode, which has gradients only to the predictions. TensorFlow's XLA refuses a
# loss without a form in `unifiedloss.exact.graph.form`, and its row checks the refusals. The other
# losses take too long to compile here; they are in tests/test_exact_tensorflow.py.
EXACT_ROWS = {
    (backend, mode): (
        {"eager": 1380, "inductor": 45, "xla": 20}.get(mode, 330),
        None if least is None else _least_exact(backend, mode),
    )
    for (backend, mode), (_, least) in ROWS.items()
} | {
    ("dask", "lazy"): (90, 90),
    ("jax", "jit"): (330, 150),
    ("jax (x64)", "eager"): (300, 380),
    ("jax (x64)", "jit"): (65, 55),
    ("jax (x64)", "vmap"): (65, 30),
}

# The longest sum has 217 terms, which JAX adds one after the other (3.06 ulps). Partial sums grow
# evenly, and each rounding errs by 0.29 ulps of its partial sum in the root mean square. All of
# them together err by 0.29 sqrt(217 / 3) = 2.5 ulps. The limit is twice that.
USUAL = 5


def _marks(backend: str) -> list[pytest.MarkDecorator]:
    names = backend.replace("(", "").replace(")", "").split()
    return [pytest.mark.framework(*(name for name in names if name != "x64"))]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of each row of this strength."""
    rows = {"test_backend_conforms": ROWS, "test_backend_gives_the_same_bits": EXACT_ROWS}
    if metafunc.function.__name__ not in rows:
        return
    column = STRENGTHS.index(_strength(metafunc.config))
    metafunc.parametrize(
        ("backend", "mode", "least"),
        [
            pytest.param(*row, least[column], marks=_marks(row[0]), id=" ".join(row))
            for row, least in rows[metafunc.function.__name__].items()
            if least[column] is not None
        ],
    )


def _strength(config: pytest.Config) -> str:
    return "full" if config.getoption("strength") == "all" else "test"


@pytest.fixture(scope="module")
def strength(request: pytest.FixtureRequest) -> str:
    """The strength of the conformance runs."""
    return _strength(request.config)


@pytest.fixture(scope="module")
def reports(strength: str) -> dict[str, Report]:
    """One run over all installed backends, in both roundings."""
    return conformance.run_roundings(("native", "exact"), strength=strength)


@pytest.fixture(scope="module")
def report(reports: dict[str, Report]) -> Report:
    """The native part of the run."""
    return reports["native"]


@pytest.fixture(scope="module")
def exact_report(reports: dict[str, Report]) -> Report:
    """The exact part of the run."""
    return reports["exact"]


def _row(report: Report, backend: str, mode: str, note: Callable[[str, object], None]) -> Row:
    """Find the row, and note its counts and seconds for the end of the test run."""
    assert backend not in report.errors, report.errors[backend]
    (row,) = [row for row in report.rows if (row.backend, row.mode) == (backend, mode)]
    note(
        "row",
        f"{report.rounding:6} {backend:18} {mode:9} {row.total.cases:4} cases "
        f"{row.total.comparisons:5} comparisons {row.programs:4} programs "
        f"{row.processor_seconds:6.1f} s",
    )
    return row


@pytest.mark.timeout(3000)
def test_backend_conforms(
    report: Report,
    backend: str,
    mode: str,
    least: int,
    record_property: Callable[[str, object], None],
) -> None:
    """No result differs, and the row has at least its number of comparisons."""
    row = _row(report, backend, mode, record_property)
    assert not row.failures, "\n\n".join(
        f"{f.case}: {f.what}\n{f.snippet}" for f in row.failures[:5]
    )
    assert row.total.comparisons >= least
    every = (*all_cases(), *bad_calls(), *softmax_cases(), *bad_softmax_calls(), *cut_cases())
    assert row.total.cases + row.left_out + sum(row.not_held.values()) == len(every)
    assert row.losses.keys() == set(runner.LOSSES) - (
        {runner.SOFTMAX} if backend == "dask" else set()
    )
    if backend == "dask":  # it computes no loss itself
        assert row.total.cases == len(cut_cases())
    assert not row.not_held
    # Usual distances are far inside the derived bound, so a sum that loses digits fails here first.
    assert row.total.value_ulps <= USUAL
    assert row.total.gradient_ulps <= USUAL


@pytest.mark.timeout(3000)
def test_backend_gives_the_same_bits(
    exact_report: Report,
    backend: str,
    mode: str,
    least: int,
    record_property: Callable[[str, object], None],
) -> None:
    """In exact mode every bit equals the oracle's, and so that of every other backend."""
    row = _row(exact_report, backend, mode, record_property)
    assert not row.failures, "\n\n".join(
        f"{f.case}: {f.what}\n{f.snippet}" for f in row.failures[:5]
    )
    assert row.total.value_ulps == row.total.gradient_ulps == 0
    assert row.total.comparisons >= least
    assert not row.not_held


def test_no_row_is_unknown(report: Report, exact_report: Report, strength: str) -> None:
    """A run has no row that is missing above, such as a new mode of an adapter."""
    column = STRENGTHS.index(strength)
    for found, rows in ((report, ROWS), (exact_report, EXACT_ROWS)):
        known = {row for row, least in rows.items() if least[column] is not None}
        assert {(row.backend, row.mode) for row in found.rows} <= known
        assert found.ok


def test_every_case_is_run_somewhere(report: Report, exact_report: Report, strength: str) -> None:
    """Each backend has one mode in which nothing is left out, with the exceptions below."""
    for found in (report, exact_report):
        backends = {row.backend for row in found.rows} - {"jax (x64)"}
        # Keras on JAX compiles every case, so it leaves out those that JAX's own row compiles.
        # Without 64 bits JAX refuses a spec that names float64; the row with 64 bits has it.
        apart = {"dask", "jax", "keras (jax)"}
        if strength == "test":
            # JAX compiles a sample of the cases. In exact mode Keras calls the adapter below it.
            keras = {backend for backend in backends if backend.startswith("keras")}
            apart |= keras if found is exact_report else set()
        assert {row.backend for row in found.rows if not row.left_out} == backends - apart
    spared = [case for case in all_cases() if case.of_backend and not case.compiled]
    assert {case.name.partition("/")[0] for case in spared} == {"product", "random"}
    if strength == "full":
        assert {
            row.left_out for row in report.rows if (row.backend, row.mode) == ("keras (jax)", "jit")
        } <= {len(spared) + len(cut_cases())}


def test_compiled_cases_share_programs(report: Report, strength: str) -> None:
    """Outside --strength all, cases share programs, so groups do not fall back to single cases."""
    for row in report.rows:
        eager = row.mode in ("eager", "lazy")
        if eager:
            assert row.programs == 0
        elif strength == "full":
            # A fused case has a program without gradients, too.
            fused = sum(case.made is not None for case in all_cases())
            # A case in pieces has a program for its totals, one for its loss, one for its gradient.
            cut = len(cut_cases())
            assert row.total.cases - cut <= row.programs <= row.total.cases + fused + 2 * cut
        else:
            # Of the few cases that Keras compiles in a mode, it may be that no two share one.
            alone = row.backend.startswith("keras") and row.mode != "jit"
            assert 0 < row.programs < row.total.cases + alone


def _values(cases: list[Case]) -> dict[str, set[Any]]:
    """Collect each field's values in these cases, and their shapes, dtypes, weights and masks."""
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
    """For each kind of input and target, the compiled cases have every value of every field.

    So compiled modes leave out only repetitions.
    """
    products = [case for case in all_cases() if case.name.startswith("product/")]
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in products:
        groups[case.name.rpartition(" ")[0]].append(case)
    assert len(groups) == 8
    for name, group in groups.items():
        compiled = [case for case in group if case.compiled]
        assert _values(compiled) == _values(group), name
        assert len(compiled) < len(group) / 2


def test_edge_cases_are_compiled_too() -> None:
    """Compiled edge cases have every loss and reduction, bad values, masks and special values."""
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
    """Every dtype is compiled at the rule's threshold; one or two cases are representative."""
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


def _rules_by_case() -> dict[str, tuple[str, ...]]:
    every = (*all_cases(), *hard_cases(), *bad_calls(), *softmax_cases(), *bad_softmax_calls())
    return {case.name: case.rules for case in (*every, *cut_cases())}


def test_every_rule_has_a_case() -> None:
    """Each id on the page Rules is named by a case."""
    assert not rule_ids() - {rule for rules in _rules_by_case().values() for rule in rules}


def test_every_case_names_its_rules() -> None:
    """Each case names at least one rule, and only rules of the page."""
    for name, rules in _rules_by_case().items():
        assert rules, f"{name} names no rule"
        assert rule_ids() >= set(rules), name


def test_every_field_has_a_rule() -> None:
    """The name of a field, with dashes, is the id of its rule, and so is the name of a loss."""
    names = {name for cls in LOSSES.values() for name in cls.declarations} | LOSSES.keys()
    assert rule_ids() >= {name.replace("_", "-") for name in names}


def test_a_new_loss_changes_no_other_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases of a loss come from its row, and are marked apart from those of other losses."""
    known = {case.name: case for case in all_cases()}
    spec, values = MeanSquaredError(), np.zeros(2, np.float32)
    new = LossCases(
        bad_calls=lambda: [BadCall("new/bad", spec, values, values[:1], rules=("strict-shapes",))],
        edge_cases=lambda: [edge(f"new {n}", spec, values, values) for n in range(5)],
    )
    monkeypatch.setattr(cases, "ROWS", (losses.Row("new", "New", "new"), *losses.ROWS))
    monkeypatch.setattr(
        cases,
        "part",
        lambda name, module: (
            types.SimpleNamespace(CASES=new) if name == "new" else losses.part(name, module)
        ),
    )
    found = {case.name: case for case in all_cases.__wrapped__()}  # not those that are kept
    added = [found[name] for name in found.keys() - known.keys()]
    assert {case.name for case in added if case.compiled} == {"edge/new 0", "edge/new 4"}
    assert len(added) == 5
    assert "new/bad" in {call.name for call in bad_calls()}
    for name, case in known.items():
        marks = (case.compiled, case.representative, case.of_backend)
        same = found[name]
        assert (same.compiled, same.representative, same.of_backend) == marks, name
