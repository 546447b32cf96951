"""The former name of `unifiedloss.interop`, so that imports written for it keep working."""

from __future__ import annotations

import importlib
import sys

_interop = importlib.import_module("unifiedloss.interop")
for _name in ("diff", "explain", "report", "sides"):
    sys.modules[f"{__name__}.{_name}"] = importlib.import_module(f"unifiedloss.interop.{_name}")
sys.modules[__name__] = _interop
