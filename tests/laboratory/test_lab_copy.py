"""The copy for the browser: what the file is, and gates with other thresholds are what ``convert`` makes of them."""

import lab_files
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli_command import FACTORY, RUN
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from spdexport import convert
from spdexport.errors import SourceError
from spdexport.files.onnx_reading import load_onnx
from spdexport.laboratory.copy import copied
from spdexport.ort.sessions import SessionSettings, open_session

LIVE = {"runtime_masks": ["all"], "gate_outputs": True, "activation_outputs": True, "verify": False}
CASES = {
    "conv_mlp": "CNN",
    "vector_mlp": "MLP",
    "shared_seq": "MLP",
    "global_mlp": "MLP",
    "global_tf": "MLP",
    "embed": "Emb",
}


def prepared(path):
    copy = copied(load_onnx(path), path)
    return copy, open_session(ir.to_proto(copy.model).SerializeToString(), SessionSettings())


def at(copy, number):
    """What the copy takes beside the model's inputs, with every threshold at a number."""
    return {**copy.neutral, **{x.threshold.input: np.array([number], np.float32) for x in copy.layers if x.threshold}}


def file_of(path, name, x, **options):
    factory = f"{lab_files.KINDS / 'targets.py'}:{CASES[name]}" if name in CASES else FACTORY
    source = lab_files.KINDS / name if name in CASES else RUN
    np.savez(path.with_suffix(".npz"), x=x) if name != "embed" else np.savez(path.with_suffix(".npz"), ids=x)
    if name == "onnx":  # the same run on an ONNX file, whose graph is changed in place of a torch program
        dense = path.with_name("dense.onnx")
        convert(RUN, dense, factory=FACTORY, inputs=path.with_suffix(".npz"), form="dense", verify=False)
        convert(dense, path, components=RUN, **{**LIVE, **options})
    else:
        convert(source, path, factory=factory, inputs=path.with_suffix(".npz"), **{**LIVE, **options})
    return open_session(path, SessionSettings())


def inputs(name):
    if name not in CASES:
        return load_file(lab_files.ROOT / "tests/data/spd_digits_golden.safetensors")["input"][:2]
    with np.load(lab_files.KINDS / f"{name}.x.npz") as archive:
        return archive[archive.files[0]]


@pytest.mark.parametrize(
    ("name", "gates"),
    [
        ("digits", "exact"),
        ("onnx", "local"),
        pytest.param("digits", "local", marks=pytest.mark.long),
        pytest.param("onnx", "exact", marks=pytest.mark.long),
        pytest.param("conv_mlp", "local", marks=pytest.mark.long),
        *(pytest.param(name, "exact", marks=pytest.mark.long) for name in CASES),
    ],
)
def test_thresholds_are_those_of_convert(tmp_path, name, gates):
    """Another file, made with the threshold from the start, is the expected value."""
    x = inputs(name)[:1]
    file_of(tmp_path / "soft.onnx", name, x, gates=gates)
    hard = file_of(tmp_path / "hard.onnx", name, x, gates=gates, gate_threshold=0.2)
    copy, session = prepared(tmp_path / "soft.onnx")
    feed = {session.inputs[0].name: x}
    assert [layer.threshold.value for layer in copy.layers] == [None] * len(copy.layers)
    right = hard.run(feed)
    got = session.run({**feed, **at(copy, 0.2)})
    assert set(got) == set(right)
    for output, value in right.items():
        np.testing.assert_allclose(got[output], value, rtol=1e-5, atol=1e-5)
    # And the other way round: the file with the threshold, asked for the importances themselves.
    soft = open_session(tmp_path / "soft.onnx", SessionSettings()).run(feed)
    again, other = prepared(tmp_path / "hard.onnx")
    assert [layer.threshold.value for layer in again.layers] == [0.2] * len(again.layers)
    for output, value in other.run({**feed, **at(again, np.nan)}).items():
        np.testing.assert_allclose(value, soft[output], rtol=1e-5, atol=1e-5)
    assert any(np.abs(soft[output] - right[output]).max() > 1e-3 for output in copy.outputs)


