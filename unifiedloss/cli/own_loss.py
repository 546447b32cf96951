"""``conform --loss package.module:function``: check a loss function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from unifiedloss.cli.output import check_folder, err, fail, print_text, write_file
from unifiedloss.cli.specs import loss_text
from unifiedloss.errors import UnifiedLossError

if TYPE_CHECKING:
    from unifiedloss.conformance import Progress


def is_named(losses: Sequence[str] | None, own: Mapping[str, Any]) -> bool:
    """Whether a function is named; refuses the options that only concern a function without one."""
    if any(":" in name for name in losses or ()):
        return True
    for name, value in own.items():
        if value not in (None, []):
            fail(f"--{name} concerns a loss function of yours: --loss package.module:function.")
    return False


def check(
    losses: Sequence[str],
    backends: Sequence[str],
    modes: Sequence[str],
    json: Path | None,
    own: Mapping[str, Any],
    others: Mapping[str, Any],
    progress: Callable[[int], Any],
) -> NoReturn:
    """Check the function, print what differs, and end the command.

    Args:
        losses: the values of --loss: the function alone.
        backends: the values of --backend: one.
        modes: the values of --mode: at most one.
        json: the file for the report.
        own: the options that only concern a function, by name.
        others: the options that do not concern it, by name; None where they are not given.
        progress: a context manager that draws the progress of so many backends.
    """
    from unifiedloss import conformance
    from unifiedloss.conformance.own_loss import SECONDS

    check_folder(json)
    for name, value in others.items():
        if value:
            fail(f"--{name} does not concern a loss function; leave it out.")
    if len(losses) > 1:
        fail("one loss function is checked at a time; give --loss once.")
    if not own["as"]:
        fail("--as is missing: a spec, or a loss of another library, that the function computes.")
    if len(backends) != 1:
        fail("give --backend once: the framework whose tensors the function takes.")
    if len(modes) > 1:
        fail("give --mode at most once.")
    try:
        with progress(1) as (note, _):

            def told(at: Progress) -> None:
                note(at)
                if at.said:
                    print_text(f"{at.done} of {at.total}: {at.said}", console=err)

            report = conformance.check_loss(
                losses[0],
                loss_text(own["as"]),
                backends[0],
                dtypes=own["dtype"] or ("float32",),
                targets=own["targets"],
                without=own["without"] or (),
                mode=modes[0] if modes else "eager",
                seconds=own["seconds"] or SECONDS,
                progress=told,
            )
    except UnifiedLossError as error:
        fail(error)
    if json is not None:
        write_file(json, report.to_json() + "\n")
    most = 3 if own["failures"] is None else own["failures"]
    print_text(report.summary(most=most))
    print_text(f"{report.seconds:.0f} s", console=err)
    raise typer.Exit(0 if report.ok else 1)
