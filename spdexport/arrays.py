"""Tensors to numpy and back without a copy; bfloat16 and float8 are numpy's through ml_dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import torch

if TYPE_CHECKING:
    from spdexport.conv import Array


_NARROW = {
    torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e4m3fnuz: (torch.uint8, ml_dtypes.float8_e4m3fnuz),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
    torch.float8_e5m2fnuz: (torch.uint8, ml_dtypes.float8_e5m2fnuz),
}
"""The dtypes that numpy has not itself: integers of the same size, and the dtype that stands for it."""


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return a view of the tensor's storage as a numpy array of the same dtype; never write to it."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in _NARROW:
        integers, dtype = _NARROW[tensor.dtype]
        return tensor.contiguous().view(integers).numpy().view(dtype)
    return tensor.numpy()


def to_torch(array: Array) -> torch.Tensor:
    """Return a tensor of the same dtype; shares the array's memory where that is writable and contiguous."""
    array = np.require(array, requirements=["C", "W"])
    for narrow, (_, dtype) in _NARROW.items():
        if array.dtype == dtype:
            return torch.from_numpy(array.view(f"u{array.itemsize}")).view(narrow)
    return torch.from_numpy(array)
