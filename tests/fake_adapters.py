"""Faulty third-party adapters, installed for one test, whose faults the suite must notice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = """
import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from unifiedloss import registry
from unifiedloss.adapter import Adapter

NumPyAdapter = type(registry.adapter("numpy"))


class Base(NumPyAdapter):
    name = {name!r}

    def change(self, value):
        return value

    def loss(self, spec, *tensors):
        return self.change(super().loss(spec, *tensors))

    def value_and_grad(self, spec, *tensors):
        value, gradient = super().value_and_grad(spec, *tensors)
        return self.change(value), gradient


class Doubling(Base):
    def change(self, value):
        return value * 2


class NotANumber(Base):
    def change(self, value):
        return value * np.float32("nan")


class Nudging(Base):
    def change(self, value):
        return np.nextafter(value, np.float32("inf"))


class Inexact(Base):
    def value_and_grad(self, spec, *tensors):
        if spec.rounding == "exact":
            self.exact(None, *tensors[:4])
        return super().value_and_grad(spec, *tensors)

    def exact(self, plan, *tensors, divisor=None):
        return Adapter.exact(self, plan, *tensors, *[None] * (4 - len(tensors)))


class Dying(Base):
    def change(self, value):
        if value.ndim:
            os.write(2, b"the stack smashed itself")
            os._exit(7)
        return value


class Killed(Base):
    def change(self, value):
        os.kill(os.getpid(), 9)


class Noisy(Base):
    def change(self, value):
        print("a framework that prints")
        os.write(1, b"from C as well")
        return value


class Hanging(Base):
    def change(self, value):
        while True:  # touch a file, so that a test sees when this process ends
            Path(os.environ["HANGING"]).touch()
            time.sleep(0.05)


class Holding(Base):
    def change(self, value):
        # A compiler can hold Python's lock for minutes, and no other thread runs then. So a child
        # touches the file, for as long as this process is its parent.
        watch = "import os, sys, time; from pathlib import Path\\n"
        watch += "while os.getppid() == int(sys.argv[1]):\\n"
        watch += "    Path(os.environ['HANGING']).touch(); time.sleep(0.05)"
        subprocess.Popen([sys.executable, "-c", watch, str(os.getpid())])
        ctypes.PyDLL(None).sleep(600)
"""

Install = Callable[[str], str]


def install(folder: Path, kind: str) -> str:
    """Write a package with one adapter and its metadata to a folder; return the backend's name."""
    name = f"{kind.lower()}_adapter"
    (folder / f"{name}.py").write_text(SOURCE.format(name=name), encoding="utf-8")
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8"
    )
    (metadata / "entry_points.txt").write_text(
        f"[unifiedloss.adapters]\n{name} = {name}:{kind}\n", encoding="utf-8"
    )
    return name


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install an adapter for one test, in this process and its children."""
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))
    return lambda kind: install(folder, kind)
