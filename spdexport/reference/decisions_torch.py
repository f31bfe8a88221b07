"""The nodes of a program that choose, as the rules for ONNX's operators see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spdexport.arrays import to_numpy, to_torch
from spdexport.reference.decisions import Decide, Decision
from spdexport.reference.decisions_table import RULES
from spdexport.reference.operators_float64 import full_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spdexport.conv import Array

aten = torch.ops.aten


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A node in ONNX's words.

    Attributes:
        op: ONNX's operator.
        inputs: Its inputs.
        attributes: Its attributes.
        last_only: Whether the operator has no outputs for the node's first.
        shape: Of the operator's outputs, where the node's have another one.
        is_turned: Whether the operator's output is the node's with its axes the other way round.
    """

    op: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    last_only: bool = False
    shape: tuple[int, ...] | None = None
    is_turned: bool = False


def _compared(op: str) -> Callable[[Mapping[str, Any]], _Seen]:
    return lambda a: _Seen(op=op, inputs=(a["self"], a["other"]))


def _stepped(op: str) -> Callable[[Mapping[str, Any]], _Seen]:
    return lambda a: _Seen(op=op, inputs=(a["self"],))


def _divided(a: Mapping[str, Any]) -> _Seen | None:
    op = {"floor": "Floor", "trunc": "Trunc"}.get(a.get("rounding_mode", "floor") or "")
    return None if op is None else _Seen(op=op, inputs=(a["self"] / a["other"],))


def _largest(op: str, a: Mapping[str, Any]) -> _Seen:
    if a.get("dim") is None:
        flat = a["self"].reshape(-1)
        return _Seen(op=op, inputs=(flat,), attributes={"axis": 0, "keepdims": 1}, shape=(1,))
    return _Seen(op=op, inputs=(a["self"],), attributes={"axis": a["dim"], "keepdims": int(a["keepdim"])})


def _largest_of_two(op: str, a: Mapping[str, Any]) -> _Seen:
    attributes = {"axis": a["dim"], "keepdims": int(a["keepdim"])}
    return _Seen(op=op, inputs=(a["self"],), attributes=attributes, last_only=True)


def _topk(a: Mapping[str, Any]) -> _Seen:
    attributes = {"axis": a["dim"], "largest": int(a["largest"]), "sorted": int(a["sorted"])}
    return _Seen(op="TopK", inputs=(a["self"],), attributes=attributes)


def _sorted(a: Mapping[str, Any]) -> _Seen:
    return _Seen(op="TopK", inputs=(a["self"],), attributes={"axis": a["dim"], "largest": int(a["descending"])})


def _pooled(a: Mapping[str, Any]) -> _Seen:
    axes = a["self"].dim() - 2

    def each(value: Any) -> list[int]:
        sizes = list(value) if isinstance(value, list | tuple) else [value]
        return sizes * axes if len(sizes) == 1 else sizes

    attributes = {"kernel_shape": each(a["kernel_size"]), "dilations": each(a["dilation"]), "of_plane": True}
    return _Seen(op="MaxPool", inputs=(a["self"],), attributes=attributes)


def _sampled(a: Mapping[str, Any]) -> _Seen:
    attributes = {"mode": "nearest" if a["interpolation_mode"] == 1 else "", "align_corners": int(a["align_corners"])}
    return _Seen(op="GridSample", inputs=(a["input"], a["grid"]), attributes=attributes)


