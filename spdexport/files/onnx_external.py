"""The files beside an ONNX model that hold its weights: which a model may name, and what they have to be."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.errors import SourceError

if TYPE_CHECKING:
    import onnx

TOGETHER = "Copy the model together with its data file."


def check_external(tensor: onnx.TensorProto, needed: int, path: Path, where: str) -> None:
    """Check where a tensor says that its data are; nothing is opened.

    Args:
        tensor: A tensor whose data are in another file.
        needed: Its size in bytes.
        path: The model's file.
        where: The tensor's place in it.

    Raises:
        SourceError: The file is outside of the model's folder, missing, not a plain file, or shorter than needed.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    place = f"{path}, {where}"

    def refused(what: str, hint: str = TOGETHER) -> SourceError:
        return SourceError(what, where=place, hint=hint)

    if not isinstance(location, str) or not location or "\0" in location:
        raise refused("The model does not say in which file these weights are.", "Export the model again.")
    if Path(location).is_absolute() or ".." in Path(location).parts:
        raise refused(
            f"The model wants to read {location}, which is not in its own folder.",
            "Move the data file into the model's folder, and save the model with that name.",
        )
    offset, length = (_number(entries.get(key), key, place) for key in ("offset", "length"))
    data = path.parent / location
    try:
        state = os.lstat(data)
    except (OSError, ValueError):
        raise refused(f"The file {location}, which holds weights of the model, is missing.") from None
    folder = path.parent.resolve()
    # A folder on the way may be a link, too.
    if stat.S_ISLNK(state.st_mode) or not data.resolve().is_relative_to(folder):
        raise refused(
            f"The file {location}, which holds weights of the model, is a symbolic link.",
            f"Put a copy in its place: cp -L {location} COPY, then rename it.",
        )
    if not stat.S_ISREG(state.st_mode):
        raise refused(f"{location}, which holds weights of the model, is no ordinary file.")
    if length is not None and length != needed:
        raise refused(f"The weights need {needed} bytes, and the model says that {length} are stored.")
    if state.st_size < (offset or 0) + needed:
        raise refused(f"The file {location}, which holds weights of the model, is shorter than the model says.")


def _number(text: str | None, key: str, where: str) -> int | None:
    """A number of bytes as the model states it; None where it states none.

    Raises:
        SourceError: It is no number, or negative.
    """
    if text is None:
        return None
    # Twenty digits hold every size of a file, and Python refuses to read very long numbers.
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 20:
        raise SourceError(
            f"The {key} of these weights is {str(text)[:40]!r}.", where=where, hint="Export the model again."
        )
    return int(text)
