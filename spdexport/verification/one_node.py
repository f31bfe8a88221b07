"""One node of a graph as a function of arrays, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from spdexport.quiet import quiet
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.unavailable import ReferenceUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array


class OneNode:
    """A node without bodies as a function.

    Args:
        node: The node; it is not changed.
        dtypes: Of its operands, as the file has them; None for those that are left out.
        opsets: The versions of operators, by domain.

    Attributes:
        dtypes: Of its results in the file; None where that is not known.

    Raises:
        ReferenceUnavailable: The reference has no such operator, or not on these types.
    """

    def __init__(self, node: ir.Node, dtypes: Sequence[np.dtype[Any] | None], opsets: Mapping[str, int]) -> None:
        proto = ir.to_proto(node)
        proto.input[:] = ["" if dtype is None else f"i{index}" for index, dtype in enumerate(dtypes)]
        self._results = [f"o{index}" if name else "" for index, name in enumerate(proto.output)]
        proto.output[:] = self._results
        names = [name for name in self._results if name]
        given = [
            onnx.helper.make_tensor_value_info(f"i{index}", ir.DataType.from_numpy(dtype).value, None)
            for index, dtype in enumerate(dtypes)
            if dtype is not None
        ]
        graph = onnx.helper.make_graph([proto], "one", given, [onnx.ValueInfoProto(name=name) for name in names])
        imports = [onnx.helper.make_opsetid("" if d == "ai.onnx" else d, v) for d, v in opsets.items()]
        model = onnx.helper.make_model(graph, opset_imports=imports)
        try:
            with quiet():
                typed = onnx.shape_inference.infer_shapes(model)
        except onnx.shape_inference.InferenceError as error:
            raise ReferenceUnavailable(node.op_type, node.name or "", str(error).splitlines()[0]) from error
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*typed.graph.output, *typed.graph.value_info)}
        self.dtypes = [
            np.dtype(ir.DataType(kinds[name]).numpy()) if kinds.get(name) else None for name in self._results
        ]
        self._reference = OnnxReference(model)

    def run(self, operands: Mapping[int, Array]) -> list[Array]:
        """Return the results, one for each output that has a name and an empty array for others.

        Args:
            operands: By their places; floats of any width.

        Raises:
            ReferenceUnavailable: The node cannot be evaluated on these.
        """
        found = self._reference.run({f"i{index}": value for index, value in operands.items()})
        return [found[name] if name else np.zeros(0) for name in self._results]


def widened(array: Array, dtype: ir.DataType) -> Array:
    """Return the numbers of a tensor in a type that numpy computes in: floats in float64, integers of few bits in 8."""
    if dtype.is_floating_point():
        return array.astype(np.float64)
    if array.dtype.kind == "V":
        return array.astype(np.int8 if dtype.is_signed() else np.uint8)
    return array
