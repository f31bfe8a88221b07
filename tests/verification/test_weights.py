from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spdexport import pipeline
from spdexport.conv import ConvSpec
from spdexport.rewrite.match import in_chains
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.verification.result import Status
from spdexport.verification.weight_values import magnitudes
from spdexport.verification.weights import compare_weights, weights_edge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RNG = np.random.default_rng(0)
V, U = RNG.standard_normal((5, 3, 3, 3)), RNG.standard_normal((4, 5, 1, 1))


def model(nodes: list[onnx.NodeProto], **weights: np.ndarray) -> ir.Model:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 6, 6])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(w.astype(np.float32), n.replace("_", ".")) for n, w in weights.items()]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], tensors)
    opset = [onnx.helper.make_opsetid("", 18)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8))


def pair(v: np.ndarray = V, u: np.ndarray = U) -> ir.Model:
    nodes = [
        onnx.helper.make_node("Conv", ["x", "conv.V"], ["z"]),
        onnx.helper.make_node("Conv", ["z", "conv.U"], ["y"]),
    ]
    return model(nodes, conv_V=v, conv_U=u)


def dense(weight: np.ndarray | None = None, **attributes: object) -> ir.Model:
    made = np.einsum("cikl,oc->oikl", V, U[:, :, 0, 0]) if weight is None else weight
    return model([onnx.helper.make_node("Conv", ["x", "conv.weight"], ["y"], **attributes)], conv_weight=made)


def nan(value: np.ndarray) -> np.ndarray:
    changed = value.copy()
    changed.flat[2] = np.nan
    return changed


def test_factors_pass_against_their_product() -> None:
    found = weights_edge(pair(), dense())
    assert found.status is Status.PASS
    assert found.noise_ratio is not None
    assert 0 < found.noise_ratio < 2


@pytest.mark.parametrize("make", [lambda: pair(v=nan(V)), lambda: pair(u=nan(U)), lambda: dense(nan(V))])
def test_nan_never_passes(make: Callable[[], ir.Model]) -> None:
    plain = dense() if len(make().graph) == 2 else dense(V)
    found = weights_edge(make(), plain)
    assert found.status is Status.FAIL
    assert found.first_divergence == "conv"


def test_a_weight_that_nothing_touched_is_equal_bit_for_bit() -> None:
    other = V.astype(np.float32)
    other.flat[0] = np.nextafter(other.flat[0], np.float32(9))
    found = weights_edge(dense(other), dense(V))
    assert found.status is Status.FAIL
    assert found.reason == "conv.weight differs in 1 of 135 entries, and nothing should have changed it"


@pytest.mark.parametrize(
    ("attributes", "same"),
    [
        ({"group": 1}, True),
        ({"auto_pad": "NOTSET"}, True),
        ({"kernel_shape": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4}, True),
        ({"dilations": [2, 1]}, False),
        ({"strides": [2, 2]}, False),
        ({"pads": [0, 0, 1, 0]}, False),
    ],
)
def test_attributes_count_and_defaults_are_what_they_are(attributes: dict[str, object], same: bool) -> None:
    assert (weights_edge(dense(**attributes), dense()).status is Status.PASS) is same


def test_a_float_attribute_is_what_a_file_keeps_of_it() -> None:
    def norm(epsilon: float) -> ir.Model:
        node = ir.node("LayerNormalization", [], attributes={"epsilon": epsilon, "axis": -1})
        base = model([onnx.helper.make_node("LayerNormalization", ["x", "norm.weight"], ["y"])], norm_weight=np.ones(6))
        base.graph[0].attributes.clear()
        base.graph[0].attributes.update(node.attributes)
        return base

    kept = float(np.float32(1e-6))
    assert weights_edge(norm(kept), norm(1e-6)).status is Status.PASS
    found = weights_edge(norm(1e-5), norm(1e-6))
    assert found.status is Status.FAIL
    assert found.first_divergence == "norm"
    assert "epsilon" in found.reason


def test_the_smallest_entry_off_by_a_hundredth_is_found() -> None:
    # A 1% error of the smallest entry is found, whatever the size of the others.
    off = V.copy()
    off.flat[np.abs(off).argmin()] *= 1.01
    assert weights_edge(pair(v=off), dense()).status is Status.FAIL


def row(*stages: tuple[str, np.ndarray, dict[str, object]]) -> ir.Model:
    """Convolutions in a row."""
    ends = [f"z{i}" for i in range(len(stages) - 1)] + ["y"]
    starts = ["x", *ends]
    nodes = [
        onnx.helper.make_node("Conv", [start, name.replace("_", ".")], [end], **attributes)
        for (name, _, attributes), start, end in zip(stages, starts, ends, strict=False)
    ]
    return model(nodes, **{name: weight for name, weight, _ in stages})


DOWN, ACROSS = RNG.standard_normal((5, 3, 3, 1)), RNG.standard_normal((4, 5, 1, 3))
SPATIAL = row(("conv_down", DOWN, {"pads": [1, 0, 1, 0]}), ("conv_across", ACROSS, {"pads": [0, 1, 0, 1]}))
INTO, CORE, OUT = (RNG.standard_normal(s) for s in ((2, 3, 1, 1), (5, 2, 3, 3), (4, 5, 1, 1)))
TUCKER = row(("conv_in", INTO, {}), ("conv_core", CORE, {}), ("conv_out", OUT, {}))


