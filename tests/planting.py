"""Plant a fault in a copy of a model file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[np.generic]
    Edit = Callable[[onnx.ModelProto], None]


def planted(file: Path, edit: Edit, target: Path) -> Path:
    """A copy of a file, edited; refuses an edit that changes nothing."""
    model = onnx.load(file)
    before = model.SerializeToString(deterministic=True)
    edit(model)
    assert model.SerializeToString(deterministic=True) != before
    onnx.save(model, target)
    return target


def weight(name: str, change: Callable[[Array], Array]) -> Edit:
    """Replaces a weight."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor)
        changed = np.asarray(change(value.copy())).astype(value.dtype)
        assert changed.shape == value.shape
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return edit


def node_with(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node that reads a weight."""
    return next(n for n in model.graph.node if name in n.input)


def attribute(weight_name: str, name: str, value: object) -> Edit:
    """Sets an attribute of the node that reads a weight."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_with(model, weight_name)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return edit


def one_off(value: Array) -> Array:
    """The largest entry off by 1%."""
    place = np.unravel_index(np.abs(value).argmax(), value.shape)
    value[place] *= 1.01
    return value


def to_bfloat16(value: Array) -> Array:
    return value.astype(ml_dtypes.bfloat16)


def to_float16(value: Array) -> Array:
    return value.astype(np.float16)


def to_tf32(value: Array) -> Array:
    """10 bits behind the point, as TF32 has them."""
    bits = value.view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def with_nan(value: Array) -> Array:
    value.flat[3] = np.nan
    return value


def rename_output(model: onnx.ModelProto) -> None:
    old, new = model.graph.output[0].name, "renamed"
    model.graph.output[0].name = new
    for node in model.graph.node:
        node.output[:] = [new if o == old else o for o in node.output]
        node.input[:] = [new if i == old else i for i in node.input]


def remove_output(model: onnx.ModelProto) -> None:
    """The last of several outputs."""
    del model.graph.output[-1]


def extra_output(model: onnx.ModelProto) -> None:
    name = next(n.output[0] for n in model.graph.node if n.op_type == "Relu")
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))


def _behind_output(model: onnx.ModelProto, op: str, extra: list[str], **attributes: object) -> None:
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["inner" if o == name else o for o in node.output]
    model.graph.node.append(onnx.helper.make_node(op, ["inner", *extra], [name], **attributes))


def reshape_output(model: onnx.ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([-1, 1, 10], np.int64), "new_shape")
    model.graph.initializer.append(shape)
    _behind_output(model, "Reshape", ["new_shape"])
    model.graph.output[0].type.tensor_type.ClearField("shape")


def double_output(model: onnx.ModelProto) -> None:
    _behind_output(model, "Cast", [], to=onnx.TensorProto.DOUBLE)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


def drop_bias(weight_name: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        del node_with(model, weight_name).input[2]

    return edit
