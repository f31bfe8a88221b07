"""What adapters make of a layer's weight: LoRA and its kin, and DoRA's magnitudes, in float64.

With alpha, the rank r, and the factors in the layouts that peft, kohya's scripts and LyCORIS write, what is added is::

    LoRA    alpha / r * up down            down a convolution of the layer's kernel or 1x1, up the other of the two
    LoCon   alpha / r * up mid down        mid the layer's kernel between 1x1 convolutions
    LoHa    alpha / r * (w1_a w1_b) * (w2_a w2_b)          elementwise; with t1 and t2, each a Tucker product
    LoKr    alpha / r * kron(w1, w2)                       each of the two a product, or whole

and with magnitudes m (DoRA, Liu et al., 2024, equation 5), W the weight with all that is added::

    peft    m[o] * W[o] / norm(W[o])                       the norm over all that output o reads
    LyCORIS the same with 2^-23 added to the norm, or with inputs for outputs where m has one for each input
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from spdexport.arrays import to_numpy
from spdexport.conv import ConvSpec
from spdexport.errors import ComponentsError
from spdexport.forms import Form, Stage, compose, dense
from spdexport.forms.base import CannotComposeError
from spdexport.names import count, shape_of
from spdexport.sources.adapters import NAMES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from spdexport.conv import Array, ConvSite, FloatArray
    from spdexport.sources.adapters import RawAdapter


def added_form(raw: RawAdapter, site: ConvSite, where: str) -> Form:
    """Return the dense layer with the adapter added to its weight, rounded once to the layer's dtype.

    Args:
        raw: The adapter.
        site: The layer.
        where: The file and layer, for messages.

    Raises:
        ComponentsError: It does not fit the layer, or fits it in several ways.
    """
    about = f"{site.name} ({site.kind} {site.spec.describe()})"
    if site.spec.transposed:
        raise ComponentsError(
            f"{about} is transposed, and adapters of such layers are laid out in several ways.",
            where=where,
            hint=f"Merge the adapter first, or leave the layer out with --exclude {site.name}.",
        )
    shapes = ", ".join(f"{name} {shape_of(tuple(tensor.shape))}" for name, tensor in raw.parts.items())
    try:
        exact = _adapted(raw, site)
    except (ValueError, CannotComposeError) as error:
        raise ComponentsError(
            f"The {NAMES[raw.kind]} of {shapes} does not fit {about}.",
            where=where,
            hint=f"Give the model that it was trained on, or leave the layer out with --exclude {site.name}.",
        ) from error
    except _RefusedError as error:
        raise ComponentsError(
            f"The {NAMES[raw.kind]} of {shapes} {error} {about}.",
            where=where,
            hint=f"Merge the adapter first, or leave the layer out with --exclude {site.name}.",
        ) from error
    weight = _rounded(exact, site.weight.dtype, f"The weight of {about}", site, where)
    bias = site.bias
    if "bias" in raw.parts:
        bias = _rounded(_added_bias(raw, site, where), weight.dtype, f"The bias of {about}", site, where)
    return dense(site.spec, weight, bias)


def _rounded(exact: FloatArray, dtype: np.dtype, what: str, site: ConvSite, where: str) -> Array:
    """The layer's own dtype.

    Raises:
        ComponentsError: It is beyond its range.
    """
    with np.errstate(over="ignore"):
        rounded = exact.astype(dtype)
    if not np.isfinite(rounded.astype(np.float64)).all():
        raise ComponentsError(
            f"{what} with the adapter is beyond the range of {dtype}.",
            where=where,
            hint=f"Convert the model in a wider dtype, or leave the layer out with --exclude {site.name}.",
        )
    return rounded


def _added_bias(raw: RawAdapter, site: ConvSite, where: str) -> FloatArray:
    """The layer's bias, with what peft adds to it (``lora_bias``).

    Raises:
        ComponentsError: The layer has none, or it is of another size.
    """
    added = _f64(raw.parts["bias"])
    if site.bias is None or added.shape != site.bias.shape:
        has = "no bias" if site.bias is None else f"a bias of {count(len(site.bias), 'number')}"
        raise ComponentsError(
            f"The LoRA adds a bias of shape {shape_of(added.shape)} to {site.name}, which has {has}.",
            where=where,
            hint=f"Give the model that it was trained on, or leave the layer out with --exclude {site.name}.",
        )
    return np.asarray(site.bias, dtype=np.float64) + scale_of(raw) * added


class _RefusedError(Exception):
    """An adapter that fits a layer and still says no one weight; a few words say why, in front of the layer."""


def _adapted(raw: RawAdapter, site: ConvSite) -> FloatArray:
    """The layer's weight with the adapter, in float64.

    Raises:
        ValueError: The shapes do not fit.
        CannotComposeError: The same.
        _RefusedError: They fit, and say no one weight.
    """
    spec = site.spec
    if raw.kind == "lora":
        change = _composed([_f64(raw.parts[name]) for name in ("down", "mid", "up") if name in raw.parts], spec)
    else:
        change = Stage(spec=spec, weight=_product(raw, spec))
    weight = np.asarray(change.weight, dtype=np.float64)
    if weight.shape != replace(spec, groups=change.spec.groups).weight_shape:
        raise ValueError("the product has another size")
    if change.spec.groups != spec.groups:
        weight = _of_groups(weight, spec)
    weight = np.asarray(site.weight, dtype=np.float64) + scale_of(raw) * weight
    return _with_magnitudes(raw, weight) if is_decomposed(raw) else weight


def _of_groups(whole: FloatArray, spec: ConvSpec) -> FloatArray:
    """The weight of a layer with groups, of one for all channels.

    Raises:
        _RefusedError: An output reads channels of another group.
    """
    blocks = whole.reshape(spec.groups, spec.group_out, spec.groups, -1, *spec.kernel)
    own = np.stack([blocks[group, :, group] for group in range(spec.groups)])
    if np.count_nonzero(own) != np.count_nonzero(whole):
        raise _RefusedError("reads channels of all groups for each output, which has no place in the weight of")
    return own.reshape(spec.weight_shape)


def is_decomposed(raw: RawAdapter) -> bool:
    """Return whether an adapter holds magnitudes that the weight is brought to, as DoRA's do."""
    return "magnitude" in raw.parts or "dora_scale" in raw.parts


