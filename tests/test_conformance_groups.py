"""Cases that share a program: how they are grouped, and that a group hides no failure."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from unifiedloss import registry
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.conformance import groups, runner, workers
from unifiedloss.conformance.case import BadCall
from unifiedloss.conformance.cases import all_cases, bad_calls
from unifiedloss.conformance.strength import FULL, TEST, Share

TARGET = workers.Target("torch", "torch")
CHECKED = [(case, None) for case in all_cases()]


def test_groups_hold_each_case_once() -> None:
    """No group is too large, and each has one dtype."""
    split = groups.split(CHECKED)
    names = [case.name for group in split for case, _ in group]
    assert sorted(names) == sorted(case.name for case, _ in CHECKED)
    assert max(map(len, split)) <= groups.SIZE
    assert len(split) < len(CHECKED) / 6
    assert all(len({case.dtype for case, _ in group}) == 1 for group in split)


def test_another_case_changes_one_group() -> None:
    """All other groups stay the same, and so do their programs."""
    all_groups, without_first = (
        {frozenset(case.name for case, _ in group) for group in groups.split(checked)}
        for checked in (CHECKED, CHECKED[1:])
    )
    assert len(all_groups - without_first) == 1


@pytest.fixture
def torch() -> Adapter:
    """A torch adapter whose mode "traced" only imitates a compiler.

    With `most` at 1000, its mean squared error is wrong. With a lower `most`, a program with more
    tensors does not compile.
    """
    adapter = registry.adapter("torch")

    class Traced(type(adapter)):  # type: ignore[misc]
        most = 1000

        def modes(self) -> dict[str, Mode]:
            def run(function: Any, *tensors: Any) -> Any:
                assert len(tensors) <= self.most, "too many tensors"
                return function(*tensors)

            eager = super().modes()["eager"]
            return {"eager": eager, "traced": Mode(run, raises=False, whole_step=False)}

        def loss(self, spec: Any, *tensors: Any) -> Any:
            value = super().loss(spec, *tensors)
            return 2 * value if spec.name == "mean_squared_error" and self.most == 1000 else value

    return Traced()


def drawn(*losses: str) -> list[Any]:
    """The cases that both strengths run in the mode below, with the oracle's results."""
    return [x for x in runner.expected(losses) if Share.QUARTER_OF_COMPILED.has(x[0], "traced")]


@pytest.mark.framework("torch")
def test_wrong_case_in_a_group_is_named(torch: Adapter) -> None:
    """Grouped cases fail with the same messages and snippets as those that run one by one."""
    chosen = drawn("mean_squared_error", "binary_cross_entropy")
    rows = []
    for strength in (FULL, TEST):
        work = runner.Work(chosen, [], ["traced"], strength)
        (row,) = runner.check(torch, TARGET, work)
        rows.append(row)
    one_by_one, grouped = rows
    assert 5 < len(one_by_one.failures) < len(chosen)
    by_name = [sorted(row.failures, key=lambda failure: failure.case) for row in rows]
    assert by_name[0] == by_name[1]
    assert {failure.loss for failure in grouped.failures} == {"mean_squared_error"}
    # A program without gradients, too, where the program makes the predictions.
    made = sum(case.made is not None for case, _ in chosen)
    assert one_by_one.programs == len(chosen) + made


@pytest.mark.framework("torch")
def test_group_that_does_not_compile_runs_one_by_one(torch: Adapter) -> None:
    """If a compiler refuses a group, its cases run one by one and do not fail."""
    torch.most = 3  # type: ignore[attr-defined]
    chosen = drawn("binary_cross_entropy", "mean_squared_error")
    (row,) = runner.check(torch, TARGET, runner.Work(chosen, [], ["traced"], TEST))
    assert not row.failures
    assert row.total.cases == len(chosen) < row.programs


@pytest.mark.framework("torch")
def test_wrong_in_company_alone_is_a_failure(torch: Adapter) -> None:
    """A case that passes alone but not in a group fails, and the message names the group."""
    torch.most = 999  # type: ignore[attr-defined]
    modes = torch.modes()

    def run(function: Any, *tensors: Any) -> Any:
        result = function(*tensors)
        return [2 * value for value in result] if isinstance(result, list) else result

    mode = modes["traced"]._replace(run=run)
    chosen = [x for x in runner.expected(["binary_cross_entropy"]) if x[0].compiled][:4]
    outcomes = groups.check(torch, mode, chosen)
    assert any("only in one program with" in what for x in outcomes for what in x.failures)


def test_modes_divide_the_compiled_cases() -> None:
    """Each compiler compiles another quarter, and the representative cases in one of its modes."""
    compiled = [case for case in all_cases() if case.compiled]
    representative = {case.name for case in compiled if case.representative}
    drawn = [
        {case.name for case in compiled if Share.QUARTER_OF_COMPILED.has(case, mode)}
        for mode in ("aot_eager", "function", "xla", "jit")
    ]
    assert set().union(*drawn) == {case.name for case in compiled}
    for one, other in combinations(drawn, 2):
        assert one & other == representative
    others = len(compiled) - len(representative)
    alone = {case.name for case in compiled if Share.QUARTER_OF_OTHERS.has(case, "aot_eager")}
    assert alone == drawn[0] - representative
    for quarter in drawn:
        assert others / 6 < len(quarter - representative) < others / 3


def unread(function: Any, *tensors: Any) -> Any:
    """Call a function under vmap, where torch's adapter cannot read values."""
    from torch.func import vmap

    results = vmap(function)(*(x[None] for x in tensors))
    return [x[0] for x in results]


@pytest.mark.framework("torch")
def test_bad_values_share_a_program(torch: Adapter) -> None:
    """Calls whose losses must be NaN share a program, and each of the other calls has its own."""
    mode, programs = torch.modes()["traced"], []
    together, *rest = sorted(groups.split_calls(mode, list(bad_calls())), key=len, reverse=True)
    assert all(isinstance(call, BadCall) and call.reads for call in together)
    assert {len(group) for group in rest} == {1}

    def run(function: Any, *tensors: Any) -> Any:
        programs.append(1)
        return unread(function, *tensors)

    outcomes = groups.check_calls(torch, mode._replace(run=run), together)
    assert len(programs) == 1
    assert sum(x.comparisons for x in outcomes) == len(together) > 10
    assert not any(x.failures for x in outcomes)


@pytest.mark.framework("torch")
@pytest.mark.parametrize("least", [1, 2])
def test_bad_value_without_nan_is_named(torch: Adapter, least: int) -> None:
    """A loss that is no NaN is a failure, also if it is a number only beside other losses."""
    mode = torch.modes()["traced"]
    group = max(groups.split_calls(mode, list(bad_calls())), key=len)

    def run(function: Any, *tensors: Any) -> Any:
        losses = unread(function, *tensors)
        return [losses[0].nan_to_num(), *losses[1:]] if len(losses) >= least else losses

    failures = [x.failures for x in groups.check_calls(torch, mode._replace(run=run), group)]
    assert "holds no NaN" in failures[0][0]
    if least == 1:  # every call alone gives a number
        assert all(failures)
    else:
        assert "only in one program with" in failures[0][0]
        assert not any(failures[1:])