def test_without_gates_the_components_are_all_on(tmp_path):
    x = inputs("digits")
    file_of(tmp_path / "gated.onnx", "digits", x, gates="exact", gate_threshold=0.5)
    plain = file_of(tmp_path / "plain.onnx", "digits", x, gate_outputs=False, delta="drop")
    copy, session = prepared(tmp_path / "gated.onnx")
    got = session.run({"x": x[:1], **at(copy, -np.inf)}, ["output"])["output"]
    np.testing.assert_allclose(got, plain.run({"x": x[:1]}, ["output"])["output"], rtol=1e-4, atol=1e-4)


def test_as_it_is_the_copy_is_the_file_bit_for_bit(tmp_path):
    x = inputs("digits")
    file = file_of(tmp_path / "m.onnx", "digits", x, gates="local", gate_threshold=0.1)
    copy, session = prepared(tmp_path / "m.onnx")
    for output, value in file.run({"x": x[1:]}).items():
        np.testing.assert_array_equal(session.run({"x": x[1:], **copy.neutral})[output], value)


def test_every_mask_must_be_given_in_the_copy_and_the_record_is_not_in_it(tmp_path):
    x = inputs("digits")
    file = file_of(tmp_path / "m.onnx", "digits", x, gates="exact")
    assert [port.name for port in file.inputs if port.required] == ["x"]
    copy, session = prepared(tmp_path / "m.onnx")
    assert {port.name for port in session.inputs if port.required} == {"x", *copy.neutral}
    assert len(copy.neutral) == 10
    assert not any(key.startswith("spdexport.") for key in copy.model.metadata_props)
    assert copy.outputs == ("output",)
    assert [(layer.name, layer.components) for layer in copy.layers] == [
        ("conv1", 24), ("conv2", 64), ("conv3", 64), ("fc1", 64), ("fc2", 32),
    ]  # fmt: skip


def test_gates_without_run_time_masks_have_thresholds_all_the_same(tmp_path):
    file_of(tmp_path / "m.onnx", "vector_mlp", inputs("vector_mlp"), gates="exact", runtime_masks=[])
    copy, _ = prepared(tmp_path / "m.onnx")
    assert [layer.mask for layer in copy.layers] == [None] * 3
    assert all(layer.threshold for layer in copy.layers)


def test_masks_for_each_location_and_switches_of_delta_and_routing(tmp_path):
    file_of(
        tmp_path / "m.onnx", "digits", inputs("digits"), gate_outputs=False, delta="keep",
        runtime_masks_per_location=True, runtime_delta_masks=True, runtime_routing=True,
    )  # fmt: skip
    copy, _ = prepared(tmp_path / "m.onnx")
    first = copy.layers[0]
    assert first.mask.shape == (1, 16, 16, 24)
    assert first.delta.shape == first.routing.shape == (1, 16, 16)
    assert {layer.delta_use for layer in copy.layers} == {"kept"}


def test_a_gate_elsewhere_is_told_and_has_no_threshold(tmp_path):
    path = lab_files.small(tmp_path / "m.onnx")
    model = onnx.load(path)
    # What is called an importance here is read by something that is no mask.
    model.graph.node.append(helper.make_node("Sigmoid", ["v"], ["ci/fc"]))
    model.graph.node.append(helper.make_node("Neg", ["ci/fc"], ["z"]))
    for name in ("ci/fc", "z"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]))
    onnx.save(model, path)
    copy, _ = prepared(path)
    assert copy.layers[0].threshold is None
    assert copy.notes == ("no threshold can be set for fc: the gate is not where spdexport puts it",)


def test_a_file_with_nothing_to_switch(tmp_path):
    path = lab_files.small(tmp_path / "m.onnx", layer="fc")
    model = onnx.load(path)
    model.graph.input[1].name = model.graph.initializer[2].name = "scale"
    model.graph.node[1].input[1] = "scale"
    onnx.save(model, path)
    with pytest.raises(SourceError, match="nothing to switch") as caught:
        copied(load_onnx(path), path)
    assert "--runtime-masks all" in caught.value.hint


@pytest.mark.parametrize(("dtype", "told"), [(TensorProto.FLOAT16, "float16"), (TensorProto.DOUBLE, "double")])
def test_masks_of_another_type(tmp_path, dtype, told):
    path = lab_files.small(tmp_path / "m.onnx", mask_dtype=dtype)
    with pytest.raises(SourceError, match=f"mask/fc is {told}"):
        copied(load_onnx(path), path)
