"""Integer buffers of one number as constants: a way to trace modules that compute sizes with them.

Tracing takes a buffer for data, whose value is known at run time only, and then cannot pad by what was computed from
it. A tensor that is made while tracing has a known value. EnCodec's strides and kernel sizes are such buffers.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def has_scalars(module: torch.nn.Module) -> bool:
    """Return whether ``constant_scalars`` would change anything."""
    return any(_scalars(part) for part in module.modules())


@contextmanager
def constant_scalars(module: torch.nn.Module) -> Iterator[None]:
    """Within the block, integer buffers of one number are made anew each time they are read, from their value now."""
    changed = []
    try:
        for part in module.modules():
            found, original = _scalars(part), type(part)
            if not found:
                continue
            for name in found:
                del part._buffers[name]
            changed.append((part, original, found))
            reads = {name: _made_anew(value) for name, value in found.items()}
            part.__class__ = type(original.__name__, (original,), {"__module__": original.__module__, **reads})
        yield
    finally:
        for part, original, found in changed:
            part.__class__ = original
            part._buffers.update(found)


def _scalars(part: torch.nn.Module) -> dict[str, torch.Tensor]:
    buffers = {name: value for name, value in part._buffers.items() if value is not None}
    return {n: v for n, v in buffers.items() if v.dim() == 0 and v.dtype in (torch.int32, torch.int64)}


def _made_anew(value: torch.Tensor) -> property:
    number, dtype = value.item(), value.dtype
    return property(lambda _: torch.tensor(number, dtype=dtype))
