"""What a page is told of its lab: names and numbers as JSON, and arrays one behind the other in a file of bytes.

Names are values there and never keys, so that no layer can be called like something that a script has already.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport import __version__
from spdexport.text import json_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array
    from spdexport.laboratory.answers import Dense
    from spdexport.laboratory.copy import Copied
    from spdexport.laboratory.runtime import WebRuntime
    from spdexport.laboratory.samples import Samples

MANIFEST = "lab.json"
MODEL, DATA = "model.onnx", "samples.bin"
RUNTIME = "runtime"
"""The folder with the files of onnxruntime-web."""

_ALIGNED = 8
"""Bytes that every array begins at a multiple of, as the arrays of JavaScript need it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """Arrays in one file.

    Attributes:
        content: The bytes, little-endian.
        places: Name, dtype, shape of one sample, and the byte at which each array begins.
    """

    content: bytes
    places: tuple[Mapping[str, Any], ...]


def stored(arrays: Mapping[str, Array], start: int = 0) -> Stored:
    """Return arrays whose axis 0 counts the samples as bytes that follow ``start`` others."""
    content, places = bytearray(), []
    for name, array in arrays.items():
        content += b"\0" * (-(start + len(content)) % _ALIGNED)
        places.append(
            {
                "name": name,
                "dtype": array.dtype.name,
                "shape": list(array.shape[1:]),
                "offset": start + len(content),
            }
        )
        content += np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return Stored(content=bytes(content), places=tuple(places))


def described(
    *,
    file: str,
    sha256: str,
    copy: Copied,
    samples: Samples,
    dense: Dense,
    classes: Sequence[str] | None,
    active: Sequence[str],
    runtime: WebRuntime,
    model_bytes: int,
    notes: Sequence[str],
    files: Sequence[str],
) -> tuple[str, bytes]:
    """Return the manifest of a lab, and the bytes of its arrays.

    Args:
        file: The name of the file that the copy was made of.
        sha256: Its hash.
        copy: The copy.
        samples: The samples.
        dense: What the outputs are shown beside.
        classes: Names of the classes, or None.
        active: What is at work in every run, in clauses.
        runtime: What runs the copy.
        model_bytes: The size of the copy.
        notes: What the reader of the page should know.
        files: All files of the lab beside the manifest.
    """
    inputs = stored(samples.inputs)
    answers = stored(dense.outputs, len(inputs.content))
    content = {
        "made_by": f"spdexport {__version__}",
        "file": {"name": file, "sha256": sha256},
        "model": {"file": MODEL, "bytes": model_bytes},
        "data": DATA,
        "runtime": {"folder": RUNTIME, "version": runtime.version, "is_known": runtime.is_known},
        "inputs": inputs.places,
        "samples": {"number": samples.number, "labels": samples.labels},
        "picture": None if samples.picture is None else asdict(samples.picture),
        "outputs": copy.outputs,
        "classes": classes,
        "layers": [asdict(layer) for layer in copy.layers],
        "dense": {
            "told": dense.told,
            "is_dense": dense.is_dense,
            "is_routed": dense.routed,
            "outputs": answers.places,
        },
        "active": list(active),
        "notes": list(notes),
        "files": list(files),
    }
    text = json_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"
    return text, inputs.content + answers.content
