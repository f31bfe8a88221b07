"""ONNX files as the source of convert, inspect and verify."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx_models import model, network, random, saved
from onnxscript import FLOAT, script
from onnxscript import opset18 as op
from safetensors.numpy import save_file
from torch import nn

import spdexport
from spdexport import Status, UsageError
from spdexport.errors import ComponentsError, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.conv import Array

EDGES = ("capture", "weights", "rewrite", "export", "optimize")


def statuses(verification: spdexport.Verification | None) -> dict[str, Status]:
    assert verification is not None
    return {edge.edge: edge.status for edge in verification.edges}


def check(source: Path, output: Path, **options: object) -> spdexport.Conversion:
    """Convert and verify twice, as convert does and by the file alone: every edge passes."""
    result = spdexport.convert(source, output, **options)  # type: ignore[arg-type]
    reasons = [(e.edge, e.reason) for e in result.verification.edges]  # type: ignore[union-attr]
    assert {statuses(result.verification)[edge] for edge in EDGES} == {Status.PASS}, reasons
    again = spdexport.verify(output, against=source, **options)  # type: ignore[arg-type]
    assert {statuses(again)[edge] for edge in EDGES} == {Status.PASS}
    return result


def run(path: Path, **inputs: Array) -> Array:
    found: Array = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, dict(inputs))[0]
    return found


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 22])
def test_opsets(opset: int, tmp_path: Path) -> None:
    source = saved(network(opset), tmp_path / "m.onnx")
    result = check(source, tmp_path / "out.onnx")
    assert [(layer.name, layer.form) for layer in result.plan.layers] == [
        (name, "factorized") for name in ("net.conv1", "second", "fc", "out")
    ]
    # 8 by 8 locations are told by the file.
    assert result.plan.macs_before == 64 * (6 * 27 + 30) + 20 + 12
    written = onnx.load(tmp_path / "out.onnx")
    assert written.opset_import[0].version == opset
    assert written.producer_name == "by_hand"
    x = random(2, 3, 8, 8)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", x=x), run(source, x=x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [9, 17])
def test_torchs_older_exporter(opset: int, tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.Flatten(),
        nn.Linear(36, 5), nn.ReLU(), nn.ConvTranspose1d(1, 3, 4, 2) if opset > 9 else nn.Linear(5, 3),
    ).eval()  # fmt: skip
    if opset > 9:
        module.insert(7, nn.Unflatten(1, (1, 5)))
    x = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (x,), str(tmp_path / "m.onnx"), dynamo=False, opset_version=opset, input_names=["x"],
            dynamic_axes={"x": {0: "batch"}}, keep_initializers_as_inputs=opset < 10,
        )  # fmt: skip
    result = check(tmp_path / "m.onnx", tmp_path / "out.onnx")
    assert {layer.form for layer in result.plan.layers} == {"factorized"}
    assert [layer.name for layer in result.plan.layers][1:3] == ["3", "5"]
    assert ("inputs with a layer's weight as their default" in " ".join(result.notes)) is (opset < 10)
    np.testing.assert_allclose(
        run(tmp_path / "out.onnx", x=x.numpy()), module(x).detach().numpy(), rtol=1e-3, atol=1e-4
    )


FIXED = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 3, 3), random(4, 3, 3, 3).ravel())


@script(default_opset=op)
def _scripted(x: FLOAT[2, 3, 8, 8]) -> FLOAT[2, 4, 3, 3]:
    return op.Relu(op.Conv(x, op.Constant(value=FIXED), strides=[2, 2]))


def test_onnxscript(tmp_path: Path) -> None:
    result = check(saved(_scripted.to_model_proto(), tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert [layer.form for layer in result.plan.layers] == ["factorized"]


def test_a_file_of_another_converter(tmp_path: Path) -> None:
    """``mlp_skl2onnx.onnx``: MLPClassifier((8, 6)) on two features of iris, by skl2onnx 1.20."""
    source = Path(__file__).parent.parent / "data" / "mlp_skl2onnx.onnx"
    result = check(source, tmp_path / "out.onnx", input_shape="2x2")
    assert {layer.form for layer in result.plan.layers} == {"factorized"}
    x = random(5, 2)
    before, after = (onnxruntime.InferenceSession(p).run(None, {"X": x}) for p in (source, tmp_path / "out.onnx"))
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_allclose(before[1], after[1], atol=1e-5)


def test_float16_and_float64(tmp_path: Path) -> None:
    result = check(saved(network(17, dtype="float16"), tmp_path / "h.onnx"), tmp_path / "h_out.onnx")
    assert onnx.load(result.outputs[0]).graph.initializer[0].data_type == TensorProto.FLOAT16
    found = spdexport.convert(saved(network(17, dtype="float64"), tmp_path / "d.onnx"), tmp_path / "d_out.onnx")
    # ONNX Runtime has no float64 convolution, for the source as little as for the file.
    edges = statuses(found.verification)
    assert (edges["capture"], edges["weights"], edges["rewrite"]) == (Status.NOT_RUN, Status.PASS, Status.PASS)
    assert found.verdict is Status.INCONCLUSIVE


def test_masks_delta_and_components_are_those_of_torch_sources(tmp_path: Path) -> None:
    source = saved(network(), tmp_path / "m.onnx")
    V, U = random(27, 5), random(5, 6)
    save_file({"net.conv1.V": V, "net.conv1.U": U}, tmp_path / "vu.safetensors")
    save_file({"net.conv1": np.float32([1, 0, 0.5, 1, 0])}, tmp_path / "masks.safetensors")
    options = {"components": tmp_path / "vu.safetensors", "masks": tmp_path / "masks.safetensors"}
    for name, more in (("a", {}), ("b", {"keep_masks": True}), ("c", {"delta": "keep"}), ("d", {"form": "dense"})):
        result = check(source, tmp_path / f"{name}.onnx", **options, **more)
        assert result.verification is not None
        assert result.verification.approximation is not None
        weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / f"{name}.onnx").graph.initializer}
        assert ("net.conv1.mask" in weights) is (name == "b")
        assert ("net.conv1.delta" in weights) is (name == "c")
    np.testing.assert_allclose(
        weights["net.conv1.weight"].reshape(6, 27), ((V * [1, 0, 0.5, 1, 0]) @ U).T, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UsageError, match="was made with masks, and they are not given"):
        spdexport.verify(tmp_path / "a.onnx", against=source, components=options["components"])
    save_file({"net.conv1": np.float32([1, 1, 0.5, 1, 0])}, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="made with other masks"):
        spdexport.verify(tmp_path / "a.onnx", against=source, **{**options, "masks": tmp_path / "other.safetensors"})
    with pytest.raises(UsageError, match="made with delta = 'auto', not 'keep'"):
        spdexport.verify(tmp_path / "a.onnx", against=source, **options, delta="keep")


def test_a_run_of_other_weights_is_refused(tmp_path: Path) -> None:
    source = saved(network(), tmp_path / "m.onnx")
    state = {
        "_components.net-conv1.V": torch.ones(27, 4),
        "_components.net-conv1.U": torch.ones(4, 6),
        "target_model.net.conv1.weight": torch.zeros(6, 3, 3, 3),
    }
    torch.save(state, tmp_path / "model_1.pth")
    with pytest.raises(ComponentsError, match=r"decomposed other weights than the model's: at net\.conv1"):
        spdexport.convert(source, tmp_path / "out.onnx", components=tmp_path / "model_1.pth")


def test_a_file_that_was_tampered_with_fails(tmp_path: Path) -> None:
    source = saved(network(), tmp_path / "m.onnx")
    spdexport.convert(source, tmp_path / "out.onnx", verify=False)
    proto = onnx.load(tmp_path / "out.onnx")
    tensor = next(t for t in proto.graph.initializer if t.name == "second.U")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0] += 0.1
    tensor.CopyFrom(numpy_helper.from_array(values, "second.U"))
    onnx.save(proto, tmp_path / "bad.onnx")
    found = spdexport.verify(tmp_path / "bad.onnx", against=source)
    edges = {e.edge: e for e in found.edges}
    assert edges["weights"].status is Status.FAIL
    assert edges["weights"].first_divergence == "second"
    assert edges["weights"].reason.startswith("what the factors of second compose to, at [0, ")
    bounds = {layer.name: layer.bound for layer in found.layers}
    assert bounds["second"] > 1000 * bounds["net.conv1"] > 0
    assert edges["export"].status is Status.FAIL
    # What was meant did not change.
    assert (edges["capture"].status, edges["rewrite"].status) == (Status.PASS, Status.PASS)


def test_a_source_that_the_runtime_does_not_run_is_inconclusive(tmp_path: Path) -> None:
    """ONNX Runtime takes no dilation with auto_pad."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", dilations=[2, 2], kernel_shape=[3, 3])
    proto = model([node], inputs={"x": [1, 3, 8, 8]}, outputs={"y": [1, 3, 8, 8]}, weights={"w": random(3, 3, 3, 3)})
    result = spdexport.convert(saved(proto, tmp_path / "m.onnx"), tmp_path / "out.onnx")
    assert statuses(result.verification)["capture"] is Status.NOT_RUN
    assert result.verdict is Status.INCONCLUSIVE
    assert [s.reason for s in result.plan.skipped] == ["its padding is SAME_UPPER with a stride or dilation"]


