"""Folders written whole or not at all, and nobody else's files lost."""

import json
import os
from pathlib import Path

import pytest

from spdexport.errors import OutputError, UsageError
from spdexport.files.folders import replacing_folder


def write(path, files, **options):
    with replacing_folder(path, manifest="list.json", **options) as new:
        for name, text in files.items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(text)
        (new / "list.json").write_text(json.dumps({"files": list(files)}))


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def ours(tmp_path):
    write(tmp_path / "lab", {"a": "old", "deep/b": "old"})
    return tmp_path / "lab"


def test_a_new_folder_and_one_of_ours_are_written_whole(tmp_path, ours):
    assert content(ours)["deep/b"] == "old"
    write(ours, {"a": "new"})
    assert content(ours) == {"a": "new", "list.json": '{"files": ["a"]}'}
    assert list(tmp_path.iterdir()) == [ours]
    assert ours.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_one(tmp_path, ours, error):
    before = content(ours)
    with pytest.raises(error), replacing_folder(ours, manifest="list.json") as new:
        (new / "a").write_text("half")
        raise error
    assert content(ours) == before
    assert list(tmp_path.iterdir()) == [ours]


def test_a_renaming_that_fails_puts_the_old_one_back(tmp_path, ours, monkeypatch):
    before, rename = content(ours), Path.rename

    def failing(path, target):
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="disk is full"):
        write(ours, {"a": "new"})
    monkeypatch.undo()
    assert content(ours) == before
    assert list(tmp_path.iterdir()) == [ours]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "lab").mkdir()
    write(tmp_path / "lab", {"a": "new"})
    assert "a" in content(tmp_path / "lab")


def test_a_folder_by_a_link_is_the_one_that_it_leads_to(tmp_path, ours):
    (tmp_path / "link").symlink_to(ours)
    write(tmp_path / "link", {"a": "new"})
    assert (tmp_path / "link").is_symlink()
    assert content(ours)["a"] == "new"


@pytest.mark.parametrize("name", ["notes.txt", "deep/notes.txt"])
def test_a_folder_with_a_file_of_somebody_else_stays(ours, name):
    (ours / name).write_text("mine")
    before = content(ours)
    with pytest.raises(UsageError, match=name) as caught:
        write(ours, {"a": "new"})
    assert caught.value.where == str(ours)
    assert content(ours) == before


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"files": 3}', "[" * 100_000])
def test_a_folder_that_is_not_ours_stays(tmp_path, manifest):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a").write_text("mine")
    if manifest is not None:
        (folder / "list.json").write_text(manifest)
    with pytest.raises(UsageError, match="did not write there: a"):
        write(folder, {"a": "new"})
    assert (folder / "a").read_text() == "mine"


def test_what_comes_into_it_meanwhile_is_seen(ours):
    with pytest.raises(UsageError, match=r"notes\.txt"), replacing_folder(ours, manifest="list.json"):
        (ours / "notes.txt").write_text("mine")
    assert (ours / "notes.txt").read_text() == "mine"


def test_files_that_are_read_and_the_working_directory_are_not_replaced(ours, monkeypatch):
    with pytest.raises(UsageError, match="which is read"):
        write(ours, {"a": "new"}, reads=[ours / "deep" / "b"])
    monkeypatch.chdir(ours / "deep")
    with pytest.raises(UsageError, match="working directory"):
        write(ours, {"a": "new"})
    assert content(ours)["a"] == "old"


def test_a_file_of_that_name_and_a_folder_that_is_missing(tmp_path):
    (tmp_path / "lab").write_text("mine")
    with pytest.raises(UsageError, match="a file has its name"):
        write(tmp_path / "lab", {"a": "new"})
    with pytest.raises(UsageError, match="does not exist") as caught:
        write(tmp_path / "none" / "lab", {"a": "new"})
    assert "mkdir -p" in caught.value.hint
    assert (tmp_path / "lab").read_text() == "mine"
