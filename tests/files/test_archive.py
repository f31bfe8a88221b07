"""Archives: what real programs write is read, and what readers could understand differently is refused."""

import io
import random
import zipfile

import numpy as np
import pytest
import torch
from hostile import Zip, claiming, flipped, npz, saved

from spdexport.errors import InputError, MaskError, SourceError
from spdexport.files.archive import open_archive
from spdexport.files.limits import reading_limits
from spdexport.files.npz import write_npz
from spdexport.files.tensors import read_tensors

TENSORS = {"a.weight": torch.arange(600.0), "b": torch.ones(3, 4), "c": torch.tensor(2)}
ARRAYS = {name: value.numpy() for name, value in TENSORS.items()}


class Pipe(io.RawIOBase):
    """A file that can only be written forwards, so that sizes stand behind the bytes."""

    def __init__(self, file):
        self.file = file

    def writable(self):
        return True

    def write(self, data):
        return self.file.write(data)


def streamed(path, wide, method=zipfile.ZIP_DEFLATED):
    with path.open("wb") as file, zipfile.ZipFile(Pipe(file), "w", method) as archive:
        for name, array in ARRAYS.items():
            with archive.open(f"{name}.npy", "w", force_zip64=wide) as entry:
                np.lib.format.write_array(entry, array)


def zipped(path, method):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in ARRAYS.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{name}.npy", buffer.getvalue())
        archive.comment = b"a comment PK"


def without_checksums(path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, path)
    finally:
        torch.serialization.set_crc32_options(True)


