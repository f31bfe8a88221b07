"""Make the pictures of the documentation from real runs, in Chromium: ``make pictures`` writes docs/pictures/*.png.

Each row of PICTURES is a command on the digits run of the examples, and what is shown of it: what it prints, or a page
that it writes. A row whose command does not end well leaves its picture as it was, and that is told.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import html
import http.server
import io
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
PICTURES_FOLDER = ROOT / "docs/pictures"
MODEL = ("--factory", "digits_cnn.py:DigitsCNN")
DESKTOP, PHONE = (1200, 800), (390, 844)
COLUMNS = 84
SECONDS = 15
"""That a page of a server has until it is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture.

    Attributes:
        name: Of the file, without its ending.
        command: The words behind ``spdexport``; run once for all rows that have the same.
        page: What the command writes and the picture shows; None for what it prints.
        size: Of the window.
        script: What is done in the page before, in JavaScript.
        is_served: Whether the page needs a server.
    """

    name: str
    command: tuple[str, ...]
    page: str | None = None
    size: tuple[int, int] = DESKTOP
    script: str = ""
    is_served: bool = False


CONVERT = ("convert", "run", *MODEL, "--inputs", "test.npz", "--form", "auto", "--max-error", "0.25",
           "-o", "digits.onnx", "--html", "report.html")  # fmt: skip
ATLAS = ("atlas", "run", *MODEL, "--data", "test.npz", "-o", "atlas.html")
RUNTIME = ROOT / "build/lab-runtime/package"
"""Where ``make lab-runtime`` puts what runs a lab in the browser."""
LAB = ("lab", "masked.onnx", "--data", "test.npz", "--runtime", str(RUNTIME), "-o", "lab")
MASKED = ("convert", "run", *MODEL, "--inputs", "test.npz", "--runtime-masks", "all", "-q", "-o", "masked.onnx")
FIRST_COMPONENTS = "document.getElementById('layer/conv1').scrollIntoView()"

PICTURES = (
    Picture(name="convert", command=CONVERT),
    Picture(name="report", command=CONVERT, page="report.html"),
    Picture(name="report_phone", command=CONVERT, page="report.html", size=PHONE),
    Picture(name="atlas", command=ATLAS, page="atlas.html"),
    Picture(name="atlas_phone", command=ATLAS, page="atlas.html", size=PHONE, script=FIRST_COMPONENTS),
    Picture(name="lab", command=LAB, page="lab/index.html", is_served=True),
)
NEEDS = {LAB: MASKED}
"""What has to be run before a command."""


def main() -> int:
    """Make all pictures, or those that are named; the number of those that could not be made is the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="Pictures; all of them, where none is named.")
    names = parser.parse_args().names
    if unknown := set(names) - {picture.name for picture in PICTURES}:
        parser.error(f"there is no picture {', '.join(sorted(unknown))}")
    wanted = [picture for picture in PICTURES if not names or picture.name in names]
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import Browser  # the one of the tests

    failed = 0
    with tempfile.TemporaryDirectory() as place, Browser() as browser:
        folder = Path(place)
        _lay_out(folder)
        runs = Runs(folder)
        PICTURES_FOLDER.mkdir(exist_ok=True)
        for picture in wanted:
            printed = runs.printed(picture.command)
            if printed is None:
                sys.stderr.write(f"{picture.name}: left as it was, for its command did not end well\n")
                failed += 1
                continue
            path = PICTURES_FOLDER / f"{picture.name}.png"
            path.write_bytes(_taken(browser, picture, folder, printed))
            sys.stderr.write(f"{path.name}: {path.stat().st_size} bytes\n")
    return failed


def _lay_out(folder: Path) -> None:
    """Put the run and its images where the commands look for them."""
    for what in ("run", "digits_cnn.py"):
        source = ROOT / "examples/01_digits" / what
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / what)
    data = ROOT / "examples/03_masks_and_ablation/digits_data.py"
    subprocess.run([sys.executable, str(data)], cwd=folder, check=True)


class Runs:
    """Commands in one folder, each run once."""

    def __init__(self, folder: Path) -> None:
        """Take the folder."""
        self._folder = folder
        self._done: dict[tuple[str, ...], str | None] = {}

    def printed(self, command: tuple[str, ...]) -> str | None:
        """Return what a command prints, with its colours; None where it does not end well."""
        if command not in self._done:
            if command in NEEDS:
                self.printed(NEEDS[command])
            environment = {
                **os.environ,
                "COLUMNS": str(COLUMNS),
                "FORCE_COLOR": "1",
                "TERM": "xterm-256color",
                "PYTHONPATH": str(ROOT),
            }
            done = subprocess.run(
                [sys.executable, "-m", "spdexport", *command],
                cwd=self._folder, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            self._done[command] = done.stdout if done.returncode == 0 else None
            if done.returncode:
                sys.stderr.write(done.stderr)
        return self._done[command]


def _taken(browser: Any, picture: Picture, folder: Path, printed: str) -> bytes:
    """Return a PNG of what a row shows."""
    if picture.page is None:
        page = folder / f"{picture.name}.html"
        page.write_text(_terminal(picture.command, printed), encoding="utf-8")
        browser.open(page, picture.size)
        box = browser.evaluate("(b => [b.width, b.height])(document.body.getBoundingClientRect())")
        return _shot(browser, (int(box[0]), int(box[1])))
    if picture.is_served:
        with _served(folder) as address:
            screen = {"width": picture.size[0], "height": picture.size[1], "deviceScaleFactor": 1, "mobile": False}
            browser.send("Emulation.setDeviceMetricsOverride", **screen)
            browser.send("Page.navigate", url=f"{address}/{picture.page}")
            time.sleep(SECONDS)
            return _shot(browser, picture.size)
    browser.open(folder / picture.page, picture.size)
    # What comes into sight is drawn a frame later, and may move what is below it.
    for _ in range(3):
        browser.evaluate(picture.script or "0")
        _shot(browser, picture.size, at_scroll=True)
        browser.evaluate("new Promise(done => setTimeout(done, 500))")
    return _shot(browser, picture.size, at_scroll=True)


def _shot(browser: Any, size: tuple[int, int], *, at_scroll: bool = False) -> bytes:
    clip = {"x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1}
    if at_scroll:
        clip |= {"x": browser.evaluate("scrollX"), "y": browser.evaluate("scrollY")}
    found = browser.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=not at_scroll)
    return base64.b64decode(found["data"])


def _terminal(command: tuple[str, ...], printed: str) -> str:
    """Return a page that looks as a terminal does."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.from_ansi(printed))
    shown = console.export_html(inline_styles=True, code_format="{code}")
    words = html.escape(" ".join(("spdexport", *command)))
    return (
        '<!DOCTYPE html><meta charset="utf-8"><style>body { margin: 0; width: max-content; background: #fff; }'
        "pre { margin: 0; padding: 16px 20px; font: 14px/1.4 'DejaVu Sans Mono', monospace; color: #1c2128; }"
        f".typed {{ max-width: {COLUMNS}ch; white-space: pre-wrap; padding-bottom: 0; }}"
        f'</style><body><pre class="typed"><b>$ {words}</b></pre><pre>{shown}</pre>'
    )


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    """Yield the address of a server of a folder, on this machine alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
