"""Files for labs, a package that looks like onnxruntime-web, and where the real one is."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from spdexport.laboratory.runtime import FILES, VERSION

ROOT = Path(__file__).parents[2]
KINDS = ROOT / "tests/data/spd_kinds"

PLACES = (
    os.environ.get("SPDEXPORT_LAB_RUNTIME", ""),
    ROOT / "build/lab-runtime/package",
    ROOT / "node_modules/onnxruntime-web",
)
RUNTIME = next((Path(place) for place in PLACES if place and Path(place).exists()), None)
NO_RUNTIME = "no onnxruntime-web: make lab-runtime gets it, or SPDEXPORT_LAB_RUNTIME names the package"


def package(folder, *, version="0.0.1", name="onnxruntime-web", files=FILES):
    """A package with tiny files, of a version that is not known: enough for all but a browser."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
    for file in files:
        (folder / "dist" / file).write_text(f"// {file}")
    return folder


def known_version():
    return VERSION


def small(path, layer="fc", *, source="x", components=3, mask_dtype=TensorProto.FLOAT, required=False, batch="batch"):
    """A linear layer with a run-time mask: ``y = U (m * V x)``, from 4 numbers to 2."""
    rng = np.random.default_rng(0)
    V, U = rng.normal(size=(4, components)).astype(np.float32), rng.normal(size=(components, 2)).astype(np.float32)
    mask = f"mask/{layer}"
    nodes = [helper.make_node("MatMul", [source, "V"], ["v"])]
    scaled = mask
    if mask_dtype != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [mask], ["cast"], to=TensorProto.FLOAT))
        scaled = "cast"
    nodes += [helper.make_node("Mul", ["v", scaled], ["m"]), helper.make_node("MatMul", ["m", "U"], ["y"])]
    inputs = [
        helper.make_tensor_value_info(source, TensorProto.FLOAT, [batch, 4]),
        helper.make_tensor_value_info(mask, mask_dtype, ["batch_or_1", components]),
    ]
    weights = [numpy_helper.from_array(V, "V"), numpy_helper.from_array(U, "U")]
    if not required:
        ones = np.ones((1, components), helper.tensor_dtype_to_np_dtype(mask_dtype))
        weights.append(numpy_helper.from_array(ones, mask))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])
    graph = helper.make_graph(nodes, "small", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def numbers(path, samples=3, **beside):
    np.savez(path, x=np.random.default_rng(1).normal(size=(samples, 4)).astype(np.float32), **beside)
    return path
