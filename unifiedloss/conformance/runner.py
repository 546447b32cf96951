"""Run the cases: every backend in its own process, or one adapter in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from unifiedloss import __version__, registry
from unifiedloss.adapter import Adapter, Mode
from unifiedloss.conformance import checks, combine, groups, snippets, workers
from unifiedloss.conformance.case import BadCall, Case, SoftmaxCase
from unifiedloss.conformance.cases import bad_calls
from unifiedloss.conformance.combine import CutCase
from unifiedloss.conformance.report import Failure, Report, Row, Tally
from unifiedloss.conformance.softmax import bad_softmax_calls
from unifiedloss.conformance.strength import (
    FULL,
    Share,
    Strength,
    complete_mode,
    share,
    strength_named,
)
from unifiedloss.conformance.suite import cases_with, expected_of, rounded
from unifiedloss.conformance.tolerances import plan_of
from unifiedloss.conformance.workers import Target
from unifiedloss.errors import SpecValueError
from unifiedloss.exact.graph import form
from unifiedloss.losses import ROWS
from unifiedloss.suggestion import suggestion
from unifiedloss.text import quoted

SOFTMAX = "softmax"
LOSSES = (*(row.name for row in ROWS), SOFTMAX)
"""The names under which cases are counted: the losses, and the softmax."""


class Progress(NamedTuple):
    """The progress of one backend.

    Attributes:
        backend: the label of its rows.
        mode: the current mode.
        done: the number of finished cases, in all modes.
        total: the number of cases to run, in all modes. Cases that a mode leaves out do not count.
        said: what is to be told of the last case at once; "" if nothing.
    """

    backend: str
    mode: str
    done: int
    total: int
    said: str = ""


@dataclass(frozen=True)
class Work:
    """The work of a run.

    Attributes:
        cases: each case with the oracle's result.
        bad_calls: the calls that must fail.
        modes: names of modes; None for all.
        strength: how much is run.
    """

    cases: Sequence[tuple[Case | SoftmaxCase, Any]]
    bad_calls: Sequence[BadCall | SoftmaxCase]
    modes: Sequence[str] | None = None
    strength: Strength = FULL


def run(
    backends: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    *,
    rounding: str = "native",
    strength: str = "full",
    progress: Callable[[Progress], None] | None = None,
    finished: Callable[[Row], None] | None = None,
    started: Callable[[], None] | None = None,
    max_workers: int | None = None,
) -> Report:
    """Check installed backends against the oracle, each in its own process, on the CPU.

    Args:
        backends: names ("torch"; "keras" for every backend Keras runs on) or labels of the report
            ("keras (jax)"). Default: all that are installed.
        losses: names of losses ("cross_entropy", ..., and "softmax"). Default: all.
        modes: names of modes ("eager", "jit", ...). Default: all that each backend has.
        rounding: "native", "exact", or "auto": the native cases with ``rounding="auto"``, which
            are held to the native tolerances.
        strength: "full", "test" or "quick"; see `unifiedloss.conformance.strength`.
        progress: called with the progress of each backend, before every case or group of cases.
        finished: called with each row of the report when it is complete.
        started: called once, after the arguments are checked and before the first case runs.
        max_workers: how many backends are checked at a time. Default: the number of cores.

    Raises:
        SpecValueError: a name is unknown.
        MissingBackendError: a backend in `backends` is not installed.
    """
    return run_roundings(
        (rounding,),
        backends,
        losses,
        modes,
        strength=strength,
        progress=progress,
        finished=finished,
        started=started,
        max_workers=max_workers,
    )[rounding]


def run_roundings(
    roundings: Sequence[str],
    backends: Sequence[str] | None = None,
    losses: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    *,
    strength: str = "full",
    progress: Callable[[Progress], None] | None = None,
    finished: Callable[[Row], None] | None = None,
    started: Callable[[], None] | None = None,
    max_workers: int | None = None,
) -> dict[str, Report]:
    """Do the same as `run` for several roundings, each backend in one process for all of them.

    Args:
        roundings: some of "native", "exact" and "auto".
        backends: see `run`, as for the other arguments. Progress starts anew with each rounding.

    Returns:
        A report for each rounding. The seconds of each are those of the whole run.

    Raises:
        SpecValueError: a name is unknown.
        MissingBackendError: a backend in `backends` is not installed.
    """
    start = time.monotonic()
    for rounding in roundings:
        _check_rounding(rounding)
    chosen = strength_named(strength)
    targets, absent = workers.choose(backends, every=True)
    works = {
        rounding: Work(
            expected(losses, rounding=rounding), _bad_calls(losses, rounding), modes, chosen
        )
        for rounding in roundings
    }
    if started is not None:
        started()
    reports = {
        rounding: Report(
            absent=dict(absent), rounding=rounding, strength=strength, unifiedloss=__version__
        )
        for rounding in roundings
    }
    modes_of: dict[str, list[str]] = {}
    position = {target.label: "it had not begun" for target in targets}
    unfinished = {target.label: list(roundings) for target in targets}
    tasks: list[tuple[Target, dict[str, Any]]] = [
        (target, {"job": "conform"}) for target in targets
    ]
    for message in workers.work(tasks, works, max_workers):
        label, content = message.target.label, message.content
        if content is None:
            if message.death:
                for rounding in unfinished[label]:
                    reports[rounding].errors[label] = f"{position[label]}; {message.death}"
        elif content["event"] == "modes":
            modes_of[label] = content["modes"]
        elif content["event"] == "row":
            rows = reports[content["rounding"]].rows
            rows.append(Row.from_dict(content["row"]))
            if finished is not None:
                finished(rows[-1])
        elif content["event"] == "absent":
            reports[content["rounding"]].absent.update(content["modes"])
        elif content["event"] == "rounding":
            unfinished[label].remove(content["finished"])
        else:
            position[label] = f"it was at {content['case']!r} in mode {content['mode']!r}"
            if progress is not None:
                progress(Progress(label, content["mode"], content["done"], content["total"]))
    order = {target.label: i for i, target in enumerate(sorted(targets, key=workers.by_name))}
    for report in reports.values():
        report.rows.sort(key=lambda row: order[row.backend])
        report.seconds = time.monotonic() - start
    if modes is not None and not any(report.errors for report in reports.values()):
        ordered = sorted(modes_of, key=order.__getitem__)
        _check_modes(modes, {label: modes_of[label] for label in ordered})
    return reports


def _check_rounding(rounding: str) -> None:
    if rounding not in ("native", "exact", "auto"):
        msg = f"rounding must be 'native', 'exact' or 'auto', got {quoted(rounding)}."
        raise SpecValueError(msg)


def _check_modes(modes: Sequence[str], modes_of: dict[str, list[str]]) -> None:
    """Refuse a mode that no backend has, because the run would pass without checking it."""
    known = dict.fromkeys(mode for names in modes_of.values() for mode in names)
    for mode in modes:
        if mode not in known:
            each = "; ".join(f"{label} has {', '.join(names)}" for label, names in modes_of.items())
            msg = (
                f"no backend that was run has the mode {quoted(mode)}: "
                f"{each}.{suggestion(mode, known)}"
            )
            raise SpecValueError(msg)


def _checked_losses(losses: Sequence[str] | None) -> set[str]:
    for name in losses or ():
        if name not in LOSSES:
            msg = (
                f"there is no loss {quoted(name)}; known are {', '.join(LOSSES)}."
                f"{suggestion(name, LOSSES)}"
            )
            raise SpecValueError(msg)
    return set(LOSSES if losses is None else losses)


def expected(
    losses: Sequence[str] | None = None,
    cases: Sequence[Case | SoftmaxCase] | None = None,
    *,
    rounding: str = "native",
) -> list[tuple[Case | SoftmaxCase, Any]]:
    """Return each case with the oracle's result.

    Args:
        losses: names of losses. Default: all.
        cases: the cases to choose from. Default: all of the suite.
        rounding: "native", "exact", or "auto": the native cases with ``rounding="auto"``, which
            are held to the native tolerances.
    """
    wanted = _checked_losses(losses)
    if cases is None:
        return [(case, expected_of(case)) for case in cases_with(rounding) if _loss(case) in wanted]
    chosen = [rounded(case, rounding) for case in cases if _loss(case) in wanted]
    return [(case, case.expected()) for case in chosen if case is not None]


def _bad_calls(
    losses: Sequence[str] | None, rounding: str = "native"
) -> list[BadCall | SoftmaxCase]:
    wanted = _checked_losses(losses)
    every: Sequence[BadCall | SoftmaxCase] = (*bad_calls(), *bad_softmax_calls())
    return [
        call
        for call in (rounded(call, rounding) for call in every if _loss(call) in wanted)
        if call is not None
    ]


def _loss(case: Case | BadCall | SoftmaxCase) -> str:
    """The name under which a case is counted."""
    return SOFTMAX if isinstance(case, SoftmaxCase) else case.spec.name


def check_adapter(
    adapter: Adapter,
    *,
    losses: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    cases: Sequence[Case | SoftmaxCase] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Check one adapter in this process, for example in the tests of a third-party adapter.

    Args:
        adapter: the adapter.
        losses: names of losses. Default: all.
        modes: names of the adapter's modes. Default: all.
        cases: run only these, without the calls that must fail. Default: all of the suite.
        progress: called with the adapter's progress.

    Raises:
        SpecValueError: a name is unknown.
    """
    start = time.monotonic()
    calls = _bad_calls(losses) if cases is None else []
    report = Report(unifiedloss=__version__)
    known = adapter.modes()
    for mode in modes or ():
        if mode not in known:
            msg = (
                f"the adapter {adapter.name!r} has no mode {mode!r}; it has {', '.join(known)}."
                f"{suggestion(mode, known)}"
            )
            raise SpecValueError(msg)

    def note(mode: str, _: str, done: int, total: int) -> None:
        if progress is not None:
            progress(Progress(adapter.name, mode, done, total))

    work = Work(expected(losses, cases), calls, modes)
    target = Target(adapter.name, adapter.name)
    report.absent.update(_absent_modes(adapter, target, modes))
    report.rows.extend(check(adapter, target, work, note))
    report.seconds = time.monotonic() - start
    return report


