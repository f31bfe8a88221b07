"""Edits of components for good, against the edited network in float64; and components that a weight delta hides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cli_command import spdexport
from safetensors.numpy import save_file

from spdexport import Status, convert
from spdexport.edits import apply_edits, read_edits
from spdexport.errors import ComponentsError, InputError
from spdexport.factors import Factors, delta

DATA = Path(__file__).parent / "data" / "spd_kinds"
RUN = DATA / "vector_mlp"
MODEL = {"factory": f"{DATA / 'targets.py'}:MLP", "inputs": DATA / "vector_mlp.x.npz"}
NEW = [1.0, 2.0, -3.0, 4.0, 5.0]
READ = [0.5, -1.0, 2.0, 0.0, 1.5, -0.5]
BOTH = {"V": [*READ, 1.0, -1.0], "U": [1.0, *NEW, 0.5, 0.0], "scale": 0.5}
EDITS = {"blocks-0:3": {"scale": 0}, "blocks.1:2": {"scale": -1.5}, "head:7": {"U": NEW}, "blocks.0:1": {"V": READ},
         "blocks.1:5": BOTH}  # fmt: skip


def weights(edits):
    """The dense weights with what the edits change of them, W + V' U' - V U, float64."""
    state = {k: t.double() for k, t in torch.load(RUN / "model_100.pth", weights_only=True).items()}
    dense = {k.removeprefix("target_model."): t for k, t in state.items() if k.startswith("target_model.")}
    for name, edit in edits.items():
        layer, _, index = name.rpartition(":")
        layer, index = layer.replace("-", "."), int(index)
        V, U = (state[f"_components.{layer.replace('.', '-')}.{part}"] for part in "VU")
        written = torch.tensor(edit["U"]).double() if "U" in edit else U[index]
        read = torch.tensor(edit["V"]).double() if "V" in edit else V[:, index]
        change = torch.outer(edit.get("scale", 1) * written, read) - torch.outer(U[index], V[:, index])
        dense[f"{layer}.weight"] = dense[f"{layer}.weight"] + change
    return dense


def network(w, x):
    h = torch.as_tensor(x).double()
    for layer in ("blocks.0", "blocks.1"):
        h = torch.relu(h @ w[f"{layer}.weight"].T + w[f"{layer}.bias"])
    return (h @ w["head.weight"].T).numpy()


@pytest.fixture(scope="module")
def x():
    with np.load(DATA / "vector_mlp.x.npz") as archive:
        return archive["x"]


def outputs(path, x):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "further", [{}, {"form": "dense"}, {"form": "auto"}, {"runtime_masks": ["all"], "delta": "keep"}],
    ids=["factorized", "dense", "auto", "runtime masks"],
)  # fmt: skip
def test_an_edit_changes_the_model_as_it_says(further, x, tmp_path):
    made = convert(RUN, tmp_path / "m.onnx", **MODEL, edit=EDITS, **further, verify=further != {"form": "auto"})
    assert made.verdict is (Status.NOT_RUN if further == {"form": "auto"} else Status.PASS)
    right = network(weights(EDITS), x)
    assert np.abs(right - network(weights({}), x)).max() > 0.1
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx", x), right, rtol=0, atol=1e-5)
    said = "5 components edited for good: blocks-0:3 removed, "
    assert any(note.startswith(said) for note in made.notes)
    told = {f"{layer}:{i}": e.told() for layer, es in read_edits(EDITS).values.items() for i, e in es.items()}
    assert told["blocks.0:1"] == "reads something else"
    assert told["blocks.1:5"] == "reads and writes something else, scaled by 0.5"


def test_an_edit_without_the_delta_and_under_masks(x, tmp_path):
    save_file({"head": np.arange(11, dtype=np.float32) % 2}, tmp_path / "masks.safetensors")
    convert(RUN, tmp_path / "m.onnx", **MODEL, edit=EDITS, masks=tmp_path / "masks.safetensors", verify=False)
    state = {k: t.double() for k, t in torch.load(RUN / "model_100.pth", weights_only=True).items()}
    V, U = state["_components.head.V"], state["_components.head.U"].clone()
    U[7] = torch.tensor(NEW)
    right = weights(EDITS) | {"head.weight": (V * (torch.arange(11) % 2) @ U).T}
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx", x), network(right, x), rtol=0, atol=1e-5)


def test_the_command_and_what_a_file_remembers(x, tmp_path):
    (tmp_path / "edits.json").write_text(json.dumps(EDITS))
    given = ("--factory", MODEL["factory"], "--inputs", MODEL["inputs"])
    done = spdexport(
        "convert", RUN, *given, "--edit", tmp_path / "edits.json", "-o", tmp_path / "m.onnx", "--no-verify"
    )
    assert done.exit_code == 0, done.output
    assert "5 components edited for good" in " ".join(done.stdout.split())
    recorded = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert set(json.loads(recorded["spdexport.sha256"])) == {"source", "components", "edit"}
    assert "edits.json" not in "".join(recorded.values())
    verify = ("verify", tmp_path / "m.onnx", "--against", RUN, *given)
    forgotten = spdexport(*verify)
    assert forgotten.exit_code == 2
    assert "made with an edit, and it is not given" in forgotten.stderr
    assert "--edit FILE" in forgotten.stderr
    (tmp_path / "other.json").write_text(json.dumps({"head:1": {"scale": 2}}))
    other = spdexport(*verify, "--edit", tmp_path / "other.json")
    assert other.exit_code == 2
    assert "made with other edit" in other.stderr
    own = spdexport(*verify, "--edit", tmp_path / "edits.json")
    assert own.exit_code == 0, own.output
    overwriting = spdexport("convert", RUN, *given, "--edit", tmp_path / "e.onnx", "-o", tmp_path / "e.onnx")
    assert overwriting.exit_code == 2
    nothing = spdexport("convert", "--factory", MODEL["factory"], *given[2:], "--edit", tmp_path / "edits.json", "-o",
                        tmp_path / "n.onnx")  # fmt: skip
    assert nothing.exit_code == 2
    assert "Without components there is nothing to edit" in nothing.stderr


BAD = [
    ("[]", "There are no edits by component"),
    ("{}", "There are no edits by component"),
    ("{", "The edits cannot be read"),
    ('{"head": {"scale": 0}}', "'head' names no component"),
    ('{"head:x": {"scale": 0}}', "'head:x' names no component"),
    ('{"head:-1": {"scale": 0}}', "names no component"),
    ('{"head:' + "9" * 30 + '": {"scale": 0}}', "names no component"),
    ('{"head:0": 0}', "has not scale, V and U alone"),
    ('{"head:0": {"W": [1]}}', "has not scale, V and U alone"),
    ('{"head:0": {"V": 1}}', "has a V that is no list of numbers"),
    ('{"head:0": {"V": [1, NaN]}}', "has a V with NaN"),
    ('{"head:0": {"V": [1, 2]}}', "reads 2 values, and the layer has 8 inputs and taps"),
    ('{"head:0": {"V": [1e39, 0, 0, 0, 0, 0, 0, 0]}}', "beyond the range of float32"),
    ('{"head:0": {"scale": "0"}}', "has a scale that is no finite number"),
    ('{"head:0": {"scale": true}}', "has a scale that is no finite number"),
    ('{"head:0": {"scale": NaN}}', "has a scale that is no finite number"),
    ('{"head:0": {"scale": 1' + "0" * 400 + "}}", "has a scale that is no finite number"),
    ('{"head:0": {"U": 1}}', "has a U that is no list of numbers"),
    ('{"head:0": {"U": [[1]]}}', "has a U that is no list of numbers"),
    ('{"head:0": {"U": [1, Infinity]}}', "has a U with NaN"),
    ('{"head:0": {"U": [1, 2]}}', "writes 2 values, and the layer has 5 outputs"),
    ('{"head:11": {"scale": 0}}', "head has the components 0 to 10"),
    ('{"tail:0": {"scale": 0}}', "edit of tail, and the model has no such layer"),
    ('{"head:0": {"scale": 1e39}}', "beyond the range of float32"),
]


@pytest.mark.parametrize(("text", "what"), BAD, ids=[what for _, what in BAD])
def test_refusals(tmp_path, text, what):
    (tmp_path / "edits.json").write_text(text)
    U = np.ones((11, 5), np.float32)
    with pytest.raises(InputError, match=what) as caught:
        apply_edits(read_edits(tmp_path / "edits.json"), {"head": Factors(V=np.ones((8, 11), np.float32), U=U)})
    assert caught.value.exit_status == 4
    assert np.array_equal(U, np.ones((11, 5), np.float32))


def test_groups_count_their_components_one_after_the_other_and_calls_share_edits():
    factors = Factors(V=np.ones((2, 3, 4), np.float32), U=np.ones((2, 4, 5), np.float32))
    found = apply_edits(read_edits({"conv:6": {"scale": 3}}), {"conv": factors, "conv#2": factors})
    for edited in found.values():
        expected = np.ones((2, 4, 5))
        expected[1, 2] = 3
        assert np.array_equal(edited.U, expected)
        assert np.array_equal(edited.as_trained.U, factors.U)


def test_what_a_component_of_a_group_reads_has_the_inputs_and_taps_of_its_group():
    factors = Factors(V=np.ones((2, 3, 4), np.float32), U=np.ones((2, 4, 5), np.float32))
    edited = apply_edits(read_edits({"conv:6": {"V": [1, 2, 3], "scale": 2}}), {"conv": factors})["conv"]
    V, U = np.ones((2, 3, 4)), np.ones((2, 4, 5))
    V[1, :, 2], U[1, 2] = (1, 2, 3), 2
    assert np.array_equal(edited.V, V)
    assert np.array_equal(edited.U, U)
    assert np.array_equal(edited.as_trained.V, factors.V)
    with pytest.raises(InputError, match="reads 6 values, and the layer has 3 inputs and taps") as caught:
        apply_edits(read_edits({"conv:6": {"V": [1] * 6}}), {"conv": factors})
    assert "one number for each of the inputs and taps of the layer, or of its group" in caught.value.hint


def test_gates_read_what_an_edited_component_reads(tmp_path):
    """Importances that a component's own activation decides are those of its new activation."""
    run, edits = DATA / "conv_mlp", {"conv1:2": {"V": [0.25] * 18}}
    given = {"factory": f"{DATA / 'targets.py'}:CNN", "inputs": DATA / "conv_mlp.x.npz"}
    found = {}
    for name, further in (("plain", {}), ("edited", {"edit": edits})):
        convert(run, tmp_path / f"{name}.onnx", **given, **further, gates="exact", gate_outputs=True, verify=False)
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        with np.load(DATA / "conv_mlp.x.npz") as archive:
            values = session.run(["ci/conv1"], {session.get_inputs()[0].name: next(iter(archive.values()))})[0]
        found[name] = values
    state = torch.load(run / "model_100.pth", weights_only=True)
    changed = np.abs(found["edited"] - found["plain"]).reshape(-1, state["_components.conv1.V"].shape[1]).max(axis=0)
    assert changed[2] > 0
    assert np.delete(changed, 2).max() <= 1e-6


