from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model, network, random

from spdexport.conv import ConvSite, Skipped
from spdexport.forms import dense, factorized
from spdexport.rewrite.onnx_rewrite import place_onnx_forms
from spdexport.rewrite.onnx_scopes import node_keys
from spdexport.rewrite.onnx_sites import list_onnx_sites
from spdexport.sources.svd import svd_source


def sites_of(proto: onnx.ModelProto) -> tuple[dict[str, ConvSite], dict[str, Skipped]]:
    sites, skipped = list_onnx_sites(ir.from_proto(proto))
    return {s.name: s for s in sites}, {s.name: s for s in skipped}


def linear(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], **settings: object) -> onnx.ModelProto:
    return model(nodes, inputs={"x": ["N", 4]}, outputs={"y": [None, None]}, weights=weights, **settings)  # type: ignore[arg-type]


def test_layers_are_named_by_weight_then_bias_then_node() -> None:
    sites, skipped = sites_of(network())
    assert list(sites) == ["net.conv1", "second", "fc", "out"]
    assert not skipped
    conv = sites["net.conv1"]
    assert conv.spec.describe() == "3>6 3x3 p1"
    assert conv.node == "n1"
    np.testing.assert_array_equal(conv.weight, random(6, 3, 3, 3))
    assert conv.bias is not None
    np.testing.assert_array_equal(sites["out"].weight, random(4, 3).T)


@pytest.mark.parametrize("way", ["Constant", "Identity", "Transpose", "DequantizeLinear"])
def test_a_constant_weight_is_found_however_it_is_made(way: str) -> None:
    W = random(4, 3)
    weights = {"a.weight": W}
    made = "w"
    match way:
        case "Constant":
            weights = {}
            nodes = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W))]
        case "Identity":
            nodes = [helper.make_node("Identity", ["a.weight"], ["w"])]
        case "Transpose":
            weights = {"a.weight": np.ascontiguousarray(W.T)}
            nodes = [helper.make_node("Transpose", ["a.weight"], ["w"], perm=[1, 0])]
        case _:
            levels = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
            scale, zero = np.float32([0.5, 0.25, 2.0]), np.int8([1, 0, -1])
            weights = {"a.weight": levels, "scale": scale, "zero": zero}
            nodes = [helper.make_node("DequantizeLinear", ["a.weight", "scale", "zero"], ["w"], axis=1)]
            W = (levels.astype(np.float32) - zero) * scale
    sites, _ = sites_of(linear([*nodes, helper.make_node("MatMul", ["x", made], ["y"], name="product")], weights))
    assert list(sites) == ["product" if way == "Constant" else "a"]
    np.testing.assert_array_equal(next(iter(sites.values())).weight, W.T)


def test_names_are_unique_and_a_shared_weight_is_numbered() -> None:
    weights = {"a.0": random(4, 4), "a.1": random(4, 4, seed=1)}
    nodes = [
        helper.make_node("MatMul", ["x", "a.0"], ["p"]),
        helper.make_node("MatMul", ["p", "a.0"], ["q"]),
        helper.make_node("MatMul", ["q", "a.1"], ["y"]),
    ]
    assert list(sites_of(linear(nodes, weights))[0]) == ["a", "a#2", "a.1"]


def test_a_weight_used_both_ways_round_is_two_layers() -> None:
    weights = {"tied.weight": random(4, 4)}
    nodes = [
        helper.make_node("MatMul", ["x", "tied.weight"], ["p"]),
        helper.make_node("Gemm", ["p", "tied.weight"], ["y"], transB=1),
    ]
    assert list(sites_of(linear(nodes, weights))[0]) == ["tied", "tied.weight"]


def test_gemm_scales_are_in_weight_and_bias() -> None:
    weights = {"w": random(4, 3), "b": random(1, 3)}
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="g", alpha=0.5, beta=2.0)]
    site = sites_of(linear(nodes, weights))[0]["g"]
    np.testing.assert_array_equal(site.weight, 0.5 * weights["w"].T)
    np.testing.assert_array_equal(site.bias, 2 * weights["b"][0])  # type: ignore[arg-type]
    assert site.weight.dtype == np.float32


