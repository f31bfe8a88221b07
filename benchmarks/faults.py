"""Faults of the world around: disks that are full, folders that are read-only, processes that are killed.

    python benchmarks/faults.py > benchmarks/results/faults.md
    python benchmarks/faults.py --kills 12 --steps 2 --only external

Each command runs on the digits network over the files of an earlier run, and something goes wrong. Counted is what must
not be: files that are neither the earlier ones nor whole new ones; files that are left over, at once where the command
could still act, and after the next run where it was killed; exit statuses that are not the documented ones; and
tracebacks. The exit status is 1 if there is any of it, and standard error tells of each.

Disks are real where this may mount them: a small tmpfs, filled but for some bytes, and read-only. The limit of the size
of a file (``ulimit -f``) is tried everywhere. Kills are SIGKILL, SIGTERM, SIGINT and SIGHUP at times drawn over the
whole of a run. A process is forked from one that has everything imported, so that a run takes a second.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.numpy
from fault_commands import COMMANDS, DIGITS, MASKS, REPORTS, Command
from fault_processes import End, Running, import_what_is_used, in_child, start, wait

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CANNOT_WRITE = 74


@dataclass
class Count:
    """What is counted of one kind of fault."""

    trials: int = 0
    lost: int = 0
    left: int = 0
    statuses: int = 0
    tracebacks: int = 0
    ends: collections.Counter[int] = field(default_factory=collections.Counter)

    @property
    def faults(self) -> int:
        """All that must not be."""
        return self.lost + self.left + self.statuses + self.tracebacks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="in all, over all commands and signals")
    parser.add_argument("--steps", type=int, default=3, help="amounts of free space, for each command")
    parser.add_argument("--only", default="", help="commands with this in their name")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    commands = [command for command in COMMANDS if options.only in command.name]
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), random.Random(options.seed))
        bench.prepare(commands)
        for command in commands:
            bench.try_all(command, kills=-(-options.kills // len(commands)), steps=options.steps)
    show(bench)
    return 1 if any(count.faults for count in bench.counts.values()) else 0


class Bench:
    """A folder for all trials, and what they gave."""

    def __init__(self, folder: Path, moments: random.Random) -> None:
        self.counts: dict[tuple[str, str], Count] = collections.defaultdict(Count)
        self.mounts = _may_mount(folder)
        self._sources, self._scratch = folder / "sources", folder / "scratch"
        self._folder, self.moments = folder, moments
        for path in (self._sources, self._scratch):
            path.mkdir()
        os.environ["SPDEXPORT_CACHE"] = str(folder / "cache")

    def prepare(self, commands: Sequence[Command]) -> None:
        """Make the files that commands read."""
        # Nothing may compute in this process: threads do not outlive a fork.
        first = self.place()
        import_what_is_used(self.arguments(COMMANDS[0].arguments, first), self._scratch)
        read = " ".join(argument for command in commands for argument in (*command.arguments, *command.earlier))
        for name, extra in (("masked", MASKS), ("plain", []), ("masked_at_run_time", ["--runtime-masks", "*"])):
            if f"@/{name}." not in read and "@/external." not in read:
                continue
            outputs = ["-o", f"@/{name}.onnx", *(["-o", f"@/{name}.pt2"] if name != "masked_at_run_time" else [])]
            self._succeeds(["convert", *DIGITS, *extra, "--no-verify", *outputs], self._sources)
        in_child(lambda: _arrays_and_external(self._sources))

    def try_all(self, command: Command, *, kills: int, steps: int) -> None:
        """Let everything go wrong with one command."""
        print(command.name, file=sys.stderr, flush=True)
        trial = Trial(self, command)
        trial.full_disks(steps)
        trial.read_only()
        trial.two_at_once()
        trial.standard_output()
        trial.kills(kills)

    def arguments(self, arguments: list[str], folder: Path) -> list[str]:
        """Return a command line with its folders."""
        return [a.replace("{}", str(folder)).replace("@/", f"{self._sources}/") for a in arguments]

    def run(self, arguments: list[str], folder: Path, **options: object) -> End:
        """Run a command to its end, or to that which the options say."""
        return wait(start(self.arguments(arguments, folder), self._scratch, **options))  # type: ignore[arg-type]

    def start(self, arguments: list[str], folder: Path) -> Running:
        """Begin to run a command."""
        return start(self.arguments(arguments, folder), self._scratch)

    def _succeeds(self, arguments: list[str], folder: Path) -> float:
        end = self.run(arguments, folder)
        if end.status:
            raise SystemExit(f"{arguments} ends with {end.status}:\n{end.said}")
        return end.seconds

    def earlier(self, command: Command) -> tuple[Path, Path, float]:
        """Return folders with the files of the earlier run and of a whole new one, and how long that takes."""
        folders = self._folder / "earlier", self._folder / "whole"
        for folder, arguments in zip(folders, (command.earlier, command.arguments), strict=True):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            seconds = self._succeeds(arguments, folder)
        return *folders, seconds

    def scratch(self) -> set[str]:
        """Return what of this package's is in the folder for temporary files, of which the libraries have some, too."""
        return {path.name for path in self._scratch.iterdir() if "spdexport" in path.name}

    @contextlib.contextmanager
    def disk(self, size: int) -> Iterator[Path]:
        """Yield a disk of so many bytes."""
        folder = self._folder / "disk"
        folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
        try:
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)

    def place(self) -> Path:
        """Return an empty folder."""
        folder = self._folder / "place"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


