"""Every hostile file at every place that takes a file, and what must hold there: nothing runs, nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from xml.etree import ElementTree as ET

from fuzz_case import Outcome, contents, contents_of, file_faults, run_command, said_faults
from fuzz_kinds import ATLAS, LAB, MAKE, OUT, QUICK, Kind
from payload import Hostile
from payload_onnx import CLAIMS, INJECTIONS, LARGE, OUTSIDE, WORK
from payload_pickles import PICKLES, PROGRAMS
from payload_places import CONFIGURATIONS, SPECIAL
from payload_places import TEXTS as SHOWN
from payload_programs import SCRIPTS
from payload_programs import TEXTS as PROGRAM_TEXTS
from payload_sizes import SIZES

HOSTILE = (
    *PICKLES, *PROGRAMS, *PROGRAM_TEXTS, *SCRIPTS, *OUTSIDE, *CLAIMS, *WORK, *LARGE, *INJECTIONS, *SIZES, *SPECIAL,
    *CONFIGURATIONS, *SHOWN,
)  # fmt: skip
"""All hostile files."""

BESIDE = ("model.py", "external.bin", "checkpoint.pkl")
"""What lies beside every hostile file, that it may reach for."""

FILE = "{file}"
"""What stands for the hostile file in a command."""

REPORT = ("--report", f"{OUT}/r.json")
PAGES = (*REPORT, "--html", f"{OUT}/r.html", "--junit", f"{OUT}/r.xml")
_MASKS = ("-o", f"{OUT}/masks.safetensors", *REPORT)
_GIVEN = ("verify", "masked.onnx", "--against", "net.onnx", "--components", "components.safetensors", *PAGES)

PLACES = {
    "convert": ("convert", FILE, *QUICK, *PAGES),
    "convert, with a factory": ("convert", FILE, *MAKE, *QUICK, *PAGES),
    "convert, with inputs": ("convert", FILE, "--inputs", "inputs.npz", *QUICK, *PAGES),
    "convert --gates": ("convert", FILE, *MAKE, "--gates", *QUICK, *PAGES),
    "inspect": ("inspect", FILE, *REPORT),
    "inspect, with a factory": ("inspect", FILE, *MAKE, *REPORT),
    "verify": ("verify", FILE, *PAGES),
    "verify --against": ("verify", "net.onnx", "--against", FILE, *PAGES),
    "verify --against, with a factory": ("verify", "net.onnx", "--against", FILE, *MAKE, *PAGES),
    "fold to .onnx": ("fold", FILE, "--no-verify", "-o", f"{OUT}/m.onnx", *PAGES),
    "fold to .pt2": ("fold", FILE, "--no-verify", "-o", f"{OUT}/m.pt2", *PAGES),
    "bench": ("bench", FILE, "--rounds", "2", *REPORT),
    "bench --against": ("bench", "net.onnx", "--against", FILE, "--rounds", "2", *REPORT),
    "ablate": ("ablate", FILE, "--data", "data.npy", *REPORT, "--html", f"{OUT}/r.html"),
    "lab": ("lab", FILE, "--data", "data.npy", *LAB, *REPORT),
    "lab --data": ("lab", "runtime.onnx", "--data", FILE, *LAB, *REPORT),
    "lab --dense": ("lab", "runtime.onnx", "--data", "data.npy", "--dense", FILE, *LAB, *REPORT),
    "lab --classes": ("lab", "runtime.onnx", "--data", "data.npy", "--classes", FILE, *LAB, *REPORT),
    "lab --runtime": ("lab", "runtime.onnx", "--data", "data.npy", "--runtime", FILE, "-o", f"{OUT}/lab", *REPORT),
    "masks": ("masks", FILE, *MAKE, "--data", "data.npy", *_MASKS),
    "atlas": ("atlas", FILE, "--data", "data.npy", *ATLAS, *REPORT),
    "atlas, with a factory": ("atlas", FILE, *MAKE, "--data", "data.npy", *ATLAS, *REPORT),
    "atlas --components": ("atlas", "net.onnx", "--components", FILE, "--data", "data.npy", *ATLAS, *REPORT),
    "atlas --data": ("atlas", "runtime.onnx", "--data", FILE, *ATLAS, *REPORT),
    "atlas --labels": ("atlas", "runtime.onnx", "--data", "data.npy", "--labels", FILE, *ATLAS, *REPORT),
    "--components": ("convert", "net.onnx", "--components", FILE, *QUICK),
    "inspect --components": ("inspect", "net.onnx", "--components", FILE, *REPORT),
    "masks --components": ("masks", "state.pt", *MAKE, "--components", FILE, "--data", "data.npy", *_MASKS),
    "--masks": ("convert", "net.onnx", "--components", "components.safetensors", "--masks", FILE, *QUICK),
    "verify --masks": (*_GIVEN, "--masks", FILE),
    "--plan": ("convert", "net.onnx", "--plan", FILE, *QUICK),
    "convert --inputs": ("convert", "state.pt", *MAKE, "--inputs", FILE, *QUICK),
    "verify --inputs": ("verify", "net.onnx", "--inputs", FILE, *PAGES),
    "bench --inputs": ("bench", "net.onnx", "--inputs", FILE, "--rounds", "2", *REPORT),
    "masks --data": ("masks", "run", *MAKE, "--data", FILE, *_MASKS),
    "ablate --data": ("ablate", "runtime.onnx", "--data", FILE, *REPORT, "--html", f"{OUT}/r.html"),
    "--edit": ("convert", "net.onnx", "--components", "components.safetensors", "--edit", FILE, *QUICK),
    "masks --harvest": ("masks", "run", "--harvest", FILE, *_MASKS),
    "masks --names": ("masks", "run", "--names", FILE, *_MASKS),
    "masks --labels": ("masks", "run", "--labels", FILE, "--label", "*", *_MASKS),
    "ablate --sets": ("ablate", "runtime.onnx", "--data", "data.npy", "--sets", FILE, *REPORT),
    "ablate --baseline": ("ablate", "runtime.onnx", "--data", "data.npy", "--baseline", FILE, *REPORT),
    "verify, on GitHub": ("verify", FILE, *PAGES),
    "inspect, on GitHub": ("inspect", FILE, *MAKE),
    "--masks, on GitHub": ("convert", "net.onnx", "--masks", FILE, *QUICK),
}
"""Every place that takes a file, by its name."""

GITHUB = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": f"{OUT}/r.md"}
"""The variables of a job of GitHub Actions."""


@dataclass(frozen=True, slots=True)
class HostileJob:
    """A hostile file at a place."""

    hostile: Hostile
    place: str

    @property
    def kind(self) -> Kind:
        """The command, as the judge of damaged files wants it."""
        command = tuple(word.replace(FILE, self.hostile.file) for word in PLACES[self.place])
        return Kind(name=self.hostile.name, damaged=self.hostile.file, needs=(), command=command, share=1.0)

    def run(self, material: Path) -> Outcome:
        """Put the file beside the valid ones, run the command, and judge."""
        with tempfile.TemporaryDirectory(prefix="hostile-", dir=material.parent) as name:
            folder = Path(name)
            lay_out(self.hostile, self.kind.command, folder, material)
            before = contents(folder)
            on_github = self.place.endswith("on GitHub")
            run = run_command(self.kind.command, folder, **(GITHUB if on_github else {}))
            faults = [*run.faults, *said_faults(run), *_files(self.kind, folder, before, run.status)]
            faults += [*leaked(folder, run.stdout + run.stderr), *(obeyed(run.stdout) if on_github else ())]
            if run.status in (0, 1, 3) and self.hostile.refused:
                faults.append("was not refused")
        return replace(
            self.ended("", run.seconds), status=run.status, mib=run.mib, faults=tuple(dict.fromkeys(faults)),
            said=(run.stdout + run.stderr)[-1500:],
        )  # fmt: skip

    def ended(self, fault: str, seconds: float) -> Outcome:
        """Return the outcome of a case that the worker did not survive."""
        return Outcome(kind=self.hostile.name, place=self.place, status=None, seconds=seconds, faults=(fault,))


def lay_out(hostile: Hostile, command: tuple[str, ...], folder: Path, material: Path) -> None:
    """Put a hostile file and what a command reads beside it into a folder."""
    for word in (*command, *BESIDE):
        if (source := material / word).exists():
            _copy(source, folder / word)
    _copy(_store(material) / _file_name(hostile), folder)
    (folder / OUT).mkdir()


def make_all(chosen: Sequence[Hostile], material: Path) -> None:
    """Make hostile files, each in a folder of what differs from the valid ones."""
    known = contents(material)
    for hostile in chosen:
        with tempfile.TemporaryDirectory(dir=material.parent) as name:
            made = Path(name)
            _copy(material, made)
            try:
                hostile.make(made)
            except Exception as error:
                raise RuntimeError(f"{hostile.name} cannot be made") from error
            for path in sorted(path for path in made.rglob("*") if path.is_symlink() or not path.is_dir()):
                inner = path.relative_to(made)
                if contents_of(path) != known.get(inner.as_posix()):
                    _copy(path, _store(material) / _file_name(hostile) / inner)
            assert (_store(material) / _file_name(hostile)).exists(), f"{hostile.name} makes nothing"


def _copy(source: Path, target: Path) -> None:
    """Copy a file or folder as it is: links as links, FIFOs and sockets as such."""
    mode = source.lstat().st_mode
    target.parent.mkdir(parents=True, exist_ok=True)
    if not stat.S_ISDIR(mode):
        target.unlink(missing_ok=True)
    if stat.S_ISLNK(mode):
        target.symlink_to(os.readlink(source))  # noqa: PTH115  (a Path would tidy it)
    elif stat.S_ISDIR(mode):
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            _copy(path, target / path.name)
    elif stat.S_ISREG(mode):
        shutil.copyfile(source, target)
    else:
        os.mknod(target, stat.S_IFMT(mode) | 0o600)


def _file_name(hostile: Hostile) -> str:
    return "".join(c if c.isalnum() else "-" for c in hostile.name)


def _store(material: Path) -> Path:
    return material.with_name("hostile")


def _files(kind: Kind, folder: Path, before: dict[str, str], status: int | None) -> Iterator[str]:
    """Yield what is wrong with the files; reports may be there however the run ended, and tell of that end."""
    models = replace(kind, command=tuple(word for word in kind.command if not word.startswith(f"{OUT}/r.")))
    for fault in file_faults(models, folder, {**before, **dict.fromkeys(models.outputs, "")}, status):
        is_report = fault.startswith(f"left behind: {OUT}/r.")
        is_none_before = fault.endswith(" is gone") and fault.removesuffix(" is gone") in models.outputs
        if not (is_report or is_none_before):
            yield fault


def obeyed(said: str) -> Iterator[str]:
    """Yield the lines that the runner of GitHub Actions would take for commands and that are not our own."""
    fence = ""
    for line in said.splitlines():
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("::stop-commands::"):
            fence = f"::{line.removeprefix('::stop-commands::')}::"
        elif line.startswith("::") and " title=spdexport" not in line:
            yield f"a command to the runner: {line[:60]}"


def leaked(folder: Path, said: str) -> list[str]:
    """Return what of another file, or of a name's markup, came into what was written and said."""
    faults: list[str] = []
    texts = {"the terminal": said}
    for path in (folder / OUT).rglob("*"):
        if path.is_file():
            texts[path.relative_to(folder / OUT).as_posix()] = path.read_bytes().decode("utf-8", "replace")
    for name, text in texts.items():
        if "root:x:0:0" in text:
            faults.append(f"another file's content in {name}")
    page = "".join(texts.get(name, "") for name in ("r.html", "a.html", "lab/index.html"))
    cases = texts.get("r.xml", "")
    if "<script>alert" in page:
        faults.append("markup in the page")
    if any(ord(c) < 0x20 and c not in "\n\r\t" for c in page + cases):
        faults.append("control characters in a report")
    try:
        if cases:
            ET.fromstring(cases)
        if "r.json" in texts:
            json.loads(texts["r.json"])
    except (ET.ParseError, ValueError) as error:
        faults.append(f"a report that cannot be read: {error}")
    return faults


FEW = {
    ".pt": ("inspect, with a factory", "--masks"),
    ".pt2": ("inspect", "fold to .pt2"),
    ".ts": ("inspect", "verify --against"),
    ".onnx": ("verify", "inspect"),
    ".npz": ("verify --inputs", "ablate --data", "--components"),
    ".npy": ("verify --inputs", "ablate --data"),
    ".safetensors": ("--components", "ablate --baseline"),
    ".json": ("--masks", "--plan", "ablate --sets", "--edit", "masks --names"),
    "run": ("inspect, with a factory", "masks"),
    "data": ("ablate --data",),
    "hostile": ("inspect", "verify", "--masks", "ablate --data"),
}
"""The places that read a file as what it is, by its ending or name."""


def jobs(chosen: Sequence[Hostile], *, few: bool = False) -> list[HostileJob]:
    """Return every hostile file at every place; with ``few`` at one that reads it as what it is, each in its turn."""
    if not few:
        return [HostileJob(hostile, place) for hostile in chosen for place in PLACES]
    turns = {ending: cycle(places) for ending, places in FEW.items()}
    return [HostileJob(hostile, next(turns[Path(hostile.file).suffix or hostile.file])) for hostile in chosen]
