"""Chromium without a window, steered over a pipe (the DevTools protocol): pages as people would see them.

``--remote-debugging-pipe``: the browser reads descriptor 3 and writes 4, JSON ended by NUL.  No port, no
profile of anybody, no network.  Every wait ends: after `PATIENCE` seconds the browser is killed and
`BrowserLost` is raised.  Its own output goes to a file, which is told then.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 240.0  # seconds: the machine may be busy with much else
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--mute-audio"),
    *("--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-default-browser-check", "--no-zygote"),
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing that a page asks for is there
)

Scheme = Literal["light", "dark"]


class BrowserLost(Exception):
    """The browser ended, or answered too late."""


class Page:
    """One page.  ``complaints`` is what it logged: errors, warnings, what its policy refused."""

    def __init__(self, sent: int, got: int) -> None:
        self._sent, self._got = sent, got
        self._rest = b""
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []
        self.asked_for: list[str] = []  # URLs, beside the page's own and data:

    # -- the protocol ---------------------------------------------------------------------------

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        try:
            _write_all(self._sent, json.dumps(message).encode() + b"\0")
        except BrokenPipeError as exc:
            raise BrowserLost(method) from exc
        return self._until(lambda found: found.get("id") == self._number, method)

    def _until(self, fits: Any, what: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while True:
            found = self._next(end, what)
            if fits(found):
                if "error" in found:
                    raise BrowserLost(f"{what}: {found['error']}")
                result: dict[str, Any] = found.get("result", found.get("params", {}))
                return result
            self._note(found)

    def _next(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._got], [], [], max(end - time.monotonic(), 0))[0]:
                raise BrowserLost(f"{what}: no answer")
            piece = os.read(self._got, 1 << 20)
            if not piece:
                raise BrowserLost(f"{what}: it ended")
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def _note(self, found: dict[str, Any]) -> None:
        params = found.get("params", {})
        match found.get("method"):
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.complaints.append(str([one.get("value") for one in params["args"]]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith("data:"):
                    self.asked_for.append(url)

    # -- what tests want ------------------------------------------------------------------------

    def begin(self) -> None:
        """Attach to a tab of its own."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def show(
        self, path: Path, *, width: int, height: int = 900, scheme: Scheme = "light", scripts: bool = True
    ) -> None:
        """Open a file in a window of this size and colour scheme, and wait until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.set_media(scheme)
        self.complaints.clear()
        self.asked_for.clear()
        self.call("Page.navigate", url=path.as_uri())
        self._until(lambda found: found.get("method") == "Page.loadEventFired", "load")

    def set_media(self, scheme: Scheme, *, media: str = "") -> None:
        """Another colour scheme, or what a printer is shown."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def tell(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"])
        return found["result"].get("value")

    def picture(self, path: Path, *, height: int | None = None) -> bytes:
        """A PNG of the whole page, or of its upper ``height`` pixels; kept at ``path``."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {
            "x": 0,
            "y": 0,
            "scale": 1,
            "width": size["width"],
            "height": min(size["height"], height or 12_000),
        }
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)[
            "data"
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = base64.b64decode(data)
        path.write_bytes(picture)
        return picture


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with a profile in a folder of its own, which ends with the block."""
    assert CHROMIUM is not None, "no chromium: tools/setup-system installs it"
    (low, sent), (got, high) = os.pipe(), os.pipe()
    to_browser, from_browser = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (low, high))
    os.close(low)
    os.close(high)
    output = folder / "browser.log"
    environment = {**os.environ, "HOME": os.fspath(folder), "XDG_RUNTIME_DIR": os.fspath(folder)}

    with output.open("wb") as log:
        # A shell puts the pipes where the browser looks for them: Python must not run between fork and exec.
        command = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser} {to_browser}<&- {from_browser}>&-'
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                command,
                CHROMIUM,
                *_FLAGS,
                "--remote-debugging-pipe",
                f"--user-data-dir={folder}/profile",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(to_browser, from_browser),
            env=environment,
            start_new_session=True,
        )
    os.close(to_browser)
    os.close(from_browser)
    try:
        page = Page(sent, got)
        try:
            page.begin()
            yield page
            with suppress(BrowserLost):
                page._session = ""
                page.call("Browser.close")
        except BrowserLost as exc:
            raise BrowserLost(f"{exc}\n{output.read_text(errors='replace')[-2000:]}") from exc
    finally:
        os.close(sent)
        os.close(got)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and its children, which are of its session
        process.wait()
