"""Specs: validation, canonical forms, comparison and serialization, and the plans of `resolve`."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss.plan import Signature, resolve

SPECS = [
    ul.CrossEntropyLoss(),
    ul.CrossEntropyLoss(
        from_logits=True,
        axis=-1,
        class_weights=[1, 2.5],
        ignore_index=[3, -100],
        label_smoothing=0.1,
    ),
    ul.CrossEntropyLoss(
        epsilon=1e-7, reduction="sum", divisor="all", on_empty="zero", rounding="exact"
    ),
    ul.BinaryCrossEntropyLoss(from_logits=True, pos_weight=3),
    ul.BinaryCrossEntropyLoss(pos_weight=(1, 2), label_smoothing=0.5, epsilon=0.25),
    ul.MeanSquaredError(reduction="none", divisor="present", on_empty="error"),
    ul.CrossEntropyLoss(
        epsilon="keras", renormalize="after_clip", class_weights=[1, 2], class_weighting="position"
    ),
    ul.CrossEntropyLoss(divisor="label_weights", scale=0.5, dtype="float32"),
    ul.BinaryCrossEntropyLoss(
        epsilon="torch", element_weights=[[1, 2], [3, 0.5]], average_last_axis=True
    ),
    ul.BinaryCrossEntropyLoss(epsilon=1e-7, epsilon_added=True, pos_weight=(1, 2), axis=0),
    ul.MeanSquaredError(element_weights=2, average_last_axis=True, dtype="float64"),
    ul.NegativeLogLikelihoodLoss(
        axis=1, class_weights=(1, 2), ignore_index=-100, divisor="label_weights"
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_round_trips(spec: Any) -> None:
    """Dictionary, JSON, repr, pickle, copy and replace give an equal spec with an equal hash."""
    others = [
        ul.from_dict(spec.to_dict()),
        ul.from_json(spec.to_json()),
        eval(repr(spec), vars(ul)),  # noqa: S307 - the repr is a constructor call
        pickle.loads(pickle.dumps(spec)),  # noqa: S301
        copy.deepcopy(spec),
        spec.replace(),
    ]
    for other in others:
        assert other == spec
        assert hash(other) == hash(spec)
        assert repr(other) == repr(spec)
    assert len({*SPECS, *others}) == len(SPECS)


MANY = np.linspace(0.1, 1, 50_000)


@pytest.mark.parametrize(
    "spec",
    [
        ul.CrossEntropyLoss(class_weights=MANY),
        ul.MeanSquaredError(element_weights=MANY.reshape(2, 5, 5, 10, 10, 10)),
        ul.CrossEntropyLoss(
            axis=-(2**40),
            class_weights=MANY,
            class_weighting="position",
            ignore_index=range(-(2**62), -(2**62) + 500),
            label_smoothing=1 / 3,
            epsilon="sklearn",
            renormalize="before_clip",
            reduction="none",
            divisor="label_weights",
            on_empty="error",
            scale=1 / 3,
            dtype="float32",
        ),
        ul.BinaryCrossEntropyLoss(
            axis=1, pos_weight=MANY, element_weights=MANY, epsilon=1 / 3, epsilon_added=True
        ),
    ],
    ids=["class_weights", "element_weights", "all", "binary"],
)
def test_the_repr_of_many_numbers_is_short(spec: Any) -> None:
    """A repr has fewer than 500 characters, wherever the spec is quoted, and looks incomplete."""
    function = spec.to("numpy")
    for x in (spec, function):
        assert len(repr(x)) < 500
        assert " more>" in repr(x)
        with pytest.raises(SyntaxError):
            compile(repr(x), "", "eval")
    assert eval(spec.source(), vars(ul)) == spec  # noqa: S307 - it is a constructor call
    with pytest.raises(ul.SpecTypeError) as caught:
        ul.check([spec], np.ones(1), np.ones(1))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 500


def test_the_repr_of_a_plan_is_short() -> None:
    """A plan shows the spec in short, and the shapes and dtypes of the call."""
    spec = ul.CrossEntropyLoss(class_weights=MANY[:1000])
    call = Signature((2, 1000), "float16"), Signature((2,), "int64")
    text = repr(resolve(spec, *call))
    assert len(text) < 500
    assert "float16 predictions of shape (2, 1000), int64 index targets" in text


def test_hash_survives_another_process() -> None:
    """Unpickling computes the hash anew, because another process hashes strings differently."""
    code = (
        "import pickle, sys, unifiedloss as ul;"
        "spec = ul.CrossEntropyLoss(from_logits=True, reduction='sum');"
        "sys.stdout.buffer.write(pickle.dumps(spec))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={"PYTHONHASHSEED": "7"},
        timeout=60,
    )
    specs = {ul.MeanSquaredError(), ul.CrossEntropyLoss(from_logits=True, reduction="sum")}
    assert pickle.loads(done.stdout) in specs  # noqa: S301


def test_canonical_forms() -> None:
    """Numbers become floats and labels a sorted tuple without duplicates, also from NumPy."""
    a = ul.CrossEntropyLoss(
        ignore_index=[3, -1, 3],
        class_weights=np.array([1, 2], np.float32),
        label_smoothing=np.float64(0),
    )
    assert (a.ignore_index, a.class_weights, a.label_smoothing) == ((-1, 3), (1.0, 2.0), 0.0)
    assert a == ul.CrossEntropyLoss(ignore_index={3, -1}, class_weights=(1, 2))
    assert ul.CrossEntropyLoss(ignore_index=np.int64(3)) == ul.CrossEntropyLoss(ignore_index=3)
    assert ul.CrossEntropyLoss(ignore_index=[]) == ul.CrossEntropyLoss()
    assert str(ul.CrossEntropyLoss(epsilon=-0.0).epsilon) == "0.0"
    assert ul.BinaryCrossEntropyLoss(pos_weight=[2]) != ul.BinaryCrossEntropyLoss(pos_weight=2)
    assert ul.CrossEntropyLoss() != ul.BinaryCrossEntropyLoss()


def test_frozen() -> None:
    """Assigning to a field of a spec raises."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ul.MeanSquaredError().reduction = "sum"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"from_logits": 1}, ul.SpecTypeError, "from_logits must be True or False"),
        (
            {"label_smoothing": 1.5},
            ul.SpecValueError,
            r"label_smoothing must lie in \[0, 1\], got 1.5",
        ),
        ({"label_smoothing": True}, ul.SpecTypeError, "label_smoothing must be a number, got True"),
        ({"label_smoothing": "0.1"}, ul.SpecTypeError, "label_smoothing must be a number"),
        ({"label_smoothing": float("nan")}, ul.SpecValueError, "label_smoothing must be finite"),
        ({"epsilon": 0.5}, ul.SpecValueError, r"epsilon must lie in \[0, 0.5\)"),
        (
            {"epsilon": 1e-7, "from_logits": True},
            ul.SpecValueError,
            "epsilon=1e-07 clips probabilities",
        ),
        ({"axis": 1.0}, ul.SpecTypeError, "axis must be an int"),
        ({"axis": True}, ul.SpecTypeError, "axis must be an int"),
        ({"class_weights": 2.0}, ul.SpecTypeError, "class_weights must be a sequence"),
        ({"class_weights": []}, ul.SpecValueError, "class_weights must not be empty"),
        (
            {"class_weights": [1, -1]},
            ul.SpecValueError,
            r"class_weights\[1\] must not be negative, got -1",
        ),
        ({"class_weights": [1, True]}, ul.SpecTypeError, r"class_weights\[1\] must be a number"),
        ({"class_weights": [[1], [2]]}, ul.SpecValueError, "class_weights must have one axis"),
        ({"class_weights": "12"}, ul.SpecTypeError, "class_weights must be a sequence"),
        ({"class_weights": {0: 1.0}}, ul.SpecTypeError, "class_weights must be a sequence"),
        ({"class_weights": [10**400]}, ul.SpecValueError, r"class_weights\[0\] must be finite"),
        ({"ignore_index": 1.0}, ul.SpecTypeError, "ignore_index must be an int"),
        ({"ignore_index": [1, True]}, ul.SpecTypeError, "ignore_index must be an int"),
        ({"ignore_index": 2**63}, ul.SpecValueError, "ignore_index must fit in int64"),
        (
            {"reduction": "avg"},
            ul.SpecValueError,
            "reduction must be one of 'mean', 'sum', 'none', got 'avg'",
        ),
        ({"reduction": None}, ul.SpecTypeError, "reduction must be one of"),
        ({"divisor": "count"}, ul.SpecValueError, "divisor must be one of"),
        ({"on_empty": "raise"}, ul.SpecValueError, "on_empty must be one of"),
        ({"rounding": "correct"}, ul.SpecValueError, "rounding must be one of"),
    ],
)
def test_bad_fields(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    """The class and the function refuse a bad field with the same message."""
    with pytest.raises(error, match=words) as of_class:
        ul.CrossEntropyLoss(**fields)
    with pytest.raises(error, match=words) as of_function:
        ul.cross_entropy_loss(np.ones((1, 2)), np.array([0]), **fields)
    assert str(of_class.value) == str(of_function.value)


@pytest.mark.parametrize(
    ("cls", "fields", "error", "words"),
    [
        (ul.CrossEntropyLoss, {"weight": [1, 2]}, ul.SpecTypeError,
         "not a field .* Did you mean 'class_weights'"),
        (ul.CrossEntropyLoss, {"mask": [True]}, ul.SpecTypeError, "mask is given to the call"),
        (ul.CrossEntropyLoss, {"epsilon": "torch"}, ul.SpecValueError,
         "one of 'keras', 'sklearn', got 'torch'"),
        (ul.CrossEntropyLoss, {"epsilon": "keras", "from_logits": True}, ul.SpecValueError,
         "clips probabilities"),
        (ul.CrossEntropyLoss, {"renormalize": "before_clip"}, ul.SpecValueError,
         "needs an epsilon to clip to"),
        (ul.CrossEntropyLoss, {"renormalize": True}, ul.SpecTypeError,
         "renormalize must be one of"),
        (ul.CrossEntropyLoss, {"class_weighting": "row"}, ul.SpecValueError,
         "class_weighting must be one of"),
        (ul.CrossEntropyLoss, {"scale": 0}, ul.SpecValueError, "scale must be positive, got 0"),
        (ul.CrossEntropyLoss, {"dtype": "float16"}, ul.SpecValueError,
         "dtype must be one of 'float32', 'float64'"),
        (ul.MeanSquaredError, {"divisor": "label_weights"}, ul.SpecValueError,
         "divisor must be one of 'weights', 'p"),
        (ul.MeanSquaredError, {"element_weights": [[1], [2, 3]]}, ul.SpecValueError,
         "different lengths"),
        (ul.MeanSquaredError, {"element_weights": [[1], 2]}, ul.SpecValueError,
         "different lengths"),
        (ul.MeanSquaredError, {"element_weights": [[1], [-2]]}, ul.SpecValueError,
         r"\[1\]\[0\] must not be negative"),
        (ul.MeanSquaredError, {"element_weights": [[]]}, ul.SpecValueError,
         r"element_weights\[0\] must not be empty"),
        (ul.BinaryCrossEntropyLoss, {"epsilon_added": True}, ul.SpecValueError,
         "needs a positive number as epsilon, got 0.0"),
        (ul.BinaryCrossEntropyLoss, {"epsilon": "keras", "epsilon_added": True}, ul.SpecValueError,
         "needs a positive number as epsilon"),
        (ul.BinaryCrossEntropyLoss, {"epsilon": "torch", "pos_weight": 2}, ul.SpecValueError,
         "has no pos_weight"),
        (ul.BinaryCrossEntropyLoss, {"average_last_axis": 1}, ul.SpecTypeError,
         "must be True or False"),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together(
    cls: type[Any], fields: dict[str, Any], error: type[Exception], words: str
) -> None:
    """Bad values and combinations of the fields for other libraries' losses are refused too."""
    with pytest.raises(error, match=words):
        cls(**fields)


def test_lowest_version_is_written() -> None:
    """A spec is written as version 1 wherever version 1 can express it, and else as version 2."""
    assert {spec.to_dict()["version"] for spec in SPECS[:6]} == {1}
    assert {spec.to_dict()["version"] for spec in SPECS[6:]} == {2}
    assert ul.CrossEntropyLoss(axis=1).to_dict()["version"] == 1
    assert ul.BinaryCrossEntropyLoss(axis=1, pos_weight=(1, 2)).to_dict()["version"] == 2


def test_two_divisors_in_one() -> None:
    """`label_weights` is `weights` for class indices and `all` for dense targets."""
    spec, z = ul.CrossEntropyLoss(divisor="label_weights"), Signature((2, 3), "float32")
    assert resolve(spec, z, Signature((2,), "int64")).divisor == "weights"
    assert resolve(spec, z, Signature((2, 3), "float32")).divisor == "all"


MAKERS = [
    pytest.param("numpy", "array"),
    pytest.param("torch", "tensor", marks=pytest.mark.framework("torch")),
    pytest.param("tensorflow", "constant", marks=pytest.mark.framework("tensorflow")),
    pytest.param("tensorflow", "Variable", marks=pytest.mark.framework("tensorflow")),
    pytest.param("jax.numpy", "array", marks=pytest.mark.framework("jax")),
]


@pytest.mark.parametrize(("module", "function"), MAKERS)
def test_tensors_without_axes_are_numbers(module: str, function: str) -> None:
    """Every numeric field takes scalar tensors, also in lists, and validates their values."""
    make = getattr(pytest.importorskip(module), function)
    assert ul.BinaryCrossEntropyLoss(
        epsilon=make(0.25), pos_weight=make(2.0), label_smoothing=make(0.5)
    ) == ul.BinaryCrossEntropyLoss(epsilon=0.25, pos_weight=2.0, label_smoothing=0.5)
    assert ul.CrossEntropyLoss(
        axis=make(-1), ignore_index=make(3), class_weights=[make(1.0), make(2)]
    ) == ul.CrossEntropyLoss(axis=-1, ignore_index=3, class_weights=[1, 2])
    assert type(ul.BinaryCrossEntropyLoss(pos_weight=make(2)).pos_weight) is float
    assert ul.MeanSquaredError(element_weights=make([[1.0, 2.0]])).element_weights == ((1.0, 2.0),)
    for value, error, words in (
        (-1.0, ul.SpecValueError, "label_smoothing must lie in"),
        (True, ul.SpecTypeError, "label_smoothing must be a number, got True of type bool"),
        ([0.5], ul.SpecTypeError, "label_smoothing must be a number, got"),
        (1j, ul.SpecTypeError, "label_smoothing must be a number, got 1j of type complex"),
    ):
        with pytest.raises(error, match=words):
            ul.CrossEntropyLoss(label_smoothing=make(value))
    for value in (1.0, True):
        with pytest.raises(ul.SpecTypeError, match="axis must be an int, got"):
            ul.CrossEntropyLoss(axis=make(value))


@pytest.mark.framework("jax")
def test_traced_numbers_are_no_fields() -> None:
    """A traced number is refused with our own message, because it has no value yet."""
    import jax

    with pytest.raises(ul.SpecTypeError, match="label_smoothing must be a number, got"):
        jax.jit(lambda x: ul.cross_entropy_loss([[0.5, 0.5]], [0], label_smoothing=x))(0.5)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("weight", "Did you mean 'class_weights'?"),
        ("dim", "Did you mean 'axis'?"),
        ("from_logit", "Did you mean 'from_logits'?"),
        ("size_average", "Did you mean 'reduction'?"),
        ("sample_weight", "sample_weight is given to the call, beside the targets."),
        ("temperature", "class_weighting, scale, dtype."),
    ],
)
def test_unknown_fields(name: str, hint: str) -> None:
    """For an unknown field, `replace` and `from_dict` list the fields and suggest a likely one."""
    spec = ul.CrossEntropyLoss()
    words = (
        rf"'{name}' is not a field of .*; its fields are from_logits, epsilon, "
        rf".*{hint.replace('?', '[?]')}$"
    )
    with pytest.raises(ul.SpecTypeError, match=words):
        spec.replace(**{name: 1})
    with pytest.raises(ul.SerializationError, match=words):
        ul.from_dict(spec.to_dict() | {name: 1})


def test_functions_do_not_cache_true_as_one() -> None:
    """True is refused even after a call with 1, though 1, 1.0 and True are equal as cache keys."""
    z, y = np.zeros((1, 2)), np.array([0])
    ul.cross_entropy_loss(z, y, from_logits=True, label_smoothing=1.0)
    with pytest.raises(ul.SpecTypeError):
        ul.cross_entropy_loss(z, y, from_logits=True, label_smoothing=True)
    ul.cross_entropy_loss(z, y, from_logits=True, ignore_index=(1,))
    with pytest.raises(ul.SpecTypeError):
        ul.cross_entropy_loss(z, y, from_logits=True, ignore_index=(True,))


def test_dictionary() -> None:
    """The dictionary has name, version, then the non-default fields in declared order."""
    spec = ul.CrossEntropyLoss(label_smoothing=0.1, from_logits=True, ignore_index=-100)
    expected = {
        "loss": "cross_entropy",
        "version": 1,
        "from_logits": True,
        "ignore_index": [-100],
        "label_smoothing": 0.1,
    }
    assert spec.to_dict() == expected
    assert list(spec.to_dict()) == list(expected)
    assert json.loads(spec.to_json()) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "a mapping with the keys"),
        ('{"loss": "mean_squared_error"}', "'version' is missing"),
        ('{"version": 1}', "'loss' is missing"),
        ('{"loss": "hinge", "version": 1}', "'loss' must be one of .* got 'hinge'[.]$"),
        (
            '{"loss": "mse", "version": 1}',
            "'loss' must be one of .* got 'mse'. Did you mean 'mean_squared_error'[?]$",
        ),
        ('{"loss": ["mean_squared_error"], "version": 1}', "'loss' must be one of"),
        ('{"loss": "mean_squared_error", "version": true}', "'version' must be a positive int"),
        ('{"loss": "mean_squared_error", "version": 99}', "'version' is 99"),
        ('{"loss": "mean_squared_error", "version": 1, "axis": 1}', "'axis' is not a field"),
        ('{"loss": "mean_squared_error", "version": 1, "version": 1}', "'version' stands twice"),
    ],
)
def test_damaged_json(text: str, words: str) -> None:
    """JSON that is no spec is refused, and the message names the key."""
    with pytest.raises(ul.SerializationError, match=words):
        ul.from_json(text)