class Trial:
    """All that goes wrong with one command."""

    def __init__(self, bench: Bench, command: Command) -> None:
        self._bench, self._command = bench, command
        self._earlier, self._whole, self._seconds = bench.earlier(command)
        self._known = {digest(path) for folder in (self._earlier, self._whole) for path in folder.iterdir()}
        self._names = {path.name for folder in (self._earlier, self._whole) for path in folder.iterdir()}
        self._size = sum(path.stat().st_size for path in self._whole.iterdir())

    def full_disks(self, steps: int) -> None:
        """Leave room for less and less of what is written, and let files be no longer than that."""
        for step in range(steps):
            room = self._size * step // steps
            if self._bench.mounts:
                with self._bench.disk(8 * self._size + 2**20) as folder:
                    self._fill(folder)
                    free = shutil.disk_usage(folder).free
                    (folder / "filler").write_bytes(b"\0" * max(0, free - room))
                    self._judge(
                        "disk full", folder, self._bench.run(self._command.arguments, folder), {0, CANNOT_WRITE}
                    )
            folder = self._fill(self._bench.place())
            end = self._bench.run(self._command.arguments, folder, limit=room + 1)
            self._judge("file size limited", folder, end, {0, CANNOT_WRITE})

    def read_only(self) -> None:
        """Allow nothing to be written."""
        if not self._bench.mounts:
            return
        with self._bench.disk(8 * self._size + 2**20) as folder:
            self._fill(folder)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            end = self._bench.run(self._command.arguments, folder)
            self._judge("read-only", folder, end, {CANNOT_WRITE})

    def two_at_once(self) -> None:
        """Let two runs write the same files."""
        folder = self._fill(self._bench.place())
        both = [self._bench.start(self._command.arguments, folder) for _ in range(2)]
        for end in [wait(running) for running in both]:
            self._judge("two at once", folder, end, {0})

    def standard_output(self) -> None:
        """Let nobody read, and let the disk of a redirected output be full."""
        for kind in ("closed", "full"):
            folder = self._fill(self._bench.place())
            end = self._bench.run(self._command.arguments, folder, output=kind)
            self._judge(f"standard output {kind}", folder, end, {0, CANNOT_WRITE})

    def kills(self, number: int) -> None:
        """Kill runs at any moment."""
        folder = self._fill(self._bench.place())
        # Every part of a run is met, and no signal is met in the same part of each command.
        parts = self._bench.moments.sample(range(number), number)
        for index, part in enumerate(parts):
            which = SIGNALS[index % len(SIGNALS)]
            # What a SIGKILL left is there until a run comes far enough to remove it: no fault of one that does not.
            before = self._unasked(folder)
            running = self._bench.start(self._command.arguments, folder)
            time.sleep(self._seconds * (part + self._bench.moments.random()) / number)
            os.kill(running.process, which)
            statuses = {0, -which} | ({128 + which} if which != signal.SIGKILL else set())
            end = wait(running)
            excused = self._unasked(folder) if which == signal.SIGKILL else before
            self._judge(which.name, folder, end, statuses, excused=excused)
            if end.status == 0 or self._is_replaced(folder):
                # Its files are whole, even where the signal came after them; the next run is to meet those of the
                # earlier one again. Data of a finished model are kept when another one takes its place.
                for name in self._names:
                    (folder / name).unlink(missing_ok=True)
                self._fill(folder)
        after = self._bench.run(self._command.earlier, folder)
        # Data of a model that was not finished have to be gone, too, which otherwise are no litter.
        self._names = {path.name for path in self._earlier.iterdir()}
        self._judge("the run after all kills", folder, after, {0})

    def _is_replaced(self, folder: Path) -> bool:
        """Return whether a model of the earlier run has given way to a new one."""
        models = [path.name for path in self._earlier.iterdir() if path.suffix == ".onnx"]
        return any(digest(folder / name) != digest(self._earlier / name) for name in models)

    def _fill(self, folder: Path) -> Path:
        shutil.copytree(self._earlier, folder, dirs_exist_ok=True)
        return folder

    def _unasked(self, folder: Path) -> set[str]:
        """Return the files that no one asked for, in the folder and among the temporary ones."""
        return ({path.name for path in folder.iterdir()} - self._names - {"filler"}) | self._bench.scratch()

    def _judge(
        self, kind: str, folder: Path, end: End, statuses: set[int], *, excused: AbstractSet[str] = frozenset()
    ) -> None:
        """Count one trial; what is excused may be left."""
        count = self._bench.counts[kind, self._command.name]
        lost = [name for name in sorted(self._names) if not self._is_whole(folder, name)]
        left = sorted(self._unasked(folder) - excused)
        count.trials += 1
        count.ends[end.status] += 1
        count.lost += len(lost)
        count.left += len(left) if kind != "two at once" else 0
        count.statuses += end.status not in statuses
        count.tracebacks += "Traceback" in end.said
        if lost or left or end.status not in statuses or "Traceback" in end.said:
            print(f"{kind}, {self._command.name}: lost {lost}, left {left}, status {end.status}", file=sys.stderr)
            print(end.said[-1500:], file=sys.stderr, flush=True)

    def _is_whole(self, folder: Path, name: str) -> bool:
        """Whether a file is the earlier one or a new one, and not some of it; data may be of either model."""
        path = folder / name
        if path.suffix == ".data":
            return not path.exists() or digest(path) in self._known
        if not path.is_file():
            return False
        # Sums of importances may differ by a rounding where threads meet in another order: their bytes say nothing.
        if name in REPORTS or path.suffix in (".npz", ".safetensors"):
            return _reads(path)
        return digest(path) in self._known and (path.suffix != ".onnx" or _has_data(path))


