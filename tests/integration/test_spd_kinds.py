"""Every kind of SPD run, against what SPD's own code computed of it: importances, masked outputs, masks and ablations.

``tests/data/spd_kinds`` has twelve small runs that SPD's code wrote, with the inputs and outputs of its own models.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cli_command import spdexport
from safetensors.numpy import save_file

from spdexport import Status, ablate, convert, derive_masks, inspect
from spdexport.errors import ComponentsError, UsageError

DATA = Path(__file__).parents[1] / "data" / "spd_kinds"
TARGETS = {
    "conv_mlp": "CNN", "conv_linear": "CNN", "vector_mlp": "MLP", "shared_seq": "MLP", "conv1d": "C1D",
    "embed": "Emb", "global_mlp": "MLP", "global_tf": "MLP", "ident": "MLP",
    "global_rr": "MLP", "global_rr_embed": "Emb", "nano": "MLP",
}  # fmt: skip
KINDS = tuple(TARGETS)
CLOSE = 1e-5


def but(*quick):
    """All kinds, those that are not named being for the long tests."""
    return [run if run in quick else pytest.param(run, marks=pytest.mark.long) for run in KINDS]


def model(run):
    return {"factory": f"{DATA / 'targets.py'}:{TARGETS[run]}", "inputs": DATA / f"{run}.x.npz"}


def golden(run):
    with np.load(DATA / f"{run}.gold.npz") as archive:
        return dict(archive)


def run_file(path, run, **further):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with np.load(DATA / f"{run}.x.npz") as archive:
        (x,) = archive.values()
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x, **further}), strict=True))


def onnx_metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def components(run):
    """V and U by the model's own layer names, float64, in the order of the model."""
    state = torch.load(DATA / run / "model_100.pth", weights_only=True)
    own = [key.removeprefix("ci/") for key in golden(run) if key.startswith("ci/")]
    stems = {x: f"target.{x}" if run == "nano" else f"_components.{x.replace('.', '-')}" for x in own}
    return {x: [state[f"{stem}.{part}"].double() for part in "VU"] for x, stem in stems.items()}


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """Each run with its gates in the graph and as outputs, and with run-time masks; made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("gated"), {}

    def get(run):
        if run not in made:
            made[run] = folder / f"{run}.onnx"
            convert(
                DATA / run, made[run], **model(run), gates="exact", gate_outputs=True, runtime_masks=["all"],
                delta="drop", verify=False,
            )  # fmt: skip
        return made[run]

    return get


@pytest.mark.parametrize("run", KINDS)
@pytest.mark.sampled(5)
def test_gates_are_spds_own(gated, run):
    right, found = golden(run), run_file(gated(run), run)
    names = {name for name in right if name.startswith("ci/")}
    assert {name for name in found if name.startswith("ci/")} == names
    for name in names:
        assert found[name].shape == right[name].shape, name
        np.testing.assert_allclose(found[name], right[name], rtol=0, atol=CLOSE, err_msg=name)
    np.testing.assert_allclose(next(iter(found.values())), right["y"], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("run", KINDS)
def test_masks_are_those_of_spds_importances(run):
    right = golden(run)
    found = derive_masks(DATA / run, data=DATA / f"{run}.x.npz", factory=model(run)["factory"])
    assert {f"ci/{layer.name}" for layer in found.layers} == {name for name in right if name.startswith("ci/")}
    assert found.samples == len(right["x"])
    for layer in found.layers:
        rows = right[f"ci/{layer.name}"].reshape(-1, layer.components)
        np.testing.assert_allclose(layer.importances.mean, rows.mean(axis=0), rtol=0, atol=CLOSE)
        np.testing.assert_allclose(layer.importances.peak, rows.max(axis=0), rtol=0, atol=CLOSE)
        np.testing.assert_array_equal(layer.mask, rows.max(axis=0) > 0.1)


@pytest.mark.parametrize("run", but("conv_mlp", "embed", "ident"))
def test_inspect_and_fixed_masks(run, tmp_path):
    right, own = golden(run), components(run)
    plan = inspect(DATA / run, **model(run)).plan
    assert {x.name: x.components for x in plan.layers} == {name: V.shape[1] for name, (V, _) in own.items()}
    assert not plan.skipped
    save_file({name: np.ones(V.shape[1], np.float32) for name, (V, _) in own.items()}, tmp_path / "ones.safetensors")
    verified = run == "embed"
    made = convert(DATA / run, tmp_path / "m.onnx", **model(run), masks=tmp_path / "ones.safetensors", verify=verified)
    assert made.verdict is (Status.PASS if verified else Status.NOT_RUN)
    found = run_file(tmp_path / "m.onnx", run)
    np.testing.assert_allclose(next(iter(found.values())), right["y1"], rtol=0, atol=CLOSE)


def effective(run, masks):
    """The target model in float64 with the weights that masks leave, as a function; where all are one it gives y1."""
    spec = importlib.util.spec_from_file_location("targets", DATA / "targets.py")
    targets = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(targets)
    target = getattr(targets, TARGETS[run])().double().eval()
    products = {name: V * torch.as_tensor(masks.get(name, 1.0)) @ U for name, (V, U) in components(run).items()}
    inserted = products.pop("blocks.1.pre_identity", None)
    if inserted is not None:
        products["blocks.1"] = inserted @ products["blocks.1"]
    with torch.no_grad():
        for name, product in products.items():
            weight = target.get_submodule(name).weight
            stored_so = isinstance(target.get_submodule(name), torch.nn.Embedding) or run == "conv1d"
            weight.copy_(product if stored_so else product.T.reshape(weight.shape))

        def evaluate(x):
            with torch.no_grad():
                return target(torch.as_tensor(x) if TARGETS[run] == "Emb" else torch.as_tensor(x).double()).numpy()

    return evaluate


@pytest.mark.parametrize("run", but("conv_linear", "conv1d", "embed", "ident"))
def test_ablations(run, tmp_path):
    right = golden(run)
    x = right["x"]
    with np.load(DATA / f"{run}.x.npz") as archive:
        (x,) = archive.values()
    before = effective(run, {})(x)
    np.testing.assert_allclose(before, right["y1"], rtol=0, atol=CLOSE)
    convert(DATA / run, tmp_path / "m.onnx", **model(run), runtime_masks=["all"], delta="drop", verify=False)
    found = ablate(tmp_path / "m.onnx", inputs=DATA / f"{run}.x.npz")
    assert (found.baseline, found.active, found.samples) == ("ones", (), len(x))
    own = components(run)
    assert found.components == {name: V.shape[1] for name, (V, _) in own.items()}
    effects = {one.components.name: one.effect for one in found.found}
    for name, (V, _) in own.items():
        index = V.shape[1] - 2
        mask = np.ones(V.shape[1])
        mask[index] = 0
        norms = np.linalg.norm((effective(run, {name: mask})(x) - before).reshape(len(x), -1), axis=1)
        np.testing.assert_allclose(effects[f"{name}:{index}"].change, norms.mean(), rtol=0, atol=CLOSE)
        np.testing.assert_allclose(effects[f"{name}:{index}"].largest, norms.max(), rtol=0, atol=CLOSE)


def test_ablations_from_the_gates(gated, tmp_path):
    """Of a run over tokens: the importances stay, and what is removed is removed of them."""
    run, right = "global_tf", golden("global_tf")
    sets = {"everything": [f"{name}:{i}" for name, (V, _) in components(run).items() for i in range(V.shape[1])]}
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    found = ablate(gated(run), inputs=DATA / f"{run}.x.npz", sets=tmp_path / "sets.json")
    assert found.baseline == "gates"
    zeros = {name: np.zeros(V.shape[1]) for name, (V, _) in components(run).items()}
    nothing = effective(run, zeros)(right["x"])
    norms = np.linalg.norm((nothing - right["y"]).reshape(len(nothing), -1), axis=1)
    np.testing.assert_allclose(found.found[0].effect.change, norms.mean(), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("run", but("global_mlp"))
def test_files_with_gates_are_equivalent(run, tmp_path):
    made = convert(
        DATA / run, tmp_path / "m.onnx", **model(run), gates="exact", gate_outputs=True, runtime_masks=["all"],
        runtime_delta_masks=True, runtime_routing=True, activation_outputs=True, delta="keep",
    )  # fmt: skip
    assert made.verdict is Status.PASS, made.verification


@pytest.mark.long
@pytest.mark.parametrize("run", KINDS)
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_files_of_every_kind_are_equivalent(run, threshold, tmp_path):
    made = convert(
        DATA / run, tmp_path / "m.onnx", **model(run), gates="exact", gate_outputs=True, gate_threshold=threshold
    )
    assert made.verdict is Status.PASS, made.verification
    done = spdexport(
        "verify", tmp_path / "m.onnx", "--against", DATA / run, "--factory", model(run)["factory"], "--inputs",
        model(run)["inputs"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def test_tokens_whose_number_may_change(tmp_path):
    """The transformer's positions are then counted in the graph."""
    run = "global_tf"
    convert(
        DATA / run, tmp_path / "m.onnx", **model(run), gates="exact", delta="drop", dynamic=["x:1=tokens"], verify=False
    )
    right = golden(run)
    found = run_file(tmp_path / "m.onnx", run)
    np.testing.assert_allclose(next(iter(found.values())), right["y"], rtol=0, atol=CLOSE)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": right["x"][:2, :3]})[0].shape == (2, 3, 5)


