"""ONNX files that reach out of their folder, claim rights, or ask for work without end."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from payload import Hostile, Make

Change = Callable[[onnx.ModelProto], None]
NEVER = 2**62
INTS, FLOATS = TensorProto.INT64, TensorProto.FLOAT


def _changed(change: Change, source: str = "net.onnx", target: str = "hostile.onnx") -> Make:
    """Return what writes a model with something changed."""

    def make(folder: Path) -> None:
        model = onnx.load(folder / source, load_external_data=False)
        change(model)
        (folder / target).write_bytes(model.SerializeToString())

    return make


def _without(model: onnx.ModelProto, *names: str) -> None:
    for weight in list(model.graph.initializer):
        if weight.name in names:
            model.graph.initializer.remove(weight)


def _instead_of_relu(*nodes: onnx.NodeProto, weights: dict[str, Any] | None = None) -> Change:
    """Put nodes from ``c`` to ``r`` where the Relu was."""

    def change(model: onnx.ModelProto) -> None:
        kept = list(model.graph.node)
        at = next(i for i, node in enumerate(kept) if node.op_type == "Relu")
        del model.graph.node[:]
        model.graph.node.extend([*kept[:at], *nodes, *kept[at + 1 :]])
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()
        )

    return change


# --- data that lie elsewhere ---


def _external(location: str, *, offset: str = "0", length: str = "144") -> Change:
    def change(model: onnx.ModelProto) -> None:
        weight = next(w for w in model.graph.initializer if w.name == "conv.weight")
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            weight.external_data.add(key=key, value=value)

    return change


def _beside(what: Callable[[Path], None], location: str = "beside.bin") -> Make:
    """Return what writes a model and makes its data file something else than a file."""
    write = _changed(_external(location))

    def make(folder: Path) -> None:
        what(folder)
        write(folder)

    return make


def _outside(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "secret.bin").write_bytes(bytes(range(200)))


def _linked(folder: Path) -> None:
    _outside(folder)
    (folder / "beside.bin").symlink_to("/etc/passwd")


def _linked_folder(folder: Path) -> None:
    _outside(folder)
    (folder / "inner").symlink_to("/etc")


OUTSIDE = (
    Hostile(name="ONNX data by a path from the root", file="hostile.onnx", make=_changed(_external("/etc/passwd"))),
    Hostile(name="ONNX data above the folder", file="hostile.onnx", make=_changed(_external("../../../../etc/passwd"))),
    Hostile(name="ONNX data by a detour", file="hostile.onnx", make=_changed(_external("out/../../../../etc/passwd"))),
    Hostile(name="ONNX data in a link", file="hostile.onnx", make=_beside(_linked)),
    Hostile(name="ONNX data below a linked folder", file="hostile.onnx", make=_beside(_linked_folder, "inner/passwd")),
    Hostile(name="ONNX data in a FIFO", file="hostile.onnx", make=_beside(lambda f: os.mkfifo(f / "beside.bin"))),
    Hostile(name="ONNX data in a device", file="hostile.onnx", make=_changed(_external("/dev/zero"))),
    Hostile(name="ONNX data in a folder", file="hostile.onnx", make=_changed(_external("run"))),
    Hostile(name="ONNX data at a place beyond", file="hostile.onnx",
            make=_changed(_external("external.bin", offset=str(2**62)))),
    Hostile(name="ONNX data before the beginning", file="hostile.onnx",
            make=_changed(_external("external.bin", offset="-8"))),
    Hostile(name="ONNX data of 100 GB", file="hostile.onnx", make=_changed(_external("external.bin",
    length=str(10**11)))),
    Hostile(name="ONNX data named with a null", file="hostile.onnx", make=_changed(_external("a\0b"))),
)  # fmt: skip
"""External data that are not a file beside the model."""


# --- what a file says of itself ---


def _metadata(**entries: Any) -> Make:
    def change(model: onnx.ModelProto) -> None:
        for key, value in entries.items():
            old = next((entry for entry in model.metadata_props if entry.key == f"spdexport.{key}"), None)
            before = None if old is None else json.loads(old.value)
            said = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
            if old is not None:
                model.metadata_props.remove(old)
            model.metadata_props.add(key=f"spdexport.{key}", value=json.dumps(said))

    write = _changed(change, "masked.onnx")

    def make(folder: Path) -> None:
        (folder / "evil.py").write_text("import os\nos.mkdir('marker')\n\ndef make():\n    os.mkdir('marker')\n")
        write(folder)

    return make


CLAIMS = (
    Hostile(name="ONNX metadata with a factory", file="hostile.onnx", refused=False,
            make=_metadata(options={"factory": "evil.py:make"})),
    Hostile(name="ONNX metadata that allow pickles", file="hostile.onnx", refused=False,
            make=_metadata(options={"allow_pickle": True, "components": "checkpoint.pkl", "masks": "hostile.pt"})),
    Hostile(name="ONNX metadata with paths", file="hostile.onnx", refused=False,
            make=_metadata(options={"components": "/etc/passwd", "inputs": "/etc/passwd", "plan": "/etc/passwd"})),
    Hostile(name="ONNX metadata of strange types", file="hostile.onnx", refused=False,
            make=_metadata(options=[1], plan="x", sha256=[], content={"a": 1})),
    Hostile(name="ONNX metadata nested deeply", file="hostile.onnx", refused=False,
            make=_changed(lambda m: m.metadata_props.add(key="spdexport.plan",
            value="[" * 100_000 + "]" * 100_000) and None)),
)  # fmt: skip
"""Metadata that ask for rights."""


# --- work without end ---


def _loop(trips: int) -> Change:
    flag = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    trip = helper.make_tensor_value_info("i", INTS, [])
    value = [helper.make_tensor_value_info(name, FLOATS, None) for name in ("v", "w")]
    steps = [helper.make_node("Relu", ["v"], ["w"]), helper.make_node("Identity", ["go"], ["on"])]
    body = helper.make_graph(steps, "body", [trip, flag[0], value[0]], [flag[1], value[1]])
    node = helper.make_node("Loop", ["trips", "yes", "c"], ["r"], name="loop", body=body)
    return _instead_of_relu(node, weights={"trips": np.int64(trips), "yes": np.array(True)})


def _doubling(times: int) -> Change:
    """Let each of many functions call the next one twice."""

    def change(model: onnx.ModelProto) -> None:
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
        for number in range(times):
            inner = f"F{number + 1}" if number + 1 < times else "Relu"
            domain = "own" if number + 1 < times else ""
            calls = [helper.make_node(inner, [a], [b], domain=domain) for a, b in (("a", "h"), ("h", "b"))]
            model.functions.append(helper.make_function("own", f"F{number}", ["a"], ["b"], calls, imports))
        model.opset_import.append(helper.make_opsetid("own", 1))
        _instead_of_relu(helper.make_node("F0", ["c"], ["r"], domain="own"))(model)

    return change


def _recursive(model: onnx.ModelProto) -> None:
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    calls = [helper.make_node("F", ["a"], ["b"], domain="own")]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], calls, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    _instead_of_relu(helper.make_node("F", ["c"], ["r"], domain="own"))(model)


def _field(number: int, content: bytes) -> bytes:
    """Return a field of protobuf that holds bytes or a message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _varint(value >> 7)


