from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import pytest
import torch
from planting import one_off, planted, weight
from small_nets import five_convs, two_outputs

from spdexport import pipeline
from spdexport.content import content_hash
from spdexport.errors import ExampleInputError, SourceError, UsageError
from spdexport.ort.providers import CUDA
from spdexport.ort.sessions import provider_status
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.verification.result import EdgeResult, Verification


def edge(found: Verification, name: str) -> EdgeResult:
    return next(e for e in found.edges if e.edge == name)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module, inputs = five_convs()
    path = tmp_path_factory.mktemp("alone") / "m.onnx"
    pipeline.convert(module, path, inputs=inputs, verify=False)
    return path


def save(tmp_path: Path, nodes: list[onnx.NodeProto], shape: list[object], weights: list[onnx.TensorProto]) -> Path:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "made.onnx")
    return tmp_path / "made.onnx"


def test_a_changed_file_is_told_by_its_hash(file: Path, tmp_path: Path) -> None:
    found = pipeline.verify(planted(file, weight("2.V", one_off), tmp_path / "p.onnx"))
    assert found.verdict is Status.FAIL
    assert edge(found, "weights").reason.startswith("the weights or the graph changed since conversion")
    # The file still computes what it says.
    assert edge(found, "export").status is Status.PASS
    for name in ("capture", "rewrite"):
        assert edge(found, name).status is Status.NOT_RUN
        assert "--against" in edge(found, name).reason


def test_a_file_of_another_origin_has_no_hash(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "p.onnx")
    found = pipeline.verify(tmp_path / "p.onnx")
    assert found.verdict is Status.PASS
    assert edge(found, "weights").status is Status.NOT_RUN
    assert "carries no hash" in edge(found, "weights").reason


def test_the_hash_ignores_metadata_and_storage_and_sees_all_else(file: Path, tmp_path: Path) -> None:
    model = ir.load(file)
    before = content_hash(model)
    model.metadata_props["anything"] = "else"
    model.graph[0].name = "renamed"
    assert content_hash(model) == before
    ir.save(model, tmp_path / "external.onnx", external_data="weights.data", size_threshold_bytes=0)
    assert content_hash(ir.load(tmp_path / "external.onnx")) == before

    changes = [
        lambda m: m.graph[0].attributes.add(ir.AttrInt64s("pads", [0, 1, 2, 1])),
        lambda m: m.graph[0].replace_input_with(1, m.graph[1].inputs[1]),
        lambda m: setattr(m.graph.outputs[0], "name", "other"),
        lambda m: m.opset_imports.update({"": 19}),
        lambda m: setattr(m.graph.inputs[0], "shape", ir.Shape([2, 3, 8, 8])),
        lambda m: setattr(m.graph[2], "op_type", "Elu"),
    ]
    for change in changes:
        edited = ir.load(file)
        change(edited)
        assert content_hash(edited) != before


def test_another_file_is_compared_in_float64(file: Path, tmp_path: Path) -> None:
    same = pipeline.verify(file, against=file)
    assert same.verdict is Status.PASS
    other = planted(file, weight("4.U", one_off), tmp_path / "p.onnx")
    found = pipeline.verify(other, against=file)
    assert edge(found, "export").status is Status.FAIL
    assert edge(found, "export").first_divergence == "4"
    assert set(found.artifacts) == {"p.onnx", "m.onnx"}