def stage(into: int, out: int, kernel: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> ConvSpec:
    pads = tuple((p, p) for p in padding)
    return ConvSpec(in_channels=into, out_channels=out, kernel=kernel, stride=(1, 1), padding=pads, dilation=(1, 1))


SPATIAL_CHAIN = (stage(3, 5, (3, 1), (1, 0)), stage(5, 4, (1, 3), (0, 1)))
TUCKER_CHAIN = (stage(3, 2, (1, 1)), stage(2, 5, (3, 3)), stage(5, 4, (1, 1)))


@pytest.mark.parametrize(
    ("file", "chain", "plain"),
    [
        (SPATIAL, SPATIAL_CHAIN, dense(np.einsum("cikx,ocxl->oikl", DOWN, ACROSS), pads=[1, 1, 1, 1])),
        (TUCKER, TUCKER_CHAIN, dense(np.einsum("aixy,cakl,ocxy->oikl", INTO, CORE, OUT))),
    ],
    ids=["spatial", "Tucker-2"],
)
def test_other_forms_compose_where_the_plan_has_them(
    file: ir.Model, chain: tuple[ConvSpec, ...], plain: ir.Model
) -> None:
    assert compare_weights(file, plain, beyond=in_chains([chain])).edge.status is Status.PASS
    assert compare_weights(file, plain).edge.status is Status.FAIL
    wrong = file.clone()
    weight = next(iter(wrong.graph.initializers.values()))
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
    found = compare_weights(wrong, plain, beyond=in_chains([chain])).edge
    assert found.status is Status.FAIL
    assert "compose to" in found.reason
    # A model that has such convolutions of its own in a row is compared with them folded on both sides.
    assert compare_weights(file, file.clone(), beyond=in_chains([chain])).edge.status is Status.PASS


def test_what_is_in_no_chain_of_the_plan_is_left_as_it_is() -> None:
    other = (SPATIAL_CHAIN[0], *TUCKER_CHAIN)
    assert compare_weights(SPATIAL, SPATIAL.clone(), beyond=in_chains([other])).edge.reason.startswith("0 layers")


SHARED = ["abcd", "aabb", "abab", "abba", "abbc", "aabc", "abcb", "aaaa"]
"""Which of scale, bias, mean and variance are one initializer."""


def normed(shared: str, kind: str, path: Path) -> Path:
    """A convolution and a batch norm behind it, in a body of If too."""
    rng = np.random.default_rng(1)
    tensors = {n: rng.uniform(0.5, 1.5, 8).astype(np.float32) for n in sorted(set(shared))}
    tensors |= {"w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32)}
    conv = onnx.helper.make_node("Conv", ["x", "w"], ["conv"])

    def norm(output: str) -> onnx.NodeProto:
        return onnx.helper.make_node("BatchNormalization", ["conv", *shared], [output])

    def body(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
        out = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph([node], name, [], [out])

    nodes = [conv, norm("y")]
    if kind == "in a body":
        tensors["a subtracted"] = tensors["a"] + 1
        chosen = onnx.helper.make_node(
            "If", ["flag"], ["y"], then_branch=body("p", norm("p")),
            else_branch=body("q", onnx.helper.make_node("Sub", ["conv", "a subtracted"], ["q"])),
        )  # fmt: skip
        nodes = [
            conv,
            onnx.helper.make_node("Sub", ["conv", "wide"], ["less"]),
            onnx.helper.make_node("ReduceMean", ["less"], ["mean"], keepdims=0),
            onnx.helper.make_node("Cast", ["mean"], ["flag"], to=onnx.TensorProto.BOOL),
            chosen,
        ]
        tensors["wide"] = rng.standard_normal((8, 1, 1)).astype(np.float32)
        tensors["a subtracted"] = tensors["a subtracted"].reshape(8, 1, 1)
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 6, 6])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(
        onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)), path
    )
    return path


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("kind", ["in the graph", "in a body"])
def test_magnitudes_of_one_initializer_that_feeds_several_inputs(shared: str, kind: str, tmp_path: Path) -> None:
    model = ir.load(normed(shared, kind, tmp_path / "m.onnx"))
    found = magnitudes(model)
    own = {value.name: value for graph in model.graphs() for value in graph.initializers.values()}
    norm, size = (
        next(node for graph in m.graphs() for node in graph if node.op_type == "BatchNormalization")
        for m in (model, found)
    )
    for index, name in enumerate(shared, 1):
        value, stored = size.inputs[index], own[name].const_value
        assert norm.inputs[index] is own[name], "the model itself is not changed"
        assert value is not None and value.const_value is not None and stored is not None  # noqa: PT018
        assert np.array_equal(value.const_value.numpy(), stored.numpy() * (-1 if index == 3 else 1))
    folded = fold_onnx(found, lone=True, sizes=True).model
    for value in (v for graph in folded.graphs() for v in graph.initializers.values()):
        assert value.const_value is not None
        assert np.isfinite(value.const_value.numpy()).all(), value.name


def test_a_batch_norm_of_one_initializer_is_converted_and_compared(tmp_path: Path) -> None:
    source = normed("aaaa", "in the graph", tmp_path / "m.onnx")
    done = pipeline.convert(source, tmp_path / "out.onnx", form="factorized")
    assert done.verification is not None
    assert done.verification.verdict is Status.PASS, done.verification.edges
    again = pipeline.verify(tmp_path / "out.onnx", against=source)
    assert again.verdict is Status.PASS, again.edges
    model = onnx.load(source)
    scale = next(t for t in model.graph.initializer if t.name == "a")
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1 + 1e-5), "a"))
    onnx.save(model, tmp_path / "other.onnx")
    found = pipeline.verify(tmp_path / "out.onnx", against=tmp_path / "other.onnx")
    edge = next(edge for edge in found.edges if edge.edge == "weights")
    assert edge.status is Status.FAIL, edge
