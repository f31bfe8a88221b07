"""Tensors to numpy and back without a copy, bfloat16 included (numpy has it through ml_dtypes)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import torch

if TYPE_CHECKING:
    from spdexport.conv import Array


def to_numpy(tensor: torch.Tensor) -> Array:
    """A view of the tensor's storage as a numpy array of the same dtype; never write to it."""
    tensor = tensor.detach().cpu()
    if tensor.dtype is torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_torch(array: Array) -> torch.Tensor:
    """A tensor of the same dtype; shares the array's memory where that is writable and contiguous."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
