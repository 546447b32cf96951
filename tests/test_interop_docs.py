"""docs/switching.md has the tables that the code generates: losses, refusals and deviations.

If it differs, ``python -m tests.rewrite_page docs/switching.md`` updates its tables and outputs.
"""

from __future__ import annotations

import ast
import re
import traceback
from pathlib import Path
from typing import Any

import pytest

import unifiedloss as ul
from unifiedloss.interop import LIBRARIES, LIBRARY_LOSSES, Call, spec_of
from unifiedloss.interop.library_loss import KERAS_BACKENDS
from unifiedloss.interop.quirks import QUIRKS, keyed
from unifiedloss.interop.sides import side_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "switching.md"
INTEROP = ROOT / "unifiedloss" / "interop"
READING = [INTEROP / "pos_weight.py", *INTEROP.glob("onnx*.py")]
"""Code of the tables that refuses to read a loss. The other refusals are data of the tables."""

REFUSED = [
    "torch.nn.SmoothL1Loss(beta=0)",
    "torch.nn.BCEWithLogitsLoss(pos_weight=[[1, 2], [3, 4]])",
    'keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")',
    'keras.losses.MeanSquaredError(dtype="float16")',
    'keras.losses.MeanSquaredError(dtype="int32")',
    'keras[jax].losses.MeanSquaredError(dtype="float64")',
    "keras.losses.SparseCategoricalCrossentropy(axis=1)",
    "keras.losses.CategoricalCrossentropy(axis=1, label_smoothing=0.1)",
    "keras.losses.BinaryCrossentropy(axis=1)",
    "keras[numpy].losses.BinaryCrossentropy(from_logits=True)",
    "tf.nn.weighted_cross_entropy_with_logits",
    "functools.partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=[[1, 2], [3, 4]])",
    "functools.partial(tf.compat.v1.losses.mean_squared_error, weights=[1, 2])",
    "functools.partial(tf.compat.v1.losses.mean_squared_error, weights=0)",
    "functools.partial(optax.losses.softmax_cross_entropy, where=True)",
    "functools.partial(optax.losses.softmax_cross_entropy, axis=(0, 1))",
    "functools.partial(sklearn.metrics.log_loss, labels=[0, 1])",
    'functools.partial(sklearn.metrics.mean_squared_error, multioutput="raw_values")',
    "functools.partial(sklearn.metrics.mean_squared_error, multioutput=[[0.3, 0.7]])",
    (
        'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "labels"], '
        '["loss", "log_probabilities"])'
    ),
    (
        '[onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["scores", "labels"], ["mean"]), '
        'onnx.helper.make_node("Add", ["mean", "penalty"], ["loss"])]'
    ),
    (
        '[onnx.helper.make_node("Sub", ["scores", "targets"], ["error"]), '
        'onnx.helper.make_node("Mul", ["error", "error"], ["square"]), '
        'onnx.helper.make_node("Neg", ["square"], ["loss"])]'
    ),
]


def refused(text: str) -> tuple[str, set[object]]:
    """Return the message of a refused loss, and the lines and `Refusal` of its traceback."""
    with pytest.raises(ul.UnsupportedError) as caught:
        ul.from_native(text)
    reached: set[object] = set()
    for frame, line in traceback.walk_tb(caught.value.__traceback__):
        reached |= {(Path(frame.f_code.co_filename).name, line), frame.f_locals.get("refusal")}
    return str(caught.value), reached


def table_of_refusals() -> str:
    """Return the page's table of refused losses."""
    rows = [f"| `{text}` | {refused(text)[0]} |" for text in REFUSED]
    return "\n".join(["| loss | why |", "|---|---|", *rows])


def table_of_deviations() -> str:
    """Return the page's table of deviations that no spec can express."""
    rules: dict[str, dict[str, None]] = {}
    for quirk in QUIRKS:
        rules.setdefault(quirk.name, {})[quirk.spec] = None
    rows = [
        f"| `{name}` | {'<br>'.join(specs)} | {_natives(name)} |" for name, specs in rules.items()
    ]
    return "\n".join(["| rule | a spec | other libraries |", "|---|---|---|", *rows])


def _natives(rule: str) -> str:
    """Return the sentences on what other libraries do, each after the names of its losses."""
    by_text: dict[str, list[str]] = {}
    for call in importable():
        for quirk in QUIRKS:
            if quirk.name == rule and quirk.concerns(spec_of(call), call) and quirk.has(call):
                by_text.setdefault(quirk.sentence(call), []).append(keyed(call))
    return "<br>".join(f"{', '.join(_names(names))}: {text}" for text, names in by_text.items())


