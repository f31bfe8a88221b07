"""ONNX files that say ordinary things in unusual ways: every command takes them, and no answer contradicts another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_command import spdexport
from onnx import TensorProto, helper, numpy_helper

STORED = Path(__file__).parents[1] / "data" / "odd_onnx"
"""A 3x3 convolution of x (N, 3, 8, 8) to 6 channels, and what older opsets or other exporters write behind it."""

NOT_RUN = ("dilated_same",)
"""Valid files that ONNX Runtime does not take: nothing is shown of them."""


def odd_file(kind: str, path: Path) -> Path:
    """A 3x3 convolution of x (N, 3, 8, 8) to 6 channels, and one thing behind it."""
    weight = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    held = {"w": weight}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4)]
    shape: list[str | int] | None = ["N", 6, 8, 8]
    match kind:
        case "reversed":
            numbers = {"starts": [-1], "ends": [np.iinfo(np.int64).min], "axes": [3], "steps": [-1]}
            held |= {name: np.array(values, np.int64) for name, values in numbers.items()}
            nodes.append(helper.make_node("Slice", ["c", *numbers], ["y"]))
        case "summed backwards":
            held["axis"] = np.array(2, np.int64)
            nodes.append(helper.make_node("CumSum", ["c", "axis"], ["y"], reverse=1))
        case "outputs without a name":
            nodes.append(helper.make_node("MaxPool", ["c"], ["p", ""], kernel_shape=[2, 2]))
            nodes.append(helper.make_node("Dropout", ["p", "", ""], ["y", ""]))
            shape = ["N", 6, 7, 7]
        case "an output without a shape":
            nodes.append(helper.make_node("Relu", ["c"], ["y"]))
            shape = None
        case "an axis of size -1":
            nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    if "-1" in kind:
        x.type.tensor_type.shape.dim[0].dim_value = -1
    tensors = [numpy_helper.from_array(values, name) for name, values in held.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "kind",
    ["reversed", "summed backwards", "outputs without a name", "an output without a shape", "an axis of size -1"],
)
def test_every_command_takes_it(kind: str, tmp_path: Path) -> None:
    check_all_commands(odd_file(kind, tmp_path / "m.onnx"), tmp_path)


@pytest.mark.parametrize("path", sorted(STORED.glob("*.onnx")), ids=lambda path: path.stem)
def test_every_command_takes_the_stored_file(path: Path, tmp_path: Path) -> None:
    check_all_commands(path, tmp_path, status=3 if path.stem in NOT_RUN else 0)


def check_all_commands(path: Path, tmp_path: Path, status: int = 0) -> None:
    converted, folded = tmp_path / "c.onnx", tmp_path / "f.onnx"
    for command in (
        ("inspect", path),
        ("verify", path),
        ("convert", path, "-o", converted),
        ("verify", converted, "--against", path),
        ("verify", converted),
        ("convert", path, "-o", tmp_path / "a.onnx", "--form", "auto"),
        ("fold", converted, "-o", folded),
        ("verify", folded, "--against", path),
    ):
        result = spdexport(*command, *(() if command[0] == "inspect" else ("--provider", "cpu")))
        expected = 0 if command[0] == "inspect" else status
        assert result.exit_code == expected, (command, result.output)
        assert "computes something else" not in result.output


def one_convolution(nodes: list[onnx.NodeProto], held: dict[str, np.ndarray], shape: list[object], path: Path) -> Path:
    """The convolution of the other files with some nodes behind `c`, which give `y` and whatever else is left."""
    weight = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    tensors = [numpy_helper.from_array(v, k) for k, v in {"w": weight, **held}.items()]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4), *nodes]
    read = {name for node in nodes for name in node.input}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    ends = [name for node in nodes for name in node.output if name not in read]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends]
    graph = helper.make_graph(nodes, "g", [x], outputs, tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_file_that_takes_one_sample_alone_is_checked_on_one(tmp_path: Path) -> None:
    reshape = helper.make_node("Reshape", ["c", "s"], ["y"])
    path = one_convolution([reshape], {"s": np.array([1, 6, 64])}, ["N", 3, 8, 8], tmp_path / "m.onnx")
    result = spdexport("verify", path, "--provider", "cpu")
    assert result.exit_code == 0, result.output
    assert "normal, batch 1; uniform, batch 1; sparse, batch 1" in " ".join(result.output.split())
    np.savez(tmp_path / "x.npz", x=np.ones((1, 3, 8, 8), np.float32))
    assert spdexport("verify", path, "--inputs", tmp_path / "x.npz", "--provider", "cpu").exit_code == 0


@pytest.mark.parametrize("command", ["verify", "convert"])
def test_a_shape_that_does_not_fit_is_an_error_that_says_what_fits(command: str, tmp_path: Path) -> None:
    head = [helper.make_node("Flatten", ["c"], ["f"]), helper.make_node("Gemm", ["f", "v"], ["y"], name="head")]
    held = {"v": np.random.default_rng(1).standard_normal((384, 5)).astype(np.float32)}
    path = one_convolution(head, held, ["N", 3, "H", "W"], tmp_path / "m.onnx")
    out = ("-o", tmp_path / "c.onnx") if command == "convert" else ()
    result = spdexport(command, path, *out, "--input-shape", "1x3x4x4", "--provider", "cpu")
    assert result.exit_code == 4, result.output
    assert "The file does not run on inputs of x (1, 3, 4, 4): Gemm (head" in result.output
    assert "to do: The file takes x float32 (N, 3, H, W)" in result.output
    assert spdexport("verify", path, "--input-shape", "1x3x8x8", "--provider", "cpu").exit_code == 0


def missing_operator(path: Path, *, behind: bool) -> Path:
    """An operator without a definition behind the convolution, with another one behind, and one beside if asked for."""
    pointwise = np.random.default_rng(2).standard_normal((4, 6, 1, 1)).astype(np.float32)
    held = {"w2": pointwise, "rois": np.array([[0, 0, 0.5, 0.5]], np.float32), "b": np.zeros(1, np.int32)}
    nodes = [helper.make_node("Conv", ["c", "w2"], ["y"], name="second")] if behind else []
    nodes.append(
        helper.make_node("CropAndResize", ["c", "rois", "b", "size"], ["r"], name="crop", domain="com.microsoft")
    )
    nodes.append(helper.make_node("Conv", ["r", "w2"], ["z"], name="third"))
    return one_convolution(nodes, {**held, "size": np.array([3, 3], np.int32)}, ["N", 3, 8, 8], path)


@pytest.mark.parametrize("behind", [True, False])
def test_an_operator_without_a_reference_hides_what_is_behind_it_alone(behind: bool, tmp_path: Path) -> None:
    path = missing_operator(tmp_path / "m.onnx", behind=behind)
    for command in (("verify", path), ("convert", path, "-o", tmp_path / "c.onnx")):
        result = spdexport(*command, "--provider", "cpu")
        words = " ".join(result.output.split())
        assert result.exit_code == 3, result.output
        assert "cannot compute com.microsoft.CropAndResize (node crop): no definition of it is known" in words
        assert "this hides the outputs z and the layers third" in words
        assert ("all else was compared" in words) is behind
        assert "there is nothing to compare a part of the file with" in words


@pytest.mark.parametrize("behind", [True, False])
def test_a_fault_beside_an_operator_without_a_reference_is_found(
    behind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spdexport.reference import onnx_reference
    from spdexport.reference.onnx_windows import Conv

    class Off(Conv):
        def _run(self, *arguments: object, **attributes: object) -> tuple[np.ndarray, ...]:
            return (super()._run(*arguments, **attributes)[0] * 1.01,)

    Off.__name__ = "Conv"
    monkeypatch.setattr(onnx_reference, "_OPERATORS", [Off, *onnx_reference._OPERATORS])
    result = spdexport("verify", missing_operator(tmp_path / "m.onnx", behind=behind), "--provider", "cpu")
    assert result.exit_code == 1, result.output
    assert "conv" in result.output


def test_the_head_in_which_two_files_differ_is_named_though_no_node_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    held = {name: rng.standard_normal((4, 6, 1, 1)).astype(np.float32) for name in ("w1", "w2")}
    nodes = [helper.make_node("Conv", ["c", "w1"], ["one"]), helper.make_node("Conv", ["c", "w2"], ["two"])]
    right = one_convolution(nodes, held, ["N", 3, 8, 8], tmp_path / "a.onnx")
    held["w2"] = held["w2"] + np.float32(0.1)
    wrong = one_convolution(nodes, held, ["N", 3, 8, 8], tmp_path / "b.onnx")
    words = " ".join(spdexport("verify", wrong, "--against", right, "--provider", "cpu").output.split())
    assert "first diverges at two: two[" in words
    # What the weights edge shows holds for all inputs: the advice is about it.
    assert "the file has other weights or operators than the file that it is compared with" in words


def test_an_integer_off_by_one_is_named(tmp_path: Path) -> None:
    gather = helper.make_node("Gather", ["c", "k"], ["y"], axis=3)
    path = one_convolution([gather], {"k": np.array([1, 4])}, ["N", 3, 8, 8], tmp_path / "m.onnx")
    assert spdexport("convert", path, "-o", tmp_path / "c.onnx", "--no-verify").exit_code == 0
    model = onnx.load(tmp_path / "c.onnx")
    held = next(tensor for tensor in model.graph.initializer if tensor.name == "k")
    held.CopyFrom(numpy_helper.from_array(np.array([1, 5]), "k"))
    onnx.save(model, tmp_path / "c.onnx")
    result = spdexport("verify", tmp_path / "c.onnx", "--against", path, "--provider", "cpu")
    assert result.exit_code == 1, result.output
    assert "k differs in 1 of 2 entries, and nothing should have changed it" in " ".join(result.output.split())


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_what_onnx_runtime_quantizes_is_compared(opset: int, per_channel: bool, form: str, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [np.random.default_rng(k).standard_normal((1, 3, 8, 8)).astype(np.float32) for k in range(4)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"x": self.left.pop()} if self.left else None

    rng = np.random.default_rng(4)
    held = {"w2": rng.standard_normal((5, 6, 3, 3)) * 0.2, "b2": np.ones(5), "v": rng.standard_normal((5, 4))}
    nodes = [
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["d"], name="second"),
        helper.make_node("GlobalAveragePool", ["d"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v"], ["y"], name="head"),
    ]
    floats = {name: values.astype(np.float32) for name, values in held.items()}
    path = one_convolution(nodes, floats, ["N", 3, 8, 8], tmp_path / "m.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = opset
    model.graph.output[0].type.tensor_type.shape.CopyFrom(
        onnx.TensorShapeProto(dim=[{"dim_param": "N"}, {"dim_value": 4}])
    )
    onnx.save(model, path)
    quantize_static(
        path,
        tmp_path / "q.onnx",
        Samples(),
        quant_format=QuantFormat[form],
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        # Processors without VNNI add pairs of products in 16 bits, which weights of eight bits overflow.
        reduce_range=True,
    )
    result = spdexport("verify", tmp_path / "q.onnx", "--provider", "cpu")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("swapped", [False, True])
def test_axes_that_one_of_two_files_fixes_have_that_size(swapped: bool, tmp_path: Path) -> None:
    files = [one_convolution([], {}, ["N", 3, *sizes], tmp_path / f"{sizes[0]}.onnx") for sizes in (("h", "w"), (9, 7))]
    file, other = reversed(files) if swapped else files
    result = spdexport("verify", file, "--against", other, "--provider", "cpu")
    assert result.exit_code == 0, result.output
