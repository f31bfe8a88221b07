"""One case: a damaged file beside valid ones in a folder of its own, one command on it, and what must hold then."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import safetensors
import torch
import yaml
from cli_command import without_steps
from fuzz_archives import MARKER
from fuzz_kinds import OUT, Kind, Step, damaged, plan

from spdexport.cli import main
from spdexport.latency import CACHE_VARIABLE

STATUSES = frozenset((0, 1, 2, 3, 4, 5, 74))
"""The exit statuses that a file may lead to."""

BEFORE = b"what was there before"
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a case.

    Attributes:
        kind: The kind's name.
        seed: Of the case.
        steps: The changes of the file.
        place: Which command read it, for a hostile file; a kind has but one.
        status: The exit status; None where the process did not live to return one.
        seconds: From the beginning of the command to its end.
        mib: How much memory it took at most beside what the process had.
        accepted: For status 0, what the file still is to an independent reader; empty for others.
        faults: What must not be; empty where all is well.
        said: Both outputs of the command, the end of them.
    """

    kind: str
    seed: int = 0
    steps: tuple[Step, ...] = ()
    place: str = ""
    status: int | None
    seconds: float = 0.0
    mib: float = 0.0
    accepted: str = ""
    faults: tuple[str, ...] = ()
    said: str = ""

    @property
    def signature(self) -> str:
        """What tells one fault from another: what it is, and for our own faults the exception and the place."""
        lines = self.said.splitlines()
        own = next((line for line in lines if "fault of spdexport itself" in line), "")
        what = own.partition("itself: ")[2].partition(":")[0]
        where = next((line.removeprefix("  where: ") for line in lines if own and line.startswith("  where: ")), "")
        return "; ".join(part for part in (*self.faults[:1], what, where) if part)


@dataclass(slots=True)
class Run:
    """A command that ran: its exit status, its outputs, and what it cost."""

    status: int | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    mib: float = 0.0
    faults: list[str] = field(default_factory=list)


def run_case(kind: Kind, seed: int, material: Path, steps: tuple[Step, ...] | None = None) -> Outcome:
    """Damage a file, run the kind's command on it, and judge.

    Args:
        kind: The kind.
        seed: Of the case.
        material: The folder of the valid files.
        steps: Other changes than those that the seed says.
    """
    steps = plan(kind, seed) if steps is None else steps
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=material.parent) as name:
        folder = Path(name)
        lay_out(kind, folder, material)
        file = folder / kind.damaged
        original = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's, of names that are there twice
            content = damaged(original, steps, splice_sources(material))
        file.write_bytes(content)
        if is_cache(kind):  # whose files are called by what they hold
            min(file.parent.iterdir()).write_bytes(content)
        before = contents(folder)
        run = run_command(kind.command, folder)
        faults = [*run.faults, *said_faults(run), *file_faults(kind, folder, before, run.status)]
        accepted = ""
        if run.status == 0:
            accepted = "as it was" if content == original else validity(kind, file)
            if accepted == "invalid":
                faults.append("a damaged file was accepted")
    return Outcome(
        kind=kind.name, seed=seed, steps=steps, status=run.status, seconds=run.seconds, mib=run.mib, accepted=accepted,
        faults=tuple(faults), said=(run.stdout + run.stderr)[-1500:],
    )  # fmt: skip


def is_cache(kind: Kind) -> bool:
    """Return whether it is a kept time that is damaged: it is measured again, and written."""
    return kind.damaged.startswith("cache/")


def splice_sources(material: Path) -> tuple[Path, ...]:
    """Return the valid files that a splice takes its second half from."""
    return tuple(sorted(path for path in material.iterdir() if path.is_file()))


def lay_out(kind: Kind, folder: Path, material: Path) -> None:
    """Put the files of a kind into a folder, with older outputs where the command writes."""
    for name in (kind.damaged, *kind.needs):
        source, target = material / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
    (folder / OUT).mkdir()
    for name in kind.outputs:
        (folder / name).write_bytes(BEFORE)


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file in a folder, by its path; of what is no regular file, what it is."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            found[path.relative_to(folder).as_posix()] = contents_of(path)
    return found


def contents_of(path: Path) -> str:
    """Return the hash of a file, or what it is."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"  # noqa: PTH115  (a Path would tidy it)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "special"


@contextlib.contextmanager
def caught(run: Run) -> Iterator[None]:
    """Catch both outputs of this process, those of native code included."""
    kept = os.dup(1), os.dup(2)
    streams = sys.stdout, sys.stderr
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding="utf-8", errors="backslashreplace")
            for number in (1, 2)
        )
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = streams
            for number, before in zip((1, 2), kept, strict=True):
                os.dup2(before, number)
                os.close(before)
            for file, name in ((out, "stdout"), (err, "stderr")):
                file.seek(0)
                setattr(run, name, file.read(MIB).decode("utf-8", "replace"))


@contextlib.contextmanager
def inside(folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Let a folder be the current one, with the temporary files and the cache of times in it, and some variables."""
    before, temporary = Path.cwd(), tempfile.tempdir
    environment = dict(os.environ)
    scratch = folder.with_name(folder.name + ".tmp")
    scratch.mkdir()
    os.chdir(folder)
    os.environ.update(variables)
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = temporary
        left = sorted(path.name for path in scratch.iterdir() if path.name != ".ses")  # ONNX Runtime's own
        shutil.rmtree(scratch)
        for name in left:
            (folder / f"TMPDIR-{name}").touch()