def test_a_weight_that_only_a_body_uses_is_compared(tmp_path: Path) -> None:
    source = saved(_with_bodies(), tmp_path / "m.onnx")
    spdexport.convert(source, tmp_path / "out.onnx", verify=False)
    proto = onnx.load(tmp_path / "out.onnx")
    next(t for t in proto.graph.initializer if t.name == "other.V").CopyFrom(
        numpy_helper.from_array(random(4, 4, seed=9), "other.V")
    )
    onnx.save(proto, tmp_path / "bad.onnx")
    found = spdexport.verify(tmp_path / "bad.onnx", against=source)
    weights = next(e for e in found.edges if e.edge == "weights")
    assert (weights.status, weights.first_divergence) == (Status.FAIL, "other")


def test_two_files_are_still_compared_as_files(tmp_path: Path) -> None:
    source = saved(network(), tmp_path / "m.onnx")
    spdexport.convert(source, tmp_path / "out.onnx", verify=False)
    spdexport.fold(tmp_path / "out.onnx", tmp_path / "folded.onnx", verify=False)
    for file, other in (("m.onnx", "out.onnx"), ("out.onnx", "folded.onnx"), ("folded.onnx", "out.onnx")):
        found = spdexport.verify(tmp_path / file, against=tmp_path / other)
        assert (found.verdict, found.plan) == (Status.PASS, None)
    # A file that was made from the other one, by way of a fold too, is compared with it as its source.
    assert spdexport.verify(tmp_path / "folded.onnx", against=source).plan is not None


