"""Damage of ONNX models through their own fields: the file stays protobuf, and what it says is not right any more."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import onnx
from fuzz_bytes import EXTREMES
from fuzz_text import STRANGE_TEXT, as_json, damage_value, odd_value
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

_FLOATS = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)


def messages(message: Message) -> Iterator[Message]:
    """Yield a message and all that are in it."""
    todo = [message]
    while todo:
        current = todo.pop()
        yield current
        for field, value in current.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                todo += list(value) if field.is_repeated else [value]


def damage_onnx(random: Random, content: bytes) -> bytes:
    """Change one to three fields of a model, or one of the things that make a graph wrong."""
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        return content
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if random.random() < 0.5:
            _damage_any_field(random, model)
        else:
            random.choice(GRAPH_CHANGES)(random, model)
    return bytes(model.SerializeToString())


def _damage_any_field(random: Random, model: onnx.ModelProto) -> None:
    found = [(message, field) for message in messages(model) for field, _ in message.ListFields()]
    if not found:
        return
    message, field = random.choice(found)
    if field.is_repeated:
        _damage_list(random, message, field)
    elif random.random() < 0.15:
        message.ClearField(field.name)
    elif field.type != FieldDescriptor.TYPE_MESSAGE:
        setattr(message, field.name, _value(random, field, getattr(message, field.name)))


def _damage_list(random: Random, message: Message, field: FieldDescriptor) -> None:
    values = getattr(message, field.name)
    if not len(values):
        return
    at = random.randrange(len(values))
    match random.randrange(4):
        case 0:
            del values[at]
        case 1:
            values.append(copy.deepcopy(values[at]) if field.type == FieldDescriptor.TYPE_MESSAGE else values[at])
        case _ if field.type != FieldDescriptor.TYPE_MESSAGE:
            values[at] = _value(random, field, values[at])
        case _:
            other = random.randrange(len(values))
            first, second = copy.deepcopy(values[at]), copy.deepcopy(values[other])
            values[at].CopyFrom(second)
            values[other].CopyFrom(first)


def _value(random: Random, field: FieldDescriptor, old: Any) -> Any:
    """Return another value that the field can hold."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        return random.choice((b"", old[:-1], old * 2, b"\xff" * len(old), b"SAME", b"\xff\xfe", bytes(8)))
    if field.type == FieldDescriptor.TYPE_STRING:
        return random.choice(
            (*(text for text in STRANGE_TEXT if text.isprintable()), "\x1b[2J", old + "x", "x", "y", "c", "r")
        )
    if field.cpp_type in _FLOATS:
        return random.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), 1e-40))
    if field.type == FieldDescriptor.TYPE_ENUM:
        return random.choice(list(field.enum_type.values_by_number))
    value = random.choice((*EXTREMES, old + 1, old - 1, -old, 3, 7, 12, 18))
    bits = 32 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 64
    value %= 1 << bits
    is_signed = field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64)
    return value - (1 << bits) if is_signed and value >> (bits - 1) else value


# --- what makes a graph wrong ---


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [message for message in messages(model) if isinstance(message, onnx.NodeProto)]


def _reconnect(random: Random, model: onnx.ModelProto) -> None:
    """Let a node read any other name: its own output, a later one, one that is not there, or a weight."""
    nodes = _nodes(model)
    names = [name for node in nodes for name in (*node.input, *node.output)] or ["x"]
    readers = [node for node in nodes if node.input]
    if readers:
        node = random.choice(readers)
        node.input[random.randrange(len(node.input))] = random.choice((*names, "", "nothing"))


def _rename_output(random: Random, model: onnx.ModelProto) -> None:
    """Let two nodes write one name, or one node write an input, a weight or nothing."""
    nodes = [node for node in _nodes(model) if node.output]
    if nodes:
        node, other = random.choice(nodes), random.choice(nodes)
        node.output[0] = random.choice((*other.output, "x", "y", "", "conv.weight"))


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [message for message in messages(model) if isinstance(message, onnx.TensorProto)]


def _damage_tensor(random: Random, model: onnx.ModelProto) -> None:
    tensors = _tensors(model)
    if not tensors:
        return
    tensor = random.choice(tensors)
    match random.randrange(6):
        case 0:
            tensor.data_type = random.choice((0, 1, 2, 7, 8, 9, 10, 11, 14, 16, 17, 21, 22, 23, 99))
        case 1:
            del tensor.dims[:]
            tensor.dims.extend(random.choice((*EXTREMES[:-2], 3, 4)) % 2**62 for _ in range(random.randrange(6)))
        case 2:
            tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data) + 1)]
        case 3:
            tensor.float_data.extend([1.0, 2.0])
        case 4:
            tensor.data_location = TensorProto.EXTERNAL
            del tensor.external_data[:]
            names = (
                "external.bin",
                "../external.bin",
                "/etc/hostname",
                "",
                "nothing.bin",
                ".",
                "a\0b",
                "net.onnx",
                "x" * 300,
            )
            said = {
                "location": random.choice(names),
                "offset": str(random.choice((*EXTREMES, "x"))),
                "length": str(random.choice((36, *EXTREMES))),
            }
            for key in random.sample(sorted(said), random.randint(1, 3)):
                tensor.external_data.add(key=key, value=said[key])
        case _:
            tensor.name = random.choice(("", "x", "y", "conv.weight", "fc.weight", *STRANGE_TEXT[2:5]))
    for entry in tensor.external_data:
        if random.random() < 0.3:
            entry.value = random.choice(
                (*map(str, EXTREMES), "../external.bin", "/dev/zero", "external.onnx", "", "1e3", "0x10", " 4")
            )


