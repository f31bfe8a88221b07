"""Eight-bit models by ONNX Runtime's own quantizer: ranges from calibration, then pairs of QuantizeLinear and back.

Values between operators get 8 bits with a zero point, weights one step for each output channel and no zero point. Of
their 8 bits weights use 7: without VNNI, x86 kernels add pairs of products in 16 bits, where 255 * 127 * 2 is too much
and 255 * 64 * 2 is not. So the file gives the same on every CPU, and what it says is what is computed. Batch norm
behind a convolution is folded into it first: to the quantizer they are two layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from spdexport.errors import first_line
from spdexport.files.scratch import scratch_folder, writing_scratch
from spdexport.precision.unstorable import Unstorable, in_memory
from spdexport.quiet import quiet
from spdexport.rewrite.onnx_norms import fold_norms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.precision.kinds import Precision, Range

QUANTIZED = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gemm", "GlobalAveragePool",
    "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that compute with eight bits. Not those whose results span many orders, or are looked up by rank: Softmax,
normalizations, Where, TopK, ArgMax."""


def calibrated(model: ir.Model, feeds: Iterable[Mapping[str, Array]]) -> dict[str, Range]:
    """Return the range of each float value between operators, over some batches.

    Args:
        model: A model in float32.
        feeds: Batches of its inputs, by name.

    Raises:
        Unstorable: A value is not finite, or ONNX Runtime's calibration does not run the model.
    """
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The batches, one by one."""

        def __init__(self) -> None:
            self._left: Iterator[Mapping[str, Array]] = iter(feeds)

        def get_next(self) -> dict[str, Array] | None:
            """Return the next batch; None at the end."""
            batch = next(self._left, None)
            return None if batch is None else dict(batch)

    with scratch_folder() as folder, quiet():
        path = _written(_inferred(model), folder / "model.onnx")
        try:
            calibrator = create_calibrator(
                path,
                list(QUANTIZED),
                augmented_model_path=str(folder / "calibrated.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(Reader())
            found = calibrator.compute_data()
        # The calibrator raises whatever it, onnx or ONNX Runtime trips over.
        except Exception as error:
            raise Unstorable(f"ONNX Runtime's calibration does not run the model: {first_line(error)}") from error
    ranges: dict[str, Range] = {}
    for name, data in found.items():
        low, high = (float(np.asarray(end).item()) for end in data.range_value)
        if not (np.isfinite(low) and np.isfinite(high)):
            raise Unstorable(f"the value {name} is not finite on the calibration samples")
        ranges[name] = (low, high)
    return ranges


def quantized(model: ir.Model, precision: Precision) -> ir.Model:
    """Return a model with eight-bit weights, and pairs of QuantizeLinear and DequantizeLinear between operators.

    Args:
        model: A model in float32.
        precision: With the range of each value.

    Raises:
        Unstorable: The quantizer does not take the model.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    proto = _inferred(model)
    source = ir.to_proto(model)
    data = {name: tuple(np.array(end, np.float32) for end in ends) for name, ends in precision.ranges.items()}
    with quiet():
        try:
            made = QDQQuantizer(
                proto,
                per_channel=True,
                reduce_range=True,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, data),
                nodes_to_quantize=[],
                nodes_to_exclude=list(precision.left),
                op_types_to_quantize=list(QUANTIZED),
                extra_options={},
            ).quantize_model()
        # The quantizer raises whatever it trips over.
        except Exception as error:
            raise Unstorable(f"ONNX Runtime's quantizer does not take the model: {first_line(error)}") from error
    made.producer_name, made.producer_version = source.producer_name, source.producer_version
    # What shape inference noted on the way is that of this run's onnx.
    told = {value.name for value in source.graph.value_info}
    kept = [value for value in made.graph.value_info if value.name in told]
    for field, values in (("value_info", kept), ("output", source.graph.output)):
        del getattr(made.graph, field)[:]
        getattr(made.graph, field).extend(values)
    del made.metadata_props[:]
    made.metadata_props.extend(source.metadata_props)
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        raise Unstorable("it has no layer that ONNX Runtime's quantizer takes")
    found: ir.Model = ir.from_proto(made)
    found.graph.sort()  # the quantizer appends its own nodes behind all others
    return found


def _inferred(model: ir.Model) -> onnx.ModelProto:
    """The model with the types of all values, and with names of nodes, by which the quantizer knows them."""
    proto = in_memory(fold_norms(model), "the quantizer")
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"node_{index}"
    try:
        found: onnx.ModelProto = onnx.shape_inference.infer_shapes(proto)
    # onnx raises errors of several kinds for what it cannot infer.
    except Exception as error:
        raise Unstorable(f"onnx cannot infer the types of its values: {first_line(error)}") from error
    found.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    return found


def _written(proto: onnx.ModelProto, path: Path) -> str:
    with writing_scratch(path):
        path.write_bytes(proto.SerializeToString())
    return str(path)
