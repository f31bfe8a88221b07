"""The valid files that damage starts from: one of every format, small, and made the same every time."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import sqlite3
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import nn

import spdexport
from spdexport.laboratory import runtime
from spdexport.latency import CACHE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    Arrays = dict[str, np.ndarray[Any, Any]]

MODEL = '''"""A tiny model, and the same with what a file says that its factory returns."""

import json
import pathlib

import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def make():
    return Tiny(), torch.randn(2, 1, 4, 4)


def value(said):
    match said:
        case {"tensor": shape, "dtype": dtype}:
            return torch.ones(shape, dtype=getattr(torch, dtype))
        case {"module": name, "of": arguments}:
            return getattr(nn, name)(*arguments)
        case {"tiny": _}:
            return Tiny()
        case {"tuple": list(items)}:
            return tuple(value(item) for item in items)
        case {"array": shape}:
            return torch.ones(shape).numpy()
        case dict():
            return {name: value(item) for name, item in said.items()}
        case list():
            return [value(item) for item in said]
    return said


def told():
    return value(json.loads(pathlib.Path(__file__).with_name("made.json").read_text()))
'''

CONFIG = """\
ci_fn_type: linear
ci_fn_hidden_dims:
- 4
module_info:
- C: 6
  module_pattern: conv
- C: 5
  module_pattern: fc
output_loss_type: mse
pretrained_model_class: model.Tiny
seed: 0
sigmoid_type: leaky_hard
steps: 100
task_config: {task_name: tms, feature_probability: 0.1}
tokenizer_name: null
"""


def random(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return float32 numbers that depend on shape and seed alone."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


class Tiny(nn.Module):
    """The model of ``model.py``: (n, 1, 4, 4) to (n, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


def _module() -> Tiny:
    module = Tiny()
    module.load_state_dict({name: torch.tensor(array) for name, array in state().items()})
    return module.eval()


def state() -> Arrays:
    """Return the weights of the tiny model."""
    return {
        "conv.weight": random(4, 1, 3, 3),
        "conv.bias": random(4),
        "fc.weight": random(3, 16),
        "fc.bias": random(3),
    }


def masks() -> Arrays:
    """Return masks over the components of ``components``."""
    return {"conv": np.array([1, 0, 1, 1, 0.5, 0], np.float32), "fc": np.array([1, 1, 0, 1, 0], np.float32)}


def components() -> Arrays:
    """Return V and U of both layers, with 6 and 5 components."""
    return {"conv.V": random(9, 6), "conv.U": random(6, 4), "fc.V": random(16, 5), "fc.U": random(5, 3)}


def run_state() -> Arrays:
    """Return what the checkpoint of an SPD run holds."""
    found = {f"target_model.{name}": array for name, array in state().items()}
    found |= {f"_components.{name}": array for name, array in components().items()}
    for layer, count in (("conv", 6), ("fc", 5)):
        found[f"_ci_fns.{layer}.linear.W"] = random(count, 1, 1)
        found[f"_ci_fns.{layer}.linear.b"] = random(count, 1)
    return found


# --- named arrays in every format that holds them ---


def _npz(arrays: Arrays, path: Path, *, stored: bool = False) -> None:
    (np.savez if stored else np.savez_compressed)(path, allow_pickle=False, **arrays)


def _json(arrays: Arrays, path: Path) -> None:
    path.write_text(json.dumps({name: array.tolist() for name, array in arrays.items()}))


def _torch(arrays: Arrays, path: Path, *, legacy: bool = False) -> None:
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)


def _pickle(arrays: Arrays, path: Path) -> None:
    path.write_bytes(pickle.dumps({name: array.tolist() for name, array in arrays.items()}, protocol=2))


WRITERS: dict[str, Callable[[Arrays, Path], None]] = {
    "safetensors": lambda arrays, path: save_file(arrays, path, metadata={"format": "pt"}),
    "npz": _npz,
    "stored.npz": lambda arrays, path: _npz(arrays, path, stored=True),
    "json": _json,
    "pt": _torch,
    "legacy.pt": lambda arrays, path: _torch(arrays, path, legacy=True),
    "pkl": _pickle,
}
"""By the ending that the material has."""


# --- ONNX by hand ---