def _resized(mode: str, axes: int) -> Callable[[Mapping[str, Any]], _Seen]:
    """Nearest pixels: at or before ``place * scale``, or with ``exact`` at or before ``(place + 1/2) * scale``."""
    words = {
        "nearest": {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        "exact": {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"},
    }[mode]

    def seen(a: Mapping[str, Any]) -> _Seen:
        x = a["input"] if "input" in a else a["self"]
        given = a.get("scale_factors") or [a.get(name) for name in ("scales_d", "scales_h", "scales_w")[-axes:]]
        if axes == 1 and not a.get("scale_factors"):
            given = [a.get("scales")]
        scales = [1.0, 1.0, *given] if all(given) else None
        attributes = {"mode": "nearest", **words}
        return _Seen(op="Resize", inputs=(x, None, scales), attributes=attributes)

    return seen


def _quantized(a: Mapping[str, Any]) -> _Seen:
    """quantized_decomposed's, to some of the integers of a type, by one scale or by one for each of an axis."""
    name = "input" if "input" in a else "self"
    scale, zero = (a[f"{key}s"] if f"{key}s" in a else a[key] for key in ("scale", "zero_point"))
    attributes = {"axis": a.get("axis", 1), "low": a["quant_min"], "high": a["quant_max"]}
    return _Seen(op="QuantizeLinear", inputs=(a[name], _float64(scale), zero), attributes=attributes)


def _fake_quantized(a: Mapping[str, Any]) -> _Seen:
    x, scale, zero = a["self"], _float64(a["scale"]), torch.as_tensor(a["zero_point"])
    if "axis" in a:
        shape = [-1 if axis == a["axis"] % x.dim() else 1 for axis in range(x.dim())]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    attributes = {"low": a["quant_min"], "high": a["quant_max"]}
    return _Seen(op="FakeQuantize", inputs=(x, scale, zero), attributes=attributes)


def _float64(value: Any) -> torch.Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _bucketed(values: str, borders: str) -> Callable[[Mapping[str, Any]], _Seen | None]:
    def seen(a: Mapping[str, Any]) -> _Seen | None:
        if a.get("sorter") is not None:
            return None
        return _Seen(op="Bucketize", inputs=(_float64(a[values]), a[borders]))

    return seen


def _remained(fmod: int) -> Callable[[Mapping[str, Any]], _Seen]:
    return lambda a: _Seen(op="Mod", inputs=(a["self"], a["other"]), attributes={"fmod": fmod})


PIXELS: Mapping[Any, Callable[[Mapping[str, Any]], _Seen | None]] = {
    getattr(getattr(aten, name.format(axes)), overload): _resized(mode, axes)
    for mode, name in (("nearest", "upsample_nearest{}d"), ("exact", "_upsample_nearest_exact{}d"))
    for axes in (1, 2, 3)
    for overload in ("default", "vec")
}
"""Those that choose by sizes alone: no rounding of what they read changes which pixels they take."""

NODES: Mapping[Any, Callable[[Mapping[str, Any]], _Seen | None]] = {
    **{
        getattr(getattr(aten, name), overload): _compared(op)
        for name, op in (
            ("gt", "Greater"), ("ge", "GreaterOrEqual"), ("lt", "Less"), ("le", "LessOrEqual"), ("eq", "Equal"),
            ("ne", "Equal"),
        )
        for overload in ("Tensor", "Scalar")
    },
    **{
        getattr(aten, op.lower()).default: _stepped(op) for op in ("Floor", "Ceil", "Round", "Sign", "Trunc")
    },
    aten._to_copy.default: _stepped("Cast"),
    aten.to.dtype: _stepped("Cast"),
    aten.floor_divide.default: _divided,
    aten.div.Tensor_mode: _divided,
    aten.div.Scalar_mode: _divided,
    aten.argmax.default: lambda a: _largest("ArgMax", a),
    aten.argmin.default: lambda a: _largest("ArgMin", a),
    aten.max.dim: lambda a: _largest_of_two("ArgMax", a),
    aten.min.dim: lambda a: _largest_of_two("ArgMin", a),
    aten.topk.default: _topk,
    aten.sort.default: _sorted,
    aten.sort.stable: _sorted,
    aten.max_pool2d_with_indices.default: _pooled,
    aten.max_pool3d_with_indices.default: _pooled,
    aten.grid_sampler.default: _sampled,
    aten.grid_sampler_2d.default: _sampled,
    aten.nonzero.default: lambda a: _Seen(op="NonZero", inputs=(a["self"],), is_turned=True),
    aten.bucketize.Tensor: _bucketed("self", "boundaries"),
    aten.bucketize.Scalar: _bucketed("self", "boundaries"),
    aten.searchsorted.Tensor: _bucketed("self", "sorted_sequence"),
    aten.searchsorted.Scalar: _bucketed("self", "sorted_sequence"),
    aten.fake_quantize_per_tensor_affine.default: _fake_quantized,
    aten.fake_quantize_per_tensor_affine.tensor_qparams: _fake_quantized,
    aten.fake_quantize_per_channel_affine.default: _fake_quantized,
    **PIXELS,
    aten.fmod.Tensor: _remained(1),
    aten.fmod.Scalar: _remained(1),
    aten.remainder.Tensor: _remained(0),
    aten.remainder.Scalar: _remained(0),
    aten.hardshrink.default: lambda a: _Seen(op="Shrink", inputs=(a["self"],), attributes={"lambd": a["lambd"]}),
}  # fmt: skip
"""How each operator that chooses is told in ONNX's words."""

NAMED: Mapping[str, Callable[[Mapping[str, Any]], _Seen | None]] = {
    "quantized_decomposed::quantize_per_channel": _quantized,
    "quantized_decomposed::quantize_per_tensor": _quantized,
}
"""Those that torch has only once a part of it is imported, by the names of their schemas."""


def _rule_of(target: Any) -> Callable[[Mapping[str, Any]], _Seen | None] | None:
    return NODES.get(target) or NAMED.get(full_name(target))


def has_rule(target: Any) -> bool:
    """Return whether an operator of a program is one that may choose."""
    return _rule_of(target) is not None


def decided(decide: Decide, name: str, target: Any, arguments: Mapping[str, Any], result: Any) -> Any:
    """Return the result of a node, where ``decide`` has another one in its place; in the dtypes of its own.

    Args:
        decide: Told the node, if it chooses.
        name: Of the node; its values have this name, and the number of the output.
        target: Its operator.
        arguments: What it was called with, by the operator's names, defaults included.
        result: What it gave: a tensor or several.
    """
    rule = _rule_of(target)
    seen = None if rule is None else rule(arguments)
    tensors = list(result) if isinstance(result, tuple | list) else [result]
    if seen is None or any(t.is_complex() for t in tensors):
        return result
    own = tensors[1:] if seen.last_only else tensors
    arrays = tuple(_array(t) if seen.shape is None else _array(t).reshape(seen.shape) for t in own)
    arrays = tuple(array.T for array in arrays) if seen.is_turned else arrays

    def compute(inputs: Sequence[Array | None]) -> list[Array]:
        replaced = {**arguments, **dict(zip(_names(target), map(_tensor, inputs), strict=False))}
        return [_array(_called(target, replaced))]

    node = Decision(
        op=seen.op,
        name=name,
        inputs=tuple(None if value is None else _array(value) for value in seen.inputs),
        outputs=arrays,
        output_names=tuple(f"{name}#{i}" for i in range(len(arrays))),
        attributes=seen.attributes,
        compute=compute,
        version=18,
        ties_are_open=True,
    )
    given = decide(node) if RULES[seen.op].chooses(node) else None
    if given is None:
        return result
    if seen.is_turned:  # how many there are is chosen too
        return _tensor(given[0].T).to(own[0].dtype)
    found = [_tensor(v).reshape(t.shape).to(t.dtype) for v, t in zip(given, own, strict=True)]
    if not isinstance(result, tuple | list):
        return found[0]
    return [*tensors[: len(tensors) - len(found)], *found]


def _names(target: Any) -> list[str]:
    return [argument.name for argument in target._schema.arguments]


def _called(target: Any, arguments: Mapping[str, Any]) -> Any:
    """The operator on arguments by name; those that it takes by place alone are given so."""
    schema = target._schema.arguments
    places = [arguments[a.name] for a in schema if not a.kwarg_only]
    return target(*places, **{a.name: arguments[a.name] for a in schema if a.kwarg_only})


def _array(value: Any) -> Array:
    if isinstance(value, torch.Tensor):
        if value.dtype in (torch.float16, torch.bfloat16, torch.float32):
            value = value.double()
        return to_numpy(value)
    return np.asarray(value, dtype=np.float64 if isinstance(value, float) else None)


def _tensor(array: Array | None) -> Any:
    return None if array is None else to_torch(np.array(array))
