"""Masks at run time, gates and activations of ONNX sources, against SPD's own numbers and float64."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from body_models import inside_an_if
from cli_command import spdexport
from onnx import TensorProto, helper, numpy_helper

from spdexport import Status, convert, verify
from spdexport.errors import ComponentsError, MaskError, UsageError
from spdexport.rewrite.mask_nodes import MaskNodes

DATA = Path(__file__).parents[1] / "data" / "spd_kinds"
TARGETS = {
    "conv_mlp": "CNN", "conv_linear": "CNN", "vector_mlp": "MLP", "shared_seq": "MLP", "global_mlp": "MLP",
    "global_tf": "MLP", "conv1d": "C1D", "embed": "Emb", "ident": "MLP",
}  # fmt: skip
CLOSE = 1e-5


def exported(run, path):
    """The target of a run, as torch's exporter writes it; and the input of its golden values."""
    spec = importlib.util.spec_from_file_location("targets", DATA / "targets.py")
    targets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(targets)
    with np.load(DATA / f"{run}.x.npz") as archive:
        (x,) = archive.values()
    torch.onnx.export(
        getattr(targets, TARGETS[run])().eval(), (torch.as_tensor(x),), path, dynamo=True,
        dynamic_shapes=({0: "batch"},), opset_version=18, verbose=False, external_data=False,
    )  # fmt: skip
    return x


