"""A headless Chromium, spoken to by its DevTools protocol through two pipes: no library is needed for that."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-extensions", "--hide-scrollbars"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),  # WebGL without a GPU
    *("--remote-debugging-pipe", "--disable-dev-shm-usage", "--disable-background-networking"),
)


class Page:
    """An open page.

    Attributes:
        problems: what the console has said of errors, and every address asked for but the page's own.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._number, self._session, self._unread = 0, None, b""
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        self._number += 1
        number, message = self._number, {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def open(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        """Open a file in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.until("document.readyState == 'complete'")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression of JavaScript is true."""
        latest = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < latest, f"never true: {script}"
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Press the first button that a selector of CSS finds."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def mouse(self, kind: str, x: float, y: float, held: bool = False) -> None:
        """Move, press or release the mouse at a place in the window, in pixels."""
        button = "none" if kind == "Moved" and not held else "left"
        given = {"type": f"mouse{kind}", "x": x, "y": y, "button": button, "buttons": int(held), "clickCount": 1}
        self.call("Input.dispatchMouseEvent", **given)

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript, waited for where it is a promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """A PNG of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            received = os.read(self._from, 1 << 20)
            assert received, "the browser has ended"
            self._unread += received
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        kind, what = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(what["exceptionDetails"])[:500])
        elif kind == "Runtime.consoleAPICalled" and what["type"] == "error":
            self.problems.append(json.dumps(what["args"])[:500])
        elif kind == "Log.entryAdded" and what["entry"]["level"] == "error":
            self.problems.append(what["entry"]["text"])
        elif kind == "Network.requestWillBeSent" and not what["request"]["url"].startswith(("data:", "blob:", "file:")):
            self.problems.append(f"asks for {what['request']['url']}")


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start Chromium with a profile of its own, for the time of the block."""
    read_by_browser, to_browser = os.pipe()
    from_browser, written_by_browser = os.pipe()
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]

    def pipes() -> None:  # the protocol reads 3 and writes 4
        reading, writing = os.dup(read_by_browser), os.dup(written_by_browser)
        os.dup2(reading, 3)
        os.dup2(writing, 4)

    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, close_fds=False, preexec_fn=pipes)
    os.close(read_by_browser)
    os.close(written_by_browser)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        process.wait(20)