def memory() -> tuple[float, float]:
    """Return what this process holds of memory now, and what it held at most; MiB."""
    found = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) / 1024
    return found["VmRSS"], found["VmHWM"]


def run_command(command: tuple[str, ...], folder: Path, **variables: str) -> Run:
    """Run the command line in this process, in a folder, with some variables of the environment."""
    run = Run()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, _ = memory()
    start = time.perf_counter()
    with inside(folder, variables), caught(run):
        start = time.perf_counter()
        try:
            main(list(command))
        except SystemExit as end:
            run.status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException as error:
            run.faults.append(f"raised {type(error).__name__}: {str(error)[:200]}")
        run.seconds = time.perf_counter() - start
    run.mib = max(memory()[1] - before, 0.0)
    return run


def said_faults(run: Run) -> list[str]:
    """Return what is wrong with the exit status and with what was said."""
    faults = []
    lines = without_steps(run.stderr).splitlines()
    if run.status not in STATUSES:
        faults.append(f"exit status {run.status}")
    if "Traceback (most recent call last)" in run.stdout + run.stderr:
        faults.append("a traceback")
    if len(lines) > 3:
        faults.append(f"{len(lines)} lines on standard error")
    starts = ("error: ", "  where: ", "  to do: ")
    if run.status in (2, 4, 5, 74) and not (len(lines) == 3 and all(map(str.startswith, lines, starts))):
        faults.append("an error that is not what, where and what to do")
    if any((ord(c) < 0x20 and c not in "\n\r\t") or 0x7F <= ord(c) <= 0x9F for c in run.stdout + run.stderr):
        faults.append("control characters in the output")
    return faults


def file_faults(kind: Kind, folder: Path, before: dict[str, str], status: int | None) -> list[str]:
    """Return what is wrong with the files after the command."""
    now, faults = contents(folder), []
    done = status in (0, 3)
    for name, content in before.items():
        if name in kind.outputs and done:
            if now.get(name) in (content, None):
                faults.append(f"no output {name}")
        elif now.get(name) != content and not (is_cache(kind) and name.startswith("cache/")):
            faults.append(f"{name} {'is gone' if name not in now else 'was changed'}")
    if done:
        faults += [f"no output {one}" for one in kind.folders if not any(name.startswith(f"{one}/") for name in now)]
    for name in now.keys() - before.keys():
        path = Path(name)
        if done and any(name.startswith(f"{one}/") for one in kind.folders):
            continue
        is_beside = name.startswith(f"{OUT}/") and done and path.name.endswith((".data", ".importances.safetensors"))
        is_failed = name.startswith(f"{OUT}/") and status == 1 and ".failed." in path.name
        if not (
            is_beside or is_failed or (is_cache(kind) and name.startswith("cache/") and not path.name.startswith("."))
        ):
            faults.append(f"left behind: {name}" if path.name != MARKER else "the payload was executed")
    if (folder / MARKER).exists():
        faults.append("the payload was executed")
    if done and kind.command[0] in ("convert", "fold"):
        models = [folder / name for name in kind.outputs if name.endswith((".onnx", ".pt2"))]
        faults += [fault for path in models if (fault := output_fault(path))]
    return faults


def output_fault(path: Path) -> str:
    """Return what is wrong with a model that was written; nothing where it opens."""
    if path.suffix == ".pt2":
        return "" if path.is_file() and zipfile.is_zipfile(path) else f"{path.name} is no archive"
    try:
        check_onnx(path)
    except Exception as error:
        return f"the written model is not valid: {str(error).strip().splitlines()[0][:200]}"
    return ""


UNREAD = (".debug_pkl", "traced_inputs.pkl", "serialization_id")
"""Members of a TorchScript archive that its program is not made of, so that they are left out."""


def _read_zip(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not (path.suffix == ".ts" and name.endswith(UNREAD)):
                archive.read(name)
    return True


def check_onnx(path: Path) -> None:
    """Let onnx's checker look at a model; it wants shapes of outputs, which no runtime needs."""
    model = onnx.load(path)
    types = [output.type.tensor_type for output in model.graph.output if output.type.HasField("tensor_type")]
    missing = [declared for declared in types if not declared.HasField("shape")]
    for declared in missing:
        declared.shape.SetInParent()
    onnx.checker.check_model(model if missing else path)


def _read_onnx(path: Path) -> bool:
    try:
        check_onnx(path)
    except Exception:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return True


def _read_pickle(path: Path) -> bool:
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # What stands beside the weights and is no plain data is left out, by the name that the damaged file has for it.
        if "Unsupported global" not in str(error):
            raise
    return True


def _read_safetensors(path: Path) -> bool:
    with safetensors.safe_open(path, framework="numpy") as archive:
        return bool(archive.keys())


_READERS = {
    "zip": _read_zip,
    "onnx": _read_onnx,
    "pickle": _read_pickle,
    "safetensors": _read_safetensors,
    "npy": lambda path: np.load(path, allow_pickle=False) is not None,
    "json": lambda path: json.loads(path.read_bytes()) is not None,
    "yaml": lambda path: isinstance(yaml.safe_load(path.read_text()), dict),
}
"""Readers of other people for each format."""


def validity(kind: Kind, path: Path) -> str:
    """Return whether an independent reader takes the file: ``valid`` or ``invalid``.

    Bytes without a form are valid whatever they are, and so is a kept time, since one that cannot be read is measured
    again.
    """
    reader = _READERS.get(kind.format)
    if reader is None or is_cache(kind):
        return "valid"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "valid" if reader(path) else "invalid"
    # Readers raise whatever they trip over.
    except Exception:
        return "invalid"
