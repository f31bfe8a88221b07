"""Hashes of files and of named tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from spdexport.conv import Array

_CHUNK = 1 << 24


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of each tensor, in hexadecimal.

    The order of the mapping, the strides of the tensors and their device make no difference. Bytes are hashed in
    pieces of 16 MiB, in the machine's own (little-endian) order.
    """
    import torch  # files are hashed without it

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        # The lengths make the text unambiguous: no name can imitate the next tensor's header.
        header = f"{len(name)}:{name}|{tensor.dtype}|{tuple(tensor.shape)}|"
        digest.update(header.encode())
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        for start in range(0, data.size, _CHUNK):
            digest.update(data[start : start + _CHUNK].data)
    return digest.hexdigest()


def sha256_arrays(arrays: Mapping[str, Array]) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of each array, in hexadecimal, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{len(name)}:{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
