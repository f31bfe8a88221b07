"""Fixed masks: reading them, and putting them into the factors of the layers they name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from spdexport.errors import MaskError, UsageError
from spdexport.files.hashing import sha256_file
from spdexport.files.tensors import read_tensors
from spdexport.names import did_you_mean, layer_of_call

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from spdexport.conv import FloatArray, Skipped
    from spdexport.factors import Factors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskSet:
    """The masks of a file, finite and not yet compared with any layer.

    Attributes:
        values: By layer name, shape (C,), or (groups, C) for layers with groups, or one for each output location,
            (*locations, C), with the components of all groups on the last axis; the threshold is applied. Values may
            be negative: those of the first SPD runs were.
        threshold: The T of "kept where mask > T", or None where the masks were taken as they are.
        path: The file.
        sha256: Hash of the file's content.
    """

    values: Mapping[str, FloatArray]
    threshold: float | None = None
    path: Path | None = None
    sha256: str | None = None


def read_masks(path: str | Path, *, threshold: float | None) -> MaskSet:
    """Read masks from safetensors, npz, JSON, or a weights-only ``.pt``.

    Args:
        path: A file with one mask for each layer name: float, integer or bool.
        threshold: Keep a component (1.0) where its mask is greater, remove it (0.0) elsewhere; None leaves the masks as
            they are. It is rounded to the mask's own float dtype, so that a float32 mask that was set to 0.1 is not
            greater than a threshold of 0.1.

    Raises:
        MaskError: The file cannot be read, is empty, or holds NaN, infinity, or masks that are not one for each layer.
        PickleRefusedError: Reading the file would run code that it brings.
        UsageError: The threshold is not a finite number.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(
            f"The mask threshold is {threshold}, not a finite number.",
            where="--mask-threshold",
            hint="Give the number above which a component is kept.",
        )
    path = Path(path)
    tensors = read_tensors(path, error=MaskError)
    if not tensors:
        raise MaskError(
            "The file holds no masks.",
            where=str(path),
            hint="Give a file with one tensor of shape (C,) for each layer, called like the layer.",
        )
    values = {name: _values(name, tensor, threshold, path) for name, tensor in tensors.items()}
    return MaskSet(values=values, threshold=threshold, path=path, sha256=sha256_file(path))


_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
"""What masks may be of."""


def _values(name: str, tensor: torch.Tensor, threshold: float | None, path: Path) -> FloatArray:
    where = f"{path}, layer {name}"
    if tensor.dtype not in _DTYPES:
        kind = "complex" if tensor.is_complex() else f"of dtype {str(tensor.dtype).removeprefix('torch.')}"
        raise MaskError(
            f"The mask of {name} is {kind}.",
            where=where,
            hint="Give a mask of a float type of 16 bits or more, an integer type or bool.",
        )
    if tensor.ndim not in (1, 2, 3, 4):
        expected = "(C,), or (groups, C) for a layer with groups, or (*locations, C)"
        raise _not_one_per_component(name, tuple(tensor.shape), expected, where)
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise MaskError(
            f"The mask of {name} holds NaN or infinity ({bad} of {tensor.numel()} values).",
            where=where,
            hint="Mend the mask: a component is removed by 0 and kept by 1.",
        )
    if threshold is not None:
        dtype = tensor.dtype if tensor.is_floating_point() else torch.float64
        tensor = tensor.to(dtype) > torch.tensor(threshold, dtype=dtype)
    result: FloatArray = tensor.detach().cpu().to(torch.float64).numpy()
    return result


def fit_masks(
    masks: MaskSet,
    factors: Mapping[str, Factors],
    *,
    layers: Collection[str] = (),
    left: Sequence[Skipped] = (),
    excluded: Callable[[str], bool] = lambda _: False,
) -> dict[str, Factors]:
    """Put each mask into the factors of the layer it names.

    A mask reaches all calls of its module: ``conv`` and ``conv#2``.

    Args:
        masks: What was read.
        factors: By site name.
        layers: All layers of the model, those without components too, so that a message can tell the two apart.
        left: Those that are known not to have components, with the reason.
        excluded: Whether the user left a layer out by name; its mask is passed over, as its components are.

    Returns:
        All factors, by site name; those without a mask as they were. Masks are float64.

    Raises:
        MaskError: A mask names no layer with components, or its shape is not that of the layer's components.
    """
    result = dict(factors)
    for name, values in masks.values.items():
        sites = [site for site in factors if name in (site, layer_of_call(site))]
        # A file about an SPD run may have its names, with '-' for '.'; the model's own come first.
        sites = sites or [site for site in factors if name == layer_of_call(site).replace(".", "-")]
        where = f"{masks.path or 'masks'}, layer {name}"
        if not sites and excluded(name):
            continue
        if not sites:
            raise _unknown(name, factors, layers, {s.name: s.reason for s in left}, where)
        for site in sites:
            result[site] = _masked(name, factors[site], values, where)
    return result


def _masked(name: str, factors: Factors, values: FloatArray, where: str) -> Factors:
    expected = (*factors.V.shape[:-2], factors.components)
    if values.shape == expected:
        return replace(factors, mask=values)
    if values.ndim > 1 and values.shape[-1] == math.prod(expected) and values.size:
        # That the locations are those of the layer's output is seen where it is placed.
        return replace(factors, located=values)
    if values.ndim != len(expected):
        raise _not_one_per_component(name, values.shape, str(expected), where)
    lengths = f"length {values.shape[0]}" if values.ndim == 1 else f"shape {values.shape}"
    needed = f"{expected[0]} components" if values.ndim == 1 else f"(groups, components) {expected}"
    raise MaskError(
        f"The mask of {name} has {lengths}, and the layer has {needed}.",
        where=where,
        hint="Give a mask that was made for these components.",
    )


def _not_one_per_component(name: str, shape: tuple[int, ...], expected: str, where: str) -> MaskError:
    return MaskError(
        f"The mask of {name} has shape {shape}, not {expected}.",
        where=where,
        hint="Give one value for each component, or for each component at each output location (height, width, C); "
        "masks for each sample are inputs: convert --runtime-masks.",
    )


def _unknown(
    name: str, factors: Mapping[str, Factors], layers: Collection[str], reasons: Mapping[str, str], where: str
) -> MaskError:
    if name in layers or any(layer_of_call(layer) == name for layer in layers):
        masked = ", ".join(list(factors)[:8]) or "none"
        why = next((f": {why}" for site, why in reasons.items() if name in (site, layer_of_call(site))), "")
        return MaskError(
            f"There is a mask for {name}, and the layer has no components{why}.",
            where=where,
            hint=f"Take the mask out, or leave the layer out with --exclude {name}. Layers with components: {masked}.",
        )
    return MaskError(
        f"There is a mask for {name}, and the model has no such layer.",
        where=where,
        hint=did_you_mean(name, (*factors, *layers)),
    )
