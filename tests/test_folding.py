"""Folding of files: round trips of the digits run, metadata, bytes, checks that fail, and errors."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from onnx import helper, numpy_helper
from safetensors.torch import load_file
from torch import nn

from spdexport import content, folding, model_files
from spdexport.cli import main
from spdexport.errors import PickleRefusedError, SourceError, SpdExportError, UsageError
from spdexport.files.hashing import sha256_file
from spdexport.folding import Folding, fold
from spdexport.model_files import read_metadata, save_program
from spdexport.pipeline import convert
from spdexport.rewrite import torch_fold
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.export import ExportedProgram

DIGITS = Path(__file__).parents[1] / "examples/01_digits"
LAYERS = ["conv1", "conv2", "conv3", "fc1", "fc2"]


def digits(*, dense: bool) -> nn.Module:
    """The model with the run's own weights, or with the effective ones: W + V (diag(m) - 1) U."""
    spec = importlib.util.spec_from_file_location("digits_cnn", DIGITS / "digits_cnn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.DigitsCNN().eval()
    run = torch.load(DIGITS / "run/model_4000.pth", weights_only=True)
    masks = load_file(DIGITS / "run/fixed_masks.safetensors")
    state = {name.removeprefix("target_model."): t for name, t in run.items() if name.startswith("target_model.")}
    for name in [] if dense else LAYERS:
        V, U = (run[f"_components.{name}.{part}"].double() for part in "VU")
        change = (V * (masks[name].double() - 1) @ U).T
        state[f"{name}.weight"] = (state[f"{name}.weight"] + change.reshape(state[f"{name}.weight"].shape)).float()
    model.load_state_dict(state)
    return model


def traced(module: nn.Module, x: torch.Tensor) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


@pytest.fixture(scope="module")
def plain() -> ExportedProgram:
    return traced(digits(dense=False), torch.rand(2, 1, 16, 16))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits run, masks and deltas in the graph, as ``digits.onnx`` and ``digits.pt2``."""
    folder = tmp_path_factory.mktemp("converted")
    convert(
        DIGITS / "run", [folder / "digits.onnx", folder / "digits.pt2"], verify=False, input_shape="2x1x16x16",
        factory=f"{DIGITS / 'digits_cnn.py'}:DigitsCNN", masks=DIGITS / "run/fixed_masks.safetensors",
        keep_masks=True, delta="keep",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module", params=[".onnx", ".pt2"])
def folded(request: pytest.FixtureRequest, converted: Path) -> Folding:
    return fold(converted / f"digits{request.param}", converted / f"folded{request.param}")


def factors(tmp_path: Path, *, channels: int = 4) -> Path:
    """A small ONNX file of two convolutions that are one."""
    rng = np.random.default_rng(0)
    arrays = {"c.V": rng.standard_normal((3, 2, 3, 3)), "c.U": rng.standard_normal((channels, 3, 1, 1))}
    nodes = [helper.make_node("Conv", ["x", "c.V"], ["v"]), helper.make_node("Conv", ["v", "c.U"], ["y"])]
    x, y = (
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", (1, 2, 6, 6)), ("y", (1, channels, 4, 4)))
    )
    graph = helper.make_graph(
        nodes, "g", [x], [y], [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"author": "someone"})
    onnx.save(model, tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


# --- the digits run ---


def test_every_layer_is_folded_and_the_check_passes(folded: Folding) -> None:
    assert [chain.name for chain in folded.folded] == LAYERS
    assert folded.declined == folded.notes == ()
    assert folded.verdict is Status.PASS
    (path,) = folded.outputs
    assert folded.hashes == {
        "source": sha256_file(path.with_stem("digits")),
        path.name: sha256_file(path),
    }


def test_the_onnx_file_is_the_plain_export(converted: Path, plain: ExportedProgram) -> None:
    fold(converted / "digits.onnx", converted / "a.onnx", verify=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(plain, dynamo=True, optimize=True, verbose=False)
    assert exported is not None
    ours, theirs = ir.load(converted / "a.onnx").graph, exported.model.graph
    assert [node.op_type for node in ours] == [node.op_type for node in theirs]
    weights = [name for name in theirs.initializers if "." in name]  # the others, such as shapes, are numbered
    assert sorted(weights) == sorted(name for name in ours.initializers if "." in name)
    assert len(weights) == 10
    for name in weights:
        a, b = (graph.initializers[name].const_value.numpy() for graph in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())


def test_the_program_is_the_plain_one(converted: Path, plain: ExportedProgram) -> None:
    fold(converted / "digits.pt2", converted / "a.pt2", verify=False)
    ours = torch.export.load(converted / "a.pt2")
    assert [(n.name, n.target) for n in ours.graph.nodes] == [(n.name, n.target) for n in plain.graph.nodes]
    assert set(ours.state_dict) == set(plain.state_dict)
    for name, right in plain.state_dict.items():
        assert (ours.state_dict[name] - right).abs().max() <= 1e-6 * right.abs().max()
    assert ours.module()(torch.rand(5, 1, 16, 16)).shape == (5, 10)


def test_metadata_tells_of_the_fold_and_of_the_model(converted: Path) -> None:
    assert "plan" in read_metadata(ir.load(converted / "digits.onnx"))
    fold(converted / "digits.onnx", converted / "b.onnx", verify=False)
    model = ir.load(converted / "b.onnx")
    entries = read_metadata(model)
    assert set(entries) == {"version", "folded", "content", "components", "options", "plan", "sha256", "source"}
    assert entries["folded"] == {"layers": LAYERS, "of": sha256_file(converted / "digits.onnx")}
    assert entries["content"] == content.content_hash(model)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_the_same_file_twice_gives_the_same_bytes(converted: Path, ending: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        fold(converted / f"digits{ending}", tmp_path / f"{name}{ending}", verify=False)
    assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"other{ending}").read_bytes()


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_file_may_be_folded_onto_itself_and_again(converted: Path, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    shutil.copy(converted / f"digits{ending}", path)
    assert len(fold(path, path, in_place=True).folded) == 5
    again = fold(path, path, in_place=True)
    assert again.folded == ()
    assert again.notes == ("nothing was folded: no layer has factors",)
    assert again.verdict is Status.PASS
    assert list(tmp_path.iterdir()) == [path]


# --- small files ---


class LowRank(nn.Module):
    """A pair that is cheaper than its fold, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(4, 1, 3, bias=False), nn.Conv2d(1, 8, 1))
        self.full = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.full(torch.relu(self.low(x)))


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_if_cheaper_leaves_a_chain_with_both_numbers(tmp_path: Path, ending: str) -> None:
    program = traced(LowRank().eval(), torch.randn(2, 4, 9, 9))
    source = tmp_path / f"in{ending}"
    if ending == ".onnx":
        torch.onnx.export(program, dynamo=True, verbose=False).save(source)
    else:
        save_program(program, source)
    result = fold(source, tmp_path / f"out{ending}", if_cheaper=True)
    assert result.verdict is Status.PASS
    assert [(chain.name, chain.macs_before, chain.macs_after) for chain in result.folded] == [("full.1", 608, 288)]
    (left,) = result.declined
    assert left.name == "low.1"
    assert left.reason == (
        "its layers have 44 multiply-accumulates at each output location, and one layer would have 288"
    )
    assert result.explained()[0].startswith("full.1 (conv2d 8>4 3x3): ")
    assert result.explained()[0].endswith("are one layer, 608 -> 288 multiply-accumulates at each output location")
    assert result.explained()[1] == f"low.1 (conv2d): not folded, {left.reason}"
    again = fold(tmp_path / f"out{ending}", tmp_path / f"again{ending}", if_cheaper=True, verify=False)
    assert again.notes == ("nothing was folded: each candidate was declined",)
    assert len(fold(source, tmp_path / f"all{ending}").folded) == 2