def _conv(weight: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("Conv", ["x", weight], ["y"], name="conv", **attributes)


SKIPPED = {
    "dynamic weight": (_conv("x"), {}, "its weight is not constant"),
    "same with a stride": (
        _conv("w", auto_pad="SAME_UPPER", strides=[2, 2]),
        {"w": random(3, 3, 2, 2)},
        "its padding is SAME_UPPER with a stride or dilation",
    ),
    "vector": (helper.make_node("MatMul", ["x", "w"], ["y"], name="v"), {"w": random(4)}, "its weight is a vector"),
    "batched": (
        helper.make_node("MatMul", ["x", "w"], ["y"], name="v"),
        {"w": random(2, 4, 3)},
        "its weight has 3 axes, a matrix for each",
    ),
    "transposed input": (
        helper.make_node("Gemm", ["x", "w"], ["y"], transA=1),
        {"w": random(4, 3)},
        "it transposes its input",
    ),
    "integer": (
        helper.make_node("MatMulInteger", ["x", "w"], ["y"]),
        {"w": np.ones((4, 3), np.int8)},
        "its weight is quantized, and integers have no float components",
    ),
    "integer products": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        {"w": np.ones((4, 3), np.int32)},
        "its weight has the integer type int32",
    ),
    "small floats": (
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        {"w": random(4, 3).astype(ml_dtypes.float8_e4m3fn)},
        "its weight is of float8_e4m3fn, which has no float components",
    ),
    "runtime's own": (
        helper.make_node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft"),
        {"w": random(3, 3, 1, 1)},
        "FusedConv of com.microsoft is another operator than the convolutions and products that are decomposed",
    ),
}


@pytest.mark.parametrize(("node", "weights", "reason"), SKIPPED.values(), ids=SKIPPED)
def test_what_is_left_alone_has_its_reason(node: onnx.NodeProto, weights: dict[str, np.ndarray], reason: str) -> None:
    sites, skipped = list_onnx_sites(ir.from_proto(linear([node], weights)))
    assert sites == ()
    assert [s.reason for s in skipped] == [reason]


def test_products_of_activations_and_constant_data_are_no_layers() -> None:
    nodes = [helper.make_node("MatMul", ["x", "x"], ["p"]), helper.make_node("MatMul", ["w", "w"], ["y"])]
    assert list_onnx_sites(ir.from_proto(linear(nodes, {"w": random(4, 4)}))) == ((), ())


def test_layers_in_bodies_are_layers_and_those_in_functions_are_reported() -> None:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    then = helper.make_graph([helper.make_node("MatMul", ["x", "a.weight"], ["inner"], name="m")], "t", [], [out])
    other = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["inner"])], "e", [], [out])
    proto = linear(
        [
            helper.make_node("If", ["flag"], ["z"], name="choice", then_branch=then, else_branch=other),
            helper.make_node("Block", ["z", "a.weight"], ["y"], domain="mine"),
        ],
        {"a.weight": random(4, 4), "flag": np.array(True)},
        domains=("mine",),
    )
    body = [helper.make_node("Gemm", ["p", "q"], ["r"], name="inside")]
    proto.functions.append(
        helper.make_function("mine", "Block", ["p", "q"], ["r"], body, [helper.make_opsetid("", 18)])
    )
    sites, skipped = list_onnx_sites(ir.from_proto(proto))
    assert [(s.name, s.kind, s.node, s.inside) for s in sites] == [
        ("a in choice.then", "linear", "choice.then/m", "choice.then")
    ]
    assert [(s.name, s.kind, s.reason) for s in skipped] == [
        ("Block.inside", "linear", "it is inside the function Block")
    ]


