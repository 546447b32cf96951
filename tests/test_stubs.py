"""The stub of the loss functions equals the output of ``make stubs``."""

from __future__ import annotations

from tools import stubs


def test_stub_is_current() -> None:
    """The stub is up to date with the fields."""
    assert stubs.PATH.read_text(encoding="utf-8") == stubs.stub(), "run make stubs"
