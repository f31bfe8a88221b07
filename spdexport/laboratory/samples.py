"""The samples of a lab: the first ones of a data set, in the layout in which a page shows those that are pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.errors import ExampleInputError
from spdexport.files.batches import open_data
from spdexport.names import count
from spdexport.verification.data_feeds import LABELS, data_feeds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.verification.ports import Port

SAMPLES = 32
"""Samples in a lab, where the user does not say."""

DTYPES = ("float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
"""What a page can hand to ONNX Runtime; float64, too, for a file that takes it."""

_COLOURS = (1, 3)
_SMALLEST, _LARGEST = 8, 4096
"""Pixels that the sides of a picture have: what is smaller is a table, such as tokens and what each has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """How a sample is drawn.

    Attributes:
        input: The input that is a picture.
        layout: ``chw``, ``hwc`` or ``hw``: the order of its axes.
        channels, height, width: Their sizes.
        low, high: The least and greatest finite value of all samples, which become black and white.
    """

    input: str
    layout: str
    channels: int
    height: int
    width: int
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Samples of a data set.

    Attributes:
        inputs: By the file's own names; axis 0 counts the samples.
        labels: The right class of each; None where the data hold none.
        picture: How they are drawn; None where no input is a picture.
        number: How many there are here.
        total: How many the data set has.
        files: What was read.
        notes: What the user should know.
    """

    inputs: Mapping[str, Array]
    labels: tuple[int, ...] | None
    picture: Picture | None
    number: int
    total: int
    files: tuple[Path, ...]
    notes: tuple[str, ...]

    def one(self, index: int) -> dict[str, Array]:
        """Return a sample as a batch of one."""
        return {name: array[index : index + 1] for name, array in self.inputs.items()}


def read_samples(path: str | Path, ports: Sequence[Port], limit: int) -> Samples:
    """Read the first samples of a data set.

    Args:
        path: A .npz, .npy or safetensors file, or a folder of such.
        ports: The inputs of the file that are the model's own.
        limit: How many samples are wanted at most.

    Raises:
        ExampleInputError: The data cannot be read, or are not what the file takes for one sample.
    """
    _check_ports(ports)
    data = open_data(path)
    parts: list[Mapping[str, Array]] = []
    labels: list[Array] = []
    number = 0
    for batch in data.batches(min(limit, data.samples)):
        feeds = data_feeds(ports, batch, str(data.path))
        take = min(limit - number, *(len(array) for array in feeds.values()))
        parts.append({name: array[:take] for name, array in feeds.items()})
        if LABELS in batch and LABELS not in feeds:
            labels.append(batch[LABELS][:take])
        number += take
        if number >= limit:
            break
    inputs = {port.name: _joined([part[port.name] for part in parts], port, str(data.path)) for port in ports}
    known, notes = _labels(labels, number)
    if number < data.samples:
        notes.append(f"{number} of {count(data.samples, 'sample')} are in the lab; --samples takes more")
    return Samples(
        inputs=inputs,
        labels=known,
        picture=_picture(inputs),
        number=number,
        total=data.samples,
        files=data.files,
        notes=tuple(notes),
    )


def _check_ports(ports: Sequence[Port]) -> None:
    if not ports:
        raise ExampleInputError(
            "The file takes no inputs but masks, so that there are no samples to choose.",
            where="the file's inputs",
            hint="Give a file of a model that takes data.",
        )
    for port in ports:
        first = port.shape[0] if port.shape else None
        if not port.shape or (isinstance(first, int) and first != 1):
            raise ExampleInputError(
                f"The file takes {port.describe()}, and a page gives one sample at a time.",
                where=f"input {port.name}",
                hint="Convert the model with --dynamic-batch, or with example inputs of one sample.",
            )
        if port.dtype.name not in DTYPES:
            raise ExampleInputError(
                f"The file takes {port.dtype} for {port.name}, which a page cannot give.",
                where=f"input {port.name}",
                hint=f"Convert the model with inputs of {', '.join(DTYPES)}.",
            )


def _joined(parts: Sequence[Array], port: Port, where: str) -> Array:
    shapes = {part.shape[1:] for part in parts}
    declared = port.shape or ()
    for shape in shapes:
        fits = len(shape) == len(declared) - 1 and all(
            not isinstance(size, int) or size == own for size, own in zip(declared[1:], shape, strict=False)
        )
        if not fits or len(shapes) > 1:
            raise ExampleInputError(
                f"The data have {' and '.join(sorted(str(one) for one in shapes))} for one sample of {port.name}.",
                where=where,
                hint=f"The file takes {port.describe()}.",
            )
    return np.concatenate(parts)


def _labels(parts: Sequence[Array], number: int) -> tuple[tuple[int, ...] | None, list[str]]:
    if not parts:
        return None, []
    found = np.concatenate(parts)
    if found.shape != (number,) or found.dtype.kind not in "iu":
        return None, [f"labels are {found.dtype} of shape {found.shape}, not one class for each sample: left out"]
    return tuple(int(label) for label in found), []


def _picture(inputs: Mapping[str, Array]) -> Picture | None:
    """Return how the first input that may be a picture is drawn: one or three colours over two axes."""
    for name, array in inputs.items():
        if array.dtype.kind not in "fu":
            continue
        match array.shape[1:]:
            case (channels, height, width) if channels in _COLOURS:
                layout = "chw"
            case (height, width, channels) if channels in _COLOURS:
                layout = "hwc"
            case (height, width):
                layout, channels = "hw", 1
            case _:
                continue
        finite = array[np.isfinite(array)]
        if not _SMALLEST <= min(height, width) <= max(height, width) <= _LARGEST or not finite.size:
            continue
        return Picture(
            input=name,
            layout=layout,
            channels=channels,
            height=height,
            width=width,
            low=float(finite.min()),
            high=float(finite.max()),
        )
    return None