def assert_conforms(
    adapter: Adapter, *, losses: Sequence[str] | None = None, modes: Sequence[str] | None = None
) -> None:
    """Check one adapter in this process, and raise an error with every failure and its snippet.

    Args:
        adapter: the adapter.
        losses: names of losses. Default: all.
        modes: names of the adapter's modes. Default: all.

    Raises:
        AssertionError: a case failed, or nothing was compared.
    """
    report = check_adapter(adapter, losses=losses, modes=modes)
    if not report.ok:
        raise AssertionError(report.summary())


def check(
    adapter: Adapter,
    target: Target,
    work: Work,
    note: Callable[[str, str, int, int], None] = lambda *_: None,
) -> Iterator[Row]:
    """Check an adapter, mode by mode, and yield each mode's row.

    Args:
        adapter: the adapter.
        target: the backend in its environment; its label names the rows.
        work: what is to be checked.
        note: called with the mode, the next case, the number of finished cases and the total.
    """
    dtypes = set(adapter.dtypes())
    planned = []
    for name, mode in adapter.modes().items():
        if mode.missing or (work.modes is not None and name not in work.modes):
            continue
        row = Row(target.label, _version(adapter, target), name)
        shares = {
            exact: _share(work, adapter, name, target, exact=exact) for exact in (False, True)
        }
        if set(shares.values()) == {Share.NOTHING}:
            continue
        cases = []
        for case, reference in work.cases:
            absent = sorted(case.dtypes() - dtypes)
            if absent:
                reason = f"no {absent[0]}"
                row.not_held[reason] = row.not_held.get(reason, 0) + 1
            elif _is_refused(adapter, case):
                row.left_out += 1  # JAX refuses float64; the row with 64 bits runs the case
            elif (target.wide and not case.is_wide()) or _is_left_out(
                case, reference, adapter, name, target, work.strength, shares[_is_exact(case)]
            ):
                row.left_out += 1
            else:
                cases.append((case, reference))
        calls = [
            call
            for call in work.bad_calls
            if adapter.computes
            and not (_reads(call) and _is_spared(call, mode, work.strength, shares))
        ]
        if not (adapter.computes or cases):
            continue  # no case of the chosen losses is in pieces
        row.left_out += len(work.bad_calls) - len(calls)
        planned.append((row, mode, cases, calls))
    total = sum(len(cases) + len(calls) for _, _, cases, calls in planned)
    done = 0
    for row, mode, cases, calls in planned:
        start, processor_start = time.monotonic(), time.process_time()
        counting = _counting(mode, row)
        for group in _groups(adapter, mode, cases, work.strength):
            note(row.mode, _name([case for case, _ in group]), done, total)
            done += len(group)
            for (case, reference), outcome in zip(
                group, _check_group(adapter, counting, group), strict=True
            ):
                _count(
                    row,
                    case,
                    outcome,
                    partial(snippets.of_case, adapter, target, row.mode, case, reference),
                )
        together = (
            groups.split_calls(mode, calls) if work.strength.grouped else [[x] for x in calls]
        )
        for few in together:
            note(row.mode, _name(few), done, total)
            done += len(few)
            for call, outcome in zip(few, groups.check_calls(adapter, counting, few), strict=True):
                snippet = partial(snippets.of_bad_call, adapter, target, row.mode, call)
                _count(row, call, outcome, snippet)
        row.seconds = time.monotonic() - start
        row.processor_seconds = time.process_time() - processor_start
        yield row


