"""Networks of a search in fewer bits: calibrated on the samples that weights are fitted on, and what is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from spdexport.compression.running import batches_of
from spdexport.errors import UsageError
from spdexport.precision import Precision, Storage, calibrated, lowered

if TYPE_CHECKING:
    import onnx_ir as ir

    from spdexport.compression.data import Samples
    from spdexport.compression.dense_model import DenseModel


class Quantize(StrEnum):
    """Whether the result has eight bits."""

    NONE = "none"
    INT8 = "int8"
    AUTO = "auto"


class Dtype(StrEnum):
    """The floats of the result."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """In which fewer bits a result may be.

    Attributes:
        storage: What numbers are stored as.
        required: Whether they are, wherever the budget allows; else only where it is the best.
    """

    storage: Storage
    required: bool

    @classmethod
    def of(cls, quantize: str, dtype: str) -> Wanted | None:
        """Return what two options ask for; None for float32.

        Raises:
            UsageError: An option has no such value, or they do not go together.
        """
        for name, value, words in (("quantize", quantize, Quantize), ("dtype", dtype, Dtype)):
            if value not in set(words):
                allowed = ", ".join(word.value for word in words)
                raise UsageError(
                    f"{value!r} is no value of {name}.", where=f"--{name}", hint=f"Choose one of {allowed}."
                )
        if quantize != Quantize.NONE and dtype != Dtype.FLOAT32:
            raise UsageError(
                "Numbers are stored in eight bits or in half precision, not in both.",
                where=f"--quantize {quantize} and --dtype {dtype}",
                hint="Give one of them.",
            )
        if dtype == Dtype.FLOAT16:
            return cls(storage=Storage.FLOAT16, required=True)
        if quantize == Quantize.NONE:
            return None
        return cls(storage=Storage.INT8, required=quantize == Quantize.INT8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lowering:
    """What makes networks store their numbers in fewer bits.

    Attributes:
        dense: The network of the search, whose inputs the others have too.
        samples: What ranges are calibrated on.
        storage: What numbers are stored as.
        keeps_ends: Whether the first and the last layer stay in float32.
    """

    dense: DenseModel
    samples: Samples
    storage: Storage
    keeps_ends: bool = False

    def precision(self, model: ir.Model) -> Precision:
        """Return how the numbers of a network are to be stored.

        Raises:
            Unstorable: They cannot be.
        """
        left = ends(model) if self.keeps_ends else ()
        if self.storage is Storage.FLOAT16:
            return Precision(storage=self.storage, left=left)
        feeds = (batch.feeds for batch in batches_of(self.dense, self.samples, whole=True))
        return Precision(storage=self.storage, ranges=calibrated(model, feeds), left=left)

    def __call__(self, model: ir.Model) -> ir.Model:
        """Return a network with its numbers stored so.

        Raises:
            Unstorable: They cannot be.
        """
        return lowered(model, self.precision(model))


def ends(model: ir.Model) -> tuple[str, ...]:
    """Return the names of the first and the last node that reads a weight; nameless ones as they are numbered."""
    names = [
        node.name or f"node_{index}"
        for index, node in enumerate(model.graph)
        if node.op_type in LAYERS and any(v is not None and v.is_initializer() for v in node.inputs)
    ]
    return tuple(dict.fromkeys((names[0], names[-1]))) if names else ()
