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
    """One tab. Commands and answers are JSON texts that end in a zero byte."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._pending = commands, answers, b""
        self._last, self._session = 0, ""
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        attached = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]

    def open(self, file: Path, width: int = 1500, height: int = 1200) -> None:
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._send("Page.navigate", url=file.resolve().as_uri())
        self.run(
            "new Promise((done) => { const look = () => document.body && "
            "(document.body.dataset.ready || document.body.dataset.error) "
            "? done() : setTimeout(look, 20); look(); })"
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = self._send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

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
