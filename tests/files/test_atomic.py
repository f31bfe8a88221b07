import os
import stat

import pytest

from spdexport.errors import UsageError
from spdexport.files.atomic import replacing


def test_success_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "out.onnx"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("existed", [True, False])
def test_failure_leaves_the_old_file_or_none(tmp_path, error, existed):
    target = tmp_path / "out.onnx"
    if existed:
        target.write_text("old")

    def write():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert [p.name for p in tmp_path.iterdir()] == (["out.onnx"] if existed else [])
    assert not existed or target.read_text() == "old"


def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_missing_folder_and_folder_as_output(tmp_path):
    with pytest.raises(UsageError, match="folder of the output does not exist") as caught, replacing(tmp_path / "x/y"):
        pass
    assert str(caught.value).count("\n") == 2
    with pytest.raises(UsageError, match="existing folder"), replacing(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    # Permissions do not stop root, so the refusal is simulated.
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(UsageError, match="cannot be written: Permission denied"), replacing(tmp_path / "a"):
        pass