def outputs(path, feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def edges(verification):
    return {edge.edge: edge for edge in verification.edges}


@pytest.mark.parametrize(
    "run",
    [
        "conv_mlp",
        "global_tf",
        *(pytest.param(r, marks=pytest.mark.long) for r in ("conv_linear", "vector_mlp", "shared_seq", "global_mlp")),
    ],
)
def test_gates_of_a_run_beside_an_onnx_file_are_spds_own(run, tmp_path):
    x = exported(run, tmp_path / "dense.onnx")
    made = convert(
        tmp_path / "dense.onnx", tmp_path / "m.onnx", components=DATA / run, gates="exact", gate_outputs=True,
        runtime_masks=["all"], delta="drop",
    )  # fmt: skip
    assert made.verdict is Status.PASS
    with np.load(DATA / f"{run}.gold.npz") as archive:
        right = dict(archive)
    source = onnx.load(tmp_path / "dense.onnx").graph.input[0].name
    found = outputs(tmp_path / "m.onnx", {source: x})
    names = {name for name in right if name.startswith("ci/")}
    assert names
    assert {name for name in found if name.startswith("ci/")} == names
    for name in names:
        np.testing.assert_allclose(found[name], right[name], rtol=0, atol=CLOSE, err_msg=name)
    np.testing.assert_allclose(next(iter(found.values())), right["y"], rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("run", "error", "says"),
    [
        ("conv1d", UsageError, r"The layer runs on a batch of 5\*batch, and the model on one of batch"),
        ("embed", ComponentsError, "components for embed, and the model has no such layer"),
        ("ident", ComponentsError, "identity components in front of blocks-1: no layer of the model holds them"),
    ],
)
def test_what_a_graph_does_not_hold_is_refused(run, error, says, tmp_path):
    exported(run, tmp_path / "dense.onnx")
    options = {"components": DATA / run, "gates": "local", "runtime_masks": ["all"], "delta": "drop"}
    with pytest.raises(error, match=says):
        convert(tmp_path / "dense.onnx", tmp_path / "m.onnx", verify=False, **options)
    assert not (tmp_path / "m.onnx").exists()


RANDOM = np.random.default_rng(0)
W1, B1 = RANDOM.standard_normal((6, 3, 3, 3)) / 5, RANDOM.standard_normal(6) / 5
W2, B2 = RANDOM.standard_normal((4, 6)) / 2, RANDOM.standard_normal(4)


def net(path, *, opset=17, dims=("n", 3, 8, 8), between=(), pooled="pooled", initializers=()):
    """conv, ReLU, global average pooling, fc; ``between`` are nodes behind the pooling, the last giving ``pooled``."""
    arrays = {"conv.weight": W1, "conv.bias": B1, "fc.weight": W2, "fc.bias": B2, "flat": np.array([0, 6])}
    kinds = {"flat": np.int64}
    held = [numpy_helper.from_array(a.astype(kinds.get(n, np.float32)), n) for n, a in arrays.items()]
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], "conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Reshape", ["p", "flat"], ["pooled"], "reshape"),
        *between,
        helper.make_node("Gemm", [pooled, "fc.weight", "fc.bias"], ["y"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [*held, *initializers],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def components(path, rank):
    """The first singular directions of both layers: a delta is left."""
    found = {}
    for name, weight in (("conv", W1), ("fc", W2)):
        left, sigma, right = np.linalg.svd(weight.reshape(len(weight), -1), full_matrices=False)
        found |= {f"{name}.V": right[:rank].T * sigma[:rank], f"{name}.U": left[:, :rank].T.copy()}
    np.savez(path, **{name: values.astype(np.float32) for name, values in found.items()})
    return path


def pooled(x, factors, mask, *, delta=0.0, routed=None):
    """What fc reads, in float64, with masks on the convolution's components: (batch, C), or (batch, 8, 8, C)."""
    x = torch.as_tensor(x).double()
    own = W1.astype(np.float32).astype(np.float64).reshape(6, -1)

    def conv(weight):
        return torch.conv2d(x, torch.as_tensor(weight.reshape(-1, 3, 3, 3)), padding=1).movedim(1, -1).numpy()

    V, U = factors["conv.V"].astype(np.float64), factors["conv.U"].astype(np.float64)
    mask = np.asarray(mask, dtype=np.float64)
    masked = conv(V.T.copy()) * (mask if mask.ndim == 4 else mask[:, None, None])
    y = masked @ U + np.reshape(delta, (-1, 1, 1, 1)) * conv(own - (V @ U).T)
    if routed is not None:
        y = np.where(np.reshape(routed, (-1, 1, 1, 1)) != 0, y, conv(own))
    return np.maximum(y + B1.astype(np.float32), 0).mean(axis=(1, 2))


def right_output(x, factors, mask, fc_mask=1.0, **further):
    """The network in float64 with masks on both layers."""
    V, U = factors["fc.V"].astype(np.float64), factors["fc.U"].astype(np.float64)
    return (pooled(x, factors, mask, **further) @ V * fc_mask) @ U + B2.astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    return net(folder / "dense.onnx"), components(folder / "c.npz", 3), folder


def loaded(path):
    with np.load(path) as archive:
        return dict(archive)


def test_masks_for_each_sample(made, tmp_path):
    dense, file, _ = made
    result = convert(dense, tmp_path / "m.onnx", components=file, runtime_masks=["all"], delta="drop")
    assert result.verdict is Status.PASS
    assert edges(result.verification)["rewrite"].status is Status.PASS
    assert any("masks left out" in name for name in result.verification.inputs)
    random = np.random.default_rng(1)
    x = random.standard_normal((5, 3, 8, 8)).astype(np.float32)
    masks = {f"mask/{layer}": random.random((5, 3)).astype(np.float32) for layer in ("conv", "fc")}
    found = outputs(tmp_path / "m.onnx", {"x": x, **masks})["y"]
    right = right_output(x, loaded(file), masks["mask/conv"], masks["mask/fc"])
    np.testing.assert_allclose(found, right, rtol=0, atol=CLOSE)
    # One that is left out is all ones, whatever the batch.
    found = outputs(tmp_path / "m.onnx", {"x": x, "mask/fc": masks["mask/fc"]})["y"]
    np.testing.assert_allclose(found, right_output(x, loaded(file), np.ones((5, 3)), masks["mask/fc"]), atol=CLOSE)


def test_masks_for_each_location_deltas_and_routing(made, tmp_path):
    dense, file, _ = made
    result = convert(
        dense, tmp_path / "m.onnx", components=file, runtime_masks=["conv"], runtime_delta_masks=True, delta="keep",
        runtime_masks_per_location=True, mask_inputs="required",
    )  # fmt: skip
    assert result.verdict is Status.PASS
    random = np.random.default_rng(2)
    x = random.standard_normal((2, 3, 8, 8)).astype(np.float32)
    mask, weight = random.random((2, 8, 8, 3)).astype(np.float32), random.random((2, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [tuple(i.shape[1:]) for i in session.get_inputs()[1:]] == [(8, 8, 3), (8, 8)]
    found = session.run(["y"], {"x": x, "mask/conv": mask, "delta_mask/conv": np.ones_like(weight)})[0]
    factors = loaded(file)
    # fc, which has no mask, keeps its delta: it is its own weight.
    fc = W2.astype(np.float32).astype(np.float64)
    right = pooled(x, factors, mask, delta=np.ones(2)) @ fc.T + B2.astype(np.float32)
    np.testing.assert_allclose(found, right, rtol=0, atol=CLOSE)

    result = convert(
        dense, tmp_path / "r.onnx", components=file, runtime_masks=["conv"], runtime_routing=True, delta="drop"
    )
    assert result.verdict is Status.PASS
    routed, mask = np.array([1, 0], np.float32), random.random((2, 3)).astype(np.float32)
    found = outputs(tmp_path / "r.onnx", {"x": x, "mask/conv": mask, "routing/conv": routed})["y"]
    np.testing.assert_allclose(found, right_output(x, factors, mask, routed=routed), rtol=0, atol=CLOSE)


def test_activations_are_outputs(made, tmp_path):
    dense, file, _ = made
    result = convert(dense, tmp_path / "m.onnx", components=file, activation_outputs=True, delta="drop")
    assert result.verdict is Status.PASS
    x = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)
    found = outputs(tmp_path / "m.onnx", {"x": x})
    V = torch.as_tensor(loaded(file)["conv.V"].T.reshape(-1, 3, 3, 3).copy())
    right = torch.conv2d(torch.as_tensor(x).double(), V.double(), padding=1).movedim(1, -1).numpy()
    np.testing.assert_allclose(found["activation/conv"], right, rtol=0, atol=CLOSE)
    assert found["activation/fc"].shape == (2, 3)


def test_the_command_and_verify_against_the_source(made, tmp_path):
    dense, file, _ = made
    done = spdexport("convert", dense, "--components", file, "--runtime-masks", "all", "-o", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    assert "2 mask inputs: mask/conv, mask/fc" in done.output
    again = spdexport("verify", tmp_path / "m.onnx", "--against", dense, "--components", file)
    assert again.exit_code == 0, again.output
    assert spdexport("verify", tmp_path / "m.onnx").exit_code == 0


@pytest.fixture
def masked(made, tmp_path):
    dense, file, _ = made
    options = {"components": file, "runtime_masks": ["all"], "delta": "drop"}
    convert(dense, tmp_path / "m.onnx", verify=False, **options)
    return tmp_path / "m.onnx", lambda: edges(verify(tmp_path / "m.onnx", against=dense, components=file))


@pytest.mark.parametrize(("name", "layer"), [("conv.V", "conv"), ("fc.U", "fc"), ("mask/fc", "mask/fc")])
def test_a_number_of_the_file_that_is_off(masked, name, layer):
    path, found = masked
    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[1] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)
    edge = found()["weights"]
    assert edge.status is Status.FAIL
    assert layer in (edge.first_divergence or "") + edge.reason


def test_masks_in_the_wrong_places(made, tmp_path, monkeypatch):
    dense, file, _ = made
    given = MaskNodes.given

    def flipped(self, wanted, spec, nodes):
        value = given(self, wanted, spec, nodes)
        if wanted.layer != "conv":
            return value
        order = nodes._edit.store("order", np.array([2, 1, 0]))
        return nodes.insert(("Gather", [value, order], (ir.AttrInt64("axis", 1),)), "flipped")

    monkeypatch.setattr(MaskNodes, "given", flipped)
    result = convert(dense, tmp_path / "m.onnx", components=file, runtime_masks=["all"], delta="drop")
    found = edges(result.verification)
    assert (found["rewrite"].status, found["rewrite"].first_divergence) == (Status.FAIL, "conv")
    assert all(found[edge].status is Status.PASS for edge in ("capture", "weights", "export", "optimize"))


def test_an_old_opset_is_told(made, tmp_path):
    _, file, _ = made
    net(tmp_path / "old.onnx", opset=11)
    options = {"components": file, "runtime_masks": ["all"], "delta": "drop"}
    with pytest.raises(UsageError, match="The source is of opset 11, and masks at run time are placed from opset 13"):
        convert(tmp_path / "old.onnx", tmp_path / "m.onnx", **options)
    assert convert(tmp_path / "old.onnx", tmp_path / "m.onnx", opset=18, **options).verdict is Status.PASS


def test_a_batch_that_is_lost_in_a_reshape_is_found_again(made, tmp_path):
    _, file, _ = made
    flat = numpy_helper.from_array(np.array([-1, 6]), "rows")
    nodes = [helper.make_node("Reshape", ["pooled", "rows"], ["again"], "again")]
    net(tmp_path / "d.onnx", between=nodes, pooled="again", initializers=[flat])
    result = convert(tmp_path / "d.onnx", tmp_path / "m.onnx", components=file, runtime_masks=["all"], delta="drop")
    assert result.verdict is Status.PASS


def test_a_layer_on_another_batch_is_refused(made, tmp_path):
    _, file, _ = made
    nodes = [helper.make_node("Concat", ["pooled", "pooled"], ["twice"], "twice", axis=0)]
    net(tmp_path / "d.onnx", between=nodes, pooled="twice")
    with pytest.raises(
        UsageError, match=r"The layer runs on a batch of 2\*batch, and the model on one of batch: no mask"
    ):
        convert(tmp_path / "d.onnx", tmp_path / "m.onnx", components=file, runtime_masks=["all"], delta="drop")


def test_locations_that_the_file_does_not_fix(made, tmp_path):
    _, file, _ = made
    net(tmp_path / "d.onnx", dims=("n", 3, "h", "w"))
    options = {"components": file, "runtime_masks": ["conv"], "delta": "drop"}
    with pytest.raises(UsageError, match=r"has locations \?x\?, whose number is computed from the input's size"):
        convert(tmp_path / "d.onnx", tmp_path / "m.onnx", runtime_masks_per_location=True, **options)
    assert convert(tmp_path / "d.onnx", tmp_path / "m.onnx", **options).verdict is Status.PASS
    located = np.ones((8, 8, 3), np.float32)
    np.savez(tmp_path / "masks.npz", conv=located)
    with pytest.raises(MaskError, match="is for 8x8 locations, and the layer's output changes its size"):
        convert(tmp_path / "d.onnx", tmp_path / "m.onnx", components=file, masks=tmp_path / "masks.npz", delta="drop")


def test_a_fixed_mask_for_each_location(made, tmp_path):
    dense, file, _ = made
    located = np.random.default_rng(5).random((8, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "masks.npz", conv=located)
    options = {"components": file, "masks": tmp_path / "masks.npz", "delta": "drop"}
    assert convert(dense, tmp_path / "m.onnx", **options).verdict is Status.PASS
    x = np.random.default_rng(6).standard_normal((2, 3, 8, 8)).astype(np.float32)
    right = right_output(x, loaded(file), np.broadcast_to(located, (2, 8, 8, 3)))
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx", {"x": x})["y"], right, rtol=0, atol=CLOSE)


def with_behind_relu(path, nodes):
    """A model with nodes behind its first ReLU: they read ``before``, and the last gives what the ReLU gave."""
    model = onnx.load(path)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    nodes[-1].output[0], relu.output[0] = relu.output[0], "before"
    place = list(model.graph.node).index(relu) + 1
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    onnx.save(model, path)


def branch():
    graphs = {}
    for name, operator in (("then", "Identity"), ("else", "Neg")):
        given = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        node = helper.make_node(operator, ["before"], [name])
        graphs[f"{name}_branch"] = helper.make_graph([node], name, [], [given])
    return [helper.make_node("If", ["always"], ["after"], "branch", **graphs)]


def noise():
    drawn = helper.make_node("RandomNormalLike", ["before"], ["drawn"], "noise")
    return [drawn, helper.make_node("Add", ["before", "drawn"], ["after"], "add")]


def dropout():
    return [helper.make_node("Dropout", ["before"], ["after"], "dropout")]


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        (branch, "The dense pass would run If twice, which holds graphs of its own"),
        (noise, "The dense pass would run RandomNormalLike twice, which draws random numbers"),
        (dropout, None),
    ],
)
def test_a_dense_pass_that_cannot_be_copied(nodes, says, tmp_path):
    exported("conv_mlp", tmp_path / "d.onnx")
    with_behind_relu(tmp_path / "d.onnx", nodes())
    options = {"components": DATA / "conv_mlp", "gates": "exact", "delta": "drop"}
    if says is None:
        assert convert(tmp_path / "d.onnx", tmp_path / "m.onnx", **options).verdict is Status.PASS
        return
    with pytest.raises(UsageError, match=says):
        convert(tmp_path / "d.onnx", tmp_path / "m.onnx", **options)


def test_gates_of_layers_in_a_body(tmp_path):
    """Those that read what the masked layer reads are known there; the dense pass of exact ones is not."""
    x = exported("conv_mlp", tmp_path / "dense.onnx")
    options = {"components": DATA / "conv_mlp", "delta": "drop", "runtime_masks": ["all"]}
    flat = convert(tmp_path / "dense.onnx", tmp_path / "flat.onnx", gates="local", **options)
    onnx.save(inside_an_if(onnx.load(tmp_path / "dense.onnx")), tmp_path / "inside.onnx")
    made = convert(tmp_path / "inside.onnx", tmp_path / "m.onnx", gates="local", **options)
    assert (flat.verdict, made.verdict) == (Status.PASS, Status.PASS)
    assert [f"{layer.name} in choice.then" for layer in flat.plan.layers] == [layer.name for layer in made.plan.layers]
    name = onnx.load(tmp_path / "dense.onnx").graph.input[0].name
    found, right = (next(iter(outputs(tmp_path / f, {name: x}).values())) for f in ("m.onnx", "flat.onnx"))
    np.testing.assert_allclose(found, right, rtol=0, atol=CLOSE)
    for more, says in (
        ({"gates": "exact"}, "of which the model has no second, dense pass that exact gates could read"),
        ({"gates": "local", "gate_outputs": True}, "which may run never or many times: what it computes there is no"),
    ):
        with pytest.raises(UsageError, match=says):
            convert(tmp_path / "inside.onnx", tmp_path / "e.onnx", verify=False, **options, **more)


def test_one_gate_of_all_layers_reads_no_body(tmp_path):
    exported("global_tf", tmp_path / "dense.onnx")
    onnx.save(inside_an_if(onnx.load(tmp_path / "dense.onnx")), tmp_path / "inside.onnx")
    options = {"components": DATA / "global_tf", "delta": "drop", "gates": "exact"}
    with pytest.raises(UsageError, match="of which the model has no second, dense pass that exact gates could read"):
        convert(tmp_path / "inside.onnx", tmp_path / "m.onnx", **options)