def test_masks_of_tokens_reach_conv1d(tmp_path):
    """Hugging Face's Conv1D flattens tokens: a mask is one for each sample, or for each token, all the same."""
    run = "conv1d"
    convert(
        DATA / run, tmp_path / "m.onnx", **model(run), runtime_masks=["all"], runtime_masks_per_location=True,
        delta="drop", verify=False,
    )  # fmt: skip
    right = golden(run)
    masks = {f"mask/{name.removeprefix('ci/')}": right[name] for name in right if name.startswith("ci/")}
    found = run_file(tmp_path / "m.onnx", run, **masks)
    np.testing.assert_allclose(next(iter(found.values())), right["y"], rtol=0, atol=CLOSE)


def test_local_gates_of_all_layers_at_once_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="one causal-importance function for all layers") as caught:
        convert(DATA / "global_mlp", tmp_path / "m.onnx", **model("global_mlp"), gates="local")
    assert caught.value.where == "--gates=local"


def test_a_layer_may_be_left_alone_and_is_still_read(tmp_path):
    """What the function of all layers reads does not depend on which of them are decomposed."""
    run, right = "global_mlp", golden("global_mlp")
    convert(
        DATA / run, tmp_path / "m.onnx", **model(run), gates="exact", gate_outputs=True, exclude=["blocks.1"],
        delta="drop", verify=False,
    )  # fmt: skip
    found = run_file(tmp_path / "m.onnx", run)
    assert {name for name in found if name.startswith("ci/")} == {"ci/blocks.0", "ci/head"}
    np.testing.assert_allclose(found["ci/head"], right["ci/head"], rtol=0, atol=CLOSE)