def _onnx(nodes: list[onnx.NodeProto], weights: Arrays, *, functions: Any = (), opset: int = 18) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [x], [y], stored)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in {f.domain for f in functions})]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)


def _nodes(*, between: str = "r") -> list[onnx.NodeProto]:
    """Return Conv, Relu, Flatten and Gemm; ``between`` is what the Flatten reads."""
    return [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Flatten", [between], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], name="fc", transB=1),
    ]


def network() -> onnx.ModelProto:
    """Return the tiny model as ONNX."""
    return _onnx(_nodes(), state())


def _with_functions() -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 18)]
    body = [helper.make_node("Add", ["a", "a"], ["d"]), helper.make_node("Tanh", ["d"], ["b"])]
    inner = helper.make_function("own", "Inner", ["a"], ["b"], body, imports)
    calls = [
        helper.make_node("Inner", ["a"], ["i"], domain="own"),
        helper.make_node("Inner", ["i"], ["b"], domain="own"),
    ]
    outer = helper.make_function("own", "Outer", ["a"], ["b"], calls, [*imports, helper.make_opsetid("own", 1)])
    nodes = _nodes(between="o")
    nodes.insert(2, helper.make_node("Outer", ["r"], ["o"], name="outer", domain="own"))
    return _onnx(nodes, state(), functions=[inner, outer])


def _with_control_flow() -> onnx.ModelProto:
    floats = TensorProto.FLOAT
    value = [helper.make_tensor_value_info(name, floats, None) for name in ("t", "e", "v", "w")]
    then = helper.make_graph([helper.make_node("Neg", ["r"], ["t"])], "then", [], value[:1])
    other = helper.make_graph([helper.make_node("Abs", ["r"], ["e"])], "other", [], value[1:2])
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    trip = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    steps = [helper.make_node("Mul", ["v", "half"], ["w"]), helper.make_node("Identity", ["go"], ["on"])]
    loop = helper.make_graph(steps, "body", [trip, flags[0], value[2]], [flags[1], value[3]])
    nodes = _nodes(between="l")
    nodes[2:2] = [
        helper.make_node("If", ["choice"], ["b"], name="if", then_branch=then, else_branch=other),
        helper.make_node("Loop", ["trips", "choice", "b"], ["l"], name="loop", body=loop),
    ]
    weights = {**state(), "choice": np.array(True), "trips": np.array(3), "half": np.array(0.5, np.float32)}
    return _onnx(nodes, weights)


def _quantized() -> onnx.ModelProto:
    nodes = _nodes(between="rq")
    for index, name in ((0, "conv.weight"), (-1, "fc.weight")):
        nodes[index].input[1] = f"{name}.real"
    nodes[2:2] = [
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["rq"], name="dequantize"),
    ]
    weights = {**state(), "scale": np.array(0.05, np.float32), "zero": np.array(3, np.int8)}
    for name in ("conv.weight", "fc.weight"):
        weights[name] = np.clip(np.round(weights[name] / 0.05), -127, 127).astype(np.int8)
        weights[f"{name}.zero"] = np.array(0, np.int8)
        reads = [name, "scale", f"{name}.zero"]
        nodes.insert(0, helper.make_node("DequantizeLinear", reads, [f"{name}.real"], name=f"{name}.dequantize"))
    return _onnx(nodes, weights)


# --- what is made, by the name it gets ---


