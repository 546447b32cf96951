"""Read a loss from a dictionary, as configuration files and saved models hold it.

Three forms are read: those of Hydra (``_target_``), of jsonargparse and Lightning (``class_path``),
and of Keras (``class_name`` and ``config``). Nothing is imported or called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from unifiedloss.errors import SpecTypeError, SpecValueError
from unifiedloss.interop.keras import STRINGS
from unifiedloss.interop.library_loss import Call
from unifiedloss.interop.literals import ARRAYS, canonical
from unifiedloss.interop.parse import bound
from unifiedloss.text import shortened

_HYDRA = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
_JSONARGPARSE = ("class_path", "init_args", "dict_kwargs")
_KERAS = ("class_name", "config", "module", "registered_name", "build_config", "compile_config")

_KERAS_PACKAGES = ("keras", "tf_keras", "tensorflow", "builtins")

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

_FORMS = (
    "a dictionary is read with the keys '_target_' (Hydra), 'class_path' and 'init_args' "
    "(jsonargparse), 'class_name' and 'config' (Keras), or 'loss' and 'version' (unifiedloss)"
)


def is_config(data: Mapping[Any, Any]) -> bool:
    """Whether a dictionary names a loss of another library, or has the keys of a Keras loss."""
    keys = ("_target_", "class_path", "class_name", "reduction")
    return "loss" not in data and any(key in data for key in keys)


def call_of_config(data: Mapping[Any, Any]) -> Call:
    """The call that a dictionary describes.

    Raises:
        SpecValueError: the dictionary has another form, or names no known loss.
        SpecTypeError: the loss has no such argument.
    """
    try:
        return _call_of(data)
    except RecursionError as error:
        msg = "the dictionary is nested too deeply; a loss nests no deeper than its weights."
        raise SpecValueError(msg) from error


def _call_of(data: Mapping[Any, Any]) -> Call:
    if "_target_" in data:
        arguments = {key: value for key, value in data.items() if key not in _HYDRA}
        return _call(data["_target_"], data.get("_args_", ()), arguments)
    if "class_path" in data:
        _check_keys(data, _JSONARGPARSE)
        arguments = _mapping(data, "init_args") | _mapping(data, "dict_kwargs")
        return _call(data["class_path"], (), arguments)
    if "class_name" in data:
        _check_keys(data, _KERAS)
        return _of_keras(data)
    raise SpecValueError(_without_class(data))


def _call(name: Any, positional: Any, arguments: Mapping[Any, Any]) -> Call:
    values = [_plain(value) for value in _list(positional, "_args_")]
    keywords = {str(key): _plain(value) for key, value in arguments.items()}
    return bound(canonical(_name(name)), values, keywords, None, called=True)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = f"{shortened(repr(name))} is no name of a class or function; {_FORMS}."
        raise SpecValueError(msg)
    return name


def _check_keys(data: Mapping[Any, Any], known: Iterable[str]) -> None:
    for key in data:
        if key not in known:
            beside = ", ".join(known)
            msg = f"the key {shortened(repr(key))} is not read beside {beside}; leave it out."
            raise SpecValueError(msg)


def _mapping(data: Mapping[Any, Any], key: str) -> dict[Any, Any]:
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        msg = f"{key} must be a dictionary of arguments, got {type(value).__name__}."
        raise SpecTypeError(msg)
    return dict(value)


def _list(value: Any, key: str) -> list[Any]:
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        msg = f"{key} must be a list of arguments, got {type(value).__name__}."
        raise SpecTypeError(msg)
    return list(value)


def _plain(value: Any) -> Any:
    """A value of a configuration: a list as a tuple, and a described tensor as its numbers."""
    if isinstance(value, Mapping):
        return _array(value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    to_list = getattr(value, "tolist", None)
    return tuple(map(_plain, to_list() if callable(to_list) else value))


def _array(data: Mapping[Any, Any]) -> Any:
    """The numbers of a tensor, as in ``{"_target_": "torch.tensor", "data": [1.0, 2.0]}``."""
    name = data.get("_target_", data.get("class_path"))
    given = [*_list(data.get("_args_", ()), "_args_"), *_given(data)]
    if isinstance(name, str) and canonical(name) in ARRAYS and len(given) == 1:
        return _plain(given[0])
    msg = f"{shortened(repr(dict(data)))} is no number and no list of numbers; write the numbers."
    raise SpecValueError(msg)


def _given(data: Mapping[Any, Any]) -> list[Any]:
    if "class_path" in data:
        return list(_mapping(data, "init_args").values())
    return [value for key, value in data.items() if key not in _HYDRA]


def _of_keras(data: Mapping[Any, Any]) -> Call:
    """The call of ``keras.losses.serialize``, in the forms of Keras 2 and 3."""
    name, config = data["class_name"], data.get("config")
    module = data.get("module")
    own = module is not None and str(module).partition(".")[0] not in (
        "keras",
        "builtins",
        "tf_keras",
    )
    if (own and not str(module).startswith("tensorflow.")) or not isinstance(name, str):
        msg = (
            f"{shortened(f'{module}.{name}')} is no class of Keras, and may compute anything; "
            "write its rules as a spec."
        )
        raise SpecValueError(msg)
    if name == "function":
        return bound(f"keras.losses.{_name(config)}", [], {}, None, called=True)
    arguments = {
        key: _policy(value) if key == "dtype" else _plain(value)
        for key, value in _mapping(data, "config").items()
        if key not in ("fn", "name")
    }
    if name == "LossFunctionWrapper":
        function = _mapping(data, "config").get("fn")
        function = function.get("config") if isinstance(function, Mapping) else function
        known = STRINGS.get(function) if isinstance(function, str) else None
        return bound(known or f"keras.losses.{_name(function)}", [], arguments, None, called=True)
    return bound(f"keras.losses.{_name(name)}", [], arguments, None, called=True)


def _policy(dtype: Any) -> Any:
    """The name of a dtype, or of the policy that Keras saves in its place."""
    config = dtype.get("config") if isinstance(dtype, Mapping) else None
    return config.get("name") if isinstance(config, Mapping) else dtype


def _without_class(data: Mapping[Any, Any]) -> str:
    """The message about a dictionary that does not say which loss it is."""
    name = data.get("name")
    meant = STRINGS.get(name) if isinstance(name, str) else None
    if meant is None:
        return f"this dictionary does not name the class of a loss; {_FORMS}."
    cls = meant.rpartition(".")[2]
    return (
        f"this dictionary does not name the class of the loss, because the name {name!r} may be "
        f"anyone's; write {{'class_name': {cls!r}, 'config': ...}}, as keras.losses.serialize does."
    )


def of_keras_object(data: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The dictionary of the spec in one that Keras wrote of ``spec.to("keras")``, or None."""
    if data.get("registered_name") != "unifiedloss>KerasLoss":
        return None
    spec = _mapping(data, "config").get("spec")
    return spec if isinstance(spec, Mapping) else None
