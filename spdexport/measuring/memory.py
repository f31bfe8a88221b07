"""The process in which ``bench`` measures memory: it loads one file, runs it once, and says how much it held at most.

Run as ``python -m spdexport.measuring.memory JSON``: the memory of any other process holds more than the file.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from spdexport.files.npz import read_npz
from spdexport.ort.providers import Purpose
from spdexport.ort.sessions import SessionSettings, open_session, usable_provider


def measure(request: str) -> None:
    """Write what was measured to the file that the request names, as JSON: ``base`` and ``peak``, in bytes."""
    asked = json.loads(request)
    feeds = dict(read_npz(Path(asked["inputs"])))
    # ONNX Runtime is loaded by looking whether the provider runs, so that what remains is the file's.
    settings = SessionSettings(
        provider=usable_provider(asked["provider"]),
        optimized=True,
        purpose=Purpose.DEPLOYMENT,
        threads=asked["threads"],
        spinning=False,
    )
    base = _peak()
    open_session(Path(asked["file"]), settings).run(feeds)
    Path(asked["result"]).write_text(json.dumps({"base": base, "peak": _peak()}), encoding="utf-8")


def _peak() -> int:
    """The largest resident size of this process so far, in bytes: Linux counts in units of 1024, macOS in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


if __name__ == "__main__":
    measure(sys.argv[1])