def test_without_its_configuration_a_run_is_asked_for_its_sigmoid(tmp_path):
    (folder := tmp_path / "run").mkdir()
    (folder / "model_100.pth").write_bytes((DATA / "vector_mlp" / "model_100.pth").read_bytes())
    given = ["convert", folder, "--factory", model("vector_mlp")["factory"], "--inputs", model("vector_mlp")["inputs"]]
    done = spdexport(*given, "-o", tmp_path / "m.onnx", "--gates=exact", "--no-verify")
    assert done.exit_code == 4
    assert "Nothing tells the sigmoid" in done.stderr
    assert not (tmp_path / "m.onnx").exists()
    further = ("--gates=exact", "--sigmoid", "leaky_hard", "--delta", "drop", "--no-verify")
    told = spdexport(*given, "-o", tmp_path / "m.onnx", *further)
    assert told.exit_code == 0, told.output
    right = golden("vector_mlp")
    np.testing.assert_allclose(
        next(iter(run_file(tmp_path / "m.onnx", "vector_mlp").values())), right["y"], rtol=0, atol=CLOSE
    )
    # The option is among what a file keeps: verify needs not be told again.
    assert json.loads(onnx_metadata(tmp_path / "m.onnx")["spdexport.options"])["sigmoid"] == "leaky_hard"
    with pytest.raises(ComponentsError, match="Nothing tells the sigmoid"):
        derive_masks(folder, data=DATA / "vector_mlp.x.npz", factory=model("vector_mlp")["factory"])
    noted = derive_masks(
        folder, data=DATA / "vector_mlp.x.npz", factory=model("vector_mlp")["factory"], sigmoid="normal"
    )
    assert any("as --sigmoid says" in note for note in noted.notes)
