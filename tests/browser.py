"""A real browser for the report's tests: chromium over its DevTools pipe, no driver, no network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)

# chromium reads commands from file descriptor 3 and answers on 4, nowhere else
_ONTO_3_AND_4 = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """A browser that starts; a name that only tells to install a snap does not."""
    for name in NAMES:
        found = shutil.which(name)
        if found and subprocess.run([found, "--version"], capture_output=True).returncode == 0:
            return found
    return None


class Page:
    """One tab. Commands and answers are JSON texts that end in a zero byte.

    ``events``: what the tab told unasked since the last :meth:`open`, for example every request.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._pending = commands, answers, b""
        self._last, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Log", "Network", "Page", "Runtime"):
            self._send(f"{domain}.enable")

    def open(self, file: Path | str, width: int = 1500, height: int = 1200) -> None:
        """Open a file or a URL and wait until the page says that it is ready."""
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        # by way of an empty page, or another #part of the same address would not load it anew
        for url in ("about:blank", file if isinstance(file, str) else file.resolve().as_uri()):
            self.events.clear()
            self._send("Page.navigate", url=url)
            while not any(event["method"] == "Page.loadEventFired" for event in self.events):
                self._keep(self._receive())
        self.wait("document.body?.dataset.ready || document.body?.dataset.error", seconds=60)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = self._send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    @property
    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        asked = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in asked]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings in the console."""
        self.settle()
        told = [e["params"] for e in self.events if e["method"] == "Log.entryAdded"]
        found = [f"{p['entry']['text']} {p['entry'].get('url', '')}" for p in told]
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            if event["method"] == "Runtime.consoleAPICalled" and params["type"] in {
                "error",
                "warning",
            }:
                found.append(str(params["args"]))
        return found

    def wait(self, condition: str, seconds: float = 20) -> None:
        """Until a JavaScript expression holds; AssertionError after so long."""
        assert self.run(
            f"new Promise((done) => {{ const end = performance.now() + {seconds * 1000};"
            f"const look = () => ({condition}) ? done(true) : performance.now() > end"
            " ? done(false) : setTimeout(look, 30); look(); })"
        ), f"{condition} did not come true within {seconds} s"

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.run(
            "new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => r())))"
        )

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        self.settle()

    def key(self, name: str) -> None:
        text = {"text": name} if len(name) == 1 else {}
        self._send("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self._send("Input.dispatchKeyEvent", type="keyUp", key=name)
        self.settle()

    def screenshot(self, file: Path) -> None:
        answer = self._send("Page.captureScreenshot", captureBeyondViewport=False)
        file.write_bytes(base64.b64decode(answer["data"]))

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._keep(answer)

    def _keep(self, answer: dict[str, Any]) -> None:
        if "method" in answer:
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            part = os.read(self._answers, 1 << 16)
            assert part, "chromium closed its pipe"
            self._pending += part
        text, _, self._pending = self._pending.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Page]:
    """A running browser's first tab; the browser is ended on leaving."""
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", _ONTO_3_AND_4, str(read_commands), str(write_answers)),
            *(program, *FLAGS, f"--user-data-dir={profile}"),
        ],
        pass_fds=(read_commands, write_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Page(commands, answers)
    finally:
        process.terminate()
        process.wait(timeout=20)
        os.close(commands)
        os.close(answers)
