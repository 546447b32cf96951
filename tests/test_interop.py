"""Losses of other libraries as text: reading, refusals, the tables of losses, and round trips."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from random import Random
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from tools.quirks import plain_calls
from unifiedloss import interop
from unifiedloss.errors import SpecTypeError, SpecValueError, UnsupportedError
from unifiedloss.interop import Call, parse

ERRORS = (SpecTypeError, SpecValueError)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("torch.nn.CrossEntropyLoss()", "torch.nn.CrossEntropyLoss", {}),
        (
            " nn.CrossEntropyLoss( label_smoothing = .1 ) ",
            "torch.nn.CrossEntropyLoss",
            {"label_smoothing": 0.1},
        ),
        (
            "torch.nn.modules.loss.NLLLoss(ignore_index=-1)",
            "torch.nn.NLLLoss",
            {"ignore_index": -1},
        ),
        ("nn.CrossEntropyLoss([1, 2.5])", "torch.nn.CrossEntropyLoss", {"weight": (1, 2.5)}),
        (
            "nn.CrossEntropyLoss(torch.tensor((1, 2)), None, -1)",
            "torch.nn.CrossEntropyLoss",
            {"weight": (1, 2), "ignore_index": -1},
        ),
        ("nn.BCELoss(weight=np.array([[1], [2]]))", "torch.nn.BCELoss", {"weight": ((1,), (2,))}),
        (
            "nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.))",
            "torch.nn.BCEWithLogitsLoss",
            {"pos_weight": 3.0},
        ),
        ("F.mse_loss", "torch.nn.functional.mse_loss", {}),
        ("F.mse_loss(reduction='sum')", "torch.nn.functional.mse_loss", {"reduction": "sum"}),
        (
            "functools.partial(F.nll_loss, ignore_index=0)",
            "torch.nn.functional.nll_loss",
            {"ignore_index": 0},
        ),
        ("partial(torch.nn.functional.nll_loss)", "torch.nn.functional.nll_loss", {}),
        # A written default equals the default.
        ("nn.MSELoss(reduction='mean', reduce=None)", "torch.nn.MSELoss", {}),
        (
            "onnx.SoftmaxCrossEntropyLoss(weights=[1, 2])",
            "onnx.SoftmaxCrossEntropyLoss",
            {"weights": (1, 2)},
        ),
        (
            (
                'helper.make_node("NegativeLogLikelihoodLoss", ["x", "y"], outputs=["z"], '
                'name="n", doc_string="d", ignore_index=+3)'
            ),
            "onnx.NegativeLogLikelihoodLoss",
            {"ignore_index": 3},
        ),
    ],
)
def test_text_is_read(text: str, name: str, arguments: dict[str, Any]) -> None:
    """A call with literal arguments is read, with the usual names for modules."""
    assert parse(text) == Call(name, arguments)


class Trap:
    """An object that records whether anything evaluates it."""

    touched = False

    def __getattr__(self, name: str) -> Any:
        type(self).touched = True
        raise AssertionError(name)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is not one Python expression"),
        ("import os", "is not one Python expression"),
        ("nn.MSELoss(); nn.MSELoss()", "is not one Python expression"),
        ("nn.MSELoss(", "is not one Python expression"),
        ("\0", "is not one Python expression"),
        ("(" * 5000, "is not one Python expression"),
        ("1", "1 is no name of a loss"),
        ("'nn.MSELoss()'", "is no name of a loss"),
        ("lambda x, y: nn.MSELoss()", "is no name of a loss"),
        ("[nn.MSELoss()]", "is no node"),
        ("(nn.MSELoss if True else nn.MSELoss)()", "is no name of a loss"),
        ("nn['MSELoss']()", "is no name of a loss"),
        ("__import__('os').system('true')", "is no name of a loss"),
        ("__import__('os')", "__import__ is no loss that is known"),
        ("trap.nn.MSELoss()", "trap.nn.MSELoss is no loss that is known"),
        ("nn.CrossEntropyLoss(weight=trap)", "trap is no literal"),
        ("nn.CrossEntropyLoss(weight=trap.w)", "trap.w is no literal"),
        ("nn.CrossEntropyLoss(weight=torch.ones(3))", "torch.ones(3) is no literal"),
        ("nn.CrossEntropyLoss(weight=torch.tensor(trap))", "trap is no literal"),
        ("nn.CrossEntropyLoss(weight=[x for x in trap])", "is no literal"),
        ("nn.CrossEntropyLoss(weight=[*trap])", "*trap is no literal"),
        ("nn.CrossEntropyLoss(weight={1: 2})", "is no literal"),
        ("nn.CrossEntropyLoss(weight=b'12')", "is no literal"),
        ("nn.CrossEntropyLoss(label_smoothing=1 - 0.9)", "1 - 0.9 is no literal"),
        ("nn.CrossEntropyLoss(label_smoothing=float('0.1'))", "is no literal"),
        ("nn.CrossEntropyLoss(label_smoothing=-'a')", "is no literal"),
        ("nn.CrossEntropyLoss(label_smoothing=-True)", "is no literal"),
        ("nn.CrossEntropyLoss(label_smoothing=0.1j)", "is no literal"),
        ("nn.CrossEntropyLoss(reduction=f'{trap}')", "is no literal"),
        ("nn.CrossEntropyLoss(reduction=(x := 'sum'))", "is no literal"),
        ("nn.CrossEntropyLoss(*trap)", "*trap is no literal"),
        ("nn.CrossEntropyLoss(**trap)", "**trap is not read"),
        ("nn.CrossEntropyLoss(label_smoothing=" + "-" * 3000 + "1)", "is"),
        ("nn" + ".x" * 300 + "()", "is no loss that is known"),
        ("nn.MSELoss", "torch.nn.MSELoss is a class; write torch.nn.MSELoss()"),
        ("functools.partial()", "needs the function first"),
        ("functools.partial(nn.MSELoss)", "is a class"),
        ("MSELoss()", "Did you mean torch.nn.MSELoss?"),
        ("torch.nn.functional.cros_entropy", "Did you mean torch.nn.functional.cross_entropy?"),
        ("nn.MSELoss(x, y)", "x is no literal"),
        ("nn.MSELoss(1, 2, 3, 4)", "has 3 parameters"),
        ("nn.MSELoss(1, size_average=1)", "'size_average' is given twice"),
        ("nn.MSELoss(reduction='sum', reduction='mean')", "'reduction' is given twice"),
        ("ul.MeanSquaredError(scale=2.0, scale=3.0)", "'scale' is given twice"),
        ("ul.MeanSquaredError(self=1)", "'self' is not a field"),
        ("nn.BCEWithLogitsLoss(pos_weight=torch.Tensor(3))", "write the numbers alone"),
        ("nn.MSELoss(reduction=torch.tensor('sum'))", "is no array of numbers"),
        ("nn.BCEWithLogitsLoss(pos_weight=[])", "must not be empty"),
        ("nn.BCEWithLogitsLoss(pos_weight=[[1], [2, 3]])", "different lengths"),
        (
            "functools.partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=[[]])",
            "must not be empty",
        ),
        (
            "functools.partial(tf.nn.weighted_cross_entropy_with_logits, pos_weight=[[1], [2, 3]])",
            "different lengths",
        ),
        ("nn.CrossEntropyLoss(ignore_index=None)", "ignore_index must be an int"),
        ("nn.NLLLoss(ignore_index=[1, 2])", "ignore_index must be an int"),
        (
            "keras.losses.SparseCategoricalCrossentropy(ignore_class=[1, 2])",
            "ignore_class must be an int",
        ),
        ("nn.MSELoss(weight=[1])", "has no parameter 'weight'"),
        ("nn.CrossEntropyLoss(smoothing=0.1)", "has no parameter 'smoothing'"),
        ("F.cross_entropy(1.0, 2.0)", "by name"),
        ("F.cross_entropy(input=1.0)", "input is given to the call"),
        ("torch[jax].nn.MSELoss()", "is no name of a loss"),
        ("ul.CrossEntropyLoss", "takes its fields by name"),
        ("ul.CrossEntropyLoss(True)", "takes its fields by name"),
        ("ul.CrossEntropy()", "has no loss 'CrossEntropy'"),
        ("ul.CrossEntropyLoss(smoothing=0.1)", "Did you mean 'label_smoothing'?"),
        ('onnx.helper.make_node("Relu", ["x"], ["y"])', "the nodes are Relu"),
        (
            'onnx.helper.make_node("SoftmaxCrossEntropyLoss", "scores", ["y"])',
            "the names of its inputs",
        ),
        ("onnx.helper.make_node()", "needs an operator"),
        (
            'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "l"], ["y"], outputs=["z"])',
            "'outputs' is given twice",
        ),
        (
            'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "l", "w"], ["y"])',
            "are its input 'w'",
        ),
        (
            'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["s", "l"], ["y"], alpha=1)',
            "has no parameter 'alpha'",
        ),
        ("{", "is not JSON"),
        ('{"loss": "mean_squared_error"}', "version"),
    ],
)
def test_text_is_refused(text: str, found: str) -> None:
    """Any other text is an error whose message quotes the part that is not read."""
    with pytest.raises((*ERRORS, ul.SerializationError)) as caught:
        ul.from_native(text)
    assert found in str(caught.value)
    assert len(str(caught.value)) < 700 + 10 * len(found)


def test_nothing_is_evaluated() -> None:
    """Names in a text are never looked up, not even those that the process has."""
    globals()["trap"] = Trap()
    for text in ("trap.MSELoss()", "nn.CrossEntropyLoss(weight=trap.w)", "trap[0]", "trap()"):
        with pytest.raises(SpecValueError):
            ul.from_native(text)
    assert not Trap.touched


def test_specs_are_read_too() -> None:
    """A spec, its repr and its JSON are read as the spec."""
    spec = ul.CrossEntropyLoss(from_logits=True, class_weights=[1, 2], ignore_index=-1)
    assert ul.from_native(spec) is spec
    assert ul.from_native(f"ul.{spec!r}") == spec
    assert ul.from_native(f"unifiedloss.{spec!r}") == spec
    assert ul.from_native(spec.to_json()) == spec
    with pytest.raises(SpecTypeError, match="write reduction into the text"):
        ul.from_native("torch.nn.MSELoss()", reduction="sum")


@pytest.mark.framework("torch", "jax")
def test_bound_specs_are_read_too() -> None:
    """A loss that `Loss.to` bound to a framework is read as its spec."""
    spec = ul.CrossEntropyLoss(from_logits=True, reduction="sum")
    assert ul.from_native(spec.to("torch")) is spec
    assert ul.from_native(spec.to("jax")) is spec


@pytest.mark.framework("torch")
def test_objects_around_a_spec_are_refused() -> None:
    """An object that holds a spec, or a bound loss that was changed, may compute anything."""
    spec = ul.MeanSquaredError()

    class Doubled:
        def __init__(self) -> None:
            self.spec = spec

        def __call__(self, predictions: Any, targets: Any) -> Any:
            return 2 * self.spec(predictions, targets)

    hooked, patched = spec.to("torch"), spec.to("torch")
    hooked.register_forward_hook(lambda *given: 2 * given[-1])
    patched.forward = Doubled()
    for obj, words in (
        (Doubled(), "no loss that is known"),
        (hooked, "LossModule has hooks"),
        (patched, "a forward of its own"),
    ):
        for read in (ul.from_native, ul.explain):
            with pytest.raises(SpecTypeError, match=words):
                read(obj)


@pytest.mark.framework("torch")
def test_a_subclass_of_partial_is_refused() -> None:
    """A class of one's own may call anything with the function that it holds."""
    import torch

    class Doubled(functools.partial):  # type: ignore[type-arg]
        def __call__(self, *tensors: Any) -> Any:
            return 2 * super().__call__(*tensors)

    with pytest.raises(SpecTypeError, match="Doubled is no loss that is known"):
        ul.from_native(Doubled(torch.nn.functional.mse_loss))


