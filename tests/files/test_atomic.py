from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from spdexport.errors import OutputError, UsageError
from spdexport.files.atomic import RejectedError, named_beside, pending, replacing
from spdexport.files.unfinished import unfinished_name

UNNAMED = hasattr(os, "O_TMPFILE")


@pytest.fixture(params=["without a name", "with a name"])
def way(request, monkeypatch, tmp_path):
    """Both ways of writing: the second is that of systems without unnamed files."""
    if request.param == "with a name":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    return request.param


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("way")
def test_success_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "out.onnx"
    target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("way")
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
    assert names(tmp_path) == (["out.onnx"] if existed else [])
    assert not existed or target.read_text() == "old"


@pytest.mark.skipif(not UNNAMED, reason="this system has no files without a name")
@pytest.mark.parametrize("existed", [True, False])
def test_what_is_being_written_has_no_name(tmp_path, existed):
    target = tmp_path / "out.onnx"
    if existed:
        target.write_text("old")
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert names(tmp_path) == (["out.onnx"] if existed else [])
        # Other processes read it all the same, as those do that measure.
        command = [sys.executable, "-c", f"print(open({str(temporary)!r}).read())"]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "new\n"
    assert target.read_text() == "new"


@pytest.mark.usefixtures("way")
def test_permissions_are_those_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.usefixtures("way")
def test_two_at_once_are_each_whole_and_the_last_one_wins(tmp_path):
    target = tmp_path / "a"
    with replacing(target) as first:
        first.write_text("first")
        with replacing(target) as second:
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert names(tmp_path) == ["a"]


def test_a_file_that_can_get_no_name_is_copied(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


@pytest.mark.usefixtures("way")
def test_another_working_folder_in_between(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with replacing("a") as temporary:
        temporary.write_text("new")
        monkeypatch.chdir("other")
    assert names(tmp_path) == ["a", "other"]


@pytest.mark.usefixtures("way")
def test_set_aside(tmp_path):
    (tmp_path / "m.onnx").write_text("old")
    with contextlib.suppress(RejectedError), pending(tmp_path / "m.onnx") as output:
        output.path.write_text("bad")
        output.set_aside()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"m.onnx": "old", "m.failed.onnx": "bad"}


@pytest.mark.usefixtures("way")
def test_a_file_beside_another(tmp_path):
    with named_beside(tmp_path / "m.onnx") as file:
        assert (file.parent, file.suffix) == (tmp_path, ".onnx")
        assert names(tmp_path) == [file.name]
    assert names(tmp_path) == []


# --- what cannot be written ---


def test_missing_folder_and_folder_as_output(tmp_path):
    with pytest.raises(UsageError, match="folder of the output does not exist") as caught, replacing(tmp_path / "x/y"):
        pass
    assert str(caught.value).count("\n") == 2
    with pytest.raises(UsageError, match="existing folder"), replacing(tmp_path):
        pass


def test_a_device_is_not_replaced():
    with pytest.raises(UsageError, match="a device or a pipe"), replacing(os.devnull):
        pass
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    # Permissions do not stop root, so the refusal is simulated.
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match="cannot be written: permission denied") as caught, replacing(tmp_path / "a"):
        pass
    assert caught.value.exit_status == 74
    assert str(caught.value).count("\n") == 2


@contextlib.contextmanager
def files_up_to(size):
    """Let no file be longer: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("way")
def test_no_room(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with (
        pytest.raises(OutputError, match="larger than the system allows") as caught,
        replacing(target) as temporary,
        files_up_to(1000),
    ):
        temporary.write_bytes(bytes(2000))
    assert caught.value.where == str(target)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_reading_another_file_is_no_fault_of_the_output(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "a"):
        (tmp_path / "missing").read_text()


@pytest.mark.skipif(not UNNAMED, reason="a folder with a file in it does not go")
def test_a_folder_that_goes_meanwhile(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OutputError, match="its folder is gone"), replacing(folder / "a") as temporary:
        temporary.write_text("new")
        folder.rmdir()


@pytest.mark.usefixtures("way")
def test_names_of_any_length_that_the_system_knows(tmp_path):
    longest = "\N{CJK UNIFIED IDEOGRAPH-9577}" * 83 + ".onnx"
    for _ in range(2):
        with replacing(tmp_path / longest) as temporary:
            temporary.write_text("x")
    assert names(tmp_path) == [longest]
    with pytest.raises(OutputError, match="the name is too long"), replacing(tmp_path / f"{longest}xx"):
        pass


# --- what killed runs leave ---

KILLED = """
    import os, signal, sys
    if sys.argv[2] == "named":
        del os.O_TMPFILE
    from spdexport.files.atomic import pending
    with pending(sys.argv[1]) as output:
        output.path.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["named", "unnamed"][: 1 + UNNAMED])
def test_what_a_killed_run_left_goes_with_the_next(tmp_path, kind):
    target = tmp_path / "out.onnx"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), target, kind], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == (2 if kind == "named" else 1)
    assert target.read_text() == "old"
    with replacing(tmp_path / "another.json") as temporary:
        temporary.write_text("{}")
    assert names(tmp_path) == ["another.json", "out.onnx"]


def test_what_a_living_run_writes_is_left_to_it(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with replacing(tmp_path / "a") as living:
        living.write_text("a")
        with replacing(tmp_path / "b") as temporary:
            temporary.write_text("b")
        assert living.read_text() == "a"
    assert names(tmp_path) == ["a", "b"]


def test_files_of_the_user_are_not_taken_for_unfinished_ones(tmp_path):
    kept = [".out.onnx", ".out.0123abcd.onnx", "out.0123abcd.spdexport.onnx", ".0123abcd.spdexport"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    leftover = unfinished_name(tmp_path / "out.onnx")
    leftover.write_text("half")
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("a")
    assert names(tmp_path) == sorted([*kept, "a"])
