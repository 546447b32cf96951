"""Record which quirks the losses of the installed libraries have: ``make quirks``.

Run every importable loss on the probes of every quirk that concerns it, and write what it did to
unifiedloss/interop/quirks/recorded.json. Keras keeps its backend for a whole process, so each
backend has its own.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from unifiedloss.interop import LIBRARY_LOSSES
from unifiedloss.interop.diff import layout_of
from unifiedloss.interop.library_loss import KERAS_BACKENDS, Call
from unifiedloss.interop.quirks import QUIRKS, Quirk, entry
from unifiedloss.interop.quirks.quirk import RECORDED
from unifiedloss.interop.sides import Input, Outcome, Side, run_spec, side_of
from unifiedloss.spec import Categorical

PACKAGES = ("jax", "keras", "numpy", "onnxruntime", "optax", "scikit-learn", "tensorflow", "torch")

Record = dict[str, dict[str, str]]

_SETTINGS: dict[str, list[Any]] = {
    "weight": [(2.0, 0.0, 1.0), (0.0, 0.0, 0.0)],
    "weights": [(2.0, 0.0, 1.0), (0.0, 0.0, 0.0)],
    "pos_weight": [1e-9, 1e-40, (1.0, 2.0), (0.1, 2.0), (((2.0,),),)],
    "label_smoothing": [0.1],
    "ignore_index": [2],
    "ignore_class": [2],
    "epsilon": [0.0],
    "normalize": [False],
}
"""Arguments that some quirks depend on, by the parameter that a loss must have."""


def plain_calls(backend: str = "tensorflow") -> list[Call]:
    """Every loss, also with from_logits=True if it has that parameter; Keras on this backend."""
    calls = []
    for name, loss in LIBRARY_LOSSES.items():
        arguments: list[dict[str, Any]] = [{}]
        if "from_logits" in loss.parameters:
            arguments.append({"from_logits": True})
        if name == "tf.nn.weighted_cross_entropy_with_logits":
            arguments = [{"pos_weight": 1.0}]
        on = backend if loss.library == "keras" else None
        calls += [Call(name, given, on) for given in arguments]
    return [call for call in calls if side_of(call).spec is not None]


def set_calls(call: Call) -> list[Call]:
    """A plain call with the arguments that some quirks depend on."""
    loss = LIBRARY_LOSSES[call.name]
    tensorflow = loss.library == "tensorflow"
    choices = [
        {name: value}
        for name, values in _SETTINGS.items()
        # A tuple of weights for a loss of TensorFlow is the sample weights of one call.
        if name in loss.parameters and not (tensorflow and name == "weights")
        for value in values
    ]
    if {"weight", "label_smoothing"} <= loss.parameters.keys():
        choices.append({"weight": (2.0, 0.0, 1.0), "label_smoothing": 0.1})
    if loss.library == "torch" and not issubclass(loss.loss, Categorical):
        weights = ((1.0, 0.0), (0.0, 0.0), (0.1, 2.0)) if "weight" in loss.parameters else ()
        choices += [{"weight": each} for each in weights]
    if "reduction" in loss.parameters:
        names = ("weighted_sum", "weighted_mean") if tensorflow else ("sum",)
        choices += [{"reduction": name} for name in names]
    calls = [Call(call.name, {**call.arguments, **given}, call.backend) for given in choices]
    return [each for each in calls if side_of(each).spec is not None]


def probed(call: Call, quirks: Iterable[Quirk]) -> Iterator[tuple[Quirk, str | None]]:
    """Run a loss on the probes of the quirks that concern it, where its library can run them.

    Yields:
        The quirk, and the words for the outcomes of its probes; None if the loss differs from its
        spec at none of them.

    Raises:
        ValueError: a probe shows a difference, and `Quirk.shown` does not see it in the tensors.
        LookupError: the loss differs in a way for which the quirk has no sentence.
    """
    side = side_of(call)
    assert side.spec is not None
    layout = layout_of(side.spec, side.spec)
    for quirk in quirks:
        if not quirk.concerns(side.spec, call):
            continue
        outcomes = [(x, side.outcome(x)) for x in quirk.probes(layout)]
        if all(outcome.ran != "native" for _, outcome in outcomes):
            continue
        shown = [x for x, outcome in outcomes if _differs(quirk, side, x, outcome)]
        for x in shown:
            if quirk.shown_by is not None and not quirk.shown(side.spec, x):
                msg = f"{quirk.key}: {call} differs from its spec, and shown_by is false, for {x}."
                raise ValueError(msg)
        words = quirk.words(outcome for _, outcome in outcomes) if shown else None
        if words is not None:
            quirk.answer(call, words)
        yield quirk, words


def _differs(quirk: Quirk, side: Side, x: Input, outcome: Outcome) -> bool:
    assert side.spec is not None
    return outcome.ran == "native" and quirk.differ(outcome, run_spec(side.spec, x))


def observed(plain: Call, quirks: Iterable[Quirk] = QUIRKS) -> tuple[str, dict[str, str]]:
    """Probe a loss without further arguments, and with those that quirks depend on.

    Returns:
        The loss and its quirks, as in the record.

    Raises:
        ValueError: the loss has a quirk with some arguments and not with others, or two quirks have
            one name in the record.
    """
    found: dict[str, str | None] = {}
    named: dict[str, Quirk] = {}
    spec = side_of(plain).spec
    assert spec is not None
    concerned = {quirk for quirk in quirks if quirk.concerns(spec, plain)}
    # Arguments change what a loss does in many ways, so they only try the quirks that need them.
    others = [quirk for quirk in quirks if quirk.when is not None and quirk not in concerned]
    calls = [(plain, list(concerned)), *((call, others) for call in set_calls(plain))]
    for call, tried in calls:
        for quirk, words in probed(call, tried):
            if named.setdefault(quirk.key, quirk) is not quirk:
                msg = f"{quirk.key}: two quirks of {call} have this name; give one of them a case."
                raise ValueError(msg)
            if (found.setdefault(quirk.key, words) is None) != (words is None):
                msg = f"{quirk.key}: {call} has it or not, and with other arguments the opposite."
                raise ValueError(msg)
    return entry(plain), {key: words for key, words in sorted(found.items()) if words is not None}


def main() -> None:
    """Write the record, from one process per backend of Keras."""
    if len(sys.argv) > 1:
        backend = sys.argv[1]
        calls = [
            call
            for call in plain_calls(backend)
            if call.library == "keras" or backend == "tensorflow"
        ]
        print(json.dumps(dict(map(observed, calls))))
        return
    losses: Record = {}
    for backend in KERAS_BACKENDS:
        print(f"Keras on {backend} ...", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "tools.quirks", backend],
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        losses |= json.loads(done.stdout.splitlines()[-1])
    versions = {name: version_of(name) for name in PACKAGES}
    text = json.dumps({"versions": versions, "losses": dict(sorted(losses.items()))}, indent=1)
    RECORDED.write_text(f"{text}\n", encoding="utf-8")


def version_of(package: str) -> str:
    """Return a package's version, without the suffix of a build such as "+cpu"."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = importlib.metadata.version(f"{package}-cpu")
    return version.partition("+")[0]


if __name__ == "__main__":
    main()