def importable() -> list[Call]:
    """Return every loss of the tables that has a spec, with the arguments that some rules need.

    Losses of Keras are on each of its backends; losses with from_logits have both of its values.
    """
    calls = []
    for name, native in LIBRARY_LOSSES.items():
        choices: list[dict[str, Any]] = (
            [{}, {"from_logits": True}] if "from_logits" in native.parameters else [{}]
        )
        if name == "tf.nn.weighted_cross_entropy_with_logits":
            choices = [{"pos_weight": 1.0}]
        choices += [given for parameter, given in _SETTINGS if parameter in native.parameters]
        if {"weight", "label_smoothing"} <= native.parameters.keys():
            choices.append({"weight": (1.0, 0.0), "label_smoothing": 0.1})
        for backend in KERAS_BACKENDS if native.library == "keras" else (None,):
            calls += [
                call
                for call in (Call(name, given, backend) for given in choices)
                if side_of(call).spec is not None
            ]
    return calls


_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("weight", {"weight": (1.0, 0.0)}),
    ("weights", {"weights": (1.0, 0.0)}),
    *(("pos_weight", {"pos_weight": weight}) for weight in (1e-9, 1e-40, (1.0, 2.0), (((2.0,),),))),
    ("label_smoothing", {"label_smoothing": 0.1}),
    ("ignore_index", {"ignore_index": 1}),
    ("ignore_class", {"ignore_class": 1}),
    ("epsilon", {"epsilon": 0.0}),
    ("normalize", {"normalize": False}),
    *(
        ("reduction", {"reduction": reduction})
        for reduction in ("sum", "weighted_sum", "weighted_mean")
    ),
]
"""Arguments that some rules depend on, by the parameter that a loss must have."""


def _names(names: list[str]) -> list[str]:
    """Return the distinct names, without Keras' backend if all four backends are named."""
    distinct = list(dict.fromkeys(names))
    plain = [re.sub(r"keras\[\w+\]", "keras", name) for name in distinct]
    on_all_backends = {name for name in plain if plain.count(name) == len(KERAS_BACKENDS)}
    shortened = [
        bare if bare in on_all_backends or not full.startswith("keras[") else full
        for bare, full in zip(plain, distinct, strict=True)
    ]
    return [f"`{name}`" for name in dict.fromkeys(shortened)]


def table_of_losses() -> str:
    """Return the page's table of losses that can be read."""
    rows = []
    for library in LIBRARIES:
        by_loss: dict[str, list[str]] = {}
        for native in LIBRARY_LOSSES.values():
            if native.library == library:
                by_loss.setdefault(native.loss.__name__, []).append(f"`{native.name}`")
        rows += [
            f"| {library} | {', '.join(names)} | `{loss}` |" for loss, names in by_loss.items()
        ]
    return "\n".join(["| library | loss | is read as |", "|---|---|---|", *rows])


@pytest.mark.parametrize(
    "table",
    [table_of_losses, table_of_refusals, table_of_deviations],
    ids=lambda table: table.__name__,
)
def test_page_has_the_table(table: object) -> None:
    """The page has each generated table, word for word."""
    text = table()  # type: ignore[operator]
    assert text in PAGE.read_text(encoding="utf-8"), text


def test_every_refusal_has_a_row() -> None:
    """A row of the page reaches each place in the code that refuses to read a loss.

    Places that refuse a wrong value ("must be ...") need no row.
    """
    reached = set().union(*(refused(text)[1] for text in REFUSED))
    places: dict[object, str] = {
        refusal: refusal.why
        for library_loss in LIBRARY_LOSSES.values()
        for lens in library_loss.lenses.values()
        for refusal in lens.refusals
    }
    for path in READING:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and ast.unparse(node.func) == "refuse"
            raised = isinstance(node, ast.Call) and ast.unparse(node.func) == "UnsupportedError"
            if called or raised:
                places[path.name, node.lineno] = ast.unparse(node)
    needed = {place: text for place, text in places.items() if " must be " not in text}
    assert len(needed) >= len(REFUSED) - 1  # two rows reach pos_weight.py
    assert [text for place, text in needed.items() if place not in reached] == []


def test_every_pair_has_a_section() -> None:
    """Each ordered pair of four libraries has a section, and PyTorch with scikit-learn and ONNX."""
    headings = re.findall(r"^### (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    four = ("PyTorch", "Keras", "TensorFlow", "Optax")
    pairs = [f"{a} to {b}" for a in four for b in four if a != b]
    pairs += [
        "PyTorch to scikit-learn",
        "scikit-learn to PyTorch",
        "PyTorch to ONNX",
        "ONNX to PyTorch",
    ]
    assert [pair for pair in pairs if pair not in headings] == []