@pytest.mark.parametrize(
    "obj", [None, 3, [1.0], json.dumps, functools.partial(json.dumps, indent=1), object(), int]
)
def test_other_objects_are_refused(obj: Any) -> None:
    """An object of no known library is an error."""
    with pytest.raises(SpecTypeError):
        ul.from_native(obj)


def test_every_loss_is_in_one_table() -> None:
    """Names are full paths, an alias is no loss of its own, and every library has losses."""
    natives = interop.LIBRARY_LOSSES
    assert {native.library for native in natives.values()} == set(interop.LIBRARIES)
    for name, native in natives.items():
        assert native.name == name
        assert all(
            interop.find(alias) is native and alias not in natives for alias in native.aliases
        )
        assert not set(native.data) & set(native.parameters)


def defaults() -> list[Any]:
    """Return a call of each loss with only its required arguments, on each backend of Keras."""
    backends = ("numpy", "torch", "tensorflow", "jax")
    calls = [
        Call(
            name,
            {"pos_weight": 2.0} if name == "tf.nn.weighted_cross_entropy_with_logits" else {},
            backend,
        )
        for name, native in interop.LIBRARY_LOSSES.items()
        for backend in (backends if native.library == "keras" else (None,))
    ]
    return [pytest.param(call, id=f"{call}-{call.backend}") for call in calls]


