"""ONNX files that nobody made in good faith, or that were damaged on their way: each kind is one function.

``HOSTILE`` has them by name, ``write(name, folder)`` makes one. They are small, most of them below one kilobyte; those
that take long to make are in ``LARGE``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    Maker = Callable[[Path], bytes | None]

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

DAMAGED: dict[str, Maker] = {}
"""What no command may take: exit status 4."""

EXHAUSTING: dict[str, Maker] = {}
"""What is valid and never ends, or needs more memory than there is: refused, or inconclusive for that reason."""

LARGE: dict[str, Maker] = {}
"""What is beyond a limit by its sheer length."""


def write(name: str, folder: Path) -> Path:
    """Make the file of one kind, called ``NAME.onnx``, with whatever belongs beside it."""
    path = folder / f"{name}.onnx"
    content = HOSTILE[name](folder)
    if content is not None:
        path.write_bytes(content)
    return path


def damaged(maker: Maker) -> Maker:
    DAMAGED[maker.__name__] = maker
    return maker


def exhausting(maker: Maker) -> Maker:
    EXHAUSTING[maker.__name__] = maker
    return maker


def large(maker: Maker) -> Maker:
    LARGE[maker.__name__] = maker
    return maker


# --- A network to damage, and what is put in front of it ---


def network() -> onnx.ModelProto:
    """Conv, Relu, GlobalAveragePool, Flatten, Gemm: valid as it is."""
    weights = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (5, 4), "fc.bias": (5,)}
    random = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], name="fc", transB=1),
    ]
    x = helper.make_tensor_value_info("x", FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", FLOAT, ["N", 5])
    graph = helper.make_graph(nodes, "net", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def changed(change: Callable[[onnx.ModelProto], object]) -> Maker:
    def make(_: Path) -> bytes:
        model = network()
        change(model)
        return bytes(model.SerializeToString())

    return make


def with_tensor(change: Callable[[TensorProto], object], index: int = 0) -> Maker:
    return changed(lambda model: change(model.graph.initializer[index]))


def with_conv(change: Callable[[onnx.NodeProto], object]) -> Maker:
    return changed(lambda model: change(model.graph.node[0]))


def attribute(name: str, value: Any) -> Callable[[onnx.NodeProto], object]:
    def change(node: onnx.NodeProto) -> None:
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def before(
    nodes: list[onnx.NodeProto],
    stored: dict[str, np.ndarray[Any, Any]] | None = None,
    *,
    end: str = "v",
    functions: list[onnx.FunctionProto] | None = None,
    opset: int = 18,
    size: tuple[Any, ...] = ("N", 3, 8, 8),
) -> bytes:
    """The network with the mean of a value ``end``, which the nodes compute, added to its output."""
    model = network()
    model.graph.node[-1].output[0] = "plain"
    add = [
        helper.make_node("ReduceMean", [end], ["mean"], name="mean", keepdims=0),
        helper.make_node("Add", ["plain", "mean"], ["y"], name="sum"),
    ]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest, *add])
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in (stored or {}).items())
    for index, dim in enumerate(size):
        if isinstance(dim, int):
            model.graph.input[0].type.tensor_type.shape.dim[index].dim_value = dim
    model.opset_import[0].version = opset
    if functions:
        model.functions.extend(functions)
        model.opset_import.append(helper.make_opsetid("own", 1))
    return bytes(model.SerializeToString())


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"the_{op}", **attributes)


# --- Tensors ---


def _set(field: str, value: Any) -> Callable[[Any], object]:
    return lambda message: setattr(message, field, value)


def _dims(*dims: int) -> Callable[[TensorProto], object]:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("dims")
        tensor.dims.extend(dims)

    return change


def _float_data(number: int) -> Callable[[TensorProto], object]:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0] * number)

    return change


def _both(tensor: TensorProto) -> None:
    tensor.float_data.extend([1.0] * 108)


def _strings(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.STRING
    tensor.string_data.extend([b"\xff"] * 108)


def _integers(tensor: TensorProto) -> None:
    tensor.data_type = INT64
    tensor.raw_data = np.zeros(108, np.int64).tobytes()


def _dims_without_data(*dims: int) -> Callable[[TensorProto], object]:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("raw_data")
        _dims(*dims)(tensor)

    return change


DAMAGED |= {
    "raw_data_short": with_tensor(lambda t: _set("raw_data", t.raw_data[:-3])(t)),
    "raw_data_long": with_tensor(lambda t: _set("raw_data", t.raw_data + b"1234")(t)),
    "raw_data_missing": with_tensor(lambda t: t.ClearField("raw_data")),
    "float_data_short": with_tensor(_float_data(107)),
    "float_data_long": with_tensor(_float_data(109)),
    "raw_and_float_data": with_tensor(_both),
    "dim_negative": with_tensor(_dims(-4, -3, 3, 3)),
    "dims_overflow": with_tensor(_dims(2**32, 2**32, 3, 3)),
    "dims_overflow_to_their_size": with_tensor(_dims_without_data(2**33, 2**31, 3, 3)),
    "dims_huge": with_tensor(_dims_without_data(2**20, 2**20, 3, 3)),
    "data_type_unknown": with_tensor(_set("data_type", 99)),
    "data_type_undefined": with_tensor(_set("data_type", 0)),
    "weight_of_strings": with_tensor(_strings),
    "weight_of_integers": with_tensor(_integers),
    "weight_of_rank_2": with_tensor(_dims(4, 27)),
    "weight_of_rank_1": with_tensor(_dims(108)),
    "weight_without_rank": with_tensor(lambda t: (_dims()(t), _set("raw_data", b"1234")(t))),
    "bias_of_rank_2": with_tensor(_dims(2, 2), index=1),
    "bias_too_short": with_tensor(lambda t: (_dims(3)(t), _set("raw_data", b"1" * 12)(t)), index=1),
    "gemm_weight_of_rank_3": with_tensor(_dims(5, 2, 2), index=2),
    "weight_without_channels": with_tensor(lambda t: (_dims(0, 3, 3, 3)(t), _set("raw_data", b"")(t))),
}


@damaged
def int64_data_short(_: Path) -> bytes:
    model = onnx.ModelProto.FromString(before([node("Reshape", ["x", "shape"], ["v"])], {}))
    model.graph.initializer.append(TensorProto(name="shape", data_type=INT64, dims=[3], int64_data=[0, -1]))
    return bytes(model.SerializeToString())


@damaged
def constant_short(_: Path) -> bytes:
    tensor = TensorProto(name="inner", data_type=FLOAT, dims=[4], raw_data=b"12345")
    return before([node("Constant", [], ["v"], value=tensor)])


@damaged
def constant_dims_overflow(_: Path) -> bytes:
    tensor = TensorProto(name="inner", data_type=FLOAT, dims=[2**33, 2**31])
    return before([node("Constant", [], ["v"], value=tensor)])


# --- Attributes of a convolution ---

DAMAGED |= {
    "stride_zero": with_conv(attribute("strides", [0, 1])),
    "stride_negative": with_conv(attribute("strides", [-1, 1])),
    "strides_too_many": with_conv(attribute("strides", [1, 1, 1])),
    "kernel_shape_of_another": with_conv(attribute("kernel_shape", [5, 3])),
    "kernel_shape_too_short": with_conv(attribute("kernel_shape", [3])),
    "group_zero": with_conv(attribute("group", 0)),
    "group_negative": with_conv(attribute("group", -1)),
    "group_not_dividing": with_conv(attribute("group", 3)),
    "pads_too_few": with_conv(attribute("pads", [1, 1])),
    "pads_too_many": with_conv(attribute("pads", [1] * 6)),
    "dilation_zero": with_conv(attribute("dilations", [0, 1])),
    "dilation_negative": with_conv(attribute("dilations", [-1, 1])),
    "dilations_too_few": with_conv(attribute("dilations", [1])),
    "attribute_of_wrong_type": with_conv(attribute("strides", "a lot")),
    "attribute_group_of_floats": with_conv(attribute("group", 1.5)),
    "attribute_unknown": with_conv(attribute("colour", 3)),
    "attribute_auto_pad_unknown": with_conv(attribute("auto_pad", "SOMEHOW")),
    "attribute_without_type": with_conv(lambda n: n.attribute.append(onnx.AttributeProto(name="group"))),
    "attribute_twice": with_conv(lambda n: n.attribute.extend([helper.make_attribute("group", 1)] * 2)),
    "attribute_of_unknown_type": with_conv(lambda n: n.attribute.append(_odd_attribute())),
    "attribute_refers_to_nothing": with_conv(
        lambda n: n.attribute.append(onnx.AttributeProto(name="group", type=2, ref_attr_name="groups"))
    ),
}


def _odd_attribute() -> onnx.AttributeProto:
    # Field 20 is the type; 99 is none.
    return onnx.AttributeProto.FromString(b"\x0a\x05group\xa0\x01\x63")


@damaged
def attribute_missing(_: Path) -> bytes:
    return before([node("Cast", ["x"], ["v"])])


# --- The graph ---


def _input(index: int, name: str) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node[index].input[0] = name

    return change


def _swap(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([nodes[1], nodes[0], *nodes[2:]])


def _double(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["r"]))


DAMAGED |= {
    "cycle": changed(_input(0, "r")),
    "cycle_of_one_node": changed(_input(1, "r")),
    "forward_reference": changed(_swap),
    "name_unknown": changed(_input(3, "nobody")),
    "output_doubled": changed(_double),
    "output_of_an_initializers_name": changed(lambda m: m.graph.node[1].output.__setitem__(0, "conv.bias")),
    "output_unknown": changed(lambda m: _set("name", "nobody")(m.graph.output[0])),
    "initializer_doubled": changed(lambda m: m.graph.initializer.append(m.graph.initializer[1])),
    "initializer_without_name": with_tensor(lambda t: t.ClearField("name")),
    "input_doubled": changed(lambda m: m.graph.input.append(m.graph.input[0])),
    "inputs_too_few": with_conv(lambda n: n.input.__delitem__(slice(1, None))),
    "inputs_too_many": with_conv(lambda n: n.input.extend(["x", "x"])),
    "inputs_empty": with_conv(lambda n: n.input.__setitem__(1, "")),
    "outputs_missing": with_conv(lambda n: n.ClearField("output")),
    "operator_missing": with_conv(lambda n: n.ClearField("op_type")),
    "operator_unknown": with_conv(_set("op_type", "Convolute")),
    "domain_unknown": with_conv(_set("domain", "nowhere")),
    "graph_without_outputs": changed(lambda m: m.graph.ClearField("output")),
    "graph_without_nodes": changed(lambda m: m.graph.ClearField("node")),
    "graph_without_name": changed(lambda m: m.graph.ClearField("name")),
    "graph_missing": changed(lambda m: m.ClearField("graph")),
    "input_without_type": changed(lambda m: m.graph.input[0].ClearField("type")),
    "input_of_another_type": changed(lambda m: _set("elem_type", 99)(m.graph.input[0].type.tensor_type)),
    "opset_missing": changed(lambda m: m.ClearField("opset_import")),
    "opset_zero": changed(lambda m: _set("version", 0)(m.opset_import[0])),
    "opset_negative": changed(lambda m: _set("version", -5)(m.opset_import[0])),
    "opset_of_the_far_future": changed(lambda m: _set("version", 2**31)(m.opset_import[0])),
    "opset_twice": changed(lambda m: m.opset_import.append(helper.make_opsetid("", 9))),
    "ir_version_missing": changed(lambda m: m.ClearField("ir_version")),
    "ir_version_negative": changed(_set("ir_version", -1)),
    "ir_version_of_the_far_future": changed(_set("ir_version", 2**31)),
}


# --- Text ---


def _replaced(old: bytes, new: bytes) -> Maker:
    assert len(old) == len(new), "lengths are part of the format"
    return lambda _: network().SerializeToString().replace(old, new)


DAMAGED |= {
    "name_not_utf8": _replaced(b"conv.weight", b"conv\xff\xfeeight"),
    "operator_not_utf8": _replaced(b"\x22\x04Relu", b"\x22\x04Re\xfeu"),
    "text_file": lambda _: b"This is a text, and a text is no model.\n" * 5,
    "zeros": lambda _: bytes(4096),
    "only_a_header": lambda _: b"\x08\x08\x12\x00",
    "graph_length_absurd": lambda _: b"\x08\x08\x3a\xff\xff\xff\xff\x07" + bytes(64),
}


@damaged
def string_tensor_not_utf8(_: Path) -> bytes:
    tensor = TensorProto(name="inner", data_type=TensorProto.STRING, dims=[2], string_data=[b"\xff"])
    return before([node("Constant", [], ["s"], value=tensor), node("Identity", ["x"], ["v"])])


# --- Weights in other files ---


def _external(**entries: str) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        (folder / "weights.bin").write_bytes(bytes(432))
        model = network()
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in ({"location": "weights.bin"} | entries).items():
            tensor.external_data.add(key=key, value=value)
        return bytes(model.SerializeToString())

    return make


def _external_beside(prepare: Callable[[Path], object], location: str) -> Maker:
    def make(folder: Path) -> bytes:
        prepare(folder)
        return _external(location=location)(folder)

    return make


def _outside(folder: Path) -> Path:
    path = folder.parent / f"outside-{folder.name}.bin"
    path.write_bytes(bytes(432))
    return path


def _linked(folder: Path) -> None:
    (folder / "link.bin").symlink_to(_outside(folder))


def _linked_folder(folder: Path) -> None:
    _outside(folder)
    (folder / "up").symlink_to(folder.parent, target_is_directory=True)


def _data_folder(folder: Path) -> None:
    (folder / "data").mkdir()


DAMAGED |= {
    "external_missing": _external(location="none.bin"),
    "external_absolute": lambda f: _external(location=str(_outside(f)))(f),
    "external_parent": lambda f: _external(location=f"../{_outside(f).name}")(f),
    "external_link_out": _external_beside(_linked, "link.bin"),
    "external_folder_link_out": lambda f: (_linked_folder(f), _external(location=f"up/{_outside(f).name}")(f))[1],
    "external_device": _external_beside(lambda f: (f / "zero").symlink_to("/dev/zero"), "zero"),
    "external_fifo": _external_beside(lambda f: os.mkfifo(f / "fifo"), "fifo"),
    "external_folder": _external_beside(_data_folder, "data"),
    "external_location_empty": _external(location=""),
    "external_location_missing": lambda f: _external()(f).replace(b"location", b"lacation"),
    "external_location_with_zero": _external(location="weights\0.bin"),
    "external_beyond_the_end": _external(offset="1", length="432"),
    "external_offset_negative": _external(offset="-4"),
    "external_length_negative": _external(length="-432"),
    "external_length_of_another": _external(length="400"),
    "external_offset_no_number": _external(offset="four"),
    "external_offset_huge": _external(offset=str(2**64)),
    "external_offset_at_the_end": _external(offset="400"),
}


# --- Functions and subgraphs ---


def function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    return helper.make_function(
        "own", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    )


def call(name: str, inputs: list[str], outputs: list[str]) -> onnx.NodeProto:
    return helper.make_node(name, inputs, outputs, domain="own", name=f"call_{name}")


@damaged
def function_calls_itself(_: Path) -> bytes:
    return before([call("F", ["x"], ["v"])], functions=[function("F", [call("F", ["a"], ["b"])])])


@damaged
def functions_call_each_other(_: Path) -> bytes:
    functions = [function("F", [call("G", ["a"], ["b"])]), function("G", [call("F", ["a"], ["b"])])]
    return before([call("F", ["x"], ["v"])], functions=functions)


@damaged
def function_missing(_: Path) -> bytes:
    functions = [function("G", [helper.make_node("Relu", ["a"], ["b"])])]
    return before([call("F", ["x"], ["v"])], functions=functions)


@damaged
def function_of_unknown_names(_: Path) -> bytes:
    functions = [function("F", [helper.make_node("Relu", ["nobody"], ["b"])])]
    return before([call("F", ["x"], ["v"])], functions=functions)


@damaged
def function_twice(_: Path) -> bytes:
    functions = [function("F", [helper.make_node("Relu", ["a"], ["b"])])] * 2
    return before([call("F", ["x"], ["v"])], functions=functions)


@damaged
def function_with_too_many_arguments(_: Path) -> bytes:
    functions = [function("F", [helper.make_node("Relu", ["a"], ["b"])])]
    return before([call("F", ["x", "x", "x"], ["v"])], functions=functions)


def _branches(depth: int) -> onnx.GraphProto:
    inner = [helper.make_node("Identity", ["x"], [f"b{depth}"])]
    if depth:
        graphs = {"then_branch": _branches(depth - 1), "else_branch": _branches(0)}
        inner = [helper.make_node("If", ["yes"], [f"b{depth}"], **graphs)]
    return helper.make_graph(inner, f"g{depth}", [], [helper.make_tensor_value_info(f"b{depth}", FLOAT, None)])


@damaged
def subgraphs_too_deep(_: Path) -> bytes:
    # The lengths of messages nest, so that they are put around each other by hand.
    def field(number: int, content: bytes) -> bytes:
        size, length = bytearray(), len(content)
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        return bytes([number << 3 | 2]) + bytes([*size, length]) + content

    graph = b""
    for _depth in range(2000):
        graph = field(1, field(5, field(1, b"body") + field(6, graph)))
    return b"\x08\x08" + field(7, graph)


@damaged
def subgraph_of_unknown_names(_: Path) -> bytes:
    graphs = {"then_branch": _branches(0), "else_branch": _branches(0)}
    graphs["then_branch"].node[0].input[0] = "nobody"
    return before([node("If", ["yes"], ["v"], **graphs)], {"yes": np.array(True)})


@damaged
def subgraph_without_outputs(_: Path) -> bytes:
    graphs = {"then_branch": _branches(0), "else_branch": _branches(0)}
    graphs["then_branch"].ClearField("output")
    return before([node("If", ["yes"], ["v"], **graphs)], {"yes": np.array(True)})


# --- Sparse weights ---


def _sparse(dims: list[int], indices: list[int], values: int) -> Maker:
    def make(_: Path) -> bytes:
        model = network()
        tensor = onnx.SparseTensorProto(dims=dims)
        tensor.values.CopyFrom(numpy_helper.from_array(np.ones(values, np.float32), "conv.weight"))
        tensor.indices.CopyFrom(numpy_helper.from_array(ints(*indices), "conv.weight_indices"))
        del model.graph.initializer[0]
        model.graph.sparse_initializer.append(tensor)
        return bytes(model.SerializeToString())

    return make


DAMAGED |= {
    "sparse_index_beyond": _sparse([4, 3, 3, 3], [1, 5000], 2),
    "sparse_index_negative": _sparse([4, 3, 3, 3], [-1, 5], 2),
    "sparse_indices_too_few": _sparse([4, 3, 3, 3], [1], 2),
    "sparse_dim_negative": _sparse([-4, 3, 3, 3], [1, 2], 2),
}
EXHAUSTING["sparse_of_terabytes"] = _sparse([2**20, 2**20, 3, 3], [1, 2], 2)


# --- Work without end ---


@exhausting
def functions_that_double(_: Path) -> bytes:
    functions = [function("F0", [helper.make_node("Relu", ["a"], ["b"])])]
    for i in range(1, 26):
        calls = [call(f"F{i - 1}", ["a"], ["h"]), call(f"F{i - 1}", ["h"], ["b"])]
        functions.append(function(f"F{i}", calls))
    return before([call("F25", ["x"], ["v"])], functions=functions)


@exhausting
def functions_in_a_long_chain(_: Path) -> bytes:
    functions = [function("F0", [helper.make_node("Relu", ["a"], ["b"])])]
    functions += [function(f"F{i}", [call(f"F{i - 1}", ["a"], ["b"])]) for i in range(1, 3000)]
    return before([call("F2999", ["x"], ["v"])], functions=functions)


def loop(
    trips: str, *, keep: str = "cond_in", body: list[onnx.NodeProto] | None = None, end: str = "v"
) -> onnx.NodeProto:
    nodes = [
        helper.make_node("Identity", ["cond_in"], ["cond_out"]),
        *(body or [helper.make_node("Add", ["h_in", "one"], ["h_out"])]),
    ]
    graph = helper.make_graph(
        nodes,
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("cond_in", BOOL, []),
            helper.make_tensor_value_info("h_in", FLOAT, []),
        ],
        [helper.make_tensor_value_info("cond_out", BOOL, []), helper.make_tensor_value_info("h_out", FLOAT, [])],
    )
    return helper.make_node("Loop", [trips, "yes", "one"], [end], name="the_loop", body=graph)


ONE = {"one": np.array(1, np.float32), "yes": np.array(True)}


@exhausting
def loop_of_constant_trips(_: Path) -> bytes:
    many = numpy_helper.from_array(np.array(2**62, np.int64), "inner")
    return before([node("Constant", [], ["trips"], value=many), loop("trips")], ONE)


@exhausting
def loop_of_initialized_trips(_: Path) -> bytes:
    return before([loop("trips")], ONE | {"trips": np.array(2**62, np.int64)})


@exhausting
def loop_of_computed_trips(_: Path) -> bytes:
    nodes = [node("Pow", ["ten", "ten"], ["trips"]), loop("trips")]
    return before(nodes, ONE | {"ten": np.array(10, np.int64)})


@exhausting
def loop_without_end(_: Path) -> bytes:
    return before([loop("")], ONE)


@exhausting
def loop_of_trips_from_the_input(_: Path) -> bytes:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["none"]),
        helper.make_node("Cast", ["none"], ["some"], to=INT64),
        helper.make_node("Add", ["some", "many"], ["trips"]),
        loop("trips"),
    ]
    return before(nodes, ONE | {"zero": np.array(0, np.float32), "many": np.array(2**40, np.int64)})


@exhausting
def loops_inside_each_other(_: Path) -> bytes:
    inner = loop("trips", end="h_out")
    inner.attribute[0].g.input[2].name = "k_in"
    inner.attribute[0].g.input[1].name = "k_cond"
    inner.attribute[0].g.input[0].name = "k"
    inner.attribute[0].g.output[0].name = inner.attribute[0].g.node[0].output[0] = "k_keep"
    inner.attribute[0].g.node[0].input[0] = "k_cond"
    inner.attribute[0].g.node[1].input[0] = "k_in"
    inner.attribute[0].g.node[1].output[0] = inner.attribute[0].g.output[1].name = "k_out"
    return before([loop("trips", body=[inner])], ONE | {"trips": np.array(90_000, np.int64)})


@exhausting
def loop_in_a_function(_: Path) -> bytes:
    body = [
        helper.make_node("Constant", [], ["trips"], value_int=2**62),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Constant", [], ["always"], value_int=1),
        helper.make_node("Cast", ["always"], ["yes"], to=BOOL),
        loop("trips", end="looped"),
        helper.make_node("Add", ["a", "looped"], ["b"]),
    ]
    return before([call("F", ["x"], ["v"])], functions=[function("F", body)])


@exhausting
def loop_that_collects(_: Path) -> bytes:
    body = [
        helper.make_node("Add", ["h_in", "one"], ["h_out"]),
        helper.make_node("ConstantOfShape", ["shape"], ["rows"]),
    ]
    looping = loop("trips", body=body, end="h_last")
    looping.output.append("v")
    looping.attribute[0].g.output.append(helper.make_tensor_value_info("rows", FLOAT, None))
    return before([looping], ONE | {"trips": np.array(50_000, np.int64), "shape": ints(1_000_000)})


@exhausting
def scan_without_end(_: Path) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["s_in", "row"], ["s_out"])],
        "body",
        [helper.make_tensor_value_info("s_in", FLOAT, []), helper.make_tensor_value_info("row", FLOAT, [])],
        [helper.make_tensor_value_info("s_out", FLOAT, [])],
    )
    nodes = [
        node("ConstantOfShape", ["shape"], ["rows"]),
        node("Scan", ["one", "rows"], ["v"], body=graph, num_scan_inputs=1),
    ]
    return before(nodes, ONE | {"shape": ints(200_000_000)})


# --- Values without bounds ---

HUGE = 100 * 2**30
"""Elements, so that no dtype makes a small value of them."""


@exhausting
def constant_of_huge_shape(_: Path) -> bytes:
    return before([node("ConstantOfShape", ["shape"], ["v"])], {"shape": ints(2**10, HUGE // 2**10)})


@exhausting
def constant_of_overflowing_shape(_: Path) -> bytes:
    return before([node("ConstantOfShape", ["shape"], ["v"])], {"shape": ints(2**40, 2**40)})


@exhausting
def expand_to_huge(_: Path) -> bytes:
    return before([node("Expand", ["one", "shape"], ["v"])], ONE | {"shape": ints(HUGE)})


@exhausting
def tile_to_huge(_: Path) -> bytes:
    return before([node("Tile", ["x", "times"], ["v"])], {"times": ints(1, 2**12, 2**12, 2**12)})


@exhausting
def range_to_huge(_: Path) -> bytes:
    limits = {"start": np.float32(0), "end": np.float32(HUGE), "step": np.float32(1)}
    stored = {name: np.asarray(value) for name, value in limits.items()}
    return before([node("Range", ["start", "end", "step"], ["v"])], stored)


@exhausting
def resize_to_huge(_: Path) -> bytes:
    stored = {"scales": np.array([1, 1, 2**15, 2**15], np.float32)}
    return before([node("Resize", ["x", "", "scales"], ["v"])], stored)


@exhausting
def upsample_to_huge(_: Path) -> bytes:
    stored = {"scales": np.array([1, 1, 2**15, 2**15], np.float32)}
    return before([node("Upsample", ["x", "scales"], ["v"])], stored, opset=9)


@exhausting
def pad_to_huge(_: Path) -> bytes:
    return before([node("Pad", ["x", "pads"], ["v"])], {"pads": ints(0, 0, 2**18, 2**18, 0, 0, 0, 0)})


@exhausting
def one_hot_to_huge(_: Path) -> bytes:
    stored = {"where": ints(1, 2, 3), "depth": ints(HUGE), "values": np.array([0, 1], np.float32)}
    return before([node("OneHot", ["where", "depth", "values"], ["v"])], stored)


@exhausting
def padding_of_a_convolution_to_huge(_: Path) -> bytes:
    model = network()
    attribute("pads", [2**17] * 4)(model.graph.node[0])
    return bytes(model.SerializeToString())


@exhausting
def transposed_convolution_to_huge(_: Path) -> bytes:
    stored = {"w": np.ones((3, 1, 1, 1), np.float32)}
    return before([node("ConvTranspose", ["x", "w"], ["v"], strides=[2**16, 2**16])], stored)


@exhausting
def random_to_huge(_: Path) -> bytes:
    return before([node("RandomNormal", [], ["v"], shape=[2**20, 2**20])])


@exhausting
def window_to_huge(_: Path) -> bytes:
    return before([node("HannWindow", ["size"], ["v"])], {"size": np.array(HUGE, np.int64)})


@exhausting
def outer_sum_to_huge(_: Path) -> bytes:
    nodes = [
        node("ConstantOfShape", ["tall"], ["column"]),
        node("ConstantOfShape", ["wide"], ["row"]),
        node("Add", ["column", "row"], ["v"]),
    ]
    return before(nodes, {"tall": ints(2**20, 1), "wide": ints(1, 2**20)})


@exhausting
def outer_product_to_huge(_: Path) -> bytes:
    nodes = [
        node("ConstantOfShape", ["tall"], ["column"]),
        node("ConstantOfShape", ["wide"], ["row"]),
        node("MatMul", ["column", "row"], ["v"]),
    ]
    return before(nodes, {"tall": ints(2**20, 1), "wide": ints(1, 2**20)})


@exhausting
def einsum_to_huge(_: Path) -> bytes:
    nodes = [
        node("ConstantOfShape", ["long"], ["row"]),
        node("Einsum", ["row", "row", "row"], ["v"], equation="a,b,c->abc"),
    ]
    return before(nodes, {"long": ints(2**14)})


@exhausting
def concat_that_doubles(_: Path) -> bytes:
    nodes = [helper.make_node("Concat", [f"v{i}"] * 2, [f"v{i + 1}"], axis=0) for i in range(36)]
    nodes[0].input[:] = ["x", "x"]
    return before(nodes, end="v36")


@exhausting
def sizes_that_double(_: Path) -> bytes:
    nodes = [helper.make_node("Concat", [f"v{i}"] * 2, [f"v{i + 1}"], axis=0) for i in range(30)]
    cast = helper.make_node("Cast", ["v30"], ["v"], to=FLOAT)
    return before([helper.make_node("Shape", ["x"], ["v0"]), *nodes, cast])


@exhausting
def sizes_of_the_unknown_that_double(_: Path) -> bytes:
    nodes = [helper.make_node("Concat", [f"v{i}"] * 2, [f"v{i + 1}"], axis=0) for i in range(30)]
    made = [helper.make_node("NonZero", ["x"], ["z"]), helper.make_node("Shape", ["z"], ["v0"])]
    return before([*made, *nodes, helper.make_node("Cast", ["v30"], ["v"], to=FLOAT)])


@exhausting
def huge_by_computed_sizes(_: Path) -> bytes:
    nodes = [node("Pow", ["ten", "twelve"], ["shape"]), node("ConstantOfShape", ["shape"], ["v"])]
    return before(nodes, {"ten": ints(10), "twelve": ints(12)})


@exhausting
def huge_by_the_input(_: Path) -> bytes:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["none"]),
        helper.make_node("Cast", ["none"], ["some"], to=INT64),
        helper.make_node("Add", ["some", "many"], ["shape"]),
        node("ConstantOfShape", ["shape"], ["v"]),
    ]
    return before(nodes, {"zero": np.array(0, np.float32), "many": ints(HUGE)})


@exhausting
def huge_in_a_branch(_: Path) -> bytes:
    graphs = {"then_branch": _branches(0), "else_branch": _branches(0)}
    graphs["then_branch"].node[0].CopyFrom(helper.make_node("ConstantOfShape", ["shape"], ["b0"]))
    return before([node("If", ["yes"], ["v"], **graphs)], {"yes": np.array(True), "shape": ints(HUGE)})


@exhausting
def huge_in_a_function(_: Path) -> bytes:
    body = [
        helper.make_node("Constant", [], ["shape"], value_ints=[HUGE]),
        helper.make_node("ConstantOfShape", ["shape"], ["much"]),
        helper.make_node("ReduceMean", ["much"], ["mean"], keepdims=0),
        helper.make_node("Add", ["a", "mean"], ["b"]),
    ]
    return before([call("F", ["x"], ["v"])], functions=[function("F", body)])


@exhausting
def input_of_huge_size(_: Path) -> bytes:
    return before([node("Identity", ["x"], ["v"])], size=("N", 3, 2**20, 2**20))


# --- What is long ---


@large
def nodes_60000(_: Path) -> bytes:
    return before(chain(60_000), end="v60000")


@large
def initializers_300000(_: Path) -> bytes:
    model = network()
    model.graph.initializer.extend(
        TensorProto(name=f"t{i}", data_type=FLOAT, dims=[1], raw_data=b"\0\0\0\0") for i in range(300_000)
    )
    return bytes(model.SerializeToString())


@large
def metadata_of_100_mb(_: Path) -> bytes:
    model = network()
    model.metadata_props.add(key="spdexport.options", value="[" * 100_000_000)
    return bytes(model.SerializeToString())


def chain(length: int) -> list[onnx.NodeProto]:
    """Relu after Relu, from ``x`` to ``v<length>``."""
    names = ["x", *(f"v{i}" for i in range(1, length + 1))]
    return [helper.make_node("Relu", [names[i]], [names[i + 1]], name=f"n{i}") for i in range(length)]


HOSTILE = DAMAGED | EXHAUSTING | LARGE
"""Every kind by its name."""