def _with_bodies() -> onnx.ModelProto:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node("MatMul", ["h", weight], ["inner"])], weight, [], [out])
        for weight in ("inside.weight", "other.weight")
    ]
    proto = model(
        [
            helper.make_node("Gemm", ["x", "fc.weight", "fc.bias"], ["h"]),
            helper.make_node("If", ["flag"], ["z"], name="if", then_branch=branches[0], else_branch=branches[1]),
            helper.make_node("Twice", ["z"], ["s"], domain="mine"),
            helper.make_node("Add", ["s", "limit"], ["y"]),
        ],
        inputs={"x": ["N", 4]},
        outputs={"y": ["N", 4]},
        weights={
            "fc.weight": random(4, 4), "fc.bias": random(4), "inside.weight": random(4, 4), "flag": np.array(True),
            "other.weight": random(4, 4, seed=1), "limit": random(1),
        },
        listed=("limit",),
        domains=("mine",),
    )  # fmt: skip
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
    helper.set_model_props(proto, {"author": "somebody", "spdexport.version": '"0"'})
    proto.graph.doc_string = "kept"
    return proto


def test_all_that_is_no_layer_is_kept(tmp_path: Path) -> None:
    proto = _with_bodies()
    source = saved(proto, tmp_path / "m.onnx")
    result = check(source, tmp_path / "out.onnx")
    assert {layer.name for layer in result.plan.layers} == {"fc", "inside in if.then", "other in if.else"}
    assert not result.plan.skipped
    written = onnx.load(tmp_path / "out.onnx")
    assert [n.op_type for n in written.graph.node] == ["Gemm", "Gemm", "If", "Twice", "Add"]
    assert written.functions[0] == proto.functions[0]
    assert written.graph.doc_string == "kept"
    props = {p.key: p.value for p in written.metadata_props}
    assert props["author"] == "somebody"
    assert props["spdexport.version"] != '"0"'
    # An input with a default that is no layer's weight is one that a caller may set.
    assert [v.name for v in written.graph.input] == ["x", "limit"]


