"""A headless Chromium, driven through its DevTools protocol over a pipe: no driver and no port are needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_TIMEOUT_S = 120.0
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "ArrowRight": (39, ""),
    "ArrowDown": (40, ""),
    "ArrowLeft": (37, ""),
    "ArrowUp": (38, ""),
}


def find_browser() -> str | None:
    """Return the path of an installed browser."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


class Browser:
    """A page in a browser.

    Attributes:
        messages: Errors and warnings of the page: exceptions, violations of its policy, messages of the console.
        requests: Addresses that the page asked for, except its own.
    """

    def __init__(self, commands: int, events: int) -> None:
        """Use the descriptors on which the browser reads commands and writes events."""
        self._commands, self._events = commands, events
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._loaded = False
        self.messages: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return dict(found["result"])

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._events], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser has not answered for {_TIMEOUT_S:g} s")
            part = os.read(self._events, 1 << 20)
            if not part:
                raise RuntimeError("the browser has exited")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        found = dict(json.loads(line))
        self._note(found)
        return found

    def _note(self, event: Mapping[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.messages.append(json.dumps(parameters["exceptionDetails"]))
            case "Log.entryAdded":
                self.messages.append(str(parameters["entry"]["text"]))
            case "Runtime.consoleAPICalled":
                self.messages.append(json.dumps(parameters["args"]))
            case "Page.javascriptDialogOpening":
                self.messages.append(f"dialog: {parameters['message']}")
                raise AssertionError(f"the page opened a dialog: {parameters['message']}")
            case "Network.requestWillBeSent":
                self.requests.append(str(parameters["request"]["url"]))

    def open(self, path: Path) -> None:
        """Open a file and wait until it is loaded."""
        self._loaded = False
        address = path.resolve().as_uri()
        self.send("Page.navigate", url=address)
        while not self._loaded:
            self._read()
        self.requests = [one for one in self.requests if one != address and not one.startswith("data:")]

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        code, text = _KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type_text(self, text: str) -> None:
        """Type text into the focused element."""
        self.send("Input.insertText", text=text)

    def move_to(self, selector: str) -> None:
        """Move the pointer to the middle of an element."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center',"
            " behavior: 'instant'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Set the size of the window in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone
        )

    def set_scheme(self, scheme: str) -> None:
        """Prefer the 'light' or the 'dark' colours."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.send("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path, *, is_full: bool = False) -> None:
        """Write a picture of the window, or of the whole page."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=is_full)["data"]
        path.write_bytes(base64.b64decode(data))

    def print_pdf(self, path: Path) -> None:
        """Print to a file."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF", printBackground=False)["data"]))


@contextlib.contextmanager
def open_browser(program: str) -> Iterator[Browser]:
    """Start a browser with an empty profile, and end it."""
    reads_commands, writes_commands = os.pipe()
    reads_events, writes_events = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads commands from descriptor 3 and writes to 4: a shell moves ours there.
        command = [
            "bash", "-c", f'exec "$@" 3<&{reads_commands} 4>&{writes_events}', "bash", program, *_OPTIONS,
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, pass_fds=(reads_commands, writes_events), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(reads_commands)
        os.close(writes_events)
        try:
            yield Browser(writes_commands, reads_events)
        finally:
            os.close(writes_commands)
            os.close(reads_events)
            process.terminate()
            process.wait(30)