def _name(group: Sequence[Case | SoftmaxCase | BadCall]) -> str:
    """The name of a group in messages about the progress."""
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{group[0].name}{more}"


def _absent_modes(adapter: Adapter, target: Target, modes: Sequence[str] | None) -> dict[str, str]:
    """What this machine lacks for each mode that is asked for and cannot run, by its label."""
    return {
        f"{target.label}, {name}": mode.missing
        for name, mode in adapter.modes().items()
        if mode.missing and (modes is None or name in modes)
    }


def _share(work: Work, adapter: Adapter, name: str, target: Target, *, exact: bool) -> Share:
    """Which cases a mode runs; a mode requested by name runs at least the representative ones."""
    usual = share(work.strength, adapter, name, by_keras=target.on is not None, exact=exact)
    return Share.REPRESENTATIVE if usual is Share.NOTHING and work.modes is not None else usual


def _groups(
    adapter: Adapter, mode: Mode, cases: Sequence[groups.Checked], strength: Strength
) -> list[list[groups.Checked]]:
    """Divide the cases into groups that are checked together; a refused case is checked alone."""
    if not strength.grouped or not groups.is_grouped(adapter, mode):
        return [[checked] for checked in cases]

    def is_alone(case: Case | SoftmaxCase) -> bool:
        return isinstance(case, CutCase) or _refuses(mode, case)

    return [
        *([checked] for checked in cases if is_alone(checked[0])),
        *groups.split([checked for checked in cases if not is_alone(checked[0])]),
    ]


