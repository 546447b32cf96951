"""A headless Chromium for tests, driven over a pipe with the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ describes the methods and events. The pipe needs
neither a driver nor a port.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PATIENCE = 60  # seconds
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # a container has no namespaces for it, and the pages are the tests' own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
)


_LAUNCH = """
import fcntl, os, sys
copies = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
os.dup2(copies[0], 3)
os.dup2(copies[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Become the browser, which reads from file descriptor 3 and writes to 4."""


def found() -> str | None:
    """The path of a Chromium on this machine, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Shown:
    """What a page did while it was loaded.

    Attributes:
        messages: what it wrote to the console, and the errors that the browser logged.
        requests: the addresses that it requested, without data: addresses.
        blocked: those of them that the page's own policy forbade.
    """

    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


class Browser:
    """A running browser with one page."""

    def __init__(self, program: str) -> None:
        self._folder = tempfile.TemporaryDirectory(
            prefix="unifiedloss-browser-", ignore_cleanup_errors=True
        )
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(to_browser), str(from_browser), program,
                 *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"],
                pass_fds=(to_browser, from_browser),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            os.close(to_browser)
            os.close(from_browser)
        self._buffer = b""
        self._id = 0
        self._session: str | None = None
        self._shown = Shown()
        self._addresses: dict[str, str] = {}
        self._loaded = False
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        """Take the first page, and listen to what it does."""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(each for each in targets if each["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        self._session = None
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method, and return its result."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._id:
                if "error" in answer:
                    msg = f"{method}: {answer['error']}"
                    raise RuntimeError(msg)
                return answer["result"]
            self._note(answer)

    def open(self, path: Path) -> Shown:
        """Load a file, and return what it did."""
        self._shown, self._loaded = Shown(), False
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._note(self._read())
        return self._shown

    def show(self, *, width: int, dark: bool = False, media: str = "") -> None:
        """Set the width of the window, and which colours the user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True,
                         clip={**self.call("Page.getLayoutMetrics")["cssContentSize"],
                               "scale": 1})  # fmt: skip
        return base64.b64decode(shot["data"])

    def pdf(self) -> bytes:
        """The page as it is printed on A4."""
        printed = self.call("Page.printToPDF", printBackground=True, paperWidth=8.27,
                            paperHeight=11.69)  # fmt: skip
        return base64.b64decode(printed["data"])

    def _note(self, message: dict[str, Any]) -> None:
        """Keep what an event says."""
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.consoleAPICalled":
            self._shown.messages.append(str([each.get("value") for each in parameters["args"]]))
        elif method == "Runtime.exceptionThrown":
            self._shown.messages.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self._shown.messages.append(parameters["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            address = parameters["request"]["url"]
            if not address.startswith("data:"):
                self._shown.requests.append(address)
                self._addresses[parameters["requestId"]] = address
        elif method == "Network.loadingFailed" and parameters.get("blockedReason") == "csp":
            self._shown.blocked.append(self._addresses[parameters["requestId"]])

    def _read(self) -> dict[str, Any]:
        """The next message of the browser."""
        end = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                msg = f"the browser said nothing for {_PATIENCE} seconds"
                raise TimeoutError(msg)
            piece = os.read(self._in, 1 << 20)
            if not piece:
                msg = f"the browser ended with the status {self._process.poll()}"
                raise EOFError(msg)
            self._buffer += piece
        first, _, self._buffer = self._buffer.partition(b"\0")
        read: dict[str, Any] = json.loads(first)
        return read