def _nested(depth: int) -> Make:
    """Return what puts an If into an If, so many times; onnx itself writes no more than 30."""

    def make(folder: Path) -> None:
        # GraphProto: node 1, name 2, output 12. NodeProto: input 1, output 2, op_type 4, attribute 5.
        end = _field(12, helper.make_tensor_value_info("t", FLOATS, None).SerializeToString()) + _field(2, b"g")
        leaf = _field(1, _field(1, b"c") + _field(2, b"t") + _field(4, b"Relu")) + end
        graph = leaf
        for level in range(depth):
            # AttributeProto: name 1, g 6, type 20.
            branches = [
                _field(1, name) + _field(6, body) + _varint(20 << 3) + _varint(AttributeProto.GRAPH)
                for name, body in ((b"then_branch", graph), (b"else_branch", leaf))
            ]
            node = _field(1, b"yes") + _field(4, b"If") + b"".join(_field(5, branch) for branch in branches)
            last = level + 1 == depth
            graph = _field(1, node + _field(2, b"r" if last else b"t")) + (b"" if last else end)
        model = onnx.load(folder / "net.onnx")
        _instead_of_relu(weights={"yes": np.array(True)})(model)
        nodes = list(model.graph.node)
        del model.graph.node[:]
        before, behind = (b"".join(_field(1, n.SerializeToString()) for n in part) for part in (nodes[:1], nodes[1:]))
        # A field that is there again is merged with the first one.
        (folder / "hostile.onnx").write_bytes(model.SerializeToString() + _field(7, before + graph + behind))

    return make


def _huge_value(*nodes: onnx.NodeProto, **weights: Any) -> Change:
    """Add a great value ``big`` to the activations, made out of sizes alone."""
    total = helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0)
    return _instead_of_relu(*nodes, total, helper.make_node("Add", ["c", "sum"], ["r"]), weights=weights)