def test_the_command_explains(tmp_path: Path) -> None:
    save_program(traced(LowRank().eval(), torch.randn(2, 4, 9, 9)), tmp_path / "in.pt2")
    command = ["fold", str(tmp_path / "in.pt2"), "-o", str(tmp_path / "out.pt2"), "--if-cheaper", "--explain"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert "are one layer, 608 -> 288 multiply-accumulates at each output location" in text
    assert "low.1 (conv2d): not folded, its layers have 44 multiply-accumulates" in text


def test_foreign_metadata_stays(tmp_path: Path) -> None:
    fold(factors(tmp_path), tmp_path / "out.onnx")
    assert ir.load(tmp_path / "out.onnx").metadata_props["author"] == "someone"


def test_external_data_is_taken_into_a_file_that_holds_it(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir(), outside.mkdir()
    source = factors(inside)
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert fold(source, outside / "out.onnx").verdict is Status.PASS
    assert [path.name for path in outside.iterdir()] == ["out.onnx"]
    onnx.checker.check_model(outside / "out.onnx")


def test_a_large_model_has_its_data_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files.write_onnx, "__kwdefaults__", {"external_from": 0})
    result = fold(factors(tmp_path, channels=64), tmp_path / "out.onnx")
    assert result.verdict is Status.PASS
    assert [path.suffix for path in result.outputs] == [".onnx", ".data"]
    assert set(result.hashes) == {"source", *(path.name for path in result.outputs)}


def test_data_of_an_earlier_file_is_left_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another copy of the earlier model may still need it."""
    monkeypatch.setattr(model_files.write_onnx, "__kwdefaults__", {"external_from": 0})
    source = factors(tmp_path, channels=64)
    first = fold(source, tmp_path / "out.onnx")
    assert first.notes == fold(source, tmp_path / "out.onnx").notes == ()
    for name, values in (model := ir.load(source)).graph.initializers.items():
        values.const_value = ir.tensor(values.const_value.numpy() * np.float32(2), name=name)
    ir.save(model, source)
    again = fold(source, tmp_path / "out.onnx")
    assert again.notes == (f"of an earlier out.onnx, and not needed by this one: {first.outputs[1].name}",)
    assert first.outputs[1].is_file()
    assert again.verdict is Status.PASS


# --- checks ---


@pytest.mark.parametrize(("ending", "edge"), [(".onnx", "export"), (".pt2", "rewrite")])
def test_a_fold_that_fails_its_check_does_not_take_its_name(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, edge: str
) -> None:
    def fold_wrongly(original: Callable[..., Any]) -> Callable[..., Any]:
        def folded(model: Any, **options: Any) -> Any:
            result = original(model, **options)
            if ending == ".onnx":
                value = result.model.graph.initializers["conv2.weight"]
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.001), name=value.name)
            else:
                result.program.state_dict["conv2.weight"].data *= 1.001
            return result

        return folded

    for module, name in ((folding, "fold_onnx"), (torch_fold, "fold_program")):
        monkeypatch.setattr(module, name, fold_wrongly(getattr(module, name)))
    out = tmp_path / f"out{ending}"
    out.write_text("old")
    result = fold(converted / f"digits{ending}", out)
    assert result.verdict is Status.FAIL
    assert result.outputs == (tmp_path / f"out.failed{ending}",)
    # The file of that name is not the one that was checked.
    assert f"out{ending}" not in {**result.hashes, **result.verification.artifacts}
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"out{ending}", f"out.failed{ending}"][::-1]
    status = {e.edge: e for e in result.verification.edges}[edge]
    assert status.status is Status.FAIL
    assert ending == ".onnx" or status.first_divergence == "conv2"


class Still(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.V, self.U = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.U(self.V(x)) * 0


def test_a_program_that_does_not_react_proves_nothing(tmp_path: Path) -> None:
    save_program(traced(Still(), torch.rand(2, 4)), tmp_path / "in.pt2")
    result = fold(tmp_path / "in.pt2", tmp_path / "out.pt2")
    assert result.verdict is Status.INCONCLUSIVE
    assert "no output reacts" in result.verification.edges[0].reason
    assert (tmp_path / "out.pt2").exists()


def test_inputs_of_the_program_that_give_nan_are_inconclusive(tmp_path: Path) -> None:
    class Root(Still):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.U(self.V(x)) + x.sum().sqrt()

    save_program(traced(Root(), -torch.ones(2, 4)), tmp_path / "in.pt2")
    result = fold(tmp_path / "in.pt2", tmp_path / "out.pt2")
    assert result.verdict is Status.INCONCLUSIVE
    assert result.verification.edges[0].reason.startswith("the reference itself is NaN")


# --- errors ---


def refuses(kind: type[SpdExportError], what: str, source: Path, out: Path, **options: Any) -> None:
    """An error of three lines, the folder as it was."""
    if out.parent.is_dir():
        out.write_text("old")
    before = sorted(out.parent.glob("*"))
    with pytest.raises(kind) as caught:
        fold(source, out, **options)
    assert caught.value.what.startswith(what)
    assert len(str(caught.value).splitlines()) == 3
    assert sorted(out.parent.glob("*")) == before
    assert not out.parent.is_dir() or out.read_text() == "old"


def test_a_missing_file(tmp_path: Path) -> None:
    refuses(SourceError, "There is no such file", tmp_path / "no.onnx", tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"garbage", "A file of unknown kind cannot be folded"),
        (b"", "The file is empty"),
        (json.dumps({"a": 1}).encode(), "A JSON file cannot be folded"),
        (b"\x08\x0a\x12\xff\xff\xff", "The file is not a valid ONNX model"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "in.onnx").write_bytes(content)
    refuses(SourceError, what, tmp_path / "in.onnx", tmp_path / "out.onnx")


def test_a_file_that_was_cut_off(tmp_path: Path, converted: Path) -> None:
    for ending, what in (
        (".onnx", "The file is not a valid ONNX model"),
        (".pt2", "The archive is cut off"),
    ):
        content = (converted / f"digits{ending}").read_bytes()
        (tmp_path / f"in{ending}").write_bytes(content[: len(content) // 2])
        refuses(SourceError, what, tmp_path / f"in{ending}", tmp_path / f"out{ending}")


def test_a_model_whose_data_file_is_missing(tmp_path: Path) -> None:
    source = factors(tmp_path)
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    refuses(SourceError, "The file weights.bin, which holds weights", source, tmp_path / "out.onnx")


def test_a_program_with_a_pickle(tmp_path: Path) -> None:
    import pickle
    import zipfile

    save_program(traced(Still(), torch.rand(2, 4)), tmp_path / "in.pt2")
    with zipfile.ZipFile(tmp_path / "in.pt2", "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/constants/planted.pt", pickle.dumps(print))
    refuses(PickleRefusedError, "", tmp_path / "in.pt2", tmp_path / "out.pt2")


def test_the_output_must_fit_the_input(tmp_path: Path) -> None:
    source = factors(tmp_path)
    refuses(UsageError, "The output 'out.pt2' does not end in .onnx", source, tmp_path / "out.pt2")


def test_the_folder_of_the_output_must_exist(tmp_path: Path) -> None:
    refuses(UsageError, "The folder of the output does not exist", factors(tmp_path), tmp_path / "no/out.onnx")


def test_providers_are_known_and_not_for_programs(tmp_path: Path) -> None:
    refuses(UsageError, "There is no provider", factors(tmp_path), tmp_path / "out.onnx", providers=["gpu"])
    save_program(traced(Still(), torch.rand(2, 4)), tmp_path / "in.pt2")
    refuses(
        UsageError, "A .pt2 program is checked in torch", tmp_path / "in.pt2", tmp_path / "out.pt2", providers=["cuda"]
    )


def test_nothing_stays_behind_when_the_check_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise SourceError("It fails.", where="here", hint="None.")

    monkeypatch.setattr(model_files.write_onnx, "__kwdefaults__", {"external_from": 0})
    monkeypatch.setattr(folding, "verify_files", fails)
    refuses(SourceError, "It fails", factors(tmp_path, channels=64), tmp_path / "out.onnx")
