"""onnxruntime-web, found and held against what is known of it."""

import gzip
import io
import json
import os
import tarfile

import lab_files
import pytest

from spdexport.errors import InputError, RuntimeMissingError
from spdexport.laboratory import runtime
from spdexport.laboratory.runtime import FILES, GET, KNOWN, VERSION, find_runtime


def packed(folder, path, names=("package.json", *(f"dist/{name}" for name in FILES)), **extra):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            archive.add(folder / name, f"package/{name}")
        for name, content in extra.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here" / "below"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_a_folder_and_its_archive_are_one(tmp_path):
    folder = lab_files.package(tmp_path / "package")
    unpacked = find_runtime(folder)
    archive = find_runtime(packed(folder, tmp_path / "x.tgz"))
    assert unpacked.files == archive.files == {name: f"// {name}".encode() for name in FILES}
    assert (unpacked.version, unpacked.is_known) == (archive.version, archive.is_known) == ("0.0.1", False)


def test_it_is_found_in_node_modules_above_and_else_as_npm_packs_it(here):
    packed(lab_files.package(here / "other", version="0.0.2"), here / f"onnxruntime-web-{VERSION}.tgz")
    assert find_runtime(None).version == "0.0.2"
    lab_files.package(here.parent / "node_modules" / "onnxruntime-web")
    assert find_runtime(None).version == "0.0.1"


def test_where_there_is_none_the_command_is_told(here):
    with pytest.raises(RuntimeMissingError) as caught:
        find_runtime(None)
    assert f"npm pack onnxruntime-web@{VERSION}" == GET
    assert GET in caught.value.hint
    assert str(here) in caught.value.where
    with pytest.raises(RuntimeMissingError, match="none at this path") as caught:
        find_runtime(here / "nothing")
    assert caught.value.where == f"--runtime {here / 'nothing'}"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are those of Unix")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.tgz")
    with pytest.raises(InputError, match="is a pipe"):
        find_runtime(tmp_path / "x.tgz")


@pytest.mark.parametrize("missing", ["package.json", *(f"dist/{name}" for name in FILES)])
def test_a_package_without_one_of_its_files(tmp_path, missing):
    folder = lab_files.package(tmp_path / "package")
    (folder / missing).unlink()
    with pytest.raises(InputError, match="not the npm package") as caught:
        find_runtime(folder)
    assert missing in caught.value.what
    names = [name for name in ("package.json", *(f"dist/{n}" for n in FILES)) if name != missing]
    with pytest.raises(InputError, match="not the npm package") as caught:
        find_runtime(packed(folder, tmp_path / "x.tgz", names))
    assert missing in caught.value.what


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"name": "onnxruntime-node", "version": "1.30.0"}', '{"name": "onnxruntime-web"}',
     '{"name": "onnxruntime-web", "version": "<b>1</b>"}'],
)  # fmt: skip
def test_another_package(tmp_path, content):
    folder = lab_files.package(tmp_path / "package")
    (folder / "package.json").write_text(content)
    with pytest.raises(InputError) as caught:
        find_runtime(folder)
    assert str(folder) in caught.value.where
    assert GET in caught.value.hint


def test_files_of_a_known_version_are_those_that_are_known(tmp_path):
    folder = lab_files.package(tmp_path / "package", version=VERSION)
    with pytest.raises(InputError, match=f"{FILES[0]} is not the file that onnxruntime-web {VERSION} has"):
        find_runtime(folder)


def test_the_known_hashes_are_of_the_needed_files():
    assert VERSION in KNOWN
    for hashes in KNOWN.values():
        assert set(hashes) == set(FILES)


@pytest.mark.parametrize(
    "content",
    [b"no archive", gzip.compress(b"no archive"), gzip.compress(b"x" * 2000)[:-9]],
    ids=["text", "packed text", "cut off"],
)
def test_a_damaged_archive(tmp_path, content):
    path = tmp_path / "x.tgz"
    path.write_bytes(content)
    with pytest.raises(InputError):
        find_runtime(path)


def test_what_an_archive_unpacks_to_is_bounded(tmp_path, monkeypatch):
    folder = lab_files.package(tmp_path / "package")
    monkeypatch.setattr(runtime, "_UNPACKED", 1 << 16)
    bomb = packed(folder, tmp_path / "x.tgz", [], large=b"\0" * (1 << 18), other=b"1")
    with pytest.raises(InputError, match="unpacks to more"):
        find_runtime(bomb)
    monkeypatch.setattr(runtime, "_LARGEST", 4)
    with pytest.raises(InputError, match="larger than any of it is"):
        find_runtime(folder)


def test_links_in_an_archive_lead_nowhere(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = tmp_path / "x.tgz"
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("package/package.json")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(entry)
    with pytest.raises(InputError, match=r"it has no package/package\.json"):
        find_runtime(path)


@pytest.mark.skipif(lab_files.RUNTIME is None, reason=lab_files.NO_RUNTIME)
def test_the_real_package_is_known():
    found = find_runtime(lab_files.RUNTIME)
    assert found.is_known
    assert found.version == json.loads((lab_files.RUNTIME / "package.json").read_text())["version"]