def _damage_attribute(random: Random, model: onnx.ModelProto) -> None:
    nodes = _nodes(model)
    if not nodes:
        return
    node = random.choice(nodes)
    if node.attribute and random.random() < 0.6:
        attribute = random.choice(list(node.attribute))
        name = attribute.name
        node.attribute.remove(attribute)
    else:
        name = random.choice(
            (
                "group",
                "pads",
                "strides",
                "dilations",
                "kernel_shape",
                "auto_pad",
                "axis",
                "transB",
                "alpha",
                "to",
                "body",
            )
        )
    value = random.choice(
        (
            [1, 1],
            [0, 0, 0, 0],
            [-1, -1],
            [2**62, 1],
            [1] * 9,
            0,
            -1,
            3,
            2**63 - 1,
            0.5,
            "SAME_UPPER",
            "x",
            [0.5, 1.0],
            ["a"],
        )
    )
    node.attribute.append(helper.make_attribute(name, value))


OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Loop", "If", "Scan", "Reshape", "Expand", "Tile", "Range",
    "ConstantOfShape", "Pad",
    "Resize", "Cast", "NonZero", "SequenceAt", "StringNormalizer", "Identity", "Softmax", "BatchNormalization",
    "NoSuchOperator", "", "Einsum", "Gather", "RandomNormal", "Dropout", "Constant", "LSTM", "Concat", "Split", "TopK",
    "QLinearConv", "DequantizeLinear",
)  # fmt: skip


def _change_operator(random: Random, model: onnx.ModelProto) -> None:
    nodes = _nodes(model)
    if nodes:
        node = random.choice(nodes)
        if random.random() < 0.3:
            node.domain = random.choice(("own", "com.microsoft", "ai.onnx", "ai.onnx.ml", "", "nobody"))
        else:
            node.op_type = random.choice(OPERATORS)


def _change_opset(random: Random, model: onnx.ModelProto) -> None:
    if not model.opset_import or random.random() < 0.2:
        model.opset_import.add(domain=random.choice(("", "ai.onnx", "own", "x")), version=random.choice((1, 7, 18)))
    else:
        random.choice(list(model.opset_import)).version = random.choice(
            (0, -1, 1, 3, 6, 7, 9, 11, 13, 21, 22, 25, 99, 2**62)
        )


def _change_type(random: Random, model: onnx.ModelProto) -> None:
    """Declare an input or output with another type, rank, size or name."""
    values = [message for message in messages(model) if isinstance(message, onnx.ValueInfoProto)]
    if not values:
        return
    value = random.choice(values)
    match random.randrange(4):
        case 0:
            value.type.tensor_type.elem_type = random.choice((0, 7, 8, 10, 11, 16, 99))
        case 1:
            dims = [random.choice((0, -1, 1, 2, 4, 2**40, 2**62, "N", "", "a b")) for _ in range(random.randrange(7))]
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, dims))
        case 2:
            value.type.sequence_type.elem_type.tensor_type.elem_type = 1
        case _:
            value.name = random.choice(("", "x", "y", "c", "conv.weight", *STRANGE_TEXT[2:4]))


def _damage_functions(random: Random, model: onnx.ModelProto) -> None:
    """Let a function call itself, be there twice, or lack what it reads."""
    if not model.functions:
        return
    function = random.choice(list(model.functions))
    match random.randrange(4):
        case 0 if function.node:
            node = random.choice(list(function.node))
            node.op_type, node.domain = random.choice([(f.name, f.domain) for f in model.functions])
        case 1:
            model.functions.add().CopyFrom(function)
        case 2:
            del function.input[:]
        case _:
            del function.opset_import[:]


def _damage_metadata(random: Random, model: onnx.ModelProto) -> None:
    """Change what a file says of how it was made."""
    own = [entry for entry in model.metadata_props if entry.key.startswith("spdexport.")]
    if not own:
        said = {
            "factory": "evil.py:make",
            "allow_pickle": True,
            "components": "/etc/passwd",
            "inputs": "x.npz",
            "seed": odd_value(random),
        }
        key = random.choice(("options", "plan", "sha256", "layers", "content"))
        model.metadata_props.add(
            key=f"spdexport.{key}", value=as_json(random.choice((said, odd_value(random)))).decode()
        )
        return
    entry = random.choice(own)
    try:
        value = json.loads(entry.value)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict) and random.random() < 0.2:
        value |= {"factory": "evil.py:make", "allow_pickle": True, "masks": "/etc/passwd"}
    entry.value = as_json(damage_value(random, value)).decode()


GRAPH_CHANGES = (
    _reconnect, _reconnect, _rename_output, _damage_tensor, _damage_tensor, _damage_attribute, _change_operator,
    _change_opset, _change_type, _damage_functions, _damage_metadata,
)  # fmt: skip
