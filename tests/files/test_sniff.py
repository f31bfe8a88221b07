import io
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper

from spdexport.errors import MaskError, SourceError
from spdexport.files.sniff import FileKind, sniff


def _program(path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(3, 2),))
    with path.open("wb") as file:
        torch.export.save(program, file)


def _old_program(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")


def _onnx(path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path.write_bytes(helper.make_model(graph).SerializeToString())


def _npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.ones(2))


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(2))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


WRITERS = {
    FileKind.PT2: [_program, _old_program],
    FileKind.TORCHSCRIPT: [lambda p: torch.jit.trace(torch.nn.ReLU(), torch.ones(1)).save(str(p))],
    FileKind.TORCH_ZIP: [lambda p: torch.save({"a": torch.ones(2)}, p)],
    FileKind.PICKLE: [lambda p: torch.save({"a": torch.ones(2)}, p, _use_new_zipfile_serialization=False)],
    FileKind.SAFETENSORS: [lambda p: safetensors.torch.save_file({"a": torch.ones(2)}, p)],
    FileKind.NPZ: [_npz],
    FileKind.NPY: [_npy],
    FileKind.ONNX: [_onnx],
    FileKind.JSON: [lambda p: p.write_text(json.dumps({"a": [1, 2]})), lambda p: p.write_text(' \n["a"]')],
    FileKind.DIRECTORY: [lambda p: p.mkdir()],
    FileKind.UNKNOWN: [_zip, lambda p: p.write_text("hello"), lambda p: p.write_bytes(b"\x80")],
}


@pytest.mark.parametrize(("kind", "writer"), [(kind, writer) for kind, ws in WRITERS.items() for writer in ws])
def test_content_tells_the_kind_whatever_the_ending(tmp_path, kind, writer):
    path = tmp_path / "file.txt"
    writer(path)
    assert sniff(path) is kind


def test_every_kind_has_a_writer_above():
    assert set(WRITERS) == set(FileKind)


def test_onnx_helper_wrote_a_real_model(tmp_path):
    _onnx(tmp_path / "m")
    onnx.checker.check_model(onnx.load(io.BytesIO((tmp_path / "m").read_bytes())))


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(SourceError, match="There is no such file"):
        sniff(tmp_path / "none.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(MaskError, match="The file is empty"):
        sniff(tmp_path / "empty.pt", error=MaskError)


def test_a_zip_that_was_cut_off_is_an_error(tmp_path):
    path = tmp_path / "cut.pt"
    torch.save({"a": torch.ones(200)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="cut off or damaged") as caught:
        sniff(path)
    assert caught.value.where == str(path)
