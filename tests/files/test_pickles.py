import contextlib
import io
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._export.verifier import SpecViolationError

from spdexport.errors import MaskError, PickleRefusedError, SourceError
from spdexport.files.archive import open_archive
from spdexport.files.pickles import check_archive_pickles, load_weights_only, weights_only_forced


class Payload:
    """Shows whether its pickle was executed: that makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def _check(path: Path) -> None:
    check_archive_pickles(open_archive(path))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


def pickled(obj, *, legacy=False) -> bytes:
    buffer = io.BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def program_bytes():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 5)
            self.constant = torch.ones(4)

        def forward(self, x):
            y = self.conv(x).mean((2, 3)) + self.constant
            return self.head(y).reshape(x.shape[0] * 5)

    batch, height = torch.export.Dim("batch"), torch.export.Dim.AUTO
    shapes = {"x": {0: batch, 2: height}}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(Model(), (torch.ones(2, 3, 9, 9),), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


def rewritten(content: bytes, path: Path, change) -> Path:
    """The archive with members changed: ``change(members)`` edits a dict of inner name to bytes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        root = names[0].partition("/")[0]
        members = {name.removeprefix(root + "/"): archive.read(name) for name in names}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def test_plain_data_loads(tmp_path):
    for legacy in (False, True):
        torch.save({"a": torch.ones(2), "n": 3}, tmp_path / "a", _use_new_zipfile_serialization=not legacy)
        assert load_weights_only(tmp_path / "a")["a"].tolist() == [1, 1]


def test_a_pickle_without_torch_is_told_so(tmp_path):
    (tmp_path / "p").write_bytes(pickle.dumps({"a": [1, 2]}, protocol=2))
    with pytest.raises(SourceError, match=r"torch\.save did not write it"):
        load_weights_only(tmp_path / "p")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_payload_is_named_and_not_executed(tmp_path, marker, legacy, wrapped):
    payload = {"a": torch.ones(2), "b": Payload(marker)} if wrapped else Payload(marker)
    (tmp_path / "a").write_bytes(pickled(payload, legacy=legacy))
    with pytest.raises(PickleRefusedError, match="mkdir") as caught:
        load_weights_only(tmp_path / "a")
    assert "--trust" in caught.value.hint
    assert caught.value.where == str(tmp_path / "a")
    assert not marker.exists()
    torch.load(tmp_path / "a", weights_only=False)
    assert marker.exists()  # the payload does work


def test_a_bare_pickle_payload_is_not_executed(tmp_path, marker):
    for protocol, asked in ((2, r"posix\.mkdir"), (4, "the pickle operation"), (5, "the pickle operation")):
        (tmp_path / "a").write_bytes(pickle.dumps(Payload(marker), protocol=protocol))
        with pytest.raises(PickleRefusedError, match=f"it asks for {asked}"):
            load_weights_only(tmp_path / "a")
    assert not marker.exists()


