"""Operators of torch that refuse float64 or round to float32 inside, in float64: those that quantize.

A quantized value is ``clip(round(x / scale) + zero point)``, ties to even, and stands for ``scale * (value - zero
point)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _spread(values: Any, x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """A scale or a zero point beside the values that it belongs to: for all, or for each of an axis."""
    numbers = torch.as_tensor(values).to(torch.float64)
    if axis is None or numbers.dim() == 0:
        return numbers
    return numbers.reshape([-1 if n == axis % x.dim() else 1 for n in range(x.dim())])


def _steps(x: torch.Tensor, scale: Any, zero: Any, low: Any, high: Any, axis: int | None = None) -> torch.Tensor:
    steps = torch.round(x / _spread(scale, x, axis)) + _spread(zero, x, axis)
    return torch.clamp(steps, int(low), int(high))


def _quantized(x: torch.Tensor, scale: Any, zero: Any, low: Any, high: Any, dtype: torch.dtype) -> torch.Tensor:
    return _steps(x, scale, zero, low, high).to(dtype)


def _quantized_channels(
    x: torch.Tensor, scale: Any, zero: Any, axis: int, low: Any, high: Any, dtype: torch.dtype
) -> torch.Tensor:
    return _steps(x, scale, zero, low, high, axis).to(dtype)


def _dequantized(x: torch.Tensor, scale: Any, zero: Any, *_: Any, **__: Any) -> torch.Tensor:
    return (x.to(torch.float64) - _spread(zero, x, None)) * _spread(scale, x, None)


def _dequantized_channels(x: torch.Tensor, scale: Any, zero: Any, axis: int, *_: Any, **__: Any) -> torch.Tensor:
    shift = 0.0 if zero is None else _spread(zero, x, axis)
    return (x.to(torch.float64) - shift) * _spread(scale, x, axis)


def _fake_channels(x: torch.Tensor, scale: Any, zero: Any, axis: int, low: int, high: int) -> torch.Tensor:
    return (_steps(x, scale, zero, low, high, axis) - _spread(zero, x, axis)) * _spread(scale, x, axis)


FLOAT64: Mapping[str, Callable[..., torch.Tensor]] = {
    "aten::fake_quantize_per_channel_affine": _fake_channels,
    "quantized_decomposed::dequantize_per_channel": _dequantized_channels,
    "quantized_decomposed::dequantize_per_tensor": _dequantized,
    "quantized_decomposed::quantize_per_channel": _quantized_channels,
    "quantized_decomposed::quantize_per_tensor": _quantized,
}
"""By the names of their schemas."""


def full_name(target: Any) -> str:
    """Return an operator's name with its namespace, ``aten::conv2d``; empty for what is no operator of torch."""
    schema = getattr(target, "_schema", None)
    return "" if schema is None else str(schema.name)
