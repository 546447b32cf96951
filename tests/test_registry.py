"""The registry: find the adapter of a tensor, refuse unknown ones, load third-party adapters."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import unifiedloss as ul
from unifiedloss import owners, registry
from unifiedloss.adapter import Adapter


def test_unknown_types_are_named() -> None:
    """The message names the argument, its type and the known backends."""
    for arguments, name in (
        (("abc", [0]), "predictions"),
        (([[1.0]], {1}), "targets"),
        ((None, [0]), "predictions"),
        (([1.0], None), "targets"),
    ):
        with pytest.raises(ul.UnknownTensorError, match=f"{name} is a builtins") as error:
            ul.cross_entropy_loss(*arguments)  # type: ignore[arg-type]
        for known in ("numpy", "torch", "tensorflow", "keras", "jax", "dask"):
            assert known in str(error.value)


@pytest.mark.framework("torch", "jax")
def test_two_frameworks_in_one_call() -> None:
    """Tensors of two frameworks are refused by name; NumPy arrays mix with any framework."""
    import jax.numpy as jnp
    import torch

    with pytest.raises(
        ul.MixedBackendsError, match="targets is a jax tensor and the call is carried out by torch"
    ):
        ul.mean_squared_error(torch.ones(2), jnp.zeros(2))
    with pytest.raises(ul.MixedBackendsError, match="sample_weight is a jax tensor"):
        ul.mean_squared_error(torch.ones(2), np.zeros(2, np.float32), sample_weight=jnp.ones(2))
    assert isinstance(ul.mean_squared_error(np.ones(2, np.float32), torch.zeros(2)), torch.Tensor)


TENSORS = {
    "numpy": "numpy.asarray",
    "torch": "torch.tensor",
    "tensorflow": "tensorflow.constant",
    "jax": "jax.numpy.asarray",
}
IN_EACH = [pytest.param(name, marks=pytest.mark.framework(name)) for name in TENSORS]


def _tensor(backend: str, x: Any) -> Any:
    module, _, function = TENSORS[backend].rpartition(".")
    return getattr(importlib.import_module(module), function)(x)


def _refusal(call: Any) -> tuple[type[Exception], str]:
    with pytest.raises(ul.UnifiedLossError) as error:
        call()
    return error.type, str(error.value)


@pytest.mark.parametrize("backend", IN_EACH)
@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "b"]),
        np.array([b"a", b"b"]),
        np.array([{}, 1], object),
        np.array([1j, 2j]),
        np.array(["2020-01-01", "2021-01-01"], "M8[D]"),
        np.array([1, 2], "m8[s]"),
        np.zeros(2, [("a", "i4")]),
        np.zeros(2, np.longdouble),
    ],
    ids=lambda array: array.dtype.name,
)
def test_arrays_of_no_admitted_dtype(backend: str, array: Any) -> None:
    """Beside any backend's tensors, such an array gives the error class and message of NumPy."""
    z, y = np.zeros((2, 3), np.float32), np.array([0, 1])
    spec = ul.CrossEntropyLoss(from_logits=True)

    def refusals(tensor: Any) -> list[tuple[type[Exception], str]]:
        return [
            _refusal(lambda: spec(tensor(z), array)),
            _refusal(lambda: spec.value_and_grad(tensor(z), array)),
            _refusal(lambda: spec(tensor(z), tensor(y), sample_weight=array)),
            _refusal(lambda: spec(tensor(z), tensor(y), mask=array)),
            _refusal(lambda: ul.mean_squared_error(tensor(z[:, 0]), array)),
            _refusal(lambda: ul.check(spec, tensor(z), array)),
        ]

    refused = refusals(lambda x: _tensor(backend, x))
    assert refused == refusals(np.asarray)
    assert {error for error, _ in refused} == {ul.DTypeError}
    if array.dtype != np.longdouble:
        floats = np.zeros(2, np.float32)
        for call in (ul.MeanSquaredError(), ul.MeanSquaredError().value_and_grad):
            error, words = _refusal(lambda call=call: call(array, _tensor(backend, floats)))
            assert (error, words) == _refusal(lambda call=call: call(array, floats))
            assert f"got {array.dtype.name}" in words


