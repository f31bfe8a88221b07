"""Layers in the bodies of If, Loop and Scan: which there are, what they are called, and where their parts are kept."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from body_models import MODELS, SIZE, carrying, conv, image, source, trips, value, weights
from onnx import TensorProto, helper, numpy_helper
from onnx_models import random

from spdexport.conv import Skipped
from spdexport.forms import factorized
from spdexport.names import call_in, layer_of_call
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.onnx_rewrite import place_onnx_forms
from spdexport.rewrite.onnx_scopes import node_keys, scopes
from spdexport.rewrite.onnx_shapes import value_sizes
from spdexport.rewrite.onnx_sites import list_onnx_sites
from spdexport.sources.svd import svd_source
from spdexport.verification.file_layers import hidden_layers


def placed(model: ir.Model) -> ir.Model:
    forms = []
    for site in list_onnx_sites(model)[0]:
        factors = svd_source(site)
        assert not isinstance(factors, Skipped)
        forms.append((site, factorized(site.spec, factors, site.bias)))
    return place_onnx_forms(model, forms)


def held(model: ir.Model) -> dict[str, list[str]]:
    """The names of the weights that each graph stores, by its place."""
    return {
        s.place: [n for n, v in s.graph.initializers.items() if v.shape and len(v.shape)] for s in scopes(model.graph)
    }


LAYERS = {
    "if": {
        "shared in choice.else": "choice.else/e1_conv",
        "e_conv in choice.else": "choice.else/e_conv",
        "own in choice.then": "choice.then/t1_conv",
        "shared in choice.then": "choice.then/t_conv",
    },
    "loop": {"step in again.body": "again.body/c_conv", "last": "y_conv"},
    "scan": {
        "begin": "begins",
        "cell in sequence.body": "sequence.body/reads",
        # Another weight has the name `cell` already.
        "cell.state in sequence.body": "sequence.body/remembers",
    },
    "nested": {
        "both": "h_conv",
        "odd in again.body/which.else": "again.body/which.else/q_conv",
        "even in again.body/which.then": "again.body/which.then/p_conv",
        "both in again.body": "again.body/d_conv",
    },
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_have_names_that_tell_where_they_are(kind: str) -> None:
    model = ir.from_proto(MODELS[kind]())
    sites, skipped = list_onnx_sites(model)
    assert {site.name: site.node for site in sites} == LAYERS[kind]
    assert not skipped
    for site in sites:
        assert layer_of_call(site.name) == site.name.partition(" in ")[0]
        assert site.inside == site.name.partition(" in ")[2]


def test_names_of_calls() -> None:
    assert call_in("conv", "") == "conv"
    assert call_in("net.conv", "again.body/which.then") == "net.conv in again.body/which.then"
    for name in ("a", "a#2", "a in b.then", "a in b#2.then#3"):
        assert layer_of_call(name) == "a"
    for name in ("#2", "a#b", "a in", "in b", "a in b c"):
        assert layer_of_call(name) == name


def test_a_layer_of_the_main_graph_has_no_name_like_that_of_one_in_a_body() -> None:
    nodes = [conv("x", "w", "h"), conv("h", "w2", "y")]
    nodes[0].name, nodes[1].name = "again", "again in the.end"
    sites, _ = list_onnx_sites(
        ir.from_proto(source(nodes, {"w": random(4, 4, 3, 3), "w2": random(4, 4, 3, 3, seed=1)}))
    )
    assert [(site.name, layer_of_call(site.name)) for site in sites] == [
        ("again", "again"),
        ("again_in_the.end", "again_in_the.end"),
    ]


def test_sizes_in_bodies_are_counted() -> None:
    for kind, positions in (("if", SIZE**2), ("loop", SIZE**2), ("scan", 1), ("nested", SIZE**2)):
        model = ir.from_proto(MODELS[kind]())
        sites, _ = list_onnx_sites(model, value_sizes(model, None))
        assert {site.positions for site in sites if site.inside} == {positions}


def twins(*sizes: int) -> onnx.ModelProto:
    """An If whose branches use the same names, for other weights and perhaps for values of other sizes."""
    bodies = []
    for number, size in enumerate(sizes):
        nodes = [
            helper.make_node("Conv", ["x", "w.weight"], ["a"], name="n"),
            helper.make_node("ReduceMax", ["a"], ["b"]),
        ]
        nodes += [
            helper.make_node("Conv", ["x", "w.weight"], ["c"], name="n"),
            helper.make_node("Add", ["b", "c"], ["d"]),
        ]
        kept = numpy_helper.from_array(random(4, 4, size, size, seed=number), "w.weight")
        bodies.append(helper.make_graph(nodes, f"g{number}", [], [helper.make_tensor_value_info("d", 1, None)], [kept]))
    choice = helper.make_node("If", ["flag"], ["y"], name="my choice", then_branch=bodies[0], else_branch=bodies[1])
    return source([choice], {"flag": np.array(True)}, y=["N", 4, "h", "w"])


def test_siblings_may_use_the_same_names_for_other_things() -> None:
    model = ir.from_proto(twins(3, 1))
    sizes = value_sizes(model, None)
    assert "a" not in sizes
    sites, _ = list_onnx_sites(model, sizes)
    assert [site.name for site in sites] == [
        "w in my_choice.else", "w in my_choice.else#2", "w.weight in my_choice.then", "w.weight in my_choice.then#2",
    ]  # fmt: skip
    assert [site.node for site in sites] == [
        "my_choice.else/n", "my_choice.else/n#2", "my_choice.then/n", "my_choice.then/n#2",
    ]  # fmt: skip
    assert [site.weight.shape[-1] for site in sites] == [1, 1, 3, 3]
    result = placed(model)
    assert held(result) == {
        "": [],
        "my_choice.else": ["w.V", "w.U"],
        "my_choice.then": ["w.weight.V", "w.weight.U"],
    }
    onnx.checker.check_model(ir.to_proto(result), full_check=True)


def test_nodes_of_one_name_have_places_of_their_own() -> None:
    nodes = [*twins(3, 3).graph.node, *twins(1, 1).graph.node]
    nodes[1].output[0] = "z"
    graph = ir.from_proto(source(nodes, {"flag": np.array(True)})).graph
    places = [scope.place for scope in scopes(graph)]
    assert places == ["", "my_choice.else", "my_choice.then", "my_choice#2.else", "my_choice#2.then"]
    assert [key for key in node_keys(graph) if "/" not in key] == ["my choice", "my choice#2"]


def test_factors_are_kept_where_the_weight_was() -> None:
    factors = {
        "if": {
            "": ["shared.bias", "shared.V", "shared.U"],
            "choice.else": ["e_conv.V", "e_conv.U"],
            "choice.then": ["own.V", "own.U"],
        },
        "nested": {
            "": ["both.V", "both.U", "even.V", "even.U"],
            "again.body": [],
            "again.body/which.else": ["odd.V", "odd.U"],
            "again.body/which.then": [],
        },
    }  # fmt: skip
    for kind, wanted in factors.items():
        result = placed(ir.from_proto(MODELS[kind]()))
        assert {place: sorted(names) for place, names in held(result).items()} == {
            place: sorted(names) for place, names in wanted.items()
        }
        # The Constant that held the weight of `e_conv` is gone.
        assert all(node.op_type != "Constant" for node in result.graph.all_nodes())
        onnx.checker.check_model(ir.to_proto(result), full_check=True)


@pytest.mark.parametrize("kind", LAYERS)
def test_folding_gives_the_layers_back(kind: str) -> None:
    model = ir.from_proto(MODELS[kind]())
    result = fold_onnx(placed(model))
    assert {chain.name for chain in result.folded} == set(LAYERS[kind])
    assert all(chain.name == call_in(layer_of_call(chain.name), chain.inside) for chain in result.folded)
    for node, other in zip(result.model.graph.all_nodes(), _without_constants(model), strict=True):
        assert (node.op_type, node.name) == (other.op_type, other.name)
    sites, others = (list_onnx_sites(m)[0] for m in (model, result.model))
    for mine, right in zip(others, sites, strict=True):
        np.testing.assert_allclose(mine.weight, right.weight, atol=1e-5)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)


def _without_constants(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if node.op_type != "Constant"]


def test_a_chain_across_a_body_is_two_layers() -> None:
    """V in front of the Loop runs once, and U inside of it at each step."""
    inner = [
        helper.make_node("Conv", ["h", "U.weight"], ["u"]),
        helper.make_node("Add", ["u", "so_far"], ["next"]),
        helper.make_node("Identity", ["on"], ["still"]),
    ]
    body = helper.make_graph(
        inner,
        "body",
        [value("i", dtype=TensorProto.INT64), value("on", dtype=TensorProto.BOOL), image("so_far")],
        [value("still", dtype=TensorProto.BOOL), image("next")],
    )
    nodes = [conv("x", "V.weight", "h"), helper.make_node("Loop", ["trips", "go", "x"], ["y"], name="again", body=body)]
    stored = weights(V__weight=random(4, 4, 3, 3), U__weight=random(4, 4, 1, 1))
    model = ir.from_proto(source(nodes, {**stored, **trips()}))
    result = fold_onnx(model)
    assert result.folded == result.declined == ()


def test_a_weight_that_a_loop_carries_is_left_alone() -> None:
    sites, skipped = list_onnx_sites(ir.from_proto(carrying()))
    assert [site.name for site in sites] == ["last"]
    (one,) = skipped
    assert (one.name, one.kind) == ("c_conv in again.body", "conv2d")
    assert one.reason == "its weight is carried by Loop again from one step to the next"


@pytest.mark.parametrize(
    ("carried", "reason"),
    [
        ("weight", "its weight is carried by Scan sequence from one step to the next"),
        ("parts", "Scan sequence gives it another weight at each step"),
        # A state that is computed is no weight: a product of two of them is no layer.
        ("x", None),
    ],
)
def test_a_weight_that_a_scan_gives_is_left_alone(carried: str, reason: str | None) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"], name="product"), helper.make_node("Identity", ["s"], ["t"])],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("sw" if carried == "parts" else "ws")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("t", "p")],
    )  # fmt: skip
    given = ["x", "parts"] if carried == "parts" else [carried, "x"]
    scan = helper.make_node("Scan", given, ["end", "y"], name="sequence", body=body, num_scan_inputs=1)
    stored = {"weight": random(4, 4), "parts": random(3, 4, 4)}
    sites, skipped = list_onnx_sites(ir.from_proto(source([scan], stored, x=["N", 4], y=["N", "N", 4])))
    assert not sites
    assert [(s.name, s.reason) for s in skipped] == ([] if reason is None else [("product in sequence.body", reason)])


def test_what_is_hidden_in_a_body_is_told_by_its_layers() -> None:
    assert hidden_layers(ir.from_proto(MODELS["nested"]()), {"y"}) == ["odd", "even", "both"]
    assert hidden_layers(ir.from_proto(MODELS["loop"]()), {"y"}) == ["last"]


@pytest.mark.parametrize("kind", MODELS)
def test_the_source_is_not_changed(kind: str) -> None:
    model = ir.from_proto(MODELS[kind]())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    fold_onnx(placed(model))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
