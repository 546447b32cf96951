"""Evaluate a loss over files of any size, in blocks of rows.

The totals of the blocks are added, so the memory does not depend on the files. With
``rounding="exact"`` the loss has the bits of the call on all rows, whatever the blocks; natively
the terms are added in float64.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from unifiedloss import auto_rounding, registry
from unifiedloss.auto_rounding import Setting
from unifiedloss.errors import ShapeError, SpecValueError
from unifiedloss.evaluation.blocks import Progress, sums_over
from unifiedloss.evaluation.groups import Groups, Key
from unifiedloss.evaluation.sums import Sums, sums_of
from unifiedloss.exact import pieces
from unifiedloss.inputs import Signature
from unifiedloss.notebook import Shown
from unifiedloss.plan import Plan, resolve
from unifiedloss.readers.files import Files, Source
from unifiedloss.spec import Loss

__all__ = ["Evaluation", "Summary", "evaluate"]


@dataclass(frozen=True)
class Summary:
    """The loss of some rows.

    Attributes:
        loss: the loss in nats (squared units for the squared error); NaN if a value is bad.
        divisor: what the mean divides by; None for a sum, and if a value is bad.
        positions: the number of positions of the per-position loss.
        dropped: how many of them a mask or an ignored label drops.
        bad: how many hold a bad value.
        first_bad: the first bad value and what is wrong with it; None if there is none.
        perplexity: exp(loss), for a mean cross-entropy without smoothing and scale; else None.
    """

    loss: float
    divisor: float | None
    positions: int
    dropped: int
    bad: int
    first_bad: str | None
    perplexity: float | None

    def to_dict(self) -> dict[str, Any]:
        """The numbers by their names; those that are not finite are text, as JSON has none."""
        return {name: _for_json(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Evaluation(Shown):
    """The result of `evaluate`.

    Attributes:
        spec: the loss.
        arrays: the shape and dtype of each array.
        total: the loss of all rows.
        groups: the loss of each group, in the order of the groups; None without groups.
        seconds: how long it took.
    """

    spec: Loss
    arrays: dict[str, Signature]
    total: Summary
    groups: dict[Key, Summary] | None
    seconds: float

    @property
    def mean_of_groups(self) -> float | None:
        """The mean of the groups' losses, in which each counts the same; None without groups.

        A trainer that averages the losses of devices or micro-batches has this number.
        """
        if not self.groups:
            return None
        with np.errstate(all="ignore"):
            return float(np.mean([each.loss for each in self.groups.values()]))

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON has it."""
        made: dict[str, Any] = {
            "spec": self.spec.to_dict(),
            "arrays": {
                name: {"shape": list(each.shape or ()), "dtype": each.dtype}
                for name, each in self.arrays.items()
            },
            **self.total.to_dict(),
            "seconds": self.seconds,
        }
        if self.groups is not None:
            made["mean_of_groups"] = _for_json(self.mean_of_groups)
            made["groups"] = [{"group": key, **each.to_dict()} for key, each in self.groups.items()]
        return made


def evaluate(
    spec: Loss,
    files: Files,
    *,
    rows: int | None = None,
    progress: Progress | None = None,
    cluster: str | None = None,
) -> Evaluation:
    """Evaluate a loss over files, block by block.

    Args:
        spec: a mean or a sum.
        files: where the predictions, targets, sample weights, mask and groups lie.
        rows: the rows of a block; the default makes blocks of 4 MiB of predictions.
        progress: called after each block with the rows that are done and the rows in all.
        cluster: the address of a running dask cluster, which evaluates the blocks; its workers
            read the files by the same paths.

    Raises:
        FileError: a file cannot be read, or changes while it is read.
        ShapeError, DTypeError: the arrays do not fit the loss.
        SpecValueError: the reduction is "none".
        EmptyMeanError: the divisor is 0, under ``on_empty="error"``.
        UnsupportedError: there are more than 10^6 groups.
    """
    started = time.perf_counter()
    with files.open() as source:
        spec = spec.rounded(check(spec, source).rounding)
        found: Sums | Groups
        if cluster is None:
            found = sums_over(spec, source, source.spans(rows), progress)
        else:
            from unifiedloss.evaluation.cluster import sums_on

            found = sums_on(cluster, spec, source, rows, progress)
        whole = Sums()
        if isinstance(found, Groups) and not len(found):
            whole = sums_of(spec, source.read(0, 0).arrays, 0)  # there are no rows
        source.check_unchanged()
        arrays = {name: source.signature(name) for name in source.columns}
    groups = None
    if isinstance(found, Groups):
        summaries = {key: _summary(spec, sums) for key, sums in found}
        groups = dict(sorted(summaries.items()))
        for _, sums in found:
            whole += sums
        found = whole
    known: Any = arrays
    total = _summary(spec, found)
    return Evaluation(spec, known, total, groups, time.perf_counter() - started)


def check(spec: Loss, source: Source) -> Plan:
    """Refuse a loss and files that do not fit, before any row is read; return the whole plan."""
    if spec.reduction == "none":
        msg = (
            "reduction='none' gives a number for each position, and evaluate gives one for all; "
            "use reduction 'mean' or 'sum'."
        )
        raise SpecValueError(msg)
    signatures: Any = [source.signature(name) for name in ("predictions", "targets")]
    signatures += [source.signature(name) for name in ("sample_weight", "mask")]
    plan = auto_rounding.planned(spec, Setting("numpy"), lambda known: resolve(known, *signatures))
    shape = source.columns["predictions"].shape
    whole = [plan.axis == 0, plan.average_last_axis and len(shape) == 1]
    weights = np.shape(getattr(spec, "element_weights", None) or ())
    whole.append(len(weights) == len(shape) and weights[0] > 1)
    pos_weight = isinstance(plan.pos_weight, tuple) and plan.pos_weight_axis % len(shape) == 0
    if any(whole) or pos_weight:
        msg = (
            f"the predictions {shape} are read in blocks of rows, along their first axis, and the "
            "loss needs that axis whole: it is the class axis, or the weights run along it; save "
            "the arrays with the positions first."
        )
        raise ShapeError(msg)
    return plan


def _summary(spec: Loss, sums: Sums) -> Summary:
    """The numbers of sums."""
    numpy = registry.adapter("numpy")
    positions, dropped, bad = sums.counts
    loss, divisor = math.nan, None
    if not bad:
        assert sums.totals is not None
        loss = float(numpy.result(spec, sums.totals))
        divisor = _divisor(spec, sums.totals)
    first = None if sums.first is None else sums.first.message
    perplexity = None
    if _has_perplexity(spec) and not bad:
        try:
            perplexity = math.exp(loss)
        except OverflowError:
            perplexity = math.inf
    return Summary(loss, divisor, positions, dropped, bad, first, perplexity)


def _divisor(spec: Loss, totals: Any) -> float | None:
    if spec.reduction != "mean":
        return None
    if spec.rounding == "exact":
        return float(pieces.divisor_in_totals(totals))
    return float(totals[1])


def _has_perplexity(spec: Any) -> bool:
    return (
        spec.reduction == "mean"
        and spec.name in ("cross_entropy", "negative_log_likelihood")
        and spec.scale == 1.0
        and not getattr(spec, "label_smoothing", 0.0)
    )


def _for_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
