from __future__ import annotations

import errno
import io
import os
import shutil

import pytest

from spdexport.errors import OutputError
from spdexport.files.scratch import scratch_folder, writing_scratch
from spdexport.files.writing import Deferred, writing


@pytest.mark.parametrize(
    ("number", "what"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "larger than the system allows"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.ENAMETOOLONG, "name is too long"),
        (errno.ENOENT, "folder is gone"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_every_refusal_is_three_lines_about_the_output(number, what, tmp_path):
    with pytest.raises(OutputError, match=what) as caught, writing(tmp_path / "m.onnx"):
        raise OSError(number, os.strerror(number))
    assert caught.value.where == str(tmp_path / "m.onnx")
    assert str(caught.value).count("\n") == 2
    assert "{" not in str(caught.value)


def test_how_much_is_missing_is_told(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    message = r"takes at least \d+ MiB and \d+ MiB are free"
    with pytest.raises(OutputError, match=message) as caught, writing(tmp_path / "m.onnx", size=free + 2**40):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "free some space" in caught.value.hint


def test_what_is_no_refusal_passes():
    with pytest.raises(ValueError, match="ours"), writing("m.onnx"):
        raise ValueError("ours")


def test_an_error_is_kept_until_it_can_be_told():
    class Full(io.BytesIO):
        def write(self, data, /):
            if self.tell() + len(data) > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    full = Full()
    file = Deferred(full)
    assert [file.write(b"ab"), file.write(b"cd"), file.write(b"e")] == [2, 2, 1]
    assert full.getvalue() == b"ab"
    with pytest.raises(OSError, match="No space left"):
        file.check()


def test_a_scratch_folder_goes_and_so_do_those_of_the_dead(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = tmp_path / "spdexport-run.dead"
    dead.mkdir()
    (dead / "m.onnx").write_text("half")
    with scratch_folder() as living:
        assert not dead.exists()
        (living / "m.onnx").write_text("x")
        with scratch_folder() as other:
            assert sorted(tmp_path.iterdir()) == sorted([living, other])
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_temporary_files_names_what_to_set(tmp_path):
    with pytest.raises(OutputError) as caught, writing_scratch(tmp_path / "intended.onnx"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.hint.startswith("Set TMPDIR to another folder")


def test_a_signal_while_a_scratch_folder_is_removed_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    real, calls = shutil.rmtree, []

    def interrupted(folder, **options):
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_folder() as folder:
        (folder / "m.onnx").write_text("x")
    assert list(tmp_path.iterdir()) == []
