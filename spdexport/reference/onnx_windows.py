"""ONNX convolutions and poolings in float64: torch or a few whole-array steps, where onnx's own loops over outputs."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv import Conv as StockConv

from spdexport.reference.onnx_operators import run_stock, to_tensor, torch_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spdexport.conv import Array


def _same_pads(auto_pad: str, totals: Sequence[int]) -> tuple[list[int], list[int]]:
    """The padding before and after each axis; an odd one goes to the end with SAME_UPPER, else to the start."""
    small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def _window_pads(
    auto_pad: str | None,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    extents: Sequence[int],
    strides: Sequence[int],
) -> tuple[list[int], list[int]]:
    """The padding before and after each spatial axis of a convolution or a pooling.

    Args:
        auto_pad: The attribute; None, NOTSET and VALID leave it to `pads`.
        pads: The attribute, (2n,), or None for zeros.
        sizes: The input's spatial sizes, (n,).
        extents: What the dilated kernel spans on each axis, (n,).
        strides: (n,).
    """
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        windows = zip(sizes, extents, strides, strict=True)
        return _same_pads(auto_pad, [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in windows])
    if auto_pad == "VALID" or not pads:
        return [0] * len(sizes), [0] * len(sizes)
    return list(pads[: len(sizes)]), list(pads[len(sizes) :])


class Conv(OpRun):
    """Convolution, with torch behind it for 1 to 3 spatial axes."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        n = x.ndim - 2
        torch = torch_or_none()
        if torch is None or n not in (1, 2, 3):
            return run_stock(StockConv, self, x, w, b, auto_pad, dilations, group, kernel_shape, pads, strides)
        dilations, strides = dilations or [1] * n, strides or [1] * n
        extents = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
        before, after = _window_pads(auto_pad, pads, x.shape[2:], extents, strides)
        padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)]) if any(before + after) else x
        convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[n - 1]
        bias = None if b is None else to_tensor(b)
        out = convolve(to_tensor(padded), to_tensor(w), bias, strides, 0, dilations, group or 1)
        return (out.numpy(),)


