"""Debian's Chromium without a window, as the judge of a page: what it draws, what it complains of, what it fetches.

It is spoken to over a pipe in the DevTools protocol: JSON, each message ended by a zero byte. No port, no driver and
no library; the profile lies in a folder of the test's.
"""

import base64
import contextlib
import json
import os
import select
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

TIMEOUT_S = 60.0
LARGEST_ANSWER = 64 << 20

# Texts of a chart that touch one another or leave their picture, and whether the page is wider than the window.
FLAWS = """(() => {
  const flaws = [];
  for (const svg of document.querySelectorAll("figure > svg")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(one => [one.textContent, one.getBoundingClientRect()]);
    texts.forEach(([name, box], number) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1 ||
          box.top < frame.top - 1) flaws.push(`clipped: ${name}`);
      for (const [other, next] of texts.slice(number + 1))
        if (box.left < next.right - 1 && next.left < box.right - 1 && box.top < next.bottom - 2 &&
            next.top < box.bottom - 2) flaws.push(`overlap: ${name} / ${other}`);
    });
  }
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide > 0) flaws.push(`the page is ${wide} px wider than the window`);
  return flaws;
})()"""


@dataclass(slots=True)
class Browser:
    """One browser with one page; use as a context."""

    profile: Path
    complaints: list[str] = field(default_factory=list)  # console errors, exceptions, violations of the policy
    fetched: list[str] = field(default_factory=list)  # every address the page asked for, itself included
    _process: subprocess.Popen[bytes] | None = None
    _to: int = -1
    _from: int = -1
    _buffer: bytes = b""
    _number: int = 0
    _session: str = ""
    _is_loaded: bool = False

    def __enter__(self) -> Self:
        its_in, self._to = os.pipe()
        self._from, its_out = os.pipe()
        # The protocol is spoken on the descriptors 3 and 4.
        wire = f'exec 3<&{its_in} 4>&{its_out}; exec chromium "$@"'
        arguments = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        self._process = subprocess.Popen(
            ["bash", "-c", wire, "chromium", *arguments, "--remote-debugging-pipe", f"--user-data-dir={self.profile}"],
            pass_fds=(its_in, its_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(its_in)
        os.close(its_out)
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with contextlib.suppress(OSError, EOFError):
            self._session = ""
            self.ask("Browser.close")
        try:
            self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, page: Path, *, width: int = 1280, scheme: str = "light", medium: str = "screen") -> None:
        """Load a file at this width, for a reader who prefers light or dark."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=medium, features=features)
        self._is_loaded = False
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not self._is_loaded:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, target: Path) -> None:
        """The whole page as a PNG."""
        taken = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(taken["data"]))

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; what the page does meanwhile is noted."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": parameters, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            pass
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    # --- inside ---

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser said nothing for {TIMEOUT_S} s"
            piece = os.read(self._from, 1 << 16)
            if not piece:
                raise EOFError("the browser ended")
            self._buffer += piece
            assert len(self._buffer) < LARGEST_ANSWER
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._is_loaded = True
        elif event == "Network.requestWillBeSent":
            self.fetched.append(told["request"]["url"])
        elif event == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])
        elif event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(told))