def repacked(path):
    """A checkpoint that somebody zipped again, with packed tensors and an entry for the folder."""
    with (
        zipfile.ZipFile(io.BytesIO(saved(TENSORS))) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in source.namelist():
            archive.writestr(name, source.read(name))
        archive.writestr("archive/more/", b"")


def extended(path):
    """An archive that got a member later: its directory was written anew."""
    np.savez(path, **{name: array for name, array in ARRAYS.items() if name != "c"})
    buffer = io.BytesIO()
    np.save(buffer, ARRAYS["c"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("c.npy", buffer.getvalue())


WRITERS = {
    "torch.save": lambda p: torch.save(TENSORS, p),
    "torch.save without checksums": without_checksums,
    "zipped again": repacked,
    "savez": lambda p: np.savez(p, **ARRAYS),
    "savez_compressed": lambda p: np.savez_compressed(p, **ARRAYS),
    "write_npz": lambda p: write_npz(p, ARRAYS, {"about": "x" * 500}),
    "streamed": lambda p: streamed(p, wide=False),
    "streamed, wide": lambda p: streamed(p, wide=True),
    "streamed, stored": lambda p: streamed(p, wide=True, method=zipfile.ZIP_STORED),
    "extended": extended,
    **{f"method {method}": lambda p, m=method: zipped(p, m) for method in (0, 8, 12, 14)},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_real_programs_write_is_read(tmp_path, writer):
    path = tmp_path / "a.npz"
    WRITERS[writer](path)
    read = read_tensors(path, error=MaskError)
    assert {name: value.tolist() for name, value in read.items()} == {n: t.tolist() for n, t in TENSORS.items()}
    archive = open_archive(path)
    assert archive.has_checksums is (writer != "torch.save without checksums")
    with zipfile.ZipFile(path) as other:
        assert list(archive.names) == other.namelist()
        if archive.has_checksums:
            assert all(archive.read(name) == other.read(name) for name in archive.names)


def test_programs_and_scripts_are_read_and_rewritten(tmp_path):
    model = torch.nn.Conv2d(3, 4, 3)
    torch.export.save(torch.export.export(model, (torch.ones(2, 3, 8, 8),)), tmp_path / "m.pt2")
    torch.jit.save(torch.jit.trace(model, torch.ones(2, 3, 8, 8)), str(tmp_path / "m.ts"))
    for name, load in (("m.pt2", lambda file: torch.export.load(file).module()), ("m.ts", torch.jit.load)):
        archive = open_archive(tmp_path / name)
        copy = archive.rewritten()
        again = open_archive(tmp_path / "copy", content=copy.getvalue())
        assert [(n, again.read(n)) for n in again.names] == [(n, archive.read(n)) for n in archive.names]
        reader = torch._C.PyTorchFileReader(copy)
        assert all(reader.get_record_offset(n.partition("/")[2]) % 64 == 0 for n in archive.names)
        copy.seek(0)
        state = load(copy).state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_members_are_replaced_by_name(tmp_path):
    (tmp_path / "a").write_bytes(npz(a=np.ones(2), b=np.ones(3)))
    archive = open_archive(tmp_path / "a")
    copy = open_archive(tmp_path / "copy", content=archive.rewritten({"a.npy": b"other"}).getvalue())
    assert copy.read("a.npy") == b"other"
    assert copy.read("b.npy") == archive.read("b.npy")
    with pytest.raises(KeyError, match=r"c\.npy"):
        archive.rewritten({"c.npy": b""})


def test_a_file_that_changes_meanwhile_is_told(tmp_path):
    (tmp_path / "a").write_bytes(npz(a=np.ones(2)))
    archive = open_archive(tmp_path / "a")
    (tmp_path / "a").write_bytes(npz(a=np.zeros(20)))
    with pytest.raises(SourceError, match="The file changed while it was read"):
        archive.read("a.npy")


def _plain(name="a.npy", data=b"data"):
    archive = Zip()
    return archive, archive.member(name, data)


def _closed(**said):
    archive, entry = _plain()
    return archive.close([entry], **said)


def _header(**said):
    archive = Zip()
    return archive.close([archive.member("a.npy", b"data", **said)])


def _named(*names):
    archive = Zip()
    return archive.close([archive.member(name, b"data") for name in names])


def _gap():
    archive, entry = _plain()
    archive.bytes += b"gap"
    return archive.close([entry, archive.member("b.npy", b"more")])


def _twice():
    archive, entry = _plain()
    return archive.close([entry, ("b.npy", entry[1], entry[2])])


def _overlap():
    inner = Zip()
    inner.member("b.npy", b"inner")
    archive, entry = _plain(data=bytes(inner.bytes))
    return archive.close([entry, ("b.npy", b"inner", 30 + len("a.npy"))])


def _count(number):
    archive, entry = _plain()
    start = archive.directory([entry])
    archive.end(number, start, len(archive.bytes) - start)
    return bytes(archive.bytes)


NOT_PLAIN = {
    "cut off": (_closed()[:-3], "end is missing|cut off"),
    "bytes behind": (_closed() + b"x", "something stands behind its end"),
    "a comment with an end": (_closed(comment=b"PK\x05\x06" + bytes(18)), "directory is not where"),
    "bytes in front": (b"PK\x03\x04 run me" + _closed(), "directory is not where"),
    "a gap": (_gap(), "something else stands behind its member a"),
    "one member under two names": (_twice(), "not where|overlaps|contradicts"),
    "a member inside of another": (_overlap(), "overlaps"),
    "more members than entries": (_count(2), "fewer entries"),
    "fewer members than entries": (_count(0), "more entries"),
    "another checksum in the header": (_header(crc=7), "header of its member a.npy contradicts"),
    "another size in the header": (_header(size=5), "header of its member a.npy contradicts"),
    "another method in the header": (_header(method=8), "header of its member a.npy contradicts"),
    "other flags in the header": (_header(flags=8), "header of its member a.npy contradicts"),
    "two sizes": (_closed(size=7), "two sizes"),
    "encrypted": (_closed(flags=1), "encrypted"),
    "patched": (_closed(flags=0x20), "packed in a way that is not known"),
    "a method that is unknown": (_closed(method=99), "packed in a way that is not known"),
    "a version that is unknown": (_closed(needed=255), "packed in a way that is not known"),
    "no name": (_named(""), "a member of the name ''"),
    "a name that ends at once": (_named("a\0b"), "a member of the name"),
    "two names": (_named("a", "a"), "two members of the name a"),
    "two names but for case": (_named("x/Data/0", "x/data/0"), "two members of the name x/data/0"),
    "a name that is not UTF-8": (
        _closed(flags=0x800).replace(b"a.npy", b"\xff.npy"), r"the name b'\\xff.npy' of a member is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("fault", NOT_PLAIN)
def test_archives_that_readers_could_differ_about_are_refused(tmp_path, fault):
    content, said = NOT_PLAIN[fault]
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(MaskError, match="The archive is cut off or damaged, or not a plain one") as caught:
        open_archive(tmp_path / "a", error=MaskError)
    assert caught.match(said)


def test_arrays_may_differ_by_case_alone(tmp_path):
    (tmp_path / "a").write_bytes(npz(W=np.ones(2), w=np.zeros(2)))
    assert {n: t.tolist() for n, t in read_tensors(tmp_path / "a", error=MaskError).items()} == {
        "W": [1, 1],
        "w": [0, 0],
    }


CONTENTS = {
    "torch": saved(TENSORS),
    "legacy": saved(TENSORS, _use_new_zipfile_serialization=False),
    "npz": npz(**ARRAYS),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_cut_off_anywhere_is_an_error_about_it(tmp_path, kind):
    content = CONTENTS[kind]
    for length in sorted({*range(1, 200, 7), *range(200, len(content), 101), *range(len(content) - 30, len(content))}):
        (tmp_path / "a").write_bytes(content[:length])
        with pytest.raises(MaskError):
            read_tensors(tmp_path / "a", error=MaskError)


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_flipped_bit_changes_no_number_in_silence(tmp_path, kind):
    content, draw = CONTENTS[kind], random.Random(0)
    expected = {name: value.tolist() for name, value in TENSORS.items()}
    for at in sorted(draw.sample(range(len(content)), 250)):
        (tmp_path / "a").write_bytes(flipped(content, at))
        try:
            read = read_tensors(tmp_path / "a", error=MaskError)
        except InputError as error:
            assert str(error).count("\n") == 2  # noqa: PT017  (most flips are errors; the others changed nothing)
            continue
        # Legacy files have no checksums: of them only holds that nothing but an error about the file is raised.
        if kind != "legacy":
            assert {name: value.tolist() for name, value in read.items()} == expected


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path):
    (tmp_path / "a").write_bytes(claiming("a.npy", 3_000_000_000))
    with pytest.raises(SourceError, match=r"members of the archive are .* times as large as the file") as caught:
        open_archive(tmp_path / "a")
    times = int(caught.value.hint.rpartition("=")[2].rstrip("."))
    with reading_limits(unpacked=times):
        assert open_archive(tmp_path / "a").size("a.npy") == 3_000_000_000
    (tmp_path / "a").write_bytes(claiming("a.npy", 900_000_000))
    with pytest.raises(SourceError, match="The member of the archive is damaged"):
        open_archive(tmp_path / "a").read("a.npy")
