"""The nodes of a program that choose, as the rules for ONNX's operators see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spdexport.reference.decisions import Decide, Decision
from spdexport.reference.decisions_table import RULES

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
    """

    op: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    last_only: bool = False
    shape: tuple[int, ...] | None = None


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


def _remained(fmod: int) -> Callable[[Mapping[str, Any]], _Seen]:
    return lambda a: _Seen(op="Mod", inputs=(a["self"], a["other"]), attributes={"fmod": fmod})


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
    aten.fmod.Tensor: _remained(1),
    aten.fmod.Scalar: _remained(1),
    aten.remainder.Tensor: _remained(0),
    aten.remainder.Scalar: _remained(0),
    aten.hardshrink.default: lambda a: _Seen(op="Shrink", inputs=(a["self"],), attributes={"lambd": a["lambd"]}),
}  # fmt: skip
"""How each operator that chooses is told in ONNX's words."""


def decided(decide: Decide, name: str, target: Any, arguments: Mapping[str, Any], result: Any) -> Any:
    """The result of a node, where ``decide`` has another one in its place; in the dtypes of its own.

    Args:
        decide: Told the node, if it chooses.
        name: Of the node; its values have this name, and the number of the output.
        target: Its operator.
        arguments: What it was called with, by the operator's names, defaults included.
        result: What it gave: a tensor or several.
    """
    seen = NODES[target](arguments)
    tensors = list(result) if isinstance(result, tuple | list) else [result]
    if seen is None or any(t.is_complex() for t in tensors):
        return result
    own = tensors[1:] if seen.last_only else tensors
    arrays = tuple(_array(t) if seen.shape is None else _array(t).reshape(seen.shape) for t in own)

    def compute(inputs: Sequence[Array | None]) -> list[Array]:
        replaced = {**arguments, **dict(zip(_names(target), map(_tensor, inputs), strict=False))}
        return [_array(_called(target, replaced))]

    node = Decision(
        op=seen.op,
        name=name,
        inputs=tuple(map(_array, seen.inputs)),
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
    found = [torch.from_numpy(np.array(v)).reshape(t.shape).to(t.dtype) for v, t in zip(given, own, strict=True)]
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
        value = value.detach().cpu()
        if value.dtype in (torch.float16, torch.bfloat16, torch.float32):
            value = value.double()
        array: Array = value.numpy()
        return array
    return np.asarray(value, dtype=np.float64 if isinstance(value, float) else None)


def _tensor(array: Array | None) -> Any:
    return None if array is None else torch.from_numpy(np.array(array))
