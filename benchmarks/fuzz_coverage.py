"""Damage that is guided by coverage: the readers of every format under atheris, each for some minutes.

    python -m pip install atheris        # in an environment of its own: it is no dependency of the project
    python benchmarks/fuzz_coverage.py --minutes 60 --write

libFuzzer keeps the files that reach new lines of this package and damages those on; half of its changes are those of
fuzz.py, which know the format. A reader may return, or raise an error of the package; everything else is a finding, and
so are 20 s and 2 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from datetime import date
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]
sys.path.append(str(ROOT))  # where this package is not installed beside atheris

from fuzz_page import GUIDED, PAGE, write_section

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS = {
    "safetensors": "components.safetensors",
    "npz": "components.npz",
    "npy": "data.npy",
    "json": "masks.json",
    "torch-zip": "state.pt",
    "torch-legacy": "state.legacy.pt",
    "archive": "m.pt2",
    "program": "program.json",
    "torchscript": "m.ts",
    "plan": "plan.json",
    "sets": "sets.json",
    "config": "run/final_config.yaml",
    "onnx": "control.onnx",
    "onnx-own": "masked.onnx",
    "onnx-functions": "functions.onnx",
}
"""What is fuzzed, and the valid file that it begins with; the other valid files of its format are seeds too."""

TIMEOUT, MIB = 20, 2048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all targets together (default: 60)")
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), metavar="TARGET", help="these alone")
    parser.add_argument("--rows", type=Path, help="a file of results, which grows by those that it lacks")
    parser.add_argument("--findings", type=Path, default=ROOT / "fuzz-failures", help="where findings are kept")
    parser.add_argument("--write", action="store_true", help="put the table into the page of results")
    parser.add_argument("--mended", type=Path, help="a file of lines that tell what was mended, for the page")
    parser.add_argument("--inner", nargs=3, metavar=("TARGET", "FOLDER", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        return fuzz(options.inner[0], Path(options.inner[1]), float(options.inner[2]))
    names = options.targets or list(TARGETS)
    rows: dict[str, dict[str, Any]] = {}
    if options.rows and options.rows.exists():
        rows = {row["target"]: row for row in map(json.loads, options.rows.read_text().splitlines())}
    missing = [name for name in names if name not in rows]
    from fuzz_material import write_material

    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        material = Path(folder) / "material"
        material.mkdir()
        write_material(material)
        with zipfile.ZipFile(material / "m.pt2") as archive:
            member = next(one for one in archive.namelist() if "/models/" in one)
            (material / "program.json").write_bytes(archive.read(member))
        for name in missing:
            rows[name] = row = measure(name, Path(folder), options.minutes * 60 / len(missing), options.findings)
            print(row["target"], row["executions"], row["coverage"], row["findings"], file=sys.stderr, flush=True)
            if options.rows:
                with options.rows.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    lines = table([rows[name] for name in names], options)
    print("\n".join(lines))
    if options.write:
        write_section(GUIDED, lines, PAGE)
    return 1 if any(rows[name]["findings"] for name in names) else 0


def measure(name: str, folder: Path, seconds: float, findings: Path) -> dict[str, Any]:
    """Fuzz one target in processes of its own, a new one where one was ended for its time or memory."""
    work = folder / name
    corpus = work / "corpus"
    corpus.mkdir(parents=True)
    first = folder / "material" / TARGETS[name]
    same = [path for path in (folder / "material").rglob("*") if path.is_file() and path.suffix == first.suffix]
    for number, path in enumerate(same):
        (corpus / f"seed-{number}").write_bytes(path.read_bytes())
    deadline, executions, coverage, found = time.monotonic() + seconds, 0, 0, {}
    before = None
    while (left := deadline - time.monotonic()) > 5:
        command = [sys.executable, __file__, "--inner", name, str(work), str(int(left))]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=work)
        counts = [(int(n), int(c)) for n, c in re.findall(r"^#(\d+)\s.*?cov: (\d+)", done.stderr, re.MULTILINE)]
        if counts:
            before = before or counts[0][1]
            executions += counts[-1][0]
            coverage = max(coverage, *(c for _, c in counts))
        else:
            raise RuntimeError(f"{name} does not begin: {done.stderr[-2000:]}")
        for reason in ("timeout", "oom", "crash", "leak"):  # libFuzzer's own; what was merely slow is none
            for path in work.glob(f"{reason}-*"):
                found[f"{reason} ({path.name[-8:]})"] = path.read_bytes()
                path.unlink()
    for path in work.glob("finding.*.json"):
        about = json.loads(path.read_text())
        found[about["what"]] = bytes.fromhex(about["content"])
    for number, (what, content) in enumerate(found.items()):
        kept = findings / f"coverage-{name}-{number}"
        kept.mkdir(parents=True, exist_ok=True)
        (kept / f"content{first.suffix}").write_bytes(content)
        (kept / "what.txt").write_text(what)
    return {
        "target": name, "seeds": len(same), "executions": executions, "before": before, "coverage": coverage,
        "corpus": len(list(corpus.iterdir())), "seconds": seconds, "findings": list(found),
    }  # fmt: skip


def fuzz(name: str, work: Path, seconds: float) -> int:
    """Run libFuzzer in this process."""
    import atheris

    with atheris.instrument_imports(include=["spdexport"]):
        read = reader(name)
    from fuzz_kinds import FORMATS, KNOWING

    from spdexport.errors import SpdExportError

    damage = KNOWING.get(FORMATS[next(e for e in sorted(FORMATS, key=len, reverse=True) if TARGETS[name].endswith(e))])
    file = work / ("final_config.yaml" if name == "config" else f"input{Path(TARGETS[name]).suffix}")
    seen: set[str] = set()

    def once(content: bytes) -> None:
        file.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(file)
        except SpdExportError as error:
            what = "" if error.exit_status != SpdExportError.exit_status else f"status 70: {error.what[:100]}"
        # Whatever it is, it is what is looked for; the run goes on.
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "/spdexport/" in f.filename]
            place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "outside"
            what = f"{type(error).__name__} at {place}"
        else:
            what = ""
        if what and what not in seen:
            seen.add(what)
            about = json.dumps({"what": what, "content": content.hex()})
            (work / f"finding.{abs(hash(what))}.json").write_text(about)

    for seed in sorted((work / "corpus").glob("seed-*")):
        once(seed.read_bytes())  # what it imports must not be taken for a hang

    def mutate(content: bytes, largest: int, seed: int) -> bytes:
        random = Random(seed)
        if damage is not None and random.random() < 0.5:
            with contextlib.suppress(Exception):  # what is damaged already may be of no format any more
                return damage(random, content)[:largest]
        return bytes(atheris.Mutate(content, largest))

    flags = [
        f"-max_total_time={int(seconds)}",
        f"-timeout={TIMEOUT}",
        f"-rss_limit_mb={MIB}",
        "-max_len=65536",
        "-seed=1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(work / "corpus")], once, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


def reader(name: str) -> Callable[[Path], object]:
    """Return what reads the file of a target; it is imported here, for what it imports is measured."""
    match name:
        case "safetensors":
            from spdexport.errors import ComponentsError
            from spdexport.files.tensors import read_tensors

            return lambda path: read_tensors(path, error=ComponentsError)
        case "npz" | "torch-zip":
            from spdexport.sources.spd import load_components

            return load_components
        case "npy":
            return _both_readers_of_inputs()
        case "json":
            from spdexport.masks import read_masks

            return lambda path: read_masks(path, threshold=None)
        case "torch-legacy":
            from spdexport.files.pickles import load_weights_only

            return load_weights_only
        case "archive":
            from spdexport.loading.programs import load_program

            return load_program
        case "program":
            from spdexport.files.programs import check_program

            return lambda path: check_program(path.read_bytes(), where=str(path))
        case "torchscript":
            from spdexport.files.torchscript.archive import checked_torchscript

            return checked_torchscript
        case "plan":
            from spdexport.planning import read_plan

            return read_plan
        case "sets":
            from spdexport.ablation.sets import read_sets

            return lambda path: read_sets(path, {"conv": 6, "fc": 5})
        case "config":
            from spdexport.sources.spd_gates import read_config

            return lambda path: read_config(path.parent)
        case _:
            from spdexport.files.onnx_reading import load_onnx
            from spdexport.model_files import read_metadata

            return lambda path: read_metadata(load_onnx(path))


def _both_readers_of_inputs() -> Callable[[Path], object]:
    from spdexport.errors import ExampleInputError
    from spdexport.files.batches import open_data
    from spdexport.loading.inputs import inputs_from_file

    def read(path: Path) -> None:
        with contextlib.suppress(ExampleInputError):
            inputs_from_file(path)
        for _ in open_data(path).batches(5):
            pass

    return read


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    minutes = sum(row["seconds"] for row in rows) / 60
    total = sum(row["executions"] for row in rows)
    found = sum(len(row["findings"]) for row in rows)
    lines = [
        f"`python benchmarks/fuzz_coverage.py` on {date.today().isoformat()}, {minutes:.0f} minutes on one core,",
        f"with atheris {version('atheris')}.",
        "",
        f"{total} executions of {len(rows)} targets. {found} findings." if found else
        f"{total} executions of {len(rows)} targets. No finding.",
        "",
        "Coverage is of the lines and branches of this package alone, with the valid files and in the end.",
        "",
        "| target | valid files | executions | coverage before | after | files kept | findings |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['target']} | {r['seeds']} | {r['executions']} | {r['before']} | {r['coverage']} | {r['corpus']} | "
        f"{'; '.join(r['findings'])} |"
        for r in rows
    ]
    if options.mended:
        lines += ["", *options.mended.read_text().splitlines()]
    return lines


def version(package: str) -> str:
    from importlib.metadata import version as installed

    return installed(package)


if __name__ == "__main__":
    # Coverage is guided by one thread's branches.
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
