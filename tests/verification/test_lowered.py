"""Files in fewer bits: what is proved of them, and the faults that are caught."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from planting import node_with, planted, weight

import spdexport
from spdexport.files.onnx_reading import reload_onnx
from spdexport.precision import Precision, Storage, calibrated, eight_bits
from spdexport.precision.recorded import recorded_precision
from spdexport.verification.lowered_weights import compare_lowered

SHAPE = ("2x3x8x8",)


class Net(torch.nn.Module):
    """Convolutions with batch norm, ReLU and ReLU6, a residual, a pool and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)
        self.norm.running_mean.uniform_(-0.3, 0.3)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.eval()

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.nn.functional.relu6(self.second(x) + x)
        return self.head(torch.nn.functional.max_pool2d(x, 2).flatten(2).mean(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The float file, and one of each kind of numbers: float.onnx, int8.onnx, float16.onnx."""
    folder = tmp_path_factory.mktemp("lowered")
    spdexport.convert(Net(), folder / "float.onnx", form="dense", input_shape=SHAPE, verify=False)
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((16, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    ranges = calibrated(reload_onnx(folder / "float.onnx"), feeds)
    for storage, seen in ((Storage.INT8, ranges), (Storage.FLOAT16, {})):
        spdexport.convert(
            Net(),
            folder / f"{storage}.onnx",
            form="dense",
            input_shape=SHAPE,
            verify=False,
            precision=Precision(storage=storage, ranges=seen),
            save_plan=folder / f"{storage}.json",
        )
    return folder


@pytest.mark.parametrize("storage", list(Storage))
@pytest.mark.parametrize("source", ["torch", "onnx"])
@pytest.mark.sampled(2)
def test_a_file_in_fewer_bits_is_proved_against_its_source(folder, storage, source, tmp_path):
    file = folder / f"{storage}.onnx"
    if source == "torch":
        found = spdexport.verify(file, against=Net())
    else:
        file = tmp_path / "o.onnx"
        made = spdexport.convert(
            folder / "float.onnx", file, form="dense", plan=None, precision=recorded(folder, storage)
        )
        found = made.verification
    edges = {edge.edge: edge for edge in found.edges}
    assert found.verdict == "pass"
    assert f"of the {storage} file" in edges["weights"].reason
    assert edges["capture"].status == edges["rewrite"].status == "pass"
    # Fewer bits change the outputs, and that is told as what is changed on purpose.
    assert 1e-5 < found.approximation.relative_l2 < 0.1


def compared(folder, file, storage):
    return compare_lowered(reload_onnx(file), reload_onnx(folder / "float.onnx"), recorded(folder, storage))


def recorded(folder, storage):
    path = folder / f"{storage}.onnx"
    return recorded_precision(reload_onnx(path), path)


@pytest.mark.parametrize("storage", list(Storage))
def test_the_plan_makes_the_same_bytes(folder, storage, tmp_path):
    spdexport.convert(Net(), tmp_path / "again.onnx", plan=folder / f"{storage}.json", input_shape=SHAPE, verify=False)
    assert (tmp_path / "again.onnx").read_bytes() == (folder / f"{storage}.onnx").read_bytes()


def test_every_integer_is_the_nearest_grid_point(folder):
    """By the definition of DequantizeLinear, computed here."""
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "int8.onnx").graph.initializer}
    right = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "float.onnx").graph.initializer}
    weights = [name for name in held if name.endswith(".weight_quantized") and held[name].ndim == 4]
    assert len(weights) == 2
    for name in weights:
        base = name.removesuffix("_quantized")
        scale = held[f"{base}_scale"].astype(np.float64)
        assert scale.shape == (8,)
        assert np.abs(held[name].astype(int)).max() <= 64
        assert not held[f"{base}_zero_point"].any()
        steps = scale.reshape(-1, 1, 1, 1)
        assert (np.abs(held[name] * steps - right[base]) <= steps * 0.5001).all()


def bump(by):
    def change(values):
        values = values.copy()
        place = np.unravel_index(int(np.argmin(np.abs(values.astype(np.int64)))), values.shape)
        values[place] += by
        return values

    return change


def without_pair(name):
    """Takes out the steps of a value."""

    def edit(model):
        begin = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name)
        end = next(n for n in model.graph.node if begin.output[0] in n.input)
        for node in model.graph.node:
            for index, read in enumerate(node.input):
                if read == end.output[0]:
                    node.input[index] = name
        model.graph.node.remove(begin)
        model.graph.node.remove(end)

    return edit


def zero_points(name):
    """Shifts a zero point of a value between operators."""
    return weight(f"{name}_zero_point", lambda z: (z + 1).astype(z.dtype))


def swap_weights(model):
    """Turns the order of channels around."""
    other = next(t for t in model.graph.initializer if t.name == "second.weight_quantized")
    other.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(other)[::-1]), other.name))


def dilation(model):
    """Spreads a kernel, at the same size of its output."""
    node = node_with(model, "second.weight_DequantizeLinear_Output")
    kept = [a for a in node.attribute if a.name not in ("pads", "dilations")]
    del node.attribute[:]
    node.attribute.extend(
        [*kept, onnx.helper.make_attribute("pads", [2, 2, 2, 2]), onnx.helper.make_attribute("dilations", [2, 2])]
    )


def values_of(file):
    return [n.input[0] for n in onnx.load(file).graph.node if n.op_type == "QuantizeLinear"]


FAULTS = {
    "a weight two steps off": (weight("second.weight_quantized", bump(2)), "steps from second.weight"),
    "a weight one step off": (weight("second.weight_quantized", bump(1)), "steps from second.weight"),
    "a step twice as long": (weight("second.weight_scale", lambda s: 2 * s), "second.weight"),
    "a step a little longer": (weight("second.weight_scale", lambda s: s * 1.0001), "the step of second.weight"),
    "a zero point of a weight": (weight("second.weight_zero_point", lambda z: z + 1), "second.weight"),
    "a bias": (weight("second.bias_quantized", bump(2)), "steps from second.bias"),
    "a step of the input": (weight("x_scale", lambda s: s * np.float32(1.25)), "the step of x"),
    "a zero point of the input": (zero_points("x"), "the zero point of x"),
    "a missing pair": (without_pair("x"), "of x is missing"),
    "weights in another order": (swap_weights, "steps from second.weight"),
    "an attribute": (dilation, "dilations"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_eight_bits_are_caught(folder, fault, tmp_path):
    edit, told = FAULTS[fault]
    weights = compared(folder, planted(folder / "int8.onnx", edit, tmp_path / "f.onnx"), Storage.INT8)
    assert weights.status == "fail", weights.reason
    assert told in weights.reason


def test_a_fault_fails_the_command_with_a_source_and_alone(folder, tmp_path):
    edit, told = FAULTS["a weight two steps off"]
    file = planted(folder / "int8.onnx", edit, tmp_path / "f.onnx")
    for against, words in ((Net(), told), (None, "their hash is not the one that the file carries")):
        found = spdexport.verify(file, against=against)
        weights = next(edge for edge in found.edges if edge.edge == "weights")
        assert (found.verdict, weights.status) == ("fail", "fail")
        assert words in weights.reason


@pytest.mark.parametrize("index", range(6))
def test_every_pair_that_is_missing_is_caught(folder, index, tmp_path):
    names = values_of(folder / "int8.onnx")
    file = planted(folder / "int8.onnx", without_pair(names[index % len(names)]), tmp_path / "f.onnx")
    assert compared(folder, file, Storage.INT8).status == "fail"


HALF_FAULTS = {
    "a weight": (
        weight("second.weight", lambda w: w + (np.arange(w.size) == 5).reshape(w.shape) * 0.01),
        "second.weight",
    ),
    "the last bit of a weight": (
        weight("second.weight", lambda w: np.nextafter(w, np.float16(np.inf)).astype(np.float16)),
        "is to be rounded to float16",
    ),
}


@pytest.mark.parametrize("fault", HALF_FAULTS)
def test_faults_of_half_precision_are_caught(folder, fault, tmp_path):
    edit, told = HALF_FAULTS[fault]
    weights = compared(folder, planted(folder / "float16.onnx", edit, tmp_path / "f.onnx"), Storage.FLOAT16)
    assert weights.status == "fail"
    assert told in weights.reason


def test_another_source_is_told(folder):
    class Other(Net):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.second.weight[0, 0, 0, 0] += 0.05

    found = spdexport.verify(folder / "int8.onnx", against=Other())
    assert found.verdict == "fail"


def test_the_quantizer_is_not_believed(folder, monkeypatch):
    """Where the quantizer itself leaves a Relu out whose work no step does, taking the steps out tells."""
    whole = eight_bits.quantized

    def forgetful(model, precision):
        made = whole(model, precision)
        node = next(n for n in made.graph if n.op_type == "MaxPool")
        node.outputs[0].replace_all_uses_with(node.inputs[0])
        made.graph.remove(node, safe=True)
        return made

    monkeypatch.setattr("spdexport.precision.lowering.quantized", forgetful)
    plain, precision = reload_onnx(folder / "float.onnx"), recorded(folder, Storage.INT8)
    edge = compare_lowered(forgetful(plain, precision), plain, precision)
    assert edge.status == "fail"
    assert "MaxPool" in edge.reason


def test_no_torch_program_has_eight_bits(folder, tmp_path):
    with pytest.raises(spdexport.UsageError, match="No torch program stores numbers as int8"):
        spdexport.convert(
            Net(), tmp_path / "p.pt2", form="dense", input_shape=SHAPE, precision=recorded(folder, Storage.INT8)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "object"),
        ('{"storage": "int8"}', "other entries"),
        ('{"storage": "int3", "ranges": {}, "left": []}', "'int3'"),
        ('{"storage": "int8", "ranges": {"x": [1]}, "left": []}', "no pairs"),
        ('{"storage": "int8", "ranges": {"x": [2, 1]}, "left": []}', "no pairs"),
        ('{"storage": "int8", "ranges": {}, "left": [1]}', "no list of names"),
    ],
)
def test_metadata_that_tell_no_precision_are_refused(folder, content, told, tmp_path):
    def edit(model):
        entry = next(e for e in model.metadata_props if e.key == "spdexport.precision")
        entry.value = content

    file = planted(folder / "int8.onnx", edit, tmp_path / "f.onnx")
    with pytest.raises(spdexport.SourceError) as caught:
        spdexport.verify(file, against=Net())
    assert told in caught.value.what


def test_what_float16_cannot_hold_is_told(tmp_path):
    class Large(Net):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                self.head.weight[0, 0] = 1e6

    with pytest.raises(spdexport.ExportError, match=r"head\.weight has 1e\+06, and float16 ends at 65504"):
        spdexport.convert(
            Large(), tmp_path / "h.onnx", form="dense", input_shape=SHAPE, precision=Precision(storage=Storage.FLOAT16)
        )
    assert not Path(tmp_path / "h.onnx").exists()
