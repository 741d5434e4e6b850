"""A headless Chromium, driven over its DevTools protocol: as much of it as the tests of `rootlet ui` need."""

import base64
import itertools
import json
import os
import signal
import subprocess
import time

from websockets.sync.client import connect

PATIENCE_S = 30
KEYS = {"Enter": "\r", "Tab": "\t"}


class Browser:
    """One browser with one page. What the page reports as errors is collected in `errors`."""

    def __init__(self, command, folder):
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
                 "--disable-background-networking", "--disable-dev-shm-usage", "--force-color-profile=srgb",
                 "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True, start_new_session=True)
        for line in self.process.stderr:
            if line.startswith("DevTools listening on "):
                address = line.split()[-1]
                break
        else:
            raise RuntimeError("the browser has ended")
        self.numbers = itertools.count(1)
        self.errors = []
        self.session = None
        self.socket = connect(address, max_size=None, compression=None)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def close(self):
        self.socket.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def call(self, method, **parameters):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=PATIENCE_S))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.event(answer)

    def event(self, message):
        method, told = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            entry = told["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")

    def open(self, address):
        self.call("Page.navigate", url=address)

    def size(self, width, height, scale=1):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False)

    def theme(self, name):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def js(self, expression):
        """The value of an expression, a promise's included."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def until(self, expression, what=None):
        """Waits until the expression is true."""
        end = time.monotonic() + PATIENCE_S
        while True:
            last = self.js(f"Boolean({expression})")
            if last:
                return last
            if time.monotonic() > end:
                text = self.js("document.body.innerText")
                raise AssertionError(f"{what or expression}: not in time; the page says:\n{text[:3000]}\nerrors: {self.errors}")
            time.sleep(0.05)

    def text(self, selector="body"):
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def until_text(self, words, selector="body"):
        self.until(f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').includes({json.dumps(words)})", f"{words!r} in {selector}")

    def key(self, key, modifiers=0):
        """Presses a key: `j`, `Enter`, `Escape`."""
        text = KEYS.get(key, key if len(key) == 1 else "")
        told = {"key": key, "modifiers": modifiers}
        if text:
            told["text"] = text
        code = {"Enter": 13, "Escape": 27, "Tab": 9, "Backspace": 8, "ArrowDown": 40, "ArrowUp": 38}.get(key)
        if code:
            told["windowsVirtualKeyCode"] = code
        self.call("Input.dispatchKeyEvent", type="keyDown", **told)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, modifiers=modifiers)

    def type(self, text):
        for char in text:
            self.key("Enter" if char == "\n" else char)

    def click(self, selector):
        box = self.js(f"(() => {{ const b = document.querySelector({json.dumps(selector)})?.getBoundingClientRect();"
                      " return b && {x: b.x + b.width / 2, y: b.y + b.height / 2}; })()")
        assert box, f"there is no {selector}"
        for kind in ["mousePressed", "mouseReleased"]:
            self.call("Input.dispatchMouseEvent", type=kind, x=box["x"], y=box["y"], button="left", clickCount=1)

    def picture(self, file):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(file, "wb") as out:
            out.write(base64.b64decode(data))