def _check_group(
    adapter: Adapter, mode: Mode, group: Sequence[groups.Checked]
) -> list[checks.CheckResult]:
    first, expected = group[0]
    if isinstance(first, CutCase):
        return [combine.check(adapter, mode, first, expected)]
    if isinstance(first, Case) and _refuses(mode, first):
        return [checks.check_refused(adapter, mode, first)]
    return groups.check(adapter, mode, group)


def _refuses(mode: Mode, case: Case | SoftmaxCase) -> bool:
    return _is_exact(case) and not mode.exact


def _counting(mode: Mode, row: Row) -> Mode:
    """Return the mode with a `run` that counts the programs it compiles.

    A mode that raises is eager, and compiles none.
    """
    if mode.raises:
        return mode

    def run(function: Callable[..., Any], *tensors: Any) -> Any:
        row.programs += 1
        return mode.run(function, *tensors)

    return mode._replace(run=run)


def _is_refused(adapter: Adapter, case: Case | SoftmaxCase) -> bool:
    """Whether a case names a dtype that the framework has, but does not compute in."""
    named = getattr(case.spec, "dtype", None) if isinstance(case, Case) else None
    return named is not None and not adapter.computes_in(named)


def _is_left_out(
    case: Case | SoftmaxCase,
    reference: Any,
    adapter: Adapter,
    name: str,
    target: Target,
    strength: Strength,
    share: Share,
) -> bool:
    """Whether a mode leaves a case out."""
    if not (adapter.computes or isinstance(case, CutCase)):
        return True
    mode, exact = adapter.modes()[name], _is_exact(case)
    if isinstance(case, CutCase) and _refuses(mode, case):
        return True  # such a mode refuses all totals
    if isinstance(case, Case) and _refuses(mode, case) and not _shows_refusal(case):
        # All refusals are alike, and the cases that are not refused take too long to compile.
        return True
    complete = name == complete_mode(adapter, exact=exact)
    if isinstance(case, CutCase) and not (mode.raises or complete) and case.kind != "cut":
        return True  # nothing of it is compiled
    by_keras = target.on is not None and case.of_backend and not exact
    # A case in pieces compiles three programs, which the framework below Keras has compiled too.
    again = target.on is not None or (mode.costly and strength != FULL)
    if isinstance(case, CutCase) and again and not mode.raises:
        return True
    if share.has(case, name) and (complete or not by_keras):
        return False
    # Run bad values in every mode that raises, because no other mode shows whether they raise.
    return not checks.must_raise(mode, reference)