def test_ill_typed_json_key() -> None:
    """A value of the wrong type is refused with the message of the class."""
    with pytest.raises(ul.SpecTypeError, match="label_smoothing must be a number, got 'a'"):
        ul.from_json('{"loss": "cross_entropy", "version": 1, "label_smoothing": "a"}')


def test_errors_are_what_callers_expect() -> None:
    """Each error has a built-in base and takes one message, so that tf.function can rebuild it."""
    from unifiedloss import errors

    leaves = [
        e for e in vars(errors).values() if isinstance(e, type) and e is not ul.UnifiedLossError
    ]
    assert len(leaves) >= 11
    for leaf in leaves:
        assert issubclass(leaf, ul.UnifiedLossError)
        assert issubclass(leaf, ValueError | TypeError | ImportError)
        assert str(leaf("words")) == "words"


def test_plan_of_unknown_shapes() -> None:
    """Unknown extents and ranks pass, and the plan is marked as unchecked."""
    spec = ul.CrossEntropyLoss(from_logits=True)
    plan = resolve(spec, Signature((None, 3), "float32"), Signature((None,), "int64"))
    assert (plan.unchecked, plan.count, plan.classes, plan.axis) == (True, None, 3, 1)
    plan = resolve(spec, Signature(None, "float32"), Signature(None, "int64"))
    assert (plan.unchecked, plan.classes, plan.axis) == (True, None, -1)
    with pytest.raises(ul.ShapeError):
        resolve(spec, Signature((None, 3), "float32"), Signature((None, 1), "int64"))