def show(bench: Bench) -> None:
    """Print the page."""
    from spdexport.ort.installed import versions

    found = versions()
    print("# Faults of the world around\n")
    stack = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnx", "onnxruntime"))
    command = " ".join(["python benchmarks/faults.py", *sys.argv[1:]])
    print(f"`{command}` on {date.today().isoformat()}, with {stack}.\n")
    print("Lost: neither the earlier file nor a whole new one. Left: files that no one asked for; where the process")
    print("was killed, after the next run. Statuses: how runs ended, in brackets how many; a minus is a signal's own")
    print("end.\n")
    if not bench.mounts:
        print("No disk could be mounted: full and read-only ones are missing.\n")
    for title, index in (("what goes wrong", 0), ("command", 1)):
        print(f"| {title} | trials | lost | left | wrong statuses | tracebacks | statuses |")
        print("|---|---|---|---|---|---|---|")
        rows: dict[str, Count] = collections.defaultdict(Count)
        for key, count in bench.counts.items():
            row = rows[key[index]]
            for name in ("trials", "lost", "left", "statuses", "tracebacks"):
                setattr(row, name, getattr(row, name) + getattr(count, name))
            row.ends.update(count.ends)
        for name, row in rows.items():
            ends = ", ".join(f"{status} ({number})" for status, number in sorted(row.ends.items()))
            print(f"| {name} | {row.trials} | {row.lost} | {row.left} | {row.statuses} | {row.tracebacks} | {ends} |")
        print()
    total = sum(count.trials for count in bench.counts.values())
    print(f"{total} trials, {sum(count.faults for count in bench.counts.values())} faults.")


# --- files ---


def _arrays_and_external(folder: Path) -> None:
    import numpy as np
    import onnx

    for seed, name in enumerate(("x", "other")):
        np.savez(folder / f"{name}.npz", x=np.random.default_rng(seed).normal(size=(4, 1, 16, 16)).astype(np.float32))
    if not (folder / "plain.onnx").exists():
        return
    for name, source in (("external", "masked"), ("other", "plain")):
        model = onnx.load(folder / f"{source}.onnx")
        onnx.save(
            model, folder / f"{name}.onnx", save_as_external_data=True, location=f"{name}.bin", size_threshold=256
        )


def digest(path: Path) -> str:
    """Return what tells a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _has_data(path: Path) -> bool:
    """Whether all data that a model names are beside it, and are what their names tell."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    places = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    files = [path.with_name(place) for place in places]
    return all(file.is_file() and digest(file).startswith(file.name.split(".")[-2]) for file in files)


def _reads(path: Path) -> bool:
    """Whether a report, or a file of computed numbers, is one from its beginning to its end."""
    try:
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".xml":
                ET.fromstring(path.read_text())
            case ".safetensors":
                return bool(safetensors.numpy.load_file(path))
            case ".npz":
                with zipfile.ZipFile(path) as archive:
                    return archive.testzip() is None
            case _:
                return path.read_text().rstrip().endswith("</html>")
    except (ValueError, ET.ParseError, zipfile.BadZipFile, safetensors.SafetensorError):
        return False
    return True


def _may_mount(folder: Path) -> bool:
    """Whether disks can be mounted here."""
    place = folder / "mounted"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "none", place], capture_output=True, check=False).returncode
    ):
        return False
    subprocess.run(["umount", place], check=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
