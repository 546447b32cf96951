"""The inputs of the suite under a spec that is given: for a loss that is somebody else's.

A case has a spec of its own. `loss_cases` puts the given spec in its place and keeps the tensors,
so that the oracle says what the given loss must be at every edge that the suite knows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from unifiedloss.conformance import tolerances
from unifiedloss.conformance.case import Array, Case, rules_of
from unifiedloss.conformance.cases import all_cases, cases_of
from unifiedloss.conformance.tolerances import plan_of
from unifiedloss.errors import SpecValueError, UnifiedLossError
from unifiedloss.floats import FORMATS
from unifiedloss.interop import from_native
from unifiedloss.shapes import class_axis, target_kind
from unifiedloss.spec import Categorical, Loss
from unifiedloss.suggestion import suggestion
from unifiedloss.text import quoted

KEYWORDS = ("sample_weight", "mask")
"""The arguments beside predictions and targets that a function may take."""

KINDS = ("index", "dense")
"""The kinds of targets of losses with classes."""

_CLOSE_TO_ONE = 1e-3
"""Rounding in any dtype leaves a sum of probabilities this close to 1."""

_NEEDS = {
    "class-weight-zero": "class_weights",
    "epsilon-presets": "epsilon",
    "epsilon-tie": "epsilon",
    "gradient-weights": "class_weights",
    "index-is-one-hot": "class_weights",
    "label-weights": "class_weights",
    "product-of-weights": "element_weights",
    "tiny-smoothing": "label_smoothing",
}
"""Rules that no input proves while the spec has the default of this field."""


def loss_cases(
    spec: Any,
    *,
    dtypes: Collection[str] = ("float32",),
    targets: str | None = None,
    keywords: Collection[str] = (),
    without: Collection[str] = (),
) -> list[Case]:
    """Return the cases of the suite that a loss of this spec can run, with this spec.

    They are the cases of the spec's loss whose predictions are of the spec's kind (logits or
    probabilities), and whose shapes and targets the spec accepts. The class axis is moved to where
    the spec has it, and labels that the case ignores become one that the spec ignores. Weights and
    masks stay where the function takes them; without them, cases chosen by hand are left out, and
    the others run unweighted. Of two cases with the same tensors, one remains. `rules` of a case
    are the rules that its tensors prove under the given spec, by their ids on the page Rules.

    Args:
        spec: what the loss claims to compute: a spec, or whatever `unifiedloss.from_native` reads.
        dtypes: the dtypes of the predictions.
        targets: "index" or "dense", for a loss with classes that takes only such targets.
        keywords: which of "sample_weight" and "mask" the function takes.
        without: rules in which the function may differ: the cases that prove one are left out.

    Raises:
        SpecValueError: a dtype, a kind of targets, a keyword or a rule is unknown, or no case is
            left.
        SpecTypeError, UnsupportedError: `spec` describes no loss; see `unifiedloss.from_native`.
    """
    spec = from_native(spec)
    _check("dtypes", dtypes, FORMATS)
    _check("keywords", keywords, KEYWORDS)
    if targets is not None:
        _check("targets", [targets], KINDS)
    cases = _cases_of(spec.name)
    if without:
        _check_rules(without, {rule for case in all_cases() for rule in case.rules})
    found: dict[Any, Case] = {}
    for case in cases:
        if case.made is not None or case.dtype not in dtypes:
            continue
        made = _under(spec, case, targets, keywords)
        if made is None or not made.dtypes() <= {*dtypes, "float32"}:
            continue
        key = _key(made)
        if key in found:
            rules = dict.fromkeys((*found[key].rules, *made.rules))
            made = dataclasses.replace(found[key], rules=tuple(rules))
        found[key] = made
    kept = [case for case in found.values() if not set(case.rules) & set(without)]
    if not kept and without:
        msg = f"every case proves one of {', '.join(without)}; leave out fewer rules."
        raise SpecValueError(msg)
    if not kept:
        msg = (
            f"no case of the suite fits {spec!r}: class_weights and element_weights must have the "
            "length of an axis of its cases; most have 3 classes."
        )
        raise SpecValueError(msg)
    return kept


_cases_of = functools.cache(cases_of)
"""The cases of a loss; to make them takes longer than to choose among them."""


def _check(name: str, given: Collection[str], known: Collection[str]) -> None:
    for each in given:
        if each not in known:
            names = ", ".join(map(repr, known))
            msg = f"{name} must be of {names}, got {quoted(each)}.{suggestion(each, known)}"
            raise SpecValueError(msg)


def _check_rules(given: Collection[str], known: Collection[str]) -> None:
    for rule in given:
        if rule not in known:
            msg = (
                f"without: no case proves a rule {quoted(rule)}; the page Rules has the ids of all."
                f"{suggestion(rule, known)}"
            )
            raise SpecValueError(msg)


def _under(spec: Loss, case: Case, kind: str | None, keywords: Collection[str]) -> Case | None:
    """The case with the given spec; None if the spec does not accept its tensors."""
    if getattr(case.spec, "from_logits", None) is not getattr(spec, "from_logits", None):
        return None
    case = _plain(case, keywords)
    if any(getattr(case, name) is not None and name not in keywords for name in KEYWORDS):
        return None
    try:
        if isinstance(spec, Categorical):
            if kind is not None and target_kind(case.targets.dtype.name) != kind:
                return None
            case = _relabelled(_moved(case, spec), spec)
        # Only the values of these are compared, so that the mean of nothing needs no error.
        case = dataclasses.replace(case, spec=spec)
        positions = plan_of(case).positions
    except UnifiedLossError:
        return None
    upstream = case.upstream
    if isinstance(upstream, np.ndarray) != (spec.reduction == "none") or (
        isinstance(upstream, np.ndarray) and upstream.shape != positions
    ):
        upstream = None
    case = dataclasses.replace(case, upstream=upstream)
    return dataclasses.replace(case, rules=tuple(_rules(case)))


def _plain(case: Case, keywords: Collection[str]) -> Case:
    """The case; if it was not chosen by hand, without what a function need not take.

    These are companions for which it has no keyword, and targets of other dtypes than int64 and
    the usual floating one, for which there are cases chosen by hand.
    """
    if case.name.startswith("edge/"):
        return case
    changed: dict[str, Any] = {name: None for name in KEYWORDS if name not in keywords}
    if not isinstance(case.spec, Categorical) or case.targets.dtype.kind == "f":
        wide = case.dtype == "float64"
        changed["targets"] = case.targets.astype("float64" if wide else "float32")
    elif case.targets.dtype.kind in "iu":
        changed["targets"] = case.targets.astype(np.int64)
    return dataclasses.replace(case, **changed)


def _moved(case: Case, spec: Categorical) -> Case:
    """The case with its class axis where the spec has it."""
    shape = case.predictions.shape
    old, new = (class_axis(each.axis, shape) for each in (case.spec, spec))  # type: ignore[attr-defined]
    if old == new:
        return case
    predictions = np.moveaxis(case.predictions, old, new)
    targets = case.targets
    if targets.shape == shape:
        targets = np.moveaxis(targets, old, new)
    return dataclasses.replace(
        case, predictions=np.ascontiguousarray(predictions), targets=np.ascontiguousarray(targets)
    )


def _relabelled(case: Case, spec: Loss) -> Case:
    """The case with a label that the given spec ignores wherever its own spec ignores one."""
    wanted = getattr(spec, "ignore_index", None)
    ignored = getattr(case.spec, "ignore_index", None)
    kind = case.targets.dtype
    if not wanted or not ignored or kind.kind not in "iu":
        return case
    new = wanted[0]
    if not np.iinfo(kind).min <= new <= np.iinfo(kind).max:
        return case
    targets = case.targets.copy()
    for label in ignored:
        if label not in wanted and np.iinfo(kind).min <= label <= np.iinfo(kind).max:
            targets[case.targets == label] = new
    return dataclasses.replace(case, targets=targets)


def _rules(case: Case) -> Iterator[str]:
    """The rules that a case proves under its present spec, each once."""
    spec = case.spec
    changed = {
        name for name, field in spec.declarations.items() if getattr(spec, name) != field.default
    }
    fields = {name.replace("_", "-"): name for name in spec.declarations}
    weighted = case.sample_weight is not None or case.mask is not None
    ignored = _ignores(case)
    # Whatever the values of these fields, the tensors decide whether they matter.
    by_tensors = {
        "reduction": "reduction" in case.rules,
        "divisor": spec.reduction == "mean"
        and (weighted or ignored or bool({"class_weights", "element_weights"} & changed)),
        "on-empty": spec.reduction == "mean" and _is_empty(case),
        "axis": plan_of(case).axis not in (None, case.predictions.ndim - 1),
        "ignore-index": ignored,
        "dropped": ignored or case.mask is not None,
        "leading-weights": weighted,
        "gradient-logits": "gradient-logits" in case.rules or _is_unnormalized(case),
        "infinite-logits": _has_infinity(case) and isinstance(spec, Categorical),
        "infinite-binary-logits": _has_infinity(case) and not isinstance(spec, Categorical),
    }
    for rule in dict.fromkeys((*case.rules, *rules_of(case), *by_tensors)):
        if rule in by_tensors:
            kept = by_tensors[rule]
        elif rule in fields:
            kept = fields[rule] in changed
        elif rule in ("zero-weighted", "negative-weights"):
            kept = case.sample_weight is not None
        else:
            kept = rule not in _NEEDS or _NEEDS[rule] in changed
        if kept:
            yield rule


def _is_unnormalized(case: Case) -> bool:
    """Whether a cross-entropy from logits has dense targets of another sum than 1."""
    plan = plan_of(case)
    if not plan.from_logits or plan.kind != "dense" or plan.axis is None:
        return False
    with np.errstate(invalid="ignore"):
        sums = case.targets.sum(plan.axis)[tolerances.kept(case, plan)]
    return bool((np.abs(sums - 1) > _CLOSE_TO_ONE).any())


def _has_infinity(case: Case) -> bool:
    """Whether a position that counts has an infinite logit."""
    if not getattr(case.spec, "from_logits", False):
        return False
    plan = plan_of(case)
    counts = tolerances.kept(case, plan)
    if plan.axis is not None:
        counts = np.expand_dims(counts, plan.axis)
    return bool((np.isinf(case.predictions) & counts).any())


def _is_empty(case: Case) -> bool:
    """Whether the mean of the case divides by 0."""
    with np.errstate(all="ignore"):
        return tolerances.divisor_terms(case, plan_of(case))[0] == 0


def _ignores(case: Case) -> bool:
    labels = getattr(case.spec, "ignore_index", None) or ()
    return case.targets.dtype.kind in "iu" and any(
        bool((case.targets == label).any()) for label in labels
    )


def _key(case: Case) -> Any:
    """What two cases with the same tensors share."""
    tensors = (case.predictions, case.targets, case.sample_weight, case.mask)
    upstream: Any = case.upstream
    if isinstance(upstream, np.ndarray):
        upstream = _bits(upstream)
    return case.dtype, upstream, *(None if x is None else _bits(x) for x in tensors)


def _bits(x: Array) -> tuple[Any, ...]:
    return x.shape, x.dtype.str, x.tobytes()
