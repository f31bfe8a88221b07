"""What somebody, or a model, calls components: a table of labels, found for the components of an atlas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.errors import MaskError
from spdexport.importance.listed import Run, labels_in, split_key
from spdexport.names import count, did_you_mean, layer_of_call, some

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MOST = 1 << 20
"""Rows of a database: a table may tell of a whole model of which a part is shown."""


def read_component_labels(path: Path, sizes: Mapping[str, int]) -> tuple[dict[str, dict[int, str]], tuple[str, ...]]:
    """Return the labels of components by layer and index, and what is to be said of labels that found no place.

    Args:
        path: A table as ``spdexport masks --labels`` reads it. Where runs have '-' in the names of layers, the model
            has '.': both are found. Several labels of one component are joined.
        sizes: The number of components of each layer; calls of one layer, ``conv`` and ``conv#2``, share labels.

    Raises:
        MaskError: The file cannot be read, tells of no layer that there is, or of a component that its layer has not.
    """
    run = Run(sizes={_dashed(name): size for name, size in sizes.items()}, dashed=True)
    calls: dict[str, list[str]] = {}
    for name in sizes:
        calls.setdefault(_dashed(name), []).append(name)
    told: dict[str, dict[int, dict[str, None]]] = {}
    left: dict[str, None] = {}
    for key, label in labels_in(path, most=_MOST):
        layer, index = split_key(key, str(path))
        if _dashed(layer) not in calls:
            left[layer] = None
            continue
        run.check(layer, index, str(path))
        if text := " ".join(label.split()):
            for name in calls[_dashed(layer)]:
                told.setdefault(name, {}).setdefault(index, {})[text] = None
    if not told:
        other = next(iter(left), None)
        raise MaskError(
            "The file labels no component that is shown.",
            where=str(path),
            hint="Give labels of this run's components." if other is None else did_you_mean(other, sizes),
        )
    found = {name: {index: "; ".join(texts) for index, texts in rows.items()} for name, rows in told.items()}
    verb = "is" if len(left) == 1 else "are"
    note = f"labels of {count(len(left), 'layer')} that {verb} not shown left out: {some(tuple(left))}"
    return found, (note,) if left else ()


def _dashed(layer: str) -> str:
    return layer_of_call(layer).replace(".", "-")
