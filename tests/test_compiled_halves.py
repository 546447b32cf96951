"""The compiled loops read the half types exactly, and round float64 numbers to them once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unifiedloss import compiled
from unifiedloss.exact.rounding import to_format
from unifiedloss.floats import FORMATS

LEVELS = [name for name in compiled.levels() if name != compiled.NUMPY]


def _through(level: str, dtype: str, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers that a level has rounded to a half type, written and read again."""
    from unifiedloss.compiled import _loops

    found = numbers.copy()
    _loops.halves(LEVELS.index(level), found.ctypes.data, len(found), compiled.FORMS.index(dtype))
    return found


def _finite(dtype: str) -> np.ndarray[Any, Any]:
    """All finite numbers of a half type, in order."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    numbers = bits.view(np.float16) if dtype == "float16" else wide
    return np.unique(numbers[np.isfinite(numbers)].astype(np.float64))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_rounded_once(level: str, dtype: str) -> None:
    """Every number of a half type keeps its value; midpoints and their neighbours round right."""
    finite = _finite(dtype)
    found = _through(level, dtype, finite)
    assert found.tobytes() == (finite + 0.0).tobytes()  # a zero is +0
    middle = (finite[1:] + finite[:-1]) / 2
    beyond = FORMATS[dtype].largest * (1 + 2.0 ** -(FORMATS[dtype].precision + 1))
    middle = np.concatenate([middle, [beyond, -beyond, 1e39, -1e250, 5e-324]])
    for near in (middle, np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)):
        assert _through(level, dtype, near).tobytes() == to_format(near, dtype).tobytes()
        with np.errstate(over="ignore"):
            twice = near.astype(np.float32).astype(np.float64)
        if near is not middle:  # a cast by way of float32 fails here
            assert (to_format(twice, dtype) != to_format(near, dtype)).any()
    special = np.array([np.nan, np.inf, -np.inf])
    assert np.isnan(_through(level, dtype, special)).all()
