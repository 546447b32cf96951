"""The stubs equal the output of ``make stubs``."""

from __future__ import annotations

from tools import stubs


def test_stubs_are_current() -> None:
    """The stubs are up to date with the losses and their fields."""
    for path, text in stubs.stubs().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run make stubs"