def _full_transpose(x: Array, w: Array, strides: Sequence[int], dilations: Sequence[int], group: int) -> Array:
    """The sums of a transposed convolution without padding, one offset of the kernel at a time.

    Args:
        x: (N, C, spatial).
        w: (C, out / group, kernel).
        strides: One for each spatial axis.
        dilations: One for each spatial axis.
        group: The number of groups.

    Returns:
        (N, out, ``(size - 1) * stride + (kernel - 1) * dilation + 1`` for each spatial axis).
    """
    count, channels, *spatial = x.shape
    rows = x.reshape(count, group, channels // group, -1)
    matrices = np.swapaxes(w.reshape(group, channels // group, w.shape[1], -1), 1, 2)  # (group, out, in, offsets)
    windows = list(zip(spatial, w.shape[2:], strides, dilations, strict=True))
    full = np.zeros((count, group * w.shape[1], *((n - 1) * s + (k - 1) * d + 1 for n, k, s, d in windows)))
    for position, offset in enumerate(itertools.product(*map(range, w.shape[2:]))):
        part = np.matmul(matrices[..., position], rows)
        index = (slice(o * d, o * d + (n - 1) * s + 1, s) for o, (n, _, s, d) in zip(offset, windows, strict=True))
        full[(slice(None), slice(None), *index)] += part.reshape(count, -1, *spatial)
    return full


class ConvTranspose(OpRun):
    """Transposed convolution of any rank; onnx's own fails on asymmetric padding with groups."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        **_: Any,
    ) -> tuple[Array, ...]:
        n = x.ndim - 2
        dilations, strides = dilations or [1] * n, strides or [1] * n
        full = _full_transpose(x, w, strides, dilations, group or 1)
        # Padding crops the sums, and output padding adds zeros after their end.
        full = np.pad(full, [(0, 0), (0, 0), *((0, extra) for extra in output_padding or [0] * n)])
        sizes = full.shape[2:]
        if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            output_shape = [size * s for size, s in zip(x.shape[2:], strides, strict=True)]
        if output_shape is not None:
            totals = [size - wanted for size, wanted in zip(sizes, output_shape, strict=True)]
            before, after = _same_pads(auto_pad or "", totals)
        else:
            before, after = _window_pads(None, pads, sizes, sizes, strides)
        # An output_shape above the full sums makes an axis longer: zeros, like output padding.
        full = np.pad(
            full, [(0, 0), (0, 0), *((max(-lo, 0), max(-hi, 0)) for lo, hi in zip(before, after, strict=True))]
        )
        before, after = [max(lo, 0) for lo in before], [max(hi, 0) for hi in after]
        crop = tuple(slice(lo, size - hi) for lo, hi, size in zip(before, after, full.shape[2:], strict=True))
        out = full[(slice(None), slice(None), *crop)]
        return (out if b is None else out + b.reshape(-1, *[1] * n),)


class _Pool:
    """The windows of a pooling, one offset of the kernel at a time: memory stays at a few times the output."""

    def __init__(
        self,
        x: Array,
        kernel: Sequence[int],
        auto_pad: str | None,
        ceil_mode: int | None,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
    ) -> None:
        n = len(kernel)
        self.kernel, self.sizes = kernel, x.shape[2:]
        self.dilations, self.strides = dilations or [1] * n, strides or [1] * n
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        self.before, self.after = _window_pads(auto_pad, pads, self.sizes, extents, self.strides)
        self.out: list[int] = []
        self.beyond: list[int] = []  # what ceil_mode reads behind the padding
        for size, lo, hi, extent, stride in zip(
            self.sizes, self.before, self.after, extents, self.strides, strict=True
        ):
            room = size + lo + hi - extent
            count = (-(-room // stride) if ceil_mode else room // stride) + 1
            if ceil_mode and (count - 1) * stride >= size + lo:
                count -= 1  # a window may not start in the padding behind the input
            self.out.append(count)
            self.beyond.append(max((count - 1) * stride + extent - size - lo - hi, 0))

    def windows(self, x: Array, fill: Any, beyond: Any = None) -> Iterator[Array]:
        """Yield each offset of the kernel in turn, of all windows: (N, C, out); `beyond` fills behind the padding."""
        pads = [(0, 0)] * (x.ndim - len(self.kernel))
        padded = np.pad(x, [*pads, *zip(self.before, self.after, strict=True)], constant_values=fill)
        padded = np.pad(
            padded, [*pads, *((0, b) for b in self.beyond)], constant_values=fill if beyond is None else beyond
        )
        for offset in itertools.product(*map(range, self.kernel)):
            starts = [o * d for o, d in zip(offset, self.dilations, strict=True)]
            index = tuple(
                slice(lo, lo + (count - 1) * s + 1, s)
                for lo, count, s in zip(starts, self.out, self.strides, strict=True)
            )
            yield padded[(slice(None), slice(None), *index)]

    def reduce(self, x: Array, fill: Any, combine: Callable[[Array, Array], Array], beyond: Any = None) -> Array:
        """Combines the values of each window: (N, C, spatial) to (N, C, out); `beyond` fills behind the padding."""
        out: Array | None = None
        for part in self.windows(x, fill, beyond):
            out = part.copy() if out is None else combine(out, part)
        if out is None:
            raise ValueError("a pooling with an empty kernel")
        return out

    def first_places(self, x: Array, lowest: Any, largest: Array, *, column_major: bool) -> Array:
        """Return where in the input (N, C, spatial) the largest value of each window is, counted in the whole array.

        Args:
            x: The input.
            lowest: What fills the padding.
            largest: The values.
            column_major: Whether the spatial axes are counted with the first one fastest.
        """
        spatial = np.arange(math.prod(self.sizes)).reshape(self.sizes, order="F" if column_major else "C")
        whole = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], x.shape[1], *[1] * len(self.sizes))
        places = np.broadcast_to(whole * spatial.size + spatial, x.shape)
        beyond = np.iinfo(np.int64).max
        values = self.windows(x, lowest)
        found = np.full(largest.shape, beyond)
        for value, place in zip(values, self.windows(places, beyond), strict=True):
            found = np.where((found == beyond) & (value == largest) & (place != beyond), place, found)
        return found


class MaxPool(OpRun):
    """Maximum pooling, with the second output, Indices: positions in the whole input, of equal values the first."""

    def _run(self, x: Array, storage_order: int | None = None, **attributes: Any) -> tuple[Array, ...]:
        pool = _Pool(x, attributes.pop("kernel_shape"), **{"dilations": None, "ceil_mode": 0, **attributes})
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        largest = pool.reduce(x, lowest, np.maximum)
        if len(self.output) < 2 or not self.output[1]:
            return (largest,)
        return largest, pool.first_places(x, lowest, largest, column_major=bool(storage_order))


class AveragePool(OpRun):
    """Average pooling; with ``count_include_pad`` the padding counts, what ceil_mode reads behind it does not."""

    def _run(self, x: Array, count_include_pad: int | None = None, **attributes: Any) -> tuple[Array, ...]:
        pool = _Pool(x, attributes.pop("kernel_shape"), **{"dilations": None, "ceil_mode": 0, **attributes})
        inside = np.ones((1, 1, *pool.sizes))
        counts = pool.reduce(inside, 1.0 if count_include_pad else 0.0, np.add, beyond=0.0)
        return (pool.reduce(x, 0.0, np.add) / counts,)


class GlobalMaxPool(OpRun):
    """The largest value over all spatial axes; onnx's own takes other axes where there are not two."""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


WINDOW_OPERATORS: tuple[type[OpRun], ...] = (AveragePool, Conv, ConvTranspose, GlobalMaxPool, MaxPool)
