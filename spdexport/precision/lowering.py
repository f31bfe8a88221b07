"""A float32 model made one that stores its numbers in fewer bits: one door for all kinds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.precision.eight_bits import quantized
from spdexport.precision.half import halved
from spdexport.precision.kinds import Precision, Storage
from spdexport.precision.unstorable import Unstorable

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Unstorable", "lowered"]


def lowered(model: ir.Model, precision: Precision) -> ir.Model:
    """Return a model whose numbers are stored as a precision says; the one that is given stays as it is.

    Args:
        model: A model in float32.
        precision: As what, and with which ranges.

    Raises:
        Unstorable: It cannot be; the text says why.
    """
    match precision.storage:
        case Storage.INT8:
            return quantized(model, precision)
        case Storage.FLOAT16:
            return halved(model, precision)