def test_files_with_other_outputs_fail(file: Path, tmp_path: Path) -> None:
    module, inputs = two_outputs()
    pipeline.convert(module, tmp_path / "two.onnx", inputs=inputs, verify=False)
    for first, second in ((file, tmp_path / "two.onnx"), (tmp_path / "two.onnx", file)):
        found = pipeline.verify(first, against=second)
        assert edge(found, "export").status is Status.FAIL
        assert "input" in edge(found, "export").reason

    def double(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "inner"
        model.graph.node.append(onnx.helper.make_node("Cast", ["inner"], ["output"], to=onnx.TensorProto.DOUBLE))
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE

    found = pipeline.verify(planted(file, double, tmp_path / "double.onnx"), against=file)
    assert "output float64" in edge(found, "export").reason
    assert edge(found, "export").status is Status.FAIL


def test_given_inputs_are_a_case(file: Path) -> None:
    found = pipeline.verify(file, inputs={"input": torch.randn(4, 3, 8, 8)})
    assert found.verdict is Status.PASS
    assert found.inputs[0] == "given by inputs"
    with pytest.raises(ExampleInputError, match=r"have input float32 \(1, 3, 9, 8\)\.\n.*\n.*takes input float32"):
        pipeline.verify(file, inputs=torch.randn(1, 3, 9, 8))
    with pytest.raises(ExampleInputError, match="'z' is no input of the file"):
        pipeline.verify(file, inputs={"z": torch.randn(1, 3, 8, 8)})


def test_nan_in_the_users_inputs_is_inconclusive(file: Path) -> None:
    found = pipeline.verify(file, inputs=torch.full((1, 3, 8, 8), torch.nan))
    assert edge(found, "export").status is Status.INCONCLUSIVE
    reason = edge(found, "export").reason
    assert reason == "the reference itself is NaN (the input input has NaN), on input given by inputs"


def test_sizes_of_dynamic_axes_are_guessed_and_said(tmp_path: Path) -> None:
    kernel = onnx.numpy_helper.from_array(torch.randn(2, 3, 3, 3).numpy(), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    found = pipeline.verify(save(tmp_path, [node], ["n", 3, "h", "w_"], [kernel]))
    assert found.verdict is Status.PASS
    assert found.notes == ("32 was taken as the size of h, w_: verify --inputs FILE tells other sizes",)


def test_an_operator_without_reference_is_inconclusive(tmp_path: Path) -> None:
    node = onnx.helper.make_node("RandomNormalLike", ["x"], ["y"])
    found = pipeline.verify(save(tmp_path, [node], [2, 3], []))
    assert found.verdict is Status.INCONCLUSIVE
    assert "RandomNormalLike" in edge(found, "export").reason


@pytest.mark.skipif(provider_status(CUDA) is None, reason="CUDA runs here")
def test_a_provider_that_cannot_run_is_inconclusive(file: Path) -> None:
    found = pipeline.verify(file, providers=["cuda"])
    assert found.verdict is Status.INCONCLUSIVE
    assert edge(found, "device").provider == "cuda"
    assert edge(found, "device").reason == provider_status(CUDA)


def test_files_that_cannot_be_used_are_errors(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "garbage.onnx").write_bytes(bytes(range(256)))
    for name, what in (
        ("missing", "There is no such file."),
        ("empty", "The file is empty."),
        ("garbage", "The file is not a valid ONNX model: "),
    ):
        with pytest.raises(SourceError) as caught:
            pipeline.verify(tmp_path / f"{name}.onnx")
        assert str(caught.value).startswith(what)
        assert len(str(caught.value).splitlines()) == 3
    ir.save(ir.load(file), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    assert pipeline.verify(tmp_path / "m.onnx").verdict is Status.PASS
    (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes()[:-4])
    with pytest.raises(SourceError, match=r"m\.data, which holds weights of the model, is shorter than"):
        pipeline.verify(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    with pytest.raises(SourceError, match="is missing"):
        pipeline.verify(tmp_path / "m.onnx")


def test_options_about_a_source_need_one(file: Path) -> None:
    with pytest.raises(UsageError, match="masks tells something about a source, and there is none"):
        pipeline.verify(file, masks="masks.npz")


@pytest.mark.parametrize("axes", [["batch", 3, "?", "?"], ["batch", 3, "height", "width"], [None, 3, None, None]])
def test_sizes_for_which_a_pooled_map_is_empty_are_not_taken(axes: list[int | str | None], tmp_path: Path) -> None:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c0"], strides=[4, 4], pads=[1, 1, 1, 1]),
        *(onnx.helper.make_node("MaxPool", [f"c{step}"], [f"c{step + 1}"], **pool) for step in range(4)),
        onnx.helper.make_node("GlobalAveragePool", ["c4"], ["y"]),
    ]
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).numpy()
    file = tmp_path / "m.onnx"
    graph = onnx.helper.make_graph(
        nodes, "pooled", [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, axes)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 4, 1, 1])],
        [onnx.numpy_helper.from_array(kernel, "w")],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), file)
    found = pipeline.verify(file)
    assert found.verdict is Status.PASS, found.edges
    assert any(note.startswith("64 was taken as the size of") for note in found.notes)