@pytest.mark.parametrize("backend", IN_EACH)
def test_lists_of_tensors(backend: str) -> None:
    """Refuse a list of tensors instead of copying it silently; the message says to stack it."""
    row = _tensor(backend, np.ones(3, np.float32))
    for z in (np.ones((2, 3), np.float32), _tensor(backend, np.ones((2, 3), np.float32))):
        if backend == "numpy":
            assert ul.mean_squared_error(z, [row, row]) == 0  # numpy.asarray stacks NumPy arrays
            continue
        for rows in ([row, row], (row, row), [[row], [row]], [[1.0, 1.0, 1.0], row]):
            with pytest.raises(
                ul.UnknownTensorError,
                match=rf"targets is a list of tensors .*of {backend}\); stack",
            ):
                ul.mean_squared_error(z, rows)
        with pytest.raises(ul.UnknownTensorError, match="sample_weight is a list of tensors"):
            ul.mean_squared_error(z, z, sample_weight=[row[0], row[1]])
    if backend != "numpy":
        for call in (ul.mean_squared_error, ul.MeanSquaredError().value_and_grad):
            with pytest.raises(ul.UnknownTensorError, match="predictions is a list of tensors"):
                call([row, row], [[1, 1, 1]] * 2)
        with pytest.raises(ul.UnknownTensorError, match="logits is a list of tensors"):
            ul.softmax([row, row])


@pytest.mark.parametrize("element", [object(), None, {1: 2}, {1}])
def test_lists_of_unknown_things(element: object) -> None:
    """The message names the argument and the class of the element."""
    words = rf"targets is a list that holds a builtins.{type(element).__name__}, which is no number"
    for x in ([element], [1.0, element], [[1.0], [element]]):
        with pytest.raises(ul.UnknownTensorError, match=words):
            ul.mean_squared_error([1.0], x)


def test_lists_of_numbers() -> None:
    """Lists and tuples of Python and NumPy numbers are read as numpy.asarray reads them."""
    for x in ([1, 2], (1.0, 2), [True, np.float32(2)], [np.array(1.0), np.int8(2)]):
        assert ul.mean_squared_error([0.0, 0.0], x) == 2.5
    assert ul.mean_squared_error([[0.0], [0.0]], ([1], (2,))) == 2.5
    with pytest.raises(ul.ShapeError, match=r"targets cannot be read as an array of numbers: "):
        ul.mean_squared_error([1.0, 2.0], [[1, 2], [3]])
    with pytest.raises(ul.ShapeError, match="predictions cannot be read as an array of numbers: "):
        ul.mean_squared_error(10**400, 1.0)


@pytest.mark.framework("torch", "jax")
def test_foreign_arguments_of_a_bound_loss() -> None:
    """An object from spec.to has a fixed backend, and refuses foreign arguments by name too."""
    import jax.numpy as jnp
    import torch

    loss, z = ul.MeanSquaredError().to("torch"), torch.ones(2)
    with pytest.raises(
        ul.MixedBackendsError,
        match="targets is a jax tensor and the call is carried out by torch; one call",
    ):
        loss(z, jnp.ones(2))
    with pytest.raises(ul.MixedBackendsError, match="mask is a jax tensor"):
        loss(z, z, mask=jnp.ones(2, bool))
    with pytest.raises(
        ul.UnknownTensorError, match=r"targets is a builtins.set, which no backend owns"
    ):
        loss(z, {1})
    with pytest.raises(
        ul.UnknownTensorError, match=r"targets is a builtins.NoneType, which no backend owns"
    ):
        loss(z, None)
    with pytest.raises(
        ul.UnknownTensorError, match=r"targets is a torch\.nn\.\S*Linear, which is no tensor; pass"
    ):
        loss(z, torch.nn.Linear(1, 1))
    with pytest.raises(
        ul.UnknownTensorError, match=r"predictions is a .*Generator, which is no tensor; pass"
    ):
        ul.mean_squared_error(np.random.default_rng(), [1.0])  # type: ignore[type-var]


