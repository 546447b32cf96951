"""The stub of the loss functions is what ``make stubs`` writes."""

from __future__ import annotations

from tools import stubs


def test_stub_is_current() -> None:
    """A changed field changes the stub too."""
    assert stubs.PATH.read_text(encoding="utf-8") == stubs.stub(), "run make stubs"