def _older_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write the layout before torch 2.8, which torch still reads."""
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    parts = serialize(program)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", parts.exported_program)
        archive.writestr("serialized_state_dict.pt", parts.state_dict)
        archive.writestr("serialized_constants.pt", parts.constants)
        archive.writestr("serialized_example_inputs.pt", parts.example_inputs)
        archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))


def _write_torch(folder: Path) -> None:
    module, x = _module(), torch.tensor(random(2, 1, 4, 4))
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, folder / "m.pt2")
    _older_program(program, folder / "older.pt2")
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, x), buffer)
    (folder / "m.ts").write_bytes(buffer.getvalue())


def _write_arrays(folder: Path) -> None:
    kinds = {"state": state(), "masks": masks(), "components": components(), "checkpoint": run_state()}
    for name, arrays in {**kinds, "inputs": {"x": random(2, 1, 4, 4)}, "data": {"x": random(12, 1, 4, 4)}}.items():
        for ending, write in WRITERS.items():
            write(arrays, folder / f"{name}.{ending}")
    for name, count in (("inputs", 2), ("data", 12)):
        np.save(folder / f"{name}.npy", random(count, 1, 4, 4))
    for file in ("a.npz", "b.stored.npz"):
        (folder / "data").mkdir(exist_ok=True)
        shutil.copy(folder / f"data.{file.partition('.')[2]}", folder / "data" / file)
    (folder / "run").mkdir()
    (folder / "run" / "final_config.yaml").write_text(CONFIG)
    _torch(run_state(), folder / "run" / "model_100.pth")
    (folder / "model.py").write_text(MODEL)
    made = {"tuple": [{"tiny": True}, {"tuple": [{"tensor": [2, 1, 4, 4], "dtype": "float32"}]}]}
    (folder / "made.json").write_text(json.dumps(made))
    (folder / "classes.json").write_text(json.dumps(["zero", "one"]))
    (folder / "labels.csv").write_text("component_key,label\nconv:0,edges\nfc:1,a class\n")
    (folder / "package" / "dist").mkdir(parents=True)
    (folder / "package" / "package.json").write_text(json.dumps({"name": runtime.NAME, "version": "0.0.1"}))
    for name in runtime.FILES:
        (folder / "package" / "dist" / name).write_text("// not run")
    (folder / "names.json").write_text(json.dumps({"some": ["conv:0", "fc:1"], "fc": [2, 3]}))
    with contextlib.closing(sqlite3.connect(folder / "harvest.bin")) as database:
        database.execute("CREATE TABLE components (component_key TEXT PRIMARY KEY, firing_density REAL, mean_ci REAL)")
        rows = [(f"{layer}:{i}", i / 10, i / 100) for layer, number in (("conv", 6), ("fc", 5)) for i in range(number)]
        database.executemany("INSERT INTO components VALUES (?, ?, ?)", rows)
        database.commit()
    edits = {"conv:2": {"scale": 0.5}, "fc:1": {"U": [1.0, -2.0, 0.25]}}
    (folder / "edit.json").write_text(json.dumps(edits))
    (folder / "sets.json").write_text(json.dumps({"one": ["conv:0", "fc:1"], "other": ["conv:2", "conv:3"]}))


def _write_onnx(folder: Path) -> None:
    models = {
        "net": network(), "functions": _with_functions(), "control": _with_control_flow(), "quantized": _quantized(),
    }  # fmt: skip
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    onnx.save(
        network(), folder / "external.onnx", save_as_external_data=True, location="external.bin", size_threshold=0
    )


def _write_converted(folder: Path) -> None:
    """Convert the others: each of our own kinds of file, a plan, a finding, and the times that were kept."""
    net, factors = folder / "net.onnx", {"components": folder / "components.safetensors"}
    masked = {**factors, "masks": folder / "masks.safetensors"}
    spdexport.convert(net, folder / "masked.onnx", verify=False, **masked)
    chosen = {"form": "auto", "save_plan": folder / "plan.json"}
    spdexport.convert(net, folder / "auto.onnx", verify=False, **masked, **chosen)
    made = {"factory": f"{folder / 'model.py'}:make", "runtime_masks": ["all"]}
    spdexport.convert(folder / "run", folder / "runtime.onnx", verify=False, **made)
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    try:
        spdexport.convert(net, folder / "fast.onnx", verify=False, **masked, form="auto", optimize_for="latency")
    finally:
        os.environ.pop(CACHE_VARIABLE) if before is None else os.environ.update({CACHE_VARIABLE: before})
    latency = folder / "cache" / "latency"
    shutil.copy(min(latency.iterdir()), latency / "kept.json")
    from spdexport.report.repro import write_repro

    found = spdexport.verify(folder / "masked.onnx")
    assert found.worst is not None
    write_repro(found.worst, folder / "repro.npz")


def write_material(folder: Path) -> None:
    """Write every valid file into an empty folder."""
    torch.manual_seed(0)
    _write_arrays(folder)
    _write_onnx(folder)
    _write_torch(folder)
    _write_converted(folder)
