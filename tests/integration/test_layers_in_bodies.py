"""ONNX files with layers in the bodies of If, Loop and Scan, through the whole line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from body_models import MODELS, SIZE, branching, carrying, constant, flag, image, looping, nested, weights
from body_models import source as model_of
from cli_command import spdexport as command
from onnx import helper, numpy_helper
from onnx_models import outputs, random, saved
from planting import planted

import spdexport
from spdexport.errors import UsageError
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spdexport.conv import Array

LAYERS = {
    "if": ["shared in choice.else", "e_conv in choice.else", "own in choice.then", "shared in choice.then"],
    "loop": ["step in again.body", "last"],
    "scan": ["begin", "cell in sequence.body", "cell.state in sequence.body"],
    "nested": ["both", "odd in again.body/which.else", "even in again.body/which.then", "both in again.body"],
}


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def stored(path: Path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for graph in graphs(onnx.load(path).graph) for tensor in graph.initializer}


def inputs(kind: str) -> list[Array]:
    """Of both signs of the mean: either branch of an If."""
    shape = (2, 7, 4) if kind == "scan" else (2, 4, SIZE, SIZE)
    return [random(*shape, seed=9) + 1, random(*shape, seed=9) - 1]


@pytest.mark.parametrize("kind", MODELS)
def test_factorized_verified_and_folded_back(kind: str, tmp_path: Path) -> None:
    source, made, folded = (tmp_path / f"{name}.onnx" for name in ("source", "made", "folded"))
    saved(MODELS[kind](), source)
    done = spdexport.convert(source, made, form="factorized")
    assert done.verdict is Status.PASS
    assert {layer.name: layer.form for layer in done.plan.layers} == dict.fromkeys(LAYERS[kind], "factorized")
    assert not done.plan.skipped
    assert {name for name in stored(made) if name.endswith(".V")} == {
        f"{layer.partition(' in ')[0]}.V" for layer in LAYERS[kind]
    }
    back = spdexport.fold(made, folded)
    assert back.verdict is Status.PASS
    assert {chain.name for chain in back.folded} == set(LAYERS[kind])
    for x in inputs(kind):
        right = outputs(source, x)
        np.testing.assert_allclose(outputs(made, x), right, atol=2e-5 * np.abs(right).max())
        np.testing.assert_allclose(outputs(folded, x), right, atol=2e-5 * np.abs(right).max())


def test_a_converted_file_alone_and_against_its_source(tmp_path: Path) -> None:
    source, made = saved(nested(), tmp_path / "source.onnx"), tmp_path / "made.onnx"
    spdexport.convert(source, made, form="factorized", verify=False)
    assert spdexport.verify(made).verdict is Status.PASS
    found = spdexport.verify(made, against=source)
    assert found.verdict is Status.PASS
    # What each layer is told of: what its weights are off, and what that can do to its output at any step.
    assert [layer.name for layer in found.layers] == LAYERS["nested"]
    assert all(layer.status is Status.PASS and layer.bound is not None for layer in found.layers)


FORMS: dict[str, dict[str, Any]] = {
    "auto": {"form": "auto"},
    "dense": {"form": "dense"},
    "spatial": {"form": "spatial", "rank": 2},
    "tucker2": {"form": "tucker2", "rank": 2},
    "factorized": {"form": "factorized", "max_error": 0.3},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form(form: str, tmp_path: Path) -> None:
    source = saved(branching() if form == "spatial" else looping(), tmp_path / "source.onnx")
    done = spdexport.convert(source, tmp_path / "made.onnx", **FORMS[form])
    assert done.verdict is Status.PASS
    assert {layer.form for layer in done.plan.layers} == {"dense" if form == "auto" else form}


def test_fixed_masks_reach_all_calls_of_a_shared_weight(tmp_path: Path) -> None:
    source, made = saved(branching(), tmp_path / "source.onnx"), tmp_path / "made.onnx"
    np.savez(tmp_path / "masks.npz", shared=np.float32([1, 0, 0.5, 1]))
    done = spdexport.convert(source, made, form="factorized", masks=tmp_path / "masks.npz")
    assert done.verdict is Status.PASS
    tensors = stored(made)
    assert list(tensors["shared.V"].dims) == [3, 4, 3, 3]
    # One V and U for both branches.
    assert [name for name in tensors if name.startswith("shared.")] == ["shared.bias", "shared.V", "shared.U"]
    done = spdexport.convert(source, made, form="factorized", masks=tmp_path / "masks.npz", keep_masks=True)
    assert done.verdict is Status.PASS
    assert {"shared.V", "shared.U", "shared.mask"} <= stored(made).keys()


def test_a_weight_that_a_loop_carries(tmp_path: Path) -> None:
    source = saved(carrying(), tmp_path / "source.onnx")
    done = spdexport.convert(source, tmp_path / "made.onnx", form="factorized")
    assert done.verdict is Status.PASS
    assert [layer.name for layer in done.plan.layers] == ["last"]
    assert [(s.name, s.reason) for s in done.plan.skipped] == [
        ("c_conv in again.body", "its weight is carried by Loop again from one step to the next")
    ]


def test_patterns_name_layers_with_and_without_their_place(tmp_path: Path) -> None:
    source = saved(branching(), tmp_path / "source.onnx")

    def decomposed(**options: Any) -> list[str]:
        plan = spdexport.inspect(source, form="factorized", **options).plan
        return [layer.name for layer in plan.layers if layer.form == "factorized"]

    assert decomposed(layers=["shared"]) == ["shared in choice.else", "shared in choice.then"]
    assert decomposed(exclude=["* in choice.then"]) == LAYERS["if"][:2]


def off(path: Path, name: str, target: Path) -> Path:
    """A copy with one number of a weight, wherever it is stored, off by a part in a thousand."""

    def edit(proto: onnx.ModelProto) -> None:
        tensor = next(t for graph in graphs(proto.graph) for t in graph.initializer if t.name == name)
        value = numpy_helper.to_array(tensor).copy()
        value.reshape(-1)[3] *= 1.001
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    return planted(path, edit, target)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("if", "e_conv.U"),
        ("scan", "cell.state.V"),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (
                ("if", "own.V"),
                ("if", "shared.V"),
                ("loop", "step.V"),
                ("nested", "odd.V"),
                ("nested", "even.U"),
            )
        ),
    ],
)
def test_a_fault_in_a_body_is_found_and_the_layer_named(kind: str, weight: str, tmp_path: Path) -> None:
    source, made = saved(MODELS[kind](), tmp_path / "source.onnx"), tmp_path / "made.onnx"
    spdexport.convert(source, made, form="factorized", verify=False)
    wrong = off(made, weight, tmp_path / "wrong.onnx")
    layer = weight.rpartition(".")[0]
    found = spdexport.verify(wrong, against=source)
    assert found.verdict is Status.FAIL
    edges = {edge.edge: edge for edge in found.edges}
    assert (edges["weights"].status, edges["weights"].first_divergence) == (Status.FAIL, layer)
    assert {one.name.partition(" in ")[0] for one in found.layers if one.status is Status.FAIL} == {layer}
    # By itself, its hash tells that it was changed; from the command line, too.
    alone = command("verify", wrong)
    assert alone.exit_code == 1
    assert "their hash is not the one that the file carries" in " ".join(alone.output.split())


def test_the_place_of_a_fault_is_told(tmp_path: Path) -> None:
    source, made = saved(nested(), tmp_path / "source.onnx"), tmp_path / "made.onnx"
    spdexport.convert(source, made, form="factorized", verify=False)
    wrong = command("verify", off(made, "odd.V", tmp_path / "wrong.onnx"), "--against", source)
    assert wrong.exit_code == 1
    said = " ".join(wrong.output.split())
    assert "in the else branch of If which, the body of Loop again" in said
    assert "odd in again.body/which.else" in said


def test_masks_at_run_time_hold_at_every_step(tmp_path: Path) -> None:
    source, made = saved(looping(), tmp_path / "source.onnx"), tmp_path / "made.onnx"
    done = spdexport.convert(source, made, form="factorized", runtime_masks=["all"])
    assert done.verdict is Status.PASS
    assert spdexport.verify(made, against=source).verdict is Status.PASS
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_inputs()][:1] == ["x"]
    assert "mask/step" in {port.name for port in session.get_overridable_initializers()}
    x, mask = random(2, 4, SIZE, SIZE), (random(2, 4) > 0).astype(np.float32)
    (found,) = session.run(None, {"x": x, "mask/step": mask})
    # Three steps with the factors by hand, each sample with its own mask.
    tensors = {name: numpy_helper.to_array(tensor) for name, tensor in stored(made).items()}
    single = _single(tensors["step.V"], tensors["step.U"], tensors["step.bias"])
    z = x
    for _ in range(3):
        (z,) = single.run(None, {"x": z, "m": mask[:, :, None, None]})
    (right,) = _single(tensors["last.V"], tensors["last.U"], None).run(
        None, {"x": z, "m": np.ones((2, 4, 1, 1), np.float32)}
    )
    np.testing.assert_allclose(found, right, atol=2e-5 * np.abs(right).max())


def _single(V: Array, U: Array, bias: Array | None) -> onnxruntime.InferenceSession:
    """One masked layer; with a bias, a tanh behind it."""
    arrays = {"V": V, "U": U, **({} if bias is None else {"b": bias})}
    nodes = [
        helper.make_node("Conv", ["x", "V"], ["a"], pads=[1] * 4),
        helper.make_node("Mul", ["a", "m"], ["am"]),
        helper.make_node("Conv", ["am", "U", *(["b"] if bias is not None else [])], ["c"]),
        helper.make_node("Tanh" if bias is not None else "Identity", ["c"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "m", "y")]
    held = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "single", ports[:2], ports[2:], held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"activation_outputs": True},
            "inside of again.body, which may run never or many times: what it computes there is no output",
        ),
    ],
)
def test_what_a_body_cannot_give_is_refused(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    source = saved(looping(), tmp_path / "source.onnx")
    with pytest.raises(UsageError, match=says):
        spdexport.convert(source, tmp_path / "made.onnx", form="factorized", **options)
    done = spdexport.convert(source, tmp_path / "made.onnx", form="factorized", exclude=["* in *"], **options)
    assert done.verdict is Status.PASS


def test_a_mask_at_run_time_needs_names_that_tell_values_apart(tmp_path: Path) -> None:
    proto = branching()
    then, other = (a.g for a in proto.graph.node[-1].attribute)
    for graph in (then, other):
        first, last = graph.node[0].output[0], graph.node[-1].output[0]
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [{first: "mine", last: f"{last}_end"}.get(name, name) for name in names]
        graph.output[0].name = f"{last}_end"
    source = saved(proto, tmp_path / "source.onnx")
    with pytest.raises(UsageError, match="The file has 2 values called mine, so that the check of a mask at run time"):
        spdexport.convert(source, tmp_path / "made.onnx", runtime_masks=["all"])
    assert spdexport.convert(source, tmp_path / "made.onnx", form="factorized").verdict is Status.PASS


def test_weights_in_a_file_beside_a_model_with_bodies(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    proto = branching()
    then = next(a.g for a in proto.graph.node[-1].attribute if a.name == "then_branch")
    large = [random(64, 4, 3, 3, seed=5) / 6, random(4, 64, 3, 3, seed=6) / 24]
    then.initializer[0].CopyFrom(numpy_helper.from_array(large[0], "own.weight"))
    then.initializer.append(numpy_helper.from_array(large[1], "last.weight"))
    then.node[1].input[:] = ["t1", "last.weight"]
    source = tmp_path / "in" / "m.onnx"
    onnx.save(proto, source, save_as_external_data=True, location="m.bin", size_threshold=1024)
    done = spdexport.convert(source, tmp_path / "made.onnx", form="factorized")
    assert done.verdict is Status.PASS
    assert {path.suffix for path in done.outputs} == {".onnx", ".data"}
    kept = onnx.load(tmp_path / "made.onnx", load_external_data=False)
    assert {t.name for g in graphs(kept.graph) for t in g.initializer if t.external_data} == {
        "own.V",
        "own.U",
        "last.V",
    }
    x = inputs("if")[0]
    np.testing.assert_allclose(outputs(tmp_path / "made.onnx", x), outputs(source, x), atol=1e-4)


def test_compress_leaves_them_alone(tmp_path: Path) -> None:
    source = saved(looping(), tmp_path / "source.onnx")
    np.savez(tmp_path / "data.npz", x=random(32, 4, SIZE, SIZE))
    done = spdexport.compress(source, tmp_path / "small.onnx", data=tmp_path / "data.npz", max_relative_l2=0.9)
    assert done.verdict is Status.PASS
    assert {layer.name: layer.form for layer in done.plan.layers}["step in again.body"] == "dense"


def test_a_plan_repeats_them(tmp_path: Path) -> None:
    source, plan = saved(nested(), tmp_path / "source.onnx"), tmp_path / "plan.json"
    options = {"form": "factorized", "rank": 2, "layers": ["odd", "both"], "verify": False}
    spdexport.convert(source, tmp_path / "first.onnx", save_plan=plan, **options)
    again = spdexport.convert(source, tmp_path / "second.onnx", plan=plan, verify=False)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    assert {layer.name for layer in again.plan.layers if layer.form == "recompressed"} == {
        "both", "both in again.body", "odd in again.body/which.else",
    }  # fmt: skip


def test_lanes_are_filled_in_bodies(tmp_path: Path) -> None:
    proto = looping()
    body = proto.graph.node[0].attribute[0].g
    narrow = [random(20, 4, 3, 3) / 6, random(4, 20, 1, 1) / 5]
    body.node[0].input[:] = ["carried", "narrow.weight"]
    body.node.insert(1, helper.make_node("Conv", ["c", "wide.weight"], ["d"], name="wide"))
    body.node[2].input[0] = "d"
    for name, array in zip(("narrow.weight", "wide.weight"), narrow, strict=True):
        body.initializer.append(numpy_helper.from_array(array, name))
    source = saved(proto, tmp_path / "source.onnx")
    done = spdexport.convert(source, tmp_path / "made.onnx", form="auto")
    assert done.verdict is Status.PASS
    assert done.trimming is not None
    assert dict(done.trimming.padded) == {"c": 32}
    x = inputs("loop")[0]
    np.testing.assert_allclose(outputs(tmp_path / "made.onnx", x), outputs(source, x), atol=1e-5)


def test_functions_that_bodies_call(tmp_path: Path) -> None:
    kept = constant("w", random(4, 4, 3, 3) / 6)
    block = [kept, helper.make_node("Conv", ["p", "w"], ["r"], name="inner", pads=[1] * 4)]
    function = helper.make_function("mine", "Block", ["p"], ["r"], block, [helper.make_opsetid("", 18)])
    then, other = (
        helper.make_graph([helper.make_node("Block", ["x"], [name], domain="mine")], name, [], [image(name)])
        for name in ("then", "else")
    )
    choice = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=then, else_branch=other)
    proto = model_of([*flag(), choice], weights(), domains=("mine",))
    proto.functions.append(function)
    done = spdexport.convert(saved(proto, tmp_path / "source.onnx"), tmp_path / "made.onnx", form="factorized")
    assert done.verdict is Status.PASS
    assert [layer.name for layer in done.plan.layers] == ["inner in choice.else", "inner_2 in choice.then"]


def test_a_branch_that_no_input_takes_is_told(tmp_path: Path) -> None:
    proto = branching()
    zero = next(t for t in proto.graph.initializer if t.name == "zero")
    zero.CopyFrom(numpy_helper.from_array(np.array(1e30, np.float32), "zero"))
    source, made = saved(proto, tmp_path / "source.onnx"), tmp_path / "made.onnx"
    done = spdexport.convert(source, made, form="factorized")
    assert done.verdict is Status.PASS
    said = "no input takes choice.then: what ONNX Runtime makes of these layers was not compared"
    assert done.verification is not None
    assert [note for note in done.verification.notes if "takes" in note] == [said]
    assert said in spdexport.verify(made).notes
    # The weights edge needs no input.
    wrong = spdexport.verify(off(made, "own.V", tmp_path / "wrong.onnx"), against=source)
    assert next(e for e in wrong.edges if e.edge == "weights").first_divergence == "own"
    both = spdexport.verify(saved(branching(), tmp_path / "both.onnx"))
    assert not [note for note in both.notes if "takes" in note]