def test_what_a_weight_delta_hides_is_told(x, tmp_path):
    """Components that were changed beside an unchanged weight make no difference: the delta takes it away again."""
    state = torch.load(RUN / "model_100.pth", weights_only=True)
    factors = {}
    for layer in ("blocks.0", "blocks.1", "head"):
        u, s, v = torch.linalg.svd(state[f"target_model.{layer}.weight"], full_matrices=False)
        factors |= {f"{layer}.V": (v.T * s).numpy().copy(), f"{layer}.U": u.T.numpy().copy()}
    dense = {k.removeprefix("target_model."): t for k, t in state.items() if k.startswith("target_model.")}
    torch.save(dense, tmp_path / "dense.pt")
    save_file(factors, tmp_path / "own.safetensors")
    factors["head.U"] = factors["head.U"].copy()
    factors["head.U"][1] += 5
    save_file(factors, tmp_path / "edited.safetensors")
    given = {**MODEL, "verify": False}
    # Of a run, what training leaves is in the table of its layers alone; a checkpoint that was changed is told.
    changed = convert(RUN, tmp_path / "c.onnx", **given)
    assert any("the weight delta, 225.5% of the weight's norm in blocks.1" in note for note in changed.notes)
    plain = convert(tmp_path / "dense.pt", tmp_path / "a.onnx", **given, components=tmp_path / "own.safetensors")
    assert not any("weight delta" in note for note in plain.notes)
    made = convert(tmp_path / "dense.pt", tmp_path / "b.onnx", **given, components=tmp_path / "edited.safetensors")
    (note,) = [note for note in made.notes if "weight delta" in note]
    assert "of the weight's norm in head, is added back in head: whatever V and U were changed to" in note
    np.testing.assert_allclose(outputs(tmp_path / "b.onnx", x), outputs(tmp_path / "a.onnx", x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("order", "said"),
    [((1, 2, 0), r"V with rows in \(kernel height, kernel width, in\) order"),
     ((2, 1, 0), r"V with rows in \(kernel width, kernel height, in\) order")],
)  # fmt: skip
def test_another_order_of_axes_that_fits_is_named(tmp_path, order, said):
    rng = np.random.default_rng(0)
    V, U = rng.standard_normal((18, 4)), rng.standard_normal((4, 4))
    weight = (V @ U).T.reshape(4, 2, 3, 3)
    state = torch.load(DATA / "conv_linear" / "model_100.pth", weights_only=True)
    dense = {k.removeprefix("target_model."): t for k, t in state.items() if k.startswith("target_model.")}
    torch.save(dense | {"conv1.weight": torch.tensor(weight).float()}, tmp_path / "dense.pt")
    rows = V.reshape(2, 3, 3, 4).transpose(*order, 3).reshape(18, 4)
    save_file({"conv1.V": rows.astype(np.float32), "conv1.U": U.astype(np.float32)}, tmp_path / "f.safetensors")
    given = {"factory": f"{DATA / 'targets.py'}:CNN", "inputs": DATA / "conv_linear.x.npz"}
    with pytest.raises(ComponentsError, match=f"and of 0.0% where they are read as {said}") as caught:
        convert(tmp_path / "dense.pt", tmp_path / "m.onnx", **given, components=tmp_path / "f.safetensors")
    assert "rows in (in / groups, *kernel) order" in caught.value.hint


def test_a_weight_that_is_not_transposed_is_named(tmp_path):
    state = torch.load(RUN / "model_100.pth", weights_only=True)
    torch.save({k.removeprefix("target_model."): t for k, t in state.items() if "target" in k}, tmp_path / "d.pt")
    u, s, v = np.linalg.svd(state["target_model.blocks.1.weight"].numpy())
    save_file({"blocks.1.V": u * s, "blocks.1.U": v}, tmp_path / "f.safetensors")
    with pytest.raises(ComponentsError, match="where they are read as the weight V U, and not its transpose"):
        convert(tmp_path / "d.pt", tmp_path / "m.onnx", **MODEL, components=tmp_path / "f.safetensors")


def test_the_delta_is_told_by_what_was_trained():
    rng = np.random.default_rng(1)
    V, U = rng.standard_normal((6, 3)), rng.standard_normal((3, 8))
    from spdexport.conv import ConvSpec

    spec = ConvSpec.pointwise(6, 8, axes=0)
    weight = (V @ U).T + 0.1
    edited = apply_edits(read_edits({"a:1": {"scale": 4}}), {"a": Factors(V=V, U=U)})["a"]
    np.testing.assert_allclose(delta(weight, edited, spec), np.full((8, 6), 0.1), atol=1e-12)
