"""The inner values of a file as ONNX Runtime computes them, and how each is judged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from spdexport.files.atomic import named_beside
from spdexport.files.onnx_reading import reload_onnx
from spdexport.ort.sessions import RuntimeFailure, SessionSettings, open_session
from spdexport.reference.decisions_quantized import SMALL_ELEMENTS as FLOATS
from spdexport.verification.compare import compare
from spdexport.verification.result import Status
from spdexport.verification.trial import masked_floor

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from spdexport.conv import Array


SMALL_ELEMENTS = FLOATS | {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")

Meant = Callable[[str, "Array"], "Array | None"]
"""From a value's name and what the right model has for it to what a file has; None where that does not tell."""


def as_it_is(_: str, value: Array) -> Array | None:
    """Return the ``Meant`` of a file that has what the right model has."""
    return value


def tapping_hides(settings: SessionSettings) -> str:
    """Return what it means that no inner value of a file is wrong once all are outputs, though its outputs were."""
    told = "no layer diverges once all inner values are outputs too"
    if settings.optimized:
        return f"{told}, which keeps ONNX Runtime from fusing layers: probably one of its fusions is at fault"
    return f"{told}: the fault is behind the layers, or comes and goes with what else is computed"


def diverges(name: str, value: Array, exact: Array, others: Sequence[Array]) -> bool:
    """Return whether an inner value is more than rounding off; ``others`` has the model's dtype first, then noise."""
    floor = masked_floor(exact, others[0], others[1:])
    return compare(name, value, exact, floor).status is Status.FAIL


def channel_ratio(value: Array, exact: Array, others: Sequence[Array], u: float, axis: int) -> float:
    """Return the largest error of any channel over its own floor, which is never below an ulp of the output.

    Args:
        value: As it was computed.
        exact: In float64.
        others: The same in the model's own dtype, and with simulated rounding.
        u: The unit rounding of the dtype.
        axis: Of the channels.
    """
    if value.shape != exact.shape:
        return float("inf")
    got = value.astype(np.float64)
    odd = ~np.isfinite(got) | ~np.isfinite(exact)
    if (odd & ~((got == exact) | (np.isnan(got) & np.isnan(exact)))).any():
        return float("inf")
    channels = exact.shape[axis] if exact.ndim else 1

    def largest(values: Array) -> Array:
        rows = np.moveaxis(np.where(odd, 0, np.abs(values)), axis, 0) if exact.ndim else np.abs(values)
        largest: Array = rows.reshape(channels, -1).max(axis=1, initial=0.0)
        return largest

    with np.errstate(invalid="ignore"):  # of infinities, which are left out
        error = largest(got - exact)
        explained = [largest(other.astype(np.float64) - exact) for other in others]
    # An ulp of the whole tensor's largest value: where batch norm cancels, a channel is as inexact as its parts were.
    floor = np.max(explained, axis=0) + 2 * u * largest(exact).max(initial=0.0)
    ratios = np.divide(error, floor, out=np.where(error > 0, np.inf, 0.0), where=floor > 0)
    return float(ratios.max(initial=0.0))


def tapped(
    path: Path, names: Collection[str], inputs: Mapping[str, Array], settings: SessionSettings
) -> dict[str, Array]:
    """Return the inner float values of a file as ONNX Runtime computes them, in one session.

    Args:
        path: The file.
        names: Of the values wanted; those that the file does not have are left out.
        inputs: By the file's names.
        settings: Of the session.

    Raises:
        RuntimeFailure: The file with all values as outputs does not run.
    """
    model = reload_onnx(path)
    # Of files that do not say the types of inner values, those of products, which are floats but for integer ones.
    produced = [(node, v) for node in model.graph for v in node.outputs if v.name in names]
    floats = [v for n, v in produced if (n.op_type in PRODUCTS if v.dtype is None else v.dtype.is_floating_point())]
    model.graph.outputs.extend([v for v in floats if not v.is_graph_output()])
    wanted = [v.name for v in floats if v.name]
    if not wanted:
        return {}
    is_outside = any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())
    with _loadable(ir.to_proto(model), path, is_outside=is_outside) as source:
        found = open_session(source, settings).run(inputs, wanted)
    return {name: value for name, value in found.items() if value.dtype.kind not in "biu"}


def with_choices(
    model: onnx.ModelProto, path: Path, names: Collection[str], inputs: Mapping[str, Array], settings: SessionSettings
) -> dict[str, Array]:
    """Return all outputs of a model and some of its inner values of any dtype, in one session.

    Args:
        model: The model, its external data left in their file.
        path: The file that it is from.
        names: Of the inner values.
        inputs: By the model's names.
        settings: Of the session.

    Raises:
        RuntimeFailure: The model with these values as outputs does not run.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    own = {value.name for value in model.graph.output}
    # Of types that Python has no arrays of, what they stand for is taken.
    cast = {name: f"{name} as numbers" for name in names if name in small_values(model) and name not in own}
    for name, number in cast.items():
        watched.graph.node.append(onnx.helper.make_node("Cast", [name], [number], to=onnx.TensorProto.FLOAT))
    wanted = [cast.get(name, name) for name in names if name not in own]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    is_outside = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    with _loadable(watched, path, is_outside=is_outside) as source:
        found = open_session(source, settings).run(inputs)
    names_of = {number: name for name, number in cast.items()}
    return {names_of.get(name, name): value for name, value in found.items()}


def small_values(model: onnx.ModelProto) -> frozenset[str]:
    """Return the values of a model that are floats of a byte or less, or integers of four bits, as far as it tells."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types |= {value.name: value.type.tensor_type.elem_type for value in values}
    for node in model.graph.node:
        given = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "Cast":
            types[node.output[0]] = given.get("to", 0)
        elif node.op_type == "CastLike":
            types[node.output[0]] = types.get(node.input[1], 0)
        elif node.op_type == "QuantizeLinear":
            zero = types.get(node.input[2], 0) if len(node.input) > 2 else 0
            types[node.output[0]] = zero or given.get("output_dtype", 0)
    return frozenset(name for name, element in types.items() if element in SMALL_ELEMENTS)


@contextlib.contextmanager
def _loadable(model: onnx.ModelProto, path: Path, *, is_outside: bool) -> Iterator[bytes | Path]:
    """The model as ONNX Runtime can load it: bytes, or where weights are outside, a file beside theirs."""
    content = model.SerializeToString()
    if not is_outside:
        yield content
        return
    with contextlib.ExitStack() as stack:
        try:
            beside = stack.enter_context(named_beside(path))
            beside.write_bytes(content)
        except OSError as error:
            raise RuntimeFailure(f"no file can be written beside the weights: {error}") from error
        yield beside