def _with_magnitudes(raw: RawAdapter, weight: FloatArray) -> FloatArray:
    """The weight, of shape (out, in, *kernel), each of its outputs or inputs brought to the norm that the file has."""
    if "magnitude" in raw.parts:
        axis, norms, least = 0, _f64(raw.parts["magnitude"]), 0.0
        # peft: (out,), and (1, out, 1, 1) for convolutions
        fits = norms.shape in ((len(weight),), (1, len(weight), *(1,) * (weight.ndim - 2)))
    else:
        norms, least = _f64(raw.parts["dora_scale"]), float(np.finfo(np.float32).eps)
        # LyCORIS: (out, 1, 1, 1), or (1, in, 1, 1) where it was trained with ``wd_on_out=False``
        axis = 0 if norms.shape[:1] == (norms.size,) == weight.shape[:1] else 1
        fits = norms.size == weight.shape[axis] and norms.shape[axis : axis + 1] == (norms.size,)
    if not fits:
        raise ValueError("the magnitudes are of another number")
    columns = tuple(other for other in range(weight.ndim) if other != axis)
    found = np.sqrt((weight**2).sum(axis=columns, keepdims=True)) + least
    if not found.all():
        raise _RefusedError("has magnitudes, and leaves nothing but zeros of an output of")
    return np.asarray(norms.reshape(found.shape) / found * weight)


def told_change(raw: RawAdapter) -> str:
    """Return what becomes of a layer's weight, in a clause."""
    told = f"{NAMES[raw.kind]} times {scale_of(raw):g} is added to the weight"
    return f"{told}, which is then brought to DoRA's magnitudes" if is_decomposed(raw) else told


def scale_of(raw: RawAdapter) -> float:
    """Return what an adapter's product is multiplied with."""
    if raw.scale is not None:
        return raw.scale
    rank = _rank(raw)
    return 1.0 if raw.alpha is None or rank is None else raw.alpha / rank


def _rank(raw: RawAdapter) -> int | None:
    """The rank; None for a LoKr of two whole factors, which LyCORIS does not scale."""
    match raw.kind:
        case "lora":
            return int(raw.parts["down"].shape[0])
        case "loha":
            return int(raw.parts["w1_b"].shape[0])
        case _:
            inner = raw.parts.get("w1_b", raw.parts.get("w2_b"))
            return None if inner is None else int(inner.shape[0])


def _product(raw: RawAdapter, spec: ConvSpec) -> FloatArray:
    parts = {name: _f64(tensor) for name, tensor in raw.parts.items()}
    first, second = (_factor(parts, name) for name in ("w1", "w2"))
    if raw.kind == "loha":
        return (first * second).reshape(spec.weight_shape)
    first = first.reshape(*first.shape, *(1,) * (second.ndim - first.ndim))
    return np.asarray(np.kron(first, second)).reshape(spec.weight_shape)


def _factor(parts: Mapping[str, FloatArray], name: str) -> FloatArray:
    """One of the two factors of LoHa and LoKr: whole, a product, or a Tucker product with a core."""
    if name in parts:
        return parts[name]
    a, b, core = parts[f"{name}_a"], parts[f"{name}_b"], parts.get(f"t{name[1:]}")
    if core is None:
        return a @ b.reshape(b.shape[0], -1)
    return np.asarray(np.einsum("ij...,ip,jr->pr...", core, a, b))


def _composed(weights: list[FloatArray], spec: ConvSpec) -> Stage:
    """Convolutions in a row that stand for one of this kernel; a matrix is a 1x1 convolution.

    Of a layer with groups, each of them has as many groups or none, as its shape tells: peft's ``up`` has, its ``down``
    has none, so that each output may read all channels.
    """
    axes, stages = spec.axes, list[Stage]()
    channels = spec.in_channels
    for weight in weights:
        full = weight if weight.ndim == axes + 2 else weight.reshape(*weight.shape[:2], *(1,) * axes)
        groups = channels // full.shape[1] if full.shape[1] else 0
        if groups * full.shape[1] != channels or groups not in (1, spec.groups):
            raise ValueError("the channels between the factors differ")
        own = replace(ConvSpec.pointwise(channels, full.shape[0], axes=axes, groups=groups), kernel=full.shape[2:])
        stages.append(Stage(spec=own, weight=full))
        channels = full.shape[0]
    if stages[0].spec.groups > 1 and stages[-1].spec.groups == 1:
        raise _RefusedError("is a product of the stored weight, or convolutions in a row, which differ for")
    return reduce(compose, stages)


def _f64(tensor: torch.Tensor) -> FloatArray:
    return np.asarray(to_numpy(tensor), dtype=np.float64)
