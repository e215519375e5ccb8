"""A headless Chromium to look at a page with (Debian's `chromium` or `chromium-headless-shell`), over a pipe."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from pathlib import Path


NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """
    One page. What it asked the network for, and what went wrong in it, is kept.

    Args:
        profile (`Path`):
            An empty folder.
    """

    def __init__(self, profile: Path):
        self.requests, self.errors, self.loaded, self._count, self._rest = [], [], 0, 0, b""
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        redirect = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'  # the browser reads 3 and writes 4
        self.process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", CHROMIUM, "--remote-debugging-pipe", *options, "about:blank"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _read(self):
        while b"\0" not in self._rest:
            data = os.read(self._in, 2**20)
            assert data, "the browser is gone"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(message)
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            case "Log.entryAdded":
                self.errors.append(message["params"]["entry"]["text"])
            case "Page.loadEventFired":
                self.loaded += 1
            case "Page.javascriptDialogOpening":
                self.errors.append(message["params"]["message"])
        return message

    def call(self, method, **params):
        """A command of the DevTools protocol, and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, url):
        """Load a page; the seconds until it was loaded."""
        before, start = self.loaded, time.perf_counter()
        self.call("Page.navigate", url=url)
        while self.loaded == before:
            self._read()
        return time.perf_counter() - start

    def run(self, expression):
        """The value of an expression of the page's, waited for if it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=10.0):
        """Wait until an expression is true; its value."""
        end = time.perf_counter() + seconds
        while not (value := self.run(expression)):
            assert time.perf_counter() < end, f"never true: {expression}"
            time.sleep(0.02)
        return value

    def press(self, *keys):
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def point(self, selector, click=False):
        """The mouse over the middle of the first line of an element."""
        at = self.run(
            f"(() => {{ const b = document.querySelector({selector!r}).getClientRects()[0];"
            " return [b.left + b.width / 2, b.top + b.height / 2] })()"
        )
        where = {"x": at[0], "y": at[1]}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **where)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def size(self, width, height, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def prefer(self, scheme):
        """`dark` or `light`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        with contextlib.suppress(OSError):
            self._session = None
            os.write(self._out, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._in)
        os.close(self._out)
