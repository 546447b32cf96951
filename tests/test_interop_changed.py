"""What someone puts in the place of a library's loss is never read or run as the library's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import unifiedloss as ul
from unifiedloss import interop
from unifiedloss.errors import SpecTypeError, UnsupportedError
from unifiedloss.interop.functions import Losses

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.framework("torch")

NN, F = torch.nn, torch.nn.functional
NAME = "torch.nn.CrossEntropyLoss"
OWN, FUNCTION = NN.CrossEntropyLoss, F.cross_entropy
ADAPTER = interop.adapter("torch")
"""Imported before anything is changed."""

X, Y = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([0, 1])


class Mine(OWN):  # type: ignore[misc]
    """A subclass that computes another loss."""

    def forward(self, input: Any, target: Any) -> Any:  # noqa: A002 - torch's name
        """Return twice the loss."""
        return 2 * super().forward(input, target)


class Disguised(Mine):
    """The same with the module and the name of torch's class."""


Disguised.__module__, Disguised.__qualname__ = OWN.__module__, OWN.__qualname__
Disguised.__name__ = OWN.__name__


class Empty(OWN):  # type: ignore[misc]
    """A subclass that changes nothing yet."""


@functools.wraps(FUNCTION)
def wrapper(*args: Any, **keywords: Any) -> Any:
    """Return twice the loss, under the name of torch's function."""
    return 2 * FUNCTION(*args, **keywords)


def changed(self: Any, input: Any, target: Any) -> Any:  # noqa: A002 - torch's name
    """Return a method that computes another loss."""
    return 2 * FUNCTION(input, target, reduction=self.reduction)


def imported_now(patch: pytest.MonkeyPatch) -> None:
    """Look the losses up as at a first import, after the change."""
    patch.setattr(ADAPTER, "_LOSSES", Losses("torch", torch))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("cls", [Mine, Disguised, Empty], ids=["mine", "disguised", "empty"])
def test_class_in_the_place_of_another(
    cls: Any, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its objects are refused; text is the library's loss, which is not run as the other one."""
    monkeypatch.setattr(NN, "CrossEntropyLoss", cls)
    if late:
        imported_now(monkeypatch)
    with pytest.raises(SpecTypeError, match=r"CrossEntropyLoss|Mine|Empty"):
        ul.from_native(cls())
    report = ul.port_report(f"{NAME}()", ul.from_native(f"{NAME}()"), X, Y)
    assert report.same
    assert float(report.value_a) == pytest.approx(0.907606, abs=1e-6)  # type: ignore[arg-type]
    assert report.ran_a == ("instead" if late else "native")
    if late:
        assert "was put in its place" in str(report)
        with pytest.raises(UnsupportedError, match=f"{NAME} is not the one of the library"):
            ul.from_native(f"{NAME}()").to_native("torch")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("owner", "attribute", "value"),
    [
        (OWN, "forward", changed),
        (OWN, "__call__", changed),
        (NN.Module, "_call_impl", changed),
        (F, "cross_entropy", wrapper),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_part_in_the_place_of_another(
    owner: Any, attribute: str, value: Callable[..., Any], late: bool, monkeypatch: Any
) -> None:
    """A method, or the function that a module calls, is named in the error."""
    monkeypatch.setattr(owner, attribute, value, raising=False)
    if late:
        imported_now(monkeypatch)
    with pytest.raises(SpecTypeError, match=f"{NAME} has a {attribute} that torch does not define"):
        ul.from_native(OWN())
    if owner is F:
        with pytest.raises(SpecTypeError, match="cross_entropy is no loss that is known here"):
            ul.from_native(wrapper)
        if not late:
            assert ul.from_native(FUNCTION) == ul.from_native(f"{NAME}()")


@pytest.mark.parametrize("library", ["torch", "keras", "tensorflow", "optax", "sklearn"])
@pytest.mark.framework("tensorflow", "keras", "jax")
def test_losses_as_they_come_are_the_libraries_own(library: str) -> None:
    """No loss of an installed library is taken for a changed one."""
    adapter = interop.adapter(library)
    losses = next(each for each in vars(adapter).values() if isinstance(each, Losses))
    assert losses
    for name, loss in losses.items():
        assert losses.name_of(loss) == name