def _claimed(dims: tuple[int, ...]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        weight = next(w for w in model.graph.initializer if w.name == "conv.weight")
        del weight.dims[:]
        weight.dims.extend(dims)

    return change


_BIG = np.array([30_000, 60_000, 60], np.int64)
_ONE = np.ones(1, np.float32)


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "r"


WORK = (
    *(
        Hostile(name=f"ONNX with an If nested {depth} times", file="hostile.onnx", make=_nested(depth),
        refused=depth > 30)
        for depth in (20, 300)
    ),
    *(
        Hostile(name=f"ONNX with {name}", file="hostile.onnx", make=_changed(change), refused=False)
        for name, change in (
            ("a Loop of 2^62 trips", _loop(NEVER)),
            ("a Loop of 10^7 trips", _loop(10**7)),
            ("functions that double 25 times", _doubling(25)),
            ("a function that calls itself", _recursive),
            ("a constant of 400 GB", _huge_value(helper.make_node("ConstantOfShape", ["sizes"], ["big"]), sizes=_BIG)),
            ("a constant of a size that overflows",
             _huge_value(helper.make_node("ConstantOfShape", ["sizes"], ["big"]), sizes=np.array([NEVER, 8],
             np.int64))),
            ("an Expand to 400 GB",
             _huge_value(helper.make_node("Expand", ["one", "sizes"], ["big"]), one=_ONE, sizes=_BIG)),
            ("a Tile to 400 GB",
             _huge_value(helper.make_node("Tile", ["one", "sizes"], ["big"]), one=_ONE.reshape(1, 1, 1), sizes=_BIG)),
            ("a Range to 10^11",
             _huge_value(helper.make_node("Range", ["zero", "end", "step"], ["big"]),
                         zero=np.float32(0), end=np.float32(1e11), step=np.float32(1))),
            ("a Pad by 10^11",
             _huge_value(helper.make_node("Pad", ["one", "pads"], ["big"]), one=_ONE, pads=np.array([0, 10**11],
             np.int64))),
            ("a Resize to 400 GB",
             _huge_value(helper.make_node("Resize", ["four", "", "", "sizes"], ["big"], mode="nearest"),
                         four=_ONE.reshape(1, 1, 1), sizes=_BIG)),
            ("random numbers of 400 GB",
             _huge_value(helper.make_node("RandomNormal", [], ["big"], shape=_BIG.tolist()))),
            ("an EyeLike of a great matrix",
             _huge_value(helper.make_node("ConstantOfShape", ["sizes"], ["flat"]),
                         helper.make_node("EyeLike", ["flat"], ["big"]), sizes=np.array([200_000, 200_000], np.int64))),
            ("a OneHot of depth 10^11",
             _huge_value(helper.make_node("OneHot", ["hot", "depth", "values"], ["big"]),
                         hot=np.array([1], np.int64), depth=np.int64(10**11), values=np.array([0, 1], np.float32))),
            ("a weight that claims 100 GB", _claimed((25 * 10**9, 1, 1, 1))),
            ("a weight of sizes that overflow", _claimed((2**31, 2**31, 4, 4))),
            ("a weight of negative sizes", _claimed((-4, 1, 3, 3))),
            ("a cycle", _cycle),
        )
    ),
)  # fmt: skip
"""Work or memory without end."""


def _many_nodes(model: onnx.ModelProto) -> None:
    names = ["c", *(f"n{number}" for number in range(60_000)), "r"]
    pairs = itertools.pairwise(names)
    _instead_of_relu(*(helper.make_node("Relu", [a], [b]) for a, b in pairs))(model)


LARGE = (Hostile(name="ONNX with 60000 nodes", file="hostile.onnx", make=_changed(_many_nodes), slow=True),)
"""Graphs that are too large."""


# --- names that reports must not obey ---

NAMES = (
    "<script>alert(1)</script>",
    "\x1b[2J\x1b[31mred",
    "::error::x",
    "a\r\n::set-output name=x::y",
    "]]><x/>",
    "\u202eabc",
)


def _named(name: str) -> Change:
    """Call a layer, its weight, the input and the output by a name."""

    def change(model: onnx.ModelProto) -> None:
        conv = next(node for node in model.graph.node if node.op_type == "Conv")
        conv.name = name
        weight = next(w for w in model.graph.initializer if w.name == conv.input[1])
        conv.input[1] = weight.name = name + ".weight"
        old = model.graph.output[0].name
        for node in model.graph.node:
            for index, output in enumerate(node.output):
                if output == old:
                    node.output[index] = name + ".out"
        model.graph.output[0].name = name + ".out"
        model.metadata_props.add(key=name, value=name)
        model.producer_name = name

    return change


INJECTIONS = tuple(
    Hostile(name=f"ONNX with the name {name!r}", file="hostile.onnx", make=_changed(_named(name)), refused=False)
    for name in NAMES
)
"""Names with markup, control characters, and commands of a runner."""