@pytest.mark.parametrize("call", defaults())
def test_defaults_round_trip_as_text(call: Call) -> None:
    """A spec that is read, written and read again is the same, without any framework."""
    spec = interop.spec_of(call)
    written = interop.call_of(spec, call.library, call.backend)
    assert interop.spec_of(written) == spec
    again = parse(str(written))
    assert interop.spec_of(Call(again.name, again.arguments, call.backend)) == spec


def test_what_cannot_be_said_is_named() -> None:
    """A refused export names each field, the rule of the library, and what it can express."""
    spec = ul.CrossEntropyLoss(from_logits=True, class_weights=[1, 2])
    with pytest.raises(UnsupportedError) as caught:
        spec.to_native("torch", code=True)
    message = str(caught.value)
    first, *fields, last = message.splitlines()
    assert first == "torch.nn.CrossEntropyLoss cannot express this spec:"
    assert [line.split()[0] for line in fields] == [
        "axis=None",
        "ignore_index=None",
        "divisor='weights'",
    ]
    assert fields[1].endswith("  torch always ignores one label")
    assert last.startswith("Use spec.to('torch'), which computes the spec as it is")
    assert "spec.to('torch')" in message
    # The message says which spec the library can express, and that spec is written.
    nearest = spec.replace(axis=1, ignore_index=(-100,), divisor="label_weights")
    assert "spec.replace(axis=1, ignore_index=(-100,), divisor='label_weights')" in message
    assert (
        nearest.to_native("torch", code=True)
        == "torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))"
    )