def _is_spared(
    call: BadCall | SoftmaxCase, mode: Mode, strength: Strength, shares: dict[bool, Share]
) -> bool:
    """Whether a mode leaves out a bad value, which it would have to compile."""
    exact = _is_exact(call)
    representative = strength != FULL and shares[exact] in (
        Share.REPRESENTATIVE,
        Share.QUARTER_OF_REPRESENTATIVE,
    )
    return mode.costly or (representative and not mode.raises) or (exact and not mode.exact)


def _shows_refusal(case: Case) -> bool:
    """Whether a case represents those of exact mode that need a host callback."""
    return case.representative and form.why_not(plan_of(case)) is not None


def _is_exact(case: Case | BadCall | SoftmaxCase) -> bool:
    return not isinstance(case, SoftmaxCase) and case.spec.rounding == "exact"


def _reads(call: BadCall | SoftmaxCase) -> bool:
    return isinstance(call, BadCall) and call.reads


def _count(
    row: Row,
    case: Case | BadCall | SoftmaxCase,
    outcome: checks.CheckResult,
    snippet: Callable[[], str],
) -> None:
    loss = _loss(case)
    for tally in (row.total, row.losses.setdefault(loss, Tally())):
        tally.add(
            outcome.comparisons,
            failed=bool(outcome.failures),
            value_ulps=outcome.value_distance,
            gradient_ulps=outcome.gradient_distance,
        )
    if outcome.failures:
        row.failures.append(Failure(case.name, loss, tuple(outcome.failures), snippet()))


def _version(adapter: Adapter, target: Target) -> str:
    if target.on is None:
        return adapter.version()
    return f"{adapter.version()}, {target.on} {registry.adapter(target.on).version()}"


def conform(works: dict[str, Work], task: dict[str, Any], send: Callable[..., None]) -> None:
    """Check one backend in each rounding, and send its progress and its rows: a worker's job."""
    target: Target = task["target"]

    def note(mode: str, case: str, done: int, total: int) -> None:
        send(event="at", mode=mode, case=case, done=done, total=total)

    adapter = registry.adapter(target.backend)
    send(event="modes", modes=list(adapter.modes()))
    for rounding, work in works.items():
        send(event="absent", rounding=rounding, modes=_absent_modes(adapter, target, work.modes))
        for row in check(adapter, target, work, note):
            send(event="row", rounding=rounding, row=row.to_dict())
        send(event="rounding", finished=rounding)