def test_clip_is_rounded_inwards() -> None:
    """Comparing with the clip bounds in float32 gives the answer of comparing real numbers."""
    for epsilon in (1e-7, 1e-3, 0.1, 0.25, 2.0**-24, 3e-8, 0.4999999999):
        clip = resolve(
            ul.CrossEntropyLoss(epsilon=epsilon),
            Signature((1, 2), "float32"),
            Signature((1,), "int64"),
        ).clip
        assert clip is not None
        low, high = np.float32(clip.low), np.float32(clip.high)
        assert (float(low), float(high)) == (clip.low, clip.high)
        assert float(np.nextafter(low, np.float32(0))) < epsilon <= clip.low
        # 1 - x is exact in float64 for a float32 x near 1.
        assert 1 - clip.high >= epsilon > 1 - float(np.nextafter(high, np.float32(1)))


def test_clips_of_other_libraries() -> None:
    """The bounds and their costs follow from NumPy's clip and machine epsilon in each dtype."""
    for dtype in (np.float32, np.float64, np.float16):
        signatures = Signature((1, 2), np.dtype(dtype).name), Signature((1,), "int64")
        keras = resolve(ul.CrossEntropyLoss(epsilon="keras"), *signatures).clip
        assert keras is not None
        low, high = np.clip(np.array([0, 1], dtype), dtype(1e-7), dtype(1 - 1e-7)).astype(
            np.float64
        )
        assert (keras.low, keras.high) == (low, high)
        with np.errstate(divide="ignore"):
            assert np.allclose(keras.costs, -np.log([low, high]), rtol=1e-12)
            assert np.allclose(
                keras.complement_costs, [-np.log1p(-low), -np.log(1 - high)], rtol=1e-8
            )
        sklearn = resolve(ul.CrossEntropyLoss(epsilon="sklearn"), *signatures).clip
        assert sklearn is not None
        assert (sklearn.low, sklearn.high) == (np.finfo(dtype).eps, 1 - np.finfo(dtype).eps)


@pytest.mark.parametrize("base", [ul.CrossEntropyLoss, ul.MeanSquaredError, ul.spec.Loss])
def test_subclasses_are_refused(base: Any) -> None:
    """A subclass is refused when it is made, with what to do instead, and nothing reads it."""
    with pytest.raises(
        ul.SpecTypeError, match=f"Own is a subclass of {base.__name__}.*Hold a spec"
    ):
        type("Own", (base,), {"name": "cross_entropy", "__call__": lambda *_, **__: 0.0})
    read = ul.from_json('{"loss": "cross_entropy", "version": 1, "from_logits": true}')
    assert type(read) is ul.CrossEntropyLoss
    assert ul.from_native("ul.CrossEntropyLoss(from_logits=True)") == read