def test_unknown_backend() -> None:
    """The message lists the known names and suggests a likely one."""
    with pytest.raises(
        ul.MissingBackendError, match="There is no backend 'mxnet'; known are numpy, torch"
    ):
        ul.MeanSquaredError().to("mxnet")
    for name in ("pytorch", "Torch", "torhc"):
        with pytest.raises(
            ul.MissingBackendError,
            match=f"There is no backend '{name}'; .* Did you mean 'torch'[?]$",
        ):
            ul.MeanSquaredError().to(name)
    with pytest.raises(ul.MissingBackendError, match="Did you mean 'tensorflow'"):
        ul.MeanSquaredError().to("tf")


@pytest.mark.parametrize("backend", ["torch", "tensorflow", "keras", "jax", "dask"])
def test_missing_framework_names_the_extra(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its framework, a backend's error says which extra to install."""
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> Any:
        if name == f"unifiedloss.adapters.{backend}":
            raise ModuleNotFoundError(name=backend)
        return real(name, package)

    if backend == "torch":  # the registry imports it by a statement
        monkeypatch.delitem(sys.modules, "unifiedloss.adapters.torch", raising=False)
        monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(registry._adapters, backend, raising=False)
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        ul.MissingBackendError, match=rf"pip install 'unifiedloss\[{backend}\]'"
    ) as error:
        ul.MeanSquaredError().to(backend)
    assert isinstance(error.value, ImportError)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let a test register a class as the adapter of a module called ``strange``."""
    (tmp_path / "strange.py").write_text(
        "class Tensor:\n    shape = (2,)\n    dtype = 'float32'\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def register(adapter: Any) -> Any:
        entry = EntryPoint("strange", "strange:ADAPTER", owners.ENTRY_POINTS)
        module = importlib.import_module("strange")
        module.ADAPTER = adapter  # type: ignore[attr-defined]
        monkeypatch.setattr(
            owners, "entry_point", lambda name: entry if name == "strange" else None
        )
        return module.Tensor()  # type: ignore[attr-defined]

    yield register
    registry._adapters.pop("strange", None)
    for cls in [cls for cls in owners.by_type if cls.__module__ == "strange"]:
        del owners.by_type[cls]
    sys.modules.pop("strange", None)


def _nothing(*_: Any) -> None:
    """Stand in for a method that is never called."""


def _adapter(**members: Any) -> type[Adapter]:
    methods = dict.fromkeys(Adapter.__abstractmethods__, _nothing)
    given = {"name": "strange", "tensor_type": object, "ops": np, "kernels": np}
    return type("Strange", (Adapter,), methods | given | members)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (int, "must name a class derived from it"),
        (
            type("Bare", (Adapter,), {"name": "strange"}),
            "the methods .*differentiate.* are missing",
        ),
        (_adapter(name="other"), "its name is 'other', and the entry point is called 'strange'"),
        (_adapter(), "'ops' has no .*cast_labels"),
    ],
)
def test_contract_is_checked_when_loaded(third_party: Any, adapter: Any, words: str) -> None:
    """An adapter that breaks the contract is refused by name, and the message names the member."""
    tensor = third_party(adapter)
    with pytest.raises(
        ul.AdapterError, match=f"The adapter 'strange' does not fill the contract.*{words}"
    ):
        ul.mean_squared_error(tensor, tensor)


def test_third_party_is_found_by_its_tensors(third_party: Any) -> None:
    """A complete adapter is found by the module of its tensors and by its name."""
    numpy = registry.adapter("numpy")
    cls = type(numpy)
    adapter = type("Strange", (cls,), {"name": "strange"})
    tensor = third_party(adapter)
    assert registry.adapter_for(tensor, tensor).name == "strange"
    assert isinstance(registry.adapter("strange"), adapter)


def test_backends_lists_versions() -> None:
    """`backends` gives the version of each installed framework."""
    assert ul.backends()["numpy"] == np.__version__
