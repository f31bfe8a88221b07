"""Work and its results as bytes for another process.

Nearly all of it is plain values. A graph and a traced program travel as the files that they could be saved as, so that
every worker has the one that this process has, whatever it was made of, and reads no source.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import onnx_ir as ir

from spdexport.errors import UsageError, first_line


def packed(value: object) -> bytes:
    """Return a value as bytes.

    Raises:
        UsageError: It cannot leave this process.
    """
    stream = io.BytesIO()
    try:
        _Packer(stream, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception as error:  # whatever the classes inside of it raise
        raise UsageError(
            f"The model cannot be sent to other processes: {type(error).__name__}: {first_line(error)}",
            where="--engine ray",
            hint="Save it as a .pt2 or ONNX file and give that, or leave the option out.",
        ) from error
    return stream.getvalue()


def unpacked(content: bytes) -> Any:
    """Return the value that ``packed`` was given, in a process of the same user's."""
    return pickle.loads(content)


class _Packer(pickle.Pickler):
    """Knows what else is to travel than plain values."""

    def reducer_override(self, value: object) -> Any:
        """Return a function and its arguments that make the value anew; ``NotImplemented`` for plain values."""
        if isinstance(value, ir.Model):
            return _graph, (ir.to_proto(value).SerializeToString(),)
        if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.export.ExportedProgram):
            stream = io.BytesIO()
            torch.export.save(value, stream)
            return _program, (stream.getvalue(),)
        return NotImplemented


def _graph(content: bytes) -> ir.Model:
    import onnx

    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(content))
    return model


def _program(content: bytes) -> Any:
    import torch

    return torch.export.load(io.BytesIO(content))
