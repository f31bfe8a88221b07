"""Labs on a server of Python's, in a real browser, for tests of their pages."""

import functools
import http.server
import threading
import time

from browser import DESKTOP, Browser

PATIENCE = 60
"""Seconds that a page has to load: WebAssembly is compiled on a machine that may be busy."""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


class Served:
    """A folder as ``python -m http.server`` serves it, until the end of the block."""

    def __init__(self, folder):
        handler = functools.partial(_Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *raised):
        self._server.shutdown()
        self._server.server_close()


class LabPage:
    """The page of a lab, and what a user does with it."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, link="", size=DESKTOP, *, dark=False, state="ready"):
        self.browser.open(f"{self.address}/index.html{link and '#'}{link}", size, dark=dark)
        return self.settled(state)

    def settled(self, state="ready"):
        end = time.monotonic() + PATIENCE
        while (now := self.run("document.body.dataset.state")) != state:
            assert now != "failed", self.run("document.getElementById('status').textContent")
            assert time.monotonic() < end, f"the page is {now}: {self.browser.errors}"
            time.sleep(0.02)
        return self

    def run(self, expression):
        return self.browser.evaluate(expression)

    def do(self, expression):
        """Do something after which the page runs the model, and wait until it shows what came of it."""
        self.run(expression)
        return self.settled()

    def layer(self, name):
        return f"[...document.querySelectorAll('.layer')].find(x => x.dataset.layer === {name!r})"

    def cell(self, layer, component):
        return f"{self.layer(layer)}.querySelectorAll('.cell')[{component}]"

    def press(self, text, inside="document"):
        return self.do(f"[...({inside}).querySelectorAll('button')].find(x => x.textContent === {text!r}).click()")

    def set(self, element, value):
        event = "new Event('change', {bubbles: true})"
        return self.do(f"(() => {{ const x = {element}; x.value = {value!r}; x.dispatchEvent({event}); }})()")

    def choose(self, sample):
        return self.do(f"document.querySelectorAll('#samples input')[{sample}].click()")

    def numbers(self, what="now"):
        """The numbers of the bars by class, with all their digits."""
        rows = f"[...document.querySelectorAll('#bars .bar')].map(x => [x.dataset.class, x.dataset.{what}])"
        found = sorted((int(number), float(value)) for number, value in self.run(rows))
        return [value for _, value in found]

    def pressed(self, layer):
        cells = f"[...{self.layer(layer)}.querySelectorAll('.cell')]"
        return self.run(
            f"{cells}.map((x, i) => x.getAttribute('aria-pressed') === 'true' ? i : -1).filter(i => i >= 0)"
        )