def test_a_refusal_without_a_closest_loss_has_a_line_for_each_reason() -> None:
    """Losses with the same reason share its line; a library without such losses gives none."""
    several = ul.CrossEntropyLoss(axis=1, ignore_index=[1, 2])
    with pytest.raises(UnsupportedError) as caught:
        several.to_native("onnx", code=True)
    kind, labels = str(caught.value).splitlines()[1:-1]
    assert kind == "  onnx.SoftmaxCrossEntropyLoss takes logits, and the spec probabilities."
    assert labels.startswith("  ONNX ignores one label, and the spec has ignore_index=[1, 2]:")
    spec = ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=3)
    with pytest.raises(UnsupportedError) as caught:
        spec.to_native("tensorflow", code=True)
    first, *reasons, last = str(caught.value).splitlines()
    assert first == "tf.nn.weighted_cross_entropy_with_logits cannot express this spec:"
    assert [reason.split()[0] for reason in reasons] == ["reduction='mean'"]
    assert last.endswith("or accept tensorflow's rules: spec.replace(reduction='none')")
    with pytest.raises(UnsupportedError) as caught:
        spec.to_native("onnx", code=True)
    assert str(caught.value).splitlines() == [
        "onnx has no loss that a BinaryCrossEntropyLoss is written as.",
        "Use spec.to('numpy'), which computes the spec as it is.",
    ]


