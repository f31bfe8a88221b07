"""What a file says of how its numbers are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.errors import SourceError
from spdexport.model_files import read_metadata
from spdexport.precision.kinds import Precision

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir


def recorded_precision(model: ir.Model, path: Path) -> Precision | None:
    """Return the precision that a file's metadata tell; None where they tell none, so that it is the source's.

    Raises:
        SourceError: What they tell is no precision.
    """
    content = read_metadata(model).get("precision")
    if content is None:
        return None
    try:
        return Precision.from_json(content)
    except ValueError as error:
        raise SourceError(
            f"The file's metadata cannot be used: {error}.",
            where=str(path),
            hint="Give a file as spdexport wrote it, or convert the model again.",
        ) from error
