"""The commands that faults.py lets go wrong: all that write."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

EXAMPLE = Path(__file__).parents[1] / "examples" / "01_digits"
DIGITS = [str(EXAMPLE / "run"), "--factory", f"{EXAMPLE / 'digits_cnn.py'}:DigitsCNN", "--input-shape", "2x1x16x16"]
MASKS = ["--masks", str(EXAMPLE / "run" / "fixed_masks.safetensors")]
REPORTS = ("r.json", "r.xml", "r.html")
WITH_REPORTS = ["--report", "{}/r.json", "--junit", "{}/r.xml", "--html", "{}/r.html"]


class Command(NamedTuple):
    """A command that writes.

    Attributes:
        name: For the table.
        arguments: ``{}`` stands for the folder it writes into, ``@`` for that of the files it reads.
        earlier: The same, of the run whose files are there before.
    """

    name: str
    arguments: list[str]
    earlier: list[str]


COMMANDS = (
    Command(
        "convert to .onnx",
        ["convert", *DIGITS, *MASKS, "-o", "{}/m.onnx"],
        ["convert", *DIGITS, "-o", "{}/m.onnx"],
    ),
    Command(
        "convert to .pt2",
        ["convert", *DIGITS, *MASKS, "--no-verify", "-o", "{}/m.pt2"],
        ["convert", *DIGITS, "--no-verify", "-o", "{}/m.pt2"],
    ),
    Command(
        "convert to both, plan and reports",
        ["convert", *DIGITS, *MASKS, "-o", "{}/m.onnx", "-o", "{}/m.pt2", "--save-plan", "{}/plan.json", *WITH_REPORTS,
         "--repro", "{}/w.npz"],
        ["convert", *DIGITS, "-o", "{}/m.onnx", "-o", "{}/m.pt2", "--save-plan", "{}/plan.json", *WITH_REPORTS,
         "--repro", "{}/w.npz"],
    ),
    Command(
        "convert with external data",
        ["convert", "@/external.onnx", "-o", "{}/m.onnx"],
        ["convert", "@/other.onnx", "-o", "{}/m.onnx"],
    ),
    Command(
        "fold .onnx",
        ["fold", "@/masked.onnx", "-o", "{}/f.onnx"],
        ["fold", "@/plain.onnx", "-o", "{}/f.onnx"],
    ),
    Command(
        "fold .pt2",
        ["fold", "@/masked.pt2", "-o", "{}/f.pt2"],
        ["fold", "@/plain.pt2", "--no-verify", "-o", "{}/f.pt2"],
    ),
    Command(
        "masks",
        ["masks", *DIGITS, "--data", "@/x.npz", "-o", "{}/k.safetensors"],
        ["masks", *DIGITS, "--data", "@/other.npz", "-o", "{}/k.safetensors"],
    ),
    Command(
        "verify, reports",
        ["verify", "@/masked.onnx", *WITH_REPORTS, "--repro", "{}/w.npz"],
        ["verify", "@/plain.onnx", *WITH_REPORTS, "--repro", "{}/w.npz"],
    ),
    Command(
        "inspect, report",
        ["inspect", *DIGITS, *MASKS, "--report", "{}/r.json"],
        ["inspect", *DIGITS, "--report", "{}/r.json"],
    ),
    Command(
        "ablate, reports",
        ["ablate", "@/masked_at_run_time.onnx", "--data", "@/x.npz", "--report", "{}/r.json", "--html", "{}/r.html"],
        ["ablate", "@/masked_at_run_time.onnx", "--data", "@/other.npz", "--report", "{}/r.json", "--html",
         "{}/r.html"],
    ),
    Command(
        "bench, report",
        ["bench", "@/masked.onnx", "--rounds", "3", "--report", "{}/r.json"],
        ["bench", "@/plain.onnx", "--rounds", "3", "--report", "{}/r.json"],
    ),
)  # fmt: skip