def test_external_data_stays_external(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    weights = {"big.weight": random(40, 40), "small.weight": random(40, 3), "shape": np.int64([-1, 3])}
    nodes = [
        helper.make_node("MatMul", ["x", "big.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "small.weight"], ["z"]),
        helper.make_node("Reshape", ["z", "shape"], ["y"]),
    ]
    proto = model(nodes, inputs={"x": ["N", 40]}, outputs={"y": ["N", 3]}, weights=weights)
    saved(proto, tmp_path / "inline.onnx")
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=100)
    result = check(folder / "m.onnx", tmp_path / "out.onnx")
    assert [p.suffix for p in result.outputs] == [".onnx", ".data"]
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert {t.name for t in stored if t.external_data} == {"big.V", "big.U"}
    # Of a source without weights beside it, a file of this size has none beside it either.
    assert len(spdexport.convert(tmp_path / "inline.onnx", tmp_path / "b.onnx", verify=False).outputs) == 1
    assert set(result.hashes) >= {"source", "source m.bin", "out.onnx"}
    (folder / "m.bin").unlink()
    with pytest.raises(SourceError, match=r"m.bin, which holds weights of the model, is missing"):
        spdexport.inspect(folder / "m.onnx")


def test_old_files_are_lifted_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    weights = {"w": random(4, 3, 3, 3), "b": random(4)}

    def written(*nodes: onnx.NodeProto) -> Path:
        conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv")
        proto = model(
            [conv, *nodes], inputs={"x": ["N", 3, 8, 8]}, outputs={"y": ["N", 4, 6, 6]}, weights=weights, opset=6,
            ir_version=3, listed=("w", "b"),
        )  # fmt: skip
        return saved(proto, tmp_path / "m.onnx")

    source = written(helper.make_node("Add", ["c", "b"], ["y"], broadcast=1, axis=1))
    with pytest.raises(SourceError, match=r"cannot lift it to 13: .*N Dimension is a param"):
        spdexport.inspect(source)
    result = spdexport.convert(written(helper.make_node("Relu", ["c"], ["y"])), tmp_path / "out.onnx")
    edges = statuses(result.verification)
    assert {edges[e] for e in ("weights", "rewrite", "export", "optimize")} == {Status.PASS}
    assert any(note.startswith("lifted from opset 6 to 13") for note in result.notes)
    assert [layer.form for layer in result.plan.layers] == ["factorized"]
    assert onnx.load(tmp_path / "out.onnx").ir_version >= 4


def test_opset_lifts_and_never_lowers(tmp_path: Path) -> None:
    source = saved(network(17), tmp_path / "m.onnx")
    result = check(source, tmp_path / "out.onnx", opset=20)
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version == 20
    assert any("lifted from opset 17 to 20 (--opset)" in note for note in result.notes)
    with pytest.raises(UsageError, match="of opset 20, and ONNX files are converted to newer opsets only"):
        spdexport.convert(tmp_path / "out.onnx", tmp_path / "again.onnx", opset=18)


def test_usage_errors(tmp_path: Path) -> None:
    source = saved(network(), tmp_path / "m.onnx")
    for options, what in (
        ({"factory": "f.py:make"}, "which needs no factory"),
        ({"dynamic": ["x:2=h"]}, "says itself which of its axes are dynamic"),
        ({"dynamic_batch": False}, "says itself which of its axes are dynamic"),
        ({"layers": ["nett*"]}, "'nett\\*' matches no layer"),
    ):
        with pytest.raises(UsageError, match=what):
            spdexport.convert(source, tmp_path / "out.onnx", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="of which no torch program can be made"):
        spdexport.convert(source, [tmp_path / "out.onnx", tmp_path / "out.pt2"])
    with pytest.raises(UsageError, match="of which no torch program can be made"):
        spdexport.factorize(source)
    assert list(tmp_path.iterdir()) == [source]


def test_a_source_that_the_checker_refuses(tmp_path: Path) -> None:
    proto = network()
    del proto.graph.node[0].input[:]
    with pytest.raises(SourceError, match=r"onnx\.checker refuses the file"):
        spdexport.inspect(saved(proto, tmp_path / "m.onnx"))


def test_inspect_says_what_sizes_are_unknown(tmp_path: Path) -> None:
    proto = network()
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"size{axis}"
    source = saved(proto, tmp_path / "m.onnx")
    found = spdexport.inspect(source)
    assert [layer.macs_before for layer in found.plan.layers] == [162, 30, 20, 12]
    assert any("does not tell the output sizes of net.conv1, second:" in note for note in found.notes)
    found = spdexport.inspect(source, input_shape="1x3x4x4")
    assert [layer.macs_before for layer in found.plan.layers] == [16 * 162, 16 * 30, 20, 12]
    assert not found.notes


def test_a_factorized_file_is_a_source_too(tmp_path: Path) -> None:
    source = saved(network(), tmp_path / "m.onnx")
    spdexport.convert(source, tmp_path / "a.onnx", verify=False)
    found = spdexport.inspect(tmp_path / "a.onnx")
    assert [layer.name for layer in found.plan.layers][:2] == ["net.conv1.V", "net.conv1.U"]


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    source = saved(network(), tmp_path / "m.onnx")
    first = spdexport.convert(source, tmp_path / "a.onnx", verify=False).outputs[0].read_bytes()
    assert spdexport.convert(source, tmp_path / "b.onnx", verify=False).outputs[0].read_bytes() == first


def backend_tests() -> list[object]:
    """The operator tests of the onnx package with a Conv or ConvTranspose, whose first input is what varies."""
    wanted = {"Conv", "ConvTranspose"}
    return [
        pytest.param(case, id=case.name)
        for case in load_model_tests(kind="node")
        if case.model is not None and wanted & {node.op_type for node in case.model.graph.node}
    ]


@pytest.mark.parametrize("case", backend_tests())
def test_the_operator_tests_of_onnx(case: object, tmp_path: Path) -> None:
    """With their weights made initializers, they give the expected output after conversion too."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)  # type: ignore[attr-defined]
    inputs, outputs = case.data_sets[0]  # type: ignore[attr-defined]
    given: Mapping[str, Array] = dict(zip([v.name for v in proto.graph.input], inputs, strict=True))
    # What feeds the second and third operand of a convolution, directly or through shape changes, is a weight.
    operands = _weights(proto)
    for name in operands & given.keys():
        proto.graph.initializer.append(numpy_helper.from_array(given[name], name))
    kept = [v for v in proto.graph.input if v.name not in operands]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    source = saved(proto, tmp_path / "m.onnx")
    result = spdexport.convert(source, tmp_path / "out.onnx")
    assert result.verdict in (Status.PASS, Status.INCONCLUSIVE), result.verification
    assert result.plan.layers or result.plan.skipped
    feeds = {v.name: given[v.name] for v in kept}
    found = _evaluated(tmp_path / "out.onnx", feeds)
    for value, right in zip(found, outputs, strict=True):
        tolerance = 2e-2 if right.dtype == np.float16 else 1e-4
        np.testing.assert_allclose(value, right, rtol=tolerance, atol=tolerance)


def _weights(proto: onnx.ModelProto) -> set[str]:
    made = {name: node for node in proto.graph.node for name in node.output}
    found: set[str] = set()
    pending = [n for node in proto.graph.node if node.op_type.startswith("Conv") for n in node.input[1:]]
    while pending:
        name = pending.pop()
        found.add(name)
        pending += made[name].input if name in made else []
    return found


def _evaluated(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    """By ONNX Runtime, or by onnx's own evaluator where the opset is too new for it."""
    try:
        return list(onnxruntime.InferenceSession(path).run(None, dict(feeds)))
    except Exception:  # the runtime has no public class for what it does not load
        return list(onnx.reference.ReferenceEvaluator(str(path)).run(None, dict(feeds)))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(self.embed(ids))
        return found


def test_a_tied_embedding_keeps_its_table(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Tied().eval(), (torch.zeros(2, 3, dtype=torch.int64),), str(tmp_path / "m.onnx"), dynamo=False,
            input_names=["ids"], dynamic_axes={"ids": {0: "batch"}},
        )  # fmt: skip
    result = check(tmp_path / "m.onnx", tmp_path / "out.onnx", input_shape="ids=2x3:int64")
    assert [layer.form for layer in result.plan.layers] == ["factorized"]
