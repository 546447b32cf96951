"""Losses in configuration files and saved models are read from their dictionaries."""

from __future__ import annotations

import json
from typing import Any

import pytest

import unifiedloss as ul
from unifiedloss.errors import SerializationError, SpecTypeError, SpecValueError
from unifiedloss.interop.library_loss import knows
from unifiedloss.interop.sides import side_of

CE = "torch.nn.CrossEntropyLoss"
TENSOR = {"_target_": "torch.tensor", "data": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"_target_": CE, "label_smoothing": 0.1}, f"{CE}(label_smoothing=0.1)"),
        ({"_target_": CE, "weight": [1, 2]}, f"{CE}(weight=[1, 2])"),
        ({"_target_": CE, "weight": TENSOR, "_convert_": "all"}, f"{CE}(weight=[1, 2])"),
        ({"_target_": CE, "_args_": [[1, 2]]}, f"{CE}(weight=[1, 2])"),
        ({"_target_": CE, "weight": {**TENSOR, "data": [1, 2]}}, f"{CE}(weight=[1, 2])"),
        (
            {"_target_": "torch.nn.functional.cross_entropy", "_partial_": True, "ignore_index": 1},
            "F.cross_entropy(ignore_index=1)",
        ),
        ({"class_path": CE, "init_args": {"ignore_index": 3}}, f"{CE}(ignore_index=3)"),
        ({"class_path": CE, "dict_kwargs": {"ignore_index": 3}}, f"{CE}(ignore_index=3)"),
        (
            {
                "class_path": CE,
                "init_args": {
                    "weight": {"class_path": "torch.tensor", "init_args": {"data": [1, 2]}}
                },
            },
            f"{CE}(weight=[1, 2])",
        ),
        ({"class_path": CE}, f"{CE}()"),
        ({"_target_": "unifiedloss.HuberLoss", "delta": 2}, "ul.HuberLoss(delta=2)"),
        (
            {"class_name": "MeanSquaredError", "config": {"reduction": "auto", "name": "x"}},
            "keras.losses.MeanSquaredError()",
        ),
        (
            {
                "class_name": "MeanSquaredError",
                "config": {
                    "dtype": {
                        "module": "keras",
                        "class_name": "DTypePolicy",
                        "config": {"name": "float64"},
                    }
                },
            },
            "keras.losses.MeanSquaredError(dtype='float64')",
        ),
        (ul.CrossEntropyLoss(axis=1).to_dict(), "ul.CrossEntropyLoss(axis=1)"),
    ],
)
def test_dictionaries_are_read(config: dict[str, Any], text: str) -> None:
    """A dictionary and its JSON are read as the call that they describe, without its library."""
    expected = ul.from_native(text)
    assert ul.from_native(config) == expected
    assert ul.from_native(json.dumps(config)) == expected
    assert side_of(config).spec == side_of(text).spec
    assert side_of(config).call == side_of(text).call


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"_target_": 3}, SpecValueError, "3 is no name of a class or function"),
        ({"_target_": f"{CE}(); import os"}, SpecValueError, "is no name of a class or function"),
        ({"_target_": "os.system", "command": "x"}, SpecValueError, "is no loss that is known"),
        ({"class_path": CE, "init_args": [1]}, SpecTypeError, "must be a dictionary of arguments"),
        ({"class_path": CE, "seed": 1}, SpecValueError, "'seed' is not read beside class_path"),
        ({"class_path": CE, "init_args": {"foo": 1}}, SpecTypeError, "has no parameter 'foo'"),
        ({"_target_": CE, "weight": {"a": 1}}, SpecValueError, "write the numbers"),
        (
            {"_target_": CE, "weight": {"_target_": "os.system", "_args_": ["x"]}},
            SpecValueError,
            "write the numbers",
        ),
        ({"class_path": "torch.nn.KLDivLoss"}, SpecValueError, "entropy of soft targets less"),
        (
            {"class_name": "Mine", "module": "__main__", "config": {}},
            SpecValueError,
            "__main__.Mine is no class of Keras",
        ),
        (
            {"name": "mean_squared_error", "reduction": "sum"},
            SpecValueError,
            "write {'class_name': 'MeanSquaredError', 'config': ...}",
        ),
        ({"name": "mine", "reduction": "sum"}, SpecValueError, "'class_path' and 'init_args'"),
        ({"a": 1}, SerializationError, "The key 'loss' is missing"),
    ],
)
def test_dictionaries_that_are_not_read(
    config: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Nothing is imported or called, and the message says what to write."""
    with pytest.raises(error) as raised:
        ul.from_native(config)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_deep_dictionaries() -> None:
    """Nesting without end is an error of this library, from JSON and from Python."""
    weight: Any = 1.0
    for _ in range(5000):
        weight = [weight]
    with pytest.raises(SpecValueError, match="nested too deeply"):
        ul.from_native({"_target_": CE, "weight": weight})


def test_arguments_belong_into_the_dictionary() -> None:
    """Arguments beside a dictionary are refused, as they are beside text."""
    with pytest.raises(SpecTypeError, match="write reduction into the dictionary"):
        ul.from_native({"_target_": CE}, reduction="sum")


@pytest.mark.framework("keras")
def test_every_loss_of_keras_that_is_saved() -> None:
    """What keras.losses.serialize writes is read as text of the class is, for each class."""
    import keras

    read = 0
    for name in dir(keras.losses):
        cls = getattr(keras.losses, name)
        if not isinstance(cls, type) or cls is keras.losses.Loss:
            continue
        saved = keras.losses.serialize(cls(reduction="sum"))
        text = f"keras.losses.{name}(reduction='sum')"
        if knows(f"keras.losses.{name}"):
            assert ul.from_native(saved) == ul.from_native(text)
            read += 1
        else:
            with pytest.raises(SpecValueError, match=f"keras.losses.{name} is "):
                ul.from_native(saved)
    assert read >= 5


@pytest.mark.framework("keras")
def test_what_a_compiled_model_saves() -> None:
    """The loss of a compile configuration is read: an object, a function, a wrapper, our own."""
    import keras
    from keras.src.losses.losses import LossFunctionWrapper  # type: ignore[import-untyped]

    function = keras.losses.mean_squared_error
    assert ul.from_native(keras.losses.serialize(function)) == ul.from_native(function)
    wrapper = keras.losses.serialize(LossFunctionWrapper(function, reduction="sum"))
    assert ul.from_native(wrapper) == ul.from_native(
        "keras.losses.MeanSquaredError(reduction='sum')"
    )
    spec = ul.CrossEntropyLoss(from_logits=True, axis=1)
    assert ul.from_native(keras.losses.serialize(spec.to("keras"))) == spec
