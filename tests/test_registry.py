"""Which adapter owns a tensor, what is refused, and how a third party's adapter gets in."""

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
from unifiedloss import registry
from unifiedloss.adapter import Adapter


def test_unknown_types_are_named() -> None:
    """The message names the argument, its type and the types that are known."""
    for arguments, name in (
        (("abc", [0]), "predictions"),
        (([[1.0]], {1}), "targets"),
        ((None, [0]), "predictions"),
        (([1.0], None), "targets"),
    ):
        with pytest.raises(ul.UnknownTensorError, match=f"{name} is a builtins") as error:
            ul.cross_entropy_loss(*arguments)  # type: ignore[arg-type]
        for known in ("numpy", "torch", "tensorflow", "keras", "jax"):
            assert known in str(error.value)


@pytest.mark.framework("torch", "jax")
def test_two_frameworks_in_one_call() -> None:
    """Tensors of two frameworks are refused by name; NumPy may accompany any, on either side."""
    import jax.numpy as jnp
    import torch

    with pytest.raises(ul.MixedBackendsError, match="targets is a jax tensor and the call is carried out by torch"):
        ul.mean_squared_error(torch.ones(2), jnp.zeros(2))
    with pytest.raises(ul.MixedBackendsError, match="sample_weight is a jax tensor"):
        ul.mean_squared_error(torch.ones(2), np.zeros(2, np.float32), sample_weight=jnp.ones(2))
    assert isinstance(ul.mean_squared_error(np.ones(2, np.float32), torch.zeros(2)), torch.Tensor)


def test_unknown_backend() -> None:
    """A name nobody registered says which are known."""
    with pytest.raises(ul.MissingBackendError, match="There is no backend 'mxnet'; known are numpy, torch"):
        ul.MeanSquaredError().to("mxnet")


@pytest.mark.parametrize("backend", ["torch", "tensorflow", "keras", "jax"])
def test_missing_framework_names_the_extra(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its framework a backend says what to install, and it is left out of the list."""
    real = importlib.import_module

    def absent(name: str, package: str | None = None) -> Any:
        if name == f"unifiedloss.adapters.{backend}":
            raise ModuleNotFoundError(name=backend)
        return real(name, package)

    monkeypatch.delitem(registry._adapters, backend, raising=False)
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ul.MissingBackendError, match=rf"pip install 'unifiedloss\[{backend}\]'") as error:
        ul.MeanSquaredError().to(backend)
    assert isinstance(error.value, ImportError)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Lets a test register a class as the adapter of a module called ``strange``."""
    (tmp_path / "strange.py").write_text("class Tensor:\n    shape = (2,)\n    dtype = 'float32'\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def register(adapter: Any) -> Any:
        entry = EntryPoint("strange", "strange:ADAPTER", registry.ENTRY_POINTS)
        module = importlib.import_module("strange")
        module.ADAPTER = adapter  # type: ignore[attr-defined]
        monkeypatch.setattr(registry, "_entry_point", lambda name: entry if name == "strange" else None)
        return module.Tensor()  # type: ignore[attr-defined]

    yield register
    registry._adapters.pop("strange", None)
    for cls in [cls for cls in registry._by_type if cls.__module__ == "strange"]:
        del registry._by_type[cls]
    sys.modules.pop("strange", None)


def _nothing(*_: Any) -> None:
    """Stands for a method that is never called."""


def _adapter(**members: Any) -> type[Adapter]:
    methods = dict.fromkeys(Adapter.__abstractmethods__, _nothing)
    given = {"name": "strange", "tensor_type": object, "ops": np, "native": np}
    return type("Strange", (Adapter,), methods | given | members)


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (int, "must name a class derived from it"),
        (type("Bare", (Adapter,), {"name": "strange"}), "the methods .*differentiate.* are missing"),
        (_adapter(name="other"), "its name is 'other', and the entry point is called 'strange'"),
        (_adapter(), "'ops' has no .*cast_labels"),
    ],
)
def test_contract_is_checked_when_loaded(third_party: Any, adapter: Any, words: str) -> None:
    """An adapter that does not fill the contract is refused by name, with the member that does not fit."""
    tensor = third_party(adapter)
    with pytest.raises(ul.AdapterError, match=f"The adapter 'strange' does not fill the contract.*{words}"):
        ul.mean_squared_error(tensor, tensor)


def test_third_party_is_found_by_its_tensors(third_party: Any) -> None:
    """A complete adapter is found by its tensors' module and by name."""
    numpy = registry.adapter("numpy")
    cls = type(numpy)
    adapter = type("Strange", (cls,), {"name": "strange"})
    tensor = third_party(adapter)
    assert registry.adapter_for(tensor, tensor).name == "strange"
    assert isinstance(registry.adapter("strange"), adapter)


def test_backends_lists_versions() -> None:
    """What is installed is listed with its version."""
    found = ul.backends()
    assert found["numpy"] == np.__version__