@pytest.mark.parametrize(
    ("spec", "library", "rule"),
    [
        (ul.CrossEntropyLoss(epsilon=1e-7), "torch", "from_logits=False"),
        (
            ul.CrossEntropyLoss(from_logits=True, axis=1, ignore_index=[1, 2]),
            "torch",
            "ignores one label",
        ),
        (
            ul.CrossEntropyLoss(from_logits=True, axis=1, ignore_index=[1, 2]),
            "onnx",
            "ignores one label",
        ),
        (
            ul.CrossEntropyLoss(from_logits=True, axis=1, label_smoothing=0.1),
            "onnx",
            "label_smoothing=0.1",
        ),
        (ul.CrossEntropyLoss(axis=1), "onnx", "takes logits"),
        (ul.BinaryCrossEntropyLoss(), "onnx", "onnx has no loss"),
        (ul.BinaryCrossEntropyLoss(divisor="all"), "torch", "epsilon=0.0"),
        (
            ul.BinaryCrossEntropyLoss(from_logits=True, label_smoothing=0.1),
            "torch",
            "label_smoothing=0.1",
        ),
        (
            ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=[1, 2], axis=1, divisor="all"),
            "torch",
            "from the end",
        ),
        (ul.MeanSquaredError(scale=0.5), "torch", "scale=0.5"),
        (ul.MeanSquaredError(rounding="exact"), "torch", "rounding='exact'"),
        (ul.MeanSquaredError(average_last_axis=True), "torch", "average_last_axis=True"),
        (ul.MeanSquaredError(on_empty="zero"), "torch", "on_empty='zero'"),
        (ul.NegativeLogLikelihoodLoss(axis=-1), "torch", "axis=-1"),
        (ul.NegativeLogLikelihoodLoss(axis=1, divisor="present"), "onnx", "divisor='present'"),
    ],
)
def test_each_rule_that_cannot_be_said(spec: Any, library: str, rule: str) -> None:
    """The refusal names the rule that the library cannot express."""
    with pytest.raises(UnsupportedError) as caught:
        spec.to_native(library, code=True)
    assert rule in str(caught.value)
    assert "spec.to(" in str(caught.value)


def test_unknown_library() -> None:
    """The error for an unknown library names the known ones, and the error for jax names `to`."""
    with pytest.raises(
        SpecValueError,
        match=(
            r"torch, keras, tensorflow, optax, sklearn, onnx, got 'pytorch'\. "
            r"Did you mean 'torch'"
        ),
    ):
        ul.MeanSquaredError().to_native("pytorch")
    with pytest.raises(
        SpecValueError, match=r"got 'jax'\. jax has no losses of its own; spec\.to\('jax'\) gives"
    ):
        ul.MeanSquaredError().to_native("jax")
    with pytest.raises(SpecTypeError, match="rank=3"):
        ul.MeanSquaredError().to_native("torch", rank=3)


@pytest.mark.parametrize(
    ("rank", "found"),
    [(1, "at least 2"), (0, "at least 2"), ("2", "rank must be an int"), (True, "an int")],
)
def test_rank_of_a_model(rank: Any, found: str) -> None:
    """The predictions of an ONNX model have at least 2 axes; any other rank is an error."""
    with pytest.raises(ERRORS, match=found):
        ul.CrossEntropyLoss(from_logits=True, axis=1).to_native("onnx", rank=rank)


# Losses that no spec can express are refused when they are read, if their arguments show the rule,
# and when they are called, if the tensors show it.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "keras.losses.MeanSquaredError(reduction='mean_with_sample_weight')",
            "before they are broadcast",
        ),
        ("sklearn.metrics.mean_squared_error(multioutput='raw_values')", "multioutput"),
        ("optax.softmax_cross_entropy(where=[True, False])", "where"),
        (
            'onnx.helper.make_node("SoftmaxCrossEntropyLoss", ["x", "y"], ["loss", "log_prob"])',
            "second output",
        ),
        ("torch.nn.BCEWithLogitsLoss(pos_weight=[[1, 2], [3, 4]])", "varies along 2 axes"),
    ],
)
def test_arguments_without_a_spec(text: str, reason: str) -> None:
    """Arguments that no spec can express are an error that names the rule."""
    with pytest.raises(UnsupportedError, match=reason):
        ul.from_native(text)


X = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], np.float32)


@pytest.mark.parametrize(
    ("text", "predictions", "targets", "error", "reason"),
    [
        # A bad label: optax and ONNX wrap it, and Keras gives it a loss of 0 on some backends.
        (
            "optax.softmax_cross_entropy_with_integer_labels",
            X,
            np.array([0, -1]),
            ul.BadValueError,
            "-1",
        ),
        ("onnx.SoftmaxCrossEntropyLoss()", X, np.array([0, -1]), ul.BadValueError, "-1"),
        (
            "keras[jax].losses.SparseCategoricalCrossentropy(from_logits=True)",
            X,
            np.array([0, 3]),
            ul.BadValueError,
            "3",
        ),
        # Targets outside [0, 1]: torch and optax accept them.
        ("torch.nn.BCEWithLogitsLoss()", X, X, ul.BadValueError, r"\[0, 1\]"),
        ("optax.sigmoid_binary_cross_entropy", X, X, ul.BadValueError, r"\[0, 1\]"),
        # Different shapes: torch broadcasts them.
        ("torch.nn.MSELoss()", X, X[:1], ul.ShapeError, "shape"),
        ("torch.nn.MSELoss()", X[:, :1], X[:, 0], ul.ShapeError, "reshape"),
        # One axis: Keras averages it to one number before it applies sample weights.
        ("keras.losses.MeanSquaredError()", X[0], X[1], ul.ShapeError, "axis"),
    ],
)
def test_tensors_without_a_spec(
    text: str, predictions: Any, targets: Any, error: type[Exception], reason: str
) -> None:
    """The loss is read, and its spec refuses these tensors with an error that names the rule."""
    with pytest.raises(error, match=reason):
        ul.from_native(text)(predictions, targets)


