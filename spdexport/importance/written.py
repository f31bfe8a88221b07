"""The files of derived masks: the masks, and what is known of importances beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from spdexport.errors import UsageError
from spdexport.files.atomic import replacing
from spdexport.files.writing import writing
from spdexport.importance.statistics import Measure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.importance.result import LayerMask


def check_name(path: Path) -> None:
    """Refuse a name for masks that does not tell what they are written as.

    Raises:
        UsageError: It ends in something else than ``.safetensors``.
    """
    if path.suffix != ".safetensors":
        raise UsageError(
            f"Masks are written as safetensors, and {path.name!r} does not end so.",
            where=f"-o {path}",
            hint="Name it OUT.safetensors.",
        )


def write_masks(layers: Sequence[LayerMask], path: Path, beside: Path | None) -> None:
    """Write both files, whole or not at all; the masks alone where ``beside`` is None."""
    masks = {layer.name: layer.mask for layer in layers}
    if beside is None:
        with replacing(path) as alone:
            _write(masks, path, alone)
        return
    statistics = {
        f"{layer.name}/{measure.value}": values.astype(np.float32)
        for layer in layers
        if layer.importances is not None
        for measure in Measure
        if (values := layer.importances.measured(measure)) is not None
    }
    with replacing(path) as first, replacing(beside) as second:
        _write(masks, path, first)
        _write(statistics, beside, second)


def _write(arrays: dict[str, Array], final: Path, file: Path) -> None:
    content = safetensors.numpy.save(arrays)
    with writing(final, size=len(content)):
        file.write_bytes(content)