def test_a_pad_of_the_same_module_is_its_padding_mode() -> None:
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"], name="/conv/Pad", mode="reflect"),
        helper.make_node("Conv", ["p", "w"], ["y"], name="/conv/Conv"),
    ]
    weights = {"pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "w": random(2, 3, 3, 3)}
    proto = model(nodes, inputs={"x": [1, 3, 8, 8]}, outputs={"y": None}, weights=weights)
    assert sites_of(proto)[0]["/conv/Conv"].padding_mode == "reflect"
    proto.graph.node[0].name = "/other/Pad"
    assert sites_of(proto)[0]["/conv/Conv"].padding_mode == "zeros"


def test_nodes_without_a_name_or_with_the_same_have_keys_of_their_own() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name=name) for name in ("", "n", "n")]
    for number, node in enumerate(nodes):
        node.output[0] = f"o{number}"
    graph = ir.from_proto(model(nodes, inputs={"x": [1]}, outputs={"o0": None}, weights={})).graph
    assert list(node_keys(graph)) == ["o0", "n", "n#2"]


def placed(proto: onnx.ModelProto, form: str = "factorized") -> ir.Model:
    source = ir.from_proto(proto)
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    forms = []
    for site in list_onnx_sites(source)[0]:
        factors = svd_source(site)
        assert not isinstance(factors, Skipped)
        kept = site.weight if form == "delta" else None
        made = factorized(site.spec, factors, site.bias, delta=kept)
        forms.append((site, dense(site.spec, site.weight, site.bias) if form == "dense" else made))
    result = place_onnx_forms(source, forms)
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    return result


@pytest.mark.parametrize("opset", [10, 11, 22])
def test_a_form_takes_the_place_name_and_output_of_its_node(opset: int) -> None:
    graph = placed(network(opset)).graph
    # Before opset 11 a Gemm has to add something.
    first = "MatMul" if opset < 11 else "Gemm"
    types = [n.op_type for n in graph]
    assert types[:7] == ["Conv", "Conv", "Relu", "Conv", "Conv", "GlobalAveragePool", "Flatten"]
    assert types[7:] == [first, "Gemm", "Relu", "MatMul", "MatMul", "Add"]
    v, u = list(graph)[:2]
    assert (v.name, u.name) == ("n1.V", "n1")
    assert [value.name for value in u.inputs] == ["c1.V", "net.conv1.U", "net.conv1.bias"]
    assert u.outputs[0].name == "c1"
    names = {"net.conv1", "second", "fc", "out"}
    weights = {f"{name}.{part}" for name in names for part in "VU"}
    assert set(graph.initializers) == weights | {"net.conv1.bias", "fc.bias", "out.bias"}


def test_the_delta_is_a_chain_beside_and_dense_keeps_the_names() -> None:
    graph = placed(network(), "delta").graph
    assert [n.op_type for n in graph][:4] == ["Conv", "Conv", "Conv", "Add"]
    assert list(graph)[3].name == "n1"
    assert "net.conv1.delta" in graph.initializers
    graph = placed(network(), "dense").graph
    assert {"net.conv1.weight", "second.weight", "fc.weight", "out.weight"} < set(graph.initializers)


def test_a_weight_that_something_else_uses_stays() -> None:
    nodes = [helper.make_node("MatMul", ["x", "a.weight"], ["p"]), helper.make_node("Add", ["p", "a.weight"], ["y"])]
    proto = linear(nodes, {"a.weight": random(4, 4)})
    assert set(placed(proto).graph.initializers) == {"a.weight", "a.V", "a.U"}
    assert set(placed(proto, "dense").graph.initializers) == {"a.weight", "a.weight_2"}


def test_two_uses_of_one_weight_share_their_factors() -> None:
    nodes = [helper.make_node("MatMul", ["x", "a.w"], ["p"]), helper.make_node("MatMul", ["p", "a.w"], ["y"])]
    assert set(placed(linear(nodes, {"a.w": random(4, 4)})).graph.initializers) == {"a.V", "a.U"}