def test_damaged_files_are_no_refusal(tmp_path):
    content = pickled({"a": torch.ones(500)}, legacy=True)
    (tmp_path / "cut").write_bytes(content[: len(content) // 2])
    (tmp_path / "noise").write_bytes(b"\x80\x02" + b"\xff" * 50)
    for name in ("cut", "noise"):
        with pytest.raises(MaskError, match="damaged") as caught:
            load_weights_only(tmp_path / name, error=MaskError)
        assert not isinstance(caught.value, PickleRefusedError)
        assert str(caught.value).count("\n") == 2


def test_an_honest_program_passes(tmp_path, program_bytes):
    (tmp_path / "m.pt2").write_bytes(program_bytes)
    _check(tmp_path / "m.pt2")


def _member(name, content):
    return lambda members: members.__setitem__(name, content)


def _use_pickle(kind, content):
    """Turn the first tensor of weights or constants into a pickled one."""

    def change(members):
        name = f"data/{kind}/model_{kind}_config.json"
        config = json.loads(members[name])
        payload = next(iter(config["config"].values()))
        payload["use_pickle"] = True
        members[name] = json.dumps(config).encode()
        members[f"data/{kind}/{payload['path_name']}"] = content

    return change


def _planted(marker):
    bad = Payload(marker)
    return {
        "sample inputs": _member("data/sample_inputs/model.pt", pickled(((bad,), {}))),
        "sample inputs, legacy": _member("data/sample_inputs/model.pt", pickled(((bad,), {}), legacy=True)),
        "sample inputs, protocol 0": _member("data/sample_inputs/model.pt", pickle.dumps(bad, protocol=0)),
        "weight": _use_pickle("weights", pickled(bad)),
        "constant": _use_pickle("constants", pickled(bad)),
        "legacy weights": _member("data/weights/model.pt", pickled({"a": bad})),
        "legacy constants": _member("data/constants/model.pt", pickled({"a": bad})),
        "opaque": _member("data/constants/opaque_obj_0", pickle.dumps(bad)),
        "custom": _member("data/constants/custom_obj_0", b"x"),
        "extra": _member("extra/note", pickle.dumps(bad)),
        "compiled": _member("data/aotinductor/model/model.so", b"\x7fELF"),
    }


@pytest.mark.parametrize("place", list(_planted(Path())))
def test_a_payload_anywhere_in_a_program_is_refused(tmp_path, marker, program_bytes, place):
    path = rewritten(program_bytes, tmp_path / "m.pt2", _planted(marker)[place])
    with pytest.raises(PickleRefusedError, match=r"archive holds|asks for") as caught:
        _check(path)
    assert "member" in caught.value.where
    assert not marker.exists()


@pytest.mark.parametrize("place", ["sample inputs", "weight"])
def test_torch_itself_would_have_executed_it(tmp_path, marker, program_bytes, place):
    path = rewritten(program_bytes, tmp_path / "m.pt2", _planted(marker)[place])
    with weights_only_forced(), pytest.raises(Exception, match=r"\w"):
        torch.export.load(path)
    assert not marker.exists()  # the second guard alone holds, too
    # What it loads is no tensor; by the time that torch says so, the payload has run.
    with contextlib.suppress(SpecViolationError, AssertionError, TypeError):
        torch.export.load(path)
    assert marker.exists()


def test_the_older_layout_is_checked(tmp_path, marker):
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.0")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickled({"a": torch.ones(1)}))
        archive.writestr("serialized_constants.pt", pickled({"a": Payload(marker)}))
    with pytest.raises(PickleRefusedError, match="mkdir") as caught:
        _check(path)
    assert "serialized_constants.pt" in caught.value.where
    assert not marker.exists()


def test_two_members_of_one_name_are_refused(tmp_path, marker, program_bytes):
    path = rewritten(program_bytes, tmp_path / "m.pt2", dict.copy)
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("sample_inputs/model.pt"))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(name, pickled(((torch.ones(1),), {})))
    with pytest.raises(SourceError, match="two members of the name"):
        _check(path)


def test_a_damaged_member_and_a_damaged_config(tmp_path, program_bytes):
    path = rewritten(program_bytes, tmp_path / "m.pt2", _member("data/sample_inputs/model.pt", b"\x80\x02\xff\xff"))
    with pytest.raises(SourceError, match="damaged"):
        _check(path)
    path = rewritten(program_bytes, path, _member("data/weights/model_weights_config.json", b"{"))
    with pytest.raises(SourceError, match="list of the program's weights"):
        _check(path)


def test_the_guard_is_lifted_again(monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    with weights_only_forced():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_what_is_no_model_is_not_told_to_be_trusted(tmp_path: Path) -> None:
    torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "masks.pt")
    for error, said in ((SourceError, True), (MaskError, False)):
        with pytest.raises(PickleRefusedError) as caught:
            load_weights_only(tmp_path / "masks.pt", error=error)
        assert ("--trust" in caught.value.hint) is said