def test_text_needs_no_framework() -> None:
    """Text is read, and written for every library, in a process that imports none of them."""
    code = """
import sys
import unifiedloss as ul
texts = [
    "torch.nn.CrossEntropyLoss(label_smoothing=0.1)", "keras.losses.BinaryCrossentropy()",
    "optax.l2_loss", "sklearn.metrics.log_loss", "tf.nn.softmax_cross_entropy_with_logits",
    "onnx.SoftmaxCrossEntropyLoss()",
]
for text in texts:
    spec = ul.from_native(text)
    library = {"tf": "tensorflow"}.get(text.split(".")[0], text.split(".")[0])
    assert ul.from_native(spec.to_native(library, code=True)) == spec
loaded = {"torch", "tensorflow", "keras", "jax", "optax", "sklearn", "onnx"} & sys.modules.keys()
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# -------------------------------------------------------------------------- exports of random specs

VALUES: dict[str, list[Any]] = {
    "from_logits": [False, True, True],
    "epsilon": [0.0, 1e-7, "keras", "sklearn", "torch"],
    "renormalize": [None, None, "before_clip", "after_clip"],
    "axis": [None, 1, -1, -3],
    "class_weights": [None, None, (1.0, 0.1)],
    "class_weighting": ["entries", "entries", "position"],
    "ignore_index": [None, -100, 0, (1, 2)],
    "label_smoothing": [0.0, 0.0, 0.1],
    "reduction": ["mean", "sum", "none"],
    "divisor": ["weights", "label_weights", "present", "nonzero", "all"],
    "on_empty": ["nan", "nan", "zero", "error"],
    "rounding": ["native", "native", "native", "exact"],
    "scale": [1.0, 1.0, 0.5],
    "dtype": [None, None, "float32", "float64"],
    "epsilon_added": [False, False, True],
    "pos_weight": [None, None, 3.0, (1.0, 0.1)],
    "element_weights": [None, None, 2.0, (1.0, 0.1)],
    "average_last_axis": [False, True],
}


def specs(count: int) -> list[Any]:
    """Return the specs of all losses with their defaults, and copies with random changes."""
    random = Random(0)
    natives = [interop.spec_of(parameter.values[0]) for parameter in defaults()]
    found = dict.fromkeys(natives)
    while len(found) < count:
        spec = random.choice(natives)
        names = [name for name in VALUES if name in type(spec).__dataclass_fields__]
        changed = random.sample(names, random.choice((1, 1, 2, 3)))
        with contextlib.suppress(SpecValueError):  # fields may contradict each other
            found[spec.replace(**{name: random.choice(VALUES[name]) for name in changed})] = None
    return list(found)


def normalized(spec: Any) -> Any:
    """Reset divisor and on_empty where the reduction is no mean, and name the last axis."""
    if spec.reduction != "mean":
        spec = spec.replace(divisor="weights", on_empty="nan")
    several = isinstance(getattr(spec, "pos_weight", None), tuple)
    return spec.replace(axis=-1) if several and spec.axis is None else spec


def test_export_is_exact_or_refused() -> None:
    """A written loss is read back as its spec, and every refusal recommends `to`."""
    written = dict.fromkeys(interop.LIBRARIES, 0)
    refusals = []
    for spec in specs(1500):
        for library in interop.LIBRARIES:
            try:
                text = spec.to_native(library, code=True)
            except UnsupportedError as error:
                refusals.append(str(error))
                continue
            written[library] += 1
            covered = interop.closest(spec, library).covered
            assert normalized(ul.from_native(text)) == normalized(spec.replace(**covered))
    assert min(written.values()) > 1
    assert sum(written.values()) > 100
    assert len(refusals) > 1000
    assert all("spec.to('" in refusal for refusal in refusals)


def test_refusals_say_how_to_get_there() -> None:
    """The closest loss can be written, and its spec is the one that the refusal recommends."""
    for spec in specs(300):
        for library in interop.LIBRARIES:
            try:
                nearest = interop.closest(spec, library)
            except UnsupportedError:
                continue
            expected = normalized(nearest.spec)
            changes = nearest.changes | nearest.covered
            assert expected == normalized(spec.replace(**changes))
            written = interop.call_of(nearest.spec, library)
            assert normalized(interop.spec_of(written)) == expected


@pytest.mark.parametrize("call", plain_calls(), ids=str)
def test_a_mask_averages_what_it_keeps(call: Call) -> None:
    """The mean of a masked call is that of the kept positions, whatever loss was read.

    Dense targets of the divisor "label_weights" are the exception that docs/switching.md names.
    """
    spec = interop.spec_of(call).replace(reduction="mean")
    predictions = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5]])
    dense, keep = np.eye(3)[[0, 2, 1]], np.array([True, False, True])
    every: list[Any] = [dense]
    if isinstance(spec, ul.spec.Categorical):  # type: ignore[attr-defined]
        every = [np.array([0, 2, 1]), dense]
    for targets in every:
        masked, kept = spec(predictions, targets, mask=keep), spec(predictions[keep], targets[keep])
        dense_torch = targets is dense and getattr(spec, "divisor", "") == "label_weights"
        np.testing.assert_allclose(masked, kept * (2 / 3 if dense_torch else 1), rtol=1e-5)


def test_weights_of_positions_are_read_alike() -> None:
    """torch's losses without a weight of their own give a weighted mean of sample weights."""
    scores, answers = np.array([2.0, -1.0, 0.5]), np.array([1.0, 0.0, 1.0])
    weight = np.array([1.0, 0.0, 3.0])
    for name in ("MSELoss", "BCEWithLogitsLoss", "HuberLoss", "SmoothL1Loss"):
        spec = ul.from_native(f"torch.nn.{name}()")
        each = spec.replace(reduction="none")(scores, answers)
        expected = np.average(each, weights=weight)
        assert spec(scores, answers, sample_weight=weight) == pytest.approx(expected)
    counted = ul.from_native("torch.nn.BCEWithLogitsLoss(weight=[1, 0, 3])")
    assert counted.divisor == "present"
    each = ul.from_native("torch.nn.BCEWithLogitsLoss(reduction='none')")(scores, answers)
    assert counted(scores, answers) == pytest.approx(np.mean(each * weight))
