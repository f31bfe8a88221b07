"""The three recipes of the README from an empty environment: how many commands, how long, and what fails.

    python benchmarks/recipes.py > benchmarks/results/recipes.md

A virtual environment is made and this repository installed into it with pip, then the commands of each recipe run in a
copy of its example. Packages are downloaded, unless pip has them.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a reader of the README does.

    Attributes:
        title: As the README says it.
        example: The folder that it begins in.
        commands: As they are typed.
        gives: The file that it is for.
    """

    title: str
    example: str
    commands: tuple[str, ...]
    gives: str


RECIPES = (
    Recipe(
        title="I have a model.pt and want it smaller and faster",
        example="04_compress",
        commands=(
            "python train.py out",
            (
                "spdexport compress out/model.pt --factory net.py:DigitsResNet --data out/held_out.npz "
                "--test out/test.npz --max-top1-drop 2% -o out/small.onnx"
            ),
        ),
        gives="out/small.onnx",
    ),
    Recipe(
        title="I have an SPD run",
        example="01_digits",
        commands=(
            "mkdir -p out",
            (
                "spdexport convert run --factory digits_cnn.py:DigitsCNN --input-shape 1x1x16x16 "
                "--masks run/fixed_masks.safetensors -q -o out/digits.onnx"
            ),
        ),
        gives="out/digits.onnx",
    ),
    Recipe(
        title="I guard a model in continuous integration",
        example="02_continuous_integration",
        commands=(
            (
                "spdexport verify model.onnx --against weights.safetensors --factory model.py:SmallCNN "
                "--input-shape 2x1x16x16 --html report.html"
            ),
        ),
        gives="report.html",
    ),
)
INSTALL = ("python -m venv {venv}", "{venv}/bin/python -m pip install --quiet {root}[demo]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A command that ran.

    Attributes:
        command: As it was typed.
        status: How it ended.
        seconds: How long it took.
        said: The last that it said.
    """

    command: str
    status: int
    seconds: float
    said: str


def run(command: str, folder: Path, path: str) -> Ran:
    """Run a command in a folder."""
    start = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr)[-1500:]
    return Ran(command=command, status=done.returncode, seconds=time.perf_counter() - start, said=said)


def follow(recipe: Recipe, folder: Path, path: str) -> list[Ran]:
    """Run the commands of a recipe in a copy of its example, up to the first that fails."""
    copy = folder / recipe.example
    shutil.copytree(ROOT / "examples" / recipe.example, copy, ignore=shutil.ignore_patterns("out"))
    ran: list[Ran] = []
    for command in recipe.commands:
        ran.append(run(command, copy, path))
        if ran[-1].status:
            return ran
    assert (copy / recipe.gives).is_file(), f"{recipe.gives} was not written"
    return ran


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="which Python the environment is made of")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recipes-") as name:
        folder = Path(name)
        venv = folder / "venv"
        words = {"venv": venv, "root": ROOT}
        first = Path(options.python).parent
        before = f"{first}{os.pathsep}{os.environ['PATH']}"
        installed = [run(command.format(**words), folder, before) for command in INSTALL]
        if failed := [ran for ran in installed if ran.status]:
            print(failed[0].said, file=sys.stderr)
            return 1
        path = f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
        found = [(recipe, follow(recipe, folder, path)) for recipe in RECIPES]
        versions = run("python -m pip list --format freeze", folder, path).said.split()
    named = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")
    told = ", ".join(v.replace("==", " ") for v in versions if v.partition("==")[0] in named)
    print("# The three recipes, from an empty environment\n")
    print(f"`python benchmarks/recipes.py` on {date.today().isoformat()}, python {platform.python_version()}, {told},")
    print(f"on {os.cpu_count()} processors under a load of {os.getloadavg()[0]:.0f}.\n")
    print(f"Installing with pip: {sum(ran.seconds for ran in installed):.0f} s, 2 commands, downloads included.\n")
    print("| recipe | commands | failed | seconds | of them the last command |")
    print("|---|---|---|---|---|")
    for recipe, ran in found:
        failed_ones = sum(one.status != 0 for one in ran)
        total = sum(one.seconds for one in ran)
        print(f"| {recipe.title} | {len(ran)} | {failed_ones} | {total:.0f} | {ran[-1].seconds:.0f} |")
    print("\nThe commands:\n")
    for _, ran in found:
        for one in ran:
            print(f"    {one.command}")
    bad = [one for _, ran in found for one in ran if one.status]
    for one in bad:
        print(f"{one.command}: {one.status}\n{one.said}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
